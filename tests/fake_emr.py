"""moto's EMR with states that only the test moves, and a clock that only sleeping moves."""

import json
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import botocore.waiter
import moto.emr.models
import pytest
from moto import mock_aws
from moto.servicequotas.exceptions import NoSuchResource
from moto.servicequotas.models import ServiceQuotasBackend

from fruits_lib import aws
from fruits_lib.emr import cluster as clusters
from fruits_lib.emr import prices, steps
from fruits_lib.emr.spec import ClusterSpec, build_request
from fruits_lib.errors import FruitsError

REGION, BUCKET = "eu-west-1", "orchard"
STAGE = f"s3://{BUCKET}/stage"
ACCOUNT = "123456789012"  # moto's
NETWORK = {
    "subnet": "subnet-1",
    "service_role": "emr",
    "instance_profile": "node",
    "security_configuration": "imdsv2",
}


class World:
    """An account with one bucket, in which time passes by sleeping.

    Attributes
    ----------
    emr, s3
        boto3 clients.
    events : list of callable
        What happens during each sleep, in order; one sleep more than that is a mistake.
    slept : float
        Seconds so far.
    vcpus : float or None
        Quota of the account; None if it may not be asked for.
    """

    def __init__(self) -> None:
        self.emr, self.s3 = (aws.client(name, REGION) for name in ("emr", "s3"))
        place = {"LocationConstraint": REGION}
        self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
        self.events, self.slept, self.vcpus = [], 0.0, 64.0
        self.beginning = datetime.now(UTC)

    def now(self) -> datetime:
        return self.beginning + timedelta(seconds=self.slept)

    def moto_time(self) -> datetime:
        return self.now().replace(tzinfo=None)

    def sleep(self, seconds: float) -> None:
        assert self.events, "waited for longer than anything happens"
        self.slept += seconds
        self.events.pop(0)()

    def start(self, state: str = "WAITING", **asked) -> str:
        """Create a cluster in a state; return its id."""
        cluster_id = clusters.start(REGION, build_request(ClusterSpec(STAGE, **asked)))
        cluster = self.cluster(cluster_id)
        cluster.state, cluster.creation_datetime = state, self.moto_time()
        for group in cluster.instance_groups:
            group.creation_date_time = self.moto_time()
        return cluster_id

    def cluster(self, cluster_id: str = ""):
        """Return moto's cluster, to be changed; without an id, the only one."""
        found = moto.emr.models.emr_backends[ACCOUNT][REGION].clusters
        if not cluster_id:
            (cluster_id,) = found
        return found[cluster_id]

    def becomes(self, state: str, reason: str | None = None, cluster_id: str = ""):
        """Return an event: a cluster takes a state."""

        def event() -> None:
            cluster = self.cluster(cluster_id)
            cluster.state, cluster.last_state_change_reason = state, reason
            if state in clusters.ENDED:
                cluster.end_datetime = self.moto_time()
                for group in cluster.instance_groups:
                    group.end_date_time, group.state = self.moto_time(), "TERMINATED"

        return event

    def steps(self, *states: str):
        """Return an event: the first steps take these states."""

        def event() -> None:
            for step, state in zip(self.cluster().steps, states, strict=False):
                step.state = state
                step.start_date_time = self.beginning  # S3 knows no other time than the true one
                step.end_date_time = self.moto_time()

        return event

    def put(self, key: str, content: bytes) -> None:
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=content)

    def execute(self, key: str, error: tuple[str, str] | None = None, minutes: float = 3) -> None:
        """Write a notebook as papermill does; None as `minutes` if it is still at work."""
        outputs = [{"output_type": "stream", "name": "stdout", "text": "some words"}]
        if error:
            ename, evalue = error
            outputs.append({"output_type": "error", "ename": ename, "evalue": evalue})
        record = {"duration": minutes and minutes * 60, "end_time": minutes and "2026-01-01"}
        cells = [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": outputs}]
        notebook = {"cells": cells, "metadata": {"papermill": record}}
        self.put(key, json.dumps(notebook).encode())

    def content(self, key: str) -> bytes:
        return self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def listing(self) -> set[str]:
        found = self.s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {entry["Key"] for entry in found}


@contextmanager
def fake_world():
    """Open a `World`: no account, no network, no profile of the user's."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_REGION", REGION)
        patch.setenv("LOGNAME", "zoe")  # whose name clusters have
        # Machine images, which no cluster of ours names, would take most of the time.
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
        # moto's clusters are ready, and ended, at once.
        patch.setattr(moto.emr.models.Cluster, "run_bootstrap_actions", lambda self: None)
        patch.setattr(moto.emr.models.Cluster, "terminate", _terminate)
        world = World()

        def quota(*_, **asked) -> dict:
            if world.vcpus is None:
                raise NoSuchResource
            return {"Value": world.vcpus}

        patch.setattr(ServiceQuotasBackend, "get_service_quota", quota)
        patch.setattr(prices, "ask_node", _no_prices)  # moto has no Pricing API
        patch.setattr(clusters, "now", world.now)
        for module in (botocore.waiter, steps):
            patch.setattr(module, "time", SimpleNamespace(sleep=world.sleep))
        yield world


def _terminate(cluster) -> None:
    cluster.state = "TERMINATING"


def _no_prices(*_):
    raise FruitsError("no prices")
