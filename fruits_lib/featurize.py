"""02: write features and rejects, exactly one row per image, also after a run was killed."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import pandas as pd
from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F
from tqdm import tqdm

from fruits_lib import backbones, batches, files
from fruits_lib.backbones import Backbone
from fruits_lib.errors import FruitsError, spark_errors
from fruits_lib.runs import Run
from fruits_lib.session import settings
from fruits_lib.storage import is_s3
from fruits_lib.text import printable
from fruits_lib.udf import LARGEST_FILE, LARGEST_IMAGE, Decoding

IMAGES_PER_CORE = 1500  # per batch: enough to hide its overhead, few to compute again
FILE_BYTES = 32 * 2**20  # of features: a file costs whoever reads it eight requests on S3
UPDATES = 200  # of the progress bar at most: a notebook keeps them all


@dataclass(frozen=True)
class Featurized:
    """What `write` did."""

    images: int  # in the index
    features: int  # rows that the run folder now holds
    rejects: int
    computed: int  # images that this call ran through the decoder and the backbone
    truncated: int  # rows of photographs that lack their last bytes, if these are accepted
    width: int  # features per image

    def __str__(self) -> str:
        accepted = f", {self.truncated:,} of them from truncated files" if self.truncated else ""
        return (
            f"{self.images:,} images = {self.features:,} rows of {self.width:,} features{accepted} "
            f"+ {self.rejects:,} rejects"
        )


def new_images(
    run: Run, network: Backbone, decoding: Decoding, batch_size: int = 0
) -> list[DataFrame]:
    """Return the images that the run has no sound row of yet, in batches, each a DataFrame.

    Rows that must not be there are removed first: several of one image, those of a changed label
    or other weights, and damaged ones. Where a limit of `decoding` is another one than before,
    rejects and rows of truncated photographs go too, for a limit decides these.

    Parameters
    ----------
    run : Run
    network : Backbone
    decoding : Decoding
        Of the network's version.
    batch_size : int
        Images per batch, which a killed run computes again at most; 0 takes 1,500 per core.

    Returns
    -------
    list of DataFrame
        path, label, split, length, and uri or content, see `files.photographs`.

    Raises
    ------
    FruitsError
        If `decoding` is of another version than the run's features.
    """
    if decoding.version != network.decoding:
        raise FruitsError(
            f"decoding is of version {decoding.version}, and the features of {run.uri} of version "
            f"{network.decoding}: give udf.Decoding the version network.decoding"
        )
    index = run.read_table("index").select("path", "label", "split", "length").collect()
    sound = (
        f"size(features) = {network.width} and weights_sha256 = '{network.sha256}' "
        # Spark compiles these functions, but not a lambda. To it, NaN is above infinity, and
        # array_contains is null, not false, where an array holds a null.
        "and array_contains(features, float('nan')) is false "
        "and array_max(features) < float('inf') and array_min(features) > float('-inf')"
    )
    rejects = "true"
    if not (unchanged := backbones.read_decoding(run) == decoding):
        sound, rejects = f"{sound} and truncated is not true", "false"
    with spark_errors("02_featurize"):
        done = batches.keep(run, (row[:3] for row in index), sound, rejects)
        if not unchanged:
            run.void("featurize")
            backbones.record_decoding(run, decoding)  # last: rows that it decides are gone by now
    rows = [tuple(row) for row in index if row.path not in done]
    size = _batch_size(run, batch_size)
    columns = "path string, label string, split string, length long"
    return [
        files.photographs(
            run.spark, run.data, rows[start : start + size], columns, decoding.max_bytes
        )
        for start in range(0, len(rows), size)
    ]


def write(
    run: Run,
    featurized: list[DataFrame],
    network: Backbone,
    decoding: Decoding,
    max_reject_ratio: float = 0.05,
    batch_size: int = 0,
) -> Featurized:
    """Compute batches of features and write `features/` and `rejects/`.

    Each batch writes its own `features/batch_id=N` (path, label, split, features: float array of
    `network.width`, weights_sha256, content_sha256, truncated) and `rejects/batch_id=N` (path,
    label, split, reason), so that a run that was killed goes on with exactly one row per image.

    Parameters
    ----------
    run : Run
    featurized : list of DataFrame
        `batch.mapInArrow(udf.featurizer(...), udf.schema())` for each batch of `new_images`.
    network : Backbone
    decoding : Decoding
        What the featurizer and `new_images` were given, for the manifest.
    batch_size : int
        What `new_images` was given.
    max_reject_ratio : float
        Share of rejects among all images, from 0 to 1, above which the run fails. What was
        computed stays.

    Raises
    ------
    FruitsError
        If a value is out of its bounds, the index is missing, a batch fails, or too many images
        are rejected.
    """
    check_featurize(
        decoding.max_pixels, max_reject_ratio, batch_size, decoding.truncated, decoding.max_bytes
    )
    with run.step("featurize") as entry:
        started = time.monotonic()
        images = run.require("load")["images"]
        before = batches.complete(run)
        first = max(before, default=-1) + 1
        rows = _count(run) if before else {"features": 0, "rejects": 0}
        done = rows["features"] + rows["rejects"]
        fitting = {
            # An image is large where a row is small: with more, Python workers need gigabytes.
            "spark.sql.execution.arrow.maxRecordsPerBatch": "64",
            # Adaptive execution drops what observes a batch from the plan if all are rejects.
            "spark.sql.adaptive.enabled": "false",
        }
        parts = _files(run, batch_size, network.width)
        with settings(run.spark, fitting), _progress(run, images, done, batch_size) as batch_done:
            for batch_id, batch in enumerate(featurized, first):
                batch_done(_write_batch(run, batch_id, batch, network.sha256, parts))
        rows = _count(run)
        computed = rows["features"] + rows["rejects"] - done
        result = Featurized(images, **rows, computed=computed, width=network.width)
        entry.update(
            **asdict(network.spec),
            weights_sha256=network.sha256,
            **decoding.entry,
            max_reject_ratio=max_reject_ratio,
            width=network.width,
            **rows,
            digests=batches.written(run),
            computed=computed,
            seconds=round(time.monotonic() - started, 1),  # without the export of the backbone
        )
        if error := _fault(result, max_reject_ratio):
            entry["error"] = error
    if error:
        raise FruitsError(error)
    return result


def _fault(result: Featurized, max_reject_ratio: float) -> str:
    """Return why the result must not be used, or nothing."""
    found = result.features + result.rejects
    if found != result.images:
        return (
            f"{found:,} rows for {result.images:,} images: photographs went or came since the "
            "index was written, run 01_load again"
        )
    if result.rejects > max_reject_ratio * result.images:
        return (
            f"{result.rejects} of {result.images} images were rejected, "
            f"{result.rejects / result.images:.1%}, more than max_reject_ratio={max_reject_ratio}: "
            "look at rejects/, repair the images or raise it"
        )
    return ""


def check_featurize(
    max_pixels: int,
    max_reject_ratio: float,
    batch_size: int = 0,
    truncated: str = "reject",
    max_bytes: int = Decoding.max_bytes,
) -> None:
    """Raise FruitsError, in one line, if a parameter of 02_featurize is out of its bounds."""
    if not 1 <= max_pixels <= LARGEST_IMAGE:
        raise FruitsError(
            f"max_pixels={max_pixels} is outside 1 to {LARGEST_IMAGE}: choose one inside"
        )
    if not 0 <= max_reject_ratio <= 1:
        raise FruitsError(
            f"max_reject_ratio={max_reject_ratio} is outside 0 to 1: choose one inside"
        )
    if batch_size < 0:
        raise FruitsError(f"batch_size={batch_size} is below 0: choose 0 for 1,500 images per core")
    if truncated not in ("reject", "accept"):
        raise FruitsError(f"truncated={truncated!r} is not known: choose reject or accept")
    if not 1 <= max_bytes <= LARGEST_FILE:
        raise FruitsError(
            f"max_bytes={max_bytes} is outside 1 to {LARGEST_FILE}: choose one inside"
        )


def reject_reasons(run: Run) -> pd.DataFrame:
    """Return the rejected images, by path, as text to show: path, reason."""
    rejects = run.read_table("rejects").select("path", "reason").orderBy("path").toPandas()
    return rejects.map(printable)


def _batch_size(run: Run, asked: int) -> int:
    return asked or IMAGES_PER_CORE * run.spark.sparkContext.defaultParallelism


def _files(run: Run, batch_size: int, width: int) -> int:
    """Return as how many files a batch is written: by all cores where files cost nothing."""
    files = 1 + _batch_size(run, batch_size) * 4 * width // FILE_BYTES  # float32
    return files if is_s3(run.uri) else max(files, run.spark.sparkContext.defaultParallelism)


def _count(run: Run) -> dict[str, int]:
    features = batches.read(run, "features").agg(
        F.count("*").alias("features"), F.count_if("truncated").alias("truncated")
    )
    return {**features.first().asDict(), "rejects": batches.read(run, "rejects").count()}


def _write_batch(run: Run, batch_id: int, batch: DataFrame, sha256: str, parts: int) -> int:
    """Write a batch as so many files in one pass of the network; return its number of images.

    Tasks are more than files, so that the cores end at once: rows go through a shuffle.
    """
    rejected = F.when(F.col("reason").isNotNull(), F.struct("path", "label", "split", "reason"))
    # Observed while the features are written: a second action would run the network again.
    observed = Observation(f"batch {batch_id}")
    counted = batch.observe(
        observed,
        F.count("*").alias("images"),
        F.to_json(F.collect_list(rejected)).alias("rejects"),
    )
    rows = counted.filter("reason is null").withColumn("weights_sha256", F.lit(sha256))
    digest = batches.write_features(run, batch_id, rows.drop("reason").repartition(parts, "path"))
    # Spark observes a task again that it repeats after an executor is lost.
    rejects = {reject["path"]: reject for reject in json.loads(observed.get["rejects"])}
    batches.write_rejects(run, batch_id, list(rejects.values()), digest)
    return observed.get["images"]


@contextmanager
def _progress(run: Run, images: int, done: int, batch_size: int) -> Iterator:
    """Show the images done; those of the current batch are estimated from Spark's tasks."""
    finished, ended = [done], threading.Event()
    size = _batch_size(run, batch_size)
    tracker = run.spark.sparkContext.statusTracker()
    bar = tqdm(
        total=images,
        initial=done,
        unit=" images",
        ncols=90,
        file=sys.stdout,  # a notebook shows stderr in pink, and Livy's kernel as an error
        miniters=max(images // UPDATES, 1),
        mininterval=1,
    )

    def show() -> None:
        while not ended.wait(1):
            stages = [tracker.getStageInfo(id) for id in tracker.getActiveStageIds()]
            tasks = sum(stage.numTasks for stage in stages if stage)
            share = sum(stage.numCompletedTasks for stage in stages if stage) / max(tasks, 1)
            estimate = finished[0] + int(share * min(size, images - finished[0]))
            bar.update(max(estimate - bar.n, 0))  # the tasks that write begin again at 0

    def batch_done(computed: int) -> None:
        finished[0] += computed

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield batch_done
    finally:
        ended.set()
        thread.join()
        bar.update(finished[0] - bar.n)
        bar.close()
