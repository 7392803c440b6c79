"""Steps of a cluster: requested, added, followed, and their failures explained."""

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

from botocore.exceptions import ClientError

from fruits_lib import aws, parameters
from fruits_lib.emr.cluster import MISSING, ONCE, POLL, logs, reason, state
from fruits_lib.errors import FruitsError
from fruits_lib.storage import bucket_and_key, is_s3

LAUNCHER = "/opt/fruits/bin/fruits"  # bootstrap.sh writes it
STEP_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "INTERRUPTED")


def check_run(notebooks: list[Path], given: dict) -> dict:
    """Return the checked parameters of a run, `data` and `run_dir` among them.

    Raises
    ------
    FruitsError
        If a parameter is wrong, or names something on this machine, which no node can read.
    """
    places = {name: str(given.get(name, "imagenet")) for name in ("data", "run_dir", "weights")}
    for name, uri in places.items():
        if not is_s3(uri) and (name != "weights" or uri not in ("imagenet", "random")):
            copy = "nodes cannot read this machine, copy it to a bucket and give that URI"
            raise FruitsError(f"{name}={uri} is not an s3:// URI: {copy}")
    return parameters.check_given(notebooks, given)


def run_request(values: dict, overwrite: bool = False) -> dict:
    """Return the step that runs all notebooks: one process, one application of YARN."""
    command = [LAUNCHER, "run", "--data", values["data"], "--run-dir", values["run_dir"]]
    for name in sorted(values.keys() - {"data", "run_dir", "overwrite"}):
        command += ["-p", f"{name}={values[name]}"]
    command += ["--overwrite"] if overwrite or values.get("overwrite") else []
    return request("fruits run", command)


def request(name: str, command: list[str]) -> dict:
    """Return a step that runs a command on the primary node, as AddJobFlowSteps takes it."""
    step = {"Jar": "command-runner.jar", "Args": command}
    return {"Name": name, "ActionOnFailure": "CANCEL_AND_WAIT", "HadoopJarStep": step}


def add(region: str, cluster_id: str, step: dict) -> str:
    """Add a step to a cluster, once, and return its id."""
    emr = aws.client("emr", region, ONCE)
    return emr.add_job_flow_steps(JobFlowId=cluster_id, Steps=[step])["StepIds"][0]


def listed(emr, cluster_id: str) -> list[dict]:
    """Return a cluster's steps in EMR's short description, oldest first."""
    pages = emr.get_paginator("list_steps").paginate(ClusterId=cluster_id)
    return [step for page in pages for step in page["Steps"]][::-1]


def follow(emr, s3, cluster_id: str, step_id: str, run_dir: str = "") -> Iterator[tuple]:
    """Yield name and minutes of each notebook that a step has executed, until the step has ended.

    Raises
    ------
    FruitsError
        If the step did not complete. The error of its notebook comes first; then the last line of
        its stderr; then what EMR says.
    """
    executed, error = set(), ""
    while True:
        step = emr.describe_step(ClusterId=cluster_id, StepId=step_id)["Step"]
        for name, notebook in _executed(s3, step, run_dir, executed):
            executed.add(name)
            if said := _error(notebook):
                error = f"{name}: {said}"
            else:
                yield name, notebook["metadata"]["papermill"]["duration"] / 60
        if state(step) in STEP_ENDED:
            break
        time.sleep(POLL)
    if state(step) != "COMPLETED":
        cluster = emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
        raise FruitsError(error or f"{step['Name']}: {_explain_failure(s3, cluster, step)}")


def _explain_failure(s3, cluster: dict, step: dict) -> str:
    failure = step["Status"].get("FailureDetails", {})
    said = ": ".join(failure[key] for key in ("Reason", "Message") if failure.get(key))
    if state(step) != "FAILED":
        return f"{state(step)}, {cluster['Id']} is {state(cluster)}: {said or reason(cluster)}"
    if lines := (log(s3, cluster, step["Id"]) or "").strip().splitlines():
        return lines[-1]
    return (
        f"{said or 'EMR gives no reason'} (its log is not in the bucket yet, EMR copies every five "
        f"minutes: `fruits emr logs {cluster['Id']} --step {step['Id']}`)"
    )


def _executed(s3, step: dict, run_dir: str, known: set[str]) -> Iterator[tuple[str, dict]]:
    """Yield name and content of the notebooks that a step has executed, but those `known`."""
    started = step["Status"].get("Timeline", {}).get("StartDateTime")
    if not (run_dir and started):
        return
    bucket, key = bucket_and_key(run_dir)
    try:
        found = s3.list_objects_v2(Bucket=bucket, Prefix=f"{key}/notebooks/").get("Contents", [])
        for one in sorted(found, key=lambda one: one["Key"]):
            name = Path(one["Key"]).stem
            # An earlier run's notebook says nothing about this one. S3 keeps whole seconds.
            if name in known or one["LastModified"] < started.replace(microsecond=0):
                continue
            notebook = json.load(s3.get_object(Bucket=bucket, Key=one["Key"])["Body"])
            if notebook["metadata"].get("papermill", {}).get("end_time"):  # else it is at work
                yield name, notebook
    except ClientError:  # not readable for us: the step's end and its log say more
        return


def _error(notebook: dict) -> str:
    """Return `ename: evalue` of the cell that stopped a notebook; empty without one."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    errors = [output for output in outputs if output["output_type"] == "error"]
    return " ".join(f"{errors[0]['ename']}: {errors[0]['evalue']}".split()) if errors else ""


def log(s3, cluster: dict, step_id: str) -> str | None:
    """Return what a step wrote to stderr, or None while it is not in the bucket."""
    try:
        return _read(s3, *bucket_and_key(f"{logs(cluster)}/steps/{step_id}/stderr.gz"))
    except ClientError as error:
        if error.response["Error"]["Code"] not in MISSING:
            raise
        return None


def bootstrap_logs(s3, cluster: dict) -> dict[str, str]:
    """Return what bootstrap.sh wrote to stderr on every node, by the node's EC2 instance id."""
    bucket, prefix = bucket_and_key(f"{logs(cluster)}/node")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return {
        key.removeprefix(f"{prefix}/").split("/")[0]: _read(s3, bucket, key)
        for key in keys
        if "/bootstrap-actions/" in key and key.endswith("/stderr.gz")
    }


def _read(s3, bucket: str, key: str) -> str:
    content = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    return gzip.decompress(content).decode(errors="replace")
