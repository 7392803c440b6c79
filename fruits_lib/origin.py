"""05: checks of a run against its photographs, which are listed, read and computed again."""

import secrets
from dataclasses import replace
from functools import reduce

import numpy as np
from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from fruits_lib import batches, files, udf
from fruits_lib.backbones import Backbone, check_litert
from fruits_lib.checks import Check, at_most, none_of, reading
from fruits_lib.errors import FruitsError
from fruits_lib.runs import Run
from fruits_lib.udf import LARGEST_FILE, LARGEST_IMAGE

SAMPLE = 128  # photographs that are computed again; more, if labels are more: one of each
MOST_REJECTS = 1000  # that are decoded again
# Features of one photograph on two kinds of processor differ by 3e-5; those of another by 0.1.
FEATURE_TOLERANCE = 1e-3
_INDEX = "run 01_load again, then 02_featurize and the others"
_PLACE = "run the notebook that writes it, 01_load, 02_featurize or 04_pca, and those after it"
_COLUMNS = "path string, label string, split string, length long"


def check_files(run: Run, counts: dict[str, Row] | None = None, again: str = "") -> list[Check]:
    """Check the index against a new listing of the data folder, and all tables against the index.

    Parameters
    ----------
    run : Run
    counts : dict, optional
        What `verify.read_results` counted in each table, to compare with the manifest's figures.
    again : str
        What to do about a failure; by default, which notebooks to run again.

    Raises
    ------
    FruitsError
        If the data folder cannot be listed.
    """
    try:
        exclude = run.require("load").get("exclude", "")
        listing = files.list_files(run.spark, run.data, exclude, run.uri)
    except FruitsError as error:
        raise FruitsError(
            f"{error}; if the photographs have moved, run 01_load with their new folder: features "
            "stay"
        ) from None

    index = files.times(run.read_table("index"))
    found = files.compare(run.spark, run.data, index, lambda: batches.hashes(run), listing)
    recorded = {tuple(row) for row in run.read_table("set_aside").collect()}
    differing = sorted(path for path, *_ in recorded ^ set(listing.set_aside))
    drop = again or "run 01_load again with overwrite=True, then the others"
    index_again = again or _INDEX
    checks = [
        none_of("photographs added since 01_load", found.new, index_again),
        none_of("photographs gone since 01_load", found.gone, drop),
        none_of("photographs changed since 01_load", found.changed, drop),
        none_of("files set aside otherwise than recorded", differing, index_again),
        none_of("labels or splits unlike the path's", _wrong_labels(run, listing), again or _PLACE),
    ]
    if counts:
        wrong = _wrong_counts(run, listing, index, recorded, counts)
        checks.append(none_of("counts unlike the manifest's", wrong, index_again))
    return checks


def _wrong_labels(run: Run, listing: files.Listing) -> list[str]:
    """Return paths whose label or split is not that of the folders now, with their table."""
    right = [row[:3] for row in listing.images]
    schema = "path string, right_label string, right_split string"
    expected = run.spark.createDataFrame(right, schema)
    tables = [
        run.read_parquet(name).select("path", "label", "split", F.lit(name).alias("name"))
        for name in ("index", "features", "rejects", "pca")
    ]
    differs = "not (label <=> right_label and split <=> right_split)"
    rows = reduce(DataFrame.union, tables).join(expected, "path").filter(differs).collect()
    return sorted(f"{row.path} in {row.name}/" for row in rows)


def _wrong_counts(
    run: Run, listing: files.Listing, index: list, set_aside: set, counts: dict[str, Row]
) -> list[str]:
    """Return figures of the manifest that are not those of the tables."""
    manifest, labels = run.manifest(), [label for _, label, *_ in listing.images]
    found = {
        "load": {
            "images": len(index),
            "labels": len({*labels} - {None}),
            "normalised": files.normalised(row[:2] for row in listing.images),
            "unlabelled": labels.count(None),
            "files": len(index) + len(set_aside),
            "set_aside": files.by_reason(set_aside),
        },
        "featurize": {
            "features": counts["features"].path,
            "truncated": counts["features"].cut_off,
            "rejects": counts["rejects"].path,
        },
        "pick_k": {"images": counts["features"].fitted},
        "pca": {"images": counts["pca"].path},
    }
    return [
        f"{stage}.{name}: {manifest[stage].get(name)} recorded, {value} found"
        for stage, values in found.items()
        for name, value in values.items()
        if manifest[stage].get(name) != value
    ]


def check_batches(
    run: Run, digests: dict[int, str], then: str = "run from 02_featurize on"
) -> Check:
    """Check that every row of `features/` is as 02 wrote it, by the digest of its batch.

    Parameters
    ----------
    run : Run
    digests : dict
        What `batches.digests` finds in `features/`.
    then : str
        As in `check_sample`.

    Raises
    ------
    FruitsError
        If 02 recorded none.
    """
    recorded = run.require("featurize").get("digests")
    if recorded is None:
        raise FruitsError(
            f"{run.uri} was written by an older version, without digests of its features: "
            "run 02_featurize again with overwrite=True, then the others; the features stay"
        )
    found = {str(batch_id): digest for batch_id, digest in digests.items()}
    differing = [
        f"batch_id={batch_id}"
        for batch_id in sorted({*recorded, *found}, key=lambda name: (len(name), name))
        if found.get(batch_id, batches.NO_ROWS) != recorded.get(batch_id)
    ]
    remedy = f"remove {', '.join(differing)} of features/ and of rejects/, then {then}"
    return none_of("batches unlike what 02_featurize wrote", differing, remedy)


def check_backbone(run: Run, described: dict, network: Backbone) -> Check:
    """Check that `backbone.json`, the manifest and the LiteRT file say the same of the network.

    Parameters
    ----------
    run : Run
    described : dict
        The content of `backbone.json`.
    network : Backbone
        What it describes.
    """
    recorded = run.require("featurize")
    names = *vars(network.spec), "width", *udf.Decoding().entry
    wrong = [
        f"{name} is {described[name]!r} in backbone.json, {recorded.get(name)!r} in the manifest"
        for name in names
        if name in described and described[name] != recorded.get(name)
    ]
    with reading(run, "backbone", "02_featurize"):
        if (width := check_litert(network.content, network.spec)) != network.width:
            wrong.append(f"the network gives {width} features, not {network.width}")
    return none_of("backbone unlike backbone.json or manifest", wrong, "give another run_dir")


def new_seed() -> int:
    """Return a seed for `check_sample`: another sample of photographs in each run."""
    return secrets.randbits(31)


def check_sample(
    run: Run, content: bytes, size: int, seed: int, then: str = "run from 02_featurize on"
) -> list[Check]:
    """Compute photographs of a random sample again, and decode the rejects again.

    Parameters
    ----------
    run : Run
    content : bytes
        The run's LiteRT file.
    size : int
        Side of its input in pixels.
    seed : int
        Of the sample.
    then : str
        What to do about a failure, when features/ and rejects/ are removed.
    """
    stored = {row.path: row for row in _sample(run, seed).collect()}
    order = F.xxhash64(F.lit(seed), "path")
    rejects = run.read_table("rejects").orderBy(order).limit(MOST_REJECTS)
    reasons = {row.path: row.reason for row in rejects.collect()}
    index = run.read_table("index").select("path", "label", "split", "length")
    decoding = udf.Decoding.of(run.require("featurize"))
    # A photograph that has features keeps them when a limit is lowered.
    unlimited = replace(
        decoding, max_pixels=LARGEST_IMAGE, max_bytes=LARGEST_FILE, truncated="accept"
    )
    weights, parts = run.spark.sparkContext.broadcast(content), []
    for paths, rules in ((stored, unlimited), (reasons, decoding)):
        rows = index.filter(F.col("path").isin([*paths])).collect()
        photographs = files.photographs(run.spark, run.data, rows, _COLUMNS, rules.max_bytes)
        run_backbone = udf.featurizer(weights, size, rules)
        parts.append(photographs.mapInArrow(run_backbone, udf.schema()))
    computed = reduce(DataFrame.union, parts).collect()
    other_reasons = [
        f"{row.path} ({reasons[row.path]!r}, now {row.reason!r})"
        for row in computed
        if row.path in reasons and row.reason != reasons[row.path]
    ]
    sampled = [row for row in computed if row.path in stored]
    other_bytes = [
        row.path for row in sampled if row.content_sha256 != stored[row.path].content_sha256
    ]
    distances = [_distance(row.features, stored[row.path].features) for row in sampled]
    worst = max(zip(distances, (row.path for row in sampled), strict=True), default=(0.0, ""))
    again = f"remove features/ and rejects/, then {then}"
    remedy = f"{worst[1]} has the features of another photograph: {again}"
    name = f"difference of {len(sampled):,} photographs computed again"
    return [
        none_of("rejects decoded again with another reason", other_reasons, again),
        none_of("sampled photographs with other content", other_bytes, again),
        at_most(FEATURE_TOLERANCE, name, worst[0], remedy),
    ]


def _sample(run: Run, seed: int) -> DataFrame:
    """Return rows of features/: the first of each label by a seeded hash, then the first of all.

    Their number is the same for every seed.
    """
    features = run.read_table("features").withColumn("order", F.xxhash64(F.lit(seed), "path"))
    of_labels = features.groupBy("label").agg(F.min_by("path", "order").alias("path"))
    paths = [row.path for row in of_labels.collect()]
    others = features.filter(~F.col("path").isin(paths)).select("path", "order").orderBy("order")
    paths += [row.path for row in others.limit(max(SAMPLE - len(paths), 0)).collect()]
    rows = features.filter(F.col("path").isin(paths))
    return rows.select("path", "features", "content_sha256")


def _distance(found: list[float] | None, stored: list[float] | None) -> float:
    """Return the Euclidean distance of two vectors as a share of the first one's length."""
    if found is None or stored is None or len(found) != len(stored):
        return float("inf")
    a, b = np.asarray(found), np.asarray(stored)
    with np.errstate(all="ignore"):
        return float(np.nan_to_num(np.linalg.norm(a - b) / (np.linalg.norm(a) or 1), nan=np.inf))
