"""Fixtures that all tests share."""

import os
import uuid
from pathlib import Path

import pytest
from servers import REGION, Bucket, need, s3_server
from vectors import frame, make_table

from fruits_lib import connector, session
from fruits_lib import moments as statistics
from fruits_lib.backbones import export
from fruits_lib.errors import FruitsError
from fruits_lib.networks import check_backbone
from fruits_lib.sample import write_sample


def pytest_addoption(parser):
    parser.addoption(
        "--s3",
        choices=("moto", "minio"),
        default="moto",
        help="server of the tests of buckets: moto, quick and lenient, or MinIO, real",
    )


@pytest.fixture(scope="session")
def missing_connector():
    """Why Spark has no connector for s3://, or nothing: a machine may reach no Maven Central."""
    session.use_java_17()
    try:
        connector.fetch_jars()
    except FruitsError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def server(request, tmp_path_factory):
    """The S3 server of the whole suite."""
    folder = tmp_path_factory.mktemp("server") / "objects"
    with s3_server(request.config.getoption("--s3"), folder) as running:
        yield running


@pytest.fixture(scope="session")
def spark(request, missing_connector):
    """Our own local session, with the settings that users get, on two cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SPARK_HOME", raising=False)
        patch.delenv("PYSPARK_SUBMIT_ARGS", raising=False)
        patch.setitem(session.LOCAL_SETTINGS, "spark.master", "local[2]")
        patch.setitem(session.LOCAL_SETTINGS, "spark.sql.shuffle.partitions", "2")
        if missing_connector:
            running = session.start_session("fruits tests")
        else:
            server = request.getfixturevalue("server")
            for name, value in server.environment.items():
                patch.setenv(name, value)
            bucket = request.getfixturevalue("new_bucket")()
            running = session.start_session("fruits tests", {"run_dir": bucket.uri("run")})
    yield running
    running.stop()


@pytest.fixture(scope="session")
def new_bucket(server, missing_connector):
    """A function that makes a fresh bucket."""
    need(not missing_connector, missing_connector)

    def make() -> Bucket:
        name, client = f"fruits-{uuid.uuid4().hex[:12]}", server.client()
        client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        return Bucket(name, client)

    return make


@pytest.fixture
def bucket(new_bucket, server, monkeypatch):
    """A fresh bucket, and the environment in which a user would reach it."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return new_bucket()


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """The embedded sample; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder)
    return folder


@pytest.fixture(scope="session")
def table():
    """A table of vectors, float32 (N, D); see `vectors`."""
    return make_table()


@pytest.fixture(scope="session")
def features(spark, table, tmp_path_factory):
    """The same table as 02_featurize leaves it."""
    return frame(spark, table, tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="session")
def moments(features):
    return statistics.compute(features)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A quick backbone, for weights=str(tiny): MobileNetV2 at 32 px, random weights of seed 0."""
    file = tmp_path_factory.mktemp("backbone") / "tiny.tflite"
    file.write_bytes(export(check_backbone("mobilenet_v2", "random", 32)))
    return file


@pytest.fixture(scope="session")
def shared():
    """Real photographs and ImageNet weights, which no user has: $FRUITS_SHARED, or ../shared."""
    beside = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("FRUITS_SHARED", beside))
    if not (folder / "fruits360").is_dir():
        pytest.skip(f"{folder} has no fruits360/: set FRUITS_SHARED to a folder that has it")
    return folder


@pytest.fixture
def keys(monkeypatch):
    """Credentials and a region, for servers that take any, or none."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "anything")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
