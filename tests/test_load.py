"""A tree of images becomes an index: every image, its label, its split, and nothing in silence."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.dataset
import pytest
from pipeline import write_index
from pyspark.sql import functions as F

from fruits_lib.errors import FruitsError
from fruits_lib.load import read_images, sample_images
from fruits_lib.runs import open_run

ROOT = "photo graphs é 100% [x]{y}#+"  # every character that some layer could take for its own
PLACES = {  # path below the root -> label, split
    "Training/Apple Braeburn/321_100.jpg": ("Apple Braeburn", "Training"),  # 100x100 layout
    "Test/Apple Braeburn/r_7_100.jpg": ("Apple Braeburn", "Test"),
    "Training/apple_6/r0_103.jpg": ("apple_6", "Training"),  # original-size layout
    "Validation/apple_6/r0_105.jpg": ("apple_6", "Validation"),
    "no split/1.jpg": ("no split", None),
    "Training/farm/field/Cocos/1.jpg": ("Cocos", "Training"),  # the label is the folder above
    "Test/Training/Lemon/1.jpg": ("Lemon", "Training"),  # the nearest split counts
    "old/Test/Lemon/1.jpg": ("Lemon", "Test"),
    "training/Mango/1.jpg": ("Mango", None),  # letter case matters for splits
    "case/a.JPG": ("case", None),
    "case/b.JpEg": ("case", None),
    "case/c.jpeg": ("case", None),
    "case/d.PNG": ("case", None),
    "case/e.png": ("case", None),
    "Pêche 100%/café au%20lait.jpg": ("Pêche 100%", None),
    "[a]{b}/q[1]?*.jpg": ("[a]{b}", None),
    "a=b/x=1.png": ("a=b", None),
    "c#d/e+f,g;h&i.jpg": ("c#d", None),
    "back\\slash/'quoted\".jpg": ("back\\slash", None),
    "😀/1.jpg": ("😀", None),
    "empty/0 %+.jpg": ("empty", None),
    "empty/1.jpg": ("empty", None),
}
LABELS = {label for label, _ in PLACES.values()}
EMPTY = "empty/0 %+.jpg"
SKIPPED = [
    ".thumb.jpg",
    "Training/Apple Braeburn/_2_100.JPG",
    "Training/Apple Braeburn/._321_100.jpg",
    "_raw/Lemon/1.png",
    "_raw/.deeper/Lemon/1.png",
    "case/.cache/x/y/z/deep.jpeg",
    "only hidden/far/below/_1.jpg",
]
OTHERS = ["labels.csv", "case/a.txt", "case/jpg", "case/a.jpg.bak", ".git/config", "case/_SUCCESS"]


def plant(root, *names):
    """Write files whose content is their name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def index_of(run):
    """The index as pandas, by path below the data folder."""
    table = run.read_table("index").toPandas()
    data = run.manifest()["load"]["data"]
    return table.assign(name=table["path"].str.removeprefix(data + "/")).set_index("name")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = plant(tmp_path_factory.mktemp("tree") / ROOT, *PLACES, *SKIPPED, *OTHERS)
    (root / EMPTY).write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def indexed(spark, tree, tmp_path_factory):
    """Index of the tree: (run, what write_index returned)."""
    run = open_run(spark, str(tmp_path_factory.mktemp("run of tree")))
    return run, write_index(run, str(tree))


@pytest.fixture(scope="module")
def table(indexed):
    return index_of(indexed[0])


@pytest.fixture
def run(spark, tmp_path):
    return open_run(spark, str(tmp_path / "run"))


# --- the index ----------------------------------------------------------------------------------


def test_indexes_exactly_the_images(table):
    assert sorted(table.index) == sorted(PLACES)


@pytest.mark.parametrize("name", PLACES)
def test_label_and_split_come_from_the_path(table, name):
    assert (table.loc[name, "label"], table.loc[name, "split"]) == PLACES[name]


def test_paths_are_as_hadoop_writes_them(table, tree):
    assert set(table["path"]) == {f"file:{tree}/{name}" for name in PLACES}


def test_lengths_and_times_are_those_of_the_files(indexed, tree):
    index = indexed[0].read_table("index")
    rows = index.select("path", "length", F.unix_millis("modification_time").alias("time"))
    for row in rows.collect():
        stat = Path(row.path.removeprefix("file:")).stat()
        assert (row.length, row.time) == (stat.st_size, stat.st_mtime_ns // 1_000_000)


def test_an_empty_file_is_indexed(table):
    assert table.loc[EMPTY, "length"] == 0


def test_the_schema_is_the_contract(indexed):
    run, _ = indexed
    assert [(name, kind) for name, kind in run.read_table("index").dtypes] == [
        ("path", "string"),
        ("label", "string"),
        ("split", "string"),
        ("length", "bigint"),
        ("modification_time", "timestamp"),
    ]


def test_pyarrow_reads_the_index(indexed):
    run, _ = indexed
    index = pyarrow.dataset.dataset(run.path("index").removeprefix("file:"))
    assert index.count_rows() == len(PLACES)


def test_counts_images_that_spark_skips(indexed):
    assert indexed[1].skipped == len(SKIPPED)


def test_says_what_was_found_and_skipped(indexed):
    first = str(indexed[1]).splitlines()[0]
    assert first == "22 images of 14 labels, 7 skipped (names that begin with _ or .)"


def test_the_manifest_records_the_data_and_the_counts(indexed, tree):
    recorded = indexed[0].manifest()["load"]
    del recorded["finished"], recorded["seconds"]
    expected = {"data": f"file:{tree}", "images": 22, "labels": 14, "skipped": 7}
    assert recorded == expected


# --- batch and stream ---------------------------------------------------------------------------


def test_a_batch_reads_the_bytes(spark, tree):
    rows = read_images(open_run(spark, data=str(tree))).select("path", "content").collect()
    content = {row.path.removeprefix(f"file:{tree}/"): bytes(row.content) for row in rows}
    assert content == {name: name.encode() for name in PLACES if name != EMPTY}


def test_a_stream_gives_the_rows_of_a_batch(spark, tree):
    stream = read_images(open_run(spark, data=str(tree)), stream=True)
    query = stream.writeStream.format("memory").queryName("streamed").trigger(availableNow=True)
    query.start().awaitTermination()
    batch = read_images(open_run(spark, data=str(tree)))
    assert sorted(spark.table("streamed").collect()) == sorted(batch.collect())


@pytest.mark.parametrize("ending", ["", "/"])
@pytest.mark.parametrize("scheme", ["", "file:", "file://"])
def test_a_folder_may_be_a_path_or_a_uri(spark, tree, scheme, ending):
    found = read_images(open_run(spark, data=f"{scheme}{tree}{ending}")).select(
        "path", "label", "split"
    )
    assert found.filter("label = 'apple_6'").count() == 2


def test_a_split_folder_may_be_the_root(spark, tree):
    rows = read_images(open_run(spark, data=f"{tree}/Training")).select("label", "split").collect()
    assert {(row.label, row.split) for row in rows} == {
        ("Apple Braeburn", "Training"),
        ("apple_6", "Training"),
        ("Cocos", "Training"),
    }


def test_a_root_whose_name_begins_with_an_underscore_is_read(run, tmp_path):
    plant(tmp_path / "_raw", "apple/1.jpg")
    assert write_index(run, str(tmp_path / "_raw")).images == 1


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        ([], "absent", r"/absent does not exist: give a folder"),
        (["a/1.jpg"], "a/1.jpg", r"/a/1\.jpg is a file: give the folder above"),
        ([], "", r" holds no image \(0 skipped, .*: give a folder with"),
        (["a/1.txt", "a/_1.jpg"], "", r" holds no image \(1 skipped, "),
        (["a/1.jpg", "2.jpg"], "", r"^1 images have no label folder, .*/2\.jpg: put "),
        (["Training/1.jpg", "Test/a/1.jpg"], "", r"^1 images have no label folder, .*/Training/1"),
        (["a/1:2.jpg", "a:b/1.jpg"], "", r"^1 images have a colon .*/a/1:2\.jpg: rename them$"),
    ],
    ids=["missing", "file", "empty", "hidden only", "in the root", "in a split", "colon"],
)
def test_what_cannot_be_indexed_is_one_line(run, tmp_path, files, data, message):
    root = plant(tmp_path / "data", *files)
    root.mkdir(exist_ok=True)
    with pytest.raises(FruitsError, match=message) as caught:
        write_index(run, str(root / data))
    assert "\n" not in str(caught.value)
    assert not run.exists("index")


# --- an index that is there ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(spark, tmp_path_factory):
    """An index of three images, and its data folder: (run folder, data folder)."""
    folder = tmp_path_factory.mktemp("three")
    root = plant(folder / "data", "a/1.jpg", "a/2.jpg", "b/3.jpg")
    write_index(open_run(spark, str(folder / "run")), root)
    return folder


@pytest.fixture
def known(spark, three):
    """The run with three images, and its data folder, to change; put back after."""
    copy = three.with_name("copy of three")
    shutil.copytree(three, copy)
    yield open_run(spark, str(three / "run")), three / "data"
    shutil.rmtree(three)
    copy.rename(three)  # times and all


def longer(data):
    (data / "a/2.jpg").write_text("another image")


def touched(data):
    os.utime(data / "a/2.jpg", (1, 1))


def removed(data):
    (data / "a/2.jpg").unlink()


@pytest.mark.parametrize("change", [longer, touched, removed])
def test_a_changed_image_is_refused_and_the_index_stays(known, change):
    run, data = known
    before = index_of(run)
    change(data)
    message = r"^1 images have changed or disappeared since .*/a/2\.jpg: give another run_dir$"
    with pytest.raises(FruitsError, match=message):
        write_index(run, str(data))
    pd.testing.assert_frame_equal(index_of(run), before)


def test_other_data_are_refused(known, tree):
    run, _ = known
    with pytest.raises(FruitsError, match=r"^3 images have changed or disappeared "):
        write_index(run, str(tree))


def test_new_images_are_added(known):
    run, data = known
    plant(data, "c/4.jpg")
    assert write_index(run, str(data)).images == 4
    assert sorted(index_of(run).index) == ["a/1.jpg", "a/2.jpg", "b/3.jpg", "c/4.jpg"]


def test_an_index_that_was_half_written_is_written_again(known):
    run, data = known
    for file in (data.parent / "run/index").glob("*"):
        file.unlink()
    (data.parent / "run/index/_temporary").mkdir()
    assert write_index(run, str(data)).images == 3


# --- pictures to look at ------------------------------------------------------------------------


def test_a_few_images_of_each_label_are_read(indexed):
    run, _ = indexed
    few = sample_images(run, per_label=1, labels=100)
    assert list(few["label"]) == sorted(LABELS)
    for row in few.itertuples():
        assert row.path.endswith("/" + bytes(row.content).decode())


def test_the_same_images_are_looked_at_every_time(indexed):
    run, _ = indexed
    few = sample_images(run, per_label=2, labels=2)
    assert [path.rsplit("/", 1)[1] for path in few["path"]] == [
        "r_7_100.jpg",
        "321_100.jpg",
        "1.jpg",
    ]
