"""What a cluster would take and cost: the table of prices, AWS's Pricing API, and the plan."""

import importlib.util
import json
from datetime import UTC, datetime, timedelta

import pytest
from botocore.stub import Stubber

from fruits_lib import aws
from fruits_lib.emr import prices
from fruits_lib.emr.console import OTHER_MINUTES, START_MINUTES, plan
from fruits_lib.emr.prices import current_prices, hourly_costs, load_table, note, table_prices
from fruits_lib.emr.spec import CONFIGURATIONS, DATA_GB, ClusterSpec
from fruits_lib.errors import FruitsError

REGION = "eu-west-1"
TABLE = {
    "date": "2026-01-01",
    "source": "a test",
    "instance_types": {"m5.xlarge": {"vcpu": 4, "yarn_mb": 12288, "arch": "x86_64"}},
    "emr": {"m5.xlarge": 0.05},
    "regions": {
        REGION: {
            "ec2": {"m5.xlarge": 0.2},
            "ebs_gb_month": 0.073,
            "s3_gb_month": 0.02,
            "s3_1000_reads": 0.0004,
            "s3_1000_writes": 0.005,
        }
    },
    "spot_share": 0.5,
    "ipv4_hour": 0.005,
}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Round prices in place of the package's."""
    monkeypatch.setattr(prices, "PRICES", tmp_path / "prices.json")
    prices.PRICES.write_text(json.dumps(TABLE))


@pytest.fixture
def pricing(monkeypatch):
    """A Pricing API whose answers the test gives; it expects exactly so many requests."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    client = aws.client("pricing", "eu-central-1")
    monkeypatch.setattr(aws, "client", lambda *_: client)
    with Stubber(client) as stub:
        stub.client = client
        yield stub
        stub.assert_no_pending_responses()


def expect(pricing, service, filters, *products):
    fields = {"regionCode": REGION, **filters}
    terms = [{"Type": "TERM_MATCH", "Field": key, "Value": value} for key, value in fields.items()]
    question = {"ServiceCode": service, "Filters": terms}
    pricing.add_response("get_products", {"PriceList": list(products)}, question)


def product(*dollars, begin="0"):
    """Return a product of the price list, as the API gives it: JSON in a string."""
    dimensions = {
        str(i): {"beginRange": begin, "pricePerUnit": {"USD": f"{value}"}}
        for i, value in enumerate(dollars)
    }
    return json.dumps({"terms": {"OnDemand": {"x": {"priceDimensions": dimensions}}}})


def expect_node(pricing, ec2, emr):
    for service, filters, products in (
        ("AmazonEC2", prices.EC2_FILTERS, ec2),
        ("ElasticMapReduce", prices.EMR_FILTERS, emr),
    ):
        expect(pricing, service, {"instanceType": "m5.xlarge", **filters}, *products)


# --- the table ----------------------------------------------------------------------------------


def test_everything_priced_is_described():
    table = load_table()
    for priced in (table["emr"], *(local["ec2"] for local in table["regions"].values())):
        assert priced.keys() <= table["instance_types"].keys()


def node(kind="m5.xlarge", market="ON_DEMAND", count=1):
    return [("CORE", kind, count, market)]


def test_a_node_costs_ec2_emr_ebs_and_its_public_address(table):
    costs = hourly_costs(table_prices(REGION), node(count=2), 100)
    assert costs == pytest.approx({"EC2": 0.4, "EMR": 0.1, "EBS": 0.02, "IPv4": 0.01})


def test_spot_reduces_ec2_alone(table):
    full, spot = (
        hourly_costs(table_prices(REGION), node(market=market), 9)
        for market in ("ON_DEMAND", "SPOT")
    )
    assert spot == {**full, "EC2": full["EC2"] / 2}


@pytest.mark.parametrize(("kind", "region"), [("m7g.xlarge", REGION), ("m5.xlarge", "eu-x-1")])
def test_a_price_that_is_not_known_is_not_guessed(kind, region):
    assert hourly_costs(table_prices(region), node(kind), 9) is None


@pytest.mark.parametrize(("days", "old"), [(0, False), (180, False), (181, True)])
def test_old_prices_are_said_to_be_old(days, old):
    today = datetime.now(UTC).date()
    text = note({"date": (today - timedelta(days)).isoformat(), "source": "a test"})
    assert (f"{days} days old" in text) == old


# --- AWS's prices -------------------------------------------------------------------------------


def test_todays_prices_are_taken_where_aws_answers(table, pricing):
    expect_node(pricing, [product(0, 0.25)], [product(0.06), product(0.06)])
    found = current_prices(REGION, {"m5.xlarge"})
    assert (found["ec2"], found["emr"]) == ({"m5.xlarge": 0.25}, {"m5.xlarge": 0.06})
    assert note(found) == f"prices of {datetime.now(UTC).date()} (AWS's Pricing API)"


def test_else_the_tables_with_their_date(table, pricing):
    pricing.add_client_error("get_products", "AccessDeniedException", "no")
    assert "prices of 2026-01-01 (a test" in note(current_prices(REGION, {"m5.xlarge"}))


def test_two_prices_of_one_thing_are_none(table, pricing):
    expect(pricing, "AmazonEC2", {"a": "b"}, product(0.2), product(0.3))
    with pytest.raises(FruitsError, match="AmazonEC2 has 2 prices of"):
        prices.ask_price(pricing.client, "AmazonEC2", REGION, {"a": "b"})


class TestRefresh:
    @pytest.fixture
    def script(self):
        path = CONFIGURATIONS.parent / "scripts/refresh_prices.py"
        spec = importlib.util.spec_from_file_location("refresh_prices", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_fills_the_table_with_todays_prices(self, script, pricing):
        expect_node(pricing, [product(0.25)], [product(0.06)])
        answers = iter([[product(0.09)], [product(0.024), product(0.023, begin="51200")]])
        small = iter([[product("0.00000043")], [product("0.0000054")]])
        for service, filters, count in script.BY_REGION.values():
            expect(pricing, service, filters, *next(small if count > 1 else answers))
        fresh = script.refreshed(pricing.client, TABLE, [REGION])
        assert fresh["regions"][REGION] == {
            "ec2": {"m5.xlarge": 0.25},
            "ebs_gb_month": 0.09,
            "s3_gb_month": 0.024,
            "s3_1000_reads": 0.00043,
            "s3_1000_writes": 0.0054,
        }
        assert (fresh["emr"], fresh["ipv4_hour"]) == ({"m5.xlarge": 0.06}, 0.005)
        assert fresh["date"] == datetime.now(UTC).date().isoformat()

    def test_stops_at_a_region_without_a_price_of_storage(self, script, pricing):
        expect_node(pricing, [], [])
        expect(pricing, "AmazonEC2", script.BY_REGION["ebs_gb_month"][1])
        with pytest.raises(FruitsError, match="no price of ebs_gb_month in eu-west-1"):
            script.refreshed(pricing.client, TABLE, [])

    def test_a_refusal_is_one_line_and_leaves_the_table(self, script, table, pricing, monkeypatch):
        monkeypatch.setattr(script.sys, "argv", ["refresh_prices.py"])
        pricing.add_client_error("get_products", "AccessDeniedException", "no")
        with pytest.raises(SystemExit, match="^GetProducts: AccessDeniedException: no"):
            script.main()
        assert load_table() == TABLE


# --- the plan -----------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(prices, "ask_node", lambda *_: None)


@pytest.mark.usefixtures("table", "offline")
class TestPlan:
    def text(self, images=43_200, rate=30, **asked):
        return " ".join(plan(ClusterSpec(**asked), images, rate).split())

    def test_time_is_images_by_rate_and_vcpus_and_fixed_parts(self):
        minutes = START_MINUTES + 2 + OTHER_MINUTES
        text = self.text(task_nodes=1)
        assert f"time {minutes:.0f} min: {START_MINUTES:g} min start + 2 featurize" in text
        assert "each of 12 vCPUs" in text

    def test_a_start_takes_10_to_15_minutes(self):
        assert 10 <= START_MINUTES <= 15

    def test_price_is_nodes_by_hours(self):
        hours = (START_MINUTES + OTHER_MINUTES) / 60
        text = self.text(core_nodes=40, images=1, rate=1e9)
        assert f"EC2 ${41 * 0.2 * hours:.2f}" in text
        assert f"EMR ${41 * 0.05 * hours:.2f}" in text
        assert f"EBS ${41 * (32 + DATA_GB) * 0.0001 * hours:.2f}" in text
        assert f"IPv4 ${41 * 0.005 * hours:.2f}" in text

    def test_says_nodes_place_and_date_of_the_prices(self):
        text = self.text(core_nodes=4, task_nodes=2)
        assert "1 primary m5.xlarge + 4 core m5.xlarge + 2 task (spot) m5.xlarge;" in text
        assert "eu-west-1, in the EU" in text
        assert "prices of 2026-01-01 (a test" in text

    def test_a_region_outside_the_eu_is_warned_of_and_has_no_price_here(self):
        text = self.text(region="us-east-1")
        assert "us-east-1, WARNING: not in the EU" in text
        assert "price not known" in text

    def test_no_line_is_wider_than_a_terminal(self):
        text = plan(ClusterSpec(task_nodes=3, region="us-east-1"), 12_345_678)
        assert max(map(len, text.splitlines())) <= 100

    @pytest.mark.parametrize(("images", "rate"), [(0, 20), (1, 0), (1, -2.5), (1, float("nan"))])
    def test_impossible_numbers_are_refused(self, images, rate):
        with pytest.raises(FruitsError, match=f"images={images}, rate={rate}: both must be above"):
            plan(ClusterSpec(), images, rate)
