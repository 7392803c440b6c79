"""01: list a tree of images with Spark, label and split from the path, and write the index."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from urllib.parse import unquote

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from fruits_lib.errors import FruitsError
from fruits_lib.runs import Run, file_system
from fruits_lib.session import file_partitions, images_per_batch
from fruits_lib.storage import is_s3

SPLITS = ("Training", "Test", "Validation")
# Hadoop globs have no option that ignores case.
IMAGE_GLOB = "*.{[jJ][pP][gG],[jJ][pP][eE][gG],[pP][nN][gG]}"
SCHEMA = "path string, modificationTime timestamp, length long, content binary"


@dataclass(frozen=True)
class Index:
    """What `write_index` wrote."""

    images: int
    labels: int
    skipped: int  # image files that Spark skips: their name or a folder's begins with _ or .

    def __str__(self) -> str:
        return (
            f"{self.images:,} images of {self.labels} labels, "
            f"{self.skipped} skipped (names that begin with _ or .)"
        )


def list_images(run: Run) -> DataFrame:
    """List the images below the data folder without reading their content.

    Spark's file sources drop empty files silently; here they are listed, with length 0.

    Returns
    -------
    DataFrame
        path, label, split, length (bytes), modification_time; see `read_images`. Computed once.

    Raises
    ------
    FruitsError
        If the data folder is missing or is a file.
    """
    fs, folder = file_system(run.spark, run.data)
    if not fs.exists(folder):
        raise FruitsError(f"{run.data} does not exist: give a folder or prefix that holds images")
    if fs.getFileStatus(folder).isFile():
        raise FruitsError(f"{run.data} is a file: give the folder above the label folders")
    with file_partitions(run.spark):
        images = read_images(run)
        time = F.col("modificationTime").alias("modification_time")
        # Once, or Spark would ask a bucket for every image's length again at each look.
        filled = images.select("path", "label", "split", "length", time).localCheckpoint()
        files = images._jdf.inputFiles()  # empty ones too; stays in the JVM unless there are any
        if len(files) == filled.count():
            return filled
    seen = {row.path for row in filled.select("path").collect()}
    # Spark writes a URL, file:///a%20b, where the path column has Hadoop's file:/a b.
    urls = _join(run.spark, files).split("\0")
    listed = (unquote(url).replace("file:///", "file:/", 1) for url in urls)
    empty = [(path, 0, _modified(run, path)) for path in listed if path not in seen]
    schema = "path string, length long, modification_time timestamp"
    return filled.unionByName(
        _with_label_and_split(run.spark.createDataFrame(empty, schema), run.data)
    )


def _modified(run: Run, path: str) -> datetime:
    fs, path = file_system(run.spark, path)
    return datetime.fromtimestamp(fs.getFileStatus(path).getModificationTime() / 1000, UTC)


def write_index(run: Run, images: DataFrame) -> Index:
    """Check the listing that `list_images` returned and write it as the run's `index/`.

    Raises
    ------
    FruitsError
        If there is no image, an image has no label folder, or images that this run indexed before
        have changed or disappeared.
    """
    skipped = _count_skipped(run)
    listing = images.repartition(1).sortWithinPartitions("path").persist()
    try:
        _check_listing(run, listing, skipped)
        listing.write.mode("overwrite").parquet(run.path("index"))
        found = listing.agg(F.count("*").alias("images"), F.countDistinct("label").alias("labels"))
        index = Index(**found.first().asDict(), skipped=skipped)
    finally:
        listing.unpersist()
    run.record("load", data=run.data, **asdict(index))
    return index


def new_images(run: Run, batch_size: int = 0) -> DataFrame:
    """Return a stream of the images that the run has no features of yet, see `featurize.write`.

    Parameters
    ----------
    run : Run
    batch_size : int
        Images per micro-batch; 0 takes 2,000 per core.

    Returns
    -------
    DataFrame
        Streaming, with path, label, split, content. From a bucket there is no content: the workers
        fetch it themselves, which is quicker.
    """
    run.require("index")
    images = read_images(
        run,
        stream=True,
        maxFilesPerTrigger=images_per_batch(run.spark, batch_size),
        maxFileAge="36500d",  # Spark would skip images a week older than the newest one
    )
    return images.select("path", "label", "split", *([] if is_s3(run.data) else ["content"]))


def read_images(run: Run, stream: bool = False, **options) -> DataFrame:
    """Return the JPEG and PNG images below the data folder, at any depth, with label and split.

    `options` are further options of Spark's `binaryFile` source.

    Returns
    -------
    DataFrame
        path, modificationTime, length, content of Spark's `binaryFile` source; label, the name of
        the folder that holds the image (null when that is `data` itself or a split folder); split,
        the nearest `Training`, `Test` or `Validation` above it, from `data` down, or null.
    """
    reader = run.spark.readStream if stream else run.spark.read
    images = (
        reader.format("binaryFile")
        .schema(SCHEMA)
        .options(recursiveFileLookup=True, pathGlobFilter=IMAGE_GLOB, **options)
        .load(_escape_glob(run.data))
    )
    return _with_label_and_split(images, run.data)


def _with_label_and_split(images: DataFrame, root: str) -> DataFrame:
    # Neither the path column nor the root is URL-encoded.
    names = F.split(F.substring("path", len(root) + 2, 1 << 30), "/")
    label = F.when(F.size(names) > 1, F.element_at(names, -2))
    above = F.filter(
        F.concat(F.array(F.lit(root.rsplit("/", 1)[-1])), F.slice(names, 1, F.size(names) - 1)),
        lambda name: name.isin(*SPLITS),
    )
    return images.withColumn("label", F.when(~label.isin(*SPLITS), label)).withColumn(
        "split", F.try_element_at(above, F.lit(-1))
    )


def sample_images(run: Run, per_label: int, labels: int = 12) -> pd.DataFrame:
    """Return the first images of the first labels, by name: path, label, content (file bytes).

    There are at most `per_label` images of each label, and at most `labels` labels.
    """
    chosen = (
        run.read_table("index")
        .filter("length > 0")
        .groupBy("label")
        .agg(F.slice(F.sort_array(F.collect_list("path")), 1, per_label).alias("paths"))
        .orderBy("label")
        .limit(labels)
        .select("label", F.explode("paths").alias("path"))
        .orderBy("label", "path")
        .toPandas()
    )
    images = run.spark.read.format("binaryFile").schema(SCHEMA)
    content = images.load([_escape_glob(path) for path in chosen["path"]]).select("path", "content")
    return chosen.merge(content.toPandas(), on="path")


def _check_listing(run: Run, listing: DataFrame, skipped: int) -> None:
    if listing.isEmpty():
        raise FruitsError(
            f"{run.data} holds no image ({skipped} skipped, whose names begin with _ or .): "
            "give a folder with .jpg, .jpeg or .png files below it"
        )
    way_out = "put every image into a folder named after its label"
    _refuse(listing.filter("label is null"), "have no label folder", way_out)
    # Hadoop looks for the checksums of a local file a:b in .a:b.crc, which it cannot parse.
    colons = listing.filter("path rlike '^file:.*:[^/]*$'")
    _refuse(colons, "have a colon in their name, which Hadoop cannot read", "rename them")
    if run.exists("index/_SUCCESS"):  # else a run was killed while it wrote the index
        # Features stay with the image that they were computed from, so an index may only grow.
        key = ["path", "length", "modification_time"]
        lost = run.read_table("index").join(listing, key, "left_anti")
        fault = f"have changed or disappeared since {run.uri} indexed them"
        _refuse(lost, fault, "give another run_dir")


def _refuse(images: DataFrame, fault: str, way_out: str) -> None:
    count = images.count()
    if count:
        raise FruitsError(f"{count} images {fault}, for example {images.first().path}: {way_out}")


def _count_skipped(run: Run) -> int:
    """Count the image files that Spark's file sources skip silently."""
    spark = run.spark
    hadoop_fs = spark._jvm.org.apache.hadoop.fs
    fs, path = file_system(spark, run.data)
    skipped, folders = 0, [(path, False)]
    one = spark.sparkContext._gateway.new_array(hadoop_fs.Path, 1)
    while folders:
        one[0], hidden = folders.pop()
        # Asked for a single Path, a connector returns an array of its own type, which py4j cannot
        # pass on.
        entries = hadoop_fs.FileUtil.stat2Paths(fs.listStatus(one))
        for entry in filter(None, _join(spark, entries).split("\0")):
            name = entry.rsplit("/", 1)[-1]
            skip = hidden or name.startswith(("_", "."))
            if name.lower().endswith((".jpg", ".jpeg", ".png")):
                skipped += skip
            elif fs.getFileStatus(path := hadoop_fs.Path(entry)).isDirectory():
                folders.append((path, skip))
    return skipped


def _join(spark: SparkSession, names) -> str:
    """Fetch a Java array as one string: a call to the JVM for each of many files takes minutes."""
    return spark._jvm.scala.Predef.genericWrapArray(names).mkString("\0")


def _escape_glob(path: str) -> str:
    return "".join(f"\\{c}" if c in "\\*?[]{}" else c for c in path)
