"""Instance types and what they cost: a dated table in the package, refreshed from AWS."""

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from fruits_lib import aws
from fruits_lib.emr.spec import DATA_GB, ClusterSpec
from fruits_lib.errors import FruitsError

PRICES = Path(__file__).with_name("prices.json")
OLD_AFTER_DAYS = 180
HOURS_A_MONTH = 730  # as AWS counts, for what is priced by the month
PRICING_REGION = "eu-central-1"  # the Pricing API answers in few regions, for all of them
# Without these an instance type has some hundred prices.
EC2_FILTERS = {
    "operatingSystem": "Linux",
    "preInstalledSw": "NA",
    "tenancy": "Shared",
    "capacitystatus": "Used",
    "marketoption": "OnDemand",
}
EMR_FILTERS = {"productFamily": "Elastic Map Reduce Instance", "softwareType": "EMR"}


@dataclass(frozen=True)
class InstanceType:
    """What an EC2 instance type gives to a cluster.

    Attributes
    ----------
    vcpu : int
    yarn_mb : int
        Memory that EMR lets YARN have on it (EMR Release Guide, "Task configuration").
    arch : str
        `x86_64` or `aarch64`.
    """

    vcpu: int
    yarn_mb: int
    arch: str


def load_prices() -> dict:
    """Return the package's table: instance types, and dollars by region."""
    return json.loads(PRICES.read_text(encoding="utf-8"))


def save_prices(prices: dict) -> None:
    """Write the package's table; for those who keep the project up to date."""
    PRICES.write_text(json.dumps(prices, indent=2) + "\n", encoding="utf-8")


def instance_type(kind: str) -> InstanceType:
    """Return what is known of an instance type.

    Raises
    ------
    FruitsError
        If it is not in the table.
    """
    known = load_prices()["instance_types"]
    if kind not in known:
        raise FruitsError(f"instance type {kind} is not known here: choose {', '.join(known)}")
    return InstanceType(**known[kind])


def hourly_costs(
    kind: str, region: str, spot: bool = False, ebs_gb: int = ClusterSpec.ebs_gb
) -> dict[str, float]:
    """Return what one node costs an hour in dollars: EC2, EMR, EBS.

    Parameters
    ----------
    kind : str
        Instance type.
    region : str
    spot : bool
        At the table's assumed spot price; EMR's surcharge and EBS stay as they are.
    ebs_gb : int
        Its root volume; every node has `DATA_GB` more.

    Raises
    ------
    FruitsError
        If the table has no price of it.
    """
    prices = load_prices()
    local = prices["regions"].get(region, {"ec2": {}})
    if kind not in local["ec2"] or kind not in prices["emr"]:
        raise FruitsError(
            f"no price of {kind} in {region} is known here: see aws.amazon.com/emr/pricing"
        )
    return {
        "EC2": local["ec2"][kind] * (prices["spot_share"] if spot else 1),
        "EMR": prices["emr"][kind],
        "EBS": (ebs_gb + DATA_GB) * local["ebs_gb_month"] / HOURS_A_MONTH,
    }


def node_price(
    kind: str, region: str, spot: bool = False, ebs_gb: int = ClusterSpec.ebs_gb
) -> float:
    """Return what one node costs an hour in dollars; see `hourly_costs`."""
    return sum(hourly_costs(kind, region, spot, ebs_gb).values())


def hourly_price(spec: ClusterSpec) -> float | None:
    """Return what a cluster with all its nodes costs an hour, or None if a price is not known."""
    try:
        return sum(
            count * node_price(kind, spec.region, spot, spec.ebs_gb)
            for count, kind, spot in nodes(spec)
        )
    except FruitsError:
        return None


def nodes(spec: ClusterSpec) -> list[tuple[int, str, bool]]:
    """Return a cluster's nodes as (count, instance type, whether spot)."""
    groups = [
        (1, spec.primary, False),
        (spec.core_nodes, spec.core, False),
        (spec.task_nodes, spec.task, True),
    ]
    return [group for group in groups if group[0]]


def note(today: date | None = None) -> str:
    """Return one line on where the prices come from, and a warning when they are old."""
    prices = load_prices()
    age = ((today or datetime.now(UTC).date()) - date.fromisoformat(prices["date"])).days
    text = (
        f"prices of {prices['date']} ({prices['source']}); "
        f"spot taken as {prices['spot_share']:.0%} of on demand"
    )
    if age <= OLD_AFTER_DAYS:
        return text
    return f"{text}; {age} days old, so compare aws.amazon.com/emr/pricing"


def refresh(prices: dict, today: date | None = None) -> dict:
    """Return a table with EC2's and EMR's prices as AWS's Pricing API gives them now.

    Types that a region does not have leave its list. EBS, S3 and the spot share stay as they were.

    Raises
    ------
    FruitsError
        If AWS refuses, or gives several prices for one thing.
    """
    client = aws.client("pricing", PRICING_REGION)
    emr, regions = {}, {}
    try:
        for region, local in prices["regions"].items():
            ec2 = {}
            for kind in prices["instance_types"]:
                here = {"regionCode": region, "instanceType": kind}
                node = _price(client, "AmazonEC2", {**here, **EC2_FILTERS})
                surcharge = _price(client, "ElasticMapReduce", {**here, **EMR_FILTERS})
                if node and surcharge:
                    ec2[kind] = node
                    emr[kind] = surcharge
            regions[region] = {**local, "ec2": ec2}
    except (BotoCoreError, ClientError) as error:
        raise FruitsError(aws.explain(error)) from None
    return {
        **prices,
        "date": (today or datetime.now(UTC).date()).isoformat(),
        "source": "AWS's Pricing API, in US dollars without tax",
        "emr": emr,
        "regions": regions,
    }


def _price(client, service: str, filters: dict[str, str]) -> float | None:
    """Return the on-demand dollars an hour of the one product that the filters leave."""
    answer = client.get_products(
        ServiceCode=service,
        Filters=[
            {"Type": "TERM_MATCH", "Field": field, "Value": value}
            for field, value in filters.items()
        ],
    )
    found = {
        float(rate["pricePerUnit"]["USD"])
        for product in map(json.loads, answer["PriceList"])
        for term in product["terms"].get("OnDemand", {}).values()
        for rate in term["priceDimensions"].values()
    } - {0.0}
    if len(found) > 1:
        raise FruitsError(
            f"{service} has {len(found)} prices of {filters['instanceType']} in "
            f"{filters['regionCode']}, one is wanted: narrow the filters in {__name__}"
        )
    return found.pop() if found else None
