"""The batches of `features/` and `rejects/`: which rows count, and how rows are taken away.

Batch N is `features/batch_id=N`, written by Spark, then `rejects/batch_id=N/rejects.parquet`; it
counts when both are complete. Nothing else records what is done, so whatever is killed when, and
whatever is removed, the folders themselves say which images have a row.
"""

import io
import re
from collections.abc import Iterable
from functools import reduce

import pyarrow as pa
import pyarrow.parquet as pq
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from fruits_lib.runs import Run
from fruits_lib.session import settings
from fruits_lib.udf import UNREADABLE

IMAGE = ("path", "label", "split")
REJECTS = pa.schema([(name, pa.string()) for name in (*IMAGE, "reason")])
REJECTS_FILE = "rejects.parquet"


def folder(table: str, batch_id: int) -> str:
    return f"{table}/batch_id={batch_id}"


def complete(run: Run) -> list[int]:
    """Return the ids of the batches that count, after removing what a killed run left of others."""
    found = {table: set(_ids(run, table)) for table in ("features", "rejects")}
    ids = [
        batch_id
        for batch_id in sorted(found["features"] & found["rejects"])
        if run.exists(f"{folder('features', batch_id)}/_SUCCESS")
        and run.exists(f"{folder('rejects', batch_id)}/{REJECTS_FILE}")
    ]
    for table, present in found.items():
        for batch_id in present - set(ids):
            run.delete(folder(table, batch_id))
    return ids


def read(run: Run, table: str) -> DataFrame:
    """Return the rows of `features/` or `rejects/`, with their batch_id."""
    rows = run.read_parquet(table)
    if "batch_id" in rows.columns:
        return rows
    return rows.withColumn("batch_id", F.lit(None).cast("int"))  # there is no batch


def hashes(run: Run) -> dict[str, str]:
    """Return the sha256 of every photograph that has features, by path, but of damaged files."""
    with settings(run.spark, {"spark.sql.files.ignoreCorruptFiles": "true"}):
        rows = run.read_parquet("features").select("path", "content_sha256").collect()
    return dict(map(tuple, rows))


def write_features(run: Run, batch_id: int, rows: DataFrame) -> None:
    """Write a batch's features; `write_rejects` must follow, which makes the batch complete."""
    # Parquet's older lists, which all readers know, have no group around each number: Spark writes
    # them in half the time. A dictionary of features, which hardly repeat, would be thrown away.
    with settings(run.spark, {"spark.sql.parquet.writeLegacyFormat": "true"}):
        options = {"parquet.enable.dictionary#features.array": "false"}
        run.write_table(folder("features", batch_id), rows, options=options)


def write_rejects(run: Run, batch_id: int, rejects: list[dict]) -> None:
    """Write a batch's rejects: path, label, split, reason."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rejects, schema=REJECTS), buffer)
    run.write_bytes(f"{folder('rejects', batch_id)}/{REJECTS_FILE}", buffer.getvalue())


def keep(run: Run, images: Iterable[tuple], sound: str = "true") -> set[str]:
    """Keep one sound row of each image in `features/` and `rejects/`, and return their paths.

    Batches that hold other rows, several rows of one path or damaged files are replaced by one new
    batch of their good rows. A kill at any point leaves at most several rows of one path, which
    the next call removes. A photograph that could not be read is not done: it loses its row.

    Parameters
    ----------
    run : Run
    images : iterable of (path, label, split)
        As in the index.
    sound : str
        SQL condition on the rows of `features/`.
    """
    ids, wanted, kept = complete(run), {tuple(image) for image in images}, {}
    if not ids:
        return set()
    unread = F.col("reason").startswith(UNREADABLE)
    # A damaged file must not take the sound ones of its batch with it.
    with settings(run.spark, {"spark.sql.files.ignoreCorruptFiles": "true"}):
        tables = [
            read(run, table).select(*IMAGE, "batch_id", F.lit(table).alias("table"), good)
            for table, good in (("features", F.expr(sound)), ("rejects", ~unread))
        ]
        bad = _damaged(run, ids)
        for *image, batch_id, table, good in reduce(DataFrame.union, tables).collect():
            if good and tuple(image) in wanted and image[0] not in kept:
                kept[image[0]] = batch_id, table
            else:
                bad.add(batch_id)
        if bad:
            _replace(run, bad, kept, max(ids) + 1)
    return set(kept)


def _damaged(run: Run, ids: list[int]) -> set[int]:
    """Return the batches with a Parquet file that cannot be read."""

    def readable(*parts: str) -> bool:
        try:
            for part in parts:
                run.read_parquet(part).agg(F.count("path")).collect()
        except (Py4JError, PySparkException):
            return False
        return True

    with settings(run.spark, {"spark.sql.files.ignoreCorruptFiles": "false"}):
        if readable("features", "rejects"):
            return set()
        return {n for n in ids if not readable(folder("features", n), folder("rejects", n))}


def _replace(run: Run, bad: set[int], kept: dict, batch_id: int) -> None:
    """Write the rows to keep of some batches as one new batch, and remove those batches."""
    run.void("featurize")
    tables = {}
    for table in ("features", "rejects"):
        rows = [(path, n) for path, (n, where) in kept.items() if n in bad and where == table]
        wanted = run.spark.createDataFrame(rows, "path string, batch_id int")
        found = read(run, table).join(wanted, ["path", "batch_id"], "left_semi")
        tables[table] = found.dropDuplicates(["path"]).drop("batch_id")
    write_features(run, batch_id, tables["features"])
    write_rejects(run, batch_id, [row.asDict() for row in tables["rejects"].collect()])
    for old in bad:
        run.delete(folder("features", old))
        run.delete(folder("rejects", old))


def _ids(run: Run, table: str) -> list[int]:
    found = (re.fullmatch(r"batch_id=(\d+)", name) for name in run.folders(table))
    return [int(match[1]) for match in found if match]
