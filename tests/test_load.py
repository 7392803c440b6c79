"""01 writes an index of every photograph, and accounts for every other file."""

import os
import shutil
import struct
import unicodedata
import zlib

import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet
import pytest
from PIL import Image, PngImagePlugin
from pipeline import write_features, write_index
from pyspark.sql import functions as F

from fruits_lib import files, origin
from fruits_lib.backbones import export_backbone
from fruits_lib.errors import FruitsError
from fruits_lib.load import list_files, sample_paths, thumbnails
from fruits_lib.load import write_index as write_listing
from fruits_lib.runs import open_run

ROOT = "photo graphs é 100% [x]{y}#+,:"  # every character that some layer could take for its own
IMAGES = [
    "Training/Apple Braeburn/321_100.jpg",
    "Test/Apple Braeburn/r_7_100.jpg",
    "case/b.JpEg",
    "Pêche 100%/café au%20lait.jpg",
    "[a]{b}/q[1]?*.jpg",
    "a=b/x=1.png",
    "c#d/e+f,g;h&i.jpg",
    "colon/1:2.jpg",
    "back\\slash/'quoted\".jpg",
    "😀/1.jpg",
    "flat.jpg",
    "empty/0 %+.jpg",
]
ASIDE = ["labels.csv", "case/a.txt", ".git/config", "case/_2.jpg"]


def plant(root, *names):
    """Write files whose content is their name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def photograph(path, colour=(9, 99, 200), size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def index_of(run):
    return open_run(run.spark, run.uri).read_table("index").toPandas().set_index("path")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = plant(tmp_path_factory.mktemp("tree") / ROOT, *IMAGES, *ASIDE)
    (root / "empty/0 %+.jpg").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def indexed(spark, tree, tmp_path_factory):
    """Index of the tree: (run, what write_index returned)."""
    run = open_run(spark, str(tmp_path_factory.mktemp("run of tree [*]")))
    index = write_index(run, str(tree))
    return open_run(spark, run.uri), index


@pytest.fixture
def run(spark, tmp_path):
    return open_run(spark, str(tmp_path / "run"))


# --- the index ----------------------------------------------------------------------------------


def test_paths_are_those_below_the_data_folder(indexed):
    assert sorted(index_of(indexed[0]).index) == sorted(IMAGES)


def test_lengths_and_times_are_those_of_the_files(indexed, tree):
    index = indexed[0].read_table("index")
    rows = index.select("path", "length", F.unix_millis("modification_time").alias("time"))
    for row in rows.collect():
        stat = (tree / row.path).stat()
        assert (row.length, row.time) == (stat.st_size, stat.st_mtime_ns // 1_000_000)


TIMES = {  # milliseconds since 1970 -> what the index holds
    "1601": (-11_644_473_600_000, "1601-01-01T00:00:00"),
    "a camera's 2286": (9_999_999_999_000, "2286-11-20T17:46:39"),
    "the last of four digits": (253_402_300_799_000, "9999-12-30T00:00:00"),
    "more than Python holds": (1 << 62, "9999-12-30T00:00:00"),
    "less than Python holds": (-(1 << 62), "0001-01-02T00:00:00"),
    "zero": (0, "1970-01-01T00:00:00"),
}


@pytest.fixture(scope="module")
def timed(spark, tmp_path_factory):
    """Index of files with these times, which no one file system holds: (run folder, listing)."""
    folder = tmp_path_factory.mktemp("times")
    plant(folder / "data", *(f"a/{name}.jpg" for name in TIMES))
    found = [files._File(f"a/{name}.jpg", 1, time) for name, (time, _) in TIMES.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_list_folder", lambda *_: (found, None))
        run = open_run(spark, str(folder / "run"), str(folder / "data"), "load")
        listing = list_files(run)
    write_listing(run, listing)
    return open_run(spark, run.uri), listing


@pytest.mark.parametrize("name", TIMES)
def test_any_time_of_a_file_is_kept_or_the_nearest_that_a_timestamp_holds(timed, name):
    table = pd.read_parquet(timed[0].path("index").removeprefix("file:")).set_index("path")
    assert table["modification_time"][f"a/{name}.jpg"].isoformat() == f"{TIMES[name][1]}+00:00"


def test_no_time_makes_a_photograph_look_changed(timed):
    run, listing = timed
    index = files.times(run.read_table("index"))
    assert files.compare(run.spark, run.data, index, dict, listing).changed == []


def test_an_index_with_the_times_of_an_older_version_is_read(run, tmp_path):
    plant(tmp_path / "data", "a/1.jpg")
    write_index(run, tmp_path / "data")
    (file,) = (tmp_path / "run/index").glob("*.parquet")
    file.with_name(f".{file.name}.crc").unlink()
    stored = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(stored, file, use_deprecated_int96_timestamps=True)
    run = open_run(run.spark, run.uri)
    index, listing = files.times(run.read_table("index")), list_files(run)
    found = files.compare(run.spark, run.data, index, dict, listing)
    assert (found.new, found.gone, found.changed) == ([], [], [])


def test_the_schema_is_the_contract(indexed):
    assert indexed[0].read_table("index").dtypes == [
        ("path", "string"),
        ("label", "string"),
        ("split", "string"),
        ("length", "bigint"),
        ("modification_time", "timestamp"),
    ]


@pytest.mark.parametrize(("table", "rows"), [("index", len(IMAGES)), ("set_aside", len(ASIDE))])
def test_pyarrow_reads_the_tables(indexed, table, rows):
    folder = indexed[0].path(table).removeprefix("file:")
    assert pyarrow.dataset.dataset(folder).count_rows() == rows


def test_every_file_is_accounted_for_in_the_text(indexed):
    assert str(indexed[1]).splitlines() == [
        "16 files = 12 images of 10 labels + 4 set aside",
        "set aside, hidden: its name or a folder's begins with . or _: 1 no extension, 1 .jpg",
        "set aside, not an image: 1 .csv, 1 .txt",
        "1 images have no label: no folder is named after one. Features and components need none",
    ]


def test_every_file_is_accounted_for_in_the_manifest(indexed, tree):
    recorded = indexed[0].manifest()["load"]
    assert (recorded["data"], recorded["files"], recorded["images"]) == (f"file:{tree}", 16, 12)
    assert sum(entry["files"] for entry in recorded["set_aside"]) == 4


def test_two_unicode_forms_of_a_label_are_one_and_said(run, tmp_path):
    forms = [unicodedata.normalize(form, "Pêche") for form in ("NFC", "NFD")]
    for form in forms:
        plant(tmp_path / "data", f"{form}/1.jpg", f"{form}/2.jpg")
    index = write_index(run, tmp_path / "data")
    assert str(index).splitlines() == [
        "4 files = 4 images of 1 label + 0 set aside",
        "1 labels were put into Unicode's form NFC",
    ]


def test_a_flat_folder_has_no_labels_and_says_so(run, tmp_path):
    index = write_index(run, plant(tmp_path / "data", "1.jpg", "2.jpg"))
    assert str(index).splitlines() == [
        "2 files = 2 images + 0 set aside",
        "2 images have no label: no folder is named after one. Features and components need none",
    ]


@pytest.mark.parametrize("ending", ["", "/"])
@pytest.mark.parametrize("scheme", ["", "file:", "file://"])
def test_a_folder_may_be_a_path_or_a_uri(run, tree, scheme, ending):
    assert write_index(run, f"{scheme}{tree}{ending}").images == len(IMAGES)


def test_patterns_are_kept_for_05_and_for_01_when_it_runs_again(run, tmp_path):
    data = plant(tmp_path / "data", "a/1.jpg", "a/thumbs/2.jpg")
    index = write_index(run, data, exclude="thumbs")
    assert "set aside, excluded by thumbs: 1 .jpg" in str(index)
    assert run.manifest()["load"]["exclude"] == "thumbs"
    assert all(check.passed for check in origin.check_files(open_run(run.spark, run.uri)))
    assert write_index(run, data).images == 1
    assert write_index(run, data, exclude="/").images == 2


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "data", "message"),
    [
        ([], "absent", r"/absent does not exist: give a folder"),
        (["a/1.jpg"], "a/1.jpg", r"/a/1\.jpg is a file: give the folder"),
        ([], "", r" holds no image among 0 files: give a folder that holds photographs$"),
        (["a/1.txt", "a/_1.jpg"], "", r" holds no image among 2 files: "),
    ],
    ids=["missing", "file", "empty", "others only"],
)
def test_what_cannot_be_indexed_is_one_line(run, tmp_path, names, data, message):
    root = plant(tmp_path / "data", *names)
    root.mkdir(exist_ok=True)
    with pytest.raises(FruitsError, match=message) as caught:
        write_index(run, f"{root}/{data}")
    assert "\n" not in str(caught.value)
    assert not run.exists("index")


# --- an index that is there ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(spark, tiny, tmp_path_factory):
    """Features of three photographs and a reject, and their folder: (run folder, data folder)."""
    folder = tmp_path_factory.mktemp("three")
    for number in range(3):
        photograph(folder / f"data/a/{number}.png", (number, 2, 3))
    plant(folder / "data", "a/text.png")
    run = open_run(spark, str(folder / "run"))
    write_index(run, folder / "data")
    backbone = export_backbone(run, weights=str(tiny), input_size=32)
    write_features(run, backbone, max_reject_ratio=1, batch_size=2)
    return folder


@pytest.fixture
def known(spark, three, tmp_path):
    """A copy of it, to change: (run, data folder)."""
    shutil.copytree(three, tmp_path / "copy")
    data = tmp_path / "copy/data"
    run = open_run(spark, str(tmp_path / "copy/run"))
    write_index(run, data)
    return run, data


def compute(run, tiny):
    backbone = export_backbone(run, weights=str(tiny), input_size=32)
    return write_features(run, backbone, max_reject_ratio=1)


def longer(data):
    photograph(data / "a/1.png", (1, 2, 3), (9, 99))


def other_pixels(data):
    size = (data / "a/1.png").stat().st_size
    photograph(data / "a/1.png", (1, 2, 4))
    assert (data / "a/1.png").stat().st_size == size
    os.utime(data / "a/1.png", (1, 1))


def removed(data):
    (data / "a/1.png").unlink()


@pytest.mark.parametrize("change", [longer, other_pixels, removed])
def test_a_photograph_that_changed_is_refused_and_the_index_stays(known, change):
    run, data = known
    before = index_of(run)
    change(data)
    message = r"^1 photographs are gone or have changed since .* example a/1\.png: set overwrite=Tr"
    with pytest.raises(FruitsError, match=message):
        write_index(run, data)
    pd.testing.assert_frame_equal(index_of(run), before)


@pytest.mark.parametrize(("change", "computed"), [(longer, 1), (other_pixels, 1), (removed, 0)])
def test_overwrite_drops_the_rows_of_what_changed_and_no_others(known, tiny, change, computed):
    run, data = known
    change(data)
    index = write_index(run, data, overwrite=True)
    assert index.dropped == 1
    assert "1 images are gone or have changed: their features went" in str(index)
    result = compute(run, tiny)
    assert result.computed == computed
    assert result.features + result.rejects == index.images


def test_a_moved_or_copied_folder_goes_on(known, tiny, tmp_path):
    run, data = known
    shutil.copytree(data, tmp_path / "moved", copy_function=shutil.copy)  # with new times
    for file in (tmp_path / "moved/a").iterdir():
        os.utime(file, (5, 5))
    shutil.rmtree(data)
    assert write_index(run, tmp_path / "moved").dropped == 0
    result = compute(run, tiny)
    assert (result.features, result.rejects) == (3, 1)
    assert result.computed <= 1  # the reject, of which nothing is known


def test_a_reject_that_was_repaired_is_computed_without_a_question(known, tiny):
    run, data = known
    photograph(data / "a/text.png")
    assert write_index(run, data).dropped == 0
    result = compute(run, tiny)
    assert (result.features, result.rejects, result.computed) == (4, 0, 1)


def damage(folder):
    files = folder.rglob("part-*.parquet")
    file = max(files, key=lambda file: file.stat().st_size)  # some have no row
    file.write_bytes(file.read_bytes()[:-50])
    file.with_name(f".{file.name}.crc").unlink()


def test_damaged_features_are_no_hindrance_and_computed_again(known, tiny):
    run, data = known
    damage(data.parent / "run/features")
    write_index(run, data)
    result = compute(run, tiny)
    assert (result.features, result.rejects) == (3, 1)
    assert result.computed in (1, 2)  # the rows of one file


def test_a_damaged_index_is_one_line_with_the_way_out(known):
    run, data = known
    damage(data.parent / "run/index")
    message = r"^the look at the old index stopped \(.+\): remove index/ and run it again$"
    with pytest.raises(FruitsError, match=message):
        write_index(run, data)
    shutil.rmtree(data.parent / "run/index")
    assert write_index(run, data).images == 4


def test_other_photographs_are_refused(known, tree):
    with pytest.raises(FruitsError, match=r"^3 photographs are gone or have changed "):
        write_index(known[0], tree)


def test_new_photographs_are_added(known, tiny):
    run, data = known
    photograph(data / "b/4.png")
    assert write_index(run, data).images == 5
    assert compute(run, tiny).computed == 1


def test_an_index_that_was_half_written_is_written_again(known):
    run, data = known
    for file in (data.parent / "run/index").glob("*"):
        file.unlink()
    assert write_index(run, data).images == 4


# --- pictures to look at ------------------------------------------------------------------------


def test_thumbnails_are_the_decoders_own_small_pixels(known):
    run, _ = known
    table = thumbnails(open_run(run.spark, run.uri), ["a/2.png", "a/text.png", "a/0.png"], size=4)
    assert list(table["path"]) == ["a/2.png", "a/text.png", "a/0.png"]
    np.testing.assert_array_equal(table["pixels"][0], np.full((4, 4, 3), (2, 2, 3)))
    assert table["pixels"][1] is None
    assert list(table["reason"]) == [None, "not an image", None]
    assert list(table["label"]) == ["a", "a", "a"]


def test_no_photograph_stops_the_pictures(run, tmp_path):
    data, text = tmp_path / "data", PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 5_000_000, zip=True)
    photograph(data / "a/good.png")
    Image.new("L", (8, 8)).save(data / "a/text.png", pnginfo=text)
    header = (data / "a/good.png").read_bytes()
    side = struct.pack(">I", 30_000)
    bomb = header[:16] + side + side + header[24:29]
    bomb += struct.pack(">I", zlib.crc32(bomb[12:29])) + header[33:]
    (data / "a/bomb.png").write_bytes(bomb)
    (data / "a/header.png").write_bytes(header[:20] + b"????" + header[24:])
    write_index(run, data)
    run = open_run(run.spark, run.uri)
    table = thumbnails(run, sample_paths(run))
    reasons = dict(zip(table["path"], table["reason"], strict=True))
    assert reasons["a/good.png"] is None
    assert reasons["a/bomb.png"] == "more than 178956970 pixels"
    assert reasons["a/text.png"].startswith("damaged image: ")
    assert reasons["a/header.png"].startswith("damaged image: ")


def test_the_first_photographs_of_each_label_are_looked_at(indexed):
    paths = sample_paths(indexed[0], per_label=1, labels=3)
    assert paths == ["flat.jpg", "Test/Apple Braeburn/r_7_100.jpg", "Pêche 100%/café au%20lait.jpg"]
