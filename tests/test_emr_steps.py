"""Notebooks as steps: what they are asked to run, how they are followed, why they fail."""

import gzip
import json
from datetime import timedelta

import pytest
from fake_emr import BUCKET, REGION, fake_world

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


def failed(world, state="FAILED", started=None):
    """A step as EMR describes it."""
    times = {"StartDateTime": started or world.now() - timedelta(minutes=1)}
    return {"Id": "s-1", "Name": "03_pick_k", "Status": {"State": state, "Timeline": times}}


class TestRequests:
    def test_one_step_for_each_notebook_in_order(self):
        names = [it["Name"] for it in steps.requests(find_notebooks(), GIVEN)]
        assert names == [path.stem for path in find_notebooks()]

    def test_a_step_runs_one_notebook_by_the_launcher(self):
        values = {**GIVEN, "k": 50, "standardize": True}
        step = steps.requests(find_notebooks(), values)[2]["HadoopJarStep"]
        assert step["Jar"] == "command-runner.jar"
        command = "/opt/fruits/bin/fruits run --run-dir s3://results/runs/1"
        assert step["Args"] == f"{command} -p k=50 -p standardize=True --only 03".split()

    def test_the_last_one_is_skipped_where_photographs_have_no_labels(self):
        *_, last = steps.requests(find_notebooks(), GIVEN)
        assert last["HadoopJarStep"]["Args"][-2:] == ["--from", "06"]  # `--only` would fail

    def test_a_step_has_its_own_parameters_alone(self):
        values = {**GIVEN, "k": 50, "weights": "random"}
        first, second, *_ = steps.requests(find_notebooks(), values)
        assert "s3://photos/fruits" in first["HadoopJarStep"]["Args"]
        assert "weights=random" not in first["HadoopJarStep"]["Args"]
        assert "weights=random" in second["HadoopJarStep"]["Args"]
        assert "k=50" not in second["HadoopJarStep"]["Args"]


class TestCheckRun:
    def test_typed_values_come_back(self):
        values = steps.check_run(find_notebooks(), {**GIVEN, "k": "50"})
        assert values == {**GIVEN, "k": 50}

    def test_weights_in_a_bucket_are_accepted(self):
        given = {**GIVEN, "weights": "s3://b/my.tflite"}
        assert steps.check_run(find_notebooks(), given) == given

    def test_an_unknown_parameter_is_refused_before_anything_is_added(self):
        with pytest.raises(FruitsError, match="parameter varianse is unknown: did you mean varian"):
            steps.check_run(find_notebooks(), {**GIVEN, "varianse": "0.9"})


class TestFollow:
    @pytest.fixture
    def added(self, world):
        """A cluster with five steps: its id, and theirs."""
        cluster_id = world.start()
        return cluster_id, steps.add(REGION, cluster_id, steps.requests(find_notebooks(), GIVEN))

    @pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "INTERRUPTED"])
    def test_no_longer_than_the_step_can_change(self, world, added, state):
        cluster_id, (step_id, *_) = added
        world.events += [world.steps(state)]
        with pytest.raises(FruitsError, match="^01_load: "):
            steps.follow(world.emr, world.s3, cluster_id, step_id, RUN)


class TestExplainFailure:
    @pytest.fixture
    def cluster(self, world):
        return world.emr.describe_cluster(ClusterId=world.start())["Cluster"]

    def test_the_notebook_s_own_error_comes_first(self, world, cluster):
        executed(world, "03_pick_k")
        world.put(f"stage/logs/{cluster['Id']}/steps/s-1/stderr.gz", gzip.compress(b"exit code 1"))
        said = steps.explain_failure(world.s3, cluster, failed(world), RUN)
        assert said == "FruitsError: k=300 is more than 50"

    def test_an_earlier_run_s_notebook_says_nothing(self, world, cluster):
        executed(world, "03_pick_k")
        later = failed(world, started=world.now() + timedelta(minutes=5))
        assert "k=300" not in steps.explain_failure(world.s3, cluster, later, RUN)

    def test_else_the_last_line_of_stderr(self, world, cluster):
        log = b"starting\nfruits: no module named x\n"
        world.put(f"stage/logs/{cluster['Id']}/steps/s-1/stderr.gz", gzip.compress(log))
        said = steps.explain_failure(world.s3, cluster, failed(world), RUN)
        assert said == "fruits: no module named x"

    def test_else_what_emr_says_and_where_the_log_will_be(self, world, cluster):
        step = failed(world)
        step["Status"]["FailureDetails"] = {"Reason": "Unknown Error.", "Message": "exit code 137"}
        said = steps.explain_failure(world.s3, cluster, step, RUN)
        assert said.startswith("Unknown Error.: exit code 137 (its log is not in the bucket yet")
        assert said.endswith(f"`fruits emr logs {cluster['Id']} --step s-1`)")

    def test_a_step_that_the_cluster_s_end_cancelled(self, world):
        cluster_id = world.start()
        world.becomes("TERMINATED_WITH_ERRORS", "the primary node was lost")()
        cluster = world.emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
        said = steps.explain_failure(world.s3, cluster, failed(world, state="CANCELLED"), RUN)
        assert said.startswith(f"CANCELLED, {cluster_id} is TERMINATED_WITH_ERRORS: the primary")
