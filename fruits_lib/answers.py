"""05, 06: the checks of a run's classifier, and of the labels that it gave.

As in `fruits_lib.verify`, Spark reads and joins, and NumPy computes every figure again.
"""

import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from fruits_lib import neighbors, pca, splits
from fruits_lib.checks import Check, at_most, difference, reading
from fruits_lib.models import load_model, regression_of
from fruits_lib.regression import Regression
from fruits_lib.runs import Run, load_npz, read_bytes
from fruits_lib.session import settings

PARAMETER_TOLERANCE = 1e-12  # the same float64 numbers
PROBABILITY_TOLERANCE = 1e-6  # probabilities are float32, each within 6e-8 of its value
_AGAIN = "run 06_classify again"


def check_classifier(run: Run, entry: dict | None = None) -> list[Check]:
    """Check `classifier/`, `classifier.npz` and `labels/`; no check where 06 has not run.

    With s a row of `pca/`, and coefficients B and intercepts b of `classifier.npz`, the label of a
    photograph is the class where ``softmax(B s + b)`` is largest, and that is its probability.

    Parameters
    ----------
    run : Run
    entry : dict, optional
        What 06_classify recorded, or is about to; by default the manifest's.

    Raises
    ------
    FruitsError
        If one of the three is missing or cannot be read.
    """
    entry = entry or run.manifest().get("classify")
    if not entry:
        return []
    with reading(run, "classifier", "06_classify"):
        classifier = load_model(run, "classifier")
        stored, first = regression_of(classifier), PipelineModel(classifier.stages[:2])
    with reading(run, "model", "04_pca"):
        steps = [vars(pca.components_of(model)) for model in (first, load_model(run))]
    with reading(run, "classifier.npz", "06_classify"):
        regression = Regression(**load_npz(read_bytes(run.spark, run.path("classifier.npz"))))
    same_labels = np.array_equal(stored.labels, regression.labels)
    numbers = [
        {"coefficients": r.coefficients, "intercepts": r.intercepts} for r in (stored, regression)
    ]
    with reading(run, "labels", "06_classify"):
        labels = run.read_parquet("labels")
        found = _measure(run.read_parquet("pca"), labels, regression)
        figures = {"classes": len(stored.labels), **_figures(labels, entry["seed"])}
    with reading(run, "pca", "04_pca"):
        figures["knn_accuracy"] = _nearest(run, entry["seed"], entry["neighbors"])
    unlike = [
        figure - entry[name] if isinstance(figure, float) else _unequal(figure, entry.get(name))
        for name, figure in figures.items()
    ]
    return [
        at_most(PARAMETER_TOLERANCE, "classifier/ unlike model/", difference(*steps), _AGAIN),
        at_most(
            PARAMETER_TOLERANCE,
            "classifier.npz unlike classifier/",
            difference(*numbers) if same_labels else np.inf,
            _AGAIN,
        ),
        *(at_most(0, name, int(found[name]), _AGAIN) for name in _COUNTS),
        at_most(PROBABILITY_TOLERANCE, "probabilities unlike softmax", found["error"], _AGAIN),
        at_most(PARAMETER_TOLERANCE, "accuracy or F1 unlike the manifest's", unlike, _AGAIN),
    ]


def why_none(run: Run) -> str:
    """Return why a run has no classifier to check."""
    if run.exists("labels"):
        return f"labels/ is there, but of an older result than the run's: {_AGAIN}"
    return "06_classify has not run: there are no labels to check."


_COUNTS = (
    "scores without a label, or labels without",
    "labels or splits unlike those of pca/",
    "labels other than the most probable",
)


def _measure(scores: DataFrame, labels: DataFrame, regression: Regression) -> dict:
    """Compare every row of `pca/` with that of `labels/`, in one pass."""
    place = F.struct("label", "split")
    scored = scores.select("path", "pca", place.alias("place"))
    labelled = labels.select("path", place.alias("given"), "predicted", "probability")
    rows = scored.join(labelled, "path", "full")
    rows = rows.withColumn("other", ~F.col("place").eqNullSafe(F.col("given")))
    rows = rows.select("pca", "predicted", "probability", "other")
    measured = rows.mapInArrow(lambda bs: (_measure_batch(b, regression) for b in bs), "f binary")
    with settings(rows.sparkSession, {"spark.sql.execution.arrow.maxRecordsPerBatch": "1000"}):
        parts = pd.DataFrame([pickle.loads(row.f) for row in measured.collect()])
    sums = parts.sum()
    # A path with two rows in a table makes more rows here than there are.
    sums[_COUNTS[0]] += abs(parts["rows"].sum() - scores.count())
    return {**sums, "error": parts["error"].max()}


def _measure_batch(batch: pa.RecordBatch, regression: Regression) -> pa.RecordBatch:
    k = regression.coefficients.shape[1]
    of_width = pc.equal(pc.list_value_length(batch["pca"]), k).fill_null(False)
    paired = pc.and_(of_width, batch["predicted"].is_valid())
    both = batch.filter(paired)
    scores = np.asarray(both["pca"].flatten(), float).reshape(-1, k)
    others, error = regression.disagreement(scores, both)
    found = {
        "rows": len(batch),
        _COUNTS[0]: len(batch) - len(both),
        _COUNTS[1]: np.count_nonzero(both["other"]),
        _COUNTS[2]: others,
        "error": error,
    }
    return pa.record_batch({"f": [pickle.dumps(found)]})


def _figures(labels: DataFrame, seed: int) -> dict:
    """Return which and how many photographs were fitted and tested, and the figures of those."""
    parts = splits.divide(labels, seed)
    pairs = parts.test.groupBy("label", "predicted").count().toPandas()
    table = pairs.pivot(index="label", columns="predicted", values="count").fillna(0)
    table = table.reindex(columns=table.columns.union(table.index), fill_value=0)
    right = pd.Series({label: table.at[label, label] for label in table.index})
    f1 = 2 * right / (table.sum(axis=1) + table[table.index].sum())
    accuracy = right.sum() / max(parts.tested, 1)
    return {
        "fitted_on": parts.fitted_on,
        "tested_on": parts.tested_on,
        "fitted": parts.fitted,
        "tested": parts.tested,
        "accuracy": float(accuracy),
        "macro_f1": float(f1.mean()),
    }


def _unequal(found, recorded) -> float:
    return 0.0 if found == recorded else np.inf


def _nearest(run: Run, seed: int, voters: int) -> float:
    """Return the accuracy of nearest neighbours, of as many photographs as 06 holds."""
    parts = splits.divide(run.read_parquet("pca"), seed)
    fitted, tested = map(neighbors.to_driver, (parts.training, parts.test))
    return neighbors.accuracy(fitted, tested, voters)
