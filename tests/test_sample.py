"""The embedded sample: the same bytes every time, every promised file, nothing else."""

import hashlib
import io
import socket
import unicodedata
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps

from fruits_lib import sample
from fruits_lib.errors import FruitsError

BAD = {
    "Test/Grape Blue/truncated.jpg",
    "Training/Cherry 1/empty.jpg",
    "Training/mango_ripe/text.jpg",
}
HIDDEN = "Test/Grape Blue/_hidden.jpg"
MODES = {  # form -> Pillow's format, mode, size
    "jpeg": ("JPEG", "RGB", (100, 100)),
    "jpeg grey": ("JPEG", "L", (100, 100)),
    "jpeg cmyk": ("JPEG", "CMYK", (100, 100)),
    "jpeg exif 6": ("JPEG", "RGB", (100, 100)),
    "jpeg 320x240": ("JPEG", "RGB", (320, 240)),
    "png alpha": ("PNG", "RGBA", (100, 100)),
    "png palette": ("PNG", "P", (100, 100)),
    "png 16-bit": ("PNG", "I;16", (100, 100)),
}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A folder with the sample, and what a socket would have been asked for while it was drawn."""
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda *address: asked.append(address))
        folder = tmp_path_factory.mktemp("sample")
        count = sample.render_sample(folder)
    return folder, count, asked


@pytest.fixture(scope="module")
def files(rendered):
    folder, _, _ = rendered
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def photographs(files):
    return {name: data for name, data in files.items() if name not in BAD | {HIDDEN}}


def rgb(data):
    """Upright 8-bit RGB on white, as a person sees the file."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"), dtype=float)


def test_the_same_bytes_again_and_nothing_written_twice(rendered, files):
    folder, count, asked = rendered
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    damaged = folder / "Test/Cherry 1/r_0_100.jpg"
    damaged.write_bytes(b"half a file")
    assert sample.render_sample(folder) == count  # the second drawing
    after = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    for name, data in files.items():
        digest = hashlib.sha256(after[name].read_bytes()).hexdigest()
        assert digest == hashlib.sha256(data).hexdigest(), name
    touched = {p for p, when in before.items() if p.stat().st_mtime_ns != when}
    assert touched == {damaged}
    assert not asked


def test_counts(rendered, files):
    assert rendered[1] == len(files) == sample.GOOD + sample.REJECTS + sample.SKIPPED
    assert set(files) >= BAD | {HIDDEN}
    good = photographs(files)
    assert len(good) == sample.GOOD == 120
    assert len(BAD) == sample.REJECTS
    assert [n for n in files if n.rpartition("/")[2].startswith(("_", "."))] == [HIDDEN]
    per_folder = Counter(tuple(name.split("/")[:2]) for name in good)
    assert per_folder == {(s, f): n for f in sample.FRUITS for s, n in sample.SPLITS.items()}
    assert len(set(good.values())) == len(good)  # no photograph twice
    assert sum(map(len, files.values())) < 1_000_000


def test_labels_exercise_names():
    labels = list(sample.FRUITS)
    assert labels == [
        "Apple Braeburn", "Cherry 1", "Pêche blanche", "mango_ripe", "Lemon 100%", "Grape Blue",
    ]  # fmt: skip
    assert all(unicodedata.is_normalized("NFC", label) for label in labels)


def test_every_photograph_decodes_in_its_promised_form(files):
    forms = {prefix + suffix: form for prefix, (suffix, form) in sample.FORMATS.items()}
    assert set(forms) <= set(files)
    assert set(forms.values()) == set(MODES)
    for name, data in photographs(files).items():
        image = Image.open(io.BytesIO(data))
        image.load()
        form = forms.get(name, "jpeg")
        assert (image.format, image.mode, image.size) == MODES[form], name
        assert image.getexif().get(0x0112) == (6 if form == "jpeg exif 6" else None), name
    assert {name.rpartition(".")[2] for name in files} == {"jpg", "JpEg", "png", "PNG"}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_files_do_not_decode(files, name):
    with pytest.raises(OSError, match="cannot identify|truncated"):
        Image.open(io.BytesIO(files[name])).load()


def test_hidden_file_is_a_good_photograph(files):
    assert rgb(files[HIDDEN]).shape == (100, 100, 3)


def test_the_fruit_fills_the_middle_and_the_ground_is_white(files):
    for name, data in photographs(files).items():
        pixels = rgb(data)
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.min() >= 245, name
        height, width = pixels.shape[:2]
        assert pixels[height // 2, width // 2].min() < 240, name


def test_exif_photograph_is_upright_once_transposed(files):
    name = "Training/Pêche blanche/6_100"
    assert sample.FORMATS[name][1] == "jpeg exif 6"
    fruit = sample.FRUITS["Pêche blanche"]
    which = list(sample.FRUITS).index("Pêche blanche")
    skin = sample._skin(fruit, np.random.default_rng(which))
    drawn = rgb(sample._encode(sample._photograph(fruit, skin, [which, 0, 6], 6 / 14), "png alpha"))
    stored = np.asarray(Image.open(io.BytesIO(files[name + ".jpg"])), dtype=float)
    assert np.abs(rgb(files[name + ".jpg"]) - drawn).mean() < 3
    assert np.abs(stored - drawn).mean() > 6


def test_labels_differ_in_colour(files):
    """The Training photograph nearest in mean colour gives each Test photograph's label."""
    colours = {"Training": [], "Test": []}
    for name, data in photographs(files).items():
        pixels = rgb(data).reshape(-1, 3)
        split, label, _ = name.split("/")
        colours[split].append((label, pixels[pixels.min(axis=1) < 235].mean(axis=0)))
    for label, colour in colours["Test"]:
        nearest = min(colours["Training"], key=lambda known, c=colour: np.linalg.norm(known[1] - c))
        assert nearest[0] == label


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "sample_files", lambda: iter([("Test/x/a.jpg", b"a")]))
    (tmp_path / "taken").write_text("a file, no folder")
    with pytest.raises(FruitsError, match="taken.*Not a directory.*name a folder") as caught:
        sample.render_sample(tmp_path / "taken")
    assert "\n" not in str(caught.value)
