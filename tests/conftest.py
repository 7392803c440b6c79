"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest

from fruits_lib import session
from fruits_lib.backbones import check_backbone, export
from fruits_lib.sample import render_sample


@pytest.fixture(scope="session")
def spark():
    """Our own local session, with the settings that users get, on two cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SPARK_HOME", raising=False)
        patch.delenv("PYSPARK_SUBMIT_ARGS", raising=False)
        patch.setitem(session.LOCAL_SETTINGS, "spark.master", "local[2]")
        patch.setitem(session.LOCAL_SETTINGS, "spark.sql.shuffle.partitions", "2")
        running = session.start_session("fruits tests")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """The embedded sample; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("sample")
    render_sample(folder)
    return folder


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
