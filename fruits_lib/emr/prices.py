"""Instance types and what they cost: AWS's prices of today, or else a dated table."""

import functools
import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from fruits_lib import aws
from fruits_lib.errors import FruitsError

PRICES = Path(__file__).with_name("prices.json")  # scripts/refresh_prices.py fills it
OLD_AFTER_DAYS = 180
HOURS_A_MONTH = 730  # as AWS counts, for what is priced by the month
PRICING_REGION = "eu-central-1"  # the Pricing API answers in few regions, for all of them
# Without these an instance type has some hundred prices.
EC2_FILTERS = {"operatingSystem": "Linux", "preInstalledSw": "NA", "tenancy": "Shared"}
EC2_FILTERS |= {"capacitystatus": "Used", "marketoption": "OnDemand"}
EMR_FILTERS = {"productFamily": "Elastic Map Reduce Instance", "softwareType": "EMR"}


@dataclass(frozen=True)
class InstanceType:
    """What an EC2 instance type gives to a cluster."""

    vcpu: int
    yarn_mb: int  # memory that EMR gives to YARN (EMR Release Guide, "Task configuration")
    arch: str  # x86_64 or aarch64


def instance_type(kind: str, region: str = "") -> InstanceType:
    """Return what the table knows of an instance type, or else EC2; or raise FruitsError."""
    known = load_table()["instance_types"].get(kind)
    return InstanceType(**known) if known else _ask_instance_type(kind, region)


@functools.cache
def _ask_instance_type(kind: str, region: str) -> InstanceType:
    try:
        client = aws.client("ec2", region, aws.FEW_RETRIES)
        (found,) = client.describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
    except (BotoCoreError, ClientError) as error:
        raise FruitsError(
            f"instance type {kind} is not in the table, and EC2 does not describe it "
            f"({aws.explain(error)}): choose another, such as m5.xlarge"
        ) from None
    memory = found["MemoryInfo"]["SizeInMiB"]
    arch = found["ProcessorInfo"]["SupportedArchitectures"][0]
    return InstanceType(
        vcpu=found["VCpuInfo"]["DefaultVCpus"],
        yarn_mb=memory - min(memory // 4, 8192),  # true of every type in EMR's list
        arch="aarch64" if arch == "arm64" else arch,
    )


def load_table() -> dict:
    """Return the package's table: instance types, and dollars by region."""
    return json.loads(PRICES.read_text(encoding="utf-8"))


def table_prices(region: str) -> dict:
    """Return the table's prices of one region; `ec2` is empty if the region is not in it."""
    table = load_table()
    return {**table, **table["regions"].get(region, {"ec2": {}})}


def current_prices(region: str, kinds: set[str]) -> dict:
    """Return the table's prices with AWS's of today for these nodes, where AWS can be asked."""
    prices = table_prices(region)
    try:
        client = aws.client("pricing", PRICING_REGION, aws.FEW_RETRIES)
        asked = {kind: ask_node(client, region, kind) for kind in kinds}
    except (BotoCoreError, ClientError, FruitsError):
        return prices
    if "ebs_gb_month" not in prices or None in asked.values():
        return prices
    ec2, emr = ({kind: pair[i] for kind, pair in asked.items()} for i in range(2))
    return {**prices, "ec2": ec2, "emr": emr, "date": _today(), "source": "AWS's Pricing API"}


def ask_node(client, region: str, kind: str) -> tuple[float, float] | None:
    """Return today's hourly prices of an instance type, EC2's and EMR's; None if it has none."""
    ec2 = ask_price(client, "AmazonEC2", region, {"instanceType": kind, **EC2_FILTERS})
    emr = ask_price(client, "ElasticMapReduce", region, {"instanceType": kind, **EMR_FILTERS})
    return (ec2, emr) if ec2 and emr else None


def ask_price(client, service: str, region: str, filters: dict[str, str]) -> float | None:
    """Return the on-demand dollars per unit of the one product that the filters leave.

    If a price falls with the amount, the first one. Several prices raise FruitsError.
    """
    fields = {"regionCode": region, **filters}
    terms = [{"Type": "TERM_MATCH", "Field": key, "Value": value} for key, value in fields.items()]
    answer = client.get_products(ServiceCode=service, Filters=terms)
    found = {
        float(rate["pricePerUnit"]["USD"])
        for product in map(json.loads, answer["PriceList"])
        for term in product["terms"].get("OnDemand", {}).values()
        for rate in term["priceDimensions"].values()
        if rate.get("beginRange", "0") == "0"
    } - {0.0}
    if len(found) > 1:
        raise FruitsError(f"{service} has {len(found)} prices of {fields}: narrow the filters")
    return found.pop() if found else None


def hourly_costs(prices: dict, groups: list[tuple], ebs_gb: int) -> dict[str, float] | None:
    """Return the hourly dollars of nodes by item, or None if a price is not known.

    Parameters
    ----------
    prices : dict
        From `current_prices` or `table_prices`.
    groups : list of (str, str, float, str)
        As `ClusterSpec.groups`.
    ebs_gb : int
        Volumes of each node.
    """
    totals = Counter(EC2=0, EMR=0, EBS=0, IPv4=0)
    for _, kind, count, market in groups:
        if kind not in prices["ec2"] or kind not in prices["emr"]:
            return None
        share = prices["spot_share"] if market == "SPOT" else 1
        totals["EC2"] += count * prices["ec2"][kind] * share
        totals["EMR"] += count * prices["emr"][kind]
        totals["EBS"] += count * ebs_gb * prices["ebs_gb_month"] / HOURS_A_MONTH
        totals["IPv4"] += count * prices["ipv4_hour"]
    return dict(totals)


def note(prices: dict) -> str:
    """Return one line on where the prices come from, with a warning if they are old."""
    age = (date.fromisoformat(_today()) - date.fromisoformat(prices["date"])).days
    old = f", {age} days old" if age > OLD_AFTER_DAYS else ""
    return f"prices of {prices['date']} ({prices['source']}{old})"


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
