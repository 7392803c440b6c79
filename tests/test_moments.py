"""One distributed pass gives NumPy's moments, whatever the partitions, and refuses bad vectors."""

import uuid

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import functions as F
from vectors import D, N, assert_one_line, frame, in_memory

from fruits_lib import moments as statistics
from fruits_lib.errors import FruitsError


def test_moments_equal_numpy(moments, table):
    expected = in_memory(table)
    assert moments.n == N
    np.testing.assert_allclose(moments.mean, expected.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.m2, expected.m2, atol=1e-12 * np.abs(expected.m2).max())


def test_m2_is_exactly_symmetric(moments):
    np.testing.assert_array_equal(moments.m2, moments.m2.T)


def test_moments_do_not_depend_on_partitions_order_or_batches(features, moments, monkeypatch):
    scale = np.abs(moments.m2).max()
    single = statistics.compute(features.coalesce(1))
    monkeypatch.setattr(statistics, "_BATCH_VALUES", 7 * D)
    shuffled = statistics.compute(features.repartition(2).orderBy(F.rand(seed=1)))
    for other in (shuffled, single):
        np.testing.assert_allclose(other.mean, moments.mean, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(other.m2, moments.m2, atol=1e-12 * scale)


def test_partition_of_many_blocks_and_pieces(monkeypatch, table):
    monkeypatch.setattr(statistics, "_BLOCK_VALUES", 0)
    monkeypatch.setattr(statistics, "_MIN_BLOCK_ROWS", 64)
    monkeypatch.setattr(statistics, "_PIECE_VALUES", 7 * D)
    column = pa.array(list(table), pa.list_(pa.float32()))
    batches = [pa.record_batch({"features": column[i : i + 100]}) for i in range(0, N, 100)]
    expected = in_memory(table)
    pieces = [p.to_pylist()[0] for p in statistics._partial_moments(batches, D)]
    assert len(pieces) == -(-D // 7)
    for piece in pieces:
        start = piece["first_row"]
        found = np.frombuffer(piece["piece"]).reshape(-1, D - start)
        np.testing.assert_allclose(found, expected.m2[start : start + len(found), start:], 1e-9)


def test_batches_of_wide_rows_fit_in_a_small_heap(spark, tmp_path, monkeypatch):
    # With Spark's default of 10,000 rows, 4,608 features hung for ever in a heap of 1 GB.
    compute = statistics._partial_moments

    def noted(batches, d):
        def note(batch):
            (tmp_path / f"{uuid.uuid4()}").write_text(str(batch.nbytes))
            return batch

        return compute(map(note, batches), d)

    monkeypatch.setattr(statistics, "_partial_moments", noted)
    row = F.array_repeat(F.col("id").cast("float"), 4608).alias("features")
    assert statistics.compute(spark.range(4000).select(row)).n == 4000
    assert 8e6 < max(int(file.read_text()) for file in tmp_path.iterdir()) < 20e6


def test_large_mean_costs_no_digits(spark, tmp_path):
    # Sums of squares would keep 16 - 2 * 4 digits of the variance; the centred form keeps them all.
    x = (1e4 + np.random.default_rng(1).standard_normal((N, 5))).astype(np.float32)
    found = statistics.compute(frame(spark, x, tmp_path))
    np.testing.assert_allclose(found.m2, in_memory(x).m2, rtol=1e-11, atol=1e-11 * N)


def test_no_vectors(spark, tmp_path):
    with pytest.raises(FruitsError) as error:
        statistics.compute(frame(spark, [], tmp_path))
    assert_one_line(error, "0 feature vectors", "at least 2")


def test_one_vector(spark, tmp_path):
    with pytest.raises(FruitsError) as error:
        statistics.compute(frame(spark, [[1, 2]], tmp_path))
    assert_one_line(error, "1 feature vector", "at least 2")


def test_differing_widths(spark, tmp_path):
    with pytest.raises(FruitsError) as error:
        statistics.compute(frame(spark, [[1, 2], [1, 2, 3], None, [4, 5]], tmp_path))
    assert_one_line(error, "0 and 2 and 3 values")


def test_values_that_are_not_finite(spark, tmp_path):
    vectors = [[1, 2], [np.nan, np.inf], [3, -np.inf]]
    with pytest.raises(FruitsError) as error:
        statistics.compute(frame(spark, vectors, tmp_path))
    assert_one_line(error, "3 feature values", "NaN or infinite")


def test_too_wide(spark, tmp_path):
    with pytest.raises(FruitsError) as error:
        statistics.compute(frame(spark, np.zeros((2, 62_720)), tmp_path))
    assert_one_line(error, "62,720", "16,384", "pool")


def test_a_damaged_file_is_one_line_with_the_way_out(spark, table, tmp_path):
    features, file = frame(spark, table, tmp_path), tmp_path / "part.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    message = r"^the pass over the features stopped \(.+\): run 02_featurize again"
    with pytest.raises(FruitsError, match=message) as caught:
        statistics.compute(features)
    assert_one_line(caught)
