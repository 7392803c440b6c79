"""The run folder: small files on any Hadoop file system, and the manifest."""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fruits_lib import storage, user
from fruits_lib.environment import environment
from fruits_lib.errors import FruitsError, spark_errors
from fruits_lib.keys import check_manifest
from fruits_lib.lease import Lease, take
from fruits_lib.stages import (
    STAGES,
    TABLES,
    WRITTEN_BY,
    check_unfinished,
    needed,
    recorded,
)
from fruits_lib.text import printable

if TYPE_CHECKING:  # `fruits predict` reads a manifest without the second that pyspark takes
    from pyspark.sql import DataFrame, DataFrameReader, SparkSession


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


def reader(spark: SparkSession) -> DataFrameReader:
    """Return a reader of one table, whose path is a name: brackets and stars are no pattern."""
    return spark.read.option("__globPaths__", "false")


def read_bytes(spark: SparkSession, uri: str) -> bytes:
    """Return the content of one file on any Hadoop file system, or raise FruitsError."""
    content = _content(spark, uri)
    if content is None:
        raise FruitsError(f"{uri} does not exist: check the path")
    return content


def _content(spark: SparkSession, uri: str) -> bytes | None:
    """Return the content of one file, None if there is no such file."""
    if uri.startswith("file:") or storage.is_s3(uri):  # Hadoop would ask S3 five times
        try:
            return storage.read_bytes(uri)
        except (FileNotFoundError, NotADirectoryError):
            return None
    fs, path = file_system(spark, uri)
    if not fs.exists(path):
        return None
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        # Through a local file, not py4j: a backbone of 100 MB stays out of the JVM's heap.
        fs.copyToLocalFile(False, path, _local(spark, copy), True)
        return copy.read_bytes()


def load_npz(content: bytes) -> dict:
    """Return the arrays and scalars of a NumPy archive, by name."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {key: a.item() if a.ndim == 0 else a for key, a in archive.items()}


def write_bytes(spark: SparkSession, uri: str, content: bytes) -> None:
    """Write one file on any Hadoop file system, over what was there, or raise FruitsError."""
    if uri.startswith("file:") or storage.is_s3(uri):
        try:
            storage.write_bytes(uri, content)  # at once, and with the content type in a bucket
        except OSError as error:
            raise FruitsError(
                f"{uri} cannot be written ({error.strerror}): give a folder that you may write to "
                "and that has room"
            ) from None
        return
    fs, path = file_system(spark, uri)
    hadoop = spark._jvm.org.apache.hadoop.fs
    part = hadoop.Path(path.getParent(), f".{path.getName()}.part")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        copy.write_bytes(content)
        fs.copyFromLocalFile(True, True, _local(spark, copy), part)
    replace = spark.sparkContext._gateway.new_array(getattr(hadoop, "Options$Rename"), 1)
    replace[0] = getattr(hadoop, "Options$Rename").OVERWRITE
    # Only FileContext renames over a file that is there: a kill leaves no half of one.
    conf = spark.sparkContext._jsc.hadoopConfiguration()
    hadoop.FileContext.getFileContext(path.toUri(), conf).rename(part, path, replace)


def _schema(table: str) -> str:
    return TABLES[table.partition("/")[0]]


def _local(spark: SparkSession, path: Path):
    return spark._jvm.org.apache.hadoop.fs.Path(f"file:{path}")


@dataclass(frozen=True)
class Run:
    """One run folder; `open_run` makes it. As text: where it reads and writes."""

    spark: SparkSession
    uri: str  # qualified, without a slash at its end
    data: str = ""  # the same of the photographs; empty before 01_load has run
    # When the notebook opened the run: a stage's seconds count from there.
    opened: float = field(default_factory=time.monotonic, compare=False)
    lease: Lease = field(default_factory=Lease, compare=False)
    stage: str = field(default="", compare=False)  # that the lease is for; see `open_run`
    # The manifest as this process read or wrote it last.
    seen: dict = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        data, uri = (printable(place.removeprefix("file:")) for place in (self.data, self.uri))
        return f"photographs: {data}\nresults:     {uri}"

    def path(self, name: str) -> str:
        """Return the URI of a file or folder of this run."""
        return f"{self.uri}/{name}"

    def exists(self, name: str) -> bool:
        fs, path = file_system(self.spark, self.path(name))
        return fs.exists(path)

    def folders(self, name: str) -> list[str]:
        """Return the names in a folder of this run, none if it does not exist."""
        fs, path = file_system(self.spark, self.path(name))
        entries = fs.listStatus(path) if fs.exists(path) else []
        return [entry.getPath().getName() for entry in entries]

    def delete(self, name: str) -> None:
        """Remove a file or folder of this run, if it exists; see `write_table`."""
        self._claim()
        fs, path = file_system(self.spark, self.path(name))
        fs.delete(path, True)

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a file of this run; see `require`."""
        self._require_writer(name)
        content = _content(self.spark, self.path(name))
        if content is None:
            raise self._missing(name)
        return content

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file of this run, in place of what was there."""
        write_bytes(self.spark, self.path(name), content)

    def read_npz(self, name: str) -> dict:
        """Return the arrays and scalars of a NumPy archive of this run, by name."""
        return load_npz(self.read_bytes(name))

    def write_npz(self, name: str, values: dict) -> None:
        """Write a NumPy archive of this run; values that are None are left out."""
        file = io.BytesIO()
        np.savez(file, **{key: value for key, value in values.items() if value is not None})
        self.write_bytes(name, file.getvalue())

    def read_table(self, name: str) -> DataFrame:
        """Return one of `TABLES`; see `require`. A table without files has no row."""
        self._require_writer(name)
        table = self._read(name)
        if table is None:
            raise self._missing(name)
        return table

    def write_table(
        self, name: str, table: DataFrame, kind: str = "parquet", options: dict | None = None
    ) -> None:
        """Write a table, or a folder of one, in place of what was there.

        Every table is written here. Raises FruitsError if another process took the run folder.
        """
        self._claim()
        writer = table.write.mode("overwrite").format(kind).options(**(options or {}))
        writer.save(self.path(name))

    def read_parquet(self, name: str) -> DataFrame:
        """Return one of `TABLES`, or one of its folders, whatever the manifest says."""
        table = self._read(name)
        return self.spark.createDataFrame([], _schema(name)) if table is None else table

    def _read(self, name: str) -> DataFrame | None:
        from pyspark.errors import AnalysisException

        try:
            return reader(self.spark).schema(_schema(name)).parquet(self.path(name))
        except AnalysisException as error:
            if error.getErrorClass() == "PATH_NOT_FOUND":
                return None
            raise

    def require(self, stage: str) -> dict:
        """Return what a stage recorded; raise FruitsError if it must run first, or again."""
        return recorded(self.manifest(), self.uri, stage)

    def _require_writer(self, name: str) -> None:
        """Raise FruitsError if the stage that writes a part must run first, or again."""
        part = name.partition("/")[0]
        if part in WRITTEN_BY and part != "backbone":  # which is there before its features are
            self.require(WRITTEN_BY[part])

    def _missing(self, name: str) -> FruitsError:
        stage = WRITTEN_BY.get(name.partition("/")[0])
        way_out = f"run {STAGES[stage]} again" if stage else "check the path"
        return FruitsError(f"{self.path(name)} is missing: {way_out}")

    def manifest(self) -> dict:
        """Return what the stages recorded so far; a new run's manifest when there is none."""
        content = _content(self.spark, self.path("manifest.json"))
        if content is None:
            return {"run": self.uri, "created": _now()}
        # A folder that was copied or moved is where it lies now.
        return _parsed(content, self.uri) | {"run": self.uri}

    @contextmanager
    def step(self, stage: str) -> Iterator[dict]:
        """Run a block that writes a stage's output; what it puts into the dict is recorded.

        What this stage and those that need it recorded before is void from the start of the block,
        so that nothing made from a replaced result is ever shown as current. At its end the
        manifest gets the stage's entry, its seconds, and where it ran. The run folder's lease ends
        with the stage that it was taken for, and with an exception; the next step takes it again.

        Raises
        ------
        FruitsError
            If an earlier stage has not run, Spark fails, or another process took the run folder.
        """
        self._claim()
        entry: dict = {}
        try:
            for earlier in needed(stage):
                self.require(earlier)
            with spark_errors(STAGES[stage]):
                self.void(stage)
                yield entry
            seconds = round(time.monotonic() - self.opened, 1)
            manifest = self.manifest()
            manifest["environment"] = environment(self.spark)
            manifest[stage] = {"seconds": seconds, **entry, "finished": _now()}
            self._write_manifest(manifest)
        except BaseException:
            self.lease.release()
            raise
        if stage == self.stage:
            self.lease.release()

    def void(self, stage: str) -> None:
        """Remove what this stage and those that need it recorded: their results are not current."""
        manifest = self.manifest()
        for later in STAGES:
            # A folder that gets a model of its own has no scores by another run's model any more.
            if later in (stage, "apply") or stage in needed(later):
                manifest.pop(later, None)
        self._write_manifest(manifest)

    def amend(self, stage: str, **values) -> None:
        """Change what a stage recorded; its result, and those made from it, stay current."""
        manifest = self.manifest()
        manifest[stage] |= values
        self._write_manifest(manifest)

    def _claim(self) -> None:
        """Check that this process has the lease, or take it back after a cell that failed."""
        if not self.lease.hold():
            self.lease.check()
        elif _results(self.manifest()) != _results(self.seen):
            self.lease.release()
            raise FruitsError(
                f"another process wrote run_dir={self.uri} after this notebook gave it back: run "
                "the notebook again from its first cell"
            )

    def _write_manifest(self, manifest: dict) -> None:
        self._claim()
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        self.write_bytes("manifest.json", text.encode())
        self.seen.clear()
        self.seen.update(json.loads(text))


def _results(manifest: dict) -> dict:
    """Return what stages recorded; a new run's manifest differs each time in its date."""
    return {stage: manifest[stage] for stage in STAGES if stage in manifest}


def open_run(
    spark: SparkSession, run_dir: str = "", data: str = "", stage: str = "", overwrite: bool = False
) -> Run:
    """Return the run in a folder of any Hadoop file system; it need not exist yet.

    Here, and nowhere else, a notebook's folders, paths or URIs, become qualified URIs. An empty
    `run_dir` is a temporary folder of the user's, an empty `data` the one that 01_load recorded.

    Parameters
    ----------
    spark : SparkSession
    run_dir, data : str
    stage : str
        Of `STAGES`, the one that will write: the run folder is then leased to this process until
        the stage has recorded its result. The stages that it needs must have run, but for `apply`,
        which runs them itself.
    overwrite : bool
        Whether the stage may replace a part of a finished run.

    Raises
    ------
    FruitsError
        If the folder is in use, holds a finished run or one of an older version, overlaps that of
        the photographs, or lacks what the stage needs. Nothing is written then, and no folder made.
    """
    uri = qualify(spark, run_dir or f"{scratch_folder(spark)}/run")
    run = Run(spark, uri, stage=stage)

    def known() -> dict:
        manifest = run.manifest()
        for earlier in needed(stage) if stage != "apply" else []:
            recorded(manifest, uri, earlier)
        if run_dir and not overwrite:
            check_unfinished(manifest, run_dir, [stage])
        return manifest

    manifest = known()
    if data:
        data = qualify(spark, data)
        # Again, because Spark may have given one of them its server's name.
        storage.check_apart(**{"data": data, "to" if stage == "apply" else "run_dir": uri})
    if stage:
        run = replace(run, lease=take(uri, spark, STAGES[stage]))
        try:
            manifest = known()  # again: another process may have written until then
        except BaseException:
            run.lease.release()
            raise
    data = data or manifest.get("load", {}).get("data", "")
    return replace(run, data=data, seen=manifest)


def qualify(spark: SparkSession, uri: str) -> str:
    """Return the URI of a path or URI, without a slash at its end; see `storage.local_path`."""
    path = storage.local_path(uri)
    if path and (uri.startswith("file:") or default_file_system(spark).startswith("file:")):
        return f"file:{path}"  # Hadoop would take a:b for a scheme
    return file_system(spark, uri)[1].toString().rstrip("/")


def read_manifest(run_dir: str) -> dict:
    """Return a run's manifest where no Spark is running; an empty one if there is none."""
    uri = run_dir.rstrip("/")
    try:
        return _parsed(storage.read_bytes(f"{uri}/manifest.json"), uri)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _parsed(manifest: bytes, uri: str) -> dict:
    try:
        found = json.loads(manifest)
    except ValueError:
        raise FruitsError(
            f"{uri}/manifest.json is not JSON: remove it and run from 01_load on; features that "
            "are sound stay"
        ) from None
    return check_manifest(found, uri)


def scratch_folder(spark: SparkSession) -> str:
    """Return a folder of this user alone, for the embedded sample, that all executors see.

    Raises FruitsError if another user made it.
    """
    if (default := default_file_system(spark)).startswith("file:"):
        return str(user.folder())
    name = spark.sparkContext.sparkUser()
    fs, folder = file_system(spark, f"{default}/tmp/fruits-{name}")
    mine = spark._jvm.org.apache.hadoop.fs.permission.FsPermission("700")
    fs.mkdirs(folder, mine)
    owner = fs.getFileStatus(folder).getOwner()
    if owner != name:
        raise FruitsError(f"{folder} belongs to {owner}: have it removed, or give a run_dir")
    fs.setPermission(folder, mine)
    return f"{default}/tmp/fruits-{name}"


def default_file_system(spark: SparkSession) -> str:
    """Return the URI of Spark's default file system, without a slash at its end."""
    return file_system(spark, "/")[0].getUri().toString().rstrip("/")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
