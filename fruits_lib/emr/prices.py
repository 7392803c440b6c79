"""Instance types and what they cost: a dated table in the package, renewed by asking AWS."""

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
S3_STORED = {"storageClass": "General Purpose", "volumeType": "Standard"}
# Of a region's other prices: service, filters, and how many of AWS's units the table counts.
BY_REGION = {
    "ebs_gb_month": ("AmazonEC2", {"volumeApiName": "gp3", "productFamily": "Storage"}, 1),
    "s3_gb_month": ("AmazonS3", {**S3_STORED, "productFamily": "Storage"}, 1),
    "s3_1000_reads": ("AmazonS3", {"group": "S3-API-Tier2", "productFamily": "API Request"}, 1000),
    "s3_1000_writes": ("AmazonS3", {"group": "S3-API-Tier1", "productFamily": "API Request"}, 1000),
}


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
            f"no price of {kind} in {region} is known here: ask AWS by `{_renew(region)}`"
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


def hourly_price(request: dict, region: str) -> float | None:
    """Return what the nodes that a RunJobFlow request names cost an hour, or None if not known."""
    try:
        return sum(
            it["InstanceCount"]
            * node_price(
                it["InstanceType"], region, it["Market"] == "SPOT", request["EbsRootVolumeSize"]
            )
            for it in request["Instances"]["InstanceGroups"]
        )
    except FruitsError:
        return None


def table(region: str) -> str:
    """Return a region's prices as a text.

    Raises
    ------
    FruitsError
        If there are none of it.
    """
    prices = load_prices()
    if region not in prices["regions"]:
        raise FruitsError(
            f"no prices in {region} are known here, but of {', '.join(prices['regions'])}: ask AWS "
            f"by `{_renew(region)}`"
        )
    local = prices["regions"][region]
    lines = [f"{region + ', dollars an hour':<32}{'vCPU':>4}  {'':<8}{'EC2':>8}{'EMR':>8}"]
    for kind, ec2 in local["ec2"].items():
        it = instance_type(kind)
        lines.append(f"{kind:<32}{it.vcpu:>4}  {it.arch:<8}{ec2:>8.4f}{prices['emr'][kind]:>8.4f}")
    return "\n".join(
        [
            *lines,
            f"EBS {local['ebs_gb_month']:g} a GB and month; S3 {local['s3_gb_month']:g} a GB and "
            f"month, {local['s3_1000_reads']:g} for 1,000 reads, {local['s3_1000_writes']:g} for "
            "1,000 writes",
            note(),
        ]
    )


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
    return f"{text}; {age} days old: `{_renew()}` asks AWS for today's"


def _renew(region: str = "") -> str:
    return "fruits emr prices --refresh" + (f" --region {region}" if region else "")


def renew(region: str) -> None:
    """Put AWS's prices of today into the package's table, this region's among them.

    Raises
    ------
    FruitsError
        If the table cannot be written; or see `refresh`.
    """
    try:
        with PRICES.open("r+", encoding="utf-8") as file:  # before AWS is asked
            prices = json.load(file)
            regions = {**prices["regions"], region: {}}
            text = json.dumps(refresh({**prices, "regions": regions}), indent=2) + "\n"
            file.seek(0)
            file.write(text)
            file.truncate()
    except OSError as error:
        raise FruitsError(
            f"{PRICES} cannot be written ({error.strerror}): run this in a checkout that is yours"
        ) from None


def refresh(prices: dict, today: date | None = None) -> dict:
    """Return a table with the prices that AWS's Pricing API gives now; a minute of questions.

    Types that a region does not have leave its list. The spot share, an assumption, stays.

    Raises
    ------
    FruitsError
        If AWS refuses, or gives several prices for one thing, or none where there must be one.
    """
    client = aws.client("pricing", PRICING_REGION)
    emr, regions = {}, {}
    try:
        for region in prices["regions"]:
            local = regions[region] = {"ec2": {}}
            for kind in prices["instance_types"]:
                asked = {"instanceType": kind}
                node = _price(client, "AmazonEC2", region, {**asked, **EC2_FILTERS})
                surcharge = _price(client, "ElasticMapReduce", region, {**asked, **EMR_FILTERS})
                if node and surcharge:
                    local["ec2"][kind] = node
                    emr[kind] = surcharge
            for name, (service, filters, count) in BY_REGION.items():
                dollars = _price(client, service, region, filters)
                if dollars is None:
                    raise FruitsError(
                        f"AWS gives no price of {service} in {region} for {name}: is there such a "
                        "region? Then mend the filters in " + __name__
                    )
                local[name] = round(count * dollars, 9)
    except (BotoCoreError, ClientError) as error:
        raise FruitsError(aws.explain(error)) from None
    return {
        **prices,
        "date": (today or datetime.now(UTC).date()).isoformat(),
        "source": "AWS's Pricing API, in US dollars without tax",
        "emr": emr,
        "regions": regions,
    }


def _price(client, service: str, region: str, filters: dict[str, str]) -> float | None:
    """Return the on-demand dollars a unit of the one product that the filters leave.

    Of a price that falls with the amount, the first one.
    """
    fields = {"regionCode": region, **filters}
    answer = client.get_products(
        ServiceCode=service,
        Filters=[
            {"Type": "TERM_MATCH", "Field": field, "Value": value}
            for field, value in fields.items()
        ],
    )
    found = {
        float(rate["pricePerUnit"]["USD"])
        for product in map(json.loads, answer["PriceList"])
        for term in product["terms"].get("OnDemand", {}).values()
        for rate in term["priceDimensions"].values()
        if rate.get("beginRange", "0") == "0"
    } - {0.0}
    if len(found) > 1:
        raise FruitsError(
            f"{service} has {len(found)} prices of {next(iter(filters.values()))} in {region}, one "
            f"is wanted: narrow the filters in {__name__}"
        )
    return found.pop() if found else None
