"""The batches of `features/` and `rejects/`: which rows count, and how rows are taken away.

Batch N is `features/batch_id=N`, written by Spark, then `rejects/batch_id=N/rejects.parquet`; it
counts when both are complete. Nothing else records what is done, so whatever is killed when, and
whatever is removed, the folders themselves say which images have a row.

The second of them also keeps a digest of the features that were written, by which 05 tells whether
a row has changed since: their number, and the sum of a hash of each, in any order.
"""

import io
import re
from collections.abc import Iterable
from functools import reduce

import pyarrow as pa
import pyarrow.parquet as pq
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as F

from fruits_lib.runs import Run, read_bytes
from fruits_lib.session import settings
from fruits_lib.udf import UNREADABLE

IMAGE = ("path", "label", "split")
REJECTS = pa.schema([(name, pa.string()) for name in (*IMAGE, "reason")])
REJECTS_FILE = "rejects.parquet"
NO_ROWS = "0 0"  # the digest of a batch of rejects alone
_DIGEST = b"fruits.features"  # in the metadata of REJECTS_FILE


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


def digest() -> Column:
    """Return the digest of rows of `features/`, an aggregate."""
    # A sum of decimals does not overflow.
    of_row = F.xxhash64("path", "content_sha256", "features").cast("decimal(20, 0)")
    figures = F.count("*"), F.ifnull(F.sum(of_row), F.lit(0))
    return F.concat_ws(" ", *(figure.cast("string") for figure in figures))


def digests(features: DataFrame) -> dict[int, str]:
    """Return the digest of every batch that has rows of `features/`; see `read`."""
    return dict(map(tuple, features.groupBy("batch_id").agg(digest()).collect()))


def written(run: Run) -> dict[int, str | None]:
    """Return the digest of every batch as it was written; None for one of an older version."""
    return {batch_id: _written(run, batch_id) for batch_id in complete(run)}


def _written(run: Run, batch_id: int) -> str | None:
    content = read_bytes(run.spark, run.path(f"{folder('rejects', batch_id)}/{REJECTS_FILE}"))
    try:
        found = (pq.read_schema(io.BytesIO(content)).metadata or {}).get(_DIGEST)
    except pa.ArrowException:  # damaged: `keep` replaces it
        return None
    return found and found.decode()


def write_features(run: Run, batch_id: int, rows: DataFrame) -> str:
    """Write a batch's features and return their digest, which is for `write_rejects`.

    That must follow: it makes the batch complete.
    """
    # Observed by the tasks that write, behind the last shuffle: Spark counts each of them once,
    # however often it is repeated.
    observed = Observation(f"batch {batch_id} written")
    options = {
        # Parquet's older lists, which all readers know, have no group around each number: Spark
        # writes them in half the time.
        "spark.sql.parquet.writeLegacyFormat": "true",
        # Adaptive execution drops what observes a batch from the plan if it has no row.
        "spark.sql.adaptive.enabled": "false",
    }
    with settings(run.spark, options):
        run.write_table(
            folder("features", batch_id),
            rows.observe(observed, digest().alias("digest")),
            # A dictionary of features, which hardly repeat, would be thrown away.
            options={"parquet.enable.dictionary#features.array": "false"},
        )
    return observed.get["digest"]


def write_rejects(run: Run, batch_id: int, rejects: list[dict], digest: str) -> None:
    """Write a batch's rejects: path, label, split, reason; and the digest of its features."""
    buffer = io.BytesIO()
    schema = REJECTS.with_metadata({_DIGEST: digest})
    pq.write_table(pa.Table.from_pylist(rejects, schema=schema), buffer)
    run.write_bytes(f"{folder('rejects', batch_id)}/{REJECTS_FILE}", buffer.getvalue())


def keep(
    run: Run, images: Iterable[tuple], sound: str = "true", sound_rejects: str = "true"
) -> set[str]:
    """Keep one sound row of each image in `features/` and `rejects/`, and return their paths.

    Batches that hold other rows, several rows of one path or damaged files, and those without a
    digest, are replaced by one new batch of their good rows. A kill at any point leaves at most
    several rows of one path, which the next call removes. A photograph that could not be read is
    not done: it loses its row.

    Parameters
    ----------
    run : Run
    images : iterable of (path, label, split)
        As in the index.
    sound, sound_rejects : str
        SQL conditions on the rows of `features/` and of `rejects/`.
    """
    ids, wanted, kept = complete(run), {tuple(image) for image in images}, {}
    if not ids:
        return set()
    decided = ~F.col("reason").startswith(UNREADABLE) & F.expr(sound_rejects)
    # A damaged file must not take the sound ones of its batch with it.
    with settings(run.spark, {"spark.sql.files.ignoreCorruptFiles": "true"}):
        tables = [
            read(run, table).select(*IMAGE, "batch_id", F.lit(table).alias("table"), good)
            for table, good in (("features", F.expr(sound)), ("rejects", decided))
        ]
        bad = _damaged(run, ids) | {n for n in ids if not _written(run, n)}
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
        # As many tasks, and files, as cores: without adaptive execution nothing else merges them.
        cores = run.spark.sparkContext.defaultParallelism
        tables[table] = found.dropDuplicates(["path"]).drop("batch_id").coalesce(cores)
    rejects = [row.asDict() for row in tables["rejects"].collect()]
    write_rejects(run, batch_id, rejects, write_features(run, batch_id, tables["features"]))
    for old in bad:
        run.delete(folder("features", old))
        run.delete(folder("rejects", old))


def _ids(run: Run, table: str) -> list[int]:
    found = (re.fullmatch(r"batch_id=(\d+)", name) for name in run.folders(table))
    return [int(match[1]) for match in found if match]
