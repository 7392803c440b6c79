"""apply: photographs that a run has never seen, scored and labelled by its model."""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from fruits_lib import applied
from fruits_lib.checks import Verification
from fruits_lib.errors import FruitsError
from fruits_lib.origin import new_seed
from fruits_lib.runs import Run, open_run, qualify, scratch_folder
from fruits_lib.sample import stage_sample
from fruits_lib.storage import check_apart
from fruits_lib.text import printable

_MODEL = ("model_sha256", "classifier_sha256")
OWN_MODEL = ("pick_k", "pca", "verify", "classify")  # stages of a run that fits one


@dataclass(frozen=True)
class Known:
    """A run whose model is applied. It is only read."""

    run: Run
    weights_sha256: str  # of the network's file
    model_sha256: str  # of model.npz
    classifier_sha256: str | None  # of classifier.npz, if photographs can be labelled

    def __str__(self) -> str:
        return f"model:       {printable(self.run.path(self.model).removeprefix('file:'))}"

    @property
    def model(self) -> str:
        """The folder of the pipeline model: with the classifier, if there is one."""
        return "classifier" if self.classifier_sha256 else "model"


@dataclass(frozen=True)
class Applied:
    """What `write` wrote."""

    known: Known
    images: int  # rows of pca/
    k: int  # scores of an image
    labelled: int  # photographs in a folder named like a label that the classifier knows
    right: int  # of these, given that label
    unknown: int  # photographs in a folder of another name
    checks: Verification

    @property
    def accuracy(self) -> float | None:
        return self.right / self.labelled if self.labelled else None

    def __str__(self) -> str:
        lines = [f"{self.images:,} images: {self.k:,} scores each"]
        if self.labelled:
            lines.append(
                f"accuracy {self.accuracy:.2%}: {self.right:,} of {self.labelled:,} images got the "
                "label of their folder"
            )
        if self.unknown:
            lines.append(f"{self.unknown:,} images lie in folders that are no label of the run")
        return "\n".join([*lines, str(self.checks)])


def check_apply(run_dir: str, data: str, to: str) -> None:
    """Raise FruitsError if only some of the three places are given."""
    missing = [name for name, uri in (("data", data), ("to", to)) if not uri]
    if run_dir and missing:
        raise FruitsError(
            f"{missing[0]} is empty where run_dir={run_dir}: give a folder or URI, or leave all "
            "three empty for the sample"
        )


def open_known(spark: SparkSession, run_dir: str = "") -> Known:
    """Return a run whose model is applied; an empty `run_dir` is the sample's.

    Raises
    ------
    FruitsError
        If the run has no model.
    """
    run = open_run(spark, run_dir)
    run.require("pca")
    return Known(run, run.require("featurize")["weights_sha256"], *_identity(run))


def _identity(run: Run) -> tuple[str, str | None]:
    """Return the sha256 of a run's model and of its classifier, if it has one."""
    names = ["model.npz", *["classifier.npz"] * ("classify" in run.manifest())]
    found = [hashlib.sha256(run.read_bytes(name)).hexdigest() for name in names]
    return found[0], found[1] if found[1:] else None


def open_results(
    known: Known,
    data: str,
    to: str = "",
    overwrite: bool = False,
) -> Run:
    """Return the run folder of the new photographs, leased to this process until `write` is done.

    Results of the same model go on: photographs that have features keep them, and new ones are the
    only ones computed. `overwrite` replaces those of another model.

    Parameters
    ----------
    known : Known
    data, to : str
        Photographs and results; empty ones are the embedded sample's Test and a temporary folder.
    overwrite : bool

    Raises
    ------
    FruitsError
        If the folder overlaps the run that is applied, is in use, or holds something else.
    """
    spark = known.run.spark
    uri = qualify(spark, to or f"{scratch_folder(spark)}/apply")
    check_apart(run_dir=known.run.uri, to=uri)
    manifest = open_run(spark, uri).manifest()  # not leased yet: that would make the folder
    check_results(manifest, uri)
    if to and not overwrite:
        _check_same_model(manifest, uri, known)
    return open_run(spark, uri, data or f"{stage_sample(spark)}/Test", "apply", overwrite)


def check_results(manifest: dict, to: str) -> None:
    """Raise FruitsError if a folder holds a run with a model of its own."""
    if any(stage in manifest for stage in OWN_MODEL):
        raise FruitsError(
            f"to={to} holds a run with a model of its own: give another folder for the results"
        )


def _check_same_model(manifest: dict, to: str, known: Known) -> None:
    """Raise FruitsError if finished results are those of another model or classifier."""
    done = manifest.get("apply")
    if not done or not all(check["passed"] for check in done["checks"]):
        return
    before = [(name, done[name]) for name in _MODEL if name in done]
    if any(getattr(known, name) != value for name, value in before):
        raise FruitsError(
            f"to={to} holds results of another model or classifier, finished {done['finished']}: "
            "give another folder, or overwrite=True (--overwrite) to replace its scores and labels "
            "(features that are there stay)"
        )


def write(known: Known, run: Run, scores: DataFrame, labels: DataFrame | None = None) -> Applied:
    """Write the scores of new photographs as `pca/`, and what they show as `labels/`; check both.

    Parameters
    ----------
    known : Known
    run : Run
        Of `open_results`, after `featurize.write`.
    scores : DataFrame
        path, label, split, pca (``array<float>`` of k scores).
    labels : DataFrame, optional
        path, label, split, predicted, probability; for a run with a classifier.

    Raises
    ------
    FruitsError
        If all photographs are rejects, or Spark fails. Checks that fail are recorded, not raised.
    """
    if not run.require("featurize")["features"]:
        raise FruitsError(f"no photograph of {run.data} could be decoded: look at rejects/")
    with run.step("apply") as entry:
        run.write_table("pca", scores)
        run.delete("labels")  # of a run that had a classifier when it was applied before
        if labels is not None:
            run.write_table("labels", labels)
        seed = new_seed()
        checks = applied.check(known.run, run, known.weights_sha256, seed)
        same = _identity(known.run) == tuple(getattr(known, name) for name in _MODEL)
        checks.append(applied.unchanged(known.run, same))
        result = Applied(
            known,
            images=run.read_parquet("pca").count(),
            k=known.run.require("pca")["k"],
            **_judge(known, run),
            checks=Verification(tuple(checks)),
        )
        entry.update(
            run=known.run.uri,
            weights_sha256=known.weights_sha256,
            **{name: getattr(known, name) for name in _MODEL if getattr(known, name)},
            images=result.images,
            k=result.k,
            labels=labels is not None,
            **({"labelled": result.labelled} if result.labelled else {}),
            **({"accuracy": result.accuracy} if result.labelled else {}),
            sample_seed=seed,
            checks=[asdict(check) for check in checks],
        )
    return result


def _judge(known: Known, run: Run) -> dict[str, int]:
    """Return how many photographs lie in folders named like labels, and how many got that one."""
    labels, classes = run.read_parquet("labels"), []
    if known.classifier_sha256:
        classes = known.run.read_npz("classifier.npz")["labels"].tolist()
    of_known = F.col("label").isin(classes)
    row = labels.agg(
        F.count_if(of_known).alias("labelled"),
        F.count_if(of_known & (F.col("label") == F.col("predicted"))).alias("right"),
        F.count_if(F.col("label").isNotNull() & ~of_known).alias("unknown"),
    )
    return row.first().asDict()


def least_certain(run: Run, images: int = 40) -> pd.DataFrame:
    """Return the photographs whose label is the least probable; without labels, the first by name.

    Returns
    -------
    pandas.DataFrame
        path, label, predicted, probability (the last two None without labels).
    """
    if run.exists("labels"):
        table = run.read_parquet("labels").drop("split").orderBy("probability", "path")
    else:
        nothing = [F.lit(None).alias(name) for name in ("predicted", "probability")]
        table = run.read_parquet("pca").select("path", "label", *nothing).orderBy("path")
    return table.limit(images).toPandas()


def on_plane(known: Known, run: Run, images: int = 3000) -> tuple[np.ndarray, list, list[str]]:
    """Return the first two scores of photographs of the run, then of new ones.

    Returns
    -------
    points : numpy.ndarray, shape (n, 2) or (n, 1)
    labels : list of str or None
        Of those of the run.
    paths : list of str
        Of the new photographs.
    """
    first = F.slice("pca", 1, 2).alias("scores")
    old, new = (
        table.select("path", "label", first)
        .orderBy(F.hash("path"), "path")
        .limit(images)
        .toPandas()
        for table in (known.run.read_table("pca"), run.read_parquet("pca"))
    )
    points = np.stack([*old["scores"], *new["scores"]])
    return points, list(old["label"]), list(new["path"])
