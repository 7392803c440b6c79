"""The S3A connector: jars that are known, settings by the AWS conventions."""

import hashlib
import os

import pytest
from botocore.credentials import ReadOnlyCredentials

from fruits_lib import connector, session
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


def test_keys_of_a_single_sign_on_reach_java_by_the_environment(cache, environment):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        environment.setenv(name, "")  # so that they are put back after
        environment.delenv(name)
    environment.setenv("AWS_REGION", "eu-west-1")
    environment.setattr("boto3.Session.get_credentials", lambda _: SingleSignOn())
    connector.s3a_settings()
    assert os.environ["AWS_SESSION_TOKEN"] == "token"
