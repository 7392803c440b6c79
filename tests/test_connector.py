"""The S3A connector: jars that are known, settings by the AWS conventions."""

import hashlib
import json
import os
from contextlib import suppress
from types import SimpleNamespace

import pytest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError

from fruits_lib import connector, session, storage
from fruits_lib.errors import FruitsError

NAME = "org.fruits:nothing:1"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that holds one jar, the only one there is."""
    monkeypatch.setenv("FRUITS_CACHE", str(tmp_path))
    monkeypatch.setattr(connector, "JARS", {NAME: hashlib.sha256(b"jar").hexdigest()})
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars/nothing-1.jar").write_bytes(b"jar")
    return tmp_path / "jars"


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """An empty AWS environment, and no configuration files."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_a_jar_in_the_cache_is_taken(cache):
    assert connector.fetch_jars() == [cache / "nothing-1.jar"]


def test_another_jar_of_the_name_is_refused(cache):
    (cache / "nothing-1.jar").write_bytes(b"another")
    with pytest.raises(FruitsError, match="sha256 .* remove it"):
        connector.fetch_jars()


def test_without_a_way_to_the_jars_one_line_says_so(cache, monkeypatch):
    (cache / "nothing-1.jar").unlink()
    session.use_java_17()
    nowhere = "-Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=9"
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", nowhere)
    with pytest.raises(FruitsError) as caught:
        connector.fetch_jars()
    line = str(caught.value)
    assert "nothing-1.jar" in line
    assert "go online once" in line
    assert "\n" not in line
    assert list(cache.iterdir()) == []


def test_a_named_endpoint_is_taken_as_it_is(cache, environment):
    environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    environment.setenv("AWS_REGION", "eu-west-3")
    settings = connector.s3a_settings()
    assert settings["spark.hadoop.fs.s3a.endpoint"] == "http://127.0.0.1:9000"
    assert settings["spark.hadoop.fs.s3a.connection.ssl.enabled"] == "false"
    assert settings["spark.hadoop.fs.s3a.endpoint.region"] == "eu-west-3"


def test_a_profile_names_endpoint_and_region(cache, environment, tmp_path):
    (tmp_path / "AWS_CONFIG_FILE").write_text(
        "[profile lab]\nregion = eu-north-1\nendpoint_url = https://s3.lab.example\n"
    )
    environment.setenv("AWS_PROFILE", "lab")
    settings = connector.s3a_settings()
    assert settings["spark.hadoop.fs.s3a.endpoint"] == "https://s3.lab.example"
    assert settings["spark.hadoop.fs.s3a.connection.ssl.enabled"] == "true"
    assert settings["spark.hadoop.fs.s3a.endpoint.region"] == "eu-north-1"


def test_aws_itself_needs_no_endpoint(cache, environment):
    environment.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    settings = connector.s3a_settings()
    assert "spark.hadoop.fs.s3a.endpoint" not in settings
    assert settings["spark.hadoop.fs.s3a.endpoint.region"] == "eu-west-1"


def test_no_key_is_in_the_settings(cache, environment):
    environment.setenv("AWS_REGION", "eu-west-1")
    environment.setenv("AWS_ACCESS_KEY_ID", "an-access-key")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
    values = " ".join(connector.s3a_settings().values())
    assert "an-access-key" not in values
    assert "a-secret-key" not in values


class SingleSignOn:
    method = "sso"

    def get_frozen_credentials(self):
        return ReadOnlyCredentials("key", "secret", "token")


def test_keys_of_a_single_sign_on_reach_the_running_java_alone(cache, environment):
    """Not the environment, where boto3 would take them, nor what is in a command line."""
    environment.setenv("AWS_REGION", "eu-west-1")
    environment.setattr("boto3.Session.get_credentials", lambda _: SingleSignOn())
    before, hadoop = dict(os.environ), {}
    assert "token" not in connector.s3a_settings().values()
    configuration = SimpleNamespace(set=hadoop.__setitem__)
    java = SimpleNamespace(hadoopConfiguration=lambda: configuration)
    session.give_session_keys(SimpleNamespace(sparkContext=SimpleNamespace(_jsc=java)))
    assert dict(os.environ) == before
    assert hadoop == {
        "fs.s3a.aws.credentials.provider": (
            "org.apache.hadoop.fs.s3a.TemporaryAWSCredentialsProvider"
        ),
        "fs.s3a.access.key": "key",
        "fs.s3a.secret.key": "secret",
        "fs.s3a.session.token": "token",
    }


def test_other_credentials_are_left_to_java(environment):
    environment.setenv("AWS_ACCESS_KEY_ID", "an-access-key")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
    assert connector.session_keys() == {}


def publish(bucket, key):
    """Let everybody read a bucket and an object: by a policy for MinIO, by an ACL for moto."""
    arn = f"arn:aws:s3:::{bucket.name}"
    everybody = {"Effect": "Allow", "Principal": {"AWS": ["*"]}}
    actions = {"Action": ["s3:GetObject", "s3:ListBucket"], "Resource": [arn, f"{arn}/*"]}
    policy = {"Version": "2012-10-17", "Statement": [everybody | actions]}
    bucket.client.put_bucket_policy(Bucket=bucket.name, Policy=json.dumps(policy))
    with suppress(ClientError):
        bucket.client.put_object_acl(Bucket=bucket.name, Key=key, ACL="public-read")


def test_a_public_bucket_is_read_without_an_account(bucket, cache, environment):
    endpoint = bucket.client.meta.endpoint_url
    environment.setenv("AWS_ENDPOINT_URL", endpoint)
    bucket.put("photographs/a.jpg", b"photograph")
    publish(bucket, "photographs/a.jpg")
    with pytest.raises(FruitsError, match="credentials are missing: .*FRUITS_UNSIGNED_BUCKETS$"):
        storage.read_bytes(bucket.uri("photographs/a.jpg"))
    environment.setenv("FRUITS_UNSIGNED_BUCKETS", f"another, {bucket.name}")
    assert storage.read_bytes(bucket.uri("photographs/a.jpg")) == b"photograph"
    assert storage.files_in(bucket.uri("photographs")) == [bucket.uri("photographs/a.jpg")]
    storage.preflight(data=bucket.uri())
    with pytest.raises(FruitsError, match="credentials are missing"):
        storage.read_bytes("s3://private/a.jpg")
    name = f"spark.hadoop.fs.s3a.bucket.{bucket.name}.aws.credentials.provider"
    assert connector.s3a_settings()[name].endswith(".AnonymousAWSCredentialsProvider")
