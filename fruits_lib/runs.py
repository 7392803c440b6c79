"""The run folder: small files on any Hadoop file system, and the manifest."""

import json
import platform
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

import fruits_lib
from fruits_lib.errors import FruitsError
from fruits_lib.storage import is_s3

PACKAGES = ("pyspark", "numpy", "pandas", "pyarrow", "pillow", "ai-edge-litert", "tensorflow-cpu")


def file_system(spark: SparkSession, uri: str):
    """Return (Hadoop FileSystem, qualified Hadoop Path) of a path or URI.

    A path without a scheme belongs to Spark's default file system: the local one on a laptop,
    HDFS on a cluster. Names are taken as they are: spaces and percent signs are not escapes.

    Raises
    ------
    FruitsError
        If it is no path, or no connector serves the URI's scheme.
    """
    try:
        path = spark._jvm.org.apache.hadoop.fs.Path(uri)
        fs = path.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration())
    except Exception as error:
        reason = str(getattr(error, "java_exception", error)).splitlines()[0]
        way_out = "check the path, its scheme and connector"
        if is_s3(uri):  # Java reads its class path once
            way_out = (
                "this Spark started without a connector for S3, restart the kernel; if SPARK_HOME "
                "or PYSPARK_SUBMIT_ARGS sets it up, name one there"
            )
        raise FruitsError(f"{uri!r} cannot be reached ({reason}): {way_out}") from None
    return fs, fs.makeQualified(path)


def read_bytes(spark: SparkSession, uri: str) -> bytes:
    """Return the content of one file on any Hadoop file system.

    Raises
    ------
    FruitsError
        If there is no such file.
    """
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
    fs, path = file_system(spark, uri)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        copy.write_bytes(content)
        fs.copyFromLocalFile(True, True, _local(spark, copy), path)


def _local(spark: SparkSession, path: Path):
    return spark._jvm.org.apache.hadoop.fs.Path(f"file:{path}")


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes
    ----------
    spark : SparkSession
    uri : str
        Qualified URI of the folder, without a slash at its end.
    """

    spark: SparkSession
    uri: str

    def path(self, name: str) -> str:
        """Return the URI of a file or folder of this run."""
        return f"{self.uri}/{name}"

    def exists(self, name: str) -> bool:
        fs, path = file_system(self.spark, self.path(name))
        return fs.exists(path)

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a file of this run.

        Raises
        ------
        FruitsError
            If the stage that writes it has not run.
        """
        self._require(name)
        return _content(self.spark, *file_system(self.spark, self.path(name)))

    def write_bytes(self, name: str, content: bytes) -> None:
        write_bytes(self.spark, self.path(name), content)

    def read_table(self, name: str) -> DataFrame:
        """Return a Parquet folder of this run.

        Raises
        ------
        FruitsError
            If the stage that writes it has not run.
        """
        self._require(name)
        return self.spark.read.parquet(self.path(name))

    def _require(self, name: str) -> None:
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
        """Write what a stage did (parameters, counts, seconds) and where it ran to the manifest."""
        manifest = self.manifest()
        manifest["environment"] = environment(self.spark)
        manifest[stage] = {**entries, "finished": _now()}
        self.write_bytes(
            "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False).encode()
        )


def open_run(spark: SparkSession, run_dir: str = "") -> Run:
    """Return the run in a folder of any Hadoop file system; it need not exist yet.

    Parameters
    ----------
    spark : SparkSession
    run_dir : str
        Path or URI. Empty: a folder of the user's among the temporary files, for the sample.
    """
    _, path = file_system(spark, run_dir or f"{scratch_folder(spark)}/run")
    return Run(spark, path.toString())


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
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--verify", "-q", "HEAD"],
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return answer.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
