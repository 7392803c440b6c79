"""Files by path or URI without Spark: one rule for local names, content types in a bucket."""

import errno
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from botocore.exceptions import BotoCoreError, EndpointConnectionError
from servers import answering

from fruits_lib import storage, udf
from fruits_lib.errors import FruitsError
from fruits_lib.runs import open_run

TYPES = {
    "report.html": "text/html; charset=utf-8",
    "manifest.json": "application/json",
    "notebooks/01_load.ipynb": "application/x-ipynb+json",
    "model.npz": "application/octet-stream",
}


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/a b/100%", "/a b/100%"),
        ("file:/a b/100%", "/a b/100%"),
        ("file:///a/", "/a"),
        ("~/a", "/home/somebody/a"),
        ("a/../b", "/somewhere/b"),
        ("a:b/c", "/somewhere/a:b/c"),
        ("/a/x://y", "/a/x:/y"),
        ("~nobody-here/a", "/somewhere/~nobody-here/a"),
        ("s3://bucket/a", None),
        ("hdfs://name/a", None),
    ],
)
def test_a_path_and_its_uri_are_one_file(uri, path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr("os.getcwd", lambda: "/somewhere")
    found = storage.local_path(uri)
    assert (found and str(found)) == path


@pytest.mark.parametrize("kernel", [True, False])
def test_a_relative_path_starts_at_the_current_folder(kernel, tmp_path, monkeypatch):
    """Also of papermill and IPython beside the notebooks, and in a terminal of JupyterLab."""
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setenv("FRUITS_START", "/elsewhere")
    monkeypatch.chdir(tmp_path)
    Path("01_load.ipynb").touch()
    monkeypatch.setattr(storage, "ipython_shell", lambda: "a shell" if kernel else None)
    assert storage.local_path("runs/x") == tmp_path / "runs/x"
    assert storage.local_path("/runs/x") == Path("/runs/x")


def test_in_a_notebook_of_make_lab_a_relative_path_starts_where_the_command_did(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "/fruits/notebooks/01_load.ipynb")
    assert storage.local_path("runs/x") == Path.cwd() / "runs/x"
    monkeypatch.setenv("FRUITS_START", "/fruits")
    assert storage.local_path("runs/x") == Path("/fruits/runs/x")
    assert storage.local_path("/runs/x") == Path("/runs/x")
    lab = Path(__file__).parents[1].joinpath("Makefile").read_text().split("\nlab: ")[1]
    assert 'export FRUITS_START="$$PWD"; cd notebooks &&' in lab.split("\n\n")[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [("/a/b", "file:/a/b"), ("/a/b/", "file:///a/b"), ("s3://b/c", "s3a://b/c/")],
)
def test_spellings_of_one_folder_are_equal(one, other):
    assert storage.folder_uri(one) == storage.folder_uri(other)
    assert storage.folder_uri(one) != storage.folder_uri(other + "c")


def test_files_of_a_bucket_s_root_are_found(bucket):
    bucket.put("a.json", b"x")
    bucket.put("b/c.json", b"x")
    assert storage.files_in(bucket.uri()) == [f"{bucket.uri().rstrip('/')}/a.json"]


def test_a_text_comes_back(tmp_path):
    storage.write_text(f"file:{tmp_path}/new/Pêche.txt", "Pêche")
    assert storage.read_text(f"{tmp_path}/new/Pêche.txt") == "Pêche"


@pytest.mark.parametrize("place", ["local", "bucket"])
def test_a_missing_file_is_told_from_other_errors(place, bucket, tmp_path):
    uri = bucket.uri("absent") if place == "bucket" else f"{tmp_path}/absent"
    with pytest.raises(FileNotFoundError):
        storage.read_text(uri)


def test_a_bucket_that_does_not_exist_is_one_line(bucket):
    for use in (storage.read_text, lambda uri: storage.write_text(uri, "x")):
        with pytest.raises(FruitsError, match="s3://fruits-none/x: .*NoSuchBucket") as caught:
            use("s3://fruits-none/x")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "kind"), TYPES.items())
def test_an_object_has_the_content_type_of_its_name(bucket, name, kind):
    storage.write_text(bucket.uri(name), "x")
    assert bucket.client.head_object(Bucket=bucket.name, Key=name)["ContentType"] == kind


def test_a_run_writes_its_manifest_as_json(spark, bucket):
    with open_run(spark, bucket.uri("run")).step("load") as entry:
        entry["images"] = 1
    found = bucket.client.head_object(Bucket=bucket.name, Key="run/manifest.json")
    assert found["ContentType"] == "application/json"


def test_threads_that_read_outlast_an_outage_of_eight_seconds(keys, monkeypatch):
    waits = defaultdict(list)
    wait = SimpleNamespace(sleep=lambda seconds: waits[threading.get_ident()].append(seconds))
    monkeypatch.setattr("botocore.endpoint.time", wait)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    read = storage.reader()
    with ThreadPoolExecutor(udf.FETCHERS) as threads:
        reading = [threads.submit(read, "s3://b/photograph.jpg") for _ in range(udf.FETCHERS)]
    assert all(isinstance(one.exception(), EndpointConnectionError) for one in reading)
    assert min(sum(each) for each in waits.values()) > 8
    assert sum(map(len, waits.values())) == 8 * udf.FETCHERS


@pytest.mark.parametrize(("most", "read"), [(None, 10), (10, 10), (9, 10), (3, 4)])
def test_a_file_is_read_to_a_bound_and_one_byte_more(most, read, keys, monkeypatch, tmp_path):
    (tmp_path / "photograph.jpg").write_bytes(b"1234567890")
    local = storage.read_bytes(str(tmp_path / "photograph.jpg"), most=most)
    with answering((200, {}, b"1234567890")) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        remote = storage.read_bytes("s3://b/photograph.jpg", most=most)
    assert local == remote == b"1234567890"[:read]


def test_a_write_that_fails_leaves_what_was_there_and_no_part(tmp_path, monkeypatch):
    storage.write_bytes(f"{tmp_path}/a", b"before")

    def full(path, content):
        with open(path, "wb") as file:
            file.write(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_bytes(f"{tmp_path}/a", b"after")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_a_file_without_a_length_is_read_to_the_bound():
    assert storage.read_bytes("/dev/zero", most=9) == bytes(10)


@pytest.mark.parametrize("failures", [2, 3])
def test_a_body_that_breaks_off_is_read_three_times(failures, keys, monkeypatch):
    half = (200, {"Content-Length": "10"}, b"12345")
    with answering(*[half] * failures, (200, {}, b"1234567890")) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        read = storage.reader()
        if failures < 3:
            assert read("s3://b/photograph.jpg") == b"1234567890"
        else:
            with pytest.raises(BotoCoreError):
                read("s3://b/photograph.jpg")
