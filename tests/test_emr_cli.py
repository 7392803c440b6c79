"""`fruits emr`: what it asks, prints and leaves behind, against moto's EMR."""

import gzip
import json
import re
import runpy
import signal
import subprocess
import sys
from dataclasses import fields, replace
from datetime import timedelta

import boto3
import pytest
from botocore.exceptions import NoCredentialsError
from click.testing import CliRunner
from fake_emr import BUCKET, NETWORK, REGION, STAGE, fake_world

from fruits_lib.emr import cli, console, staging
from fruits_lib.emr import cluster as clusters
from fruits_lib.emr.cli import emr
from fruits_lib.emr.spec import ClusterSpec, build_request
from fruits_lib.errors import FruitsError, Signalled

DATA, RUN = f"s3://{BUCKET}/photos", f"s3://{BUCKET}/runs/1"
RUN_IT = ["run", "--data", DATA, "--run-dir", RUN, "-p", "weights=random", "--yes"]


@pytest.fixture
def world():
    with fake_world() as opened:
        yield opened


@pytest.fixture
def fruits(world):
    """Run a command; return its result, whose `stop` is the line it stopped with."""

    def run(*arguments, **options):
        answer = CliRunner().invoke(emr, arguments, **options)
        answer.stop = str(answer.exception) if isinstance(answer.exception, FruitsError) else ""
        if answer.exception and not isinstance(answer.exception, FruitsError | SystemExit):
            raise answer.exception
        assert "\n" not in answer.stop
        return answer

    return run


@pytest.fixture
def staged(monkeypatch, tmp_path):
    """A checkout with what `create` stages, and quick wheels and backbone."""
    for name in ("bootstrap.sh", "requirements-node.lock", "scripts/doctor.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(staging, "CHECKOUT", tmp_path)
    monkeypatch.setattr(staging, "NODE_LOCK", tmp_path / "requirements-node.lock")
    monkeypatch.setattr(staging, "export", lambda spec: b"\x1c\0\0\0TFL3")

    def build_wheels(folder, arch):
        keys = ("fruits_lib-0.1-py3-none-any.whl", f"wheelhouse/{arch}/numpy.whl")
        (folder / "wheel").write_bytes(b"a wheel")
        return dict.fromkeys(keys, folder / "wheel")

    monkeypatch.setattr(staging, "build_wheels", build_wheels)


@pytest.fixture
def stack(world):
    """A stack named `mine`, as infrastructure.yaml makes one."""
    outputs = {
        "Stage": STAGE,
        "Data": DATA,
        "Runs": f"s3://{BUCKET}/runs",
        "Subnet": "subnet-9",
        "ServiceRole": "mine-emr",
        "InstanceProfile": "mine-node",
        "SecurityConfiguration": "mine-imdsv2",
    }
    template = {
        "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {key: {"Value": value} for key, value in outputs.items()},
    }
    client = boto3.client("cloudformation", region_name=REGION)
    client.create_stack(StackName="mine", TemplateBody=json.dumps(template))
    return outputs


def options(**given):
    return [
        text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", value)
    ]


CREATE = ["create", *options(stage=STAGE, key_name="mine", **NETWORK), "--yes"]


def ctrl_c():
    raise KeyboardInterrupt


def hang_up():
    raise Signalled(signal.SIGHUP)


class TestPlan:
    def test_needs_no_account_and_creates_nothing(self, fruits, world):
        answer = fruits("plan", "--images", "100000")
        assert answer.exit_code == 0
        assert "100,000 images" in answer.output
        assert world.emr.list_clusters()["Clusters"] == []

    def test_json_is_the_request_that_aws_takes(self, fruits, world):
        answer = fruits("plan", "--stage", STAGE, "--json", "--core-nodes", "4")
        assert world.emr.run_job_flow(**json.loads(answer.output))["JobFlowId"].startswith("j-")

    def test_every_field_of_the_specification_has_an_option(self):
        known = {option.name for option in cli.plan.params}
        assert known >= {field.name for field in fields(ClusterSpec)}

    def test_the_region_is_that_of_the_environment(self, fruits, monkeypatch):
        monkeypatch.setenv("AWS_REGION", "eu-west-3")
        assert "eu-west-3" in fruits("plan").output

    @pytest.mark.parametrize("name", ["subnet", "ssh-group", "stage", "core"])
    def test_an_empty_option_is_refused(self, fruits, name):
        line = f"--{name} is empty: give a value, or leave the option out"
        assert fruits("plan", f"--{name}", "").stop == line


class TestStack:
    def test_fills_what_is_not_given(self, fruits, stack):
        found = json.loads(fruits("plan", "--stack", "mine", "--json").output)
        assert found["Instances"]["Ec2SubnetId"] == stack["Subnet"]
        assert found["ServiceRole"] == stack["ServiceRole"]
        assert found["JobFlowRole"] == stack["InstanceProfile"]
        assert found["SecurityConfiguration"] == stack["SecurityConfiguration"]
        assert found["LogUri"] == f"{STAGE}/logs/"
        asked = ("plan", "--stack", "mine", "--json", "--subnet", "subnet-1")  # an option wins
        assert json.loads(fruits(*asked).output)["Instances"]["Ec2SubnetId"] == "subnet-1"
        assert "AdditionalMasterSecurityGroups" not in found["Instances"]  # a stack without SSH

    def test_a_missing_one_is_one_line(self, fruits, world):
        stop = fruits("plan", "--stack", "none").stop
        assert stop.startswith("DescribeStacks: ValidationError: ")
        assert "none" in stop

    def test_gives_a_run_its_folders(self, fruits, world, stack):
        world.start()
        world.events += [world.steps("COMPLETED")]
        answer = fruits("run", "--stack", "mine", "--yes")
        assert re.search(rf"done: s3://{BUCKET}/runs/\d{{4}}-\d\d-\d\d-\d{{4}}/repo", answer.output)
        assert DATA in world.cluster().steps[0].args

    def test_without_one_a_run_needs_both_folders(self, fruits, world):
        world.start()
        stop = fruits("run", "--data", DATA, "--yes").stop
        assert stop == "--data or --run-dir is missing: give both, or --stack NAME"


@pytest.mark.usefixtures("staged")
class TestCreate:
    def ready(self, world):
        world.events += [world.becomes(state) for state in ("BOOTSTRAPPING", "WAITING")]

    def test_stages_creates_waits_and_says_how_to_reach_it(self, fruits, world):
        self.ready(world)
        answer = fruits(*CREATE)
        assert answer.exit_code == 0
        cluster_id = world.cluster().id
        assert {"stage/bootstrap.sh", "stage/wheelhouse/x86_64/numpy.whl"} <= world.listing()
        assert f"{cluster_id} is starting, which takes 10 to 15 minutes" in answer.output
        assert f"  fruits emr tunnel {cluster_id} --region eu-west-1\n" in answer.output
        assert f"{cluster_id} still runs (WAITING): `fruits emr terminate " in answer.output

    def test_stages_the_wheels_of_the_nodes_architecture(self, fruits, world):
        self.ready(world)
        fruits(*CREATE, *options(primary="m6g.xlarge", core="m6g.xlarge"))
        assert "stage/wheelhouse/aarch64/numpy.whl" in world.listing()

    def test_asks_with_the_price_and_a_no_does_nothing(self, fruits, world):
        answer = fruits(*CREATE[:-1], input="n\n")
        assert answer.exit_code == 1
        price = r"1 primary m5.xlarge \+ 2 core m5.xlarge in eu-west-1: \$\d\.\d\d an hour; prices"
        assert re.search(price, answer.output)
        assert world.emr.list_clusters()["Clusters"] == []
        assert world.listing() == set()

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"core": "m9.huge"}, "m9.huge"),
            ({"release": "emr-7.9.0"}, "EMRFS"),
            ({"stage": "s3://other"}, "is not s3://bucket/prefix"),
        ],
    )
    def test_a_wrong_wish_stops_before_anything_is_staged(self, fruits, world, more, words):
        assert words in fruits(*CREATE, *options(**more)).stop
        assert world.listing() == set()

    def test_a_quota_too_small_stops_before_anything_is_staged(self, fruits, world):
        world.vcpus = 1.0
        assert fruits(*CREATE).stop.startswith("12 vCPUs are needed, the account's quota in eu-w")
        assert world.listing() == set()

    def test_a_quota_that_may_not_be_asked_for_is_said(self, fruits, world):
        world.vcpus = None
        self.ready(world)
        answer = fruits(*CREATE)
        assert "The vCPU quota was not checked: GetServiceQuota: NoSuchResource" in answer.output
        assert answer.exit_code == 0

    @pytest.mark.parametrize("name", NETWORK)
    def test_what_the_account_must_have_is_needed(self, fruits, world, name):
        given = {key: value for key, value in NETWORK.items() if key != name}
        stop = fruits("create", "--yes", *options(stage=STAGE, **given)).stop
        assert stop == f"--{name.replace('_', '-')} is missing: give it, or --stack NAME"

    def test_a_failed_start_gives_the_reason_the_logs_and_what_runs(self, fruits, world):
        reason = "bootstrap action 1 returned a non-zero return code"
        world.events += [world.becomes("BOOTSTRAPPING"), world.becomes("TERMINATING", reason)]
        stop = fruits(*CREATE).stop
        cluster_id = world.cluster().id
        assert stop.startswith(f"{cluster_id} failed to start: {reason}; see `fruits emr logs ")
        assert f"--bootstrap`; {cluster_id} is ending: " in stop

    def test_ctrl_c_and_a_yes_end_it(self, fruits, world):
        world.events += [ctrl_c, world.becomes("TERMINATED")]
        answer = fruits(*CREATE, input="y\n")
        assert answer.exit_code == console.INTERRUPTED
        assert f"end {world.cluster().id}?" in answer.stderr
        assert answer.stderr.endswith("has ended: nothing runs any more\n")

    @pytest.mark.parametrize("typed", ["n\n", ""])
    def test_ctrl_c_and_no_yes_leave_it_and_say_so(self, fruits, world, typed):
        world.events += [ctrl_c]
        answer = fruits(*CREATE, input=typed)
        assert answer.exit_code == console.INTERRUPTED
        assert "interrupted; " in answer.stderr
        assert f"still runs (STARTING): `fruits emr terminate {world.cluster().id}" in answer.stderr

    def test_a_lost_connection_says_that_it_may_run(self, fruits, world, monkeypatch):
        def lost(*_, **__):
            raise NoCredentialsError

        monkeypatch.setattr(clusters, "wait", lost)
        monkeypatch.setattr(console, "state", lost)
        stop = fruits(*CREATE).stop
        cluster_id = world.cluster().id
        assert f"; whether {cluster_id} still runs is unknown (AWS credentials are missing" in stop
        assert stop.endswith(f"`fruits emr terminate {cluster_id} --region eu-west-1` ends it")

    def test_a_bug_of_ours_says_what_runs_too(self, world, monkeypatch):
        monkeypatch.setattr(clusters, "request_uri", lambda *_: 1 / 0)
        answer = CliRunner().invoke(emr, CREATE)
        assert isinstance(answer.exception, ZeroDivisionError)
        assert f"{world.cluster().id} still runs (STARTING): `fruits emr term" in answer.stderr


@pytest.mark.usefixtures("staged")
class TestStage:
    def test_fills_the_stack_s_bucket_and_creates_nothing(self, fruits, world, stack):
        answer = fruits("stage", "--stack", "mine")
        assert f"{STAGE}: {len(world.listing())} files written, 0 there already" in answer.output
        assert "stage/wheelhouse/x86_64/numpy.whl" in world.listing()
        assert world.emr.list_clusters()["Clusters"] == []


class TestClone:
    def test_takes_the_request_that_was_kept(self, fruits, world):
        old = world.start("TERMINATED", key_name="mine")
        request = replace(ClusterSpec(STAGE), core_nodes=3)
        kept = build_request(request) | {"EbsRootVolumeSize": 77}
        world.put(f"stage/clusters/{old}.json", json.dumps(kept).encode())
        world.events += [lambda: world.becomes("WAITING", cluster_id=self.other(world, old))()]
        answer = fruits("clone", old, "--yes")
        assert answer.exit_code == 0
        new = world.cluster(self.other(world, old))
        assert (new.ebs_root_volume_size, new.instance_count) == (77, 4)
        assert f"stage/clusters/{new.id}.json" in world.listing()

    def test_without_a_kept_request_one_line_says_so(self, fruits, world):
        old = world.start("TERMINATED")
        assert fruits("clone", "--yes").stop.startswith(
            f"{STAGE}/clusters/{old}.json is not there: only"
        )

    def test_a_no_creates_nothing(self, fruits, world):
        old = world.start("TERMINATED")
        kept = json.dumps(build_request(ClusterSpec(STAGE)))
        world.put(f"stage/clusters/{old}.json", kept.encode())
        answer = fruits("clone", input="n\n")
        assert answer.exit_code == 1
        assert f"like {old} (fruits-zoe" in answer.output
        assert len(world.emr.list_clusters()["Clusters"]) == 1

    def other(self, world, old):
        found = world.emr.list_clusters()["Clusters"]
        return next(cluster["Id"] for cluster in found if cluster["Id"] != old)


class TestListStatusCost:
    def test_running_ones_come_first_with_age_and_cost(self, fruits, world):
        running = world.start()
        world.cluster(running).creation_datetime -= timedelta(days=20)
        ended = world.start("TERMINATED")
        world.becomes("TERMINATED", cluster_id=ended)()
        first, second, last = fruits("list").output.splitlines()
        assert re.search(rf"^{running} .*WAITING +480 h 00 min +\$\d+\.\d\d  fruits-zoe$", first)
        assert second.startswith(f"{ended} ")
        assert last == "1 running in eu-west-1"

    def test_a_cost_that_is_not_known_is_a_question_mark(self, fruits, world):
        cluster_id = world.start()
        for node in world.cluster().ec2_instances:
            node.ec2_instance.instance_type = "m9.huge"
        assert re.search(rf"{cluster_id} .*\$\?  fruits-zoe", fruits("list").output)

    def test_status_says_state_steps_and_end(self, fruits, world):
        cluster_id = world.start()
        step = {"Name": "01_load", "HadoopJarStep": {"Jar": "x"}}
        world.emr.add_job_flow_steps(JobFlowId=cluster_id, Steps=[step])
        world.cluster().state = "RUNNING"
        said = fruits("status").output
        for line in (f"{cluster_id} fruits-zoe RUNNING", "01_load RUNNING", "primary  ec2-"):
            assert line in said
        assert f"`fruits emr terminate {cluster_id} --region eu-west-1` ends it" in said

    def test_an_unknown_id_is_one_line(self, fruits, world):
        assert "j-NONE" in fruits("status", "j-NONE").stop

    def test_cost_so_far_and_what_still_runs(self, fruits, world):
        world.start()
        world.slept = 3600
        said = fruits("cost").output
        assert re.search(
            r"3\.0\d h  m5\.xlarge +on demand\n\$\d\.\d\d over 1 h 00 min\nprices", said
        )
        assert "still runs (WAITING)" in said


class TestTunnel:
    def test_print_is_the_whole_command_quoted(self, fruits, world):
        world.start(key_name="mine")
        answer = fruits("tunnel", "--print", "--key", "a key.pem")
        host = world.cluster().master_public_dns_name
        assert answer.output.startswith("ssh -i 'a key.pem' -N -o ExitOnForwardFailure=yes ")
        assert f"-L 127.0.0.1:9443:{host}:9443 -L 127.0.0.1:18080:{host}:18080" in answer.output
        assert answer.output.endswith(f" hadoop@{host}\n")

    def test_runs_ssh_and_says_afterwards_what_runs(self, fruits, world, monkeypatch):
        cluster_id, ran = world.start(key_name="mine"), []

        def run(command):
            ran.append(command)
            return subprocess.CompletedProcess(command, 0)

        monkeypatch.setattr(cli.subprocess, "run", run)
        answer = fruits("tunnel", "--hub-port", "9444")
        assert "127.0.0.1:9444:" in " ".join(ran[0])
        assert "https://127.0.0.1:9444/user/jovyan/lab" in answer.output
        assert f"{cluster_id} still runs (WAITING)" in answer.output

    def test_a_failure_of_ssh_fails(self, fruits, world, monkeypatch):
        world.start(key_name="mine")
        failed = subprocess.CompletedProcess([], 255)
        monkeypatch.setattr(cli.subprocess, "run", lambda command: failed)
        assert fruits("tunnel").stop.startswith("ssh ended with 255: see its message above")

    def test_a_cluster_without_a_key_pair(self, fruits, world):
        line = f"{world.start()} is WAITING and has no address yet, or no SSH key: wait, or create"
        assert fruits("tunnel").stop.startswith(line)

    def test_a_cluster_without_an_address_yet(self):
        cluster = {"Id": "j-1", "Ec2InstanceAttributes": {}, "Status": {"State": "STARTING"}}
        with pytest.raises(FruitsError, match="j-1 is STARTING and has no address yet, or no SSH"):
            console.ssh_command(cluster, "key.pem")


class TestRun:
    def fails(self, world):
        def event():
            error = ("FruitsError", "k=300 is too many")
            world.execute("runs/1/notebooks/03_pick_k.ipynb", error)
            world.steps("FAILED")()

        return event

    def test_prints_a_line_for_each_notebook_with_minutes_and_cost(self, fruits, world):
        def ends():
            for name in ("01_load", "06_classify"):
                world.execute(f"runs/1/notebooks/{name}.ipynb")
            world.steps("COMPLETED")()

        world.start()
        world.events += [world.steps("RUNNING"), ends]
        answer = fruits(*RUN_IT)
        assert answer.exit_code == 0
        assert re.search(r"^01_load +3 min +\$\d\.\d\d so far$", answer.output, re.M)
        assert re.search(r"^06_classify +3 min +\$\d\.\d\d so far$", answer.output, re.M)
        assert {step.action_on_failure for step in world.cluster().steps} == {"CANCEL_AND_WAIT"}
        assert f"the notebooks are done: {RUN}/report.html" in answer.output
        assert "still runs (RUNNING)" in answer.output

    def test_prints_the_notebook_s_own_error_and_what_runs(self, fruits, world):
        cluster_id = world.start()
        world.events += [self.fails(world)]
        answer = fruits(*RUN_IT)
        line = f"03_pick_k: FruitsError: k=300 is too many; {cluster_id} still runs (RUNNING): `fr"
        assert answer.stop.startswith(line)

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["-p", "k=many"], "k='many' is not of type int"),
            (
                ["--recipe", "mobilenet"],
                "recipe mobilenet is unknown: did you mean mobilenet-raw-90",
            ),
            (["--data", "photos"], "data=photos is not an s3:// URI"),
            (["-p", "data=s3://b/other"], "data=s3://b/other and --data are both given"),
            (["-p", "weights=my.tflite"], "weights=my.tflite is not an s3:// URI"),
        ],
    )
    def test_a_wrong_parameter_adds_no_step(self, fruits, world, more, words):
        world.start()
        assert fruits(*RUN_IT, *more).stop.startswith(words)
        assert world.cluster().steps == []

    def test_a_no_adds_no_step_and_ends_nothing(self, fruits, world):
        world.start()
        answer = fruits(*RUN_IT[:-1], "--and-terminate", input="n\n")
        assert answer.exit_code == 1
        assert (world.cluster().steps, world.cluster().state) == ([], "WAITING")

    def test_the_end_comes_after_success_when_wanted(self, fruits, world):
        world.start()
        world.events += [world.steps("COMPLETED"), world.becomes("TERMINATED")]
        answer = fruits(*RUN_IT, "--and-terminate")
        assert answer.exit_code == 0
        assert re.search(r"has ended: TERMINATED, \$\d+\.\d\d in all", answer.output)

    def test_the_end_comes_after_failure_when_wanted(self, fruits, world):
        world.start()
        world.events += [self.fails(world), world.becomes("TERMINATED")]
        stop = fruits(*RUN_IT, "--and-terminate").stop
        assert stop.startswith("03_pick_k: FruitsError: k=300 is too many; ")
        assert stop.endswith("has ended: nothing runs any more")

    def test_the_end_comes_after_ctrl_c_when_wanted_without_a_question(self, fruits, world):
        world.start()
        world.events += [ctrl_c, world.becomes("TERMINATED")]
        answer = fruits(*RUN_IT, "--and-terminate")
        assert answer.exit_code == console.INTERRUPTED
        assert "?" not in answer.stderr
        assert answer.stderr.endswith("has ended: nothing runs any more\n")

    def test_the_end_comes_after_a_bug_of_ours_when_wanted(self, fruits, world, monkeypatch):
        world.start()
        monkeypatch.setattr(cli.steps, "run_request", lambda *_: 1 / 0)
        world.events += [world.becomes("TERMINATED")]
        with pytest.raises(ZeroDivisionError):
            fruits(*RUN_IT, "--and-terminate")
        assert world.cluster().state == "TERMINATED"

    def test_a_closed_terminal_is_asked_nothing(self, fruits, world):
        cluster_id = world.start()
        world.events += [hang_up]
        answer = fruits(*RUN_IT, input="y\n")
        assert answer.exit_code == 129
        assert answer.stderr.startswith(f"fruits: interrupted; {cluster_id} still runs (RUNNING)")

    def test_ctrl_c_leaves_the_steps_and_says_so(self, fruits, world):
        cluster_id = world.start()
        world.events += [ctrl_c]
        answer = fruits(*RUN_IT, input="n\n")
        assert answer.exit_code == console.INTERRUPTED
        assert f"interrupted; {cluster_id} still runs (RUNNING): `fruits emr term" in answer.stderr

    def test_a_refused_end_is_said_with_the_failure(self, fruits, world):
        world.start()
        world.cluster().termination_protected = True
        world.events += [self.fails(world)]
        stop = fruits(*RUN_IT, "--and-terminate").stop
        assert re.search(r"^03_pick_k: .*; TerminateJobFlows: .*; j-\w+ still runs \(", stop)


class TestLogs:
    def test_lists_what_there_is(self, fruits, world):
        cluster_id = world.start()
        step = {"Name": "01_load", "HadoopJarStep": {"Jar": "x"}}
        (step_id,) = world.emr.add_job_flow_steps(JobFlowId=cluster_id, Steps=[step])["StepIds"]
        assert f"--step {step_id}  01_load RUNNING" in fruits("logs").output

    def test_prints_a_step_s_stderr(self, fruits, world):
        where = f"stage/logs/{world.start('TERMINATED')}"
        world.put(f"{where}/steps/s-1/stderr.gz", gzip.compress("a naïve word\n".encode()))
        assert fruits("logs", "--step", "s-1").output == "a naïve word\n"

    def test_prints_the_bootstrap_logs(self, fruits, world):
        nodes = f"stage/logs/{world.start('TERMINATED')}/node"
        said = gzip.compress(b"bootstrap: FAILED: no such wheel\n")
        world.put(f"{nodes}/i-1/bootstrap-actions/1/stderr.gz", said)
        world.put(f"{nodes}/i-1/daemons/instance-state/stderr.gz", gzip.compress(b"else"))
        said = fruits("logs", "--bootstrap").output
        assert said == "== i-1\nbootstrap: FAILED: no such wheel\n"

    @pytest.mark.parametrize(
        ("asked", "where"), [(["--step", "s-1"], "steps/s-1"), (["--bootstrap"], "node")]
    )
    def test_a_log_that_is_not_there_yet(self, fruits, world, asked, where):
        cluster_id = world.start()
        stop = fruits("logs", *asked).stop
        assert stop.startswith(f"{STAGE}/logs/{cluster_id}/{where}/ has no stderr.gz: EMR copies")


class TestTerminate:
    def test_asks_ends_waits_and_says_so(self, fruits, world):
        cluster_id = world.start()
        world.events += [world.becomes("TERMINATED")]
        answer = fruits("terminate", input="y\n")
        assert f"end {cluster_id} (fruits-zoe, WAITING)?" in answer.output
        assert re.search(rf"{cluster_id} has ended: TERMINATED, \$\d+\.\d\d in all", answer.output)

    def test_a_no_ends_nothing(self, fruits, world):
        world.start()
        assert fruits("terminate", input="n\n").exit_code == 1
        assert world.cluster().state == "WAITING"

    def test_a_protected_one_needs_more_than_yes(self, fruits, world):
        cluster_id = world.start()
        world.cluster().termination_protected = True
        stop = fruits("terminate", "--yes").stop
        assert f"; {cluster_id} still runs (WAITING)" in stop
        assert world.cluster().state == "WAITING"
        world.events += [world.becomes("TERMINATED")]
        assert fruits("terminate", "--yes", "--unprotect").exit_code == 0

    def test_ctrl_c_while_waiting_says_that_it_is_ending(self, fruits, world):
        cluster_id = world.start()
        world.events += [ctrl_c]
        answer = fruits("terminate", "--yes")
        assert answer.exit_code == console.INTERRUPTED
        assert f"interrupted; {cluster_id} is ending: see `fruits emr status" in answer.stderr


class TestDoctor:
    def test_is_one_step_that_writes_where_nodes_may_and_prints_the_uri(self, fruits, world):
        cluster_id = world.start()
        world.events += [world.steps("COMPLETED")]
        uri = f"{STAGE}/logs/{cluster_id}/doctor.json"
        assert uri in fruits("doctor").output
        (step,) = world.cluster().steps
        assert step.args == ["spark-submit", f"{STAGE}/doctor.py", uri]

    def test_on_the_node_it_finds_what_spark_and_yarn_say(self, spark):
        path = str(staging.CHECKOUT / "scripts/doctor.py")
        found = runpy.run_path(path)["examine"](spark)
        assert found["spark"]["spark.master"] == "local[2]"
        (python,) = {text.split(", AWS")[0] for text in (found["driver"], *found["executors"])}
        assert python == f"Python {sys.version}, {sys.executable}"
        assert "yarn.resourcemanager.hostname" in found["yarn"]
        assert "URLError" in found["nodes"]  # no YARN here: the text of its error, and the rest
        assert not re.search("secret|password", " ".join(found["spark"]), re.IGNORECASE)


def test_what_aws_refuses_is_one_line(fruits, world, monkeypatch):
    def refuse(*_):
        raise NoCredentialsError

    monkeypatch.setattr(clusters, "recent", refuse)
    assert fruits("list").stop.startswith("AWS credentials are missing: set AWS_PROFILE")
