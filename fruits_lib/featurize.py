"""02: write features and rejects, exactly one row per image, also after a run was killed."""

import io
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F
from pyspark.sql.streaming import StreamingQuery
from pyspark.sql.utils import StreamingQueryException
from tqdm import tqdm

from fruits_lib.backbones import Backbone
from fruits_lib.errors import FruitsError
from fruits_lib.runs import Run
from fruits_lib.session import file_partitions, images_per_batch, ipython_shell, settings
from fruits_lib.udf import LARGEST_IMAGE

REJECTS = pa.schema([(name, pa.string()) for name in ("path", "label", "split", "reason")])


@dataclass(frozen=True)
class Featurized:
    """What `write` did."""

    images: int  # in the index
    features: int  # rows that the run folder now holds
    rejects: int
    computed: int  # images that this call ran through the decoder and the backbone
    width: int  # features per image

    def __str__(self) -> str:
        return (
            f"{self.images:,} images = {self.features:,} rows of {self.width:,} features "
            f"+ {self.rejects:,} rejects"
        )


def write(
    run: Run,
    featurized: DataFrame,
    network: Backbone,
    max_pixels: int = 50_000_000,
    max_reject_ratio: float = 0.05,
    batch_size: int = 0,
) -> Featurized:
    """Run a featurizing stream to its end and write `features/` and `rejects/`.

    A checkpoint in the run folder knows which images are done. Each micro-batch replaces its own
    `features/batch_id=N` (path, label, split, features: float array of `network.width`,
    weights_sha256) and `rejects/batch_id=N` (path, label, split, reason), so that a run that was
    killed resumes with exactly one row per image.

    Parameters
    ----------
    run : Run
    featurized : DataFrame
        `load.new_images(run).mapInArrow(udf.featurizer(...), udf.SCHEMA)`.
    network : Backbone
    max_pixels, batch_size : int
        What the featurizer and `load.new_images` were given, for the manifest and the progress.
    max_reject_ratio : float
        Share of rejects among all images, from 0 to 1, above which the run fails. What was
        computed stays.

    Raises
    ------
    FruitsError
        If a value is out of its bounds, the index is missing or another one's, a batch fails, or
        too many images are rejected.
    """
    check_featurize(max_pixels, max_reject_ratio, batch_size)
    started = time.monotonic()
    images = run.read_table("index").count()
    if run.exists("features") and not run.exists("checkpoint"):
        raise FruitsError(
            f"{run.path('checkpoint')} is gone, the only record of which images are done: "
            "give another run_dir, or remove features/ and rejects/"
        )
    _reject_empty_files(run)
    done = sum(_count_rows(run).values())
    batch_size = images_per_batch(run.spark, batch_size)
    writer = _BatchWriter(run, network.sha256)
    watched = sys.stderr.isatty() or ipython_shell() is not None
    # An image is large where a row is small: few per Arrow batch, or Python workers need gigabytes.
    few = settings(run.spark, {"spark.sql.execution.arrow.maxRecordsPerBatch": "64"})
    # A stream reads its settings some time after its start, so they last until its end.
    with few, file_partitions(run.spark):
        query = (
            featurized.writeStream.trigger(availableNow=True)
            .option("checkpointLocation", run.path("checkpoint"))
            .foreachBatch(writer)
            .start()
        )
        with tqdm(total=images, initial=done, unit=" images", disable=not watched, ncols=90) as bar:
            _await(query, lambda: _show(bar, writer, batch_size))
    rows = _count_rows(run)
    result = Featurized(images, **rows, computed=writer.computed, width=network.width)
    run.record(
        "featurize",
        **asdict(network.spec),
        weights_sha256=network.sha256,
        max_pixels=max_pixels,
        max_reject_ratio=max_reject_ratio,
        width=network.width,
        **rows,
        computed=writer.computed,
        seconds=round(time.monotonic() - started, 1),  # without the export of the backbone
    )
    found = sum(rows.values())
    if found != images:
        raise FruitsError(
            f"{run.uri} has features or rejects of {found} images, where its index has {images}: "
            "run 01_load again if images were added since, else give another run_dir"
        )
    ratio = result.rejects / images
    if ratio > max_reject_ratio:
        raise FruitsError(
            f"{result.rejects} of {images} images were rejected, {ratio:.1%}, more than "
            f"max_reject_ratio={max_reject_ratio}: look at rejects/, repair the images or raise it"
        )
    return result


def check_featurize(max_pixels: int, max_reject_ratio: float, batch_size: int = 0) -> None:
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
        raise FruitsError(f"batch_size={batch_size} is below 0: choose 0 for 2,000 images per core")


def _count_rows(run: Run) -> dict[str, int]:
    # With a schema, because a run killed in its first batch leaves no file to infer it from.
    reader = run.spark.read.schema("path string")
    return {
        name: reader.parquet(run.path(name)).count() if run.exists(name) else 0
        for name in ("features", "rejects")
    }


def reject_reasons(run: Run) -> pd.DataFrame:
    """Return the rejected images, by path: path (below the data folder), reason."""
    table = run.read_table("rejects").select("path", "reason").orderBy("path").toPandas()
    return table.assign(path=table["path"].str.removeprefix(run.data + "/"))


def _await(query: StreamingQuery, show: Callable[[], None]) -> None:
    try:
        while not query.awaitTermination(1):
            show()
        show()
    except StreamingQueryException as error:
        # The text nests stack traces of Python and Java. The last cause says most, unless that is
        # the socket of a worker that was killed.
        causes = re.findall(
            r"(?m)^(?:Caused by: )?(?:\w+\.)*((?!Socket)\w+(?:Error|Exception): \S.*)", str(error)
        )
        raise FruitsError(
            f"featurizing stopped ({causes[-1] if causes else error.desc}): run it again, it "
            "resumes where it stopped"
        ) from error
    finally:
        query.stop()


def _reject_empty_files(run: Run) -> None:
    """Reject the empty files of the index: Spark's file sources skip them."""
    empty = run.read_table("index").filter("length = 0").select("path", "label", "split").collect()
    _write_rejects(run, -1, [{**row.asDict(), "reason": "empty file"} for row in empty])


def _write_rejects(run: Run, batch_id: int, rejects: list[dict]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rejects, schema=REJECTS), buffer)
    run.write_bytes(f"rejects/batch_id={batch_id}/rejects.parquet", buffer.getvalue())


class _BatchWriter:
    """Writes one micro-batch in one pass of the network: Spark features, the driver rejects."""

    def __init__(self, run: Run, sha256: str):
        self.run = run
        self.sha256 = sha256
        self.computed = 0
        self.busy = False

    def __call__(self, batch: DataFrame, batch_id: int) -> None:
        self.busy = True
        rejected = F.when(F.col("reason").isNotNull(), F.struct("path", "label", "split", "reason"))
        # Observed while the features are written: a second action would run the network again.
        observed = Observation(f"batch {batch_id}")
        (
            batch.observe(
                observed,
                F.count("*").alias("images"),
                F.to_json(F.collect_list(rejected)).alias("rejects"),
            )
            .filter("reason is null")
            .select(
                "path", "label", "split", "features", F.lit(self.sha256).alias("weights_sha256")
            )
            .write.mode("overwrite")
            # Features hardly repeat: a dictionary of them would be built and thrown away.
            .option("parquet.enable.dictionary#features.list.element", "false")
            .parquet(self.run.path(f"features/batch_id={batch_id}"))
        )
        _write_rejects(self.run, batch_id, json.loads(observed.get["rejects"]))
        self.computed += observed.get["images"]
        self.busy = False


def _show(bar: tqdm, writer: _BatchWriter, batch_size: int) -> None:
    """Show the images done; those of the current batch are estimated from Spark's tasks."""
    if bar.disable:
        return
    done = bar.initial + writer.computed
    if writer.busy:
        tracker = writer.run.spark.sparkContext.statusTracker()
        stages = [tracker.getStageInfo(id) for id in tracker.getActiveStageIds()]
        tasks = sum(stage.numTasks for stage in stages if stage)
        finished = sum(stage.numCompletedTasks for stage in stages if stage)
        done += int(min(batch_size, bar.total - done) * finished / max(tasks, 1))
    bar.update(done - bar.n)
