"""The box's parts: fetched or built once, by version and hash, into the cache."""

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import hub
from machine import install_debian, kept, node_wheels, unpack_root
from servers import need

from fruits_lib.connector import fetch_jars
from fruits_lib.errors import FruitsError

HADOOP_LOCK = Path(__file__).with_name("hadoop.lock")
FETCH_TOOLS = Path(__file__).parents[2] / "scripts/fetch-tools.sh"
LIVY = "livy-0.9.0-incubating_2.12"
LIVY_SHA256 = "41d21d89f9963d4cb00ec64db4e335a2ac14259630af470fe098549c562c3a54"
POM = """<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>fruits</groupId><artifactId>hadoop</artifactId><version>1</version>
  <packaging>pom</packaging>
  <dependencies>{}</dependencies>
</project>"""
DEPENDENCY = """
    <dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version>
      <exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>
    </dependency>"""


@dataclass(frozen=True)
class Parts:
    """Paths on the host.

    Attributes
    ----------
    root : pathlib.Path
        Unpacked root of a machine.
    hadoop, s3a : pathlib.Path
        Folders of the daemons' jars, and of the jars of Spark's S3A connector.
    livy, hub : pathlib.Path
        Livy, unpacked, and the environment of JupyterHub.
    minio : pathlib.Path
        The S3 server.
    wheels : pathlib.Path
        Wheelhouse of the nodes.
    """

    root: Path
    hadoop: Path
    s3a: Path
    livy: Path
    minio: Path
    wheels: Path
    hub: Path


def collect(cache: Path, root: Path) -> Parts:
    """Fetch and build what the cache lacks; `root`, an empty folder, becomes the machine's root.

    What is missing skips a test with one line, or fails it where `FRUITS_REQUIRE` is set.
    """
    need(bool(shutil.which("ssh")), "ssh is missing: install OpenSSH's client")
    livy = kept(cache / LIVY, _unpack_livy)
    unpack_root(cache, root)
    tools = subprocess.run([FETCH_TOOLS, "minio"], capture_output=True, text=True)
    need(tools.returncode == 0, tools.stderr.strip().rsplit("\n", 1)[-1])
    install_debian("chromium")
    digest = hashlib.sha256(HADOOP_LOCK.read_bytes()).hexdigest()[:12]
    try:
        return Parts(
            root=root,
            hadoop=kept(cache / f"hadoop-{digest}", _fetch_hadoop),
            s3a=fetch_jars()[0].parent,
            livy=livy,
            minio=cache / "bin/minio",
            wheels=node_wheels(cache),
            hub=hub.environment(root, cache),
        )
    except FruitsError as error:
        need(False, str(error))


def _fetch_hadoop(target: Path) -> None:
    """Let Maven fetch the jars of the lock and nothing else, and check every hash."""
    need(bool(shutil.which("mvn")), "Maven is missing: install maven")
    digests = dict(line.split() for line in HADOOP_LOCK.read_text().splitlines())
    dependencies = "".join(DEPENDENCY.format(*name.split(":")) for name in digests)
    target.mkdir()
    pom = target / "pom.xml"
    pom.write_text(POM.format(dependencies))
    command = ["mvn", "--quiet", "--batch-mode", "--file", pom, "dependency:copy-dependencies"]
    command += ["-DexcludeTransitive=true", f"-DoutputDirectory={target}"]
    answer = subprocess.run(command, capture_output=True, text=True)
    lines = answer.stdout.strip().splitlines() or [""]
    need(answer.returncode == 0, f"Hadoop cannot be fetched from Maven Central: {lines[0]}")
    pom.unlink()
    for name, digest in digests.items():
        _check_hash(target / "{1}-{2}.jar".format(*name.split(":")), digest)


def _check_hash(file: Path, digest: str) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    need(found == digest, f"{file} has sha256 {found}, not {digest}: do not use it")


def _unpack_livy(target: Path) -> None:
    """No registry has Livy's interactive sessions: users put its official download here."""
    shared = Path(os.environ.get("FRUITS_SHARED", Path(__file__).parents[3] / "shared"))
    packed = shared / f"livy/{LIVY}.tar.gz"
    need(
        packed.is_file(),
        f"Livy is missing: unpack Apache Livy 0.9.0 for Scala 2.12 as {target.with_suffix('')}",
    )
    _check_hash(packed, LIVY_SHA256)
    target.mkdir()
    tar = ["tar", "--extract", f"--file={packed}", f"--directory={target}"]
    subprocess.run([*tar, "--strip-components=1"], check=True)
