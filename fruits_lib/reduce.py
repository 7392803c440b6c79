"""03, 04: the steps that write the spectrum, the model and the scores of a run."""

from dataclasses import dataclass
from functools import reduce

import pandas as pd
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from fruits_lib import pca, scores_csv
from fruits_lib.errors import FruitsError
from fruits_lib.files import SPLITS
from fruits_lib.models import save_model
from fruits_lib.runs import Run


@dataclass(frozen=True)
class Reduction:
    """What `write_scores` wrote."""

    images: int  # rows of pca/
    width: int  # features of an image
    k: int  # components
    explained: float  # share of the variance
    fit_split: str = ""  # of this split alone, if the model is fitted on one

    def __str__(self) -> str:
        of_split = f" of {self.fit_split}" if self.fit_split else ""
        return (
            f"{self.images:,} images: {self.width:,} features -> {self.k:,} components, "
            f"{self.explained:.2%} of the variance{of_split}"
        )


def check_choice(variance: float = 0.9, k: int = 0, fit_split: str = "") -> None:
    """Raise FruitsError if a parameter of 03_pick_k is out of its bounds."""
    if not 0 < variance <= 1:
        raise FruitsError(f"variance={variance} is outside 0 to 1: give a share such as 0.9")
    if k < 0:
        raise FruitsError(f"k={k} is below 0: give a number of components, or 0 to go by variance")
    if fit_split and fit_split.lower() not in SPLITS:
        known = ", ".join(dict.fromkeys(SPLITS.values()))
        raise FruitsError(
            f"fit_split={fit_split!r} is not a split: give one of {known}, or nothing for all"
        )


def fitted_split(run: Run, fit_split: str, k: int = 0) -> str:
    """Return a split as the tables spell it: `train` is Training; empty stays empty.

    Raises
    ------
    FruitsError
        If fewer photographs of the split have features than a fit, or k components, needs.
    """
    if not fit_split:
        return ""
    check_choice(fit_split=fit_split)
    split, least = SPLITS[fit_split.lower()], max(k + 1, 2)
    images = _images_by_split(run)
    if images.get(split, 0) < least:
        found = ", ".join(f"{name or 'no split'} ({n:,})" for name, n in images.items())
        raise FruitsError(
            f"fit_split={fit_split} has {images.get(split, 0):,} photographs with features, at "
            f"least {least:,} are needed: there are {found}"
        )
    return split


def _images_by_split(run: Run) -> dict[str | None, int]:
    """Return how many photographs have features, by split, the largest first."""
    counts = run.read_table("features").groupBy("split").count()
    return dict(map(tuple, counts.orderBy(F.desc("count"), "split").collect()))


def write_spectrum(
    run: Run,
    spectrum: pca.Spectrum,
    components: pca.Components,
    raw: pca.Choice,
    standardized: pca.Choice,
) -> None:
    """Write `spectrum/`: `spectrum.npz` and, for 04_pca, `components.npz`.

    The components are those of the choice that the model will have, raw or standardized. Raises
    FruitsError if the spectrum is not that of the features that 02_featurize recorded, or of those
    of its split.
    """
    choice = standardized if components.standardize else raw
    recorded, found = run.require("featurize")["features"], spectrum.n
    if spectrum.fit_split:
        images = _images_by_split(run)
        found, fitted = sum(images.values()), images.get(spectrum.fit_split, 0)
        if spectrum.n != fitted:
            raise FruitsError(
                f"the spectrum is of {spectrum.n:,} images where {spectrum.fit_split} has "
                f"{fitted:,}: compute the moments of that split"
            )
    if found != recorded:
        raise FruitsError(
            f"{run.path('features')} holds {found:,} rows where 02_featurize recorded "
            f"{recorded:,}: run 02_featurize again, it computes only what is missing"
        )
    with run.step("pick_k") as entry:
        run.write_npz("spectrum/spectrum.npz", {**vars(spectrum), **vars(choice)})
        run.write_npz("spectrum/components.npz", vars(components))
        entry.update(
            **({"k": choice.k} if choice.variance is None else {"variance": choice.variance}),
            standardize=choice.standardize,
            fit_split=spectrum.fit_split,
            images=spectrum.n,
            **({"warning": spectrum.warning} if spectrum.warning else {}),
            raw={"k": raw.k, "explained_variance": raw.explained},
            standardized={"k": standardized.k, "explained_variance": standardized.explained},
        )


def read_components(run: Run) -> pca.Components:
    """Return the components that 03_pick_k chose."""
    return pca.from_npz(pca.Components, run.read_npz("spectrum/components.npz"))


def write_scores(
    run: Run,
    scores: DataFrame,
    model: PipelineModel,
    components: pca.Components,
    csv: bool = False,
) -> Reduction:
    """Write every image's scores as `pca/`, and the model as `model/` and for NumPy `model.npz`.

    With the arrays of `model.npz`, ``scores = ((x - mean) * scale) @ components.T``. The columns
    of `scores` are path, label, split and pca (``array<float>`` of k scores). With `csv`, the same
    rows are written as text too, `pca_csv/`; without, one of an earlier model goes.
    """
    derived = {name: getattr(components, name) for name in ("scale", "explained_variance_ratio")}
    with run.step("pca") as entry:
        save_model(run, model)
        run.write_npz("model.npz", {**vars(components), **derived})
        run.write_table("pca", scores)
        run.delete(scores_csv.FOLDER)
        if csv:
            scores_csv.write(run, components.k)
        reduction = Reduction(
            images=run.read_parquet("pca").count(),
            width=len(components.mean),
            k=components.k,
            explained=float(components.explained_variance_ratio.sum()),
            fit_split=run.require("pick_k").get("fit_split", ""),
        )
        entry.update(
            images=reduction.images,
            k=reduction.k,
            standardize=components.standardize,
            explained_variance=reduction.explained,
            csv=csv,
        )
    return reduction


def first_scores(run: Run, images: int = 5000) -> pd.DataFrame:
    """Return path, label and scores (array of the first two) of at most `images` images.

    A hash of the path selects them: a figure of a large run shows every part of it, and is the
    same each time.
    """
    scores = run.read_table("pca").select("path", "label", F.slice("pca", 1, 2).alias("scores"))
    return scores.orderBy(F.hash("path"), "path").limit(images).toPandas()


def extremes(run: Run, components: int = 4, images: int = 4) -> pd.DataFrame:
    """Return the images with the lowest and the highest scores of the first components.

    Returns
    -------
    pandas.DataFrame
        component (from 1), end ("low" or "high"), path, label, score; lowest first, highest first.
    """
    shown, parts = min(components, run.require("pca")["k"]), []
    first = F.slice("pca", 1, shown).alias("pca")
    table = run.read_table("pca").select("path", "label", first).cache()  # read eight times
    for number in range(1, shown + 1):
        scores = table.select("path", "label", F.element_at("pca", number).alias("score"))
        for end, score in (("low", F.col("score")), ("high", F.col("score").desc())):
            found = scores.orderBy(score, "path").limit(images)
            names = F.lit(number).alias("component"), F.lit(end).alias("end")
            parts.append(found.select(*names, "*"))
    found = reduce(DataFrame.union, parts).toPandas()
    table.unpersist()
    return found
