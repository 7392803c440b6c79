"""03: mean and centred cross-products of a table of vectors, in one distributed pass."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from fruits_lib.errors import FruitsError, spark_errors
from fruits_lib.session import settings

# A square float64 matrix of this width takes 2 GiB. Every Python worker holds two of them, and
# the driver up to four while it decomposes one.
MAX_WIDTH = 16_384

# Rows are multiplied in blocks large enough for BLAS. A partition's matrix travels to the driver
# in pieces, because the driver's JVM, through which they pass, has a heap of 1 GB by default.
_BLOCK_VALUES = 8_000_000  # 64 MB of float64
_MIN_BLOCK_ROWS = 1024
_PIECE_VALUES = 1_000_000  # 8 MB of float64
_PIECES_PER_FETCH = 4
_BATCH_VALUES = 4_000_000  # 16 MB of float32

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


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and centred cross-products of a table of vectors x_i, in float64.

    ``m2 = sum_i (x_i - mean)(x_i - mean)^T``
    """

    n: int
    mean: np.ndarray  # (d,)
    m2: np.ndarray  # (d, d)


@spark_errors("the pass over the features", "run 02_featurize again, it mends what is damaged")
def compute(features: DataFrame) -> Moments:
    """Return the moments of the column `features`, computed in one distributed pass.

    Every partition centres blocks of rows by their own mean and multiplies them with BLAS; blocks,
    then partitions, are merged by the updating formula of Chan, Golub and LeVeque (1979,
    "Updating formulae and a pairwise algorithm for computing sample variances"). Unlike
    ``sum(x x^T) - n mean mean^T`` it loses no digits when the mean is large beside the spread.

    The column is ``array<float>`` or ``array<double>``, all of one width. Its first row is read
    twice, to learn the width.

    Raises
    ------
    FruitsError
        Fewer than two vectors, or vectors of different widths, wider than `MAX_WIDTH`, or with
        values that are not finite.
    """
    vectors = features.select("features")
    first = vectors.select(F.size("features")).head()
    if first is None:
        raise FruitsError("0 feature vectors, at least 2 are needed: check the input and rejects")
    d = max(first[0] or 0, 0)  # the size of a null is -1, or null in ANSI mode
    if not 1 <= d <= MAX_WIDTH:
        raise FruitsError(
            f"feature vectors have {d:,} values, 1 to {MAX_WIDTH:,} are allowed (a square matrix of"
            " this width must fit in memory): pool the backbone's last feature map"
        )

    # Through the shuffle, Spark computes the partials in parallel, once, and keeps them on disk;
    # the driver fetches a few pieces at a time, because its JVM heap could not hold all of them.
    partitions = vectors.sparkSession.sparkContext.defaultParallelism
    fetches = partitions * -(-len(_pieces(d)) // _PIECES_PER_FETCH)
    partials = (
        vectors.coalesce(partitions)
        .mapInArrow(lambda batches: _partial_moments(batches, d), from_arrow_schema(_PARTIAL))
        .repartition(fetches, "piece")  # a hash of the content spreads the pieces evenly
    )
    counts, means, m2 = [], [], np.zeros((d, d))
    widths, not_finite = {d}, 0
    # A batch of Spark's default of 10,000 wide rows would not fit beside another one in 1 GB, where
    # the thread that fills it dies and the task waits for ever.
    with settings(
        vectors.sparkSession,
        {"spark.sql.execution.arrow.maxRecordsPerBatch": str(max(_BATCH_VALUES // d, 1))},
    ):
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
    for start, stop in _pieces(d):  # the pieces hold only the upper triangle
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
        values = n, mean, first_row, piece, sorted(other_widths), not_finite
        return pa.record_batch([[value] for value in values], _PARTIAL)

    if other_widths or not_finite:
        yield row()
    elif counts:
        n, mean, between = _merge(counts, means)
        m2 += between
        for start, stop in _pieces(d):
            yield row(n, mean.tobytes(), start, m2[start:stop, start:].tobytes())


def _vectors(batches: Iterable, d: int, other_widths: set[int]) -> Iterator[np.ndarray]:
    """Arrow batches as arrays (b, d); widths other than d are added to `other_widths`."""
    for batch in batches:
        vectors = batch.column(0)
        found = set(pc.list_value_length(vectors).fill_null(0).unique().to_pylist()) - {d}
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
    """Number and mean of all groups together, and what Chan et al. add to the groups' own m2.

    That is ``sum_g n_g (mean_g - mean)(mean_g - mean)^T``.
    """
    n = sum(counts)
    mean = np.asarray(counts) @ np.stack(means) / n
    delta = np.sqrt(counts)[:, np.newaxis] * (means - mean)
    return n, mean, delta.T @ delta


def _pieces(d: int) -> list[tuple[int, int]]:
    """Ranges of rows of the pieces in which a (d, d) matrix goes to the driver."""
    rows = max(1, _PIECE_VALUES // d)
    return [(start, min(start + rows, d)) for start in range(0, d, rows)]
