"""What infrastructure.yaml grants to a cluster's nodes is enough for a run, and no more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from iam import stack

from fruits_lib import aws

FRUITS = Path(sys.executable).with_name("fruits")
pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning")


@pytest.fixture
def node(bucket, sample, monkeypatch):
    """The environment of a node: keys that may do what the node policy says."""
    for file in sorted(sample.glob("Training/*/1*.jpg")):
        bucket.put(f"photographs/{file.relative_to(sample).as_posix()}", file.read_bytes())
    with stack.account():
        made = stack.create(BucketName=bucket.name)
    (inline,) = made.properties["NodeRole"]["Policies"]
    keys = aws.client("sts").assume_role(
        RoleArn="arn:aws:iam::123456789012:role/any",
        RoleSessionName="node",
        Policy=json.dumps(inline["PolicyDocument"]),
    )["Credentials"]
    for name, value in {
        "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
        "AWS_SESSION_TOKEN": keys["SessionToken"],
    }.items():
        monkeypatch.setenv(name, value)
    return bucket


def test_a_whole_run_needs_no_more(node):
    answer = subprocess.run(
        [FRUITS, "run", "--data", node.uri("photographs"), "--run-dir", node.uri("runs/first")]
        + ["-p", "weights=random", "-p", "input_size=32"],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(node.get("runs/first/manifest.json"))["verify"]["failed"] == 0


@pytest.mark.parametrize("key", ["photographs/Lemon/new.jpg", "runs2/x", "fruits/bootstrap.sh"])
def test_elsewhere_nothing_can_be_written(node, key):
    with pytest.raises(ClientError, match="AccessDenied"):
        aws.client("s3").put_object(Bucket=node.name, Key=key, Body=b"x")


def test_photographs_cannot_be_removed(node):
    key = next(iter(node.listing("photographs/")))
    with pytest.raises(ClientError, match="AccessDenied"):
        aws.client("s3").delete_object(Bucket=node.name, Key=key)
