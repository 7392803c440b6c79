"""03, 04: the steps that write the spectrum, the model and the scores of a run."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from fruits_lib import pca
from fruits_lib.errors import FruitsError
from fruits_lib.runs import Run


@dataclass(frozen=True)
class Reduction:
    """What `write_scores` wrote."""

    images: int  # rows of pca/
    width: int  # features of an image
    k: int  # components
    explained: float  # share of the variance

    def __str__(self) -> str:
        return (
            f"{self.images:,} images: {self.width:,} features -> {self.k:,} components, "
            f"{self.explained:.2%} of the variance"
        )


def check_choice(variance: float = 0.9, k: int = 0) -> None:
    """Raise FruitsError if a parameter of 03_pick_k is out of its bounds."""
    if not 0 < variance <= 1:
        raise FruitsError(f"variance={variance} is outside 0 to 1: give a share such as 0.9")
    if k < 0:
        raise FruitsError(f"k={k} is below 0: give a number of components, or 0 to go by variance")


def write_spectrum(
    run: Run,
    spectrum: pca.Spectrum,
    components: pca.Components,
    raw: pca.Choice,
    standardized: pca.Choice,
) -> None:
    """Write `spectrum/`: `spectrum.npz` and, for 04_pca, `components.npz`.

    The components are those of the choice that the model will have, raw or standardized.
    """
    choice = standardized if components.standardize else raw
    run.write_npz("spectrum/spectrum.npz", {**vars(spectrum), **vars(choice)})
    run.write_npz("spectrum/components.npz", vars(components))
    run.record(
        "pick_k",
        **({"k": choice.k} if choice.variance is None else {"variance": choice.variance}),
        standardize=choice.standardize,
        images=spectrum.n,
        raw={"k": raw.k, "explained_variance": raw.explained},
        standardized={"k": standardized.k, "explained_variance": standardized.explained},
    )


def read_components(run: Run) -> pca.Components:
    """Return the components that 03_pick_k chose."""
    return pca.from_npz(pca.Components, run.read_npz("spectrum/components.npz"))


def write_scores(run: Run, scores: DataFrame, components: pca.Components) -> Reduction:
    """Write every image's scores as `pca/`, and the model for NumPy as `model.npz`.

    With the arrays of `model.npz`, ``scores = ((x - mean) * scale) @ components.T``. The columns
    of `scores` are path, label, split and pca (``array<float>`` of k scores).
    """
    derived = {name: getattr(components, name) for name in ("scale", "explained_variance_ratio")}
    run.write_npz("model.npz", {**vars(components), **derived})
    scores.write.mode("overwrite").parquet(run.path("pca"))
    reduction = Reduction(
        images=run.read_table("pca").count(),
        width=len(components.mean),
        k=components.k,
        explained=float(components.explained_variance_ratio.sum()),
    )
    run.record(
        "pca",
        images=reduction.images,
        k=reduction.k,
        standardize=components.standardize,
        explained_variance=reduction.explained,
    )
    return reduction


def first_scores(run: Run, images: int = 5000) -> tuple[np.ndarray, pd.Series]:
    """Return the first two scores, shape (n, 2), or (n, 1) for k = 1, and labels of n images.

    n is at most `images`. A hash of the path selects them: a figure of a large run shows every part
    of it, and is the same each time.
    """
    two = F.slice("pca", 1, 2).alias("scores")
    scores = run.read_table("pca").select("path", "label", two)
    table = scores.orderBy(F.hash("path"), "path").limit(images).toPandas()
    return np.stack(table["scores"]), table["label"]
