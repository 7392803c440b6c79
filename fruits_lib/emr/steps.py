"""Notebooks as steps of a cluster: requested, added, and their failures explained."""

import gzip
import json
from pathlib import Path

from botocore.exceptions import ClientError

from fruits_lib import aws, parameters
from fruits_lib.emr.cluster import MISSING, ONCE, logs, reason, state, wait
from fruits_lib.errors import FruitsError
from fruits_lib.storage import bucket_and_key, is_s3

LAUNCHER = "/opt/fruits/bin/fruits"  # bootstrap.sh writes it


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


def requests(notebooks: list[Path], values: dict, overwrite: bool = False) -> list[dict]:
    """Return one step per notebook, with its own parameters. One that fails cancels the next."""
    command = [LAUNCHER, "run", "--run-dir", values["run_dir"].rstrip("/")]
    command += ["--overwrite"] if overwrite or values.get("overwrite") else []
    found = []
    for path in notebooks:
        known = parameters.declared(path)
        arguments = ["--data", values["data"]] if "data" in known else []
        for name in sorted(values.keys() & known.keys() - {"data", "run_dir", "overwrite"}):
            arguments += ["-p", f"{name}={values[name]}"]
        # From the last one on is that one alone, which is skipped if photographs have no labels.
        which = "--from" if path == notebooks[-1] else "--only"
        arguments += [which, path.stem.partition("_")[0]]
        found.append(request(path.stem, [*command, *arguments]))
    return found


def request(name: str, command: list[str]) -> dict:
    """Return a step that runs a command on the primary node, as AddJobFlowSteps takes it."""
    step = {"Jar": "command-runner.jar", "Args": command}
    return {"Name": name, "ActionOnFailure": "CANCEL_AND_WAIT", "HadoopJarStep": step}


def add(region: str, cluster_id: str, steps: list[dict]) -> list[str]:
    """Add steps to a cluster, once, and return their ids."""
    emr = aws.client("emr", region, ONCE)
    return emr.add_job_flow_steps(JobFlowId=cluster_id, Steps=steps)["StepIds"]


def listed(emr, cluster_id: str) -> list[dict]:
    """Return a cluster's steps in EMR's short description, oldest first."""
    pages = emr.get_paginator("list_steps").paginate(ClusterId=cluster_id)
    return [step for page in pages for step in page["Steps"]][::-1]


def follow(emr, s3, cluster_id: str, step_id: str, run_dir: str = "") -> dict:
    """Wait for a step and return it; raise FruitsError with the reason if it did not complete."""
    wait(emr, "step_ended", ClusterId=cluster_id, StepId=step_id)
    step = emr.describe_step(ClusterId=cluster_id, StepId=step_id)["Step"]
    if state(step) != "COMPLETED":
        cluster = emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
        raise FruitsError(f"{step['Name']}: {explain_failure(s3, cluster, step, run_dir)}")
    return step


def explain_failure(s3, cluster: dict, step: dict, run_dir: str) -> str:
    """Return why a step did not complete, in one line.

    The notebook's own error comes first, read from the executed notebook in the bucket; then the
    last line of the step's stderr; then what EMR says.
    """
    failure = step["Status"].get("FailureDetails", {})
    said = ": ".join(failure[key] for key in ("Reason", "Message") if failure.get(key))
    if state(step) != "FAILED":
        return f"{state(step)}, {cluster['Id']} is {state(cluster)}: {said or reason(cluster)}"
    if run_dir and (error := _notebook_error(s3, step, run_dir)):
        return error
    if lines := (log(s3, cluster, step["Id"]) or "").strip().splitlines():
        return lines[-1]
    return (
        f"{said or 'EMR gives no reason'} (its log is not in the bucket yet, EMR copies every five "
        f"minutes: `fruits emr logs {cluster['Id']} --step {step['Id']}`)"
    )


def _notebook_error(s3, step: dict, run_dir: str) -> str:
    """Return `ename: evalue` of the notebook that a step executed; empty if it has none."""
    bucket, key = bucket_and_key(run_dir)
    try:
        answer = s3.get_object(Bucket=bucket, Key=f"{key}/notebooks/{step['Name']}.ipynb")
    except ClientError:  # not written, or not readable for us: the log may say more
        return ""
    # An earlier run's notebook says nothing about this one. S3 keeps whole seconds.
    started = step["Status"].get("Timeline", {}).get("StartDateTime")
    if started is None or answer["LastModified"] < started.replace(microsecond=0):
        return ""
    cells = json.load(answer["Body"])["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
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
