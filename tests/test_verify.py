"""Checks of tables and model pass on a healthy run, and each alone fails when it is broken on disk.

The features are random vectors: `test_proof.py` has the checks that look at photographs.
"""

import hashlib
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline import entry as entry_of
from pipeline import pick_k, transform, write_scores

from fruits_lib import pca, verify
from fruits_lib.errors import FruitsError, VerificationError
from fruits_lib.runs import open_run

WIDTH = 64  # more than there are images, so that some directions hold no variance at all
BACKBONE = b"any bytes will do"
SHA256 = hashlib.sha256(BACKBONE).hexdigest()


# --- a small healthy run ------------------------------------------------------------------------


def write_table(folder, **columns):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "part.parquet")


def record(run, stage, **entries):
    with run.step(stage) as entry:
        entry.update(entries)


def check(run):
    """05, without its look at the photographs."""
    results = verify.read_results(run)
    checks = (verify.check_rows, verify.check_model, verify.check_scores)
    return verify.record(run, [found for function in checks for found in function(results)])


def write_images(run, folder, features=38, rejects=2):
    """Write what notebooks 01 and 02 write, with random features instead of photographs."""
    rng = np.random.default_rng(3)
    spread = 0.9 ** np.arange(WIDTH)
    vectors = 2 + rng.normal(size=(features, WIDTH)) * spread @ rng.normal(size=(WIDTH, WIDTH))
    vectors[:, 7] = 1.5  # a constant column, as ReLUs make them
    n = features + rejects
    paths = [f"Apple é/{i} 100%.jpg" for i in range(n)]
    labels = ["Apple é"] * n
    splits = ["Training", "Training", "Test", None] * (n // 4)
    write_table(folder / "index", path=paths, label=labels, split=splits)
    write_table(folder / "set_aside", path=pa.array([], pa.string()))
    write_table(
        folder / "features/batch_id=0",
        path=paths[:features],
        label=labels[:features],
        split=splits[:features],
        features=pa.array(list(vectors.astype(np.float32))),
        weights_sha256=[SHA256] * features,
    )
    write_table(
        folder / "rejects/batch_id=0", path=paths[features:], reason=["empty file"] * rejects
    )
    spec = {"backbone": "vgg16", "weights": "random", "input_size": 32, "pooling": "avg", "seed": 1}
    (folder / "backbone").mkdir()
    (folder / "backbone/vgg16-32-avg-random.tflite").write_bytes(BACKBONE)
    (folder / "backbone/backbone.json").write_text(
        json.dumps({**spec, "width": WIDTH, "sha256": SHA256})
    )
    record(run, "load", **entry_of("load", data="file:/data", files=n, images=n))
    of_features = {"width": WIDTH, "weights_sha256": SHA256, "features": features}
    record(run, "featurize", **entry_of("featurize", **of_features))


def make_run(spark, folder, **choice):
    run = open_run(spark, str(folder))
    write_images(run, folder)
    pick_k(run, **choice)
    write_scores(run)
    return run


@pytest.fixture(scope="module")
def healthy(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    make_run(spark, folder, variance=0.9)
    return folder


@pytest.fixture
def copy(spark, healthy, tmp_path):
    """A copy of the healthy run: its folder, to break it, and its `Run`."""
    folder = tmp_path / "run"
    shutil.copytree(healthy, folder)
    return folder, open_run(spark, str(folder))


# --- ways to break it ---------------------------------------------------------------------------


def edit(folder, name, change):
    """Rewrite one Parquet folder after `change` of its rows, a list of dicts."""
    table = pq.ParquetDataset(folder / name, partitioning=None).read()
    rows = table.to_pylist()
    changed = change(rows)
    rows = rows if changed is None else changed
    target = folder / name / "batch_id=0" if name == "features" else folder / name
    shutil.rmtree(folder / name)
    target.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), target / "part.parquet")


def edit_file(path, change):
    """Rewrite one small file; Hadoop would hold it against its old checksum."""
    content = change(path.read_bytes())
    path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
    path.write_bytes(content)


def edit_json(path, change):
    def rewrite(content):
        values = json.loads(content)
        change(values)
        return json.dumps(values).encode()

    edit_file(path, rewrite)


SPECTRUM = pca.Spectrum, pca.Choice


def from_npz(kind, content):
    return pca.from_npz(kind, load_npz(content))


def load_npz(content):
    with np.load(io.BytesIO(content)) as archive:
        return {name: a.item() if a.ndim == 0 else a for name, a in archive.items()}


class Derived:
    """What model.npz holds beside the components."""

    def __init__(self, components):
        self.scale = components.scale
        self.explained_variance_ratio = components.explained_variance_ratio


def to_npz(*parts):
    file = io.BytesIO()
    np.savez(file, **{k: v for part in parts for k, v in vars(part).items() if v is not None})
    return file.getvalue()


def edit_spectrum(folder, change):
    """`change` maps (spectrum, choice) to another pair."""
    edit_file(
        folder / "spectrum/spectrum.npz",
        lambda content: to_npz(*change(*(from_npz(kind, content) for kind in SPECTRUM))),
    )


def edit_model(folder, run, change, project=False):
    """Replace the components in `model/` and `model.npz`, and the scores if asked to."""
    components = change(from_npz(pca.Components, (folder / "model.npz").read_bytes()))
    edit_file(folder / "spectrum/components.npz", lambda _: to_npz(components))
    edit_file(folder / "model.npz", lambda _: to_npz(components, Derived(components)))
    model = pca.pipeline_model(components)
    model.write().overwrite().save(run.path("model"))
    if project:
        scores = transform(run.read_table("features"), model)
        scores.write.mode("overwrite").parquet(run.path("pca"))


def set_features(row, values):
    row["features"] = list(values)


def drop(name, which=3):
    return lambda folder, run: edit(folder, name, lambda rows: rows.pop(which) and None)


def repeat(name):
    return lambda folder, run: edit(folder, name, lambda rows: rows.append(rows[3]))


def stranger(name):
    """A row of a path that is not indexed."""
    return lambda folder, run: edit(
        folder, name, lambda rows: rows.append({**rows[0], "path": "Pear/1.jpg"})
    )


def reject_too(folder, run):
    """An image that has features is among the rejects as well."""
    path = pq.read_table(folder / "features/batch_id=0")["path"][3].as_py()
    edit(folder, "rejects", lambda rows: rows.append({"path": path, "reason": "damaged image"}))


def features_of_one_row(values):
    return lambda folder, run: edit(
        folder, "features", lambda rows: set_features(rows[3], values(rows[3]["features"]))
    )


def scores_of_one_row(values):
    def change(rows):
        rows[3]["pca"] = values(rows[3]["pca"])

    return lambda folder, run: edit(folder, "pca", change)


def all_equal(folder, run):
    edit(folder, "features", lambda rows: [{**r, "features": rows[0]["features"]} for r in rows])


def other_weights_in_one_row(folder, run):
    edit(folder, "features", lambda rows: rows[3].update(weights_sha256="0" * 64))


def no_weights_in_one_row(folder, run):
    edit(folder, "features", lambda rows: rows[3].update(weights_sha256=None))


def other_weights_in_manifest(folder, run):
    edit_json(
        folder / "manifest.json", lambda values: values["featurize"].update(weights_sha256="0" * 64)
    )


def other_weights_in_backbone_json(folder, run):
    edit_json(folder / "backbone/backbone.json", lambda values: values.update(sha256="0" * 64))


def other_backbone(folder, run):
    edit_file(folder / "backbone/vgg16-32-avg-random.tflite", lambda content: content + b"!")


def other_k(folder, run):
    edit_spectrum(folder, lambda spectrum, choice: (spectrum, replace(choice, k=choice.k + 1)))


def other_npz(folder, run):
    def change(content):
        components = from_npz(pca.Components, content)
        changed = replace(components, mean=components.mean * (1 + 1e-9))
        return to_npz(changed, Derived(components))

    edit_file(folder / "model.npz", change)


def not_orthonormal(folder, run):
    """Lengthen the first component where the data has no variance: its scores stay the same."""
    table = pq.read_table(folder / "features/batch_id=0")
    vectors = np.stack(table["features"].to_numpy()).astype(float)
    direction = np.linalg.svd(vectors - vectors.mean(axis=0))[2][-1]

    def change(components):
        rows = components.components.copy()
        rows[0] += 1e-3 * direction
        return replace(components, components=rows)

    edit_model(folder, run, change)


def asked_for_more(folder, run):
    edit_spectrum(folder, lambda spectrum, choice: (spectrum, replace(choice, variance=0.99)))


def recorded_less(folder, run):
    edit_spectrum(
        folder,
        lambda spectrum, choice: (spectrum, replace(choice, explained=choice.explained - 1e-4)),
    )


def shifted_mean(folder, run):
    """Centre by another mean, in the model and in the scores alike."""
    edit_model(folder, run, lambda c: replace(c, mean=c.mean + 1e-3), project=True)


def rotated(folder, run):
    """Turn the first two components in their plane: as much variance, but not as eigenvalues."""

    def change(components):
        rows, (c, s) = components.components.copy(), (np.cos(0.1), np.sin(0.1))
        rows[:2] = np.array([[c, s], [-s, c]]) @ rows[:2]
        return replace(components, components=rows)

    edit_model(folder, run, change, project=True)


def other_eigenvalue(folder, run):
    def change(spectrum, choice):
        raw = spectrum.raw.copy()
        raw[:2] += [1e-4, -1e-4]  # the same sum
        return replace(spectrum, raw=raw), choice

    edit_spectrum(folder, change)


def larger_tail(folder, run):
    """Eigenvalues after the k-th: of no score, but of the total variance."""

    def change(spectrum, choice):
        raw = spectrum.raw.copy()
        raw[-1] += 1.05e-6 * raw.sum()  # little enough for the shares of k
        return replace(spectrum, raw=raw), choice

    edit_spectrum(folder, change)


def other_standardized(folder, run):
    """The spectrum that was not chosen."""

    def change(spectrum, choice):
        standardized = spectrum.standardized.copy()
        standardized[-20:] += 1e-8 * standardized[0]
        return replace(spectrum, standardized=standardized), choice

    edit_spectrum(folder, change)


def other_mean(folder, run):
    edit_spectrum(
        folder, lambda spectrum, choice: (replace(spectrum, mean=2 * spectrum.mean), choice)
    )


def turned(folder, run):
    """The sign of a component, wherever it stands."""

    def change(components):
        rows = components.components.copy()
        rows[1] *= -1
        return replace(components, components=rows)

    edit_model(folder, run, change, project=True)


def other_components(folder, run):
    def change(content):
        components = from_npz(pca.Components, content)
        return to_npz(replace(components, eigenvalues=components.eigenvalues * (1 + 1e-9)))

    edit_file(folder / "spectrum/components.npz", change)


def of_manifest(stage, **values):
    return lambda folder, run: edit_json(
        folder / "manifest.json", lambda manifest: manifest[stage].update(values)
    )


def swapped_scores(folder, run):
    """Give two images each other's scores: nothing about all scores together changes."""

    def change(rows):
        rows[3]["pca"], rows[4]["pca"] = rows[4]["pca"], rows[3]["pca"]

    edit(folder, "pca", change)


BROKEN = {
    "photographs without a row": [drop("features"), drop("rejects", 0)],
    "photographs with several rows": [repeat("features"), repeat("index"), reject_too],
    "rows without a photograph": [stranger("rejects"), drop("index")],
    "feature rows of another width": [
        features_of_one_row(lambda x: x[:-1]),
        features_of_one_row(lambda x: [*x, 1.0]),
    ],
    "feature rows not finite": [
        features_of_one_row(lambda x: [np.nan, *x[1:]]),
        features_of_one_row(lambda x: [-np.inf, *x[1:]]),
        features_of_one_row(lambda x: [None, *x[1:]]),
    ],
    "feature rows all zero": [features_of_one_row(lambda x: [0.0] * WIDTH)],
    "features that vary": [all_equal],
    "features without scores, or scores without": [drop("pca"), repeat("pca"), stranger("pca")],
    "score rows of another width or not finite": [
        scores_of_one_row(lambda s: s[:-1]),
        scores_of_one_row(lambda s: [np.nan, *s[1:]]),
        scores_of_one_row(lambda s: None),
    ],
    "sets of weights": [
        other_weights_in_one_row,
        no_weights_in_one_row,
        other_weights_in_manifest,
        other_weights_in_backbone_json,
        other_backbone,
    ],
    "k of the model": [other_k],
    # Each key of the manifest is changed in test_proof.py.
    "figures of k unlike the manifest's": [of_manifest("pick_k", standardize=True)],
    "spectrum or model unlike the features": [larger_tail, other_standardized, other_mean],
    "components with a negative largest loading": [turned],
    "components.npz unlike model/": [other_components],
    "model.npz unlike model/": [other_npz],
    "components not perpendicular, length 1": [not_orthonormal],
    "explained variance": [asked_for_more, recorded_less],
    "score means unlike 0": [shifted_mean],
    "score variances unlike eigenvalues": [rotated, other_eigenvalue],
    "scores unlike the projection": [swapped_scores],
}


ALSO = {  # what is broken beside it
    asked_for_more: {"figures of k unlike the manifest's"},
    shifted_mean: {"spectrum or model unlike the features"},
    other_eigenvalue: {"spectrum or model unlike the features"},
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param(name, damage, id=f"{name}-{i}")
        for name, damages in BROKEN.items()
        for i, damage in enumerate(damages)
    ],
)
def test_broken_property_fails_its_check_alone(copy, name, damage):
    folder, run = copy
    damage(folder, run)
    result = check(run)
    assert {check.name for check in result.failed} == {name, *ALSO.get(damage, ())}, str(result)
    line = f"^{len(result.failed)} of {len(result.checks)} checks failed: .*{re.escape(name)}"
    with pytest.raises(VerificationError, match=line):
        result.require()


# --- the healthy run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice",
    [
        {"variance": 0.9},
        {"k": 5},
        {"k": 37},
        {"variance": 1, "standardize": True},
        {"k": 5, "fit_split": "train"},
        {"variance": 1, "standardize": True, "fit_split": "Training"},
    ],
    ids=str,
)
def test_healthy_run_passes(spark, tmp_path, choice):
    result = check(make_run(spark, tmp_path, **choice))
    assert all(check.passed for check in result.checks), str(result)
    assert {check.name for check in result.checks} == set(BROKEN)
    result.require()


def test_checks_are_recorded_even_if_one_fails(copy):
    folder, run = copy
    drop("features")(folder, run)
    check(run)
    recorded = json.loads((folder / "manifest.json").read_text())["verify"]
    assert (recorded["passed"], recorded["failed"]) == (16, 1)
    first, *_ = recorded["checks"]
    assert first["name"] == "photographs without a row"
    assert (first["figure"], first["passed"]) == (1, False)
    assert {type(check["figure"]) for check in recorded["checks"]} <= {int, float}
    assert "NaN" not in (folder / "manifest.json").read_text()


def test_table_has_a_line_per_check(copy):
    folder, run = copy
    drop("features")(folder, run)
    result = check(run)
    lines = [str(check) for check in result.checks]
    assert lines[0].startswith("FAILED  photographs without a row")
    assert " ".join(lines[1].split()) == "ok photographs with several rows 0 (at most 0)"
    assert str(result) == "16 of 21 checks passed"


def test_failure_is_one_line_with_figures_and_ways_out(copy):
    folder, run = copy
    drop("features")(folder, run)
    other_k(folder, run)
    with pytest.raises(VerificationError) as caught:
        check(run).require()
    message = str(caught.value)
    assert "\n" not in message
    assert "photographs without a row = 1 (at most 0): run 02_featurize again" in message
    assert "k of the model = " in message


def test_what_needs_the_failed_rows_is_not_judged(copy):
    folder, run = copy
    edit(folder, "features", lambda rows: [{**r, "features": [np.nan] * WIDTH} for r in rows])
    result = check(run)
    assert [(check.name, check.figure) for check in result.failed][0] == (
        "feature rows not finite",
        38,
    )
    unjudged = {check.name for check in result.checks if check.passed is None}
    assert "scores unlike the projection" in unjudged
    json.loads((folder / "manifest.json").read_text(), parse_constant=pytest.fail)


def test_features_that_came_after_k_was_picked_show_in_the_scores(copy):
    folder, run = copy
    path = "Apple é/new.jpg"
    edit(folder, "index", lambda rows: rows.append({**rows[0], "path": path}))
    edit(
        folder,
        "features",
        lambda rows: rows.append({**rows[0], "path": path, "features": [1.0] * WIDTH}),
    )
    write_scores(run)
    result = check(run)
    names = {"explained variance", "score means unlike 0", "score variances unlike eigenvalues"}
    names.add("spectrum or model unlike the features")
    assert {check.name for check in result.failed} == names
    assert all("run 03_pick_k" in check.remedy for check in result.failed)


def test_means_and_variances_are_those_of_the_split_that_was_fitted(copy):
    folder, run = copy
    pick_k(run, k=5, fit_split="Training")
    write_scores(run)
    edit_spectrum(folder, lambda spectrum, choice: (replace(spectrum, fit_split=""), choice))
    names = {check.name for check in check(run).failed}
    assert {"explained variance", "score means unlike 0"} <= names
    assert "scores unlike the projection" not in names  # it is that of all photographs


# --- runs that cannot be checked ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "index",
        "features",
        "rejects",
        "pca",
        "model",
        "model.npz",
        "spectrum/spectrum.npz",
        "spectrum/components.npz",
        "backbone/backbone.json",
        "backbone/vgg16-32-avg-random.tflite",
    ],
)
def test_missing_part_is_named_in_one_line(copy, name):
    folder, run = copy
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    with pytest.raises(FruitsError, match=f"^.*/{name} .*$") as caught:
        check(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.npz", "spectrum/spectrum.npz", "backbone/backbone.json"])
def test_unreadable_part_is_named_in_one_line(copy, name):
    folder, run = copy
    edit_file(folder / name, lambda content: content[: len(content) // 2])
    with pytest.raises(FruitsError, match=f"^.*/{name} cannot be read .*$") as caught:
        check(run)
    assert "\n" not in str(caught.value)


def test_unreadable_model_is_named_in_one_line(copy):
    folder, run = copy
    shutil.rmtree(folder / "model/stages")
    with pytest.raises(FruitsError, match="^.*/model cannot be read .*: run 04_pca again$"):
        check(run)


def test_parts_of_other_widths_are_named_in_one_line(copy):
    folder, run = copy
    edit_json(folder / "manifest.json", lambda values: values["featurize"].update(width=65))
    with pytest.raises(FruitsError, match=r"^widths \(65, 64, 64\) .*$"):
        check(run)
