"""What the terminal shows and asks while a cluster costs money."""

import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import click
from botocore.exceptions import BotoCoreError, ClientError

from fruits_lib import aws
from fruits_lib.emr import cluster as life
from fruits_lib.emr import prices
from fruits_lib.emr.cluster import Cluster
from fruits_lib.emr.steps import Step
from fruits_lib.errors import FruitsError

INTERRUPTED = 130  # the shell's code for Ctrl-C
REFUSALS = (FruitsError, ClientError, BotoCoreError)


@dataclass(frozen=True)
class Clock:
    """Time, so that a test can bring its own."""

    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = life.now


class Progress:
    """A line that is rewritten on a terminal; elsewhere a new one whenever the state changes."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._state = ""

    def show(self, text: str, state: str) -> None:
        if self._terminal:
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
        elif state != self._state:
            click.echo(text, err=True)
        self._state = state

    def end(self) -> None:
        if self._terminal:
            click.echo(err=True)


def ask(question: str, yes: bool) -> None:
    """Ask, unless the answer was given; a no stops the command."""
    if not yes:
        click.confirm(question, abort=True)


def ask_to_spend(request: dict, region: str, yes: bool) -> None:
    """Say what a cluster would be and cost, and ask whether to create it."""
    nodes = " + ".join(
        f"{it['InstanceCount']} {it['InstanceType']}" + " (spot)" * (it["Market"] == "SPOT")
        for it in request["Instances"]["InstanceGroups"]
    )
    idle = request["AutoTerminationPolicy"]["IdleTimeout"] // 60
    click.echo(f"{nodes} in {region}: {dollars(prices.hourly_price(request, region))} an hour")
    click.echo(f"ends itself after {idle} minutes without work; {prices.note()}")
    ask("create it?", yes)


def follow(client, cluster_id: str, until: tuple[str, ...], clock: Clock) -> Cluster:
    """Show a cluster's progress until it is in one of the states, or has ended."""
    progress = Progress()
    for it in life.watch(client, cluster_id, until, clock.sleep):
        moment = clock.now()
        spent = cost(client, it, moment)
        progress.show(f"{it.state}, {duration(it.minutes(moment))}, {spent} so far", it.state)
    progress.end()
    return it


def end(client, cluster_id: str, clock: Clock, unprotect: bool = False) -> None:
    """End a cluster, and wait until it has ended."""
    life.terminate(client, life.describe(client, cluster_id), unprotect)
    it = follow(client, cluster_id, (), clock)
    click.echo(f"{it.id} has ended: {it.state}, {cost(client, it, clock.now())} in all")


@contextmanager
def accounting(
    client, cluster_id: str, clock: Clock, terminate: bool = False, may_ask: bool = True
):
    """Leave no cluster behind unsaid: whatever ends the block, end the cluster or say that it runs.

    After Ctrl-C, ask whether to end it, unless that is wanted anyway, or asked of EMR already.
    """
    failure, interrupted = "", False
    try:
        yield
    except KeyboardInterrupt:
        failure, interrupted = "interrupted", True
        click.echo(err=True)
        terminate = terminate or (may_ask and _wants_the_end(cluster_id))
    except REFUSALS as error:
        failure = _line(error)
    except BaseException:  # a mistake of ours must not leave a bill either
        if terminate:
            end(client, cluster_id, clock)
        raise
    if terminate:
        try:
            end(client, cluster_id, clock)
        except (*REFUSALS, KeyboardInterrupt) as error:
            interrupted = interrupted or isinstance(error, KeyboardInterrupt)
            failure = "; ".join(filter(None, [failure, _line(error)])) or "interrupted"
    if failure:
        line = f"{failure}; {aftermath(client, cluster_id)}"
        if not interrupted:
            raise FruitsError(line)
        click.echo(f"fruits: {line}", err=True)
        click.get_current_context().exit(INTERRUPTED)


def aftermath(client, cluster_id: str) -> str:
    """Return one line that says whether a cluster still costs, and how to end it."""
    region = client.meta.region_name
    ends = f"`{command('terminate', cluster_id, region)}` ends it"
    try:
        state = life.describe(client, cluster_id).state
    except REFUSALS as error:
        return f"whether {cluster_id} still runs is unknown ({_line(error)}): {ends}"
    if state in life.ENDED:
        return f"{cluster_id} has ended: nothing runs any more"
    if state == "TERMINATING":
        return f"{cluster_id} is ending: `{command('status', cluster_id, region)}`"
    return f"{cluster_id} still runs ({state}): {ends}"


def command(name: str, cluster_id: str, region: str) -> str:
    """Return a command on a cluster, to be copied."""
    return f"fruits emr {name} {cluster_id} --region {region}"


def steps_line(found: list[Step], moment: datetime) -> tuple[str, str]:
    """Return how far the steps are, and the same without the time."""
    done = sum(step.state == "COMPLETED" for step in found)
    now = next((step for step in found if step.state != "COMPLETED"), found[-1])
    state = f"{done} of {len(found)} notebooks done" + (
        f", {now.name} {now.state}" if done < len(found) else ""
    )
    if now.state == "RUNNING" and now.started:
        return f"{state} for {duration((moment - now.started).total_seconds() / 60)}", state
    return state, state


def cost(client, it: Cluster, moment: datetime) -> str:
    """Return a cluster's dollars at a time, or `$?`."""
    try:
        return dollars(life.bill(client, it.id, moment).dollars)
    except ClientError:  # another's cluster: its nodes are not ours to list
        return dollars(None)


def dollars(amount: float | None) -> str:
    return "$?" if amount is None else f"${amount:,.2f}"


def duration(minutes: float) -> str:
    hours, rest = divmod(int(minutes), 60)
    return f"{hours} h {rest:02} min" if hours else f"{rest} min"


def _wants_the_end(cluster_id: str) -> bool:
    try:
        return click.confirm(f"end {cluster_id}?", err=True)
    except click.Abort:  # a second Ctrl-C, or nobody there to answer
        return False


def _line(error: BaseException) -> str:
    if isinstance(error, ClientError | BotoCoreError):
        return aws.explain(error)
    return str(error)
