"""Principal components of a table of feature vectors: moments, spectrum, choice of k, Spark model.

One pass over the table gives its moments (number, mean, centred cross-products); everything else
is linear algebra on a width x width matrix on the driver. Hence the whole spectrum is known before
k is chosen, raw and standardised, and no component is computed only to be thrown away.

The fitted model is a stock Spark ML ``PipelineModel``: who loads it needs Spark, not this project.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.ml import PipelineModel
from pyspark.ml.feature import PCAModel, StandardScalerModel
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.ml.linalg import DenseMatrix, DenseVector
from pyspark.ml.wrapper import JavaWrapper
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from fruits_lib.errors import FruitsError

# A square float64 matrix of this width takes 2 GiB. Every Python worker holds two of them, and
# the driver up to four while it decomposes one.
MAX_WIDTH = 16_384

# A column counts as constant when its standard deviation is at most this share of its mean. The
# share lies between what rounding makes of a constant (7e-13 at worst, 0 for float32) and the least
# that a float32 column can vary: 6e-8 of its value in one of n rows, that is 6e-8 / sqrt(n).
ZERO_VARIANCE = 1e-12

# Rows are multiplied in blocks large enough for BLAS. A partition's matrix travels to the driver
# in pieces, because the driver's JVM, through which they pass, has a heap of 1 GB by default.
_BLOCK_VALUES = 8_000_000  # 64 MB of float64
_MIN_BLOCK_ROWS = 1024
_PIECE_VALUES = 1_000_000  # 8 MB of float64
_PIECES_PER_FETCH = 4

_PARTIAL = pa.schema(
    {
        "n": pa.int64(),
        "mean": pa.binary(),  # (d,) float64
        "first_row": pa.int64(),
        "piece": pa.binary(),  # (r, d - first_row) float64: r rows of m2 from the diagonal on
        "other_widths": pa.list_(pa.int64()),
        "not_finite": pa.int64(),
    }
)


# --- moments ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of a table of vectors.

    Attributes
    ----------
    n : int
        Number of vectors.
    mean : ndarray of float64, shape (d,)
        Mean vector.
    m2 : ndarray of float64, shape (d, d)
        Centred cross-products, ``sum_i (x_i - mean)(x_i - mean)^T``.
    """

    n: int
    mean: np.ndarray
    m2: np.ndarray


def compute_moments(features: DataFrame, column: str = "features") -> Moments:
    """Compute the moments of a column of vectors in one distributed pass.

    Every partition centres blocks of rows by their own mean and multiplies them with BLAS; blocks,
    then partitions, are merged by the updating formula of Chan, Golub and LeVeque (1979,
    "Updating formulae and a pairwise algorithm for computing sample variances"). Unlike
    ``sum(x x^T) - n mean mean^T`` it loses no digits when the mean is large beside the spread.

    Parameters
    ----------
    features : DataFrame
        Has a column of ``array<float>`` (or ``array<double>``), all of one width. Its first row
        is read twice, to learn the width.
    column : str
        Name of that column.

    Returns
    -------
    Moments

    Raises
    ------
    FruitsError
        Fewer than two vectors, vectors of differing width, wider than `MAX_WIDTH`, or not finite.
    """
    vectors = features.select(column)
    first = vectors.select(F.size(column)).head()
    if first is None:
        raise FruitsError("0 feature vectors, at least 2 are needed: check the input and rejects")
    d = max(first[0] or 0, 0)  # the size of a null is -1, or null in ANSI mode
    if not 1 <= d <= MAX_WIDTH:
        raise FruitsError(
            f"feature vectors have {d:,} values, 1 to {MAX_WIDTH:,} are allowed (a square matrix of"
            " this width must fit in memory): pool the backbone's last feature map"
        )

    # The shuffle makes Spark compute the partials in parallel, once, and keep them on disk, from
    # where the driver fetches a few pieces at a time: all at once would not fit in its JVM heap.
    # Hashing the pieces spreads them evenly.
    partitions = vectors.sparkSession.sparkContext.defaultParallelism
    fetches = partitions * -(-len(_pieces(d)) // _PIECES_PER_FETCH)
    partials = (
        vectors.coalesce(partitions)
        .mapInArrow(lambda batches: _partial_moments(batches, d), from_arrow_schema(_PARTIAL))
        .repartition(fetches, "piece")
    )
    counts, means, m2 = [], [], np.zeros((d, d))
    widths, not_finite = {d}, 0
    for row in partials.toLocalIterator():
        widths.update(row.other_widths)
        not_finite += row.not_finite
        if row.n:
            piece = np.frombuffer(row.piece).reshape(-1, d - row.first_row)
            m2[row.first_row : row.first_row + len(piece), row.first_row :] += piece
        if row.n and row.first_row == 0:  # n and mean come with every piece: take them once
            counts.append(row.n)
            means.append(np.frombuffer(row.mean))

    if len(widths) > 1:
        found = " and ".join(f"{width:,}" for width in sorted(widths))
        raise FruitsError(
            f"feature vectors have {found} values, all must have the same number: featurize again"
            " into an empty run folder"
        )
    if not_finite:
        raise FruitsError(
            f"{not_finite:,} feature values are NaN or infinite, 0 are allowed: check the weights"
            " of the backbone and featurize again"
        )
    if sum(counts) < 2:
        raise FruitsError("1 feature vector, at least 2 are needed: add images")
    for start, stop in _pieces(d):  # only the upper triangle has travelled
        m2[stop:, start:stop] = m2[start:stop, stop:].T
    n, mean, between = _merge(counts, means)
    m2 += between
    return Moments(n, mean, m2)


def _partial_moments(batches: Iterable[pa.RecordBatch], d: int) -> Iterator[pa.RecordBatch]:
    """Moments of one partition, as rows of `_PARTIAL`.

    Bad input is reported in a row, not raised: an exception in a Spark worker reaches the user as
    pages of JVM stack.
    """
    other_widths: set[int] = set()
    not_finite = 0
    counts, means, m2 = [], [], np.zeros((d, d))
    for block in _blocks(_vectors(batches, d, other_widths)):
        not_finite += np.count_nonzero(~np.isfinite(block))
        if not not_finite:
            mean = block.mean(axis=0)
            block -= mean
            m2 += block.T @ block  # numpy sees the transpose and calls syrk: half the work
            counts.append(len(block))
            means.append(mean)

    def row(n=0, mean=b"", first_row=0, piece=b""):
        values = [n, mean, first_row, piece, sorted(other_widths), not_finite]
        return pa.RecordBatch.from_pylist(
            [dict(zip(_PARTIAL.names, values, strict=True))], schema=_PARTIAL
        )

    if other_widths or not_finite:
        yield row()
    elif counts:
        n, mean, between = _merge(counts, means)
        m2 += between
        for start, stop in _pieces(d):
            yield row(n, mean.tobytes(), start, m2[start:stop, start:].tobytes())


def _vectors(
    batches: Iterable[pa.RecordBatch], d: int, other_widths: set[int]
) -> Iterator[np.ndarray]:
    """Arrow batches as arrays (b, d); widths other than d are added to `other_widths`."""
    for batch in batches:
        vectors = batch.column(0)
        lengths = pc.fill_null(pc.list_value_length(vectors), 0)
        found = set(pc.unique(lengths).to_pylist()) - {d}
        other_widths |= found
        if not found:
            yield vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, d)


def _blocks(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Regroup arrays (b, d) into float64 blocks that suit BLAS, whatever Spark's batch size."""
    pending: list[np.ndarray] = []
    for array in arrays:
        rows = max(_MIN_BLOCK_ROWS, _BLOCK_VALUES // array.shape[1])
        for start in range(0, len(array), rows):
            pending.append(array[start : start + rows])
            if sum(map(len, pending)) >= rows:
                yield np.concatenate(pending, dtype=np.float64)
                pending = []
    if pending:
        yield np.concatenate(pending, dtype=np.float64)


def _merge(counts: list[int], means: list[np.ndarray]) -> tuple[int, np.ndarray, np.ndarray]:
    """Number and mean of all groups together, and the cross-products of the means about it.

    ``sum_g n_g (mean_g - mean)(mean_g - mean)^T`` is what Chan et al. add to the groups' own
    cross-products.
    """
    n = sum(counts)
    mean = np.asarray(counts) @ np.stack(means) / n
    delta = np.sqrt(counts)[:, np.newaxis] * (means - mean)
    return n, mean, delta.T @ delta


def _pieces(d: int) -> list[tuple[int, int]]:
    """Ranges of rows into which a (d, d) matrix is cut for its way to the driver."""
    rows = max(1, _PIECE_VALUES // d)
    return [(start, min(start + rows, d)) for start in range(0, d, rows)]


# --- spectrum and choice of k -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Spectrum:
    """All eigenvalues of a table of vectors, descending.

    Attributes
    ----------
    n : int
        Number of vectors.
    mean, std : ndarray of float64, shape (d,)
        Mean and standard deviation (divisor n - 1; 0 for a constant column) of every column.
    raw : ndarray of float64, shape (d,)
        Eigenvalues of the covariance matrix.
    standardized : ndarray of float64, shape (d,)
        Eigenvalues of the correlation matrix, to which constant columns contribute zeros.
    """

    n: int
    mean: np.ndarray
    std: np.ndarray
    raw: np.ndarray
    standardized: np.ndarray

    def eigenvalues(self, standardize: bool) -> np.ndarray:
        """`standardized` or `raw`."""
        return self.standardized if standardize else self.raw


@dataclass(frozen=True)
class Choice:
    """How many components to keep, and why.

    Attributes
    ----------
    standardize : bool
        Whether the components are those of the correlation matrix.
    k : int
        Number of components.
    explained : float
        Share of the total variance that the first k components explain.
    variance : float or None
        The share that was asked for; None when k was given.
    """

    standardize: bool
    k: int
    explained: float
    variance: float | None = None


def spectrum(moments: Moments) -> Spectrum:
    """Eigenvalues of covariance and correlation."""
    raw, standardized = (
        np.linalg.eigvalsh(_covariance(moments, standardize))[::-1].clip(min=0)
        for standardize in (False, True)
    )
    return Spectrum(moments.n, moments.mean, _std(moments), raw, standardized)


def explained_variance_ratio(eigenvalues: np.ndarray) -> np.ndarray:
    """Share of the total variance in each component.

    Parameters
    ----------
    eigenvalues : ndarray, shape (d,)
        All eigenvalues, descending.

    Returns
    -------
    ndarray of float64, shape (d,)

    Raises
    ------
    FruitsError
        The total is zero.
    """
    return eigenvalues / _positive(eigenvalues.sum())


def choose_k(eigenvalues: np.ndarray, variance: float, n: int) -> int:
    """Smallest number of components that explain more than a share of the total variance.

    scikit-learn's rule (``PCA(n_components=variance)``). A share of 1 asks for all components
    that are more than rounding (one part in 1e12 of the total variance).

    Parameters
    ----------
    eigenvalues : ndarray, shape (d,)
        All eigenvalues, descending.
    variance : float
        The share, above 0 and up to 1.
    n : int
        Number of vectors.

    Raises
    ------
    FruitsError
        The share is out of range, or out of reach of the min(n - 1, d) components there are.
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
    """Return k, the number of components, if n vectors of width d can give so many.

    Raises
    ------
    FruitsError
        k is below 1 or above min(n - 1, d): n vectors span n - 1 directions about their mean.
    """
    bound = min(n - 1, d)
    if not 1 <= k <= bound:
        raise FruitsError(
            f"k = {k:,} is not between 1 and {bound:,}, the most that {n:,} vectors of width {d:,}"
            " can give: choose another k or add images"
        )
    return k


def choose(
    spectrum: Spectrum, standardize: bool, variance: float | None = None, k: int | None = None
) -> Choice:
    """Choose the number of components by a share of the variance or take a fixed k.

    Raises
    ------
    FruitsError
        As `choose_k` and `check_k`, or not exactly one of `variance` and `k` is given.
    """
    if (variance is None) == (k is None):
        raise FruitsError(f"variance = {variance} and k = {k}: give one of the two")
    eigenvalues = spectrum.eigenvalues(standardize)
    if k is None:
        k = choose_k(eigenvalues, variance, spectrum.n)
    check_k(k, spectrum.n, len(eigenvalues))
    explained = float(explained_variance_ratio(eigenvalues)[:k].sum())
    return Choice(standardize, k, explained, variance)


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
    scale = np.where(std > 0, _scale(std, standardize), 0.0)
    return moments.m2 / (moments.n - 1) * scale[:, np.newaxis] * scale


def _positive(total_variance: float) -> float:
    if not total_variance > 0:
        raise FruitsError(
            "total variance is 0, it must be above 0: all feature vectors are equal, check the"
            " images and the weights of the backbone"
        )
    return total_variance


# --- components and the Spark model -------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components: ``scores = ((x - mean) * scale) @ components.T``.

    Attributes
    ----------
    mean, std : ndarray of float64, shape (d,)
        Mean and standard deviation (divisor n - 1; 0 for a constant column) of every column.
    standardize : bool
        Whether columns are divided by `std`.
    components : ndarray of float64, shape (k, d)
        Orthonormal rows, in order of falling variance, largest loading of each positive.
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
        """Number of components."""
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
    """Eigenvectors of the k largest eigenvalues of covariance or correlation.

    Eigenvectors are unique up to sign; the sign that makes the largest loading positive is taken,
    so that two runs give the same scores.

    Raises
    ------
    FruitsError
        k is out of range, or the total variance is zero.
    """
    check_k(k, moments.n, len(moments.mean))
    std = _std(moments)
    _positive(std.sum())
    values, vectors = np.linalg.eigh(_covariance(moments, standardize))  # ascending, in columns
    components = vectors[:, : -k - 1 : -1].T
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(k), largest])[:, np.newaxis]
    return Components(moments.mean, std, standardize, components, values[::-1][:k].clip(min=0))


def pipeline_model(
    components: Components,
    input_col: str = "features_vector",
    scaled_col: str = "features_scaled",
    output_col: str = "pca_vector",
) -> PipelineModel:
    """The components as a stock Spark ML model: a StandardScalerModel, then a PCAModel.

    The scaler also subtracts the mean, which Spark's PCAModel does not do. Python has no
    constructor for a fitted stage; the JVM has, and whole vectors are handed to it.

    Parameters
    ----------
    components : Components
    input_col, scaled_col, output_col : str
        Vector columns that the model reads, makes in between, and writes.
    """
    scaler = _jvm_stage(
        StandardScalerModel, DenseVector(components.std), DenseVector(components.mean)
    )
    scaler._set(inputCol=input_col, outputCol=scaled_col)
    scaler._set(withMean=True, withStd=components.standardize)
    k, d = components.components.shape
    pca = _jvm_stage(
        PCAModel,
        DenseMatrix(d, k, components.components.ravel()),  # (d, k), column by column
        DenseVector(components.explained_variance_ratio),
    )
    pca._set(inputCol=scaled_col, outputCol=output_col, k=k)
    return PipelineModel([scaler, pca])


def _jvm_stage(cls, *args):
    """A fitted stage of Spark ML, made by the constructor of its JVM class."""
    java_class = f"org.apache.spark.ml.feature.{cls.__name__}"
    return cls(JavaWrapper._new_java_obj(java_class, cls().uid, *args))


def components_of(model: PipelineModel) -> Components:
    """Read the components back out of a model made by `pipeline_model`, loaded or not.

    Raises
    ------
    FruitsError
        The model has other stages.
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


def project(features: DataFrame, model: PipelineModel) -> DataFrame:
    """Scores of every image on the principal components.

    Parameters
    ----------
    features : DataFrame
        Columns path, label, split and ``features: array<float>[d]``.
    model : PipelineModel
        From `pipeline_model` or `PipelineModel.load`.

    Returns
    -------
    DataFrame
        Columns path, label, split and ``pca: array<float>[k]``.
    """
    scaler, pca = model.stages
    vectors = features.withColumn(scaler.getInputCol(), array_to_vector("features"))
    scores = vector_to_array(pca.getOutputCol(), "float32").alias("pca")
    return model.transform(vectors).select("path", "label", "split", scores)


# --- small files --------------------------------------------------------------------------------


def spectrum_to_npz(spectrum: Spectrum, choice: Choice) -> bytes:
    """A spectrum and the choice made from it, as the bytes of one ``.npz`` file."""
    return _to_npz({**vars(spectrum), **vars(choice)})


def spectrum_from_npz(data: bytes) -> tuple[Spectrum, Choice]:
    """Inverse of `spectrum_to_npz`."""
    values = _from_npz(data)
    return _pick(Spectrum, values), _pick(Choice, values)


def components_to_npz(components: Components) -> bytes:
    """Components as the bytes of an ``.npz`` file, enough to compute scores with NumPy alone.

    ``scores = ((x - mean) * scale) @ components.T``
    """
    derived = ("scale", "explained_variance_ratio")
    return _to_npz({**vars(components), **{name: getattr(components, name) for name in derived}})


def components_from_npz(data: bytes) -> Components:
    """Inverse of `components_to_npz`."""
    return _pick(Components, _from_npz(data))


def _to_npz(values: dict) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{name: value for name, value in values.items() if value is not None})
    return file.getvalue()


def _from_npz(data: bytes) -> dict:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: a.item() if a.ndim == 0 else a for name, a in archive.items()}


def _pick(cls, values: dict):
    """A dataclass from those values that it has fields for."""
    return cls(**{f.name: values.get(f.name) for f in fields(cls)})
