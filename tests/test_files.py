"""Every file below a folder or in a bucket is indexed or set aside; photographs are compared."""

import os
import subprocess
import unicodedata

import pytest

from fruits_lib.errors import FruitsError
from fruits_lib.files import (
    HIDDEN,
    NO_IMAGE,
    NOT_UTF_8,
    compare,
    label_and_split,
    list_files,
    photographs,
    times,
)
from fruits_lib.splits import divide
from fruits_lib.stages import TABLES

JPEG, PNG = b"\xff\xd8\xff\xe0 pixels", b"\x89PNG\r\n\x1a\n pixels"


def plant(root, files):
    for name, content in files.items():
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    return f"file:{root}"


def paths(listing):
    return [path for path, *_ in listing.images]


def reasons(listing):
    return {path: reason for path, reason, _ in listing.set_aside}


# --- which files are images ---------------------------------------------------------------------

HEADERS = {
    "jpeg": JPEG,
    "png": PNG,
    "webp": b"RIFF\0\0\0\0WEBPVP8 ",
    "bmp": b"BM" + bytes(12) + b"\x28\0\0\0",
    "tiff, little-endian": b"II*\0\x08\0\0\0",
    "tiff, big-endian": b"MM\0*\0\0\0\x08",
    "gif": b"GIF89a\x01\0",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0",
    "avif": b"\0\0\0\x18ftypavif\0\0\0\0",
    "fujifilm": b"FUJIFILMCCD-RAW ",
    "olympus": b"IIRO\x08\0\0\0",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_an_image_is_one_by_its_first_bytes_whatever_its_name(spark, tmp_path, kind):
    data = plant(tmp_path, {"a/photograph": HEADERS[kind], "a/b.backup": HEADERS[kind]})
    assert paths(list_files(spark, data)) == ["a/b.backup", "a/photograph"]


EXTENSIONS = [".jpg", ".JPEG", ".jfif", ".png", ".WebP", ".bmp", ".gif", ".tiff", ".heic", ".CR2"]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_name_of_an_image_is_indexed_so_that_02_can_say_what_is_wrong(spark, tmp_path, extension):
    data = plant(tmp_path, {f"a/1{extension}": b"no image", f"b/1{extension}": b""})
    assert paths(list_files(spark, data)) == [f"a/1{extension}", f"b/1{extension}"]


def test_other_files_are_set_aside_with_their_extension(spark, tmp_path):
    others = {"a/notes.TXT": b"BMW, and more text than that", "a/none": b"", "a/x.tar.gz": b"x"}
    listing = list_files(spark, plant(tmp_path, {"a/1.jpg": JPEG, **others}))
    assert listing.set_aside == [
        ("a/none", NO_IMAGE, ""),
        ("a/notes.TXT", NO_IMAGE, ".txt"),
        ("a/x.tar.gz", NO_IMAGE, ".gz"),
    ]
    assert listing.files == 4


HIDDEN_NAMES = [".DS_Store", "a/._1.jpg", "_raw/1.jpg", "a/.cache/deep/1.jpg", "_SUCCESS"]


def test_hidden_files_and_folders_are_set_aside(spark, tmp_path):
    listing = list_files(spark, plant(tmp_path, dict.fromkeys(HIDDEN_NAMES, JPEG)))
    assert reasons(listing) == dict.fromkeys(HIDDEN_NAMES, HIDDEN)


def test_a_data_folder_may_have_a_hidden_name(spark, tmp_path):
    assert paths(list_files(spark, plant(tmp_path / "_raw/.x", {"a/1.jpg": JPEG}))) == ["a/1.jpg"]


SYSTEM = ["@eaDir", "#recycle", "@Recycle", "__MACOSX", "System Volume Information"]
SYSTEM += ["$RECYCLE.BIN", "$Recycle.Bin", "lost+found"]


def test_folders_of_a_file_server_or_disk_are_set_aside_by_name(spark, tmp_path):
    names = [f"Training/Lemon/{folder}/1.jpg/thumb.jpg" for folder in SYSTEM]
    data = plant(tmp_path, dict.fromkeys([*names, "Training/Lemon/1.jpg", "lost+found.jpg"], JPEG))
    listing = list_files(spark, data)
    assert paths(listing) == ["Training/Lemon/1.jpg", "lost+found.jpg"]
    for name, folder in zip(names, SYSTEM, strict=True):
        assert reasons(listing)[name].startswith(f"in a folder {folder}: ")


EXCLUDED = {  # pattern -> what it sets aside of TREE
    "raw": ["a/raw/1.jpg", "a/raw/deep/2.jpg"],
    "raw/": ["a/raw/1.jpg", "a/raw/deep/2.jpg"],
    "a/raw": ["a/raw/1.jpg", "a/raw/deep/2.jpg"],
    "*/deep": ["a/raw/deep/2.jpg"],
    "1.*": ["a/1.jpg", "a/raw/1.jpg"],
    "a/1.jpg": ["a/1.jpg"],
    "RAW": [],
    "aw": [],
    "/": [],
    "": [],
    " deep , b ": ["a/raw/deep/2.jpg", "b/[x], y.jpg"],
    "[[]x]? y.jpg": ["b/[x], y.jpg"],
}
TREE = ["a/1.jpg", "a/raw/1.jpg", "a/raw/deep/2.jpg", "b/[x], y.jpg"]


@pytest.mark.parametrize("exclude", EXCLUDED)
def test_a_pattern_sets_aside_what_it_matches_and_is_the_reason(spark, tmp_path, exclude):
    listing = list_files(spark, plant(tmp_path, dict.fromkeys(TREE, JPEG)), exclude)
    assert sorted(reasons(listing)) == EXCLUDED[exclude]
    assert paths(listing) == sorted(set(TREE) - set(EXCLUDED[exclude]))
    patterns = [pattern.strip().strip("/") for pattern in exclude.split(",")]
    assert set(reasons(listing).values()) <= {f"excluded by {pattern}" for pattern in patterns}


# --- names and links ----------------------------------------------------------------------------


def test_names_that_are_not_utf_8_are_set_aside_and_named(spark, tmp_path):
    latin = {b"P\xeache/1.jpg": JPEG, b"a/caf\xe9.jpg": JPEG, b"a/2.jpg": JPEG}
    listing = list_files(spark, plant(tmp_path, latin))
    assert paths(listing) == ["a/2.jpg"]
    assert reasons(listing) == {r"P\xeache/1.jpg": NOT_UTF_8, r"a/caf\xe9.jpg": NOT_UTF_8}


def test_broken_links_are_set_aside(spark, tmp_path):
    data = plant(tmp_path, {"a/1.jpg": JPEG})
    (tmp_path / "a/2.jpg").symlink_to("absent.jpg")
    assert reasons(list_files(spark, data)) == {"a/2.jpg": "broken link"}


def test_a_link_to_a_folder_above_is_set_aside_and_nothing_is_listed_twice(spark, tmp_path):
    data = plant(tmp_path, {"a/b/1.jpg": JPEG})
    (tmp_path / "a/b/up").symlink_to("../..")
    (tmp_path / "a/self").symlink_to(".")
    listing = list_files(spark, data)
    assert paths(listing) == ["a/b/1.jpg"]
    assert reasons(listing) == dict.fromkeys(["a/b/up", "a/self"], "link to a folder above it")


def test_links_to_files_and_folders_elsewhere_are_followed(spark, tmp_path):
    plant(tmp_path / "elsewhere", {"lemon/1.jpg": JPEG})
    data = plant(tmp_path / "data", {"a/1.jpg": JPEG})
    (tmp_path / "data/lemon").symlink_to(tmp_path / "elsewhere/lemon")
    (tmp_path / "data/a/2.jpg").symlink_to(tmp_path / "elsewhere/lemon/1.jpg")
    assert paths(list_files(spark, data)) == ["a/1.jpg", "a/2.jpg", "lemon/1.jpg"]


@pytest.mark.parametrize("link", ["run", "run/notebooks", "."])
def test_a_link_to_the_results_is_refused(spark, tmp_path, link):
    plant(tmp_path / "runs", {"run/notebooks/1.png": PNG})
    data = plant(tmp_path / "data", {"a/1.jpg": JPEG})
    (tmp_path / "data/b").symlink_to(tmp_path / "runs" / link)
    with pytest.raises(FruitsError, match=r"data/b is a link to where .*runs/run is: ") as caught:
        list_files(spark, data, results=f"file:{tmp_path}/runs/run")
    assert "\n" not in str(caught.value)


@pytest.fixture
def nested(tmp_path):
    """A function that makes nested folders of a name, and a photograph in the deepest one."""
    start = os.getcwd()

    def nest(name, depth):
        os.chdir(tmp_path)
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
        with open("1.jpg", "wb") as file:
            file.write(JPEG)
        os.chdir(start)
        return f"file:{tmp_path}"

    yield nest
    os.chdir(start)
    subprocess.run(["rm", "-rf", tmp_path / "a", tmp_path / ("a" * 200)], check=True)


def test_a_thousand_nested_folders_are_listed(spark, nested):
    data = nested("a", 1200)
    assert paths(list_files(spark, data)) == ["a/" * 1200 + "1.jpg"]


def test_what_lies_too_deep_for_the_system_is_set_aside_with_one_reason(spark, nested):
    listing = list_files(spark, nested("a" * 200, 25))
    assert listing.images == []
    assert list(reasons(listing).values()) == ["File name too long"]


def test_a_pipe_is_set_aside_unopened(spark, tmp_path):
    data = plant(tmp_path, {"a/1.jpg": JPEG})
    os.mkfifo(tmp_path / "a/pipe.jpg")
    assert reasons(list_files(spark, data)) == {"a/pipe.jpg": "not a regular file"}


@pytest.mark.parametrize(
    ("data", "message"),
    [("absent", "absent does not exist: give a"), ("a/1.jpg", "jpg is a file: give the folder")],
)
def test_what_cannot_be_listed_is_one_line(spark, tmp_path, data, message):
    plant(tmp_path, {"a/1.jpg": JPEG})
    with pytest.raises(FruitsError, match=message):
        list_files(spark, f"file:{tmp_path}/{data}")


def test_hadoop_lists_the_same_files(spark, tmp_path, monkeypatch):
    """As on HDFS: Hadoop's own view of a local folder."""
    from fruits_lib import files

    tree = {"a/1.jpg": JPEG, "b c/x%20[1].png": PNG, "a/photograph": JPEG, "a/t.txt": b"text"}
    tree |= {"new\nline/1\n.jpg": JPEG, "x; isDirectory=true; length=1; modification_time=2": PNG}
    data = plant(tmp_path, tree)
    expected = list_files(spark, data)
    monkeypatch.setattr(files, "_list_folder", lambda *_: files._list_hadoop(spark, data))
    assert list_files(spark, data) == expected
    with pytest.raises(FruitsError, match=r"absent does not exist"):
        files._list_hadoop(spark, f"{data}/absent")


def test_a_file_that_hadoop_cannot_read_is_set_aside_with_the_reason(spark, tmp_path):
    from fruits_lib import files

    found, read_start = files._list_hadoop(spark, plant(tmp_path, {"a/photograph": JPEG}))
    (tmp_path / "a/photograph").unlink()
    assert read_start(*found).startswith("cannot be read: File file:")


@pytest.fixture
def mounts(spark, tmp_path):
    """A Hadoop file system beside the local one: `viewfs` shows folders of this machine."""
    conf = spark.sparkContext._jsc.hadoopConfiguration()
    settings = {
        "mounttable.fruits.link./lemon": f"file:{tmp_path}/lemon",
        "mounttable.fruits.link./locked": "viewfs://locked/",
        "mounttable.locked.link./x": f"file:{tmp_path}/absent",
        "mount.links.as.symlinks": "false",
        "impl.disable.cache": "true",
    }
    for name, value in settings.items():
        conf.set(f"fs.viewfs.{name}", value)
    yield conf
    for name in settings:
        conf.unset(f"fs.viewfs.{name}")


def test_a_folder_that_hadoop_cannot_list_is_set_aside_with_the_reason(spark, tmp_path, mounts):
    plant(tmp_path, {"lemon/1.jpg": JPEG, "lemon/deep/2.jpg": JPEG})
    listing = list_files(spark, "viewfs://fruits")
    assert paths(listing) == ["lemon/1.jpg", "lemon/deep/2.jpg"]
    (reason,) = reasons(listing).values()
    assert reason.startswith("folder that cannot be listed: ")
    assert "\n" not in reason


def test_a_data_folder_that_hadoop_cannot_list_is_one_line(spark, mounts):
    with pytest.raises(
        FruitsError, match="^data=viewfs://locked cannot be listed: .*absent"
    ) as caught:
        list_files(spark, "viewfs://locked")
    assert "\n" not in str(caught.value)


def test_a_link_on_another_file_system_is_set_aside(spark, tmp_path, mounts):
    plant(tmp_path, {"lemon/1.jpg": JPEG})
    mounts.set("fs.viewfs.mount.links.as.symlinks", "true")
    listing = list_files(spark, "viewfs://fruits")
    assert listing.images == []
    assert reasons(listing) == dict.fromkeys(["lemon", "locked"], "link on another file system")


ODD_NAMES = [
    "1.jpg",
    "new\nline.jpg",
    "a,b.jpg",
    "[1].jpg",
    "{a}.jpg",
    "x*.jpg",
    "?.jpg",
    "b\\n.jpg",
]


def test_hadoop_reads_every_photograph_once_whatever_its_name(spark, tmp_path, mounts):
    plant(tmp_path, {f"lemon/[a],{{b}}/{name}": name.encode() for name in ODD_NAMES})
    listing = list_files(spark, "viewfs://fruits/lemon")
    rows = [(path, length) for path, _, _, length, _ in listing.images]
    read = photographs(spark, "viewfs://fruits/lemon", rows, "path string, length long").collect()
    assert sorted((row.path, row.content.decode()) for row in read) == sorted(
        (f"[a],{{b}}/{name}", name) for name in ODD_NAMES
    )


def test_hadoop_reads_no_file_beyond_the_bound(spark, tmp_path):
    from fruits_lib import files

    plant(tmp_path, {"a/1.jpg": JPEG, "a/grown.jpg": bytes(5000), "a/empty.jpg": b""})
    with open(tmp_path / "a/huge.tif", "wb") as file:
        file.truncate(2 * 10**12)  # Spark itself stops at more than an array holds
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    hadoop.set("fs.viewfs.mounttable.bounded.link./data", f"file:{tmp_path}")
    lengths = {"a/1.jpg": len(JPEG), "a/grown.jpg": 10, "a/huge.tif": 2 * 10**12, "a/empty.jpg": 0}
    columns, data = "path string, length long", "viewfs://bounded/data"
    found = files.photographs(spark, data, list(lengths.items()), columns, 1000).collect()
    # One that has grown since it was listed has no row, which 02 counts.
    expected = {"a/1.jpg": JPEG, "a/huge.tif": b"", "a/empty.jpg": b""}
    assert {row.path: bytes(row.content) for row in found} == expected


def test_a_bucket_is_listed_key_by_key(spark, bucket):
    keys = ["p/a/1.jpg", "p/a//2.jpg", "p//3.jpg", "p/a/photograph", "p/notes.txt", "p/.x/1.jpg"]
    for key in keys:
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=JPEG if "n" not in key else b"-")
    bucket.client.put_object(Bucket=bucket.name, Key="p/a/photograph", Body=PNG)
    bucket.client.put_object(Bucket=bucket.name, Key="p/folder/", Body=b"")
    bucket.client.put_object(Bucket=bucket.name, Key="pears/1.jpg", Body=JPEG)
    listing = list_files(spark, bucket.uri("p"))
    assert [row[:2] for row in listing.images] == [
        ("/3.jpg", None),
        ("a//2.jpg", "a"),
        ("a/1.jpg", "a"),
        ("a/photograph", "a"),
    ]
    assert reasons(listing) == {".x/1.jpg": HIDDEN, "notes.txt": NO_IMAGE}


# --- label and split ----------------------------------------------------------------------------

NFC, NFD = (unicodedata.normalize(form, "Pêche") for form in ("NFC", "NFD"))
PLACES = {  # path -> label, split
    "Training/Apple Braeburn/1.jpg": ("Apple Braeburn", "Training"),
    "Validation/apple_6/r0_105.jpg": ("apple_6", "Validation"),
    "no split/1.jpg": ("no split", None),
    "Training/farm/Cocos/1.jpg": ("Cocos", "Training"),  # the label is the folder above
    "Test/Training/Lemon/1.jpg": ("Lemon", "Training"),  # the nearest split counts
    "train/a/1.jpg": ("a", "Training"),
    "TEST/a/1.jpg": ("a", "Test"),
    "val/a/1.jpg": ("a", "Validation"),
    "valid/a/1.jpg": ("a", "Validation"),
    "validation/a/1.jpg": ("a", "Validation"),
    "a/train/1.jpg": (None, "Training"),
    "test/train/1.jpg": ("train", "Test"),  # a class that is called like a split
    "test/a/train/1.jpg": ("train", "Test"),
    "1.jpg": (None, None),
    f"{NFD}/1.jpg": (NFC, None),
    f"{NFC}/1.jpg": (NFC, None),
}


@pytest.mark.parametrize("path", PLACES)
def test_label_and_split_come_from_the_path(path):
    assert label_and_split(path, "photographs", set()) == PLACES[path]


def test_the_data_folder_itself_may_be_a_split():
    assert label_and_split("a/1.jpg", "Test", set()) == ("a", "Test")
    assert label_and_split("1.jpg", "test", set()) == (None, "Test")
    assert label_and_split("train/1.jpg", "test", set()) == ("train", "Test")


LAYOUTS = {  # of photographs in folders called like splits -> label and split of each
    "flat splits": {"Training/1.jpg": (None, "Training"), "Test/1.jpg": (None, "Test")},
    "a class beside others": {"train/1.jpg": ("train", None), "bus/1.jpg": ("bus", None)},
    "a class in a split": {
        "test/train/1.jpg": ("train", "Test"),
        "test/bus/1.jpg": ("bus", "Test"),
    },
    "deeper labels": {"a/train/x/1.jpg": ("x", "Training"), "a/train/1.jpg": (None, "Training")},
    "no sibling": {"a/train/1.jpg": (None, "Training"), "b/bus/1.jpg": ("bus", None)},
    "no photographs beside": {"train/1.jpg": (None, "Training"), "papers/a.pdf": None},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_called_like_a_split_is_a_label_where_its_place_says_so(spark, tmp_path, layout):
    expected = LAYOUTS[layout]
    data = plant(tmp_path, dict.fromkeys(expected, b""))
    found = {path: (label, split) for path, label, split, *_ in list_files(spark, data).images}
    assert found == {path: places for path, places in expected.items() if places}


def test_no_photograph_of_test_is_fitted_where_a_class_is_called_train(spark, tmp_path):
    names = [f"{split}/{label}/1.jpg" for split in ("train", "test") for label in ("train", "bus")]
    data = plant(tmp_path, dict.fromkeys(names, JPEG))
    parts = divide(spark.createDataFrame(list_files(spark, data).images, TABLES["index"]))
    fitted, tested = (
        sorted(row.path for row in part.collect()) for part in (parts.training, parts.test)
    )
    assert fitted == ["train/bus/1.jpg", "train/train/1.jpg"]
    assert tested == ["test/bus/1.jpg", "test/train/1.jpg"]


# --- what has changed ---------------------------------------------------------------------------


def difference(spark, data, change=lambda: None, hashes=None):
    """What `compare` finds after a change: (new, gone, changed)."""
    before = times(spark.createDataFrame(list_files(spark, data).images, TABLES["index"]))
    change()
    found = compare(spark, data, before, lambda: hashes or {}, list_files(spark, data))
    return found.new, found.gone, found.changed


def test_new_gone_and_changed_photographs_are_told_apart(spark, tmp_path):
    data = plant(tmp_path, {"a/1.jpg": JPEG, "a/2.jpg": JPEG, "a/3.jpg": JPEG})

    def change():
        plant(tmp_path, {"a/1.jpg": JPEG + b"longer", "a/4.jpg": JPEG})
        (tmp_path / "a/2.jpg").unlink()

    assert difference(spark, data, change) == (["a/4.jpg"], ["a/2.jpg"], ["a/1.jpg"])


@pytest.mark.parametrize("same", [True, False])
def test_a_copy_with_new_times_is_judged_by_its_content(spark, tmp_path, same):
    import hashlib

    data = plant(tmp_path, {"a/1.jpg": JPEG})
    hashes = {"a/1.jpg": hashlib.sha256(JPEG if same else PNG).hexdigest()}
    change = lambda: os.utime(tmp_path / "a/1.jpg", (1, 1))  # noqa: E731
    assert difference(spark, data, change, hashes) == ([], [], [] if same else ["a/1.jpg"])
