"""What `fruits emr doctor` runs on a cluster, by spark-submit: how it is set up, as one JSON.

    spark-submit doctor.py s3://bucket/prefix/doctor.json

It depends on nothing of fruits_lib, so that it shows the cluster as Spark finds it. A part that
fails is the text of its error. No setting is kept whose name or value looks like a secret.
"""

import json
import os
import re
import sys
import urllib.request

import boto3
from pyspark.sql import SparkSession

SECRET = re.compile(r"secret|password|token|credential|access\.?key", re.IGNORECASE)


def examine(spark: SparkSession) -> dict:
    """Return settings, region, Python versions and containers with their sizes."""
    context = spark.sparkContext
    hadoop = context._jsc.hadoopConfiguration()
    yarn = context._jvm.org.apache.hadoop.yarn.conf.YarnConfiguration(hadoop)

    def ask(path: str, address: str = "") -> dict:
        url = f"http://{address or yarn.get('yarn.resourcemanager.webapp.address')}/ws/v1/{path}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)

    def process(_=None) -> str:
        return f"Python {sys.version}, {sys.executable}, AWS_REGION={os.getenv('AWS_REGION')}"

    def executors() -> list[str]:
        return sorted(set(context.range(0, 64, numSlices=64).map(process).collect()))

    def containers() -> list[dict]:  # each with its memory and vCPUs
        nodes = ask("cluster/nodes")["nodes"]["node"]
        return [ask("node/containers", node["nodeHTTPAddress"]) for node in nodes]

    parts = {
        "spark": lambda: dict(context.getConf().getAll()),
        "yarn": lambda: {
            f"yarn.{key}": value for key, value in yarn.getPropsWithPrefix("yarn.").items()
        },
        "driver": process,
        "executors": executors,
        "nodes": lambda: ask("cluster/nodes"),
        "containers": containers,
    }
    found = {}
    for name, part in parts.items():
        try:
            found[name] = part()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
        if isinstance(found[name], dict):
            items = found[name].items()
            shown = {key: value for key, value in items if not SECRET.search(f"{key} {value}")}
            found[name] = shown
    return found


if __name__ == "__main__":
    bucket, _, key = sys.argv[1].removeprefix("s3://").partition("/")
    text = json.dumps(examine(SparkSession.builder.appName("doctor").getOrCreate()), indent=2)
    content = {"Body": text.encode(), "ContentType": "application/json"}
    boto3.client("s3").put_object(Bucket=bucket, Key=key, **content)
