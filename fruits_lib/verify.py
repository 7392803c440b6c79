"""05: checks of a finished run, each with its figure, computed from what its folder holds.

Spark reads and joins; NumPy, not Spark ML, computes the numbers again in float64. Rows that fail
one check are left out of the later ones, so that a failure points at its own cause.
"""

import hashlib
import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from fruits_lib import batches, moments, pca, scores_csv
from fruits_lib.backbones import Backbone
from fruits_lib.checks import (
    SCORE_TOLERANCE,
    SMALLEST_VARIANCE,
    Check,
    Verification,
    at_most,
    difference,
    none_of,
    reading,
    rows_per_path,
)
from fruits_lib.errors import FruitsError
from fruits_lib.models import load_model
from fruits_lib.networks import BackboneSpec
from fruits_lib.origin import check_backbone, check_batches, check_files, check_sample, new_seed
from fruits_lib.runs import Run
from fruits_lib.session import settings
from fruits_lib.stages import STAGES, TABLES, WRITTEN_BY, needed

ORTHONORMAL_TOLERANCE = 1e-8  # eigenvectors in float64 are within 1e-13
SPECTRUM_TOLERANCE = 1e-9  # of the largest; partitions are merged in another order each time
MODEL_TOLERANCE = 1e-12  # the same float64 numbers; Spark keeps eigenvalues as shares of their sum
_SPECTRA = ("raw", "standardized")
_AGAIN = "run 03_pick_k and 04_pca again"
_ROWS = (
    "run 02_featurize again, it computes only what is missing or damaged, then 03_pick_k and 04_pca"
)
_WEIGHTS = "check the backbone's weights, then give another run_dir"
_BAD_ROWS = {  # photographs and rows that a run must not have, and what to do about them
    "photographs without a row": _ROWS,
    "photographs with several rows": _ROWS,
    "rows without a photograph": _ROWS,
    "feature rows of another width": _ROWS,
    "feature rows not finite": _ROWS,
    "feature rows all zero": _WEIGHTS,
    "features without scores, or scores without": "run 04_pca again",
    "score rows of another width or not finite": "run 04_pca again",
}
_CSV = "rows of pca_csv/ unlike pca/"
_ONE_ROW = "indexed = 1 and kept + rejected = 1"
_RULES = {  # on the number of rows of one path in index/, features/, rejects/ and pca/
    "photographs without a row": "indexed > 0 and kept + rejected = 0",
    "photographs with several rows": "indexed > 1 or kept + rejected > 1",
    "rows without a photograph": "indexed = 0 and kept + rejected > 0",
    "features without scores, or scores without": (
        f"{_ONE_ROW} and scored != kept or indexed + kept + rejected = 0"
    ),
}
# How to merge figures of several batches of rows; all others are summed.
_MERGED = {"low": np.min, "high": np.max, "largest_score": np.max, "largest_error": np.max}


@dataclass(eq=False)
class Results:
    """A finished run, read back from its folder; see `read_results`."""

    run: Run
    counts: dict[str, Row]  # values that are not null, by table and column; see `_in_features`
    digests: dict[int, str]  # of the rows of features/, by batch
    seed: int  # of the sample that is computed again
    weights: set[str]  # sha256 of the backbone, as recorded, of the file and of every row
    described: dict  # backbone.json
    network: Backbone
    spectrum: pca.Spectrum
    choice: pca.Choice
    components: dict  # components.npz
    model: pca.Components  # from model/
    npz: dict  # model.npz

    @cached_property
    def measured(self) -> dict:
        """Counts of bad rows by kind, and statistics of the others, in one pass."""
        features, scores = self.run.read_table("features"), self.run.read_table("pca")
        index, rejects = self.run.read_table("index"), self.run.read_table("rejects")
        tables = {"indexed": index, "kept": features, "rejected": rejects, "scored": scores}
        paths = rows_per_path(tables).cache()  # asked twice, of four tables
        rules = (F.expr(f"count_if({rule})").alias(name) for name, rule in _RULES.items())
        matched = paths.filter(f"{_ONE_ROW} and kept = 1 and scored = 1").select("path", "scored")
        features = features.withColumn("fitted", self.fitted)
        found = _measure(features, scores.join(matched, "path"), self.model)
        found |= paths.agg(*rules).first().asDict()
        paths.unpersist()
        return found

    @property
    def fitted(self) -> Column:
        """Whether the model is fitted on a row of features/."""
        return _of_split(self.spectrum.fit_split)

    @cached_property
    def row_checks(self) -> list[Check]:
        return [at_most(0, name, self.measured[name], remedy) for name, remedy in _BAD_ROWS.items()]

    @cached_property
    def again(self) -> pca.Spectrum:
        """The spectrum of the fitted features, computed again."""
        return pca.spectrum(moments.compute(self.run.read_table("features").filter(self.fitted)))

    @property
    def varying(self) -> int:
        """How many features vary."""
        return int(np.count_nonzero(self.measured["high"] > self.measured["low"]))

    @property
    def valid(self) -> bool:
        """Whether statistics of all rows can be judged."""
        return self.varying > 0 and all(check.passed for check in self.row_checks)


def read_results(run: Run) -> Results:
    """Read everything that notebooks 01 to 04 have written.

    Spark keeps the tables, which several checks ask, until `record`. Raises FruitsError if a part
    is missing, cannot be read, or has another width than the others.
    """
    counts, digests, more = {}, {}, {"features": _in_features(run)}
    run.spark.catalog.clearCache()  # of what an earlier call kept: the files may have changed
    for name in (name for name in TABLES if WRITTEN_BY[name] in needed("verify")):
        with reading(run, name, STAGES[WRITTEN_BY[name]]):
            table = run.read_table(name).persist()  # every column of every file
            asked = [F.count(c).alias(c) for c in table.columns]
            if name == "features":
                digests = batches.digests(table)
            counts[name] = table.agg(*asked, *more.get(name, [])).first()
    return Results(run, counts, digests, new_seed(), **read_files(run, counts["features"].weights))


def read_files(run: Run, weights: Sequence[str] = ()) -> dict:
    """Return the small files of a run, as `Results` names them.

    `weights` are those of the rows of `features/`. Raises FruitsError as `read_results` does.
    """
    recorded = run.require("featurize")
    with reading(run, "backbone/backbone.json", "02_featurize"):
        described = json.loads(run.read_bytes("backbone/backbone.json"))
        spec = BackboneSpec.of(described)
        content = run.read_bytes(f"backbone/{spec.name}.tflite")
        network = Backbone(spec, described["width"], described["sha256"], content)
        sha256 = hashlib.sha256(content).hexdigest()
        weights = {recorded["weights_sha256"], network.sha256, sha256, *weights}
    with reading(run, "spectrum/spectrum.npz", "03_pick_k"):
        values = run.read_npz("spectrum/spectrum.npz")
        spectrum, choice = pca.from_npz(pca.Spectrum, values), pca.from_npz(pca.Choice, values)
    with reading(run, "spectrum/components.npz", "03_pick_k"):
        components = run.read_npz("spectrum/components.npz")
    with reading(run, "model", "04_pca"):
        model = pca.components_of(load_model(run))
    with reading(run, "model.npz", "04_pca"):
        npz = run.read_npz("model.npz")
    widths = recorded["width"], len(spectrum.mean), len(model.mean)
    if len(set(widths)) > 1:
        raise FruitsError(f"widths {widths} of features/, spectrum/, model/ differ: {_AGAIN}")
    return {
        "weights": weights,
        "described": described,
        "network": network,
        "spectrum": spectrum,
        "choice": choice,
        "components": components,
        "model": model,
        "npz": npz,
    }


def _in_features(run: Run) -> list[Column]:
    """What else to ask of `features/` in the pass that counts its values."""
    fit_split = run.require("pick_k").get("fit_split")
    return [
        F.collect_set(F.ifnull("weights_sha256", F.lit("none"))).alias("weights"),
        F.count_if("truncated").alias("cut_off"),
        F.count_if(_of_split(fit_split)).alias("fitted"),
    ]


def _of_split(split: str | None) -> Column:
    return F.col("split").eqNullSafe(split) if split else F.lit(True)


def check_photographs(results: Results) -> list[Check]:
    """Check that every file is accounted for, and that features are what 02 computed of them.

    The digests are of every row; a sample of photographs is computed again.
    """
    run, network = results.run, results.network
    return [
        *check_files(run, results.counts),
        check_batches(run, results.digests),
        check_backbone(run, results.described, network),
        *check_sample(run, network.content, network.spec.input_size, results.seed),
    ]


def check_rows(results: Results) -> list[Check]:
    """Check that every image has one valid row, and that all rows are of one set of weights.

    `pca_csv/` must hold the rows of `pca/`, and be there if it was asked for alone.
    """
    remedy = "features/ or backbone/ is another run's, give another run_dir"
    checks = [*results.row_checks, at_most(1, "sets of weights", len(results.weights), remedy)]
    if results.run.require("pca").get("csv"):
        with reading(results.run, scores_csv.FOLDER, "04_pca"):
            differing = scores_csv.differing(results.run, results.model.k)
        checks.append(at_most(0, _CSV, differing, "run 04_pca again"))
    elif results.run.exists(scores_csv.FOLDER):
        found = [f"{scores_csv.FOLDER}/ is of another result than pca/"]
        checks.append(none_of(_CSV, found, "run 04_pca again"))
    return checks


def check_model(results: Results) -> list[Check]:
    """Check k, that the files of the model agree, and that ``C C^T = I`` for components C.

    Moments and eigenvalues must be those that the fitted features give when they are computed
    again. They are judged only if all rows are valid.
    """
    model, valid = results.model, results.valid
    derived = {name: getattr(model, name) for name in ("scale", "explained_variance_ratio")}
    k, chosen = model.k, results.choice.k
    deviation = model.components @ model.components.T - np.eye(k)
    ends = model.components.max(axis=1), -model.components.min(axis=1)
    of_moments = _unlike_features(results) if valid else 0.0
    return [
        Check("k of the model", k, f"{k:,}", f"{chosen:,} chosen", k == chosen, _AGAIN),
        none_of("figures of k unlike the manifest's", _wrong_choices(results), _AGAIN),
        at_most(
            MODEL_TOLERANCE,
            "components.npz unlike model/",
            difference(vars(model), results.components),
            _AGAIN,
        ),
        at_most(
            MODEL_TOLERANCE,
            "model.npz unlike model/",
            difference({**vars(model), **derived}, results.npz),
            "run 04_pca again",
        ),
        at_most(ORTHONORMAL_TOLERANCE, "components not perpendicular, length 1", deviation, _AGAIN),
        at_most(
            0,
            "components with a negative largest loading",
            np.count_nonzero(~(ends[0] >= ends[1])),
            _AGAIN,
        ),
        at_most(
            SPECTRUM_TOLERANCE, "spectrum or model unlike the features", of_moments, _AGAIN, valid
        ),
    ]


def _unlike_features(results: Results) -> float:
    """Return the largest difference of spectrum and model from those of the fitted features."""
    if results.measured["n"] < 2:  # no split is of this name
        return np.inf
    spectrum, model = results.spectrum, results.model
    found = results.again
    of_spectrum = {name: getattr(found, name) for name in ("n", "mean", "std", *_SPECTRA)}
    of_model = {
        "mean": found.mean,
        "std": found.std,
        "eigenvalues": found.eigenvalues(model.standardize)[: model.k],
    }
    return max(difference(of_spectrum, vars(spectrum)), difference(of_model, vars(model)))


def _wrong_choices(results: Results) -> list[str]:
    """Return what the manifest says of k that does not follow from the spectrum."""
    picked, reduced = results.run.require("pick_k"), results.run.require("pca")
    asked = {"variance": picked.get("variance", 0), "k": picked.get("k", 0)}
    wrong = []
    for standardize, name in enumerate(_SPECTRA):
        choice = pca.choose(results.spectrum, standardize, **asked)
        entries = [picked[name]] + [reduced] * (picked["standardize"] == standardize)
        wrong += [
            f"{name}: {entry['k']} components explain {entry['explained_variance']:.4f} recorded, "
            f"{choice.k} explain {choice.explained:.4f} found"
            for entry in entries
            if entry["k"] != choice.k
            or not abs(entry["explained_variance"] - choice.explained) <= SCORE_TOLERANCE
        ]
    if not reduced["standardize"] == picked["standardize"] == results.choice.standardize:
        wrong.append("standardize differs")
    chosen, spectrum = results.choice, results.spectrum
    expected = {
        "variance": chosen.variance,
        "k": chosen.k if chosen.variance is None else None,
        "fit_split": spectrum.fit_split,
        "warning": spectrum.warning or None,
    }
    return wrong + [f"{name} differs" for name, v in expected.items() if picked.get(name) != v]


def check_scores(results: Results) -> list[Check]:
    """Check the scores of every image.

    With x a row of `features/` and s its row of `pca/`, mean, scale and components C (k, d) of the
    model, and the eigenvalues l in `spectrum/`, for components i and features j::

        s = C (scale (x - mean))    mean(s_i) = 0    var(s_i) = l_i
        sum_i var(s_i) / sum_j var(scale_j x_j) = explained variance

    Means and variances are those of the split on which the model is fitted, the projection is that
    of all rows. Statistics are judged only if all rows are valid, the projection by the valid rows.
    """
    found, model, choice = results.measured, results.model, results.choice
    n, k, remedy = found["n"], model.k, f"features/ or pca/ has changed, {_AGAIN}"
    varying, valid = results.varying, results.valid
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
    projected = found["projected"] * varying  # rows, 0 if there is nothing to judge
    as_recorded = abs(share - choice.explained) <= SCORE_TOLERANCE
    explained = as_recorded and share >= asked - SCORE_TOLERANCE if valid else None
    return [
        Check("features that vary", varying, f"{varying:,}", of_width, varying > 0, _WEIGHTS),
        Check("explained variance", share, f"{share:.4f}", bound, explained, remedy),
        at_most(SCORE_TOLERANCE, "score means unlike 0", of_means, remedy, valid),
        at_most(SCORE_TOLERANCE, "score variances unlike eigenvalues", of_variances, remedy, valid),
        at_most(SCORE_TOLERANCE, "scores unlike the projection", of_scores, remedy, projected > 0),
    ]


def record(
    run: Run, checks: list[Check], of_classifier: Sequence[Check] = (), sample_seed: int = 0
) -> Verification:
    """Write every check with its figure to the manifest, those of 06 to what 06 recorded.

    `sample_seed` chose the photographs that were computed again.
    """
    run.spark.catalog.clearCache()
    with run.step("verify") as entry:
        if of_classifier:
            run.amend("classify", checks=[asdict(check) for check in of_classifier])
        entry.update(
            sample_seed=sample_seed,
            checks=[asdict(check) for check in checks],
            passed=sum(check.passed is True for check in checks),
            failed=len(Verification(tuple(checks)).failed),
        )
    return Verification((*checks, *of_classifier))


def _measure(features: DataFrame, scores: DataFrame, model: pca.Components) -> dict:
    """Merge what `_measure_batch` finds in one pass; `scores` has at most one row per path."""
    rows = features.join(scores, "path", "left").select("features", "pca", "scored", "fitted")
    measured = rows.mapInArrow(lambda bs: (_measure_batch(b, model) for b in bs), "found binary")
    # Several float64 copies of Spark's default of 10,000 wide rows would take 400 MB.
    with settings(rows.sparkSession, {"spark.sql.execution.arrow.maxRecordsPerBatch": "1000"}):
        parts = [pickle.loads(row.found) for row in measured.collect()]
    if not parts:
        raise FruitsError("features/ holds no row, at least 2 are needed: run 02_featurize again")
    return {n: _MERGED.get(n, np.sum)([part[n] for part in parts], axis=0) for n in parts[0]}


def _measure_batch(batch: pa.RecordBatch, model: pca.Components) -> pa.RecordBatch:
    """Counts of bad rows; of the others, what `check_scores` needs.

    The range and the sums are those of rows on which the model is fitted, the errors those of all.
    """
    k, d = model.components.shape
    of_width, x = _vectors(batch["features"], d)
    _, s = _vectors(batch["pca"], k)
    scored = np.asarray(batch["scored"].is_valid())
    fitted = np.asarray(batch["fitted"])
    finite, nonzero = np.isfinite(x).all(axis=1), x.any(axis=1)
    valid, k_numbers = finite & nonzero, np.isfinite(s).all(axis=1)
    kept = valid & k_numbers
    scaled, s = (x[kept] - model.mean) * model.scale, s[kept]
    both = np.hstack([scaled, s])[fitted[kept]]
    found = {
        "feature rows of another width": np.count_nonzero(~of_width),
        "feature rows not finite": np.count_nonzero(of_width & ~finite),
        "feature rows all zero": np.count_nonzero(~nonzero),
        "score rows of another width or not finite": np.count_nonzero(scored & ~k_numbers),
        "low": x[valid & fitted].min(axis=0, initial=np.inf),
        "high": x[valid & fitted].max(axis=0, initial=-np.inf),
        "n": len(both),
        "projected": len(s),
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
