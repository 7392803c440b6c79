"""Run the backbone on every image once, and write features and rejects, resumably."""

import io
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming import StreamingQuery
from pyspark.sql.utils import StreamingQueryException
from tqdm import tqdm

from fruits_lib.backbones import Backbone
from fruits_lib.errors import FruitsError
from fruits_lib.images import file_partitions, read_images
from fruits_lib.inference import FEATURIZED, LARGEST_IMAGE, featurizer
from fruits_lib.runs import Run
from fruits_lib.session import ipython_shell, settings
from fruits_lib.storage import is_s3

IMAGES_PER_CORE = 2000  # in one micro-batch: long enough to hide its overhead, short to lose
REJECTS = pa.schema([(name, pa.string()) for name in ("path", "label", "split", "reason")])


@dataclass(frozen=True)
class Featurized:
    """What `featurize` did.

    Attributes
    ----------
    images, features, rejects : int
        Indexed images, and what the run folder holds of them now.
    computed : int
        Images that this call ran through the decoder and the backbone.
    width : int
        Features per image.
    seconds : float
        Wall time of this call.
    """

    images: int
    features: int
    rejects: int
    computed: int
    width: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.images:,} images = {self.features:,} rows of {self.width:,} features "
            f"+ {self.rejects:,} rejects"
        )


def featurize(
    run: Run,
    backbone: Backbone,
    max_pixels: int = 50_000_000,
    max_reject_ratio: float = 0.05,
    batch_size: int = 0,
) -> Featurized:
    """Compute features of the indexed images that have none yet.

    A Structured Streaming query with a checkpoint in the run folder takes new images in
    micro-batches. Each batch replaces its own `features/batch_id=N` (path, label, split, features:
    float array of `backbone.width`, weights_sha256) and `rejects/batch_id=N` (path, label, split,
    reason), so that a killed run resumes with exactly one row per image.

    Parameters
    ----------
    run : Run
    backbone : Backbone
    max_pixels : int
        Images with more pixels become rejects.
    max_reject_ratio : float
        Share of rejects among all images, from 0 to 1, above which the run fails. What was
        computed stays.
    batch_size : int
        Images per micro-batch; 0 takes 2,000 per core.

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
            f"{run.path('checkpoint')} is gone, so nobody knows which images features/ holds: "
            "give another run_dir, or remove features/ and rejects/"
        )
    _reject_empty_files(run)
    done = count_rows(run)
    data = run.manifest()["load"]["data"]
    size = batch_size or IMAGES_PER_CORE * run.spark.sparkContext.defaultParallelism
    model = run.spark.sparkContext.broadcast(backbone.content)
    try:
        writer = _BatchWriter(
            run, backbone, featurizer(model, backbone.spec.input_size, max_pixels)
        )
        with _small_tasks(run.spark):
            query = _start_query(run, data, size, writer)
            _await(query, _Progress(run, images, sum(done.values()), size, writer))
    finally:
        model.destroy()
    now = count_rows(run)
    result = Featurized(
        images,
        now["features"],
        now["rejects"],
        writer.computed,
        backbone.width,
        time.monotonic() - started,
    )
    _record(run, backbone, result, max_pixels, max_reject_ratio)
    found = result.features + result.rejects
    if found != images:
        raise FruitsError(
            f"{run.uri} has features or rejects of {found} images, where its index has {images}: "
            "run 01_load again if images were added since, else give another run_dir"
        )
    ratio = result.rejects / images
    if ratio > max_reject_ratio:
        raise FruitsError(
            f"{result.rejects} of {images} images were rejected, {ratio:.1%}, more than "
            f"max_reject_ratio={max_reject_ratio}: look at rejects/, mend the images or raise it"
        )
    return result


def check_featurize(max_pixels: int, max_reject_ratio: float, batch_size: int = 0) -> None:
    """Raise FruitsError, in one line, if a parameter of `featurize` is out of its bounds."""
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


def count_rows(run: Run) -> dict[str, int]:
    """Return how many rows `features` and `rejects` hold."""
    # With a schema, for a run killed in its first batch leaves no file to take it from.
    reader = run.spark.read.schema("path string")
    return {
        name: reader.parquet(run.path(name)).count() if run.exists(name) else 0
        for name in ("features", "rejects")
    }


def reject_reasons(run: Run) -> pd.DataFrame:
    """Return the rejected images, by path: path (below the data folder), reason."""
    data = run.manifest()["load"]["data"]
    table = run.read_table("rejects").select("path", "reason").orderBy("path").toPandas()
    return table.assign(path=table["path"].str.removeprefix(data + "/"))


def _record(run, backbone: Backbone, result: Featurized, max_pixels: int, max_reject_ratio: float):
    spec = backbone.spec
    run.record(
        "featurize",
        backbone=spec.backbone,
        weights=spec.weights,
        weights_sha256=backbone.sha256,
        input_size=spec.input_size,
        pooling=spec.pooling,
        seed=spec.seed,
        max_pixels=max_pixels,
        max_reject_ratio=max_reject_ratio,
        width=backbone.width,
        features=result.features,
        rejects=result.rejects,
        computed=result.computed,
        seconds=round(result.seconds, 1),
    )


def _start_query(run: Run, data: str, batch_size: int, write) -> StreamingQuery:
    """Start a stream over the images that its checkpoint has not seen."""
    new_images = read_images(
        run.spark,
        data,
        stream=True,
        maxFilesPerTrigger=batch_size,
        # Spark would skip images a week older than the newest one.
        maxFileAge="36500d",
    )
    columns = ["path", "label", "split"]
    if not is_s3(data):  # from a bucket, the workers fetch the content themselves: quicker
        columns.append("content")
    return (
        new_images.select(*columns)
        .writeStream.trigger(availableNow=True)
        .option("checkpointLocation", run.path("checkpoint"))
        .foreachBatch(write)
        .start()
    )


@contextmanager
def _small_tasks(spark: SparkSession) -> Iterator[None]:
    """Settings to run the stream under: it takes them some time after its start."""
    # An image is large where a row is small: few per Arrow batch, or Python workers need gigabytes.
    few = settings(spark, {"spark.sql.execution.arrow.maxRecordsPerBatch": "64"})
    with few, file_partitions(spark):
        yield


def _await(query: StreamingQuery, progress: "_Progress") -> None:
    try:
        with progress:
            while not query.awaitTermination(1):
                progress.show()
    except StreamingQueryException as error:
        # Python's and Java's stack traces, one within the other: the last cause says most, but for
        # the socket on which a worker that was killed fell silent.
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
    """Spark's file sources never show an empty file; the index does."""
    empty = run.read_table("index").filter("length = 0").select("path", "label", "split").collect()
    _write_rejects(run, -1, [{**row.asDict(), "reason": "empty file"} for row in empty])


def _write_rejects(run: Run, batch_id: int, rejects: list[dict]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rejects, schema=REJECTS), buffer)
    run.write_bytes(f"rejects/batch_id={batch_id}/rejects.parquet", buffer.getvalue())


class _BatchWriter:
    """Writes one micro-batch: one pass of the network, features by Spark, rejects beside them."""

    def __init__(self, run: Run, backbone: Backbone, run_backbone):
        self.run = run
        self.sha256 = backbone.sha256
        self.run_backbone = run_backbone
        self.computed = 0
        self.busy = False

    def __call__(self, batch: DataFrame, batch_id: int) -> None:
        self.busy = True
        rejected = F.when(F.col("reason").isNotNull(), F.struct("path", "label", "split", "reason"))
        # Observed while the features are written: a second action would run the network again.
        observed = Observation(f"batch {batch_id}")
        (
            batch.mapInArrow(self.run_backbone, FEATURIZED)
            .observe(
                observed,
                F.count("*").alias("images"),
                F.to_json(F.collect_list(rejected)).alias("rejects"),
            )
            .filter("reason is null")
            .select(
                "path", "label", "split", "features", F.lit(self.sha256).alias("weights_sha256")
            )
            .write.mode("overwrite")
            # Features hardly repeat: a dictionary of them is only built to be thrown away.
            .option("parquet.enable.dictionary#features.list.element", "false")
            .parquet(self.run.path(f"features/batch_id={batch_id}"))
        )
        _write_rejects(self.run, batch_id, json.loads(observed.get["rejects"]))
        self.computed += observed.get["images"]
        self.busy = False


class _Progress:
    """Shows images done, total, rate and time left, where somebody watches.

    Spark counts the tasks of the batch at hand; its images are guessed from them.
    """

    def __init__(self, run: Run, total: int, before: int, batch_size: int, writer: _BatchWriter):
        self.tracker = run.spark.sparkContext.statusTracker()
        self.before = before
        self.batch_size = batch_size
        self.writer = writer
        watched = sys.stderr.isatty() or ipython_shell() is not None
        self.bar = tqdm(total=total, initial=before, unit=" images", disable=not watched, ncols=90)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_) -> None:
        self.show()
        self.bar.close()

    def show(self) -> None:
        done = self.before + self.writer.computed
        if self.writer.busy:
            stages = [self.tracker.getStageInfo(id) for id in self.tracker.getActiveStageIds()]
            tasks = sum(stage.numTasks for stage in stages if stage)
            finished = sum(stage.numCompletedTasks for stage in stages if stage)
            done += int(min(self.batch_size, self.bar.total - done) * finished / max(tasks, 1))
        self.bar.update(done - self.bar.n)
