"""What the terminal shows and asks while a cluster costs money."""

import textwrap
from contextlib import contextmanager, suppress
from pathlib import Path

import click
from botocore.exceptions import BotoCoreError, ClientError

from fruits_lib import aws
from fruits_lib.emr import cluster as clusters
from fruits_lib.emr.cluster import state
from fruits_lib.emr.prices import current_prices, hourly_costs, instance_type, note
from fruits_lib.emr.spec import DATA_GB, ClusterSpec, check_quota, check_spec
from fruits_lib.errors import FruitsError, Signalled

INTERRUPTED = 130  # the shell's code for Ctrl-C
REFUSALS = (FruitsError, ClientError, BotoCoreError)
ADDRESS = "MasterPublicDnsName"
HUB, HISTORY = 9443, 18080  # ports of JupyterHub and of Spark's history server, on EMR
# Images per second and vCPU: an estimate, not measured on AWS. benchmarks/README.md has 100 for a
# core, a vCPU is half of one, and a request to S3 takes as long again and more.
RATE = 20.0
START_MINUTES = 12.5  # 10 to 15, from the first node through bootstrap.sh to JupyterHub
OTHER_MINUTES = 6.5  # all notebooks but 02, and the start of Spark on YARN
READS, WRITES = 1.04, 0.013  # S3 requests per image of a run of 100,000: benchmarks/README.md
RESULT_BYTES = 2 * 4 * 1280  # features and scores of the default backbone, at most
OUTSIDE_THE_EU = ("eu-west-2", "eu-central-2")  # London and Zurich


def dollars(amount: float | None) -> str:
    return "$?" if amount is None else f"${amount:,.2f}"


def duration(minutes: float) -> str:
    hours, rest = divmod(int(minutes), 60)
    return f"{hours} h {rest:02} min" if hours else f"{rest} min"


def cost(emr, cluster: dict) -> str:
    """Return what a cluster has cost so far, or `$?`."""
    try:
        return dollars(clusters.bill(emr, cluster["Id"])[1])
    except ClientError:  # another's cluster: its nodes are not ours to list
        return dollars(None)


def command(name: str, emr, cluster_id: str) -> str:
    """Return a command on a cluster, to be copied."""
    return f"fruits emr {name} {cluster_id} --region {emr.meta.region_name}"


def ask_to_spend(emr, request: dict, yes: bool) -> None:
    """Say what a cluster would be and cost, check the account's quota, and ask."""
    region, groups = emr.meta.region_name, request["Instances"]["InstanceGroups"]
    keys = ("InstanceRole", "InstanceType", "InstanceCount", "Market")
    nodes = [tuple(group[key] for key in keys) for group in groups]
    rates = current_prices(region, {kind for _, kind, _, _ in nodes})
    costs = hourly_costs(rates, nodes, request["EbsRootVolumeSize"] + DATA_GB)
    idle = request["AutoTerminationPolicy"]["IdleTimeout"] // 60
    hourly = dollars(costs and sum(costs.values()))
    click.echo(f"{_text(nodes)} in {region}: {hourly} an hour; {note(rates)}")
    click.echo(f"It ends itself after {idle} minutes without work.")
    try:
        check_quota(request, region)
    except (ClientError, BotoCoreError) as error:
        click.echo(f"The vCPU quota was not checked: {aws.explain(error)}")
    if not yes:
        click.confirm("create it?", abort=True)


def end(emr, cluster_id: str) -> None:
    """Terminate a cluster, wait until it has ended, and say what it has cost."""
    emr.terminate_job_flows(JobFlowIds=[cluster_id])
    click.echo(f"{cluster_id} is ending")
    clusters.wait(emr, "cluster_terminated", ClusterId=cluster_id)
    cluster = emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
    click.echo(f"{cluster_id} has ended: {state(cluster)}, {cost(emr, cluster)} in all")


@contextmanager
def reporting_cluster(emr, cluster_id: str, terminate: bool = False, may_ask: bool = True):
    """However the block ends, terminate the cluster, or say that it runs and how to terminate it.

    After Ctrl-C ask whether to terminate it, unless that is wanted anyway or already requested.
    """
    errors = []
    try:
        yield
    except BaseException as error:
        errors.append(error)
        asks = isinstance(error, KeyboardInterrupt) and not isinstance(error, Signalled)
        if asks and may_ask and not terminate:
            terminate = _confirms_end(cluster_id)
    if terminate:
        try:
            end(emr, cluster_id)
        except BaseException as error:
            errors.append(error)
    line = still_running(emr, cluster_id)
    if not errors:
        if not terminate:
            click.echo(line)
        return
    line = "; ".join([*map(_line, errors), line])
    if stops := [error for error in errors if isinstance(error, KeyboardInterrupt)]:
        with suppress(OSError):  # the terminal may be closed
            click.echo(f"fruits: {line}", err=True)
        click.get_current_context().exit(getattr(stops[0], "code", INTERRUPTED))
    if all(isinstance(error, REFUSALS) for error in errors):
        raise FruitsError(line)
    click.echo(f"fruits: {line}", err=True)
    raise errors[0]


def still_running(emr, cluster_id: str) -> str:
    """Return one line that says whether a cluster still costs money, and how to end it."""
    ends = f"`{command('terminate', emr, cluster_id)}` ends it"
    try:
        now = state(emr.describe_cluster(ClusterId=cluster_id)["Cluster"])
    except (*REFUSALS, KeyboardInterrupt) as error:
        return f"whether {cluster_id} still runs is unknown ({_line(error)}): {ends}"
    if now in clusters.ENDED:
        return f"{cluster_id} has ended: nothing runs any more"
    if now == "TERMINATING":
        return f"{cluster_id} is ending: see `{command('status', emr, cluster_id)}`"
    return f"{cluster_id} still runs ({now}): {ends}"


def _confirms_end(cluster_id: str) -> bool:
    try:
        return click.confirm(f"\nend {cluster_id}?", err=True)
    except click.Abort:  # a second Ctrl-C, or nobody there to answer
        return False


def _line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error) if isinstance(error, FruitsError) else aws.explain(error)


def ssh_command(
    cluster: dict, key: Path | None, hub: int = HUB, history: int = HISTORY
) -> list[str]:
    """Return the command that opens a tunnel; the key is by default ~/.ssh/<key pair>.pem."""
    pair, host = cluster["Ec2InstanceAttributes"].get("Ec2KeyName"), cluster.get(ADDRESS)
    if not (host and (key or pair)):
        missing = "has no address yet, or no SSH key: wait, or create one with --key-name"
        raise FruitsError(f"{cluster['Id']} is {state(cluster)} and {missing}")
    key = key or Path.home() / ".ssh" / f"{pair}.pem"
    # Keep-alives, because a router forgets a connection without traffic.
    options = ["-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=60"]
    for local, remote in ((hub, HUB), (history, HISTORY)):
        options += ["-L", f"127.0.0.1:{local}:{host}:{remote}"]
    return ["ssh", "-i", str(key), "-N", *options, f"hadoop@{host}"]


def plan(spec: ClusterSpec, images: int, rate: float = RATE) -> str:
    """Return what a run of so many images, at a rate per second and vCPU, would take and cost."""
    check_spec(spec)
    if images < 1 or not rate > 0:
        raise FruitsError(f"images={images}, rate={rate}: both must be above 0")
    workers = [(kind, count) for role, kind, count, _ in spec.groups if role != "MASTER"]
    vcpus = sum(count * instance_type(kind, spec.region).vcpu for kind, count in workers)
    featurize = images / rate / vcpus / 60
    minutes = START_MINUTES + featurize + OTHER_MINUTES
    eu = spec.region.startswith("eu-") and spec.region not in OUTSIDE_THE_EU
    place = "in the EU" if eu else "WARNING: not in the EU, check the GDPR's rules"
    rates = current_prices(spec.region, {kind for _, kind, _, _ in spec.groups})
    price = "not known for these instance types in this region"
    if costs := hourly_costs(rates, spec.groups, spec.ebs_gb + DATA_GB):
        costs = {item: minutes / 60 * amount for item, amount in costs.items()}
        requests = (READS * rates["s3_1000_reads"] + WRITES * rates["s3_1000_writes"]) / 1000
        costs["S3"] = images * (requests + RESULT_BYTES / 1e9 * rates["s3_gb_month"])
        items = ", ".join(f"{item} {dollars(amount)}" for item, amount in costs.items())
        price = f"{dollars(sum(costs.values()))}: {items} with a month of the results"
    lines = [
        f"cluster  {spec.name}, {spec.release}: {_text(spec.groups)}; {spec.ebs_gb} + {DATA_GB} GB "
        f"of EBS each; ends itself after {spec.idle_minutes} minutes without work",
        f"where    {spec.region}, {place}; photographs, labels and paths can be personal data",
        f"time     {duration(minutes)}: {START_MINUTES:g} min start + {featurize:.0f} featurize + "
        f"{OTHER_MINUTES:g} other notebooks; {images:,} images at {rate:g} a second on each of "
        f"{vcpus} vCPUs. An estimate: --rate takes a rate that you measured",
        f"price    {price}",
        f"         {note(rates)}; spot nodes at {rates['spot_share']:.0%} of on demand",
    ]
    return "\n".join(textwrap.fill(line, 96, subsequent_indent=" " * 9) for line in lines)


def _text(groups: list[tuple]) -> str:
    names = {"MASTER": "primary", "CORE": "core", "TASK": "task (spot)"}
    return " + ".join(f"{count} {names[role]} {kind}" for role, kind, count, _ in groups)
