"""What every node starts from: a fresh root, wheels, the stage. What is costly is kept."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from node import Node, prepare

from fruits_lib.emr.wheelhouse import CHECKOUT, NODE_LOCK, build_wheel, build_wheelhouse
from fruits_lib.errors import FruitsError

TOOLS = ("unshare", "nsenter", "setpriv", "chroot", "mount", "ip", "tar")
ROOT_TAR = "node-root-bookworm-1.tar"  # another recipe, another number
RECIPE = [
    *("mmdebstrap", "--mode=root", "--variant=apt"),
    *("--include=python3.11,python3-venv,python3-pip,sudo,ca-certificates,curl", "bookworm"),
]
AWSCLI = "awscli==1.46.2"


def missing(what: str) -> None:
    """Skip, or fail where FRUITS_REQUIRE=1 says that nothing may be skipped."""
    if os.environ.get("FRUITS_REQUIRE") == "1":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def cache():
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("FRUITS_CACHE") or Path(home, "fruits"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kept(target: Path, make) -> Path:
    """Return `target`; what an interrupted `make(path)` leaves does not pass for it."""
    if not target.exists():
        begun = target.with_name(f"{target.name}.{os.getpid()}")
        try:
            make(begun)
            begun.rename(target)
        finally:
            shutil.rmtree(begun, ignore_errors=True)
            begun.unlink(missing_ok=True)
    return target


@pytest.fixture(scope="session")
def root(cache, tmp_path_factory):
    if sys.platform != "linux" or os.geteuid() != 0:
        missing("a fresh root needs Linux and root: sudo make test-node")
    if absent := [tool for tool in TOOLS if not shutil.which(tool)]:
        missing(f"{', '.join(absent)} missing: install util-linux, iproute2 and tar")
    tar = kept(cache / ROOT_TAR, build_root)
    wheels = kept(cache / AWSCLI.replace("==", "-"), download_awscli)
    folder = tmp_path_factory.mktemp("root")
    subprocess.run(["tar", "--extract", f"--file={tar}", f"--directory={folder}"], check=True)
    prepare(folder, wheels)
    yield folder
    shutil.rmtree(folder)


def build_root(target: Path) -> None:
    if not shutil.which("mmdebstrap"):
        if not shutil.which("apt-get"):
            missing("mmdebstrap is missing, and apt-get too: install mmdebstrap")
        subprocess.run(["apt-get", "update", "--quiet"], check=True)
        subprocess.run(["apt-get", "install", "--yes", "--quiet", "mmdebstrap"], check=True)
    subprocess.run([*RECIPE, "--format=tar", target], check=True)


def download_awscli(target: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    if subprocess.run([*pip, f"--dest={target}", AWSCLI]).returncode:
        missing(f"{AWSCLI} cannot be downloaded: a package index is needed once")


@pytest.fixture(scope="session")
def stage(cache, tiny, tmp_path_factory):
    """A stage as `fruits emr create` and `wheelhouse` write it, with a quick backbone."""
    folder = tmp_path_factory.mktemp("stage")
    folder.chmod(0o755)  # hadoop reads it
    for name in ("bootstrap.sh", "requirements-node.lock"):
        shutil.copy(CHECKOUT / name, folder)
    wheel = build_wheel(folder)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    Path(f"{wheel}.sha256").write_text(f"{digest}  {wheel.name}\n")
    (folder / "backbones").mkdir()
    shutil.copy(tiny, folder / "backbones/mobilenet_v2-32-avg-random.tflite")
    arch, lock = platform.machine(), hashlib.sha256(NODE_LOCK.read_bytes()).hexdigest()[:12]
    try:
        wheels = kept(
            cache / f"node-wheels-{arch}-{lock}", lambda path: build_wheelhouse(path, arch)
        )
    except FruitsError as error:
        missing(f"no wheelhouse: {error}")
    shutil.copytree(wheels, folder / "wheelhouse" / arch)
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
        missing("no package index is in reach: connect to one, or set PIP_INDEX_URL")
    names = {name for name in os.environ if name.startswith("PIP_")} - {"PIP_FIND_LINKS"}
    names |= {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"} & os.environ.keys()
    return {name: os.environ[name] for name in names}
