"""The embedded sample: the archive is what the script draws, and what is written is the archive."""

import io
import os
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from fruits_lib import sample
from fruits_lib.errors import FruitsError

ROOT = Path(__file__).parents[1]
LABELS = ["Apple Braeburn", "Cherry 1", "Grape Blue", "Lemon 100%", "Pêche blanche", "mango_ripe"]
HIDDEN = "Test/Grape Blue/_hidden.jpg"
BAD = {
    "Test/Grape Blue/truncated.jpg",
    "Training/Cherry 1/empty.jpg",
    "Training/mango_ripe/text.jpg",
}
FORMS = {  # Pillow's format, mode, size and EXIF orientation of all but plain JPEGs
    "Training/Apple Braeburn/3_100.jpg": ("JPEG", "L", (100, 100), None),
    "Training/Cherry 1/5_100.png": ("PNG", "RGBA", (100, 100), None),
    "Training/Pêche blanche/6_100.jpg": ("JPEG", "RGB", (100, 100), 6),
    "Training/mango_ripe/2_100.PNG": ("PNG", "P", (100, 100), None),
    "Training/Lemon 100%/5_100.jpg": ("JPEG", "CMYK", (100, 100), None),
    "Training/Grape Blue/2_100.png": ("PNG", "I;16", (100, 100), None),
    "Test/Apple Braeburn/r_2_100.jpg": ("JPEG", "RGB", (320, 240), None),
    "Test/Lemon 100%/r_3_100.JpEg": ("JPEG", "RGB", (100, 100), None),
}


@pytest.fixture(scope="module")
def files():
    return sample.files()


def written(folder):
    """Content by relative path, without the checksums and the marker of a staged sample."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".crc" and path.name != "_COMPLETE"
    }


def test_the_archive_is_what_the_script_draws():
    script = runpy.run_path(str(ROOT / "scripts/draw_sample.py"))
    shipped = (ROOT / "fruits_lib/sample.zip").read_bytes()
    assert script["archive"]() == shipped
    assert len(shipped) < 500_000


def test_counts(files):
    good = {name: content for name, content in files.items() if name not in BAD | {HIDDEN}}
    assert set(files) == set(good) | BAD | {HIDDEN}
    assert (len(good), len(BAD), 1) == (sample.GOOD, sample.REJECTS, sample.SET_ASIDE)
    assert len(set(good.values())) == len(good)  # no image twice
    per_folder = Counter(tuple(name.split("/")[:2]) for name in good)
    expected = {"Training": 14, "Test": 6}
    assert per_folder == {(split, label): expected[split] for split in expected for label in LABELS}


def test_every_good_image_decodes_in_its_form(files):
    assert set(FORMS) <= set(files)
    for name in set(files) - BAD:
        image = Image.open(io.BytesIO(files[name]))
        image.load()
        found = image.format, image.mode, image.size, image.getexif().get(0x0112)
        assert found == FORMS.get(name, ("JPEG", "RGB", (100, 100), None)), name


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_files_do_not_decode(files, name):
    with pytest.raises(OSError, match="cannot identify|truncated"):
        Image.open(io.BytesIO(files[name])).load()


def test_only_what_is_missing_or_different_is_written(files, tmp_path):
    assert sample.write_sample(tmp_path / "new/folder") == len(files)
    assert written(tmp_path / "new/folder") == files
    damaged = tmp_path / "new/folder/Test/Cherry 1/r_0_100.jpg"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    sample.write_sample(tmp_path / "new/folder")
    assert {p for p, when in before.items() if p.stat().st_mtime_ns != when} == {damaged}
    assert written(tmp_path / "new/folder") == files


def test_names_are_right_in_the_c_locale(files, tmp_path):
    code = "import sys; from fruits_lib.sample import write_sample; write_sample(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, env={"PATH": os.environ["PATH"], "LC_ALL": "C"}, cwd=ROOT, check=True)
    assert written(tmp_path) == files


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(FruitsError, match="taken.*Not a directory.*give a folder") as caught:
        sample.write_sample(tmp_path / "taken")
    assert "\n" not in str(caught.value)


def test_the_staged_sample_is_written_once(spark, files, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = Path(sample.stage_sample(spark))
    assert folder.is_relative_to(tmp_path)
    assert written(folder) == files
    (folder / HIDDEN).unlink()
    assert sample.stage_sample(spark) == str(folder)
    assert not (folder / HIDDEN).exists()
