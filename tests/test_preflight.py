"""What is wrong with a bucket is said in one line, before Spark starts."""

import json
import os
import resource
import socket
from types import SimpleNamespace

import pytest
from botocore.config import Config
from servers import answering

from fruits_lib import aws
from fruits_lib.errors import FruitsError
from fruits_lib.storage import preflight


@pytest.fixture
def real(request):
    if request.config.getoption("--s3") != "minio":
        pytest.skip("moto takes any credentials: make test-s3")


def refused(**places):
    """Return the one line that refuses these places."""
    with pytest.raises(FruitsError) as caught:
        preflight(**places)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_bucket_passes_and_nothing_is_left_in_it(bucket):
    bucket.put("photographs/Lemon/1.jpg", b"x")
    preflight(bucket.uri("photographs"), bucket.uri("run"), bucket.uri("photographs/Lemon/1.jpg"))
    assert list(bucket.listing()) == ["photographs/Lemon/1.jpg"]
    assert "Uploads" not in bucket.client.list_multipart_uploads(Bucket=bucket.name)


def test_where_results_go_elsewhere_the_run_is_only_read(bucket, tmp_path):
    bucket.put("run/manifest.json", b"{}")
    preflight(run_dir=bucket.uri("run"), to=str(tmp_path / "to"))
    preflight(run_dir=str(tmp_path / "run"), to=bucket.uri("to"))
    assert list(bucket.listing()) == ["run/manifest.json"]
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_not_there(bucket, tmp_path):
    line = refused(run_dir=bucket.uri("run"), to=str(tmp_path / "to"))
    assert "holds no manifest.json: give a run's folder" in line


def test_a_place_for_results_that_does_not_exist(bucket, tmp_path):
    line = refused(run_dir=str(tmp_path), to="s3://fruits-none/to")
    assert line.startswith("to=s3://fruits-none/to: there is no bucket fruits-none")


@pytest.mark.parametrize(("run_dir", "to"), [("a/run", "a/run/"), ("a", "a/to"), ("a/run", "a")])
def test_results_in_the_run_that_is_applied(run_dir, to):
    assert "results must not mix with the run that is applied" in refused(run_dir=run_dir, to=to)


def test_a_whole_bucket_of_photographs_passes(bucket):
    bucket.put("Lemon/1.jpg", b"x")
    preflight(bucket.uri())


def test_an_empty_prefix(bucket):
    bucket.put("photographs2/Lemon/1.jpg", b"x")
    assert "holds no object" in refused(data=bucket.uri("photographs"))


def test_no_such_bucket(bucket):
    assert "there is no bucket fruits-none" in refused(run_dir="s3://fruits-none/run")


def test_no_such_weights(bucket):
    assert "weights.tflite" in refused(weights=bucket.uri("weights.tflite"))


def test_no_bucket_named():
    assert "names no bucket" in refused(run_dir="s3:///run")


@pytest.mark.parametrize(
    ("data", "run_dir"),
    [
        ("s3://b/photographs", "s3://b/photographs/run"),
        ("s3://b/photographs/", "s3a://b/photographs"),
        ("s3://b/all/photographs", "s3://b/all"),
        ("/photographs", "/photographs/run"),
        ("file:///photographs", "/photographs/run"),
        ("hdfs://n/photographs", "hdfs://n/photographs/run"),
        ("hdfs://n/a/../photographs/", "hdfs://N/photographs/./run"),
        ("s3://b", "s3://b/run"),
        ("s3://b/", "s3a://b"),
        ("s3://b/all/photographs", "s3://b"),
        ("/", "/run"),
        ("hdfs://n", "hdfs://n/run"),
    ],
)
def test_results_lie_apart_from_the_photographs(data, run_dir):
    assert "overlap" in refused(data=data, run_dir=run_dir)


@pytest.mark.parametrize(
    ("data", "run_dir"),
    [("link", "photographs/run"), ("photographs", "link/run"), ("link/a", "photographs")],
)
def test_results_lie_apart_behind_a_symbolic_link_too(data, run_dir, tmp_path):
    (tmp_path / "photographs/a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "photographs")
    assert "overlap" in refused(data=f"{tmp_path}/{data}", run_dir=f"{tmp_path}/{run_dir}")


@pytest.mark.parametrize("run_dir", ["s3://b/photographs-run", "/photographs-run"])
def test_a_neighbour_of_like_name_is_apart(run_dir, monkeypatch):
    monkeypatch.setattr("fruits_lib.storage._ask", lambda *_, **__: {"Contents": 1, "UploadId": 1})
    preflight(run_dir.removesuffix("-run"), run_dir)


@pytest.mark.parametrize("name", ["data", "run_dir", "weights", "to"])
def test_a_name_that_is_not_utf_8(name, tmp_path):
    place = os.fsdecode(os.fsencode(tmp_path) + b"/P\xeache")
    line = rf"{name}={tmp_path}/P\xeache is a name that is not UTF-8: rename it"
    assert refused(**{name: place}) == line
    assert list(tmp_path.iterdir()) == []


class TestAClusterS:
    """Its default file system is not this machine: a path without a scheme would be two things."""

    @pytest.fixture(autouse=True)
    def cluster(self, tmp_path, monkeypatch):
        value = "<name>fs.defaultFS</name>\n<value>hdfs://primary:8020</value><final>true</final>"
        text = f"<?xml version='1.0'?><configuration><property>{value}</property></configuration>"
        (tmp_path / "core-site.xml").write_text(text)
        monkeypatch.setenv("SPARK_HOME", "/usr/lib/spark")
        monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))

    @pytest.mark.parametrize("name", ["data", "run_dir", "weights", "to"])
    def test_path_without_a_scheme_is_refused_with_both_spellings(self, name):
        assert refused(**{name: "/a b"}) == (
            f"{name}=/a b names no file system: write hdfs://primary:8020/a b for the one of this "
            "cluster, or file:///a b for a disk of its machines"
        )

    def test_other_places_pass(self):
        preflight("hdfs:///a", "file:///run", "imagenet")
        preflight()

    def test_configuration_is_none_of_our_own_spark(self, monkeypatch, tmp_path):
        monkeypatch.delenv("SPARK_HOME")
        preflight(f"{tmp_path}/a", f"{tmp_path}/run")

    @pytest.mark.parametrize("text", [None, "<configuration/>", "no XML"])
    def test_configuration_that_says_nothing_is_left_to_spark(self, text, tmp_path):
        (tmp_path / "core-site.xml").unlink()
        if text:
            (tmp_path / "core-site.xml").write_text(text)
        preflight("/a", "/run")


def test_no_credentials(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "credentials are missing" in refused(data=bucket.uri("photographs"))


def test_no_such_profile(bucket, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "there is no AWS_PROFILE=nobody" in refused(data=bucket.uri("photographs"))


def test_a_wrong_secret(real, bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "the secret key is wrong" in refused(data=bucket.uri("photographs"))


def test_an_unknown_key(real, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    assert "the access key is not known there" in refused(data=bucket.uri("photographs"))


def test_a_wrong_region(real, bucket, monkeypatch):
    bucket.put("photographs/Lemon/1.jpg", b"x")
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert "set AWS_REGION=eu-west-1" in refused(data=bucket.uri("photographs"))


def restricted(bucket, monkeypatch, *actions):
    """Go on with credentials that may do no more than these actions."""
    policy = {"Effect": "Allow", "Action": list(actions), "Resource": ["arn:aws:s3:::*"]}
    keys = aws.client("sts").assume_role(
        RoleArn="arn:aws:iam::123456789012:role/any",
        RoleSessionName="test",
        Policy=json.dumps({"Version": "2012-10-17", "Statement": [policy]}),
    )["Credentials"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", keys["SessionToken"])


def test_photographs_that_may_not_be_listed(real, bucket, monkeypatch):
    restricted(bucket, monkeypatch, "s3:PutObject")
    assert "infrastructure.yaml" in refused(data=bucket.uri("photographs"))


def test_a_run_folder_that_may_not_be_written(real, bucket, monkeypatch):
    restricted(bucket, monkeypatch, "s3:GetObject", "s3:ListBucket")
    assert "infrastructure.yaml" in refused(run_dir=bucket.uri("run"))


def test_weights_that_may_not_be_read(real, bucket, monkeypatch):
    bucket.put("weights.tflite", b"x")
    restricted(bucket, monkeypatch, "s3:PutObject")
    assert "infrastructure.yaml" in refused(weights=bucket.uri("weights.tflite"))


@pytest.fixture
def waits(keys, monkeypatch):
    """The seconds that botocore would wait between its attempts; here it does not."""
    waits = []
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://fruits.invalid"])
def test_where_nobody_listens_is_named_in_half_a_minute(endpoint, waits, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert f"{endpoint} does not answer" in refused(data="s3://b/photographs")
    assert sum(waits) < 30
    assert len(waits) == aws.RETRIES.retries["total_max_attempts"] - 1


def test_a_server_that_hangs(waits, monkeypatch):
    brief = aws.PREFLIGHT.merge(Config(read_timeout=0.1))
    monkeypatch.setattr(aws, "PREFLIGHT", brief)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "does not answer" in refused(data="s3://b/photographs")


def test_ten_attempts_of_two_seconds_name_a_server_that_hangs():
    attempts = aws.PREFLIGHT.retries["total_max_attempts"]
    assert attempts * max(aws.PREFLIGHT.connect_timeout, aws.PREFLIGHT.read_timeout) <= 20
    assert 6 * 0.1**attempts < 1e-6  # six requests, one of ten connections reset


CONTENTS = b"<Contents><Key>photographs/1</Key></Contents>"
LISTING = b"<ListBucketResult>" + CONTENTS + b"</ListBucketResult>"
BUSY = (503, {}, b"<Error><Code>SlowDown</Code><Message>Slow down.</Message></Error>")


def test_a_region_that_only_the_answer_tells(keys, monkeypatch):
    """AWS answers from any region, where boto3 goes on to the bucket's own; Spark would not."""
    with answering((200, {"x-amz-bucket-region": "eu-north-1"}, LISTING)) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert "set AWS_REGION=eu-north-1" in refused(data="s3://b/photographs")


LOST = (None, {}, b"")  # the connection is closed without an answer


@pytest.mark.parametrize("failure", [LOST, BUSY], ids=["closed", "busy"])
def test_as_patient_as_the_work(failure, waits, monkeypatch):
    with answering(*[failure] * 9, (200, {}, LISTING)) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        preflight(data="s3://b/photographs")


def test_an_upload_that_was_aborted_though_the_answer_was_lost(waits, monkeypatch):
    begun = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
    gone = b"<Error><Code>NoSuchUpload</Code><Message>Not there.</Message></Error>"
    with answering((200, {}, begun), LOST, (404, {}, gone)) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        preflight(run_dir="s3://b/run")


def test_a_server_that_stays_busy(waits, monkeypatch):
    with answering(BUSY) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert "SlowDown" in refused(data="s3://b/photographs")


class TestARunFolderHere:
    @pytest.fixture(autouse=True)
    def own_spark(self, monkeypatch):
        for name in ("SPARK_HOME", "PYSPARK_SUBMIT_ARGS"):
            monkeypatch.delenv(name, raising=False)

    def test_is_made_and_left_empty(self, tmp_path):
        preflight(run_dir=f"file:{tmp_path}/new/run")
        assert list((tmp_path / "new/run").iterdir()) == []

    def test_that_is_a_file(self, tmp_path):
        (tmp_path / "run").write_text("x")
        assert "run cannot be written (File exists)" in refused(run_dir=f"{tmp_path}/run")

    def test_below_a_file(self, tmp_path):
        (tmp_path / "file").write_text("x")
        assert "cannot be written (Not a directory)" in refused(run_dir=f"{tmp_path}/file/run")

    def test_where_nothing_can_be_made(self):
        assert "run_dir=/proc/run cannot be written" in refused(run_dir="/proc/run")

    def test_without_room_for_a_small_file(self, tmp_path):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            assert "cannot be written (File too large)" in refused(run_dir=f"{tmp_path}/run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list((tmp_path / "run").iterdir()) == []

    def test_of_another_spark_is_its_own_affair(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SPARK_HOME", "/usr/lib/spark")
        preflight(run_dir=f"{tmp_path}/run")
        assert not (tmp_path / "run").exists()
