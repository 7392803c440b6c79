"""What is wrong with a bucket is said in one line, before Spark starts."""

import contextlib
import http.server
import json
import socket
import threading

import pytest

from fruits_lib import aws
from fruits_lib.errors import FruitsError
from fruits_lib.storage import preflight


@pytest.fixture
def real(request):
    if request.config.getoption("--s3") != "minio":
        pytest.skip("moto takes any credentials: make test-s3")


@pytest.fixture
def keys(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "anything")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")


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
    ],
)
def test_results_lie_apart_from_the_photographs(data, run_dir):
    assert "overlap" in refused(data=data, run_dir=run_dir)


@pytest.mark.parametrize("run_dir", ["s3://b/photographs-run", "/photographs-run"])
def test_a_neighbour_of_like_name_is_apart(run_dir, monkeypatch):
    monkeypatch.setattr("fruits_lib.storage._ask", lambda *_, **__: {"Contents": 1, "UploadId": 1})
    preflight(run_dir.removesuffix("-run"), run_dir)


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


def test_a_server_that_is_away(keys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 does not answer" in refused(data="s3://b/photographs")


def test_a_name_that_no_host_has(keys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://fruits.invalid")
    assert "http://fruits.invalid does not answer" in refused(data="s3://b/photographs")


def test_a_server_that_hangs(keys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "does not answer" in refused(data="s3://b/photographs")


@contextlib.contextmanager
def answering(*answers):
    """A server that gives these answers, (status, headers, body), the last one for ever."""
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


CONTENTS = b"<Contents><Key>photographs/1</Key></Contents>"
LISTING = b"<ListBucketResult>" + CONTENTS + b"</ListBucketResult>"
BUSY = (503, {}, b"<Error><Code>SlowDown</Code><Message>Slow down.</Message></Error>")


def test_a_region_that_only_the_answer_tells(keys, monkeypatch):
    """AWS answers from any region, where boto3 goes on to the bucket's own; Spark would not."""
    with answering((200, {"x-amz-bucket-region": "eu-north-1"}, LISTING)) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert "set AWS_REGION=eu-north-1" in refused(data="s3://b/photographs")


def test_a_busy_server_is_asked_again(keys, monkeypatch):
    with answering(*[BUSY] * 3, (200, {}, LISTING)) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        preflight(data="s3://b/photographs")


def test_a_server_that_stays_busy(keys, monkeypatch):
    with answering(BUSY) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert "SlowDown" in refused(data="s3://b/photographs")
