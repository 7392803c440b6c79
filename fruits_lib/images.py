"""Read a tree of images with Spark, as a batch or a stream; label and split from the path."""

from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from fruits_lib.errors import FruitsError
from fruits_lib.runs import Run, file_system
from fruits_lib.session import settings

SPLITS = ("Training", "Test", "Validation")
# Hadoop globs know no "ignore case".
IMAGE_GLOB = "*.{[jJ][pP][gG],[jJ][pP][eE][gG],[pP][nN][gG]}"
SCHEMA = "path string, modificationTime timestamp, length long, content binary"


@dataclass(frozen=True)
class Index:
    """What `build_index` found.

    Attributes
    ----------
    images, skipped : int
        Images indexed; image files that Spark skips, because their name or a folder above them
        begins with `_` or `.`.
    counts : pandas.DataFrame
        One row per label, one column per split.
    """

    images: int
    skipped: int
    counts: pd.DataFrame

    def __str__(self) -> str:
        return (
            f"{self.images:,} images of {len(self.counts)} labels, "
            f"{self.skipped} skipped (names that begin with _ or .)\n\n{self.counts.to_string()}"
        )


def read_images(spark: SparkSession, data: str, stream: bool = False, **options) -> DataFrame:
    """Return the JPEG and PNG images below a folder, at any depth, with label and split.

    Parameters
    ----------
    spark : SparkSession
    data : str
        Folder, as a path or any Hadoop URI.
    stream : bool
        True returns a streaming DataFrame.
    **options
        Further options of Spark's `binaryFile` source.

    Returns
    -------
    DataFrame
        path, modificationTime, length, content of Spark's `binaryFile` source; label, the name of
        the folder that holds the image (null when that is `data` itself or a split folder); split,
        the nearest `Training`, `Test` or `Validation` above it, from `data` down, or null.
    """
    root = file_system(spark, data)[1].toString()
    reader = spark.readStream if stream else spark.read
    images = (
        reader.format("binaryFile")
        .schema(SCHEMA)
        .options(recursiveFileLookup=True, pathGlobFilter=IMAGE_GLOB, **options)
        .load(_escape_glob(root))
    )
    # The path column is raw (not URL-encoded), as the root is.
    return _with_label_and_split(images, root)


def list_images(spark: SparkSession, data: str) -> DataFrame:
    """Return path, label, split, length (bytes) and modification_time of the images below a folder.

    Spark's file sources drop empty files without a word; here they are, with length 0.
    """
    fs, root = file_system(spark, data)
    images = read_images(spark, data)
    filled = images.select(
        "path", "label", "split", "length", F.col("modificationTime").alias("modification_time")
    )
    # Once, or Spark would ask a bucket for every image's length again at each look.
    filled = filled.localCheckpoint()
    files = images._jdf.inputFiles()  # empty ones too; stays in the JVM unless there are any
    if len(files) == filled.count():
        return filled
    seen = {row.path for row in filled.select("path").collect()}
    # Spark writes a URL, file:///a%20b, where the path column has Hadoop's file:/a b.
    urls = _join(spark, files).split("\0")
    listed = (unquote(url).replace("file:///", "file:/", 1) for url in urls)
    paths = [path for path in listed if path not in seen]
    new_path = spark._jvm.org.apache.hadoop.fs.Path
    times = [fs.getFileStatus(new_path(path)).getModificationTime() / 1000 for path in paths]
    rows = [
        (path, 0, datetime.fromtimestamp(time, UTC))
        for path, time in zip(paths, times, strict=True)
    ]
    empty = spark.createDataFrame(rows, "path string, length long, modification_time timestamp")
    return filled.unionByName(_with_label_and_split(empty, root.toString()))


def _with_label_and_split(images: DataFrame, root: str) -> DataFrame:
    names = F.split(F.substring("path", len(root) + 2, 1 << 30), "/")
    label = F.when(F.size(names) > 1, F.element_at(names, -2))
    above = F.filter(
        F.concat(F.array(F.lit(root.rsplit("/", 1)[-1])), F.slice(names, 1, F.size(names) - 1)),
        lambda name: name.isin(*SPLITS),
    )
    return images.withColumn("label", F.when(~label.isin(*SPLITS), label)).withColumn(
        "split", F.try_element_at(above, F.lit(-1))
    )


def build_index(run: Run, data: str) -> Index:
    """List the images below a folder and write the run's `index/`.

    `index/` is Parquet with path, label, split, length (bytes) and modification_time, one row per
    image. The images' content is not read.

    Raises
    ------
    FruitsError
        If the folder is missing, no folder, or holds no image; if an image has no label folder;
        if images that this run indexed before have changed or gone.
    """
    spark = run.spark
    root = _check_folder(spark, data)
    skipped = _count_skipped(spark, root)
    with file_partitions(spark):
        listing = list_images(spark, root).repartition(1).sortWithinPartitions("path").persist()
        try:
            _check_listing(listing, root, skipped)
            if run.exists("index/_SUCCESS"):  # or a run was killed while it wrote the index
                _check_unchanged(run, listing)
            listing.write.mode("overwrite").parquet(run.path("index"))
            counts = listing.groupBy("label", "split").count().toPandas()
        finally:
            listing.unpersist()
    images = int(counts["count"].sum())
    run.record("load", data=root, images=images, labels=counts["label"].nunique(), skipped=skipped)
    table = counts.fillna({"split": "(no split)"}).pivot_table(
        index="label", columns="split", values="count", aggfunc="sum", fill_value=0
    )
    return Index(images, skipped, table.rename_axis(columns=None))


def file_partitions(spark: SparkSession):
    """Settings under which Spark packs small files into about eight tasks per core.

    Spark counts 4 MB for opening any file, which makes tasks of 30 photographs, and lists the
    files of a micro-batch in tasks of one file each.
    """
    tasks = 8 * spark.sparkContext.defaultParallelism
    return settings(
        spark,
        {
            "spark.sql.files.openCostInBytes": str(64 * 1024),
            "spark.sql.files.minPartitionNum": str(tasks),
            "spark.sql.sources.parallelPartitionDiscovery.parallelism": str(tasks),
        },
    )


def sample_images(run: Run, per_label: int, labels: int = 12) -> pd.DataFrame:
    """Return the first images of the first labels, by name: path, label, content (file bytes).

    Parameters
    ----------
    run : Run
    per_label, labels : int
        Images per label, and labels, at most.
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


def _check_folder(spark: SparkSession, data: str) -> str:
    fs, path = file_system(spark, data)
    if not fs.exists(path):
        raise FruitsError(
            f"{path.toString()} does not exist: give a folder or prefix that holds images"
        )
    if fs.getFileStatus(path).isFile():
        raise FruitsError(f"{path.toString()} is a file: give the folder above the label folders")
    return path.toString().rstrip("/")


def _check_listing(listing: DataFrame, root: str, skipped: int) -> None:
    images = listing.count()
    if not images:
        raise FruitsError(
            f"{root} holds no image ({skipped} skipped, whose names begin with _ or .): "
            "give a folder with .jpg, .jpeg or .png files below it"
        )
    way_out = "put every image into a folder named after its label"
    _refuse(listing.filter("label is null"), "have no label folder", way_out)
    # Hadoop looks for the checksums of a local file a:b in .a:b.crc, which is no path to it.
    colons = listing.filter("path rlike '^file:.*:[^/]*$'")
    _refuse(colons, "have a colon in their name, which Hadoop cannot read", "rename them")


def _refuse(images: DataFrame, fault: str, way_out: str) -> None:
    count = images.count()
    if count:
        raise FruitsError(f"{count} images {fault}, for example {images.first().path}: {way_out}")


def _check_unchanged(run: Run, listing: DataFrame) -> None:
    """Features stay with the image that they were computed from, so an index may only grow."""
    gone = run.read_table("index").join(
        listing, ["path", "length", "modification_time"], "left_anti"
    )
    lost = gone.count()
    if lost:
        raise FruitsError(
            f"{lost} images have changed or gone since {run.uri} indexed them, for example "
            f"{gone.first().path}: give another run_dir"
        )


def _count_skipped(spark: SparkSession, root: str) -> int:
    """Count image files that Spark's file sources skip without a word."""
    fs, path = file_system(spark, root)
    skipped, folders = 0, [(path, False)]
    one = spark.sparkContext._gateway.new_array(spark._jvm.org.apache.hadoop.fs.Path, 1)
    while folders:
        one[0], hidden = folders.pop()
        # Of one folder, a connector answers with an array of its own kind, which py4j cannot pass.
        entries = spark._jvm.org.apache.hadoop.fs.FileUtil.stat2Paths(fs.listStatus(one))
        for entry in filter(None, _join(spark, entries).split("\0")):
            name = entry.rsplit("/", 1)[-1]
            skip = hidden or name.startswith(("_", "."))
            if name.lower().endswith((".jpg", ".jpeg", ".png")):
                skipped += skip
                continue
            path = spark._jvm.org.apache.hadoop.fs.Path(entry)
            if fs.getFileStatus(path).isDirectory():
                folders.append((path, skip))
    return skipped


def _join(spark: SparkSession, names) -> str:
    """Fetch a Java array as one string: a call to the JVM for each of many files takes minutes."""
    return spark._jvm.scala.Predef.genericWrapArray(names).mkString("\0")


def _escape_glob(path: str) -> str:
    return "".join(f"\\{c}" if c in "\\*?[]{}" else c for c in path)
