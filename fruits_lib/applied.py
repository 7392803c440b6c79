"""apply: the checks of photographs that were scored by the model of another run.

As in `fruits_lib.verify`, Spark reads and joins, and NumPy computes every figure again.
"""

import pickle
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from fruits_lib import batches, pca
from fruits_lib.backbones import read_backbone
from fruits_lib.checks import (
    SCORE_TOLERANCE,
    SMALLEST_VARIANCE,
    Check,
    at_most,
    none_of,
    rows_per_path,
)
from fruits_lib.origin import check_batches, check_files, check_sample
from fruits_lib.regression import Regression
from fruits_lib.runs import Run
from fruits_lib.session import settings

AGAIN = "run `fruits apply` again (with --overwrite, if photographs are gone or have changed)"
_RULES = {  # on the number of rows of one path in each table
    "photographs without a row, or with several": "index != 1 or features + rejects != 1",
    "features without scores, or scores without": "features != pca",
    "scores without a label, or labels without": "pca != labels",
}


def check(known: Run, run: Run, network: str, seed: int) -> list[Check]:
    """Check the photographs of a run, its rows, and what the model of another run made of them.

    With x a row of `features/`, its scores s and its label are::

        s = C (scale (x - mean))    label = argmax(B s + b)    probability = max(softmax(B s + b))

    of `model.npz` (mean, scale, components C) and `classifier.npz` (coefficients B, intercepts b)
    of the known run.

    Parameters
    ----------
    known, run : Run
        The run whose model was applied, and that of the new photographs.
    network : str
        The sha256 of the known run's network.
    seed : int
        Of the sample that is computed again.
    """
    backbone = read_backbone(run)
    names = ["index", "features", "rejects", "pca", *["labels"] * run.exists("labels")]
    tables = {name: run.read_parquet(name) for name in names}
    weights = tables["features"].select("weights_sha256").distinct().collect()
    weights = {network, backbone.sha256, *(row.weights_sha256 for row in weights)}
    model = pca.from_npz(pca.Components, known.read_npz("model.npz"))
    classifier = None
    if "labels" in tables:
        classifier = Regression(**known.read_npz("classifier.npz"))
    return [
        *check_files(run, again=AGAIN),
        check_batches(run, batches.digests(batches.read(run, "features")), AGAIN),
        *check_sample(run, backbone.content, backbone.spec.input_size, seed, AGAIN),
        *_check_rows(tables),
        at_most(1, "sets of weights", len(weights), "give another folder for the results"),
        *_check_numbers(tables, model, classifier),
    ]


def unchanged(known: Run, same: bool) -> Check:
    """Check that the model of the known run is still the one that was opened."""
    return none_of("models that changed meanwhile", [] if same else [known.uri], AGAIN)


def _check_rows(tables: dict[str, DataFrame]) -> list[Check]:
    paths = rows_per_path(tables)
    rules = {
        name: rule for name, rule in _RULES.items() if "labels" not in rule or "labels" in tables
    }
    found = paths.agg(*(F.expr(f"count_if({rule})").alias(name) for name, rule in rules.items()))
    return [at_most(0, name, value, AGAIN) for name, value in found.first().asDict().items()]


def _check_numbers(
    tables: dict[str, DataFrame], model: pca.Components, classifier: Regression | None
) -> list[Check]:
    """Check every score, and the labels if there are any, in one pass."""
    rows = tables["features"].select("path", "features").join(tables["pca"], "path")
    columns = ["features", "pca"]
    if classifier:
        labels = tables["labels"].select("path", "predicted", "probability")
        rows, columns = rows.join(labels, "path"), [*columns, "predicted", "probability"]
    rows = rows.select(columns)
    measured = rows.mapInArrow(
        lambda batches: (_measure(batch, model, classifier) for batch in batches), "found binary"
    )
    # Several float64 copies of Spark's default of 10,000 wide rows would take 400 MB.
    with settings(rows.sparkSession, {"spark.sql.execution.arrow.maxRecordsPerBatch": "1000"}):
        parts = [pickle.loads(row.found) for row in measured.collect()]
    found = {name: np.array([part[name] for part in parts]) for name in (parts or [{}])[0]}
    bad, other = (int(found[n].sum()) if parts else 0 for n in ("bad", "other labels"))
    floor = np.sqrt(np.maximum(model.eigenvalues, SMALLEST_VARIANCE * model.eigenvalues[0]))
    of_scores = of_probabilities = 0.0
    if parts:
        largest = np.maximum(found["largest"].max(axis=0), floor)
        of_scores = found["error"].max(axis=0) / largest
        of_probabilities = found["probability error"].max()
    checks = [
        at_most(0, "rows of another width or not finite", bad, AGAIN),
        at_most(SCORE_TOLERANCE, "scores unlike the projection", of_scores, AGAIN),
    ]
    if classifier:
        checks += [
            at_most(0, "labels other than the most probable", other, AGAIN),
            at_most(SCORE_TOLERANCE, "probabilities unlike softmax", of_probabilities, AGAIN),
        ]
    return checks


def _measure(
    batch: pa.RecordBatch, model: pca.Components, classifier: Regression | None
) -> pa.RecordBatch:
    """Compare a batch of scores and labels with those that NumPy computes from the features."""
    k, d = model.components.shape
    widths = (pc.list_value_length(batch[name]) for name in ("features", "pca"))
    right = reduce(pc.and_, (pc.equal(n, w) for n, w in zip(widths, (d, k), strict=True)))
    sound = batch.filter(right.fill_null(False))
    x, s = (
        np.asarray(sound[name].flatten(), float).reshape(-1, width)
        for name, width in (("features", d), ("pca", k))
    )
    finite = np.isfinite(x).all(axis=1) & np.isfinite(s).all(axis=1)
    sound, x, s = sound.filter(pa.array(finite)), x[finite], s[finite]
    projected = (x - model.mean) * model.scale @ model.components.T
    found = {
        "bad": len(batch) - len(sound),
        "largest": np.abs(s).max(axis=0, initial=0),
        "error": np.abs(projected - s).max(axis=0, initial=0),
        "other labels": 0,
        "probability error": 0.0,
    }
    if classifier:
        others, error = classifier.disagreement(projected, sound)
        found["other labels"], found["probability error"] = others, error
    return pa.record_batch({"found": [pickle.dumps(found)]})
