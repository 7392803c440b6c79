"""What a cluster would take and cost, and the table of prices behind it."""

import json
from datetime import date, timedelta

import pytest
from botocore.stub import Stubber

from fruits_lib import aws
from fruits_lib.emr import prices
from fruits_lib.emr.plan import OTHER_MINUTES, RATE, START_MINUTES, make_plan
from fruits_lib.emr.prices import hourly_costs, hourly_price, load_prices, node_price, note, refresh
from fruits_lib.emr.request import build_request
from fruits_lib.emr.spec import DATA_GB, ClusterSpec
from fruits_lib.errors import FruitsError

TABLE = {
    "date": "2026-01-01",
    "source": "a test",
    "instance_types": {"m5.xlarge": {"vcpu": 4, "yarn_mb": 12288, "arch": "x86_64"}},
    "emr": {"m5.xlarge": 0.05},
    "regions": {
        "eu-west-1": {
            "ec2": {"m5.xlarge": 0.2},
            "ebs_gb_month": 0.073,
            "s3_gb_month": 0.02,
            "s3_1000_reads": 0.0004,
            "s3_1000_writes": 0.005,
        }
    },
    "spot_share": 0.5,
}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Round prices in place of the package's."""
    monkeypatch.setattr(prices, "PRICES", tmp_path / "prices.json")
    prices.PRICES.write_text(json.dumps(TABLE))
    return TABLE


def spec(**asked):
    return ClusterSpec("s3://orchard/stage", **asked)


# --- the plan -----------------------------------------------------------------------------------


def test_time_is_images_by_rate_and_vcpus_and_fixed_parts():
    plan = make_plan(spec(core_nodes=2, task_nodes=1), 43_200, rate=30)
    assert plan.vcpus == 12
    assert plan.minutes["featurize"] == pytest.approx(2)
    assert plan.hours * 60 == pytest.approx(2 + START_MINUTES + OTHER_MINUTES)


def test_twice_the_nodes_featurize_in_half_the_time():
    two, four = (make_plan(spec(core_nodes=nodes), 100_000) for nodes in (2, 4))
    assert two.minutes["featurize"] == pytest.approx(2 * four.minutes["featurize"])


def test_the_default_rate_is_said_to_be_an_estimate():
    assert f"{RATE:g} a second and vCPU: an estimate" in str(make_plan(spec(), 1000))


def test_price_is_nodes_by_hours(table):
    plan = make_plan(spec(core_nodes=4, ebs_gb=36), 100_000, rate=1e9)
    hours = (START_MINUTES + OTHER_MINUTES) / 60
    assert plan.on_demand["EC2"] == pytest.approx(5 * 0.2 * hours, rel=1e-6)
    assert plan.on_demand["EMR"] == pytest.approx(5 * 0.05 * hours, rel=1e-6)
    assert plan.on_demand["EBS"] == pytest.approx(5 * (36 + DATA_GB) * 0.0001 * hours, rel=1e-6)


def test_spot_is_priced_with_one_core_node_on_demand(table):
    plan = make_plan(spec(core_nodes=4), 1000)
    nodes = {"on demand": 2, "spot": 3}
    share = (nodes["on demand"] + nodes["spot"] * 0.5) / 5
    assert plan.spot["EC2"] == pytest.approx(share * plan.on_demand["EC2"])
    assert plan.spot["EMR"] == pytest.approx(plan.on_demand["EMR"])


def test_spot_nodes_that_are_asked_for_are_priced_as_such(table):
    plan = make_plan(spec(core_nodes=2, task_nodes=2), 1000)
    assert plan.spot["EC2"] == pytest.approx(4 / 5 * plan.on_demand["EC2"])


def test_s3_is_paid_by_the_image(table):
    one, ten = (make_plan(spec(), images).on_demand["S3"] for images in (1000, 10_000))
    assert ten == pytest.approx(10 * one)


def test_the_text_has_cluster_place_time_and_price(table):
    text = str(make_plan(spec(core_nodes=4), 100_000))
    for part in (
        "1 primary m5.xlarge + 4 core m5.xlarge; 16 vCPU",
        "eu-west-1, Ireland: in the EU",
        "EXIF",
        "100,000 images",
        "83 min",
        "on demand      spot",
        "dollars in all",
        "prices of 2026-01-01",
    ):
        assert part in " ".join(text.split()) or part in text


def test_totals_are_the_sums_of_what_is_shown(table):
    plan = make_plan(spec(core_nodes=40), 10_000_000)
    (line,) = [line for line in str(plan).splitlines() if "dollars in all" in line]
    sums = [f"{sum(costs.values()):.2f}" for costs in (plan.on_demand, plan.spot)]
    assert line.split()[-2:] == sums


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-2", "eu-central-2"])
def test_a_region_outside_the_eu_is_warned_of(region):
    assert f"WARNING: {region} is not in the EU" in str(make_plan(spec(region=region), 1000))


def test_a_price_that_is_not_known_leaves_the_time():
    text = str(make_plan(spec(primary="m7g.xlarge", core="c7g.xlarge"), 1000))
    assert "not known for these instance types" in text
    assert "1,000 images" in text


def test_no_line_is_wider_than_a_terminal():
    for kind in (spec(), spec(region="us-east-1", task_nodes=3, ssh_group="sg-0123456789abcdef0")):
        assert max(map(len, str(make_plan(kind, 12_345_678)).splitlines())) <= 100


def test_its_json_is_the_request():
    assert json.loads(make_plan(spec(name="apples"), 1000).to_json())["Name"] == "apples"


@pytest.mark.parametrize(
    ("images", "rate", "message"),
    [
        (0, None, "images=0 is below 1"),
        (1000, 0, "rate=0 is not above 0"),
        (1000, -2.5, "rate=-2.5 is not above 0"),
        (1000, float("nan"), "rate=nan is not above 0"),
    ],
)
def test_impossible_numbers_are_refused(images, rate, message):
    with pytest.raises(FruitsError, match=message):
        make_plan(spec(), images, rate)


@pytest.mark.parametrize("asked", [{"core_nodes": 0}, {"task_nodes": -1}])
def test_impossible_nodes_are_refused(asked):
    with pytest.raises(FruitsError, match="core and -?[01] task nodes: at least 1 and 0"):
        make_plan(spec(**asked), 1000)


def test_an_unknown_instance_type_is_named_with_those_known():
    with pytest.raises(FruitsError, match=r"m9\.huge is not known here: choose m5\.xlarge, "):
        make_plan(spec(core="m9.huge"), 1000)


# --- prices -------------------------------------------------------------------------------------


def test_a_cluster_costs_what_its_nodes_cost(table):
    whole = hourly_price(build_request(spec(core_nodes=2, task_nodes=3), []), "eu-west-1")
    assert whole == pytest.approx(
        3 * node_price("m5.xlarge", "eu-west-1")
        + 3 * node_price("m5.xlarge", "eu-west-1", spot=True)
    )


def test_spot_reduces_ec2_alone(table):
    full, spot = (hourly_costs("m5.xlarge", "eu-west-1", spot) for spot in (False, True))
    assert spot == {**full, "EC2": full["EC2"] / 2}


@pytest.mark.parametrize(("kind", "region"), [("m7g.xlarge", "eu-west-1"), ("m5.xlarge", "eu-x-1")])
def test_a_price_that_is_not_known_is_not_guessed(kind, region):
    with pytest.raises(FruitsError, match=f"no price of {kind} in {region}"):
        node_price(kind, region)
    assert hourly_price(build_request(spec(core=kind), []), region) is None


def test_everything_priced_is_described():
    table = load_prices()
    for priced in (table["emr"], *(local["ec2"] for local in table["regions"].values())):
        assert priced.keys() <= table["instance_types"].keys()


@pytest.mark.parametrize(("days", "old"), [(0, False), (180, False), (181, True)])
def test_old_prices_are_said_to_be_old(days, old, table):
    text = note(date(2026, 1, 1) + timedelta(days))
    assert text.startswith("prices of 2026-01-01 (a test)")
    assert (f"{days} days old" in text) == old


# --- refresh ------------------------------------------------------------------------------------


def product(*dollars, begin="0"):
    """Return a product of the price list, as the API gives it: JSON in a string."""
    dimensions = {
        str(i): {"beginRange": begin, "pricePerUnit": {"USD": f"{value}"}}
        for i, value in enumerate(dollars)
    }
    return json.dumps({"terms": {"OnDemand": {"x": {"priceDimensions": dimensions}}}})


@pytest.fixture
def pricing(monkeypatch):
    """A Pricing API whose answers the test gives; it expects exactly so many questions."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    client = aws.client("pricing", "eu-central-1")
    monkeypatch.setattr(aws, "client", lambda service, region: client)
    with Stubber(client) as stub:
        yield stub
        stub.assert_no_pending_responses()


def asked(service, **attributes):
    here = {"regionCode": "eu-west-1", **attributes}
    filters = [{"Type": "TERM_MATCH", "Field": key, "Value": it} for key, it in here.items()]
    return {"ServiceCode": service, "Filters": filters}


EC2 = asked("AmazonEC2", instanceType="m5.xlarge", **prices.EC2_FILTERS)
EMR = asked("ElasticMapReduce", instanceType="m5.xlarge", **prices.EMR_FILTERS)
GP3 = asked("AmazonEC2", volumeApiName="gp3", productFamily="Storage")
S3 = [
    asked(
        "AmazonS3", storageClass="General Purpose", volumeType="Standard", productFamily="Storage"
    ),
    asked("AmazonS3", group="S3-API-Tier2", productFamily="API Request"),
    asked("AmazonS3", group="S3-API-Tier1", productFamily="API Request"),
]


def answer(pricing, question, *products):
    pricing.add_response("get_products", {"PriceList": [*products]}, question)


def answer_by_region(pricing):
    """EBS's price, and S3's: of the amount, of reads, of writes."""
    answer(pricing, GP3, product(0.09))
    tiers = (product(0.024), product(0.023, begin="51200"))
    for question, products in zip(
        S3, (tiers, [product("0.0000004300")], [product("0.0000054000")]), strict=True
    ):
        answer(pricing, question, *products)


def test_refreshed_prices_are_the_apis_with_todays_date(pricing):
    answer(pricing, EC2, product(0, 0.25))
    answer(pricing, EMR, product(0.06), product(0.06))
    answer_by_region(pricing)
    fresh = refresh(TABLE, date(2026, 11, 21))
    assert fresh["regions"]["eu-west-1"] == {
        "ec2": {"m5.xlarge": 0.25},
        "ebs_gb_month": 0.09,
        "s3_gb_month": 0.024,
        "s3_1000_reads": 0.00043,
        "s3_1000_writes": 0.0054,
    }
    assert fresh["emr"] == {"m5.xlarge": 0.06}
    assert fresh["date"] == "2026-11-21"
    assert fresh["source"].startswith("AWS's Pricing API")


def test_what_a_region_does_not_have_loses_its_price(pricing):
    answer(pricing, EC2)
    answer(pricing, EMR, product(0.06))
    answer_by_region(pricing)
    assert refresh(TABLE)["regions"]["eu-west-1"]["ec2"] == {}


def test_a_region_without_a_price_of_storage_is_none(pricing):
    answer(pricing, EC2)
    answer(pricing, EMR)
    answer(pricing, GP3)
    with pytest.raises(FruitsError, match="no price of AmazonEC2 in eu-west-1 for ebs_gb_month"):
        refresh(TABLE)


def test_a_region_that_is_new_is_added(table, monkeypatch):
    regions = []
    monkeypatch.setattr(prices, "refresh", lambda table: regions.extend(table["regions"]) or table)
    prices.renew("eu-west-9")
    assert regions == ["eu-west-1", "eu-west-9"]


def test_a_table_that_cannot_be_written_is_said_before_aws_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(prices, "PRICES", tmp_path / "absent" / "prices.json")
    monkeypatch.setattr(prices, "refresh", lambda table: pytest.fail("asked"))
    with pytest.raises(
        FruitsError, match=r"prices\.json cannot be written \(No such file.*\): run"
    ):
        prices.renew("eu-west-1")


def test_a_refusal_while_asking_leaves_the_table(table, pricing):
    pricing.add_client_error("get_products", "AccessDeniedException", "no")
    with pytest.raises(FruitsError):
        prices.renew("eu-west-1")
    assert load_prices() == TABLE


def test_two_prices_of_one_thing_are_refused(pricing):
    pricing.add_response("get_products", {"PriceList": [product(0.2), product(0.3)]}, EC2)
    with pytest.raises(FruitsError, match=r"AmazonEC2 has 2 prices of m5\.xlarge in eu-west-1"):
        refresh(TABLE)


def test_a_refusal_of_aws_is_one_line(pricing):
    pricing.add_client_error("get_products", "AccessDeniedException", "no")
    with pytest.raises(FruitsError, match=r"^GetProducts: AccessDeniedException: no"):
        refresh(TABLE)
