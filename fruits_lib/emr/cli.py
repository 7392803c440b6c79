"""`fruits emr`: clusters on Amazon EMR, from a plan to the end."""

import functools
import json
import shlex
import subprocess
import tempfile
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import click
from botocore.exceptions import BotoCoreError, ClientError

from fruits_lib import aws, parameters, recipes, storage
from fruits_lib.emr import cluster as clusters
from fruits_lib.emr import console, prices, staging, steps
from fruits_lib.emr import spec as specs
from fruits_lib.emr.cluster import state
from fruits_lib.emr.spec import ClusterSpec
from fruits_lib.errors import FruitsError


class _Group(click.Group):
    """Turns every refusal of AWS into one line."""

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except (ClientError, BotoCoreError) as error:
            raise FruitsError(aws.explain(error)) from None


@click.group(cls=_Group)
def emr() -> None:
    """Clusters on Amazon EMR: plan, create, use and terminate them."""


FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
REGION = click.option(
    "--region",
    default=lambda: aws.environment_region() or ClusterSpec.region,
    help="Default: AWS_REGION, else eu-west-1.",
)
YES = click.option("--yes", is_flag=True, help="Do not ask.")
NAME = click.option("--name", default=specs.default_name, help="Default: fruits-<user>.")
STACK = click.option("--stack", help="CloudFormation stack made from infrastructure.yaml.")
WEIGHTS = click.option("--weights", type=FILE, help="Default backbone, exported to a .tflite file.")
# An option for each field of ClusterSpec; what a stack can give, and the key, have no default.
FIELDS = {field.name: field for field in fields(ClusterSpec) if field.metadata}
OPTIONS = {
    name: click.option(
        f"--{name.replace('_', '-')}",
        default=None if field.default == "" else field.default,
        show_default=bool(field.default),
        help=field.metadata["help"] + " Default: the stack's." * bool(field.metadata["output"]),
    )
    for name, field in FIELDS.items()
}


def _with(*options):
    """Return a decorator that adds options to a command."""
    return lambda command: functools.reduce(lambda made, add: add(made), options[::-1], command)


TAGS = click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="More tags.")
spec_options = _with(STACK, NAME, REGION, *OPTIONS.values(), TAGS)  # what `_spec` takes


def _spec(stack: str | None, tags: tuple[str, ...] = (), **asked) -> ClusterSpec:
    """Return the specification asked for; explicit options win over the stack's outputs."""
    for name, value in asked.items():
        if value == "":
            option = f"--{name.replace('_', '-')}"
            raise FruitsError(f"{option} is empty: give a value, or leave the option out")
    outputs = specs.stack_outputs(stack, asked["region"]) if stack else {}
    for name, value in asked.items():
        if value is None:
            asked[name] = outputs.get(FIELDS[name].metadata["output"], "")
    asked["stage"] = asked["stage"].rstrip("/")
    return ClusterSpec(tags=dict(tag.partition("=")[::2] for tag in tags), **asked)


def on_cluster(ended: bool = False):
    """Add what names an existing cluster, and pass EMR's and S3's client and its description."""

    def decorate(function):
        @functools.wraps(function)
        def call(cluster_id: str | None, name: str, region: str, **options):
            emr, s3 = _clients(region)
            if cluster_id:
                cluster = emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
            else:
                cluster = clusters.find(emr, name, ended)
            return function(emr, s3, cluster, **options)

        return _with(click.argument("cluster_id", required=False), NAME, REGION)(call)

    return decorate


def _clients(region: str):
    return (aws.client(service, region, aws.RETRIES) for service in ("emr", "s3"))


@emr.command()
@spec_options
@click.option("--images", default=100_000, show_default=True, help="Photographs to compute.")
@click.option("--rate", default=console.RATE, help="Images per second and vCPU.")
@click.option("--json", "as_json", is_flag=True, help="Print the request that AWS would get.")
def plan(images: int, rate: float, as_json: bool, **asked) -> None:
    """Print what would be created, where, and at what price. Nothing is created."""
    spec = _spec(**asked)
    request = json.dumps(specs.build_request(spec), indent=2) if as_json else ""
    click.echo(request or console.plan(spec, images, rate))


@emr.command()
@spec_options
@WEIGHTS
@YES
def create(weights: Path | None, yes: bool, **asked) -> None:
    """Stage code and notebooks, create a cluster, and wait until it is ready."""
    spec = _spec(**asked)
    for name in ("subnet", "service_role", "instance_profile", "security_configuration"):
        if not getattr(spec, name):
            raise FruitsError(f"--{name.replace('_', '-')} is missing: give it, or --stack NAME")
    request = specs.build_request(spec)
    emr, s3 = _clients(spec.region)
    staging.check_bucket(s3, spec.stage)
    console.ask_to_spend(emr, request, yes)
    _stage(s3, spec, weights)
    _create(emr, request)


@emr.command()
@spec_options
@WEIGHTS
def stage(weights: Path | None, **asked) -> None:
    """Stage code, notebooks and wheels for a cluster that you create in EMR's console."""
    spec = _spec(**asked)
    specs.check_stage(spec.stage)
    _, s3 = _clients(spec.region)
    staging.check_bucket(s3, spec.stage)
    _stage(s3, spec, weights)


@emr.command()
@on_cluster(ended=True)
@YES
def clone(emr, s3, cluster: dict, yes: bool) -> None:
    """Create a cluster like the last one, or the one named; code stays as it is staged."""
    request = clusters.saved_request(cluster)
    created = cluster["Status"]["Timeline"]["CreationDateTime"]
    click.echo(f"like {cluster['Id']} ({cluster['Name']}, {created:%Y-%m-%d %H:%M})")
    console.ask_to_spend(emr, request, yes)
    _create(emr, request)


def _stage(s3, spec: ClusterSpec, weights: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arch = prices.instance_type(spec.core, spec.region).arch
        wheels = staging.build_wheels(Path(folder), arch)
        for line in staging.stage(s3, spec.stage, wheels, weights):
            click.echo(line)


def _create(emr, request: dict) -> None:
    """Start a cluster, wait until it is ready, and say how to reach it."""
    cluster_id = clusters.start(emr.meta.region_name, request)
    click.echo(f"{cluster_id} is starting, which takes 10 to 15 minutes")
    with console.reporting_cluster(emr, cluster_id):
        uri = clusters.request_uri(request["LogUri"], cluster_id)
        storage.write_text(uri, json.dumps(request, indent=2))
        clusters.wait(emr, "cluster_running", ClusterId=cluster_id)
        cluster = emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
        if state(cluster) not in clusters.READY:
            raise FruitsError(
                f"{cluster_id} failed to start: {clusters.reason(cluster)}; see "
                f"`{console.command('logs', emr, cluster_id)} --bootstrap`"
            )
        took, spent = console.duration(clusters.minutes(cluster)), console.cost(emr, cluster)
        click.echo(f"{cluster_id} is ready after {took} and {spent}; JupyterHub:")
        click.echo(f"  {console.command('tunnel', emr, cluster_id)}")


@emr.command()
@on_cluster()
@STACK
@click.option("--data", metavar="S3_URI", help="Photographs. Default: the stack's.")
@click.option("--run-dir", metavar="S3_URI", help="Results. Default: a new folder of the stack's.")
@click.option("-p", "pairs", multiple=True, metavar="NAME=VALUE", help="A notebook's parameter.")
@click.option("-f", "file", type=FILE, help="YAML of parameters.")
@click.option("--recipe", metavar="NAME", help="A study's YAML: see `fruits recipes`.")
@click.option("--overwrite", is_flag=True, help="Replace the results of a finished run.")
@click.option("--and-terminate", is_flag=True, help="Terminate the cluster afterwards, always.")
@YES
def run(
    emr, s3, cluster, stack, data, run_dir, pairs, file, recipe, overwrite, and_terminate, yes
) -> None:
    """Run the notebooks as a step of a cluster, and wait for them."""
    file = recipes.parameters_file(file, recipe)
    cluster_id, region = cluster["Id"], emr.meta.region_name
    outputs = specs.stack_outputs(stack, region) if stack else {}
    if outputs:
        data = data or outputs["Data"]
        run_dir = run_dir or f"{outputs['Runs']}/{clusters.now():%Y-%m-%d-%H%M}"
    if not (data and run_dir):
        raise FruitsError("--data or --run-dir is missing: give both, or --stack NAME")
    end = " and terminate it" if and_terminate else ""
    if not yes:
        click.confirm(f"run the notebooks on {cluster_id}{end}?", abort=True)
    with console.reporting_cluster(emr, cluster_id, and_terminate):
        notebooks = parameters.find_notebooks()
        given = parameters.given(pairs, file, {"data": data, "run_dir": run_dir})
        request = steps.run_request(steps.check_run(notebooks, given), overwrite)
        step_id = steps.add(region, cluster_id, request)
        for name, minutes in steps.follow(emr, s3, cluster_id, step_id, run_dir):
            took, spent = console.duration(minutes), console.cost(emr, cluster)
            click.echo(f"{name:<16}{took:>12}{spent:>10} so far")
        click.echo(f"the notebooks are done: {run_dir.rstrip('/')}/report.html")


@emr.command()
@on_cluster(ended=True)
def status(emr, s3, cluster: dict) -> None:
    """Print a cluster's state, steps and cost so far."""
    created = cluster["Status"]["Timeline"]["CreationDateTime"]
    age, spent = console.duration(clusters.minutes(cluster)), console.cost(emr, cluster)
    click.echo(f"{cluster['Id']} {cluster['Name']} {state(cluster)}: {clusters.reason(cluster)}")
    click.echo(f"since    {created:%Y-%m-%d %H:%M}, {age}, {spent}")
    click.echo(f"primary  {cluster.get('MasterPublicDnsName') or 'no address yet'}")
    for step in steps.listed(emr, cluster["Id"]):
        click.echo(f"step     {step['Id']} {step['Name']} {state(step)}")
    click.echo(console.still_running(emr, cluster["Id"]))


@emr.command()
@on_cluster(ended=True)
@click.option("--step", metavar="ID", help="Print what a step wrote to stderr.")
@click.option("--bootstrap", is_flag=True, help="Print what bootstrap.sh wrote to it on each node.")
def logs(emr, s3, cluster: dict, step: str | None, bootstrap: bool) -> None:
    """List a cluster's logs in the bucket, or print some. EMR copies them every five minutes."""
    where, text = clusters.logs(cluster), ""
    if step:
        text = steps.log(s3, cluster, step)
    elif bootstrap:
        for node, said in steps.bootstrap_logs(s3, cluster).items():
            text += f"== {node}\n{said}"
    else:
        found = steps.listed(emr, cluster["Id"])
        lines = [f"--step {one['Id']}  {one['Name']} {state(one)}" for one in found]
        text = "\n".join([f"{where}/", *lines, "--bootstrap  bootstrap.sh on every node\n"])
    if not text:
        wanted = f"steps/{step}" if step else "node"
        raise FruitsError(f"{where}/{wanted}/ has no stderr.gz: EMR copies logs every five minutes")
    click.echo(text, nl=False)


@emr.command()
@on_cluster(ended=True)
def cost(emr, s3, cluster: dict) -> None:
    """Print what a cluster has cost so far, by its nodes' hours."""
    hours, amount = clusters.bill(emr, cluster["Id"])
    for (kind, market), number in sorted(hours.items()):
        click.echo(f"{number:8.2f} h  {kind:<14}{market.lower().replace('_', ' ')}")
    click.echo(f"{console.dollars(amount)} over {console.duration(clusters.minutes(cluster))}")
    click.echo(prices.note(prices.table_prices(emr.meta.region_name)))
    click.echo(console.still_running(emr, cluster["Id"]))


@emr.command("list")
@REGION
def list_clusters(region: str) -> None:
    """List the region's clusters, whoever's: all that run, and those of the last week."""
    emr, _ = _clients(region)
    running = clusters.recent(emr, (*clusters.ALIVE, "TERMINATING"))
    week = clusters.now() - timedelta(days=7)
    for one in [*running, *clusters.recent(emr, clusters.ENDED, CreatedAfter=week)]:
        age, spent = console.duration(clusters.minutes(one)), console.cost(emr, one)
        click.echo(f"{one['Id']:<16}{state(one):<24}{age:>11}{spent:>10}  {one['Name']}")
    click.echo(f"{len(running)} running in {region}")


@emr.command()
@on_cluster()
@click.option("--unprotect", is_flag=True, help="Also if it is protected against termination.")
@YES
def terminate(emr, s3, cluster: dict, unprotect: bool, yes: bool) -> None:
    """Terminate a cluster, and wait until it has ended."""
    cluster_id = cluster["Id"]
    if not yes:
        click.confirm(f"end {cluster_id} ({cluster['Name']}, {state(cluster)})?", abort=True)
    with console.reporting_cluster(emr, cluster_id, may_ask=False):
        if unprotect:
            emr.set_termination_protection(JobFlowIds=[cluster_id], TerminationProtected=False)
        console.end(emr, cluster_id)


@emr.command()
@on_cluster()
@click.option("--key", type=click.Path(path_type=Path), help="Default: ~/.ssh/<key pair>.pem")
@click.option("--hub-port", default=console.HUB, show_default=True, help="On this machine.")
@click.option("--history-port", default=console.HISTORY, show_default=True, help="The same.")
@click.option("--print", "only_print", is_flag=True, help="Print the command, do not run it.")
def tunnel(emr, s3, cluster: dict, key, hub_port: int, history_port: int, only_print: bool) -> None:
    """Open an SSH tunnel to JupyterHub and to Spark's history server, until Ctrl-C."""
    command = console.ssh_command(cluster, key, hub_port, history_port)
    if only_print:
        click.echo(shlex.join(command))
        return
    click.echo(f"JupyterHub     https://127.0.0.1:{hub_port}/user/jovyan/lab")
    click.echo(f"Spark history  http://127.0.0.1:{history_port}")
    click.echo("Ctrl-C closes the tunnel; the cluster stays.")
    try:
        code = subprocess.run(command).returncode
    except KeyboardInterrupt:
        code = 0
    click.echo(console.still_running(emr, cluster["Id"]))
    if code:
        raise FruitsError(f"ssh ended with {code}: see its message above, and docs/emr.md")


@emr.command()
@on_cluster()
def doctor(emr, s3, cluster: dict) -> None:
    """Write how a running cluster is set up to the bucket, as one JSON, by a step."""
    logs = clusters.logs(cluster)
    uri, script = f"{logs}/doctor.json", f"{logs.removesuffix('logs/' + cluster['Id'])}doctor.py"
    with console.reporting_cluster(emr, cluster["Id"]):
        request = steps.request("doctor", ["spark-submit", script, uri])
        step_id = steps.add(emr.meta.region_name, cluster["Id"], request)
        for _ in steps.follow(emr, s3, cluster["Id"], step_id):
            pass  # a step of another kind executes no notebook
        click.echo(f"{uri} names buckets and nodes: read it before you send it")
