"""Notebooks as steps of a cluster: added, followed, and their failures found."""

import gzip
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from fruits_lib import aws, parameters
from fruits_lib.emr.cluster import ENDED, MISSING, ONCE, POLL, Cluster, describe
from fruits_lib.errors import FruitsError
from fruits_lib.storage import bucket_and_key, is_s3

LAUNCHER = "/opt/fruits/bin/fruits"  # bootstrap.sh writes it
DONE = ("COMPLETED", "FAILED", "CANCELLED", "INTERRUPTED")


@dataclass(frozen=True)
class Step:
    """A step as EMR describes it.

    Attributes
    ----------
    id, name, state : str
    started, ended : datetime.datetime or None
    reason : str
        What EMR says of a failure; often empty.
    """

    id: str
    name: str
    state: str
    started: datetime | None
    ended: datetime | None
    reason: str = ""


def check_run(notebooks: list[Path], given: dict) -> dict:
    """Return the checked parameters of a run on a cluster.

    Parameters
    ----------
    notebooks : list of pathlib.Path
    given : dict
        Values by name, `data` and `run_dir` among them.

    Raises
    ------
    FruitsError
        If a parameter is wrong, or names what lies on this machine, where no node sees it.
    """
    for name in ("data", "run_dir"):
        if not is_s3(given[name]):
            raise FruitsError(
                f"{name}={given[name]} is no s3:// URI: a cluster sees no folder of this machine, "
                "give one in a bucket"
            )
    weights = str(given.get("weights", "imagenet"))
    if weights not in ("imagenet", "random") and "://" not in weights:
        raise FruitsError(
            f"weights={weights} lies on this machine: copy it to the bucket by `aws s3 cp` and "
            "give its s3:// URI"
        )
    return parameters.check(notebooks, given)


def requests(notebooks: list[Path], values: dict, overwrite: bool = False) -> list[dict]:
    """Return one step for each notebook, as AddJobFlowSteps takes them.

    The first that fails cancels those after it, and the cluster waits.
    """
    rest = {name: value for name, value in values.items() if name not in ("data", "run_dir")}
    arguments = ["--data", values["data"], "--run-dir", values["run_dir"].rstrip("/")]
    arguments += ["--overwrite"] if overwrite else []
    for name, value in rest.items():
        arguments += ["-p", f"{name}={value}"]
    return [
        {
            "Name": path.stem,
            "ActionOnFailure": "CANCEL_AND_WAIT",
            "HadoopJarStep": {
                "Jar": "command-runner.jar",
                "Args": [LAUNCHER, "run", *arguments, "--only", path.stem.split("_")[0]],
            },
        }
        for path in notebooks
    ]


def add(region: str, cluster_id: str, steps: list[dict]) -> list[str]:
    """Add steps to a cluster, once, and return their ids.

    Raises
    ------
    FruitsError
        If EMR refuses, or its answer is lost.
    """
    try:
        emr = aws.client("emr", region, ONCE)
        return emr.add_job_flow_steps(JobFlowId=cluster_id, Steps=steps)["StepIds"]
    except (BotoCoreError, ClientError) as error:
        raise FruitsError(aws.explain(error)) from None


def listed(emr, cluster_id: str, ids: list[str] | None = None) -> list[Step]:
    """Return steps of a cluster in the order of `ids`, or all of them, the first first."""
    chosen = {"StepIds": ids} if ids else {}
    pages = emr.get_paginator("list_steps").paginate(ClusterId=cluster_id, **chosen)
    found = [_step(entry) for page in pages for entry in page["Steps"]]
    return sorted(found, key=lambda it: ids.index(it.id)) if ids else found[::-1]


def watch(
    emr, cluster_id: str, ids: list[str], sleep: Callable[[float], None] = time.sleep
) -> Iterator[list[Step]]:
    """Yield steps again and again until all are done, or the cluster has ended."""
    while True:
        steps = listed(emr, cluster_id, ids)
        yield steps
        if all(it.state in DONE for it in steps) or describe(emr, cluster_id).state in ENDED:
            return
        sleep(POLL)


def explain_failure(s3, cluster: Cluster, step: Step, run_dir: str) -> str:
    """Return one line that says why a notebook's step failed.

    The notebook's own error comes first, read from the executed notebook in the bucket; then the
    last line of the step's stderr; then what EMR says. A step that did not fail was cut off.
    """
    if step.state != "FAILED":
        why = f"{cluster.id} is {cluster.state}" + f" ({cluster.reason})" * bool(cluster.reason)
        return f"{step.name} did not finish ({step.state}): {step.reason or why}"
    error = notebook_error(s3, f"{run_dir.rstrip('/')}/notebooks/{step.name}.ipynb", step.started)
    if error:
        return f"{step.name}: {error}"
    lines = (log(s3, cluster, step.id) or "").strip().splitlines()
    if lines:
        return f"{step.name}: {lines[-1]}"
    return (
        f"{step.name}: {step.reason or 'EMR gives no reason'} (its log is not in the bucket yet, "
        f"EMR copies every five minutes: `fruits emr logs {cluster.id} --step {step.id}`)"
    )


def notebook_error(s3, uri: str, since: datetime | None) -> str:
    """Return `ename: evalue` of an executed notebook written after a time; empty if it has none."""
    bucket, key = bucket_and_key(uri)
    try:
        answer = s3.get_object(Bucket=bucket, Key=key)
    except ClientError:  # not written, or not ours to read: the log may say more
        return ""
    # An earlier run's notebook tells nothing about this one. S3 keeps whole seconds.
    if since is None or answer["LastModified"] < since.replace(microsecond=0):
        return ""
    for cell in json.load(answer["Body"])["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return " ".join(f"{output['ename']}: {output['evalue']}".split())
    return ""


def log(s3, cluster: Cluster, step_id: str, name: str = "stderr") -> str | None:
    """Return the log of a step, or None while it is not in the bucket."""
    if not cluster.logs:
        return None
    return _read(s3, f"{cluster.logs}/{cluster.id}/steps/{step_id}/{name}.gz")


def bootstrap_logs(s3, cluster: Cluster) -> dict[str, str]:
    """Return the stderr of every node's bootstrap action, by the node's EC2 instance id."""
    if not cluster.logs:
        return {}
    bucket, prefix = bucket_and_key(f"{cluster.logs}/{cluster.id}/node/")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    found = {}
    for page in pages:
        for entry in page.get("Contents", []):
            node, _, rest = entry["Key"].removeprefix(f"{prefix}/").partition("/")
            if rest.startswith("bootstrap-actions/") and rest.endswith("/stderr.gz"):
                found[node] = _read(s3, f"s3://{bucket}/{entry['Key']}")
    return found


def _read(s3, uri: str) -> str | None:
    bucket, key = bucket_and_key(uri)
    try:
        content = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] not in MISSING:
            raise
        return None
    return gzip.decompress(content).decode(errors="replace")


def _step(entry: dict) -> Step:
    status = entry["Status"]
    failure, times = status.get("FailureDetails", {}), status.get("Timeline", {})
    said = [failure.get("Reason"), failure.get("Message")]
    said.append(status.get("StateChangeReason", {}).get("Message"))
    return Step(
        id=entry["Id"],
        name=entry["Name"],
        state=status["State"],
        started=times.get("StartDateTime"),
        ended=times.get("EndDateTime"),
        reason=": ".join(text for text in said if text),
    )
