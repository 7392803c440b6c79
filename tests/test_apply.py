"""New photographs, scored and labelled by the model of a finished run."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pipeline import apply_model, classify_scores, pick_k, write_features, write_index, write_scores

from fruits_lib import apply, cli
from fruits_lib.backbones import export_backbone
from fruits_lib.errors import FruitsError, VerificationError
from fruits_lib.runs import open_run

LABELS = ("Lemon 100%", "Grape Blue", "Pêche blanche")


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def contents(folder):
    """Every file of a folder by its path, with content and time."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture(scope="module")
def classified(spark, sample, tiny, tmp_path_factory):
    """A run with model and classifier, in a folder of an odd name, and its content."""
    folder = tmp_path_factory.mktemp("known") / "a run, 100% [x]"
    run = open_run(spark, str(folder))
    write_index(run, sample)
    write_features(run, export_backbone(run, "mobilenet_v2", str(tiny), 32))
    pick_k(run, k=8)
    write_scores(run)
    classify_scores(run)
    return folder, contents(folder)


@pytest.fixture(scope="module")
def new(sample, tmp_path_factory):
    """Photographs without label folders: seven that decode, a text, an empty file."""
    folder = tmp_path_factory.mktemp("new") / "of my own"
    folder.mkdir()
    for label in LABELS:
        for path in sorted((sample / "Test" / label).glob("r_*.jpg"))[:2]:
            shutil.copy(path, folder / f"{label} {path.name}")
    shutil.copy(sorted((sample / "Test/mango_ripe").glob("r_*"))[0], folder / "mango.jpg")
    (folder / "text.jpg").write_text("not a photograph")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("seven fruits")
    return folder


@pytest.fixture(scope="module")
def done(spark, classified, new, tmp_path_factory):
    """The new photographs, applied: (folder of the results, what was written)."""
    to = tmp_path_factory.mktemp("applied") / "to: 1"
    return to, apply_model(spark, classified[0], new, to)


@pytest.fixture
def copy(done, tmp_path):
    """A copy of the results, to change."""
    return shutil.copytree(done[0], tmp_path / "to")


class TestApplied:
    def test_every_file_is_accounted_for(self, done):
        recorded = manifest(done[0])
        assert (recorded["load"]["files"], recorded["load"]["images"]) == (10, 9)
        assert (recorded["featurize"]["features"], recorded["featurize"]["rejects"]) == (7, 2)
        assert recorded["apply"]["images"] == 7

    def test_every_check_passes(self, done):
        assert [str(check) for check in done[1].checks.checks if not check.passed] == []
        assert len(manifest(done[0])["apply"]["checks"]) == len(done[1].checks.checks) >= 15

    def test_the_run_is_not_touched(self, done, classified):
        folder, before = classified
        assert contents(folder) == before

    def test_scores_are_those_of_the_run_for_the_same_photograph(self, done, classified):
        scores = pd.read_parquet(done[0] / "pca").set_index("path")["pca"]
        known = pd.read_parquet(classified[0] / "pca").set_index("path")["pca"]
        for path, score in scores.items():
            label, _, name = path.rpartition(" ")
            original = f"Test/{label}/{name}" if label else None
            if original:
                np.testing.assert_allclose(score, known[original], rtol=1e-4, atol=1e-4)

    def test_labels_are_given_without_label_folders(self, done):
        labels = pd.read_parquet(done[0] / "labels")
        assert list(labels) == ["path", "label", "split", "predicted", "probability"]
        assert labels["label"].isna().all()
        right = [row.path.startswith(row.predicted) for row in labels.itertuples()]
        assert sum(right) >= 6
        assert labels["probability"].between(0, 1).all()

    def test_the_manifest_says_whose_model_it_was(self, done, classified):
        entry = manifest(done[0])["apply"]
        assert entry["run"] == f"file:{classified[0]}"
        assert entry["weights_sha256"] == manifest(classified[0])["featurize"]["weights_sha256"]
        assert {"model_sha256", "classifier_sha256", "k", "labels"} <= entry.keys()
        assert "accuracy" not in entry

    def test_new_photographs_lie_last_among_the_known_ones(self, spark, done, classified):
        known = apply.open_known(spark, str(classified[0]))
        points, labels, paths = apply.on_plane(known, open_run(spark, str(done[0])))
        assert points.shape == (120 + 7, 2)
        assert (len(labels), len(paths)) == (120, 7)


def test_label_folders_give_an_accuracy(spark, sample, classified, tmp_path):
    for label in ("Grape Blue", "no such fruit"):
        for path in sorted((sample / "Test/Grape Blue").glob("r_*.jpg"))[:3]:
            (tmp_path / "new" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "new" / label / path.name)
    found = apply_model(spark, classified[0], tmp_path / "new", tmp_path / "to")
    assert (found.labelled, found.right, found.unknown) == (3, 3, 3)
    assert "accuracy 100.00%: 3 of 3 images" in str(found)
    assert "3 images lie in folders that are no label of the run" in str(found)
    assert manifest(tmp_path / "to")["apply"]["accuracy"] == 1


def test_only_added_photographs_are_computed(spark, sample, classified, new, copy, tmp_path):
    more = shutil.copytree(new, tmp_path / "of my own")
    shutil.copy(sorted((sample / "Test/Cherry 1").glob("r_*"))[0], more / "one more.jpg")
    found = apply_model(spark, classified[0], more, copy)
    assert found.images == 8
    assert found.checks.failed == []
    assert manifest(copy)["featurize"]["computed"] == 1


def test_another_limit_computes_the_rejects_again(spark, classified, new, copy):
    assert apply_model(spark, classified[0], new, copy, truncated="accept").checks.failed == []
    assert manifest(copy)["featurize"]["computed"] == 2


def test_what_was_killed_goes_on(spark, classified, new, copy):
    entry = manifest(copy)
    for stage in ("featurize", "apply"):
        del entry[stage]
    (copy / "manifest.json").write_text(json.dumps(entry))
    shutil.rmtree(copy / "pca")
    assert apply_model(spark, classified[0], new, copy).checks.failed == []
    assert manifest(copy)["featurize"]["computed"] == 0


def test_a_photograph_that_is_gone_needs_overwrite(spark, classified, new, copy, tmp_path):
    fewer = shutil.copytree(new, tmp_path / "of my own")
    (fewer / "mango.jpg").unlink()
    with pytest.raises(FruitsError, match=r"gone or have changed .*--overwrite"):
        apply_model(spark, classified[0], fewer, copy)
    assert apply_model(spark, classified[0], fewer, copy, overwrite=True).images == 6


@pytest.fixture
def refitted(spark, classified, tmp_path):
    """A copy of the run with another k, and without a classifier."""
    folder = shutil.copytree(classified[0], tmp_path / "refitted")
    run = open_run(spark, str(folder))
    pick_k(run, k=5)
    write_scores(run)
    return folder


def test_another_model_needs_overwrite(spark, refitted, new, copy):
    with pytest.raises(FruitsError, match=r"results of another model .*--overwrite"):
        apply_model(spark, refitted, new, copy)
    found = apply_model(spark, refitted, new, copy, overwrite=True)
    assert (found.k, found.checks.failed) == (5, [])
    assert not (copy / "labels").exists()
    assert manifest(copy)["featurize"]["computed"] == 0
    shown = apply.least_certain(open_run(spark, str(copy)))
    assert shown["predicted"].isna().all()


class TestRefused:
    def refused(self, *arguments, **options):
        with pytest.raises(FruitsError) as caught:
            apply_model(*arguments, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_run_without_a_model(self, spark, done, new, tmp_path):
        assert "run 04_pca first" in self.refused(spark, done[0], new, tmp_path / "to")
        assert not (tmp_path / "to").exists()

    @pytest.mark.parametrize("inside", ["", "/within", "/.."])
    def test_results_in_the_run_or_around_it(self, spark, classified, new, inside):
        folder, before = classified
        assert "overlap" in self.refused(spark, folder, new, f"{folder}{inside}")
        assert contents(folder) == before

    def test_a_folder_that_holds_another_run(self, spark, classified, refitted, new):
        assert "a model of its own" in self.refused(spark, classified[0], new, refitted)

    def test_features_of_another_network(self, spark, classified, new, copy, tmp_path):
        folder = shutil.copytree(classified[0], tmp_path / "run")
        spec = json.loads((folder / "backbone/backbone.json").read_text())
        other = b"another network"
        (folder / "backbone/mobilenet_v2-32-avg-file.tflite").write_bytes(other)
        sha256 = hashlib.sha256(other).hexdigest()
        (folder / "backbone/backbone.json").write_text(json.dumps({**spec, "sha256": sha256}))
        entry = manifest(folder)
        entry["featurize"]["weights_sha256"] = sha256
        (folder / "manifest.json").write_text(json.dumps(entry))
        assert "of another network" in self.refused(spark, folder, new, copy)

    def test_features_of_another_decoding(self, spark, classified, new, copy):
        file = copy / "backbone/backbone.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "decoding": 1}))
        assert "of another decoding" in self.refused(spark, classified[0], new, copy)

    def test_no_photograph_that_decodes(self, spark, classified, tmp_path):
        (tmp_path / "new").mkdir()
        (tmp_path / "new/text.jpg").write_text("not a photograph")
        assert "could be decoded" in self.refused(
            spark, classified[0], tmp_path / "new", tmp_path / "to", max_reject_ratio=1
        )

    def test_places_that_are_given_in_part(self):
        with pytest.raises(FruitsError, match=r"^to is empty where run_dir=run: "):
            apply.check_apply("run", "photographs", "")


def damage(folder, table, change):
    """Change the rows of one of the tables."""
    rows = pq.read_table(folder / table)
    shutil.rmtree(folder / table)
    (folder / table).mkdir()
    changed = pa.Table.from_pandas(change(rows.to_pandas()), rows.schema, preserve_index=False)
    pq.write_table(changed, folder / table / "part.parquet")


MUTATIONS = {
    "features without scores, or scores without": ("pca", lambda rows: rows[1:]),
    "scores without a label, or labels without": ("labels", lambda rows: rows[1:]),
    "scores unlike the projection": (
        "pca",
        lambda rows: rows.assign(pca=[score * np.float32(1.001) for score in rows["pca"]]),
    ),
    "labels other than the most probable": (
        "labels",
        lambda rows: rows.assign(predicted="mango_ripe"),
    ),
    "probabilities unlike softmax": (
        "labels",
        lambda rows: rows.assign(probability=rows["probability"] - np.float32(1e-4)),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_damaged_result_is_found(spark, classified, copy, name):
    table, change = MUTATIONS[name]
    damage(copy, table, change)
    known = apply.open_known(spark, str(classified[0]))
    run = open_run(spark, str(copy))
    checks = apply.applied.check(known.run, run, known.weights_sha256, seed=0)
    assert name in [check.name for check in checks if check.passed is False]


def test_a_failed_check_is_recorded_and_fails(spark, classified, new, copy, monkeypatch):
    monkeypatch.setattr(apply.applied, "SCORE_TOLERANCE", -1)
    found = apply_model(spark, classified[0], new, copy)
    failed = [check for check in manifest(copy)["apply"]["checks"] if check["passed"] is False]
    assert len(failed) == 2
    with pytest.raises(VerificationError, match="2 of 18 checks failed"):
        found.checks.require()


# --- the command --------------------------------------------------------------------------------

FRUITS = Path(sys.executable).with_name("fruits")


class TestTheCommand:
    def refusal(self, *arguments):
        answer = CliRunner().invoke(cli.main, ["apply", *map(str, arguments)])
        assert answer.exit_code == 1
        assert len(answer.stderr.splitlines()) == 1
        return answer.stderr

    @pytest.mark.parametrize("missing", ["--run-dir", "--data", "--to"])
    def test_a_missing_place(self, missing):
        places = [name for name in ("--run-dir", "--data", "--to") if name != missing]
        given = [argument for name in places for argument in (name, "x")]
        assert f"{missing} is missing: give a folder or a URI" in self.refusal(*given)

    def test_bad_values_before_anything_starts(self, done, classified, new, tmp_path):
        run, to = ("--run-dir", classified[0]), ("--to", tmp_path / "to")
        places = (*run, "--data", new, *to)
        assert "did you mean batch_size?" in self.refusal(*places, "-p", "batch_sise=1")
        assert "max_pixels=0" in self.refusal(*places, "-p", "max_pixels=0")
        assert "is not a folder" in self.refusal(*run, "--data", tmp_path / "none", *to)
        assert "overlap" in self.refusal(*run, "--data", new, "--to", classified[0])
        assert "run 04_pca first" in self.refusal("--run-dir", done[0], "--data", new, *to)
        assert not (tmp_path / "to").exists()
        assert "a model of its own" in self.refusal(
            "--run-dir", classified[0], "--data", new, "--to", shutil.copytree(run[1], to[1])
        )

    @pytest.mark.slow
    def test_leaves_results_notebook_and_report(self, classified, new, tmp_path):
        to = tmp_path / "my results"
        command = [FRUITS, "apply", "--run-dir", classified[0], "--data", new, "--to", to]
        answer = subprocess.run(
            [*map(str, command), "-p", "max_reject_ratio=0.5"], capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stderr
        assert "\nfiles           10 = 9 images (no labels) + 1 set aside, in " in answer.stdout
        assert f"\nscores          7 x 8 by the model of {classified[0]}\n" in answer.stdout
        assert "\nchecks passed   18 of 18\n" in answer.stdout
        report = (to / "report.html").read_text(encoding="utf-8")
        assert report.count("data:image/png;base64,") == 2
        assert "labels/" in report
        assert (to / "notebooks/apply.ipynb").exists()
        assert contents(classified[0]) == classified[1]
