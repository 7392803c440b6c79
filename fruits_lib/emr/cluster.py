"""Clusters on EMR, as EMR describes them: started, found, waited for, paid for."""

import json
from collections import Counter
from datetime import UTC, datetime

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, WaiterError

from fruits_lib import aws, storage
from fruits_lib.emr import prices
from fruits_lib.emr.spec import DATA_GB, ClusterSpec
from fruits_lib.errors import FruitsError
from fruits_lib.storage import bucket_and_key

READY = ("RUNNING", "WAITING")
ALIVE = ("STARTING", "BOOTSTRAPPING", *READY)
ENDED = ("TERMINATED", "TERMINATED_WITH_ERRORS")
# What costs money is requested once: a retry after a lost answer could cost twice.
ONCE = Config(retries={"total_max_attempts": 1})
# S3 answers Forbidden for a missing key to those who may not list the whole bucket.
MISSING = ("NoSuchKey", "404", "AccessDenied", "403")
POLL = 20  # seconds: states change by the minute, and EMR throttles its API


def now() -> datetime:
    return datetime.now(UTC)


def state(cluster: dict) -> str:
    return cluster["Status"]["State"]


def reason(cluster: dict) -> str:
    """Return why the state of a cluster changed last, as EMR says it; often empty."""
    said = cluster["Status"].get("StateChangeReason", {})
    return ": ".join(said[key] for key in ("Code", "Message") if said.get(key))


def minutes(described: dict) -> float:
    """Return how long a cluster has lived, or a step has run."""
    times = described["Status"].get("Timeline", {})
    begin = times.get("StartDateTime" if "Config" in described else "CreationDateTime")
    begin = begin or times.get("CreationDateTime", now())
    return (times.get("EndDateTime", now()) - begin).total_seconds() / 60


def logs(cluster: dict) -> str:
    """Return the `s3://` URI of a cluster's logs; EMR answers s3n://, whatever it was given."""
    if not cluster.get("LogUri"):
        raise FruitsError(f"{cluster['Id']} keeps no logs: it was created without a place for them")
    return "s3://" + "/".join(bucket_and_key(cluster["LogUri"])) + f"/{cluster['Id']}"


def start(region: str, request: dict) -> str:
    """Ask EMR for a cluster, once, and return its id; FruitsError says what is known otherwise."""
    try:
        return aws.client("emr", region, ONCE).run_job_flow(**request)["JobFlowId"]
    except (BotoCoreError, ClientError, KeyboardInterrupt) as error:
        answer = getattr(error, "response", {}).get("ResponseMetadata", {})
        known = "nothing was started"
        if answer.get("HTTPStatusCode", 500) >= 500:
            look = f"look with `fruits emr list --region {region}` before you try again"
            known = f"whether a cluster was started is unknown: {look}"
        raise FruitsError(f"{aws.explain(error) or 'interrupted'}; {known}") from None


def request_uri(log_uri: str, cluster_id: str) -> str:
    """Return where a cluster's request is kept for `clone`, beside its logs."""
    return f"{log_uri.rstrip('/').removesuffix('/logs')}/clusters/{cluster_id}.json"


def saved_request(cluster: dict) -> dict:
    """Return the request that a cluster was created with; raise FruitsError if it was not kept."""
    uri = request_uri(logs(cluster).rsplit("/", 1)[0], cluster["Id"])
    try:
        return json.loads(storage.read_text(uri))
    except FileNotFoundError:
        kept = "only the request of `fruits emr create` is kept, create a new cluster"
        raise FruitsError(f"{uri} is not there: {kept}") from None


def recent(emr, states: tuple[str, ...], **limits) -> list[dict]:
    """Return a region's clusters in some states, newest first, in EMR's short description."""
    pages = emr.get_paginator("list_clusters").paginate(ClusterStates=list(states), **limits)
    found = [cluster for page in pages for cluster in page["Clusters"]]
    return sorted(found, key=lambda one: one["Status"]["Timeline"]["CreationDateTime"])[::-1]


def find(emr, name: str, ended: bool = False) -> dict:
    """Return the one running cluster of a name, or else, if wanted, the newest that has ended."""
    region = emr.meta.region_name
    named = [one for one in recent(emr, (*ALIVE, "TERMINATING", *ENDED)) if one["Name"] == name]
    running = [one for one in named if state(one) in ALIVE]
    if len(running) > 1:
        ids = ", ".join(f"{one['Id']} ({state(one)})" for one in running)
        raise FruitsError(
            f"{region} runs {len(running)} clusters named {name}: give an id of {ids}"
        )
    found = running or (named if ended else [])
    if not found:
        way_out = "see `fruits emr list`, or give an id, --name or --region"
        raise FruitsError(f"no cluster named {name} runs in {region}: {way_out}")
    return emr.describe_cluster(ClusterId=found[0]["Id"])["Cluster"]


def wait(emr, waiter: str, delay: float = POLL, **which: str) -> None:
    """Wait, by `cluster_running` or `cluster_terminated`, until a state is final."""
    patience = {"Delay": delay, "MaxAttempts": 1_000_000}
    try:
        emr.get_waiter(waiter).wait(**which, WaiterConfig=patience)
    except WaiterError as error:  # a refusal, or a final state that is not the hoped-for one
        if "Error" in error.last_response:
            raise ClientError(error.last_response, error.kwargs["name"]) from None


def bill(emr, cluster_id: str) -> tuple[dict[tuple[str, str], float], float | None]:
    """Return a cluster's node hours by type and market, and their dollars (None if not known).

    Every node counts from its creation to its end. Spot prices and the size of the root volume are
    assumptions, those of the price table and of `ClusterSpec`.
    """
    hours = Counter()
    for page in emr.get_paginator("list_instances").paginate(ClusterId=cluster_id):
        for node in page["Instances"]:
            # What is only requested is not paid. EC2 and EMR bill by the second, 60 at least.
            times = node["Status"].get("Timeline", {})
            if "CreationDateTime" in times and node["Status"]["State"] != "AWAITING_FULFILLMENT":
                hours[node["InstanceType"], node["Market"]] += max(minutes(node), 1) / 60
    nodes = [("", kind, amount, market) for (kind, market), amount in hours.items()]
    local = prices.table_prices(emr.meta.region_name)
    costs = prices.hourly_costs(local, nodes, ClusterSpec.ebs_gb + DATA_GB)
    return dict(hours), costs and sum(costs.values())
