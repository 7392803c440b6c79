"""A table of vectors as 02_featurize leaves it, for the tests of moments and components."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fruits_lib.moments import Moments

N, D, RANK = 2000, 300, 40
CONSTANT = [7, 100]  # columns without variance


def make_table():
    """Float32 table (N, D): rank RANK, plus a little noise, plus constant columns."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((N, RANK)) * np.linspace(5, 1, RANK)
    x = scores @ rng.standard_normal((RANK, D)) + 1e-3 * rng.standard_normal((N, D)) + 2
    x[:, CONSTANT] = [0, 3.3]
    return x.astype(np.float32)


def frame(spark, vectors, folder):
    """Write vectors (an array, or lists of any widths) to Parquet and read them with Spark."""
    vectors = [None if v is None else np.asarray(v, np.float32) for v in vectors]
    rows = len(vectors)
    columns = {
        "path": [f"{i:05}.jpg" for i in range(rows)],
        "label": ["Kaki"] * rows,
        "split": pa.nulls(rows, pa.string()),
        "features": pa.array(vectors, pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), folder / "part.parquet")
    return spark.read.parquet(str(folder))


def in_memory(x):
    """Moments without Spark: the stages after them need no more."""
    x = np.asarray(x, np.float64)
    centred = x - x.mean(axis=0)
    return Moments(len(x), x.mean(axis=0), centred.T @ centred)


def assert_one_line(error, *words):
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
