#!/usr/bin/env python3
"""Fill fruits_lib/emr/prices.json from AWS's Pricing API (maintainers; free, a minute).

    .venv/bin/python scripts/refresh_prices.py [REGION...]

Regions are added to those of the table. The credentials need `pricing:GetProducts`. Spot prices and
the price of a public IPv4 address are not asked: the table's stay.
"""

import json
import sys
from datetime import UTC, datetime

from botocore.exceptions import BotoCoreError, ClientError

from fruits_lib import aws
from fruits_lib.emr.prices import PRICES, PRICING_REGION, ask_node, ask_price, load_table
from fruits_lib.errors import FruitsError

STORED = {"storageClass": "General Purpose", "volumeType": "Standard", "productFamily": "Storage"}
REQUESTS = {"productFamily": "API Request"}
# Service, filters, and how many of AWS's units the table counts.
BY_REGION = {
    "ebs_gb_month": ("AmazonEC2", {"volumeApiName": "gp3", "productFamily": "Storage"}, 1),
    "s3_gb_month": ("AmazonS3", STORED, 1),
    "s3_1000_reads": ("AmazonS3", {"group": "S3-API-Tier2", **REQUESTS}, 1000),
    "s3_1000_writes": ("AmazonS3", {"group": "S3-API-Tier1", **REQUESTS}, 1000),
}


def refreshed(client, table: dict, regions: list[str]) -> dict:
    """Return a table with today's prices; types that a region does not have are left out of it."""
    emr, found = {}, {}
    for region in dict.fromkeys([*table["regions"], *regions]):
        local = found[region] = {"ec2": {}}
        for kind in table["instance_types"]:
            if pair := ask_node(client, region, kind):
                local["ec2"][kind], emr[kind] = pair
        for name, (service, filters, count) in BY_REGION.items():
            dollars = ask_price(client, service, region, filters)
            if dollars is None:
                raise FruitsError(f"AWS has no price of {name} in {region}: check region, filters")
            local[name] = round(count * dollars, 9)
    return {
        **table,
        "date": datetime.now(UTC).date().isoformat(),
        "source": "AWS's Pricing API, in US dollars without tax",
        "emr": emr,
        "regions": found,
    }


def main() -> None:
    try:
        client = aws.client("pricing", PRICING_REGION, aws.RETRIES)
        table = refreshed(client, load_table(), sys.argv[1:])
    except (BotoCoreError, ClientError) as error:
        sys.exit(aws.explain(error))
    except FruitsError as error:
        sys.exit(str(error))
    PRICES.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
