"""Runs that lose sessions, drivers, nodes and the bucket while they work."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from box import BUCKET
from faults import (
    ACTIVE,
    end_session,
    finished_batches,
    kill_driver,
    leave_alone,
    lose_node,
    node_report,
    notebook_applications,
    notebook_sessions,
    paths,
    strike,
    take_s3_away,
)
from work import given, papermill, read_manifest

BATCH = 4  # images: many batches, for a session that ends still computes some


@pytest.fixture(scope="module")
def alone(box):
    """Future of `leave_alone`, which takes two minutes, beside the other tests."""
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(leave_alone, box)


@pytest.fixture(scope="module")
def quick(box, data, tiny):
    """Parameters of a quick run."""
    box.bucket.put("weights/tiny.tflite", tiny.read_bytes())
    weights = f"s3://{BUCKET}/weights/tiny.tflite"
    return {"data": data, "weights": weights, "input_size": 32, "batch_size": BATCH}


@pytest.fixture(scope="module")
def featurize(box, quick):
    """A function that runs 02_featurize by papermill and the kernel PySpark."""

    def run(run_dir: str):
        return papermill(box, "02_featurize", run_dir, **given("02_featurize", **quick))

    return run


@pytest.fixture(scope="module")
def deleted(box, alone, indexed, featurize):
    """A run whose Livy session is deleted."""
    struck = strike(box, indexed, lambda: featurize(indexed), end_session)
    await_idle(box)
    return struck


@pytest.fixture(scope="module")
def killed(box, deleted, indexed, featurize):
    """Its rerun, whose application master is killed."""
    struck = strike(box, indexed, lambda: featurize(indexed), kill_driver)
    await_idle(box)
    return struck


@pytest.fixture(scope="module")
def lost(box, killed, alone, indexed, featurize):
    """The rerun of that, which loses a node, and then the bucket."""
    alone.result()
    return strike(box, indexed, lambda: featurize(indexed), lose_node, take_s3_away)


def await_idle(box):
    box.wait("YARN to have no notebook", lambda: notebook_applications(box, *ACTIVE) == [])


def test_a_failed_notebook_leaves_no_session(box, failed):
    assert failed.returncode == 1
    assert notebook_sessions(box) == []
    await_idle(box)


@pytest.mark.parametrize("name", ["deleted", "killed"])
def test_a_lost_session_is_an_error_that_says_so(request, name):
    answer = request.getfixturevalue(name).answer
    assert answer.returncode == 1
    assert re.search(
        r"/sessions/\d+/statements/\d+ .*(Session isn't active|Session '\d+' not found)",
        answer.stderr.strip().splitlines()[-1],
    )


def test_a_killed_driver_is_not_started_again(box, killed):
    application = notebook_applications(box, "FAILED")[-1]["id"]
    attempts = box.yarn(f"cluster/apps/{application}/appattempts")["appAttempt"]
    assert len(attempts) == 1
    assert notebook_sessions(box) == []


def test_a_rerun_goes_on_after_the_batches_that_were_done(deleted, killed, lost):
    assert 0 == deleted.before < deleted.batches <= killed.before < killed.batches <= lost.before


def test_the_last_rerun_computes_its_own_batches_alone(box, indexed, lost):
    batches = range(lost.before, finished_batches(box, indexed))
    tables = [f"{name}/batch_id={id}" for name in ("features", "rejects") for id in batches]
    computed = read_manifest(box, indexed)["featurize"]["computed"]
    assert computed == len(paths(box, indexed, *tables))
    assert 0 < computed < len(paths(box, indexed, "index")) - BATCH


def test_a_run_outlasts_a_lost_node_and_an_outage_of_s3(box, indexed, lost):
    assert lost.answer.returncode == 0, lost.answer.stderr
    assert lost.batches < finished_batches(box, indexed)  # it struck in time
    assert paths(box, indexed, "features", "rejects") == paths(box, indexed, "index")


def test_a_lost_node_comes_back(box, lost):
    box.wait("YARN to miss the node", lambda: node_report(box, lost.returned[0])["state"] == "LOST")
    box.start(lost.returned[0])
    box.wait("the node again", lambda: node_report(box, lost.returned[0])["state"] == "RUNNING")
    assert box.yarn("cluster/metrics")["activeNodes"] == 2


def test_livy_ends_an_idle_session_but_not_a_busy_one(alone):
    idle, busy = alone.result()
    assert idle["state"] == "FINISHED"
    assert busy["state"] == "busy"
