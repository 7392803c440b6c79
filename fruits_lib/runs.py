"""The run folder: small files on any Hadoop file system, and the manifest."""

import io
import json
import os
import platform
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from pyspark.sql import DataFrame, SparkSession

import fruits_lib
from fruits_lib import storage
from fruits_lib.errors import FruitsError

PACKAGES = ("pyspark", "numpy", "pandas", "pyarrow", "pillow", "ai-edge-litert", "tensorflow-cpu")


def file_system(spark: SparkSession, uri: str):
    """Return (Hadoop FileSystem, qualified Hadoop Path) of a path or URI.

    A path without a scheme belongs to Spark's default file system: the local one on a laptop,
    HDFS on a cluster. Names are taken as they are: spaces and percent signs are not escapes.

    Raises
    ------
    FruitsError
        If it is not a path, or no connector serves the URI's scheme.
    """
    try:
        path = spark._jvm.org.apache.hadoop.fs.Path(os.path.expanduser(uri))
        fs = path.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration())
    except Exception as error:
        reason = str(getattr(error, "java_exception", error)).splitlines()[0]
        way_out = "check the path, its scheme and connector"
        if storage.is_s3(uri):  # Java reads its class path once
            way_out = (
                "this Spark started without a connector for S3, restart the kernel; if SPARK_HOME "
                "or PYSPARK_SUBMIT_ARGS sets it up, name one there"
            )
        raise FruitsError(f"{uri!r} cannot be reached ({reason}): {way_out}") from None
    return fs, fs.makeQualified(path)


def read_bytes(spark: SparkSession, uri: str) -> bytes:
    """Return the content of one file on any Hadoop file system, or raise FruitsError."""
    fs, path = file_system(spark, uri)
    if not fs.exists(path):
        raise FruitsError(f"{path.toString()} does not exist: check the path")
    return _content(spark, fs, path)


def _content(spark: SparkSession, fs, path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        # Through a local file, not py4j: a backbone of 100 MB stays out of the JVM's heap.
        fs.copyToLocalFile(False, path, _local(spark, copy), True)
        return copy.read_bytes()


def write_bytes(spark: SparkSession, uri: str, content: bytes) -> None:
    """Write one file on any Hadoop file system, in place of what was there."""
    if storage.is_s3(uri):  # Hadoop's connector would not set the content type
        storage.write_bytes(uri, content)
        return
    fs, path = file_system(spark, uri)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        copy.write_bytes(content)
        fs.copyFromLocalFile(True, True, _local(spark, copy), path)


def _local(spark: SparkSession, path: Path):
    return spark._jvm.org.apache.hadoop.fs.Path(f"file:{path}")


@dataclass(frozen=True)
class Run:
    """One run folder; `open_run` makes it."""

    spark: SparkSession
    uri: str  # qualified, without a slash at its end
    data: str = ""  # the same of the photographs; empty before 01_load has run
    # When the notebook opened the run: a stage's seconds count from there.
    opened: float = field(default_factory=time.monotonic, compare=False)

    def path(self, name: str) -> str:
        """Return the URI of a file or folder of this run."""
        return f"{self.uri}/{name}"

    def exists(self, name: str) -> bool:
        fs, path = file_system(self.spark, self.path(name))
        return fs.exists(path)

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a file of this run; see `require`."""
        self.require(name)
        return _content(self.spark, *file_system(self.spark, self.path(name)))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file of this run, in place of what was there."""
        write_bytes(self.spark, self.path(name), content)

    def read_npz(self, name: str) -> dict:
        """Return the arrays and scalars of a NumPy archive of this run, by name."""
        with np.load(io.BytesIO(self.read_bytes(name)), allow_pickle=False) as archive:
            return {key: a.item() if a.ndim == 0 else a for key, a in archive.items()}

    def write_npz(self, name: str, values: dict) -> None:
        """Write a NumPy archive of this run; values that are None are left out."""
        file = io.BytesIO()
        np.savez(file, **{key: value for key, value in values.items() if value is not None})
        self.write_bytes(name, file.getvalue())

    def read_table(self, name: str) -> DataFrame:
        """Return a Parquet folder of this run; see `require`."""
        self.require(name)
        return self.spark.read.parquet(self.path(name))

    def require(self, name: str) -> None:
        """Raise FruitsError if the stage that writes this file or folder has not run."""
        if not self.exists(name):
            part = name.partition("/")[0]
            raise FruitsError(
                f"{self.path(name)} is missing: run the notebook that writes {part} first"
            )

    def manifest(self) -> dict:
        """Return what the stages recorded so far; a new run's manifest when there is none."""
        if not self.exists("manifest.json"):
            return {"run": self.uri, "created": _now()}
        return json.loads(self.read_bytes("manifest.json"))

    def record(self, stage: str, **entries) -> None:
        """Write what a stage did (parameters, counts), its seconds, and where it ran."""
        manifest = self.manifest()
        manifest["environment"] = environment(self.spark)
        seconds = round(time.monotonic() - self.opened, 1)
        manifest[stage] = {"seconds": seconds, **entries, "finished": _now()}
        self.write_bytes(
            "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False).encode()
        )


def open_run(spark: SparkSession, run_dir: str = "", data: str = "") -> Run:
    """Return the run in a folder of any Hadoop file system; it need not exist yet.

    Here, and nowhere else, a notebook's folders, paths or URIs, become qualified URIs. An empty
    `run_dir` is a temporary folder of the user's, an empty `data` the one that 01_load recorded.
    """
    run = Run(spark, _qualified(spark, run_dir or f"{scratch_folder(spark)}/run"))
    recorded = "" if data else run.manifest().get("load", {}).get("data", "")
    return replace(run, data=_qualified(spark, data) if data else recorded)


def _qualified(spark: SparkSession, uri: str) -> str:
    return file_system(spark, uri)[1].toString().rstrip("/")


def read_manifest(run_dir: str) -> dict:
    """Return a run's manifest where no Spark is running; an empty one if there is none."""
    try:
        return json.loads(storage.read_text(f"{run_dir.rstrip('/')}/manifest.json"))
    except (FileNotFoundError, NotADirectoryError):
        return {}


def scratch_folder(spark: SparkSession) -> str:
    """Return a folder for the embedded sample that driver and executors all see."""
    fs, _ = file_system(spark, "/")
    local = fs.getUri().getScheme() == "file"
    temporary = tempfile.gettempdir() if local else "/tmp"
    return f"{temporary}/fruits-{spark.sparkContext.sparkUser()}"


def environment(spark: SparkSession) -> dict:
    """Return versions and settings that a reader needs to repeat a run."""
    return {
        "fruits_lib": fruits_lib.__version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "java": spark._jvm.System.getProperty("java.version"),
        "spark": spark.version,
        "hadoop": spark._jvm.org.apache.hadoop.util.VersionInfo.getVersion(),
        "master": spark.sparkContext.master,
        "parallelism": spark.sparkContext.defaultParallelism,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def git_commit() -> str | None:
    """Return the commit that this code was checked out from, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--verify", "-q", "HEAD"]
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
