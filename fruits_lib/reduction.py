"""Choose k from the features' spectrum, then fit, save and apply the principal-component model."""

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pyspark.sql import functions as F

from fruits_lib import pca
from fruits_lib.errors import FruitsError
from fruits_lib.runs import Run


@dataclass(frozen=True, eq=False)
class PickedK:
    """What `pick_k` found.

    Attributes
    ----------
    choice : fruits_lib.pca.Choice
        What the model will be fitted with.
    other : fruits_lib.pca.Choice
        The same question answered for the other scaling.
    spectrum : fruits_lib.pca.Spectrum
    """

    choice: pca.Choice
    other: pca.Choice
    spectrum: pca.Spectrum

    @property
    def raw(self) -> pca.Choice:
        return self.other if self.choice.standardize else self.choice

    @property
    def standardized(self) -> pca.Choice:
        return self.choice if self.choice.standardize else self.other

    def __str__(self) -> str:
        lines = [
            f"{name:<13} k = {choice.k:>5,}   explained variance = {choice.explained:.2%}"
            f"{'   <- chosen' if choice is self.choice else ''}"
            for name, choice in (("raw", self.raw), ("standardised", self.standardized))
        ]
        return "\n".join(
            [f"{self.spectrum.n:,} images x {len(self.spectrum.mean):,} features", *lines]
        )

    def table(self, shares: tuple[float, ...] = (0.5, 0.8, 0.85, 0.9, 0.95, 0.99)) -> pd.DataFrame:
        """Return the k that each share of the variance takes, raw and standardised."""
        spectrum = self.spectrum
        columns = {"raw": spectrum.raw, "standardised": spectrum.standardized}
        return pd.DataFrame(
            {
                name: [pca.choose_k(values, share, spectrum.n) for share in shares]
                for name, values in columns.items()
            },
            index=pd.Index([f"{share:.0%}" for share in shares], name="variance"),
        )


@dataclass(frozen=True, eq=False)
class Reduction:
    """What `fit_model` did: images, width of the features, and the components."""

    images: int
    width: int
    components: pca.Components

    def __str__(self) -> str:
        return (
            f"{self.images:,} images: {self.width:,} features -> {self.components.k:,} components, "
            f"{self.components.explained_variance_ratio.sum():.2%} of the variance"
        )


def check_choice(variance: float = 0.9, k: int = 0) -> None:
    """Raise FruitsError, in one line, if a parameter of `pick_k` is out of its bounds."""
    if not 0 < variance <= 1:
        raise FruitsError(f"variance={variance} is outside 0 to 1: give a share such as 0.9")
    if k < 0:
        raise FruitsError(f"k={k} is below 0: give a number of components, or 0 to go by variance")


def pick_k(run: Run, variance: float = 0.9, k: int = 0, standardize: bool = False) -> PickedK:
    """Choose the number of components, for raw and for standardised features; write `spectrum/`.

    Parameters
    ----------
    run : Run
    variance : float
        Share of the variance to explain, above 0 and up to 1; k is the smallest that does.
    k : int
        A fixed number of components instead; 0 goes by `variance`.
    standardize : bool
        Whether the model divides every feature by its standard deviation.

    Raises
    ------
    FruitsError
        If a value is out of bounds, or more is asked for than the data can give.
    """
    check_choice(variance, k)
    started = time.monotonic()
    moments = pca.compute_moments(run.read_table("features"))
    spectrum = pca.spectrum(moments)
    asked = {"k": k} if k else {"variance": variance}
    choice, other = (
        pca.choose(spectrum, scaling, **asked) for scaling in (standardize, not standardize)
    )
    components = pca.principal_components(moments, choice.k, standardize)
    run.write_bytes("spectrum/spectrum.npz", pca.spectrum_to_npz(spectrum, choice))
    run.write_bytes("spectrum/components.npz", pca.components_to_npz(components))
    picked = PickedK(choice, other, spectrum)
    run.record(
        "pick_k",
        **asked,
        standardize=standardize,
        images=spectrum.n,
        raw={"k": picked.raw.k, "explained_variance": picked.raw.explained},
        standardized={
            "k": picked.standardized.k,
            "explained_variance": picked.standardized.explained,
        },
        seconds=round(time.monotonic() - started, 1),
    )
    return picked


def fit_model(run: Run) -> Reduction:
    """Write the chosen components as `model/` and `model.npz`, and every image's scores as `pca/`.

    `model/` is a stock Spark ML PipelineModel (StandardScalerModel, PCAModel) from a vector column
    `features_vector`; `pca/` is Parquet with path, label, split, pca (float array of k scores).
    """
    started = time.monotonic()
    components = pca.components_from_npz(run.read_bytes("spectrum/components.npz"))
    model = pca.pipeline_model(components)
    model.write().overwrite().save(run.path("model"))
    run.write_bytes("model.npz", pca.components_to_npz(components))
    scores = pca.project(run.read_table("features"), model)
    scores.write.mode("overwrite").parquet(run.path("pca"))
    images = run.read_table("pca").count()
    reduction = Reduction(images, len(components.mean), components)
    run.record(
        "pca",
        images=images,
        k=components.k,
        standardize=components.standardize,
        explained_variance=float(components.explained_variance_ratio.sum()),
        seconds=round(time.monotonic() - started, 1),
    )
    return reduction


def first_scores(run: Run, images: int = 5000) -> tuple[np.ndarray, pd.Series]:
    """Return the first two scores, shape (n, 2), and the labels, of up to so many images.

    For k = 1 the shape is (n, 1). The images are spread evenly over all paths by a hash of the
    path, so a figure of a large run shows every part of it, and the same one each time.
    """
    two = F.slice("pca", 1, 2).alias("scores")
    scores = run.read_table("pca").select("path", "label", two)
    table = scores.orderBy(F.hash("path"), "path").limit(images).toPandas()
    return np.stack(table["scores"]), table["label"]
