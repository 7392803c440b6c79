"""Check a finished run against what is read back from its folder, with a figure for each check.

Spark reads and joins; the numbers are computed again by NumPy in float64, not by Spark ML. A row
that fails one check is left out of the later ones, so that a failure points at its own cause.
"""

import hashlib
import json
import pickle
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import reduce

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
ORTHONORMAL_TOLERANCE = 1e-8  # eigenvectors in float64 come within 1e-13
MODEL_TOLERANCE = 1e-12  # the same float64 numbers; Spark keeps eigenvalues as shares of their sum
SMALLEST_VARIANCE = 1e-6  # of the first eigenvalue: its rounding error is much of smaller ones
_AGAIN = "run 03_pick_k and 04_pca again"
_AFRESH = "remove features/, rejects/ and checkpoint/ and run from 02_featurize on"
_WEIGHTS = f"check the backbone's weights, then {_AFRESH}"
_NONE_ALLOWED = {  # what is counted, and what to do if there is any
    "images without a row": f"run 02_featurize again, or {_AFRESH}",
    "images with several rows": _AFRESH,
    "rows without an image": "run 01_load again, images may have arrived",
    "rows of another width": _AFRESH,
    "rows not finite": _WEIGHTS,
    "rows all zero": _WEIGHTS,
    "rows and scores unmatched": "run 04_pca again",
    "rows of scores not k numbers": "run 04_pca again",
}
_ONE_ROW = "indexed = 1 and kept + rejected = 1"
_RULES = {  # for a path that so many rows of index/, features/, rejects/ and pca/ are of
    "images without a row": "indexed > 0 and kept + rejected = 0",
    "images with several rows": "indexed > 1 or kept + rejected > 1",
    "rows without an image": "indexed = 0 and kept + rejected > 0",
    "rows and scores unmatched": f"{_ONE_ROW} and scored != kept or indexed + kept + rejected = 0",
}
# What of two groups of rows does not simply add up.
_MERGED = {"low": np.min, "high": np.max, "largest_score": np.max, "largest_error": np.max}


@dataclass(frozen=True)
class Check:
    """One property of a finished run.

    Attributes
    ----------
    name, bound, mend : str
        What is checked, what the figure is held against, what to do when it fails.
    figure, shown : int, float or None; str
        What was found, None if no finite number; the same as text. Rounding errors differ between
        machines: below a tenth of their bound, the text says no more than that.
    passed : bool or None
        None: not judged, because rows that it needs failed an earlier check.
    """

    name: str
    figure: int | float | None
    shown: str
    bound: str
    passed: bool | None
    mend: str

    def __str__(self) -> str:
        status = {True: "ok", False: "FAILED", None: "-"}[self.passed]
        note = {True: "", False: f"  {self.mend}", None: "  not judged: rows failed above"}
        return f"{status:<7} {self.name:<32} {self.shown:>9}  ({self.bound}){note[self.passed]}"


@dataclass(frozen=True)
class Verification:
    """All checks of one run; its text is a table with a line for each."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.passed is False]

    def __str__(self) -> str:
        passed = sum(check.passed is True for check in self.checks)
        table = "\n".join(map(str, self.checks))
        return f"{table}\n\n{passed} of {len(self.checks)} checks passed"

    def require(self) -> None:
        """Raise VerificationError, in one line, if a check failed."""
        if self.failed:
            found = "; ".join(f"{c.name} = {c.shown} ({c.bound}): {c.mend}" for c in self.failed)
            total = len(self.checks)
            raise VerificationError(f"{len(self.failed)} of {total} checks failed: {found}")


def verify(run: Run) -> Verification:
    """Check a finished run against what its folder holds, and record every figure.

    With x a row of `features/` and s its row of `pca/`, mean, scale and C (k, d) from `model/`, and
    the eigenvalues l in `spectrum/`, what is checked of components i and features j is::

        C C^T = I                   sum_i var(s_i) / sum_j var(scale_j x_j) = explained variance
        s = C (scale (x - mean))    mean(s_i) = 0    var(s_i) = l_i

    Parameters
    ----------
    run : Run
        Notebooks 01 to 04 have written it.

    Returns
    -------
    Verification
        Recorded in the manifest too, failed or not; `Verification.require` raises on failure.

    Raises
    ------
    FruitsError
        A part of the run is missing, cannot be read, or is of another width than the others.
    """
    started = time.monotonic()
    with _reading(run, "manifest.json", "02_featurize"):
        recorded = run.manifest()["featurize"]
        width, sha256 = recorded["width"], recorded["weights_sha256"]
    with _reading(run, "spectrum/spectrum.npz", "03_pick_k"):
        spectrum, choice = pca.spectrum_from_npz(run.read_bytes("spectrum/spectrum.npz"))
    with _reading(run, "model", "04_pca"):
        model = pca.components_of(PipelineModel.load(run.path("model")))
    with _reading(run, "model.npz", "04_pca"):
        npz = pca.components_from_npz(run.read_bytes("model.npz"))
    widths = width, len(spectrum.mean), len(model.mean)
    if len(set(widths)) > 1:
        raise FruitsError(f"widths {widths} of features/, spectrum/, model/ differ: {_AGAIN}")

    features, scores = run.read_table("features"), run.read_table("pca")
    paths = _rows_per_path(run.read_table("index"), features, run.read_table("rejects"), scores)
    rules = (F.expr(f"count_if({rule})").alias(name) for name, rule in _RULES.items())
    matched = paths.filter(f"{_ONE_ROW} and kept = 1 and scored = 1").select("path", "scored")
    found = _measure(features, scores.join(matched, "path"), model)
    found |= paths.agg(*rules).first().asDict()
    rows = [_at_most(0, name, found[name], mend) for name, mend in _NONE_ALLOWED.items()]
    checks = (
        *rows,
        _weights_check(run, features, sha256),
        *_model_checks(model, npz, choice),
        *_score_checks(found, model, spectrum, choice, all(check.passed for check in rows)),
    )
    result = Verification(checks)
    run.record(
        "verify",
        checks=[asdict(check) for check in checks],
        passed=sum(check.passed is True for check in checks),
        failed=len(result.failed),
        seconds=round(time.monotonic() - started, 1),
    )
    return result


@contextmanager
def _reading(run: Run, name: str, stage: str):
    """Turn whatever is wrong with a part of the run into one line that names it."""
    if not run.exists(name):
        raise FruitsError(f"{run.path(name)} is missing: run {stage} first")
    try:
        yield
    except Exception as error:  # JSON, zip, NumPy and Hadoop have each their own
        line = f"{type(error).__name__}: {getattr(error, 'java_exception', error)}".splitlines()[0]
        raise FruitsError(f"{run.path(name)} cannot be read ({line}): run {stage} again") from None


def _rows_per_path(index, features, rejects, scores) -> DataFrame:
    """Number of rows that each table has of a path: path, indexed, kept, rejected, scored."""
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
    # Features are wide: Spark's 10,000 rows, in float64 and several times, would be 400 MB.
    with settings(rows.sparkSession, {"spark.sql.execution.arrow.maxRecordsPerBatch": "1000"}):
        parts = [pickle.loads(row.found) for row in measured.collect()]
    if not parts:
        raise FruitsError("features/ holds no row, at least 2 are needed: check the rejects")
    return {n: _MERGED.get(n, np.sum)([part[n] for part in parts], axis=0) for n in parts[0]}


def _measure_batch(batch: pa.RecordBatch, model: pca.Components) -> pa.RecordBatch:
    """Counts of bad rows, the range of the sound ones, and sums for what `_score_checks` needs."""
    k, d = model.components.shape
    of_width, x = _vectors(batch["features"], d)
    _, s = _vectors(batch["pca"], k)
    scored = np.asarray(batch["scored"].is_valid())
    finite, nonzero = np.isfinite(x).all(axis=1), x.any(axis=1)
    sound, k_numbers = finite & nonzero, np.isfinite(s).all(axis=1)
    kept = sound & k_numbers
    scaled, s = (x[kept] - model.mean) * model.scale, s[kept]
    both = np.hstack([scaled, s])
    found = {
        "rows of another width": np.count_nonzero(~of_width),
        "rows not finite": np.count_nonzero(of_width & ~finite),
        "rows all zero": np.count_nonzero(~nonzero),
        "rows of scores not k numbers": np.count_nonzero(scored & ~k_numbers),
        "low": x[sound].min(axis=0, initial=np.inf),
        "high": x[sound].max(axis=0, initial=-np.inf),
        "n": len(both),
        "sum": both.sum(axis=0),
        "squares": np.square(both).sum(axis=0),
        "largest_score": np.abs(s).max(axis=0, initial=0),
        "largest_error": np.abs(scaled @ model.components.T - s).max(axis=0, initial=0),
    }
    return pa.RecordBatch.from_pylist([{"found": pickle.dumps(found)}])


def _vectors(column: pa.ListArray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of n rows have so many values, (n,); all rows in float64, (n, width), others NaN."""
    right = pc.fill_null(pc.equal(pc.list_value_length(column), width), False)
    vectors = np.full((len(column), width), np.nan)
    vectors[np.asarray(right)] = np.asarray(column.filter(right).flatten()).reshape(-1, width)
    return np.asarray(right), vectors


def _weights_check(run: Run, features: DataFrame, recorded: str) -> Check:
    with _reading(run, "backbone/backbone.json", "02_featurize"):
        entry = json.loads(run.read_bytes("backbone/backbone.json"))
        spec = BackboneSpec(**{field.name: entry[field.name] for field in fields(BackboneSpec)})
        of_json = entry["sha256"]
    of_file = hashlib.sha256(run.read_bytes(f"backbone/{spec.name}.tflite")).hexdigest()
    of_rows = {row[0] for row in features.select("weights_sha256").distinct().collect()}
    mend = "features/ or backbone/ is another run's, give another run_dir"
    return _at_most(1, "sets of weights", len({recorded, of_json, of_file} | of_rows), mend)


def _model_checks(model: pca.Components, npz: pca.Components, choice: pca.Choice) -> list[Check]:
    pairs = zip(vars(model).values(), vars(npz).values(), strict=True)
    pairs = [(np.asarray(a, dtype=float), np.asarray(b, dtype=float)) for a, b in pairs]
    same = all(a.shape == b.shape for a, b in pairs)
    apart = [np.abs(a - b).max() / (np.abs(a).max() or 1) for a, b in pairs] if same else np.inf
    k, skew = model.k, model.components @ model.components.T - np.eye(model.k)
    return [
        Check("k of the model", k, f"{k:,}", f"{choice.k:,} chosen", k == choice.k, _AGAIN),
        _at_most(MODEL_TOLERANCE, "model.npz from model/", apart, "run 04_pca again"),
        _at_most(ORTHONORMAL_TOLERANCE, "components from orthonormal", skew, _AGAIN),
    ]


def _score_checks(found, model, spectrum, choice, complete: bool) -> list[Check]:
    """Statistics of all rows are judged if all rows are sound, the projection by those that are."""
    n, k, mend = found["n"], model.k, f"features/ or pca/ has changed, {_AGAIN}"
    varying = int(np.count_nonzero(found["high"] > found["low"]))
    complete = complete and varying > 0
    eigenvalues = spectrum.eigenvalues(choice.standardize)[:k]
    floor = np.maximum(eigenvalues, SMALLEST_VARIANCE * eigenvalues[0])
    with np.errstate(all="ignore"):  # 0 / 0 where no row is left: such a figure is not judged
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
    explained = bool(as_recorded and share >= asked - SCORE_TOLERANCE) if complete else None
    return [
        Check("features that vary", varying, f"{varying:,}", of_width, varying > 0, _WEIGHTS),
        Check("explained variance", share, f"{share:.4f}", bound, explained, mend),
        _at_most(SCORE_TOLERANCE, "score means from 0", of_means, mend, complete),
        _at_most(SCORE_TOLERANCE, "score variances from eigenvalues", of_variances, mend, complete),
        _at_most(SCORE_TOLERANCE, "scores from projection", of_scores, mend, n * varying > 0),
    ]


def _at_most(bound: float, name: str, errors, mend: str, judged: bool = True) -> Check:
    """The check that no error (a number or an array of them) is beyond a bound."""
    figure = np.abs(errors).max()
    passed = bool(figure <= bound) if judged else None
    if isinstance(figure, float):
        shown = f"< {bound / 10:g}" if figure < bound / 10 else f"{figure:.2g}"
        figure = float(figure) if np.isfinite(figure) else None  # JSON has no NaN
    else:
        figure, shown = int(figure), f"{figure:,}"
    return Check(name, figure, shown, f"at most {bound:g}", passed, mend)
