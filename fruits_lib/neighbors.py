"""06, and its check in 05: exact nearest neighbours of photographs, on the driver."""

from dataclasses import dataclass

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from fruits_lib.session import settings


@dataclass(frozen=True, eq=False)
class Photographs:
    """Photographs on the driver."""

    paths: np.ndarray  # (n,)
    labels: np.ndarray  # (n,)
    scores: np.ndarray  # float32 (n, k)


def to_driver(table: DataFrame, images: int | None = None) -> Photographs:
    """Return path, label and pca of a table; of `images` that a hash of the path selects."""
    table = table.select("path", "label", "pca").orderBy(F.hash("path"), "path")
    arrow = {"spark.sql.execution.arrow.pyspark.enabled": "true"}  # no Python object per number
    with settings(table.sparkSession, arrow):
        rows = (table.limit(images) if images else table).toPandas()
    labels, paths = (rows[name].to_numpy(dtype=object) for name in ("label", "path"))
    return Photographs(paths, labels, np.stack(rows["pca"]))


def accuracy(fitted: Photographs, tested: Photographs, neighbors: int) -> float:
    """Return the share of photographs whose label most of their nearest neighbours have."""
    from sklearn.neighbors import KNeighborsClassifier

    voters = KNeighborsClassifier(neighbors, algorithm="brute").fit(fitted.scores, fitted.labels)
    return float(voters.score(tested.scores, tested.labels))
