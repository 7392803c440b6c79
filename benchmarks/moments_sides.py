"""The sides that `moments.py` compares: each returns its seconds, and what it found."""

import os
import time

import numpy as np
import pyarrow.parquet as pq
from tables import peak_mb

K = 200


def start(partitions: int, heap: int):
    from fruits_lib import session

    session.LOCAL_SETTINGS["spark.driver.memory"] = f"{heap}g"
    session.LOCAL_SETTINGS["spark.default.parallelism"] = str(partitions or os.cpu_count())
    spark = session.start_session("moments")
    spark.range(1000).mapInArrow(lambda batches: batches, "id long").count()  # starts workers
    return spark


def ours(folder: str, partitions: int, heap: int) -> dict:
    from fruits_lib import moments, pca

    spark = start(partitions, heap)
    started = time.monotonic()
    statistics = moments.compute(spark.read.parquet(folder))
    pca.spectrum(statistics)
    found = pca.principal_components(statistics, K, standardize=True)
    seconds = time.monotonic() - started
    java = spark.sparkContext._gateway.proc.pid
    explained = float(found.explained_variance_ratio.sum())
    return {"seconds": seconds, "explained": explained, "peak": [peak_mb(), peak_mb(java)]}


def mllib(folder: str, partitions: int, heap: int) -> dict:
    from pyspark.ml.feature import PCA, StandardScaler
    from pyspark.ml.functions import array_to_vector

    spark = start(partitions, heap)
    started = time.monotonic()
    vectors = spark.read.parquet(folder).select(array_to_vector("features").alias("x"))
    scaler = StandardScaler(inputCol="x", outputCol="scaled", withMean=True).fit(vectors)
    model = PCA(k=K, inputCol="scaled", outputCol="pca").fit(scaler.transform(vectors))
    seconds = time.monotonic() - started
    return {"seconds": seconds, "explained": float(model.explainedVariance.values.sum())}


def numpy(folder: str, *_) -> dict:
    started = time.monotonic()
    column = pq.read_table(folder)["features"].combine_chunks()
    x = column.values.to_numpy().reshape(len(column), -1).astype(np.float64)
    x -= x.mean(axis=0)
    covariance = x.T @ x / (len(x) - 1)
    scale = np.diag(covariance) ** -0.5
    raw = np.linalg.eigvalsh(covariance)
    values, _ = np.linalg.eigh(covariance * scale[:, np.newaxis] * scale)
    seconds = time.monotonic() - started
    assert len(raw) == len(values)
    return {"seconds": seconds, "explained": float(values[-K:].sum() / values.sum())}


SIDES = {"ours": ours, "mllib": mllib, "numpy": numpy}
