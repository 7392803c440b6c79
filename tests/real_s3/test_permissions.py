"""What infrastructure.yaml grants to a cluster's nodes is no more than a run needs.

That it is enough, the run of test_whole_run.py shows, which has these keys.
"""

import pytest
from botocore.exceptions import ClientError
from node_keys import node_keys

from fruits_lib import aws

pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning")


@pytest.fixture
def node(bucket, monkeypatch):
    """A bucket and, in the environment, the keys of a node."""
    bucket.put("photographs/Lemon/1.jpg", b"x")
    for name, value in node_keys(bucket).items():
        monkeypatch.setenv(name, value)
    return bucket


@pytest.mark.parametrize("key", ["photographs/Lemon/new.jpg", "runs2/x", "fruits/bootstrap.sh"])
def test_elsewhere_nothing_can_be_written(node, key):
    with pytest.raises(ClientError, match="AccessDenied"):
        aws.client("s3").put_object(Bucket=node.name, Key=key, Body=b"x")


def test_photographs_cannot_be_removed(node):
    key = next(iter(node.listing("photographs/")))
    with pytest.raises(ClientError, match="AccessDenied"):
        aws.client("s3").delete_object(Bucket=node.name, Key=key)
