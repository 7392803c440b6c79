"""A cluster's life on EMR: started, found, watched, paid for, ended."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from fruits_lib import aws
from fruits_lib.emr import prices
from fruits_lib.emr.spec import ClusterSpec
from fruits_lib.errors import FruitsError
from fruits_lib.storage import bucket_and_key

READY = ("RUNNING", "WAITING")
ALIVE = ("STARTING", "BOOTSTRAPPING", *READY, "TERMINATING")
ENDED = ("TERMINATED", "TERMINATED_WITH_ERRORS")
POLL = 20  # seconds: states change by the minute, and EMR's API is throttled
# What spends is asked for once: a second try after a lost answer could start a second cluster.
ONCE = Config(retries={"total_max_attempts": 1})
# A cluster is not lost sight of because the network is away for a moment.
PATIENT = Config(
    connect_timeout=10, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 10}
)
# S3 says Forbidden of a missing key to those who may list its folder only, not the bucket.
MISSING = ("NoSuchKey", "404", "AccessDenied", "403")
MEMORY = timedelta(days=30)  # how far back an ended cluster is looked for


@dataclass(frozen=True)
class Cluster:
    """A cluster as EMR describes it.

    Attributes
    ----------
    id, name, state : str
    reason : str
        Why the state changed last, as EMR says it; often empty.
    created : datetime.datetime
    ended : datetime.datetime or None
    address : str
        The primary node's DNS name; empty until there is one.
    protected : bool
        Against termination.
    logs : str
        `s3://` URI of the logs, without a slash at its end; may be empty.
    key_name : str
        EC2 key pair; may be empty.
    """

    id: str
    name: str
    state: str
    reason: str
    created: datetime
    ended: datetime | None
    address: str = ""
    protected: bool = False
    logs: str = ""
    key_name: str = ""

    @property
    def stage(self) -> str:
        """The stage that the cluster was created from, by where its logs go; may be empty."""
        return self.logs.removesuffix("/logs") if self.logs.endswith("/logs") else ""

    def minutes(self, now: datetime) -> float:
        return ((self.ended or now) - self.created).total_seconds() / 60


def now() -> datetime:
    return datetime.now(UTC)


def start(region: str, request: dict) -> str:
    """Ask EMR for a cluster, once, and return its id.

    Parameters
    ----------
    region : str
    request : dict
        Input of RunJobFlow.

    Raises
    ------
    FruitsError
        If EMR refuses, or its answer is lost, by Ctrl-C as well.
    """
    try:
        return aws.client("emr", region, ONCE).run_job_flow(**request)["JobFlowId"]
    except (BotoCoreError, ClientError, KeyboardInterrupt) as error:
        answer = getattr(error, "response", {}).get("ResponseMetadata", {})
        if answer.get("HTTPStatusCode", 500) < 500:
            known = "nothing was started"
        else:
            known = (
                "whether a cluster was started is unknown: look with `fruits emr list --region "
                f"{region}` before you try again"
            )
        raise FruitsError(f"{aws.explain(error) or 'interrupted'}; {known}") from None


def ensure_security_configuration(emr, name: str, content: dict) -> bool:
    """Create an EMR security configuration where there is none of that name; say whether."""
    try:
        emr.describe_security_configuration(Name=name)
        return False
    except ClientError as error:
        if error.response["Error"]["Code"] != "InvalidRequestException":
            raise
    emr.create_security_configuration(Name=name, SecurityConfiguration=json.dumps(content))
    return True


def save_request(s3, cluster_id: str, request: dict) -> None:
    """Keep the request that a cluster was created with, for `clone`, beside its logs."""
    stage = request["LogUri"].rstrip("/").removesuffix("/logs")
    bucket, key = bucket_and_key(f"{stage}/clusters/{cluster_id}.json")
    s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(request, indent=2).encode())


def saved_request(s3, cluster: Cluster) -> dict | None:
    """Return the request that a cluster was created with, or None if it was not kept."""
    if not cluster.stage:
        return None
    bucket, key = bucket_and_key(f"{cluster.stage}/clusters/{cluster.id}.json")
    try:
        return json.load(s3.get_object(Bucket=bucket, Key=key)["Body"])
    except ClientError as error:
        if error.response["Error"]["Code"] not in MISSING:
            raise
        return None


def describe(emr, cluster_id: str) -> Cluster:
    """Return what EMR knows of a cluster.

    Raises
    ------
    FruitsError
        If there is none of that id in the region.
    """
    return _cluster(_describe(emr, cluster_id))


def recent(emr, states: tuple[str, ...], since: datetime | None = None) -> list[Cluster]:
    """Return the clusters of a region, the newest first, without addresses, logs and keys.

    Parameters
    ----------
    emr
        boto3 client.
    states : tuple of str
    since : datetime.datetime, optional
        Leave out those created before.
    """
    after = {"CreatedAfter": since} if since else {}
    pages = emr.get_paginator("list_clusters").paginate(ClusterStates=list(states), **after)
    found = [_cluster(entry) for page in pages for entry in page["Clusters"]]
    return sorted(found, key=lambda cluster: cluster.created, reverse=True)


def find(emr, name: str, clock: Callable[[], datetime] = now, ended: bool = False) -> Cluster:
    """Return the running cluster of a name.

    Parameters
    ----------
    emr
        boto3 client.
    name : str
    clock : callable
        Returns the time.
    ended : bool
        Take the newest ended cluster where none is running.

    Raises
    ------
    FruitsError
        If there is none, or more than one is running.
    """
    running = [it for it in recent(emr, ALIVE[:-1]) if it.name == name]
    region = emr.meta.region_name
    if len(running) > 1:
        listed = ", ".join(f"{it.id} ({it.state})" for it in running)
        raise FruitsError(
            f"{len(running)} clusters named {name} run in {region}: name one of {listed}"
        )
    if running:
        return describe(emr, running[0].id)
    for it in recent(emr, ("TERMINATING", *ENDED), clock() - MEMORY) if ended else []:
        if it.name == name:
            return describe(emr, it.id)
    raise FruitsError(
        f"no cluster named {name} runs in {region}: see `fruits emr list`, or give --name, "
        "--region or a cluster's id"
    )


def watch(
    emr, cluster_id: str, until: tuple[str, ...], sleep: Callable[[float], None] = time.sleep
) -> Iterator[Cluster]:
    """Yield a cluster again and again until it is in one of the states, or has ended."""
    while True:
        cluster = describe(emr, cluster_id)
        yield cluster
        if cluster.state in until + ENDED:
            return
        sleep(POLL)


def terminate(emr, cluster: Cluster, unprotect: bool = False) -> None:
    """Ask EMR to end a cluster.

    Raises
    ------
    FruitsError
        If it is protected, and `unprotect` is False.
    """
    if cluster.protected:
        if not unprotect:
            raise FruitsError(
                f"{cluster.id} is protected against termination: add --unprotect to end it"
            )
        emr.set_termination_protection(JobFlowIds=[cluster.id], TerminationProtected=False)
    emr.terminate_job_flows(JobFlowIds=[cluster.id])


def spec_of(emr, cluster: Cluster) -> ClusterSpec:
    """Return what a cluster would be asked to be, to have another one like it.

    The idle time is the usual one: the operator need not be allowed to ask for it.
    """
    answer = _describe(emr, cluster.id)
    network = answer["Ec2InstanceAttributes"]
    pages = emr.get_paginator("list_instance_groups").paginate(ClusterId=cluster.id)
    groups = {it["InstanceGroupType"]: it for page in pages for it in page["InstanceGroups"]}
    asked = {
        "name": cluster.name,
        "region": emr.meta.region_name,
        "release": answer.get("ReleaseLabel"),
        "ebs_gb": answer.get("EbsRootVolumeSize"),
        "service_role": answer.get("ServiceRole"),
        "instance_profile": network.get("IamInstanceProfile"),
        "security_configuration": answer.get("SecurityConfiguration"),
        "subnet": network.get("Ec2SubnetId"),
        "key_name": network.get("Ec2KeyName"),
        "ssh_group": next(iter(network.get("AdditionalMasterSecurityGroups") or []), ""),
        "tags": {
            tag["Key"]: tag["Value"]
            for tag in answer.get("Tags", [])
            if not tag["Key"].startswith("aws:")  # CloudFormation's and the like, not to be set
        },
    }
    for role, field in (("MASTER", "primary"), ("CORE", "core"), ("TASK", "task")):
        if role in groups:
            asked[field] = groups[role]["InstanceType"]
            if role != "MASTER":
                asked[f"{field}_nodes"] = groups[role]["RequestedInstanceCount"]
    return ClusterSpec(cluster.stage, **{key: value for key, value in asked.items() if value})


def configurations(emr, cluster_id: str) -> list[dict]:
    """Return the configurations that a cluster was created with."""
    return _describe(emr, cluster_id).get("Configurations", [])


@dataclass(frozen=True)
class Bill:
    """What a cluster came to, by its nodes' own times.

    Attributes
    ----------
    hours : dict of (str, str) to float
        Node hours by instance type and market (`ON_DEMAND` or `SPOT`).
    dollars : float or None
        None if a type has no price here.
    """

    hours: dict[tuple[str, str], float]
    dollars: float | None


def bill(emr, cluster_id: str, at: datetime) -> Bill:
    """Return what a cluster has come to at a time: every node from its creation to its end.

    Nodes that managed scaling started and ended are in it. Spot prices and the size of the root
    volume are assumptions, those of the price table and of `ClusterSpec`.
    """
    hours = Counter()
    for page in emr.get_paginator("list_instances").paginate(ClusterId=cluster_id):
        for node in page["Instances"]:
            times = node["Status"].get("Timeline", {})
            if node["Status"]["State"] == "AWAITING_FULFILLMENT" or "CreationDateTime" not in times:
                continue  # asked for, not there: not paid
            seconds = (times.get("EndDateTime", at) - times["CreationDateTime"]).total_seconds()
            # EC2 and EMR bill by the second, a minute at least.
            hours[node["InstanceType"], node["Market"]] += max(seconds, 60) / 3600
    region = emr.meta.region_name
    try:
        dollars = sum(
            hours * prices.node_price(kind, region, market == "SPOT")
            for (kind, market), hours in hours.items()
        )
    except FruitsError:
        dollars = None
    return Bill(dict(hours), dollars)


def _describe(emr, cluster_id: str) -> dict:
    try:
        return emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
    except ClientError as error:
        if error.response["Error"]["Code"] not in (
            "InvalidRequestException",
            "ValidationException",
        ):
            raise
        raise FruitsError(
            f"{cluster_id} is no cluster in {emr.meta.region_name}: see `fruits emr list`, or give "
            "--region"
        ) from None


def _cluster(entry: dict) -> Cluster:
    status = entry["Status"]
    reason, times = status.get("StateChangeReason", {}), status["Timeline"]
    logs = entry.get("LogUri") or ""  # EMR answers s3n://, whatever it was given
    return Cluster(
        id=entry["Id"],
        name=entry["Name"],
        state=status["State"],
        reason=": ".join(reason[key] for key in ("Code", "Message") if reason.get(key)),
        created=times["CreationDateTime"],
        ended=times.get("EndDateTime"),
        address=entry.get("MasterPublicDnsName") or "",
        protected=entry.get("TerminationProtected", False),
        logs="s3://" + "/".join(bucket_and_key(logs)) if logs else "",
        key_name=entry.get("Ec2InstanceAttributes", {}).get("Ec2KeyName") or "",
    )
