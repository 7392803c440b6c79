"""03, 04: the mathematics of the reduction: spectrum, choice of k, components, Spark model.

Everything follows from the moments of the features (see `fruits_lib.moments`) by linear algebra on
a d x d matrix on the driver: one fit gives the whole spectrum, raw and standardized, before k is
chosen. The fitted model is a stock Spark ML ``PipelineModel``, which loads without this project.
"""

from dataclasses import MISSING, dataclass, fields, replace

import numpy as np
import pandas as pd
from pyspark.ml import PipelineModel
from pyspark.ml.feature import PCAModel, StandardScalerModel
from pyspark.ml.linalg import DenseMatrix, DenseVector
from pyspark.ml.wrapper import JavaWrapper

from fruits_lib.errors import FruitsError
from fruits_lib.moments import Moments

# A column counts as constant when its standard deviation is at most this share of its mean.
# Rounding alone gives up to 7e-13. A float32 column that varies gives at least 6e-8 / sqrt(n): one
# of n values differs in its last digit.
ZERO_VARIANCE = 1e-12


@dataclass(frozen=True, eq=False)
class Spectrum:
    """All eigenvalues of a table of vectors, descending.

    Attributes
    ----------
    n : int
        Number of vectors.
    mean, std : ndarray of float64, shape (d,)
        Mean and standard deviation (divisor n - 1; 0 for a constant column) of every column.
    raw, standardized : ndarray of float64, shape (d,)
        Eigenvalues of the covariance and of the correlation matrix; 0 for a constant column.
    fit_split : str
        The split that the vectors are of; empty if they are all there are.
    """

    n: int
    mean: np.ndarray
    std: np.ndarray
    raw: np.ndarray
    standardized: np.ndarray
    fit_split: str = ""

    def __str__(self) -> str:
        of_split = f" of {self.fit_split} alone" if self.fit_split else ""
        size = f"{self.n:,} images{of_split} x {len(self.mean):,} features"
        return size + (f"\nWarning: {self.warning}" if self.warning else "")

    @property
    def warning(self) -> str:
        """Why components of so few vectors must not be trusted far, or nothing."""
        return few_images(self.n, len(self.mean))

    def eigenvalues(self, standardize: bool) -> np.ndarray:
        return self.standardized if standardize else self.raw


@dataclass(frozen=True)
class Choice:
    """How many components to keep, and why."""

    standardize: bool  # whether they are components of the correlation matrix
    k: int
    explained: float  # share of the total variance that the first k components explain
    variance: float | None = None  # the share that was asked for; None if k was given

    def __str__(self) -> str:
        name = "standardized" if self.standardize else "raw"
        return f"{name:<12}  k = {self.k:>5,}   explained variance = {self.explained:.2%}"


def few_images(n: int, d: int) -> str:
    """Return a warning if n images with d features are too few to trust all components."""
    if n >= d:
        return ""
    return (
        f"{n:,} photographs for {d:,} features: components beyond the first few describe these "
        "photographs, not fruit in general; add photographs"
    )


def spectrum(moments: Moments, fit_split: str = "") -> Spectrum:
    """Return the eigenvalues of covariance and correlation; `fit_split` as in `Spectrum`."""
    raw, standardized = (
        np.linalg.eigvalsh(_covariance(moments, standardize))[::-1].clip(min=0)
        for standardize in (False, True)
    )
    return Spectrum(moments.n, moments.mean, _std(moments), raw, standardized, fit_split)


def explained_variance_ratio(eigenvalues: np.ndarray) -> np.ndarray:
    """Return each component's share of the total variance, or raise FruitsError if that is 0."""
    return eigenvalues / _positive(eigenvalues.sum())


def choose_k(eigenvalues: np.ndarray, variance: float, n: int) -> int:
    """Return the smallest number of components that explain more than a share of the variance.

    scikit-learn's rule (``PCA(n_components=variance)``). A share of 1 asks for all components
    that are more than rounding (one part in 1e12 of the total variance).

    Parameters
    ----------
    eigenvalues : ndarray, shape (d,)
        All eigenvalues, descending.
    variance : float
        The share of the total variance, above 0 and up to 1.
    n : int
        Number of vectors.

    Raises
    ------
    FruitsError
        The share is out of range, or more than min(n - 1, d) components explain.
    """
    if not 0 < variance <= 1:
        raise FruitsError(
            f"explained variance {variance} is not above 0 and up to 1: give a share such as 0.9"
        )
    bound = min(n - 1, len(eigenvalues))
    cumulated = np.cumsum(explained_variance_ratio(eigenvalues))[:bound]
    k = int(np.searchsorted(cumulated, min(variance, 1 - 1e-12), side="right")) + 1
    if k > bound:
        raise FruitsError(
            f"explained variance {variance} is not reached: the {bound:,} components that {n:,}"
            f" vectors can give reach {cumulated[-1]:.4f}; lower the share or add images"
        )
    return k


def check_k(k: int, n: int, d: int) -> int:
    """Return k, or raise FruitsError if n vectors of width d cannot give k components.

    The bound is min(n - 1, d): n vectors span n - 1 directions about their mean.
    """
    bound = min(n - 1, d)
    if not 1 <= k <= bound:
        raise FruitsError(
            f"k = {k:,} is not between 1 and {bound:,}, the most that {n:,} vectors of width {d:,}"
            " can give: choose another k or add images"
        )
    return k


def choose(spectrum: Spectrum, standardize: bool, variance: float, k: int = 0) -> Choice:
    """Choose k components, or by a share of the variance if k is 0.

    Raises FruitsError as `choose_k` and `check_k` do.
    """
    eigenvalues = spectrum.eigenvalues(standardize)
    asked = None if k else variance
    k = check_k(k or choose_k(eigenvalues, variance, spectrum.n), spectrum.n, len(eigenvalues))
    explained = float(explained_variance_ratio(eigenvalues)[:k].sum())
    return Choice(standardize, k, explained, asked)


def k_by_share(spectrum: Spectrum) -> pd.DataFrame:
    """Return the k that each of several shares of the variance takes, raw and standardized."""
    shares = (0.5, 0.8, 0.85, 0.9, 0.95, 0.99)
    columns = {
        name: [choose_k(getattr(spectrum, name), share, spectrum.n) for share in shares]
        for name in ("raw", "standardized")
    }
    return pd.DataFrame(columns, pd.Index([f"{share:.0%}" for share in shares], name="variance"))


def _std(moments: Moments) -> np.ndarray:
    """Standard deviations (d,), divisor n - 1, exactly 0 for constant columns."""
    std = np.sqrt(np.diag(moments.m2) / (moments.n - 1))
    return np.where(std > ZERO_VARIANCE * np.abs(moments.mean), std, 0.0)


def _scale(std: np.ndarray, standardize: bool) -> np.ndarray:
    """What centred values are multiplied by, (d,): as in Spark, 0 where std is 0."""
    if not standardize:
        return np.ones_like(std)
    return np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)


def _covariance(moments: Moments, standardize: bool) -> np.ndarray:
    """Covariance or correlation matrix (d, d), exactly 0 for constant columns."""
    std = _std(moments)
    scale = _scale(std, standardize) * (std > 0)
    return moments.m2 / (moments.n - 1) * scale[:, np.newaxis] * scale


def _positive(total_variance: float) -> float:
    if not total_variance > 0:
        raise FruitsError(
            "total variance is 0, it must be above 0: all feature vectors are equal, check the"
            " images and the weights of the backbone"
        )
    return total_variance


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components: ``scores = ((x - mean) * scale) @ components.T``.

    Attributes
    ----------
    mean, std : ndarray of float64, shape (d,)
        As in `Spectrum`.
    standardize : bool
        Whether columns are divided by `std`.
    components : ndarray of float64, shape (k, d)
        Orthonormal rows in order of falling variance; the largest loading of each is positive.
    eigenvalues : ndarray of float64, shape (k,)
        Variances of the scores.
    """

    mean: np.ndarray
    std: np.ndarray
    standardize: bool
    components: np.ndarray
    eigenvalues: np.ndarray

    @property
    def k(self) -> int:
        return len(self.components)

    @property
    def scale(self) -> np.ndarray:
        """Factor of every column, (d,): 1, or 1 / std (0 for a constant column)."""
        return _scale(self.std, self.standardize)

    @property
    def total_variance(self) -> float:
        """Variance of all columns together, after scaling."""
        return float(np.count_nonzero(self.std) if self.standardize else np.sum(self.std**2))

    @property
    def explained_variance_ratio(self) -> np.ndarray:
        """Share of the total variance in each component, (k,)."""
        return self.eigenvalues / _positive(self.total_variance)


def principal_components(moments: Moments, k: int, standardize: bool) -> Components:
    """Return the eigenvectors of the k largest eigenvalues of covariance or correlation.

    The sign of an eigenvector is arbitrary. Its largest loading is made positive, so that two runs
    give the same scores. Raises FruitsError if k is out of range or the total variance is 0.
    """
    check_k(k, moments.n, len(moments.mean))
    std = _std(moments)
    _positive(std.sum())
    values, vectors = np.linalg.eigh(_covariance(moments, standardize))  # ascending, in columns
    components = vectors[:, : -k - 1 : -1].T
    largest = np.abs(components).argmax(axis=1, keepdims=True)
    components = components * np.sign(np.take_along_axis(components, largest, axis=1))
    return Components(moments.mean, std, standardize, components, values[::-1][:k].clip(min=0))


def pipeline_model(components: Components) -> PipelineModel:
    """Return a stock Spark ML model: a StandardScalerModel, then a PCAModel.

    The model reads `features_vector` and writes `pca_vector`, both columns of vectors. The scaler
    also subtracts the mean, which Spark's PCAModel does not do.
    """
    scaler = _jvm_stage(
        StandardScalerModel, DenseVector(components.std), DenseVector(components.mean)
    )
    scaler._set(inputCol="features_vector", outputCol="features_scaled")
    scaler._set(withMean=True, withStd=components.standardize)
    k, d = components.components.shape
    pca = _jvm_stage(
        PCAModel,
        DenseMatrix(d, k, components.components.ravel()),  # (d, k), column by column
        DenseVector(components.explained_variance_ratio),
    )
    pca._set(inputCol="features_scaled", outputCol="pca_vector", k=k)
    return PipelineModel([scaler, pca])


def _jvm_stage(cls, *args):
    """A fitted stage, made by the constructor of its JVM class: Python has no constructor."""
    java_class = f"org.apache.spark.ml.feature.{cls.__name__}"
    return cls(JavaWrapper._new_java_obj(java_class, cls().uid, *args))


def components_of(model: PipelineModel) -> Components:
    """Return the components of a model that `pipeline_model` built, also after saving and loading.

    Raises FruitsError if the model has other stages.
    """
    stages = [type(stage) for stage in model.stages]
    if stages != [StandardScalerModel, PCAModel]:
        raise FruitsError(
            f"the model's stages are {', '.join(s.__name__ for s in stages)}, not"
            " StandardScalerModel, PCAModel: fit it again with notebook 04"
        )
    scaler, pca = model.stages
    found = Components(
        mean=scaler.mean.toArray(),
        std=scaler.std.toArray(),
        standardize=scaler.getOrDefault("withStd"),
        components=pca.pc.toArray().T,
        eigenvalues=pca.explainedVariance.toArray(),
    )
    return replace(found, eigenvalues=found.eigenvalues * found.total_variance)


def from_npz(kind, values: dict):
    """Return a `Spectrum`, `Choice` or `Components` from the values of an archive (`read_npz`).

    Raises FruitsError if one is missing or of another kind.
    """
    found = {field.name: values[field.name] for field in fields(kind) if field.name in values}
    for field in fields(kind):
        if field.default is MISSING and not isinstance(found.get(field.name), field.type):
            raise FruitsError(
                f"{field.name} is missing in what 03_pick_k or 04_pca wrote, or damaged: run both "
                "again"
            )
    return kind(**found)
