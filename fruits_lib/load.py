"""01: list the photographs below a folder or bucket, account for every file, write the index."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from fruits_lib import batches, files, udf
from fruits_lib.errors import FruitsError, spark_errors
from fruits_lib.files import Listing
from fruits_lib.runs import Run
from fruits_lib.session import settings
from fruits_lib.stages import TABLES
from fruits_lib.text import printable

# Spark's own choice, INT96, is nanoseconds in pandas and Arrow: 2286 becomes 1702. Times before
# 1900 are those of today's calendar, as everywhere but in Spark 2.
TIMES = {
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
}


@dataclass(frozen=True)
class Index:
    """What `write_index` wrote. As text: the account of every file below the data folder."""

    files: int
    images: int
    labels: int
    set_aside: list[dict]  # reason, extension, files
    unlabelled: int  # images whose folder gives no label
    normalised: int  # labels that were written in another Unicode form than NFC
    dropped: int  # images whose features went, because the file is gone or has changed

    def __str__(self) -> str:
        labels = f" of {self.labels:,} label{'s' * (self.labels != 1)}" if self.labels else ""
        lines = [
            f"{self.files:,} files = {self.images:,} images{labels} + "
            f"{self.files - self.images:,} set aside"
        ]
        for reason in dict.fromkeys(entry["reason"] for entry in self.set_aside):
            kinds = [entry for entry in self.set_aside if entry["reason"] == reason]
            counts = ", ".join(f"{e['files']:,} {e['extension'] or 'no extension'}" for e in kinds)
            lines.append(printable(f"set aside, {reason}: {counts}"))
        if self.unlabelled:
            lines.append(
                f"{self.unlabelled:,} images have no label: no folder is named after one. "
                "Features and components need none"
            )
        if self.normalised:
            lines.append(f"{self.normalised:,} labels were put into Unicode's form NFC")
        if self.dropped:
            lines.append(f"{self.dropped:,} images are gone or have changed: their features went")
        return "\n".join(lines)


def list_files(run: Run, exclude: str = "") -> Listing:
    """Return every file below the data folder; see `files.list_files`.

    An empty `exclude` is the one that the run was loaded with before.
    """
    recorded = run.manifest().get("load", {}).get("exclude", "")
    return files.list_files(run.spark, run.data, exclude or recorded, run.uri)


def to_table(run: Run, listing: Listing) -> DataFrame:
    """Return the images of a listing as a DataFrame: path, label, split, length (bytes),
    modification_time."""
    return run.spark.createDataFrame(listing.images, TABLES["index"])


def write_index(run: Run, listing: Listing, overwrite: bool = False) -> Index:
    """Write the images as `index/` and the other files as `set_aside/`.

    A run that has features keeps those of photographs that are still there and unchanged, wherever
    the data folder is now.

    Raises
    ------
    FruitsError
        If there is no image, or photographs with features are gone or have changed and `overwrite`
        is not set; with it, their rows are dropped.
    """
    if not listing.images:
        raise FruitsError(
            f"data={run.data} holds no image among {listing.files:,} files: give a folder that "
            "holds photographs"
        )
    hashes = batches.hashes(run)
    stale = _stale(run, listing, hashes)
    lost = sorted(stale & hashes.keys())
    if lost and not overwrite:
        raise FruitsError(
            f"{len(lost):,} photographs are gone or have changed since {run.uri} got their "
            f"features, for example {lost[0]}: set overwrite=True (--overwrite) to drop their "
            "rows, or write to another folder"
        )
    labels = {label for _, label, *_ in listing.images if label is not None}
    with run.step("load") as entry:
        if stale:
            batches.keep(run, (row[:3] for row in listing.images if row[0] not in stale))
        aside = run.spark.createDataFrame(listing.set_aside, TABLES["set_aside"])
        run.write_table("set_aside", aside.coalesce(1))
        with settings(run.spark, TIMES):
            run.write_table("index", to_table(run, listing).coalesce(1))
        index = Index(
            files=listing.files,
            images=len(listing.images),
            labels=len(labels),
            set_aside=files.by_reason(listing.set_aside),
            unlabelled=sum(label is None for _, label, *_ in listing.images),
            normalised=files.normalised((path, label) for path, label, *_ in listing.images),
            dropped=len(lost),
        )
        entry.update(data=run.data, exclude=listing.exclude, **vars(index))
    return index


def _stale(run: Run, listing: Listing, hashes: dict[str, str]) -> set[str]:
    """Return the photographs of the run's index that are gone or have changed."""
    if not run.exists("index/_SUCCESS"):  # a new run, or one killed while it wrote its index
        return set()
    with spark_errors("the look at the old index", "remove index/ and run it again"):
        index = files.times(run.read_parquet("index"))
    found = files.compare(run.spark, run.data, index, lambda: hashes, listing)
    return {*found.gone, *found.changed}


def thumbnails(run: Run, paths: Iterable[str], size: int = 96) -> pd.DataFrame:
    """Return small pictures of photographs of the index, made by the workers.

    Returns
    -------
    pandas.DataFrame
        In the order of `paths`, each once: path, label, pixels (uint8 array (size, size, 3), or
        None where the pipeline's decoder rejects the photograph) and reason.
    """
    paths = list(dict.fromkeys(paths))
    index = run.read_table("index").filter(F.col("path").isin(paths))
    rows = index.select("path", "label", "length").collect()
    featurized = run.manifest().get("featurize")
    decoding = udf.Decoding.of(featurized) if featurized else udf.Decoding()
    photographs = files.photographs(
        run.spark,
        run.data,
        rows,
        "path string, label string, length long",
        decoding.max_bytes,
    )
    made = photographs.mapInArrow(udf.thumbnailer(size, decoding), udf.THUMBNAILS).collect()
    labels = {row.path: row.label for row in rows}
    pictures = {row.path: row for row in made}
    shape = size, size, 3
    return pd.DataFrame(
        {
            "path": path,
            "label": labels[path],
            "pixels": np.frombuffer(pictures[path].pixels, np.uint8).reshape(shape)
            if pictures[path].pixels
            else None,
            "reason": pictures[path].reason,
        }
        for path in paths
        if path in pictures
    )


def sample_paths(run: Run, per_label: int = 6, labels: int = 36) -> list[str]:
    """Return the paths of the first photographs of the first labels, by name."""
    chosen = (
        run.read_table("index")
        .groupBy("label")
        .agg(F.slice(F.sort_array(F.collect_list("path")), 1, per_label).alias("paths"))
        .orderBy("label")
        .limit(labels)
        .collect()
    )
    return [path for row in chosen for path in row.paths]
