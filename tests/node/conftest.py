"""What every node starts from: a fresh root, wheels, the stage. What is costly is kept."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from machine import node_wheels, unpack_root
from node import Node
from servers import need

from fruits_lib.emr.staging import CHECKOUT, build_wheel
from fruits_lib.storage import cache_folder


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    unpack_root(cache_folder(), folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def stage(tiny, tmp_path_factory):
    """A stage as `fruits emr stage` fills it, with a quick backbone."""
    folder = tmp_path_factory.mktemp("stage")
    folder.chmod(0o755)  # hadoop reads it
    for name in ("bootstrap.sh", "requirements-node.lock"):
        shutil.copy(CHECKOUT / name, folder)
    wheel = build_wheel(folder)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    Path(f"{wheel}.sha256").write_text(f"{digest}  {wheel.name}\n")
    (folder / "backbones").mkdir()
    shutil.copy(tiny, folder / "backbones/mobilenet_v2-32-avg-random.tflite")
    shutil.copytree(node_wheels(cache_folder()), folder / "wheelhouse" / platform.machine())
    return folder


@pytest.fixture(scope="session")
def start(root, stage, tmp_path_factory):
    """Return a node that has just started."""
    return lambda **options: Node(root, tmp_path_factory.mktemp("node"), stage, **options)


@pytest.fixture
def node(start):
    """A node of the test's own."""
    with start() as started:
        yield started


@pytest.fixture(scope="session")
def index(tmp_path_factory):
    """The environment in which pip reaches a package index, here and on a node."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    if subprocess.run([*pip, f"--dest={tmp_path_factory.mktemp('index')}", "six"]).returncode:
        need(False, "no package index is in reach: connect to one, or set PIP_INDEX_URL")
    names = {name for name in os.environ if name.startswith("PIP_")} - {"PIP_FIND_LINKS"}
    names |= {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"} & os.environ.keys()
    return {name: os.environ[name] for name in names}
