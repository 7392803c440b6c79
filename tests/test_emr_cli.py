"""`fruits emr`: what it asks, prints and leaves behind, against moto's EMR."""

import gzip
import json
import re
import socket
import subprocess
from dataclasses import fields
from datetime import timedelta

import pytest
from botocore.exceptions import NoCredentialsError
from click.testing import CliRunner
from fake_emr import BUCKET, STAGE, fake_world

from fruits_lib.emr import cli, console, prices, staging, tunnel
from fruits_lib.emr import cluster as life
from fruits_lib.emr.cli import emr
from fruits_lib.emr.console import Clock
from fruits_lib.emr.spec import ClusterSpec
from fruits_lib.errors import FruitsError

DATA, RUN = f"s3://{BUCKET}/photos", f"s3://{BUCKET}/runs/1"
RUN_IT = ["run", "--data", DATA, "--run-dir", RUN, "-p", "weights=random", "--yes"]


@pytest.fixture
def world():
    with fake_world() as opened:
        opened.put("photos/apple/1.jpg", b"a photograph")
        yield opened


@pytest.fixture
def fruits(world):
    """Run a command; return its result, whose `stop` is the line it stopped with."""

    def run(*arguments, **options):
        answer = CliRunner().invoke(emr, arguments, obj=Clock(world.sleep, world.now), **options)
        answer.stop = str(answer.exception) if isinstance(answer.exception, FruitsError) else ""
        if answer.exception and not isinstance(answer.exception, FruitsError | SystemExit):
            raise answer.exception
        assert "\n" not in answer.stop
        return answer

    return run


@pytest.fixture
def staged(monkeypatch, tmp_path):
    """A checkout with what `create` stages, and a quick wheel and backbone."""
    for name in ("bootstrap.sh", "requirements-node.lock"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(staging, "CHECKOUT", tmp_path)
    monkeypatch.setattr(staging, "export", lambda spec: b"\x1c\0\0\0TFL3")

    def build_wheel(folder):
        wheel = folder / "fruits_lib-0.1-py3-none-any.whl"
        wheel.write_bytes(b"a wheel")
        return wheel

    monkeypatch.setattr(cli, "build_wheel", build_wheel)


def ctrl_c():
    raise KeyboardInterrupt


class TestPlan:
    def test_creates_nothing(self, fruits, world):
        answer = fruits("plan", "--stage", STAGE, "--images", "100000")
        assert answer.exit_code == 0
        assert "100,000" in answer.output
        assert world.emr.list_clusters()["Clusters"] == []

    def test_json_is_the_request_that_aws_takes(self, fruits, world):
        answer = fruits("plan", "--stage", STAGE, "--json", "--core-nodes", "4")
        assert world.emr.run_job_flow(**json.loads(answer.output))["JobFlowId"].startswith("j-")

    def test_every_field_of_the_specification_has_an_option(self):
        options = {it.name for it in cli.plan.params}
        assert options >= {field.name for field in fields(ClusterSpec)}

    def test_a_tag_without_a_value_is_refused(self, fruits):
        line = "--tag owner has no key and value: write --tag key=value"
        assert fruits("plan", "--stage", STAGE, "--tag", "owner").stop == line

    def test_the_region_is_that_of_the_environment(self, fruits, monkeypatch):
        monkeypatch.setenv("AWS_REGION", "eu-west-3")
        assert "eu-west-3" in fruits("plan", "--stage", STAGE).output


@pytest.mark.usefixtures("staged")
class TestCreate:
    ASKED = ("create", "--stage", STAGE, "--key-name", "mine", "--yes")

    def ready(self, world):
        world.events += [world.becomes(state) for state in ("BOOTSTRAPPING", "WAITING")]

    def test_stages_creates_waits_and_says_how_to_reach_it(self, fruits, world):
        self.ready(world)
        answer = fruits(*self.ASKED)
        assert answer.exit_code == 0
        it = world.cluster()
        assert "stage/bootstrap.sh" in world.listing()
        assert f"{it.id} is starting" in answer.output
        assert "https://127.0.0.1:9443" in answer.output
        assert f"-L 127.0.0.1:9443:{it.master_public_dns_name}:9443" in answer.output
        assert f"{it.id} still runs (WAITING): `fruits emr terminate {it.id}" in answer.output

    def test_shows_state_minutes_and_dollars_while_it_waits(self, fruits, world):
        self.ready(world)
        answer = fruits(*self.ASKED)
        assert re.search(r"^STARTING, 0 min, \$0\.\d\d so far$", answer.stderr, re.M)
        assert re.search(r"^BOOTSTRAPPING, 0 min, \$", answer.stderr, re.M)

    def test_keeps_the_request(self, fruits, world):
        self.ready(world)
        fruits(*self.ASKED)
        key = f"stage/clusters/{world.cluster().id}.json"
        kept = json.load(world.s3.get_object(Bucket=BUCKET, Key=key)["Body"])
        assert kept["AutoTerminationPolicy"]["IdleTimeout"] == 1800

    def test_makes_the_security_configuration_that_asks_for_imdsv2(self, fruits, world):
        self.ready(world)
        fruits(*self.ASKED)
        name = world.cluster().security_configuration
        made = world.emr.describe_security_configuration(Name=name)["SecurityConfiguration"]
        imds = json.loads(made)["InstanceMetadataServiceConfiguration"]
        assert imds["MinimumInstanceMetadataServiceVersion"] == 2

    def test_asks_with_the_price_and_a_no_does_nothing(self, fruits, world):
        answer = fruits(*self.ASKED[:-1], input="n\n")
        assert answer.exit_code == 1
        assert re.search(
            r"1 m5.xlarge \+ 2 m5.xlarge in eu-west-1: \$\d\.\d\d an hour", answer.output
        )
        assert world.emr.list_clusters()["Clusters"] == []
        assert "stage/bootstrap.sh" not in world.listing()

    def test_a_wrong_request_stops_before_anything_is_staged(self, fruits, world):
        assert "m9.huge" in fruits(*self.ASKED, "--core", "m9.huge").stop
        assert "stage/bootstrap.sh" not in world.listing()

    def test_a_failed_start_gives_the_reason_the_logs_and_what_runs(self, fruits, world):
        reason = "On the primary instance, bootstrap action 1 returned a non-zero return code"
        world.events += [world.becomes("BOOTSTRAPPING"), world.becomes("TERMINATING", reason)]
        stop = fruits(*self.ASKED).stop
        it = world.cluster().id
        assert stop.startswith(f"{it} failed to start: {reason}; see `fruits emr logs {it} --reg")
        assert "--bootstrap`" in stop
        assert f"; {it} is ending: " in stop

    def test_one_that_ended_at_once_runs_no_more(self, fruits, world):
        world.events += [world.becomes("TERMINATED_WITH_ERRORS", "no such subnet")]
        stop = fruits(*self.ASKED).stop
        assert "failed to start: no such subnet" in stop
        assert stop.endswith("has ended: nothing runs any more")

    def test_ctrl_c_and_a_yes_end_it(self, fruits, world):
        world.events += [ctrl_c, world.becomes("TERMINATED")]
        answer = fruits(*self.ASKED, input="y\n")
        assert answer.exit_code == console.INTERRUPTED
        assert f"end {world.cluster().id}?" in answer.stderr
        assert "interrupted; " in answer.stderr
        assert answer.stderr.endswith("has ended: nothing runs any more\n")

    @pytest.mark.parametrize("typed", ["n\n", ""])
    def test_ctrl_c_and_no_yes_leave_it_and_say_so(self, fruits, world, typed):
        world.events += [ctrl_c]
        answer = fruits(*self.ASKED, input=typed)
        assert answer.exit_code == console.INTERRUPTED
        line = f"still runs (STARTING): `fruits emr terminate {world.cluster().id} --region"
        assert line in answer.stderr

    def test_a_request_that_cannot_be_kept_does_not_hide_the_cluster(
        self, fruits, world, monkeypatch
    ):
        def fail(*_):
            raise FruitsError("the bucket is away")

        monkeypatch.setattr(life, "save_request", fail)
        assert re.match("the bucket is away; j-.* still runs", fruits(*self.ASKED).stop)

    def test_without_a_key_pair_there_is_no_tunnel_and_it_says_so(self, fruits, world):
        self.ready(world)
        answer = fruits("create", "--stage", STAGE, "--yes")
        assert "create one with --key-name for a tunnel" in answer.output

    def test_a_missing_backbone_is_said(self, fruits, world, monkeypatch):
        def export(spec):
            raise FruitsError("TensorFlow is not installed here")

        monkeypatch.setattr(staging, "export", export)
        self.ready(world)
        assert "no backbone is staged (TensorFlow is not" in fruits(*self.ASKED).output


class TestClone:
    def test_takes_the_request_that_was_kept(self, fruits, world):
        old = world.start("TERMINATED", key_name="mine", core_nodes=3)
        spec = life.spec_of(world.emr, life.describe(world.emr, old))
        request = cli._request(spec) | {"EbsRootVolumeSize": 77}
        life.save_request(world.s3, old, request)
        world.events += [self.ready(world, old)]
        answer = fruits("clone", old, "--yes")
        assert answer.exit_code == 0
        assert world.cluster(self.other(world, old)).ebs_root_volume_size == 77

    def test_else_what_emr_says_of_the_old_one(self, fruits, world):
        old = world.start("TERMINATED", key_name="mine", core_nodes=3)
        world.events += [self.ready(world, old)]
        answer = fruits("clone", "--yes")
        assert f"the request of {old} was not kept: taken from what EMR says" in answer.output
        new = world.cluster(self.other(world, old))
        assert (new.ec2_key_name, new.instance_count) == ("mine", 4)
        assert f"stage/clusters/{new.id}.json" in world.listing()

    def test_a_no_creates_nothing(self, fruits, world):
        old = world.start("TERMINATED")
        answer = fruits("clone", input="n\n")
        assert answer.exit_code == 1
        assert f"as {old} (fruits" in answer.output
        assert len(world.emr.list_clusters()["Clusters"]) == 1

    def other(self, world, old):
        return next(it["Id"] for it in world.emr.list_clusters()["Clusters"] if it["Id"] != old)

    def ready(self, world, old):
        return lambda: world.becomes("WAITING", cluster_id=self.other(world, old))()


class TestListAndStatus:
    def test_running_ones_come_first_with_age_and_cost(self, fruits, world):
        running = world.start()
        world.cluster(running).creation_datetime -= timedelta(days=20)
        ended = world.start("TERMINATED")
        world.becomes("TERMINATED", cluster_id=ended)()
        first, second, last = fruits("list").output.splitlines()
        assert first.startswith(f"{running} ")
        assert re.search(r"WAITING +480 h 00 min +\$\d+\.\d\d  fruits$", first)
        assert second.startswith(f"{ended} ")
        assert last.startswith("1 running in eu-west-1")

    def test_another_s_cluster_is_listed_although_its_cost_is_secret(self, fruits, world):
        it = world.start(name="secret")
        for node in world.cluster().ec2_instances:
            node.ec2_instance.instance_type = "m9.huge"
        assert re.search(rf"{it} .*\$\?  secret", fruits("list").output)

    def test_none_is_said(self, fruits, world):
        assert fruits("list").output == "0 running in eu-west-1\n"

    def test_status_says_state_steps_tunnel_and_end(self, fruits, world):
        it = world.start()
        world.emr.add_job_flow_steps(
            JobFlowId=it, Steps=[{"Name": "01_load", "HadoopJarStep": {"Jar": "x"}}]
        )
        world.cluster().state = "RUNNING"
        said = fruits("status").output
        for line in (f"{it} fruits in eu-west-1: RUNNING", "01_load RUNNING"):
            assert line in said
        assert f"fruits emr terminate {it} --region eu-west-1" in said

    def test_status_of_none_is_one_line(self, fruits):
        assert fruits("status").stop.startswith("no cluster named fruits runs in eu-west-1: see")


class TestTunnel:
    @pytest.fixture
    def key(self, tmp_path):
        file = tmp_path / "a key.pem"
        file.write_text("private")
        return str(file)

    def free(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return str(probe.getsockname()[1])

    def test_print_is_the_whole_command_quoted(self, fruits, world, key):
        world.start(key_name="mine")
        answer = fruits("tunnel", "--print", "--key", key)
        at = world.cluster().master_public_dns_name
        assert f"ssh -i '{key}' -N " in answer.output
        assert f"-L 127.0.0.1:9443:{at}:9443 -L 127.0.0.1:18080:{at}:18080" in answer.output
        assert answer.output.endswith(f" hadoop@{at}\n")

    def test_the_default_key_file_is_named_like_the_key_pair(self, fruits, world):
        world.start(key_name="mine")
        assert "/.ssh/mine.pem -N" in fruits("tunnel", "--print").output

    def test_runs_ssh_and_says_afterwards_what_runs(self, fruits, world, key, monkeypatch):
        it, ran = world.start(key_name="mine"), []
        monkeypatch.setattr(tunnel.shutil, "which", lambda name: name)

        def run(command):
            ran.append(command)
            return subprocess.CompletedProcess(command, 0)

        monkeypatch.setattr(tunnel.subprocess, "run", run)
        ports = ["--hub-port", self.free(), "--history-port", self.free()]
        answer = fruits("tunnel", "--key", key, *ports)
        assert answer.exit_code == 0
        assert ran[0][:3] == ["ssh", "-i", key]
        assert f"{it} still runs (WAITING)" in answer.output

    def test_a_port_in_use_is_named_with_the_option(self, fruits, world, key):
        world.start(key_name="mine")
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            stop = fruits("tunnel", "--key", key, "--hub-port", str(port)).stop
        assert stop.startswith(f"port {port} of this machine is not to be had (Address already in")
        assert stop.endswith("or give another --hub-port")

    def test_ssh_s_failure_has_a_way_out(self, fruits, world, key, monkeypatch):
        world.start(key_name="mine")
        monkeypatch.setattr(tunnel.shutil, "which", lambda name: name)
        failed = subprocess.CompletedProcess([], 255)
        monkeypatch.setattr(tunnel.subprocess, "run", lambda command: failed)
        ports = ["--hub-port", self.free(), "--history-port", self.free()]
        stop = fruits("tunnel", "--key", key, *ports).stop
        assert stop.startswith("ssh ended with 255: does the primary node's security group let")

    def test_without_ssh(self, fruits, world, key, monkeypatch):
        world.start(key_name="mine")
        monkeypatch.setattr(tunnel.shutil, "which", lambda name: None)
        assert fruits("tunnel", "--key", key).stop.startswith("ssh is not installed: install")

    def test_a_missing_key_file(self, fruits, world):
        world.start(key_name="mine")
        stop = fruits("tunnel", "--key", "nowhere.pem").stop
        assert stop == "nowhere.pem is no file: give the key pair's private half by --key"

    def test_a_cluster_without_a_key_pair(self, fruits, world):
        it = world.start()
        assert fruits("tunnel").stop.startswith(f"{it} has no SSH key: a tunnel needs a cluster")

    def test_a_cluster_that_is_not_ready(self, fruits, world):
        it = world.start("BOOTSTRAPPING", key_name="mine")
        assert fruits("tunnel").stop.startswith(f"{it} is BOOTSTRAPPING: a tunnel needs one that")


class TestRun:
    def all_done(self, world):
        return lambda: [world.step(n, "COMPLETED")() for n in range(5)]

    def third_fails(self, world):
        def event():
            for n, state in enumerate(
                ["COMPLETED", "COMPLETED", "FAILED", "CANCELLED", "CANCELLED"]
            ):
                world.step(n, state)()
            error = {"output_type": "error", "ename": "FruitsError", "evalue": "k=300 is too many"}
            content = {"cells": [{"cell_type": "code", "outputs": [error]}]}
            world.put("runs/1/notebooks/03_pick_k.ipynb", json.dumps(content).encode())

        return event

    def test_follows_five_notebooks_to_the_report(self, fruits, world):
        world.start()
        world.events += [world.step(0, "COMPLETED"), self.all_done(world)]
        answer = fruits(*RUN_IT)
        assert answer.exit_code == 0
        assert f"5 notebooks are done: {RUN}/report.html" in answer.output
        assert "1 of 5 notebooks done, 02_featurize PENDING" in answer.stderr
        assert "still runs (RUNNING)" in answer.output

    def test_prints_the_notebook_s_own_error_and_what_runs(self, fruits, world):
        it = world.start()
        world.events += [self.third_fails(world)]
        answer = fruits(*RUN_IT)
        assert answer.exit_code == 1
        assert answer.stop.startswith(
            f"03_pick_k: FruitsError: k=300 is too many; {it} still runs (RUNNING): `fruits emr "
        )

    def test_a_wrong_parameter_adds_no_step(self, fruits, world):
        world.start()
        assert fruits(*RUN_IT, "-p", "k=many").stop.startswith("k='many' is no int")
        assert world.cluster().steps == []

    def test_an_empty_prefix_adds_no_step(self, fruits, world):
        world.start()
        asked = [word.replace("/photos", "/nothing") for word in RUN_IT]
        assert fruits(*asked).stop.startswith(f"data=s3://{BUCKET}/nothing holds no object")
        assert world.cluster().steps == []

    def test_a_no_adds_no_step_and_ends_nothing(self, fruits, world):
        world.start()
        answer = fruits(*RUN_IT[:-1], "--and-terminate", input="n\n")
        assert answer.exit_code == 1
        assert world.cluster().steps == []
        assert world.cluster().state == "WAITING"

    def test_the_end_comes_after_success_when_asked(self, fruits, world):
        world.start()
        world.events += [self.all_done(world), world.becomes("TERMINATED")]
        answer = fruits(*RUN_IT, "--and-terminate")
        assert answer.exit_code == 0
        assert re.search(r"has ended: TERMINATED, \$\d+\.\d\d in all", answer.output)

    def test_the_end_comes_after_failure_when_asked(self, fruits, world):
        world.start()
        world.events += [self.third_fails(world), world.becomes("TERMINATED")]
        answer = fruits(*RUN_IT, "--and-terminate")
        assert answer.exit_code == 1
        assert answer.stop.startswith("03_pick_k: FruitsError: k=300 is too many; ")
        assert answer.stop.endswith("has ended: nothing runs any more")

    def test_the_end_comes_after_ctrl_c_when_asked_without_a_question(self, fruits, world):
        world.start()
        world.events += [ctrl_c, world.becomes("TERMINATED")]
        answer = fruits(*RUN_IT, "--and-terminate")
        assert answer.exit_code == console.INTERRUPTED
        assert "?" not in answer.stderr
        assert answer.stderr.endswith("has ended: nothing runs any more\n")

    def test_the_end_comes_after_a_wrong_parameter_when_asked(self, fruits, world):
        world.start()
        world.events += [world.becomes("TERMINATED")]
        assert "nothing runs any more" in fruits(*RUN_IT, "-p", "k=many", "--and-terminate").stop

    def test_the_end_comes_after_a_mistake_of_ours_when_asked(self, fruits, world, monkeypatch):
        world.start()
        monkeypatch.setattr(cli.steps, "requests", lambda *_: 1 / 0)
        world.events += [world.becomes("TERMINATED")]
        with pytest.raises(ZeroDivisionError):
            fruits(*RUN_IT, "--and-terminate")
        assert world.cluster().state == "TERMINATED"

    def test_ctrl_c_leaves_the_steps_and_says_so(self, fruits, world):
        it = world.start()
        world.events += [ctrl_c]
        answer = fruits(*RUN_IT, input="n\n")
        assert answer.exit_code == console.INTERRUPTED
        assert f"interrupted; {it} still runs (RUNNING): `fruits emr terminate" in answer.stderr

    def test_a_cluster_that_ends_in_the_middle_is_told_from_a_failure(self, fruits, world):
        it = world.start()
        world.events += [world.becomes("TERMINATED_WITH_ERRORS", "spot capacity")]
        stop = fruits(*RUN_IT).stop
        assert stop.startswith(f"01_load did not finish (RUNNING): {it} is TERMINATED_WITH_ERRORS")
        assert stop.endswith("has ended: nothing runs any more")


class TestLogs:
    def test_lists_what_there_is(self, fruits, world):
        it = world.start()
        step = world.emr.add_job_flow_steps(
            JobFlowId=it, Steps=[{"Name": "01_load", "HadoopJarStep": {"Jar": "x"}}]
        )["StepIds"][0]
        world.put(f"stage/logs/{it}/steps/{step}/stderr.gz", gzip.compress(b"said"))
        said = fruits("logs").output
        assert re.search(f"{step} 01_load +RUNNING +stderr in the bucket", said)

    def test_prints_a_step_s_stderr(self, fruits, world):
        it = world.start("TERMINATED")
        world.put(f"stage/logs/{it}/steps/s-1/stderr.gz", gzip.compress("a naïve word\n".encode()))
        assert fruits("logs", "--step", "s-1").output == "a naïve word\n"

    def test_a_log_that_is_not_there_yet(self, fruits, world):
        it = world.start()
        stop = fruits("logs", "--step", "s-1").stop
        assert stop.startswith(f"{STAGE}/logs/{it}/steps/s-1/stderr.gz is not there: EMR copies")

    def test_prints_the_bootstrap_logs(self, fruits, world):
        it = world.start("TERMINATED_WITH_ERRORS")
        key = f"stage/logs/{it}/node/i-1/bootstrap-actions/1/stderr.gz"
        world.put(key, gzip.compress(b"bootstrap: FAILED: no such wheel\n"))
        said = fruits("logs", "--bootstrap").output
        assert said == "== i-1\nbootstrap: FAILED: no such wheel\n"

    def test_no_bootstrap_log_yet(self, fruits, world):
        world.start()
        assert "has no bootstrap log: EMR copies it" in fruits("logs", "--bootstrap").stop


class TestCost:
    def test_so_far_and_what_still_runs(self, fruits, world):
        world.start()
        world.slept = 3600
        said = fruits("cost").output
        assert re.search(r"3\.0\d h  m5\.xlarge +on demand", said)
        assert re.search(r"\$\d\.\d\d so far, over 1 h 00 min", said)
        assert "still runs (WAITING)" in said

    def test_in_all_after_the_end(self, fruits, world):
        world.start()
        world.slept = 7200
        world.becomes("TERMINATED")()
        world.slept = 90_000
        said = fruits("cost").output
        assert re.search(r"\$\d\.\d\d in all, over 2 h 00 min", said)
        assert "still runs" not in said


class TestTerminate:
    def test_asks_ends_waits_and_says_so(self, fruits, world):
        it = world.start()
        world.events += [world.becomes("TERMINATED")]
        answer = fruits("terminate", input="y\n")
        assert f"end {it} (fruits, WAITING)?" in answer.output
        assert re.search(rf"{it} has ended: TERMINATED, \$\d+\.\d\d in all\n$", answer.output)

    def test_a_no_ends_nothing(self, fruits, world):
        world.start()
        assert fruits("terminate", input="n\n").exit_code == 1
        assert world.cluster().state == "WAITING"

    def test_a_protected_one_needs_more_than_yes(self, fruits, world):
        it = world.start()
        world.cluster().termination_protected = True
        stop = fruits("terminate", "--yes").stop
        assert stop.startswith(f"{it} is protected against termination: add --unprotect to end it")
        assert world.cluster().state == "WAITING"

    @pytest.mark.parametrize(("more", "typed"), [(["--yes", "--unprotect"], ""), ([], "y\n")])
    def test_a_protected_one_ends_when_asked(self, fruits, world, more, typed):
        world.start()
        world.cluster().termination_protected = True
        world.events += [world.becomes("TERMINATED")]
        assert fruits("terminate", *more, input=typed).exit_code == 0
        assert world.cluster().state == "TERMINATED"

    def test_one_that_has_ended_is_said(self, fruits, world):
        it = world.start("TERMINATED")
        assert fruits("terminate", it, "--yes").output == f"{it} has ended already: TERMINATED\n"

    def test_ctrl_c_while_waiting_says_that_it_is_ending(self, fruits, world):
        it = world.start()
        world.events += [ctrl_c]
        answer = fruits("terminate", "--yes")
        assert answer.exit_code == console.INTERRUPTED
        assert f"interrupted; {it} is ending: `fruits emr status {it}" in answer.stderr


class TestPolicies:
    ASKED = ("policies", "--stage", STAGE, "--data", DATA, "--run-dir", RUN)

    def test_print_all_as_json(self, fruits):
        found = json.loads(fruits(*self.ASKED, "--account", "123456789012").output)
        assert {"operator", "service-role", "node", f"bucket-{BUCKET}"} <= set(found)

    def test_write_a_file_for_each(self, fruits, tmp_path):
        fruits(*self.ASKED, "--account", "123456789012", "--to", str(tmp_path / "policies"))
        operator = json.loads((tmp_path / "policies/operator.json").read_text())
        assert operator["Version"] == "2012-10-17"


class TestPrices:
    def test_are_those_of_the_region_with_date_and_source(self, fruits):
        said = fruits("prices", "--region", "eu-central-1").output
        table = prices.load_prices()
        assert re.search(
            rf"m5.xlarge .*{table['regions']['eu-central-1']['ec2']['m5.xlarge']}", said
        )
        assert f"prices of {table['date']} ({table['source']})" in " ".join(said.split())

    def test_of_an_unknown_region_ask_aws(self, fruits):
        stop = fruits("prices", "--region", "eu-south-2").stop
        assert stop.startswith("no prices in eu-south-2 are known here, but of eu-west-1, ")
        assert stop.endswith("`fruits emr prices --refresh --region eu-south-2`")

    def test_refresh_writes_first_and_prints_then(self, fruits, monkeypatch, tmp_path):
        fresh = {**prices.load_prices(), "date": "2031-01-01", "source": "a Pricing API"}
        file = tmp_path / "prices.json"
        file.write_bytes(prices.PRICES.read_bytes())
        monkeypatch.setattr(prices, "PRICES", file)
        monkeypatch.setattr(prices, "refresh", lambda table: fresh)
        assert "prices of 2031-01-01 (a Pricing API)" in fruits("prices", "--refresh").output
        assert json.loads(file.read_text()) == fresh


def test_wheelhouse_has_a_folder_for_each_architecture(fruits, world, monkeypatch):
    def build_wheelhouse(folder, arch):
        (folder / f"numpy-{arch}.whl").write_bytes(b"a wheel")
        return [folder / f"numpy-{arch}.whl"]

    monkeypatch.setattr(cli, "build_wheelhouse", build_wheelhouse)
    asked = ("wheelhouse", "--to", f"{STAGE}/", "--arch", "x86_64", "--arch", "aarch64")
    assert f"{STAGE}/wheelhouse/x86_64: 1 wheels written, 0 there" in fruits(*asked).output
    assert "0 wheels written, 1 there already" in fruits(*asked).output
    wheels = {key for key in world.listing() if key.endswith(".whl")}
    assert wheels == {f"stage/wheelhouse/{arch}/numpy-{arch}.whl" for arch in ("x86_64", "aarch64")}


def test_what_aws_refuses_is_one_line(fruits, world, monkeypatch):
    def refuse(*_):
        raise NoCredentialsError

    monkeypatch.setattr(life, "recent", refuse)
    assert fruits("list").stop.startswith("AWS credentials are missing: set AWS_PROFILE")
