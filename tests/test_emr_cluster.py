"""A cluster's life against moto's EMR; every state is moved by the test."""

import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from botocore.stub import Stubber
from fake_emr import REGION, STAGE, fake_world

from fruits_lib import aws
from fruits_lib.emr import cluster as life
from fruits_lib.emr import prices
from fruits_lib.emr.request import build_request, load_configurations
from fruits_lib.emr.spec import ClusterSpec
from fruits_lib.errors import FruitsError

IMDSV2 = {"InstanceMetadataServiceConfiguration": {"MinimumInstanceMetadataServiceVersion": 2}}


@pytest.fixture
def world():
    with fake_world() as opened:
        yield opened


class Dropping(BaseHTTPRequestHandler):
    """An endpoint whose answers say nothing of what it has done."""

    def do_POST(self):
        self.server.asked += 1
        self.send_response(500)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def dropping(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Dropping)
    server.asked = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-a-test")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    yield server
    server.shutdown()
    server.server_close()


class TestStart:
    def test_a_lost_answer_is_never_followed_by_a_second_request(self, dropping):
        spec = ClusterSpec(STAGE)
        with pytest.raises(FruitsError, match="unknown: look with `fruits emr list --region eu-w"):
            life.start(REGION, build_request(spec, load_configurations(spec)))
        assert dropping.asked == 1

    def test_a_refusal_says_that_nothing_was_started(self, world, monkeypatch):
        client = aws.client("emr", REGION)
        monkeypatch.setattr(aws, "client", lambda *_: client)
        with Stubber(client) as stub:
            stub.add_client_error(
                "run_job_flow", "ValidationException", "Invalid InstanceProfile: x", 400
            )
            with pytest.raises(FruitsError, match="Invalid InstanceProfile: x; nothing was start"):
                life.start(REGION, {"Name": "n", "Instances": {}})

    def test_ctrl_c_in_the_middle_says_that_it_is_unknown(self, world, monkeypatch):
        class Client:
            def run_job_flow(self, **_):
                raise KeyboardInterrupt

        monkeypatch.setattr(aws, "client", lambda *_: Client())
        with pytest.raises(FruitsError, match="interrupted; whether a cluster was started is unk"):
            life.start(REGION, {})

    def test_the_request_is_kept_for_a_clone(self, world):
        it = life.describe(world.emr, world.start())
        request = {"Name": "kept", "LogUri": f"{STAGE}/logs/"}
        life.save_request(world.s3, it.id, request)
        assert life.saved_request(world.s3, it) == request

    def test_a_request_that_was_not_kept_is_none(self, world):
        assert life.saved_request(world.s3, life.describe(world.emr, world.start())) is None

    def test_the_security_configuration_is_made_once(self, world):
        made = [life.ensure_security_configuration(world.emr, "v2", IMDSV2) for _ in range(2)]
        assert made == [True, False]
        kept = world.emr.describe_security_configuration(Name="v2")["SecurityConfiguration"]
        assert "MinimumInstanceMetadataServiceVersion" in kept


class TestFind:
    def test_the_running_one_of_the_name(self, world):
        world.start(name="another")
        wanted = world.start()
        assert life.find(world.emr, "fruits", world.now).id == wanted

    def test_several_are_listed_in_one_line(self, world):
        ids = {world.start(), world.start("RUNNING")}
        with pytest.raises(FruitsError, match="2 clusters named fruits run in eu-west-1") as failed:
            life.find(world.emr, "fruits", world.now)
        assert all(it in str(failed.value) for it in ids)

    def test_an_ended_one_does_not_count(self, world):
        world.start("TERMINATED")
        with pytest.raises(FruitsError, match="no cluster named fruits runs in eu-west-1: see `fr"):
            life.find(world.emr, "fruits", world.now)

    def test_an_ended_one_counts_when_asked_and_the_newest_wins(self, world):
        old, new = world.start("TERMINATED"), world.start("TERMINATED_WITH_ERRORS")
        world.cluster(old).creation_datetime -= timedelta(days=1)
        assert life.find(world.emr, "fruits", world.now, ended=True).id == new

    def test_a_running_one_wins_over_a_newer_ended_one(self, world):
        running = world.start()
        world.cluster(running).creation_datetime -= timedelta(days=50)
        world.start("TERMINATED")
        assert life.find(world.emr, "fruits", world.now, ended=True).id == running

    def test_one_that_ended_long_ago_is_forgotten(self, world):
        world.start("TERMINATED")
        world.cluster().creation_datetime -= timedelta(days=31)
        with pytest.raises(FruitsError, match="no cluster named fruits"):
            life.find(world.emr, "fruits", world.now, ended=True)

    def test_an_unknown_id_is_named_with_its_region(self, world):
        with pytest.raises(FruitsError, match="^j-NONE is no cluster in eu-west-1: see `fruits em"):
            life.describe(world.emr, "j-NONE")


class TestWatch:
    def test_ends_when_a_wanted_state_is_reached(self, world):
        it = world.start("STARTING")
        world.events += [world.becomes("BOOTSTRAPPING"), world.becomes("WAITING")]
        seen = [one.state for one in life.watch(world.emr, it, life.READY, world.sleep)]
        assert seen == ["STARTING", "BOOTSTRAPPING", "WAITING"]
        assert world.slept == 2 * life.POLL

    def test_ends_when_the_cluster_has_ended_instead(self, world):
        it = world.start("STARTING")
        world.events += [world.becomes("TERMINATED_WITH_ERRORS", "no instance of that type")]
        *_, last = life.watch(world.emr, it, life.READY, world.sleep)
        assert (last.state, last.reason) == ("TERMINATED_WITH_ERRORS", "no instance of that type")


class TestTerminate:
    def test_ends(self, world):
        it = world.start()
        life.terminate(world.emr, life.describe(world.emr, it))
        assert life.describe(world.emr, it).state == "TERMINATING"

    def test_a_protected_one_stays(self, world):
        it = world.start()
        world.cluster().termination_protected = True
        with pytest.raises(FruitsError, match="is protected against termination: add --unprotect"):
            life.terminate(world.emr, life.describe(world.emr, it))
        assert life.describe(world.emr, it).state == "WAITING"

    def test_a_protected_one_ends_when_unprotected(self, world):
        it = world.start()
        world.cluster().termination_protected = True
        life.terminate(world.emr, life.describe(world.emr, it), unprotect=True)
        assert life.describe(world.emr, it).state == "TERMINATING"


class TestBill:
    def price(self, market="ON_DEMAND"):
        return prices.node_price("m5.xlarge", REGION, market == "SPOT")

    def test_three_nodes_for_two_hours(self, world):
        it = world.start()
        spent = life.bill(world.emr, it, world.now() + timedelta(hours=2))
        assert spent.hours["m5.xlarge", "ON_DEMAND"] == pytest.approx(6, rel=0.01)
        assert spent.dollars == pytest.approx(6 * self.price(), rel=0.01)

    def test_stands_still_after_the_end(self, world):
        it = world.start()
        world.slept = 3600
        world.becomes("TERMINATED")()
        after = [life.bill(world.emr, it, world.now() + timedelta(days=d)) for d in (0, 9)]
        assert after[0] == after[1]
        assert after[0].dollars == pytest.approx(3 * self.price(), rel=0.01)

    def test_a_node_that_scaling_ended_is_paid_until_then(self, world):
        it = world.start()
        world.cluster().ec2_instances[-1].instance_group.end_date_time = world.now()
        hours = life.bill(world.emr, it, world.now() + timedelta(hours=1)).hours
        assert hours["m5.xlarge", "ON_DEMAND"] == pytest.approx(1 + 2 / 60, rel=0.02)

    def test_spot_nodes_have_the_spot_price(self, world):
        it = world.start()
        for node in world.cluster().ec2_instances:
            node.instance_group.market = "SPOT"
        spent = life.bill(world.emr, it, world.now() + timedelta(hours=1))
        assert spent.dollars == pytest.approx(3 * self.price("SPOT"), rel=0.01)
        assert self.price("SPOT") < self.price()

    def test_a_node_that_is_only_asked_for_costs_nothing(self, world):
        it = world.start("STARTING")
        for group in world.cluster().instance_groups:
            group.state = "AWAITING_FULFILLMENT"
        assert life.bill(world.emr, it, world.now()) == life.Bill({}, 0)

    def test_a_type_without_a_price_is_not_guessed(self, world):
        it = world.start()
        for node in world.cluster().ec2_instances:
            node.ec2_instance.instance_type = "m9.huge"
        assert life.bill(world.emr, it, world.now()).dollars is None


def test_what_a_cluster_was_asked_to_be_can_be_told_from_it(world):
    asked = {"core": "m5.xlarge", "core_nodes": 3, "key_name": "mine", "release": "emr-7.13.0"}
    it = life.describe(world.emr, world.start(**asked))
    spec = life.spec_of(world.emr, it)
    assert {name: getattr(spec, name) for name in asked} == asked
    assert (spec.stage, spec.instance_profile) == (STAGE, ClusterSpec.instance_profile)


def test_logs_are_found_under_the_name_that_emr_gives_them(world):
    it = world.start()
    world.cluster().log_uri = "s3n://orchard/stage/logs/"  # whatever it was given
    described = life.describe(world.emr, it)
    assert (described.logs, described.stage) == (f"{STAGE}/logs", STAGE)
