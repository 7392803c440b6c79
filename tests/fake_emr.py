"""moto's EMR with states that only the test moves, and a clock that only sleeping moves."""

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import moto.emr.models
import pytest
from moto import mock_aws

from fruits_lib import aws
from fruits_lib.emr import cluster as life
from fruits_lib.emr.request import build_request, load_configurations
from fruits_lib.emr.spec import ClusterSpec

REGION, BUCKET = "eu-west-1", "orchard"
STAGE = f"s3://{BUCKET}/stage"
ACCOUNT = "123456789012"  # moto's


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
    """

    def __init__(self) -> None:
        self.emr, self.s3 = (aws.client(name, REGION) for name in ("emr", "s3"))
        self.s3.create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        self.events, self.slept = [], 0.0
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
        spec = ClusterSpec(STAGE, **asked)
        cluster_id = life.start(REGION, build_request(spec, load_configurations(spec)))
        cluster = self.cluster(cluster_id)
        cluster.state, cluster.creation_datetime = state, self.moto_time()
        for group in cluster.instance_groups:
            group.creation_date_time = self.moto_time()
        return cluster_id

    def cluster(self, cluster_id: str = ""):
        """Return moto's cluster, to be changed; without an id, the only one."""
        clusters = moto.emr.models.emr_backends[ACCOUNT][REGION].clusters
        if not cluster_id:
            (cluster_id,) = clusters
        return clusters[cluster_id]

    def becomes(self, state: str, reason: str | None = None, cluster_id: str = ""):
        """Return an event: a cluster takes a state."""

        def event() -> None:
            cluster = self.cluster(cluster_id)
            cluster.state, cluster.last_state_change_reason = state, reason
            if state in life.ENDED:
                cluster.end_datetime = self.moto_time()
                for group in cluster.instance_groups:
                    group.end_date_time, group.state = self.moto_time(), "TERMINATED"

        return event

    def step(self, position: int, state: str):
        """Return an event: a step takes a state."""

        def event() -> None:
            step = self.cluster().steps[position]
            step.state = state
            step.start_date_time = self.beginning  # S3 knows no other time than the true one

        return event

    def put(self, key: str, content: bytes) -> None:
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=content)

    def listing(self) -> set[str]:
        return {it["Key"] for it in self.s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])}


@contextmanager
def fake_world():
    """Open a `World`: no account, no network, no profile of the user's."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_REGION", REGION)
        # Machine images, which no cluster of ours names, would take most of the time.
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
        # moto's clusters are ready, and ended, at once.
        patch.setattr(moto.emr.models.Cluster, "run_bootstrap_actions", lambda self: None)
        patch.setattr(moto.emr.models.Cluster, "terminate", _terminate)
        yield World()


def _terminate(cluster) -> None:
    cluster.state = "TERMINATING"
