"""Clusters of moto's EMR: started once, found, waited for, paid for. The test moves every state."""

import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from fake_emr import REGION, STAGE, fake_world

from fruits_lib import aws
from fruits_lib.emr import cluster as clusters
from fruits_lib.emr import prices
from fruits_lib.emr.spec import DATA_GB, ClusterSpec, build_request
from fruits_lib.errors import FruitsError


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
        with pytest.raises(FruitsError, match="unknown: look with `fruits emr list --region eu-w"):
            clusters.start(REGION, build_request(ClusterSpec(STAGE)))
        assert dropping.asked == 1

    def test_a_refusal_says_that_nothing_was_started(self, world, monkeypatch):
        client = aws.client("emr", REGION)
        monkeypatch.setattr(aws, "client", lambda *_: client)
        with Stubber(client) as stub:
            refusal = ("ValidationException", "Invalid InstanceProfile: x", 400)
            stub.add_client_error("run_job_flow", *refusal)
            with pytest.raises(FruitsError, match="Invalid InstanceProfile: x; nothing was start"):
                clusters.start(REGION, {"Name": "n", "Instances": {}})

    def test_ctrl_c_in_the_middle_says_that_it_is_unknown(self, world, monkeypatch):
        class Client:
            def run_job_flow(self, **_):
                raise KeyboardInterrupt

        monkeypatch.setattr(aws, "client", lambda *_: Client())
        with pytest.raises(FruitsError, match="interrupted; whether a cluster was started is unk"):
            clusters.start(REGION, {})


class TestFind:
    def test_the_running_one_of_the_name(self, world):
        world.start(name="another")
        wanted = world.start()
        assert clusters.find(world.emr, "fruits-zoe")["Id"] == wanted

    def test_several_are_listed_in_one_line(self, world):
        ids = {world.start(), world.start("RUNNING")}
        with pytest.raises(
            FruitsError, match="eu-west-1 runs 2 clusters named fruits-zoe"
        ) as found:
            clusters.find(world.emr, "fruits-zoe")
        assert all(cluster_id in str(found.value) for cluster_id in ids)

    def test_an_ended_one_counts_when_wanted_and_the_newest_wins(self, world):
        old, new = world.start("TERMINATED"), world.start("TERMINATED_WITH_ERRORS")
        world.cluster(old).creation_datetime -= timedelta(days=1)
        assert clusters.find(world.emr, "fruits-zoe", ended=True)["Id"] == new

    def test_a_running_one_wins_over_a_newer_ended_one(self, world):
        running = world.start()
        world.cluster(running).creation_datetime -= timedelta(days=50)
        world.start("TERMINATED")
        assert clusters.find(world.emr, "fruits-zoe", ended=True)["Id"] == running


class TestWait:
    @pytest.mark.parametrize("waiter", ["cluster_running", "cluster_terminated"])
    def test_until_the_cluster_has_failed(self, world, waiter):
        cluster_id = world.start("STARTING")
        world.events += [world.becomes("TERMINATED_WITH_ERRORS")]
        clusters.wait(world.emr, waiter, delay=1, ClusterId=cluster_id)
        assert world.slept == 1

    def test_a_refusal_is_raised(self, world):
        with Stubber(world.emr) as stub:
            stub.add_client_error("describe_cluster", "ExpiredTokenException", "expired", 400)
            with pytest.raises(ClientError) as raised:
                clusters.wait(world.emr, "cluster_running", ClusterId="j-1")
        assert aws.explain(raised.value).endswith("log in again, for example `aws sso login`")


class TestBill:
    def price(self, spot=False):
        local = prices.table_prices(REGION)
        ebs, market = ClusterSpec.ebs_gb + DATA_GB, "SPOT" if spot else "ON_DEMAND"
        node = [("CORE", "m5.xlarge", 1, market)]
        return sum(prices.hourly_costs(local, node, ebs).values())

    def test_three_nodes_for_two_hours(self, world):
        cluster_id = world.start()
        world.slept = 7200
        hours, dollars = clusters.bill(world.emr, cluster_id)
        assert hours["m5.xlarge", "ON_DEMAND"] == pytest.approx(6, rel=0.01)
        assert dollars == pytest.approx(6 * self.price(), rel=0.01)

    def test_stands_still_after_the_end(self, world):
        cluster_id = world.start()
        world.slept = 3600
        world.becomes("TERMINATED")()
        first = clusters.bill(world.emr, cluster_id)
        world.slept = 900_000
        assert clusters.bill(world.emr, cluster_id) == first
        assert first[1] == pytest.approx(3 * self.price(), rel=0.01)

    def test_a_node_that_scaling_ended_is_paid_until_then(self, world):
        cluster_id = world.start()
        world.cluster().ec2_instances[-1].instance_group.end_date_time = world.moto_time()
        world.slept = 3600
        hours, _ = clusters.bill(world.emr, cluster_id)
        assert hours["m5.xlarge", "ON_DEMAND"] == pytest.approx(1 + 2 / 60, rel=0.02)

    def test_spot_nodes_have_the_spot_price(self, world):
        cluster_id = world.start()
        for node in world.cluster().ec2_instances:
            node.instance_group.market = "SPOT"
        world.slept = 3600
        _, dollars = clusters.bill(world.emr, cluster_id)
        assert dollars == pytest.approx(3 * self.price(spot=True), rel=0.01)

    def test_a_node_that_is_only_requested_costs_nothing(self, world):
        cluster_id = world.start("STARTING")
        for group in world.cluster().instance_groups:
            group.state = "AWAITING_FULFILLMENT"
        assert clusters.bill(world.emr, cluster_id) == ({}, 0)

    def test_a_type_without_a_price_is_not_guessed(self, world):
        cluster_id = world.start()
        for node in world.cluster().ec2_instances:
            node.ec2_instance.instance_type = "m9.huge"
        assert clusters.bill(world.emr, cluster_id)[1] is None


def test_logs_are_found_under_the_name_that_emr_gives_them():
    cluster = {"Id": "j-1", "LogUri": "s3n://orchard/stage/logs/"}  # whatever it was given
    assert clusters.logs(cluster) == f"{STAGE}/logs/j-1"
