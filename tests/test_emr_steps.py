"""Steps: what they run, how they are followed, why they fail."""

import gzip
from datetime import timedelta

import pytest
from fake_emr import BUCKET, REGION, fake_world

from fruits_lib.emr import steps
from fruits_lib.errors import FruitsError
from fruits_lib.parameters import find_notebooks

GIVEN = {"data": "s3://photos/fruits", "run_dir": "s3://results/runs/1"}
RUN = f"s3://{BUCKET}/runs/1"
TOO_MANY = ("FruitsError", "k=300 is more\nthan 50")


@pytest.fixture
def world():
    with fake_world() as opened:
        yield opened


def test_a_run_is_one_step_by_the_launcher():
    step = steps.run_request({**GIVEN, "k": 50, "standardize": True})
    assert step["HadoopJarStep"]["Jar"] == "command-runner.jar"
    command = "/opt/fruits/bin/fruits run --data s3://photos/fruits --run-dir s3://results/runs/1"
    assert step["HadoopJarStep"]["Args"] == f"{command} -p k=50 -p standardize=True".split()


@pytest.mark.parametrize(("values", "option"), [({"overwrite": True}, False), ({}, True)])
def test_overwrite_is_an_option_of_the_step(values, option):
    arguments = steps.run_request({**GIVEN, **values}, option)["HadoopJarStep"]["Args"]
    assert arguments[-1] == "--overwrite"
    assert "-p" not in arguments


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


class Running:
    """A cluster with one step, which the test moves."""

    def __init__(self, world):
        self.world, self.cluster_id = world, world.start()
        self.step_id = steps.add(REGION, self.cluster_id, steps.run_request(GIVEN))

    def follow(self) -> list[tuple[str, float]]:
        world = self.world
        return list(steps.follow(world.emr, world.s3, self.cluster_id, self.step_id, RUN))

    def stopped(self) -> str:
        """Return the line that following stops with."""
        with pytest.raises(FruitsError) as found:
            self.follow()
        return str(found.value)

    def log(self, content: bytes) -> None:
        key = f"stage/logs/{self.cluster_id}/steps/{self.step_id}/stderr.gz"
        self.world.put(key, gzip.compress(content))


@pytest.fixture
def running(world):
    return Running(world)


class TestFollow:
    def test_every_notebook_comes_once_when_it_is_executed(self, world, running):
        def first():
            world.steps("RUNNING")()
            world.execute("runs/1/notebooks/01_load.ipynb", minutes=2)
            world.execute("runs/1/notebooks/02_featurize.ipynb", minutes=None)

        def second():
            world.execute("runs/1/notebooks/02_featurize.ipynb", minutes=30)
            world.steps("COMPLETED")()

        world.events += [first, second]
        assert running.follow() == [("01_load", 2), ("02_featurize", 30)]

    def test_an_earlier_run_s_notebooks_do_not_come(self, world, running):
        world.execute("runs/1/notebooks/01_load.ipynb", TOO_MANY)
        world.beginning += timedelta(minutes=5)
        world.events += [world.steps("COMPLETED")]
        assert running.follow() == []

    def test_a_bucket_that_we_may_not_read_hides_the_notebooks_alone(self, world, running):
        world.events += [world.steps("COMPLETED")]
        nowhere = "s3://no-such-bucket/runs/1"
        ids = running.cluster_id, running.step_id
        assert list(steps.follow(world.emr, world.s3, *ids, nowhere)) == []

    @pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "INTERRUPTED"])
    def test_no_longer_than_the_step_can_change(self, world, running, state):
        world.events += [world.steps(state)]
        assert running.stopped().startswith("fruits run: ")


class TestFailure:
    def test_the_notebook_s_own_error_comes_first(self, world, running):
        def fails():
            world.execute("runs/1/notebooks/02_featurize.ipynb")
            world.execute("runs/1/notebooks/03_pick_k.ipynb", TOO_MANY)
            world.steps("FAILED")()

        world.events += [fails]
        running.log(b"exit code 1")
        assert running.stopped() == "03_pick_k: FruitsError: k=300 is more than 50"

    def test_else_the_last_line_of_stderr(self, world, running):
        world.events += [world.steps("FAILED")]
        running.log(b"starting\nfruits: no module named x\n")
        assert running.stopped() == "fruits run: fruits: no module named x"

    def test_else_what_emr_says_and_where_the_log_will_be(self, world, running):
        step = {"Id": "s-1", "Status": {"State": "FAILED"}}
        step["Status"]["FailureDetails"] = {"Reason": "Unknown Error.", "Message": "exit code 137"}
        cluster = world.emr.describe_cluster(ClusterId=running.cluster_id)["Cluster"]
        said = steps._explain_failure(world.s3, cluster, step)
        assert said.startswith("Unknown Error.: exit code 137 (its log is not in the bucket yet")
        assert said.endswith(f"`fruits emr logs {running.cluster_id} --step s-1`)")

    def test_a_step_that_the_cluster_s_end_cancelled(self, world, running):
        def ends():
            world.becomes("TERMINATED_WITH_ERRORS", "the primary node was lost")()
            world.steps("CANCELLED")()

        world.events += [ends]
        ended = f"CANCELLED, {running.cluster_id} is TERMINATED_WITH_ERRORS: the primary"
        assert running.stopped().startswith(f"fruits run: {ended}")
