"""The S3A connector of a local Spark: its jars, and its settings by the AWS conventions."""

import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pyspark

from fruits_lib import aws
from fruits_lib.errors import FruitsError
from fruits_lib.storage import cache_folder

# Of the release that pip's pyspark 3.5.8 was built with, without what Spark brings already. Maven's
# bundle of the whole AWS SDK would be 275 MB.
SDK, VERSION = "com.amazonaws:aws-java-sdk", "1.12.262"
JARS = {
    "org.apache.hadoop:hadoop-aws:3.3.4": (
        "53f9ae03c681a30a50aa17524bd9790ab596b28481858e54efd989a826ed3a4a"
    ),
    f"{SDK}-core:{VERSION}": "06fed99f929c389e168278c1b111aaf1afb270d07202fbbce92e73d1e4279678",
    f"{SDK}-s3:{VERSION}": "a0cb7580178bc0d4d3558295a5bb890008478da8a6b3241989c71238b0ed3be5",
    f"{SDK}-sts:{VERSION}": "659f48d8ebc02025c5042cc4b925f62610e81f334498f1b9e7a271ce20ecbcae",
    f"{SDK}-dynamodb:{VERSION}": "7af4ba06d0d9b3c2ab435089caecd0567810d203aa285f7aa72861f1964d442e",
    f"com.amazonaws:jmespath-java:{VERSION}": (
        "9001ea993a45d82a2d3086edcbda8a40b4e012d049a70fbf071fd329c0fbd777"
    ),
}
IVY_MODULE = """<ivy-module version="2.0">
  <info organisation="fruits" module="connector"/>
  <dependencies>{dependencies}</dependencies>
</ivy-module>"""
IVY_DEPENDENCY = """
    <dependency org="{0}" name="{1}" rev="{2}" transitive="false" conf="default->master"/>"""
PATIENCE = 300  # seconds for 5 MB


def s3a_settings() -> dict[str, str]:
    """Return the Spark settings that make `s3://` work on this machine.

    Endpoint and region are those that boto3 would use. The AWS SDK for Java finds credentials by
    itself, in the environment, the profile or the instance; see `session_keys` for those of a
    single sign-on. Raises FruitsError if the jars are missing.
    """
    hadoop = {
        "fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",  # as on EMR
        "fs.s3n.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
        "fs.s3a.aws.credentials.provider": (
            "com.amazonaws.auth.DefaultAWSCredentialsProviderChain"
        ),
        # A rename copies: each task moves its file to its place, not a second time at the end of
        # the job. Half a table is never shown: its stage is recorded, or its batch has _SUCCESS.
        "mapreduce.fileoutputcommitter.algorithm.version": "2",
    }
    s3 = aws.client("s3")
    endpoint = urlsplit(s3.meta.endpoint_url)
    if not endpoint.hostname.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        hadoop |= {
            "fs.s3a.endpoint": s3.meta.endpoint_url,
            "fs.s3a.path.style.access": "true",
            "fs.s3a.connection.ssl.enabled": str(endpoint.scheme == "https").lower(),
        }
    if region := aws.environment_region():
        hadoop["fs.s3a.endpoint.region"] = region
    for bucket in aws.unsigned_buckets():
        hadoop[f"fs.s3a.bucket.{bucket}.aws.credentials.provider"] = (
            "org.apache.hadoop.fs.s3a.AnonymousAWSCredentialsProvider"
        )
    jars = ":".join(map(str, fetch_jars()))
    return {f"spark.hadoop.{key}": value for key, value in hadoop.items()} | {
        "spark.driver.extraClassPath": jars  # the executor's too, in local mode
    }


def session_keys() -> dict[str, str]:
    """Return Hadoop's settings with the keys of a single sign-on, none without one.

    The AWS SDK for Java 1 does not know single sign-on. These are for the running JVM alone: in its
    command line every user of the machine could read them, and in the environment boto3 would take
    them too, which by itself gets new ones. They are valid as long as the sign-on's role session.
    """
    found = boto3.Session().get_credentials()
    if not found or found.method not in ("sso", "login"):
        return {}
    keys = found.get_frozen_credentials()
    return {
        "fs.s3a.aws.credentials.provider": (
            "org.apache.hadoop.fs.s3a.TemporaryAWSCredentialsProvider"
        ),
        "fs.s3a.access.key": keys.access_key,
        "fs.s3a.secret.key": keys.secret_key,
        "fs.s3a.session.token": keys.token,
    }


def fetch_jars() -> list[Path]:
    """Return the connector's jars, from the cache or else from Maven Central, checked by sha256.

    Ivy, which comes with Spark, fetches them into `jars` of `cache_folder()`.

    Raises
    ------
    FruitsError
        If a jar is missing and cannot be fetched, or is not the one that is known here.
    """
    cache = cache_folder() / "jars"
    jars = {cache / _file_name(name): digest for name, digest in JARS.items()}
    if not all(jar.is_file() for jar in jars):
        cache.mkdir(parents=True, exist_ok=True)
        _retrieve(cache)
    for jar, digest in jars.items():
        found = hashlib.sha256(jar.read_bytes()).hexdigest()
        if found != digest:
            raise FruitsError(
                f"{jar} has sha256 {found}, not {digest}: remove it and look where it came from"
            )
    return list(jars)


def _file_name(name: str) -> str:
    return "-".join(name.split(":")[1:]) + ".jar"


def _retrieve(cache: Path) -> None:
    home = os.environ.get("JAVA_HOME")
    (ivy,) = Path(pyspark.__file__).parent.glob("jars/ivy-*.jar")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        module = Path(folder, "ivy.xml")
        dependencies = "".join(IVY_DEPENDENCY.format(*name.split(":")) for name in JARS)
        module.write_text(IVY_MODULE.format(dependencies=dependencies))
        command = [f"{home}/bin/java" if home else "java", "-Djava.net.useSystemProxies=true"]
        command += ["-cp", str(ivy), "org.apache.ivy.Main", "-ivy", str(module), "-types", "jar"]
        command += ["-cache", f"{folder}/ivy", "-verbose"]
        command += ["-retrieve", f"{folder}/[artifact]-[revision].[ext]"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            reason = f"{answer.stdout}{answer.stderr}"
        except subprocess.TimeoutExpired:
            reason = f"no answer in {PATIENCE} seconds"
        for name in map(_file_name, JARS):
            if not Path(folder, name).is_file():
                raise FruitsError(
                    f"{name}, which reads s3://, is not in {cache} and cannot be fetched from "
                    f"Maven Central ({_reason(reason)}): go online once, or copy the jars there "
                    "from a machine that has them"
                )
            Path(folder, name).replace(cache / name)


def _reason(text: str) -> str:
    """Return the first failed download in Ivy's long output."""
    found = re.search(
        r"at url \S+ \((.+?)\)?$|(Host \S+ not found)|(module not found.+)", text, re.M
    )
    return next(filter(None, found.groups())) if found else text.strip() or "no reason given"
