"""05: checks of a finished run, each with its figure, computed from what its folder holds.

Spark reads and joins; NumPy, not Spark ML, computes the numbers again in float64. Rows that fail
one check are left out of the later ones, so that a failure points at its own cause.
"""

import hashlib
import json
import pickle
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property, reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from fruits_lib import pca
from fruits_lib.backbones import BackboneSpec
from fruits_lib.errors import FruitsError, VerificationError
from fruits_lib.runs import Run
from fruits_lib.session import settings

SCORE_TOLERANCE = 1e-6  # scores are float32, each within 6e-8 of its value
ORTHONORMAL_TOLERANCE = 1e-8  # eigenvectors in float64 are within 1e-13
MODEL_TOLERANCE = 1e-12  # the same float64 numbers; Spark keeps eigenvalues as shares of their sum
SMALLEST_VARIANCE = 1e-6  # share of the first eigenvalue below which rounding counts too much
_AGAIN = "run 03_pick_k and 04_pca again"
_RESTART = "remove features/, rejects/ and checkpoint/ and run from 02_featurize on"
_WEIGHTS = f"check the backbone's weights, then {_RESTART}"
_BAD_ROWS = {  # images and rows that a run must not have, and what to do about them
    "images without a row": f"run 02_featurize again, or {_RESTART}",
    "images with several rows": _RESTART,
    "rows without an image": "run 01_load again, images may have arrived",
    "rows of another width": _RESTART,
    "rows not finite": _WEIGHTS,
    "rows all zero": _WEIGHTS,
    "rows and scores unmatched": "run 04_pca again",
    "rows of scores not k numbers": "run 04_pca again",
}
_ONE_ROW = "indexed = 1 and kept + rejected = 1"
_RULES = {  # on the number of rows of one path in index/, features/, rejects/ and pca/
    "images without a row": "indexed > 0 and kept + rejected = 0",
    "images with several rows": "indexed > 1 or kept + rejected > 1",
    "rows without an image": "indexed = 0 and kept + rejected > 0",
    "rows and scores unmatched": f"{_ONE_ROW} and scored != kept or indexed + kept + rejected = 0",
}
# How to merge figures of several batches of rows; all others are summed.
_MERGED = {"low": np.min, "high": np.max, "largest_score": np.max, "largest_error": np.max}


@dataclass(frozen=True)
class Check:
    """One property of a finished run."""

    name: str
    figure: int | float | None  # what was found; None if that is not finite
    shown: str  # the figure as text; "< bound / 10" for errors that vary from machine to machine
    bound: str  # what the figure is compared with
    passed: bool | None  # None: not judged, because rows that it needs failed an earlier check
    remedy: str

    def __str__(self) -> str:
        status = {True: "ok", False: "FAILED", None: "-"}[self.passed]
        note = {True: "", False: f"  {self.remedy}", None: "  not judged: rows failed above"}
        return f"{status:<7} {self.name:<32} {self.shown:>9}  ({self.bound}){note[self.passed]}"


@dataclass(frozen=True)
class Verification:
    """All checks of one run."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.passed is False]

    def __str__(self) -> str:
        passed = sum(check.passed is True for check in self.checks)
        return f"{passed} of {len(self.checks)} checks passed"

    def require(self) -> None:
        """Raise VerificationError, in one line, if a check failed."""
        if self.failed:
            found = "; ".join(f"{c.name} = {c.shown} ({c.bound}): {c.remedy}" for c in self.failed)
            total = len(self.checks)
            raise VerificationError(f"{len(self.failed)} of {total} checks failed: {found}")


@dataclass(eq=False)
class Results:
    """A finished run, read back from its folder; see `read_results`."""

    run: Run
    sha256: str  # of the backbone, from the manifest
    spectrum: pca.Spectrum
    choice: pca.Choice
    model: pca.Components  # from model/
    npz: pca.Components  # from model.npz

    @cached_property
    def measured(self) -> dict:
        """Counts of bad rows by kind, and statistics of the others, in one pass."""
        features, scores = self.run.read_table("features"), self.run.read_table("pca")
        index, rejects = self.run.read_table("index"), self.run.read_table("rejects")
        paths = _rows_per_path(index, features, rejects, scores)
        rules = (F.expr(f"count_if({rule})").alias(name) for name, rule in _RULES.items())
        matched = paths.filter(f"{_ONE_ROW} and kept = 1 and scored = 1").select("path", "scored")
        found = _measure(features, scores.join(matched, "path"), self.model)
        return found | paths.agg(*rules).first().asDict()

    @cached_property
    def row_checks(self) -> list[Check]:
        return [
            _at_most(0, name, self.measured[name], remedy) for name, remedy in _BAD_ROWS.items()
        ]


def read_results(run: Run) -> Results:
    """Read everything that notebooks 01 to 04 have written.

    Raises FruitsError if a part is missing, cannot be read, or has another width than the others.
    """
    with _reading(run, "manifest.json", "02_featurize"):
        recorded = run.manifest()["featurize"]
        width, sha256 = recorded["width"], recorded["weights_sha256"]
    with _reading(run, "spectrum/spectrum.npz", "03_pick_k"):
        values = run.read_npz("spectrum/spectrum.npz")
        spectrum, choice = pca.from_npz(pca.Spectrum, values), pca.from_npz(pca.Choice, values)
    with _reading(run, "model", "04_pca"):
        model = pca.components_of(PipelineModel.load(run.path("model")))
    with _reading(run, "model.npz", "04_pca"):
        npz = pca.from_npz(pca.Components, run.read_npz("model.npz"))
    widths = width, len(spectrum.mean), len(model.mean)
    if len(set(widths)) > 1:
        raise FruitsError(f"widths {widths} of features/, spectrum/, model/ differ: {_AGAIN}")
    return Results(run, sha256, spectrum, choice, model, npz)


def check_rows(results: Results) -> list[Check]:
    """Check that every image has one valid row, and that all rows are of one set of weights."""
    run = results.run
    with _reading(run, "backbone/backbone.json", "02_featurize"):
        entry = json.loads(run.read_bytes("backbone/backbone.json"))
        spec = BackboneSpec(**{field.name: entry[field.name] for field in fields(BackboneSpec)})
        of_json = entry["sha256"]
    of_file = hashlib.sha256(run.read_bytes(f"backbone/{spec.name}.tflite")).hexdigest()
    of_rows = run.read_table("features").select("weights_sha256").distinct().collect()
    weights = {results.sha256, of_json, of_file, *(row[0] for row in of_rows)}
    remedy = "features/ or backbone/ is another run's, give another run_dir"
    return [*results.row_checks, _at_most(1, "sets of weights", len(weights), remedy)]


def check_model(results: Results) -> list[Check]:
    """Check k, that `model/` and `model.npz` agree, and that ``C C^T = I`` for components C."""
    model, npz = results.model, results.npz
    pairs = zip(vars(model).values(), vars(npz).values(), strict=True)
    pairs = [(np.asarray(a, dtype=float), np.asarray(b, dtype=float)) for a, b in pairs]
    same = all(a.shape == b.shape for a, b in pairs)
    errors = [np.abs(a - b).max() / (np.abs(a).max() or 1) for a, b in pairs] if same else np.inf
    k, chosen = model.k, results.choice.k
    deviation = model.components @ model.components.T - np.eye(k)
    return [
        Check("k of the model", k, f"{k:,}", f"{chosen:,} chosen", k == chosen, _AGAIN),
        _at_most(MODEL_TOLERANCE, "model.npz from model/", errors, "run 04_pca again"),
        _at_most(ORTHONORMAL_TOLERANCE, "components from orthonormal", deviation, _AGAIN),
    ]


def check_scores(results: Results) -> list[Check]:
    """Check the scores of every image.

    With x a row of `features/` and s its row of `pca/`, mean, scale and components C (k, d) of the
    model, and the eigenvalues l in `spectrum/`, for components i and features j::

        s = C (scale (x - mean))    mean(s_i) = 0    var(s_i) = l_i
        sum_i var(s_i) / sum_j var(scale_j x_j) = explained variance

    Statistics of all rows are judged only if all rows are valid, the projection by the valid rows.
    """
    found, model, choice = results.measured, results.model, results.choice
    n, k, remedy = found["n"], model.k, f"features/ or pca/ has changed, {_AGAIN}"
    varying = int(np.count_nonzero(found["high"] > found["low"]))
    valid = varying > 0 and all(check.passed for check in results.row_checks)
    eigenvalues = results.spectrum.eigenvalues(choice.standardize)[:k]
    floor = np.maximum(eigenvalues, SMALLEST_VARIANCE * eigenvalues[0])
    with np.errstate(all="ignore"):  # 0 / 0 if no row is left; such a figure is not judged
        mean = found["sum"] / n  # (d + k,) of the scaled features, then of the scores
        variance = (found["squares"] - n * mean**2) / (n - 1)
        share = float(np.nan_to_num(variance[-k:].sum() / variance[:-k].sum()))
        of_means = mean[-k:] / np.sqrt(floor)
        of_variances = (variance[-k:] - eigenvalues) / floor
        of_scores = found["largest_error"] / np.maximum(found["largest_score"], np.sqrt(floor))
    of_width = f"of {len(model.mean):,}, at least 1"
    asked = choice.variance or 0
    bound = f"{choice.explained:.4f} recorded" + (f", {asked:g} asked for" if asked else "")
    as_recorded = abs(share - choice.explained) <= SCORE_TOLERANCE
    explained = as_recorded and share >= asked - SCORE_TOLERANCE if valid else None
    return [
        Check("features that vary", varying, f"{varying:,}", of_width, varying > 0, _WEIGHTS),
        Check("explained variance", share, f"{share:.4f}", bound, explained, remedy),
        _at_most(SCORE_TOLERANCE, "score means from 0", of_means, remedy, valid),
        _at_most(SCORE_TOLERANCE, "score variances from eigenvalues", of_variances, remedy, valid),
        _at_most(SCORE_TOLERANCE, "scores from projection", of_scores, remedy, n * varying > 0),
    ]


def record(run: Run, checks: list[Check]) -> Verification:
    """Write every check with its figure to the manifest."""
    result = Verification(tuple(checks))
    run.record(
        "verify",
        checks=[asdict(check) for check in checks],
        passed=sum(check.passed is True for check in checks),
        failed=len(result.failed),
    )
    return result


@contextmanager
def _reading(run: Run, name: str, stage: str):
    """Turn whatever is wrong with a part of the run into one line that names it."""
    if not run.exists(name):
        raise FruitsError(f"{run.path(name)} is missing: run {stage} first")
    try:
        yield
    except Exception as error:  # JSON, zip, NumPy and Hadoop each raise their own
        line = f"{type(error).__name__}: {getattr(error, 'java_exception', error)}".splitlines()[0]
        raise FruitsError(f"{run.path(name)} cannot be read ({line}): run {stage} again") from None


def _rows_per_path(index, features, rejects, scores) -> DataFrame:
    """Number of rows of each path in each table: path, indexed, kept, rejected, scored."""
    tables = {"indexed": index, "kept": features, "rejected": rejects, "scored": scores}
    rows = [
        table.select("path", *(F.lit(int(name == other)).alias(other) for other in tables))
        for name, table in tables.items()
    ]
    return reduce(DataFrame.union, rows).groupBy("path").agg(*(F.sum(n).alias(n) for n in tables))


def _measure(features: DataFrame, scores: DataFrame, model: pca.Components) -> dict:
    """Merge what `_measure_batch` finds in one pass; `scores` has at most one row per path."""
    rows = features.join(scores, "path", "left").select("features", "pca", "scored")
    measured = rows.mapInArrow(lambda bs: (_measure_batch(b, model) for b in bs), "found binary")
    # Several float64 copies of Spark's default of 10,000 wide rows would take 400 MB.
    with settings(rows.sparkSession, {"spark.sql.execution.arrow.maxRecordsPerBatch": "1000"}):
        parts = [pickle.loads(row.found) for row in measured.collect()]
    if not parts:
        raise FruitsError("features/ holds no row, at least 2 are needed: check the rejects")
    return {n: _MERGED.get(n, np.sum)([part[n] for part in parts], axis=0) for n in parts[0]}


def _measure_batch(batch: pa.RecordBatch, model: pca.Components) -> pa.RecordBatch:
    """Counts of bad rows; of the others, the range, and the sums that `check_scores` needs."""
    k, d = model.components.shape
    of_width, x = _vectors(batch["features"], d)
    _, s = _vectors(batch["pca"], k)
    scored = np.asarray(batch["scored"].is_valid())
    finite, nonzero = np.isfinite(x).all(axis=1), x.any(axis=1)
    valid, k_numbers = finite & nonzero, np.isfinite(s).all(axis=1)
    kept = valid & k_numbers
    scaled, s = (x[kept] - model.mean) * model.scale, s[kept]
    both = np.hstack([scaled, s])
    found = {
        "rows of another width": np.count_nonzero(~of_width),
        "rows not finite": np.count_nonzero(of_width & ~finite),
        "rows all zero": np.count_nonzero(~nonzero),
        "rows of scores not k numbers": np.count_nonzero(scored & ~k_numbers),
        "low": x[valid].min(axis=0, initial=np.inf),
        "high": x[valid].max(axis=0, initial=-np.inf),
        "n": len(both),
        "sum": both.sum(axis=0),
        "squares": np.square(both).sum(axis=0),
        "largest_score": np.abs(s).max(axis=0, initial=0),
        "largest_error": np.abs(scaled @ model.components.T - s).max(axis=0, initial=0),
    }
    return pa.record_batch({"found": [pickle.dumps(found)]})


def _vectors(column: pa.ListArray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of n rows have this width, (n,), and the rows, (n, width) float64, NaN for others."""
    right = pc.equal(pc.list_value_length(column), width).fill_null(False)
    vectors = np.full((len(column), width), np.nan)
    vectors[np.asarray(right)] = np.asarray(column.filter(right).flatten()).reshape(-1, width)
    return np.asarray(right), vectors


def _at_most(bound: float, name: str, errors, remedy: str, judged: bool = True) -> Check:
    """Check that errors, a number or an array, do not exceed a bound."""
    figure = np.abs(errors).max()
    passed = bool(figure <= bound) if judged else None
    if isinstance(figure, float):
        shown = f"< {bound / 10:g}" if figure < bound / 10 else f"{figure:.2g}"
        figure = float(figure) if np.isfinite(figure) else None  # JSON has no NaN
    else:
        figure, shown = int(figure), f"{figure:,}"
    return Check(name, figure, shown, f"at most {bound:g}", passed, remedy)
