"""Notebooks as steps: what they are asked to run, how they are followed, why they fail."""

import gzip
import json
from datetime import timedelta

import pytest
from botocore.stub import Stubber
from fake_emr import BUCKET, REGION, fake_world

from fruits_lib import aws
from fruits_lib.emr import cluster as life
from fruits_lib.emr import steps
from fruits_lib.errors import FruitsError
from fruits_lib.parameters import find_notebooks

GIVEN = {"data": "s3://photos/fruits", "run_dir": "s3://results/runs/1"}
RUN = f"s3://{BUCKET}/runs/1"


@pytest.fixture
def world():
    with fake_world() as opened:
        yield opened


def executed(world, name, ename="FruitsError", evalue="k=300 is more\nthan 50"):
    """Write an executed notebook that ends in an error."""
    error = {"output_type": "error", "ename": ename, "evalue": evalue, "traceback": []}
    cells = [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": [error]}]
    world.put(f"runs/1/notebooks/{name}.ipynb", json.dumps({"cells": cells}).encode())


def failed(world, name="03_pick_k", state="FAILED", started=None):
    return steps.Step("s-1", name, state, started or world.now() - timedelta(minutes=1), None)


class TestRequests:
    def test_one_step_for_each_notebook_in_order(self):
        names = [it["Name"] for it in steps.requests(find_notebooks(), GIVEN)]
        assert names == ["01_load", "02_featurize", "03_pick_k", "04_pca", "05_verify"]

    def test_a_step_runs_one_notebook_by_the_launcher(self):
        values = {**GIVEN, "k": 50, "standardize": True}
        step = steps.requests(find_notebooks(), values)[2]["HadoopJarStep"]
        assert step["Jar"] == "command-runner.jar"
        command = "/opt/fruits/bin/fruits run --data s3://photos/fruits --run-dir"
        command += " s3://results/runs/1 -p k=50 -p standardize=True --only 03"
        assert step["Args"] == command.split()

    def test_a_value_with_spaces_stays_one_argument(self):
        values = {**GIVEN, "data": "s3://photos/my fruits"}
        assert (
            "s3://photos/my fruits"
            in steps.requests(find_notebooks(), values)[0]["HadoopJarStep"]["Args"]
        )

    def test_a_failure_cancels_the_rest_and_keeps_the_cluster(self):
        assert {it["ActionOnFailure"] for it in steps.requests(find_notebooks(), GIVEN)} == {
            "CANCEL_AND_WAIT"
        }

    def test_overwriting_is_asked_of_every_notebook(self):
        for it in steps.requests(find_notebooks(), GIVEN, overwrite=True):
            assert "--overwrite" in it["HadoopJarStep"]["Args"]


class TestCheckRun:
    def test_typed_values_come_back(self):
        values = steps.check_run(find_notebooks(), {**GIVEN, "k": "50"})
        assert values == {**GIVEN, "k": 50}

    @pytest.mark.parametrize("name", ["data", "run_dir"])
    def test_a_local_folder_is_refused(self, name):
        with pytest.raises(FruitsError, match=f"^{name}=runs/1 is no s3:// URI: a cluster sees no"):
            steps.check_run(find_notebooks(), {**GIVEN, name: "runs/1"})

    def test_local_weights_are_refused(self):
        with pytest.raises(FruitsError, match=r"weights=my\.tflite lies on this machine: copy it"):
            steps.check_run(find_notebooks(), {**GIVEN, "weights": "my.tflite"})

    def test_weights_in_a_bucket_are_accepted(self):
        given = {**GIVEN, "weights": "s3://b/my.tflite"}
        assert steps.check_run(find_notebooks(), given) == given

    def test_an_unknown_parameter_is_refused_before_anything_is_added(self):
        with pytest.raises(FruitsError, match="parameter varianse is unknown: did you mean varian"):
            steps.check_run(find_notebooks(), {**GIVEN, "varianse": "0.9"})


class TestWatch:
    def test_until_all_are_done_in_the_order_of_the_notebooks(self, world):
        it = world.start()
        ids = steps.add(REGION, it, steps.requests(find_notebooks(), GIVEN))
        world.events += [lambda: [world.step(n, "COMPLETED")() for n in range(5)]]
        first, last = steps.watch(world.emr, it, ids, world.sleep)
        assert [step.id for step in first] == ids
        assert [step.state for step in first] == ["RUNNING"] + 4 * ["PENDING"]
        assert {step.state for step in last} == {"COMPLETED"}

    def test_no_longer_than_the_cluster_lives(self, world):
        it = world.start()
        ids = steps.add(REGION, it, steps.requests(find_notebooks(), GIVEN))
        world.events += [world.becomes("TERMINATED_WITH_ERRORS")]
        *_, last = steps.watch(world.emr, it, ids, world.sleep)
        assert last[0].state == "RUNNING"

    def test_a_refusal_is_one_line(self, monkeypatch):
        client = aws.client("emr", REGION)
        monkeypatch.setattr(aws, "client", lambda *_: client)
        with Stubber(client) as stub:
            stub.add_client_error("add_job_flow_steps", "ValidationException", "A\nB", 400)
            with pytest.raises(FruitsError, match="^AddJobFlowSteps: ValidationException: A B$"):
                steps.add(REGION, "j-1", [])


class TestExplainFailure:
    def test_the_notebook_s_own_error_comes_first(self, world):
        it = life.describe(world.emr, world.start())
        executed(world, "03_pick_k")
        world.put(f"stage/logs/{it.id}/steps/s-1/stderr.gz", gzip.compress(b"exit code 1"))
        said = steps.explain_failure(world.s3, it, failed(world), RUN)
        assert said == "03_pick_k: FruitsError: k=300 is more than 50"

    def test_an_earlier_run_s_notebook_tells_nothing(self, world):
        executed(world, "03_pick_k")
        later = failed(world, started=world.now() + timedelta(minutes=5))
        it = life.describe(world.emr, world.start())
        assert "k=300" not in steps.explain_failure(world.s3, it, later, RUN)

    def test_else_the_last_line_of_stderr(self, world):
        it = life.describe(world.emr, world.start())
        log = b"starting\nfruits: no module named x\n"
        world.put(f"stage/logs/{it.id}/steps/s-1/stderr.gz", gzip.compress(log))
        said = steps.explain_failure(world.s3, it, failed(world), RUN)
        assert said == "03_pick_k: fruits: no module named x"

    def test_else_what_emr_says_and_where_the_log_will_be(self, world):
        it = life.describe(world.emr, world.start())
        said = steps.explain_failure(world.s3, it, failed(world), RUN)
        assert "EMR gives no reason (its log is not in the bucket yet" in said
        assert said.endswith(f"`fruits emr logs {it.id} --step s-1`)")

    def test_a_step_cut_off_by_the_cluster_s_end_says_so(self, world):
        it = world.start()
        world.becomes("TERMINATED_WITH_ERRORS", "the primary node was lost")()
        step = failed(world, state="RUNNING")
        said = steps.explain_failure(world.s3, life.describe(world.emr, it), step, RUN)
        assert said == (
            f"03_pick_k did not finish (RUNNING): {it} is TERMINATED_WITH_ERRORS "
            "(the primary node was lost)"
        )

    def test_emr_s_own_failure_details_are_read(self):
        client = aws.client("emr", REGION)
        details = {"Reason": "Unknown Error.", "Message": "exit code 137"}
        answer = {"Id": "s-1", "Name": "02_featurize"}
        answer["Status"] = {"State": "FAILED", "FailureDetails": details}
        with Stubber(client) as stub:
            stub.add_response("list_steps", {"Steps": [answer]})
            (step,) = steps.listed(client, "j-1")
        assert step.reason == "Unknown Error.: exit code 137"


class TestLogs:
    def test_a_log_that_is_not_copied_yet_is_none(self, world):
        assert steps.log(world.s3, life.describe(world.emr, world.start()), "s-1") is None

    def test_bootstrap_logs_are_found_by_node(self, world):
        it = life.describe(world.emr, world.start())
        for node in ("i-1", "i-2"):
            folder = f"stage/logs/{it.id}/node/{node}"
            said = gzip.compress(f"{node} failed".encode())
            world.put(f"{folder}/bootstrap-actions/1/stderr.gz", said)
            world.put(f"{folder}/daemons/instance-state/stderr.gz", gzip.compress(b"else"))
        found = steps.bootstrap_logs(world.s3, it)
        assert found == {"i-1": "i-1 failed", "i-2": "i-2 failed"}

    def test_a_cluster_without_logs_has_none(self, world):
        it = world.start()
        world.cluster().log_uri = None
        described = life.describe(world.emr, it)
        assert steps.log(world.s3, described, "s-1") is None
        assert steps.bootstrap_logs(world.s3, described) == {}
