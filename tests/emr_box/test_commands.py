"""`fruits emr` against the box: its tunnel, its steps, and the history server behind both."""

import json
import ssl
import urllib.request

import settings
from work import read_manifest


def test_a_step_of_the_cluster_runs_on_yarn(box, step):
    answer, run_dir = step
    assert answer.returncode == 0, answer.stderr[-3000:]
    manifest = read_manifest(box, run_dir)
    assert manifest["environment"]["master"] == "yarn"
    assert manifest["load"]["images"] == 123


def test_the_tunnel_leads_to_jupyterhub(tunnel):
    context = ssl._create_unverified_context()  # the certificate is the cluster's own
    url = f"https://127.0.0.1:{tunnel[0]}/hub/api/"
    with urllib.request.urlopen(url, timeout=60, context=context) as answer:
        assert "version" in json.load(answer)


def test_the_tunnel_leads_to_the_history_of_a_finished_application(box, tunnel, step):
    api = f"http://127.0.0.1:{tunnel[1]}/api/v1/applications"

    def finished():
        (found,) = [it for it in ask(f"{api}?status=completed") if it["name"] == "01_load"]
        return found["id"]

    box.wait("the history server to have read the event log", finished)
    stages = ask(f"{api}/{finished()}/stages?status=complete")
    assert sum(it["numCompleteTasks"] for it in stages) > 0
    executors = ask(f"{api}/{finished()}/allexecutors")
    hosts = {it["hostPort"].split(":")[0] for it in executors if it["id"] != "driver"}
    assert hosts
    assert hosts <= set(settings.CORE)  # a session at work beside it may fill the other node


def ask(url: str):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)
