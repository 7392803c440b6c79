"""`fruits emr` against the box: its steps, its tunnel, and the history server behind both."""

import json
import ssl
import sys
import urllib.request

import settings
from box import BUCKET
from servers import KEY, REGION
from work import read_manifest

from fruits_lib.storage import bucket_and_key


def test_a_step_of_the_cluster_runs_on_yarn(box, step):
    answer, run_dir = step
    assert answer.returncode == 0, answer.stderr[-3000:]
    manifest = read_manifest(box, run_dir)
    assert manifest["environment"]["master"] == "yarn"
    assert manifest["load"]["images"] == 123
    assert manifest["verify"]["passed"] == len(manifest["verify"]["checks"])
    assert "classify" in manifest


def test_the_notebooks_of_a_step_are_one_application(box, step):
    found = [app for app in box.yarn("cluster/apps")["app"] if app["name"] == "fruits steps"]
    assert [app["finalStatus"] for app in found] == ["SUCCEEDED"]


def test_the_report_in_the_bucket_opens_in_a_browser(box, step):
    place = {"Bucket": BUCKET, "Key": f"{bucket_and_key(step[1])[1]}/report.html"}
    assert box.bucket.client.head_object(**place)["ContentType"].startswith("text/html")


def test_doctor_finds_the_region_and_the_sizes_that_were_asked_for(box, errands):
    answer = errands["doctor"].result()
    assert answer.returncode == 0, answer.stderr[-3000:]
    text = box.bucket.get("doctor.json").decode()
    found = json.loads(text)
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for process in (found["driver"], *found["executors"]):
        assert process.startswith(f"Python {python}")
        assert process.endswith(f"/opt/fruits/venv/bin/python, AWS_REGION={REGION}")
    assert found["spark"]["spark.yarn.heterogeneousExecutors.enabled"] == "false"
    assert found["yarn"]["yarn.nodemanager.resource.memory-mb"] == "12288"
    sizes = {one["totalMemoryNeededMB"] for node in found["containers"] for one in listed(node)}
    assert 8192 in sizes  # of executors
    assert KEY["AWS_SECRET_ACCESS_KEY"] not in text


def listed(node: dict) -> list[dict]:
    """Return the containers in a NodeManager's answer, which has none, one or a list."""
    found = (node["containers"] or {}).get("container", [])
    return found if isinstance(found, list) else [found]


def test_the_tunnel_leads_to_jupyterhub(tunnel):
    context = ssl._create_unverified_context()  # the cluster signs its certificate itself
    url = f"https://127.0.0.1:{tunnel[0]}/hub/api/"
    with urllib.request.urlopen(url, timeout=60, context=context) as answer:
        assert "version" in json.load(answer)


def test_the_tunnel_leads_to_the_history_of_a_finished_application(box, tunnel, step):
    api = f"http://127.0.0.1:{tunnel[1]}/api/v1/applications"

    def finished():
        (found,) = [app for app in ask(f"{api}?status=completed") if app["name"] == "fruits steps"]
        return found["id"]

    box.wait("the history server to have read the event log", finished)
    stages = ask(f"{api}/{finished()}/stages?status=complete")
    assert sum(stage["numCompleteTasks"] for stage in stages) > 0
    executors = ask(f"{api}/{finished()}/allexecutors")
    hosts = {one["hostPort"].split(":")[0] for one in executors if one["id"] != "driver"}
    assert hosts
    assert hosts <= set(settings.CORE)  # another session may fill one of them


def ask(url: str):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)
