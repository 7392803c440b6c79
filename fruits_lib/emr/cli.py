"""`fruits emr`: a thin face over the cluster's life."""

import json
import shlex
import tempfile
from datetime import timedelta
from pathlib import Path

import click
from botocore.exceptions import BotoCoreError, ClientError

from fruits_lib import aws, parameters
from fruits_lib.emr import cluster as life
from fruits_lib.emr import console, options, prices, request, staging, steps
from fruits_lib.emr import tunnel as ssh
from fruits_lib.emr.cluster import Cluster
from fruits_lib.emr.console import Clock
from fruits_lib.emr.options import REGION, YES, cluster_options, spec_options
from fruits_lib.emr.plan import make_plan
from fruits_lib.emr.policies import documents
from fruits_lib.emr.spec import ClusterSpec
from fruits_lib.emr.wheelhouse import ARCHITECTURES, build_wheel, build_wheelhouse, upload
from fruits_lib.errors import FruitsError
from fruits_lib.preflight import preflight

LISTED = timedelta(days=7)


class _Group(click.Group):
    """What AWS refuses becomes one line here, once for all commands."""

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except (ClientError, BotoCoreError) as error:
            raise FruitsError(aws.explain(error)) from None


@click.group(cls=_Group)
@click.pass_context
def emr(context: click.Context) -> None:
    """A cluster on Amazon EMR: planned, created, used and ended."""
    context.ensure_object(Clock)


@emr.command()
@spec_options
@click.option("--images", default=100_000, show_default=True, help="Photographs to compute.")
@click.option("--rate", type=float, help="Images per second and vCPU; default: an estimate.")
@click.option("--json", "as_json", is_flag=True, help="Print the request that AWS would get.")
def plan(images: int, rate: float | None, as_json: bool, **asked) -> None:
    """Print what would be created, where, and at what price. Nothing is created.

    The output of --json is the RunJobFlow request, for boto3 and other SDKs; the aws command has
    dropped its `run-job-flow`.
    """
    spec = options.spec(asked)
    wanted = _request(spec)  # a plan that AWS would refuse is none
    click.echo(json.dumps(wanted, indent=2) if as_json else make_plan(spec, images, rate))


@emr.command()
@spec_options
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Default backbone, exported elsewhere to a .tflite file.",
)
@YES
@click.pass_obj
def create(clock: Clock, weights: Path | None, yes: bool, **asked) -> None:
    """Stage code and notebooks, create a cluster, and wait until it is ready."""
    spec = options.spec(asked)
    wanted = _request(spec)
    client, s3 = _clients(spec.region)
    staging.check_bucket(s3, spec)
    console.ask_to_spend(wanted, spec.region, yes)
    with tempfile.TemporaryDirectory() as folder:
        done = staging.stage(s3, spec, build_wheel(Path(folder)), weights)
    click.echo(f"{spec.stage}: {len(done.written)} files written, {len(done.same)} there already")
    for key in done.kept:
        click.echo(f"s3://{spec.bucket}/{key} was edited in JupyterHub: it stays as it is")
    if done.note:
        click.echo(done.note)
    _create(client, s3, wanted, clock)


@emr.command()
@cluster_options
@YES
@click.pass_obj
def clone(clock: Clock, cluster_id: str | None, name: str, region: str, yes: bool) -> None:
    """Create a cluster as the last one was, or the one named; it may have ended.

    Code and notebooks stay as they are staged.
    """
    client, s3 = _clients(region)
    old = _find(client, cluster_id, name, clock, ended=True)
    wanted = life.saved_request(s3, old)
    if wanted is None:
        click.echo(f"the request of {old.id} was not kept: taken from what EMR says of it")
        spec = life.spec_of(client, old)
        wanted = request.build_request(spec, life.configurations(client, old.id))
    request.check_request(wanted)
    click.echo(f"as {old.id} ({old.name}, {old.created:%Y-%m-%d %H:%M})")
    console.ask_to_spend(wanted, region, yes)
    _create(client, s3, wanted, clock)


@emr.command("list")
@REGION
@click.pass_obj
def list_clusters(clock: Clock, region: str) -> None:
    """List the region's clusters, whoever's: all that run, and those of the last week."""
    client, _ = _clients(region)
    moment = clock.now()
    running = life.recent(client, life.ALIVE)
    rows = [*running, *life.recent(client, life.ENDED, moment - LISTED)]
    for it in rows:
        age = console.duration(it.minutes(moment))
        click.echo(
            f"{it.id:<16}{it.state:<24}{age:>9}{console.cost(client, it, moment):>10}  {it.name}"
        )
    click.echo(f"{len(running)} running in {region}" + (", the newest first" if rows else ""))


@emr.command()
@cluster_options
@click.pass_obj
def status(clock: Clock, cluster_id: str | None, name: str, region: str) -> None:
    """Print a cluster's state, nodes, steps and cost so far."""
    client, _ = _clients(region)
    it = _find(client, cluster_id, name, clock, ended=True)
    moment = clock.now()
    reason = f" ({it.reason})" if it.reason else ""
    click.echo(f"{it.id} {it.name} in {region}: {it.state}{reason}")
    click.echo(f"since     {it.created:%Y-%m-%d %H:%M}, {console.duration(it.minutes(moment))}")
    click.echo(
        f"cost      {console.cost(client, it, moment)} so far, see `fruits emr cost {it.id}`"
    )
    click.echo(f"primary   {it.address or 'no address yet'}")
    click.echo(f"logs      {it.logs or 'not kept'}")
    for step in steps.listed(client, it.id):
        click.echo(f"step      {step.id} {step.name} {step.state}")
    if it.state in life.READY:
        click.echo(f"tunnel    {console.command('tunnel', it.id, region)}")
    if it.state in life.ALIVE[:-1]:
        click.echo(f"end       {console.command('terminate', it.id, region)}")


@emr.command()
@cluster_options
@click.option("--key", type=click.Path(path_type=Path), help="Default: ~/.ssh/<key pair>.pem")
@click.option("--hub-port", default=ssh.HUB, show_default=True, help="On this machine.")
@click.option("--history-port", default=ssh.HISTORY, show_default=True, help="On this machine.")
@click.option("--print", "only_print", is_flag=True, help="Print the command, do not run it.")
@click.pass_obj
def tunnel(
    clock: Clock,
    cluster_id: str | None,
    name: str,
    region: str,
    key: Path | None,
    hub_port: int,
    history_port: int,
    only_print: bool,
) -> None:
    """Open an SSH tunnel to JupyterHub and to Spark's history server, until Ctrl-C."""
    client, _ = _clients(region)
    it = _find(client, cluster_id, name, clock)
    if it.state not in life.READY:
        raise FruitsError(f"{it.id} is {it.state}: a tunnel needs one that is RUNNING or WAITING")
    key = key or ssh.key_file(it)
    command = ssh.ssh_command(it, key, hub_port, history_port)
    if only_print:
        click.echo(shlex.join(command))
        return
    ssh.check(key, {"--hub-port": hub_port, "--history-port": history_port})
    click.echo(f"JupyterHub     https://127.0.0.1:{hub_port} (its certificate is its own)")
    click.echo(f"Spark history  http://127.0.0.1:{history_port}")
    click.echo("Ctrl-C closes the tunnel; the cluster stays.")
    try:
        ssh.run(command)
    finally:
        click.echo(console.aftermath(client, it.id))


@emr.command()
@cluster_options
@click.option("--data", required=True, metavar="S3_URI", help="Photographs, label folders below.")
@click.option("--run-dir", required=True, metavar="S3_URI", help="Results, notebooks, report.")
@click.option("-p", "pairs", multiple=True, metavar="NAME=VALUE", help="A notebook's parameter.")
@click.option(
    "-f", "file", type=click.Path(exists=True, dir_okay=False), help="YAML of parameters."
)
@click.option("--overwrite", is_flag=True, help="Replace the results of a finished run.")
@click.option("--and-terminate", is_flag=True, help="End the cluster after it, whatever happened.")
@YES
@click.pass_obj
def run(
    clock: Clock,
    cluster_id: str | None,
    name: str,
    region: str,
    data: str,
    run_dir: str,
    pairs: tuple[str, ...],
    file: str | None,
    overwrite: bool,
    and_terminate: bool,
    yes: bool,
) -> None:
    """Run notebooks 01 to 05 as steps of a cluster, and follow them."""
    client, s3 = _clients(region)
    it = _find(client, cluster_id, name, clock)
    # Before the accounting: a no ends nothing.
    console.ask(f"run the notebooks on {it.id} ({it.state}){' and end it' * and_terminate}?", yes)
    with console.accounting(client, it.id, clock, and_terminate):
        notebooks = parameters.find_notebooks()
        given = {**parameters.given(pairs, file), "data": data, "run_dir": run_dir}
        values = steps.check_run(notebooks, given)
        preflight(data, run_dir, str(values.get("weights", "")))
        ids = steps.add(region, it.id, steps.requests(notebooks, values, overwrite))
        progress = console.Progress()
        for found in steps.watch(client, it.id, ids, clock.sleep):
            moment = clock.now()
            text, state = console.steps_line(found, moment)
            progress.show(f"{text}, {console.cost(client, it, moment)} so far", state)
        progress.end()
        for step in found:
            if step.state != "COMPLETED":
                it = life.describe(client, it.id)
                raise FruitsError(steps.explain_failure(s3, it, step, run_dir))
        click.echo(f"{len(found)} notebooks are done: {run_dir.rstrip('/')}/report.html")
    if not and_terminate:
        click.echo(console.aftermath(client, it.id))


@emr.command()
@cluster_options
@click.option("--step", metavar="ID", help="Print what a step wrote to stderr.")
@click.option("--bootstrap", is_flag=True, help="Print what each node's bootstrap wrote to stderr.")
@click.pass_obj
def logs(
    clock: Clock, cluster_id: str | None, name: str, region: str, step: str | None, bootstrap: bool
) -> None:
    """List a cluster's logs in the bucket, or print one. EMR copies them every five minutes."""
    client, s3 = _clients(region)
    it = _find(client, cluster_id, name, clock, ended=True)
    if not it.logs:
        raise FruitsError(f"{it.id} keeps no logs: it was created without a place for them")
    if step:
        text = steps.log(s3, it, step)
        if text is None:
            raise FruitsError(
                f"{it.logs}/{it.id}/steps/{step}/stderr.gz is not there: EMR copies it within five "
                f"minutes of its end; `fruits emr logs {it.id}` lists the steps"
            )
        click.echo(text, nl=False)
        return
    by_node = steps.bootstrap_logs(s3, it)
    if bootstrap:
        if not by_node:
            raise FruitsError(
                f"{it.logs}/{it.id}/node/ has no bootstrap log: EMR copies it within five minutes"
            )
        for node, text in by_node.items():
            click.echo(f"== {node}\n{text}", nl=False)
        return
    click.echo(f"{it.logs}/{it.id}/")
    for found in steps.listed(client, it.id):
        where = "in the bucket" if steps.log(s3, it, found.id) is not None else "not there yet"
        click.echo(f"{found.id} {found.name:<16}{found.state:<12}stderr {where}")
    click.echo(f"bootstrap logs of {len(by_node)} nodes (--bootstrap prints them)")


@emr.command()
@cluster_options
@click.pass_obj
def cost(clock: Clock, cluster_id: str | None, name: str, region: str) -> None:
    """Print what a cluster has come to, so far or in the end, by its nodes' hours."""
    client, _ = _clients(region)
    it = _find(client, cluster_id, name, clock, ended=True)
    moment = clock.now()
    spent = life.bill(client, it.id, moment)
    for (kind, market), hours in sorted(spent.hours.items()):
        click.echo(f"{hours:8.2f} h  {kind:<14}{market.lower().replace('_', ' ')}")
    when = "in all" if it.ended else "so far"
    click.echo(
        f"{console.dollars(spent.dollars)} {when}, over {console.duration(it.minutes(moment))}"
    )
    click.echo(prices.note())
    if not it.ended:
        click.echo(console.aftermath(client, it.id))


@emr.command("prices")
@REGION
@click.option("--refresh", is_flag=True, help="First ask AWS, and write the package's table.")
def list_prices(region: str, refresh: bool) -> None:
    """Print what plans and costs are computed with, its date and source.

    --refresh takes a minute, costs nothing, and adds the region if it is new.
    """
    if refresh:
        prices.renew(region)
    click.echo(prices.table(region))


@emr.command()
@cluster_options
@click.option("--unprotect", is_flag=True, help="Also when it is protected against termination.")
@YES
@click.pass_obj
def terminate(
    clock: Clock, cluster_id: str | None, name: str, region: str, unprotect: bool, yes: bool
) -> None:
    """End a cluster, and wait until it has ended."""
    client, _ = _clients(region)
    it = _find(client, cluster_id, name, clock)
    if it.state in life.ENDED:
        click.echo(f"{it.id} has ended already: {it.state}")
        return
    if it.protected and not yes and not unprotect:
        unprotect = click.confirm(f"{it.id} is protected against termination: unprotect it?")
    else:
        console.ask(f"end {it.id} ({it.name}, {it.state})?", yes)
    with console.accounting(client, it.id, clock, may_ask=False):
        console.end(client, it.id, clock, unprotect)


@emr.command()
@click.option("--stage", required=True, metavar="S3_URI")
@click.option("--data", required=True, metavar="S3_URI", help="Photographs.")
@click.option("--run-dir", required=True, metavar="S3_URI", help="Run folder, or that of several.")
@REGION
@click.option("--account", default="", help="Twelve digits; default: that of your credentials.")
@click.option("--service-role", default=ClusterSpec.service_role, show_default=True)
@click.option("--instance-profile", default=ClusterSpec.instance_profile, show_default=True)
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a file for each, else print them.",
)
def policies(folder: Path | None, run_dir: str, **asked) -> None:
    """Print the least policies for the operator, the two roles and the buckets."""
    found = documents(run=run_dir, **asked)
    if folder is None:
        click.echo(json.dumps(found, indent=2))
        return
    folder.mkdir(parents=True, exist_ok=True)
    for title, document in found.items():
        file = folder / f"{title}.json"
        file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        click.echo(file)


@emr.command()
@click.option("--to", "stage", required=True, metavar="S3_URI", help="The stage of `create`.")
@click.option(
    "--arch",
    "archs",
    type=click.Choice(ARCHITECTURES),
    multiple=True,
    default=ARCHITECTURES[:1],
    show_default=True,
    help="Of the nodes; aarch64 for Graviton. Can be given twice.",
)
@REGION
def wheelhouse(stage: str, archs: tuple[str, ...], region: str) -> None:
    """Put the wheels that nodes install into the bucket, for nodes without a package index."""
    _, s3 = _clients(region)
    for arch in archs:
        with tempfile.TemporaryDirectory() as folder:
            wheels = build_wheelhouse(Path(folder), arch)
            written = upload(s3, wheels, stage.rstrip("/"), arch)
        where = f"{stage.rstrip('/')}/wheelhouse/{arch}"
        there = len(wheels) - len(written)
        click.echo(f"{where}: {len(written)} wheels written, {there} there already")


def _request(spec: ClusterSpec) -> dict:
    wanted = request.build_request(spec, request.load_configurations(spec))
    request.check_request(wanted)
    return wanted


def _clients(region: str):
    return (aws.client(service, region, life.PATIENT) for service in ("emr", "s3"))


def _find(client, cluster_id: str | None, name: str, clock: Clock, ended: bool = False) -> Cluster:
    if cluster_id:
        return life.describe(client, cluster_id)
    return life.find(client, name, clock.now, ended)


def _create(client, s3, wanted: dict, clock: Clock) -> None:
    """Start a cluster, wait until it is ready, and say how to reach it."""
    region, name = client.meta.region_name, wanted["SecurityConfiguration"]
    if life.ensure_security_configuration(client, name, request.security_configuration()):
        click.echo(f"security configuration {name} made: IMDSv2")
    cluster_id = life.start(region, wanted)
    click.echo(f"{cluster_id} is starting")
    with console.accounting(client, cluster_id, clock):
        life.save_request(s3, cluster_id, wanted)
        it = console.follow(client, cluster_id, (*life.READY, "TERMINATING"), clock)
        if it.state not in life.READY:
            raise FruitsError(
                f"{it.id} failed to start: {it.reason or 'EMR gives no reason'}; see "
                f"`{console.command('logs', it.id, region)} --bootstrap`"
            )
    click.echo(f"JupyterHub     https://127.0.0.1:{ssh.HUB} while this tunnel is open:")
    if it.key_name:
        click.echo("  " + shlex.join(ssh.ssh_command(it, ssh.key_file(it))))
        click.echo(f"  or {console.command('tunnel', it.id, region)}")
    else:
        click.echo("  none: the cluster has no SSH key, create one with --key-name for a tunnel")
    click.echo(console.aftermath(client, it.id))
