"""The results of a run where no Spark is running: read with NumPy and pyarrow, never written."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fruits_lib import storage
from fruits_lib.errors import FruitsError
from fruits_lib.networks import BackboneSpec
from fruits_lib.runs import load_npz, read_manifest
from fruits_lib.stages import STAGES, WRITTEN_BY, recorded
from fruits_lib.udf import Decoding


@dataclass(frozen=True)
class Results:
    """A run folder, local or a URI, and its manifest; `open_results` makes it."""

    uri: str
    manifest: dict

    def require(self, stage: str) -> dict:
        """Return what a stage recorded; raise FruitsError if it must run first, or again."""
        return recorded(self.manifest, self.uri, stage)

    @property
    def data(self) -> str:
        """URI of the folder of photographs."""
        return self.require("load")["data"]

    @property
    def classified(self) -> bool:
        """Whether the run has a classifier that is current."""
        return "error" not in self.manifest.get("classify", {"error": ""})

    @property
    def decoding(self) -> Decoding:
        """How the photographs of the features were decoded."""
        return Decoding.of(self.require("featurize"))

    @property
    def spec(self) -> BackboneSpec:
        return BackboneSpec.of(self.require("featurize"))

    def read_backbone(self) -> bytes:
        """Return the LiteRT file that made the features, by its SHA-256."""
        name = f"backbone/{self.spec.name}.tflite"
        content = self._read(name)
        if hashlib.sha256(content).hexdigest() != self.require("featurize")["weights_sha256"]:
            raise FruitsError(
                f"{self.uri}/{name} is not the file that made the features: put that back"
            )
        return content

    def read_npz(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of `model.npz` or `classifier.npz`, by name."""
        self.require(WRITTEN_BY[name])
        try:
            return load_npz(self._read(name))
        except (ValueError, OSError) as error:  # np.load's, of what is no archive
            raise self._damaged(name, error) from None

    def read_table(self, name: str, columns: list[str]) -> pa.Table:
        """Return columns of `pca/` or `labels/`, all rows, by path."""
        self.require(WRITTEN_BY[name])
        # Spark hides what begins with these, and so do we.
        files = [
            uri
            for uri in storage.files_in(f"{self.uri}/{name}")
            if uri.rsplit("/", 1)[1][0] not in "._"
        ]
        if not files:
            raise FruitsError(f"{self.uri}/{name} is missing: {self._again(name)}")
        try:
            # Not by pq.read_table, which imports pandas, and takes x=y in a folder for a column.
            tables = [
                pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri))).read(columns)
                for uri in files
            ]
        except pa.ArrowException as error:
            raise self._damaged(name, error) from None
        return pa.concat_tables(tables).sort_by("path")

    def photographs(self, paths: Iterable[str]) -> Iterator[bytes | None]:
        """Yield the files of photographs of the run, None for those that cannot be read.

        Files are bounded as in `storage.read_bytes`, by the run's `max_bytes`.
        """
        most = self.decoding.max_bytes
        read_object = storage.reader() if storage.is_s3(self.data) else None
        for path in paths:
            try:
                yield storage.read_bytes(f"{self.data}/{path}", read_object, most)
            except (OSError, ValueError, FruitsError):  # ValueError: a scheme that nobody knows
                yield None

    def _read(self, name: str) -> bytes:
        try:
            return storage.read_bytes(f"{self.uri}/{name}")
        except FileNotFoundError:
            raise FruitsError(f"{self.uri}/{name} is missing: {self._again(name)}") from None

    def _damaged(self, name: str, error: Exception) -> FruitsError:
        reason = str(error).splitlines()[0]
        return FruitsError(f"{self.uri}/{name} is damaged ({reason}): {self._again(name)}")

    def _again(self, name: str) -> str:
        return f"run {STAGES[WRITTEN_BY[name.partition('/')[0]]]} again"


def open_results(run_dir: str) -> Results:
    """Return the results in a run folder: a path or URI.

    Raises
    ------
    FruitsError
        If there is no run, or one of an older version, or S3 refuses it.
    """
    uri = str(storage.local_path(run_dir) or run_dir.rstrip("/"))
    try:
        manifest = read_manifest(uri)
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FruitsError(
            f"{uri}/manifest.json cannot be read ({reason}): give the folder of a run"
        ) from None
    if not manifest:
        raise FruitsError(f"run_dir={run_dir} holds no run: give the folder that a run wrote")
    return Results(uri, manifest)


def scores_of(table: pa.Table) -> np.ndarray:
    """Return the column `pca` of a table as one array, float32 (n, k)."""
    values = np.from_dlpack(table["pca"].combine_chunks().flatten())  # to_numpy imports pandas
    return values.reshape(table.num_rows, -1)


def reduce(model: dict, features: np.ndarray) -> np.ndarray:
    """Return the scores, float64 (n, k), of features (n, d), by the arrays of `model.npz`."""
    centred = features.astype(np.float64) - model["mean"]
    return (centred * model["scale"]) @ model["components"].T
