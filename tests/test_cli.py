"""The `fruits` command: the whole pipeline by papermill, and errors before anything starts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from fruits_lib import cli, parameters
from fruits_lib.errors import FruitsError
from fruits_lib.sample import GOOD, REJECTS, SKIPPED, write_sample

FRUITS = Path(sys.executable).with_name("fruits")
QUICK = ["-p", "weights=random", "-p", "input_size=64"]


def fruits(*arguments):
    """Run `fruits` as a user does; return the finished process."""
    return subprocess.run([FRUITS, *map(str, arguments)], capture_output=True, text=True)


def manifest(run_dir):
    return json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photo graphs 100%"
    write_sample(folder)
    return folder


@pytest.fixture(scope="module")
def finished(photographs, tmp_path_factory):
    """One whole run over the sample: (run folder, finished process)."""
    run_dir = tmp_path_factory.mktemp("runs") / "first run"
    answer = fruits("run", "--data", photographs, "--run-dir", run_dir, *QUICK)
    assert answer.returncode == 0, answer.stderr
    return run_dir, answer


@pytest.mark.slow
class TestAWholeRun:
    def test_counts_every_image_once(self, finished):
        recorded = manifest(finished[0])
        assert recorded["load"]["images"] == GOOD + REJECTS
        assert recorded["load"]["skipped"] == SKIPPED
        assert recorded["featurize"]["features"] == GOOD
        assert recorded["featurize"]["rejects"] == REJECTS

    def test_passes_every_check(self, finished):
        recorded = manifest(finished[0])["verify"]
        assert recorded["failed"] == 0
        assert recorded["passed"] == len(recorded["checks"]) >= 15

    def test_says_what_it_came_to(self, finished):
        lines = finished[1].stdout
        for name in ("images in", "features out", "rejects", "k raw", "k standardized"):
            assert f"\n{name} " in lines
        for name in ("checks passed", "wall time", "report"):
            assert f"\n{name} " in lines

    def test_streams_what_the_notebooks_print(self, finished):
        assert "== 02_featurize" in finished[1].stdout
        assert "123 images = 120 rows of 1,280 features + 3 rejects" in finished[1].stdout
        assert "images/s" in finished[1].stderr

    def test_keeps_the_executed_notebooks(self, finished):
        executed = sorted((finished[0] / "notebooks").glob("*.ipynb"))
        assert len(executed) == 5
        for path in executed:
            nbformat.validate(nbformat.read(path, as_version=4))

    def test_report_is_one_file_with_five_pictures_and_no_code(self, finished):
        report = (finished[0] / "report.html").read_text(encoding="utf-8")
        assert report.count("data:image/png;base64,") == 5
        assert "run_dir: str" not in report
        assert "<script src" not in report

    def test_pandas_reads_one_row_per_image(self, finished):
        features = pd.read_parquet(finished[0] / "features")
        assert features["path"].is_unique
        assert len(features) == GOOD
        scores = pd.read_parquet(finished[0] / "pca")
        assert set(scores["path"]) == set(features["path"])

    def test_npz_gives_the_same_scores_with_numpy_alone(self, finished):
        features = pd.read_parquet(finished[0] / "features").sort_values("path")
        scores = pd.read_parquet(finished[0] / "pca").sort_values("path")
        model = np.load(finished[0] / "model.npz")
        centred = np.stack(features["features"]) - model["mean"]
        ours = (centred * model["scale"]) @ model["components"].T
        np.testing.assert_allclose(np.stack(scores["pca"]), ours, atol=1e-5 * np.abs(ours).max())


@pytest.mark.slow
def test_a_finished_run_is_not_overwritten_without_being_told(finished, photographs):
    run_dir, before = finished[0], (finished[0] / "manifest.json").stat().st_mtime_ns
    answer = fruits("run", "--data", photographs, "--run-dir", run_dir, *QUICK)
    assert answer.returncode == 1
    assert f"run_dir={run_dir} holds a run finished" in answer.stderr
    assert "--overwrite" in answer.stderr
    assert (run_dir / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_only_one_notebook_runs_when_asked(finished, photographs, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    before = manifest(run_dir)
    answer = fruits(
        *("run", "--data", photographs, "--run-dir", run_dir, "--overwrite", "--only", "03"),
        *QUICK,
    )
    assert answer.returncode == 0, answer.stderr
    after = manifest(run_dir)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"pick_k"}


@pytest.mark.slow
def test_a_second_run_computes_new_photographs_alone(finished, photographs, tmp_path):
    run_dir, label = tmp_path / "run", photographs / "Training" / "Lychée +1"
    shutil.copytree(finished[0], run_dir)
    label.mkdir()
    try:
        for path in sorted((photographs / "Training" / "Cherry 1").glob("*_100.jpg"))[:10]:
            shutil.copy(path, label)
        answer = fruits("run", "--data", photographs, "--run-dir", run_dir, "--overwrite", *QUICK)
    finally:
        shutil.rmtree(label)
    assert answer.returncode == 0, answer.stderr
    recorded = manifest(run_dir)
    assert recorded["load"]["images"] == GOOD + REJECTS + 10
    assert recorded["featurize"]["computed"] == 10
    assert recorded["verify"]["failed"] == 0


@pytest.mark.slow
def test_from_03_takes_another_k_and_leaves_the_features_alone(finished, photographs, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    before = manifest(run_dir)["featurize"]["finished"]
    answer = fruits(
        *("run", "--data", photographs, "--run-dir", run_dir, "--overwrite"),
        *("--from", "03", "-p", "k=5", *QUICK),
    )
    assert answer.returncode == 0, answer.stderr
    assert manifest(run_dir)["featurize"]["finished"] == before
    assert manifest(run_dir)["pca"]["k"] == 5
    assert "== 02_featurize" not in answer.stdout


@pytest.mark.slow
def test_a_failing_notebook_fails_the_run_with_its_own_line(photographs, tmp_path):
    answer = fruits(
        *("run", "--data", photographs, "--run-dir", tmp_path / "run"),
        *("-p", "max_reject_ratio=0.01", *QUICK),
    )
    assert answer.returncode == 1
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("fruits: 02_featurize: FruitsError: 3 of 123 images were rejected")
    assert "== 03_pick_k" not in answer.stdout
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_real_photographs(shared, tmp_path, monkeypatch):
    """The 3,936 photographs of ../shared, with ImageNet weights."""
    monkeypatch.setenv("KERAS_HOME", str(shared / "keras"))
    run_dir = tmp_path / "run"
    answer = fruits(
        "run", "--data", shared / "fruits360", "--run-dir", run_dir, "-p", "weights=imagenet"
    )
    assert answer.returncode == 0, answer.stderr
    recorded = manifest(run_dir)
    assert recorded["load"]["images"] == recorded["featurize"]["features"] == 3936
    assert recorded["featurize"]["width"] == 1280
    assert recorded["featurize"]["rejects"] == 0
    assert recorded["pick_k"]["raw"]["explained_variance"] >= 0.9
    assert recorded["pick_k"]["standardized"]["explained_variance"] >= 0.9
    assert recorded["verify"]["failed"] == 0


class TestErrorsBeforeAnythingStarts:
    """Each is one line that names the value, exits with 1 and leaves no run folder."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["-p", "varience=0.9"], ["varience", "did you mean variance?"]),
            (["-p", "colour=red"], ["colour", "known are"]),
            (["-p", "k=many"], ["k='many' is not of type int"]),
            (["-p", "variance=high"], ["variance='high' is not of type float"]),
            (["-p", "standardize=yes"], ["standardize='yes' is not of type bool"]),
            (["-p", "variance=1.5"], ["variance=1.5", "outside 0 to 1"]),
            (["-p", "variance=0"], ["variance=0", "outside 0 to 1"]),
            (["-p", "k=-3"], ["k=-3", "below 0"]),
            (["-p", "backbone=mobilnet"], ["backbone='mobilnet'", "mobilenet_v2"]),
            (["-p", "weights=imagnet"], ["weights='imagnet'"]),
            (["-p", "input_size=8"], ["input_size=8", "32"]),
            (["-p", "pooling=sum"], ["pooling='sum'", "avg, max"]),
            (["-p", "max_pixels=0"], ["max_pixels=0"]),
            (["-p", "max_reject_ratio=2"], ["max_reject_ratio=2", "0 to 1"]),
            (["-p", "batch_size=-1"], ["batch_size=-1"]),
            (["-p", "seed=-1"], ["seed=-1"]),
            (["-p", "variance"], ["variance has no ="]),
            (["--from", "07"], ["07 is not a notebook", "01_load"]),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    def test_bad_parameter(self, arguments, words, tmp_path):
        run_dir = tmp_path / "run"
        command = ["run", "--data", str(tmp_path), "--run-dir", str(run_dir), *arguments]
        answer = CliRunner().invoke(cli.main, command)
        self.check(answer, words, run_dir)

    def test_missing_data(self, tmp_path):
        run_dir = tmp_path / "run"
        command = ["run", "--data", str(tmp_path / "nope"), "--run-dir", str(run_dir)]
        self.check(CliRunner().invoke(cli.main, command), ["nope is not a folder"], run_dir)

    @pytest.mark.parametrize(
        ("text", "words"),
        [("k: [1", "is not valid YAML"), ("- k", "holds no names"), ("kay: 3", "kay is unknown")],
    )
    def test_bad_file(self, text, words, tmp_path):
        run_dir, file = tmp_path / "run", tmp_path / "p.yaml"
        file.write_text(text, encoding="utf-8")
        command = ["run", "--data", str(tmp_path), "--run-dir", str(run_dir), "-f", str(file)]
        self.check(CliRunner().invoke(cli.main, command), [words], run_dir)

    @staticmethod
    def check(answer, words, run_dir):
        assert answer.exit_code == 1
        assert len(answer.stderr.splitlines()) == 1
        assert answer.stderr.startswith("fruits: ")
        for word in words:
            assert word in answer.stderr
        assert not run_dir.exists()


def test_p_wins_over_f_and_text_takes_the_declared_type(tmp_path, monkeypatch):
    file = tmp_path / "p.yaml"
    file.write_text("k: 7\nvariance: 1\nstandardize: true\n", encoding="utf-8")
    taken = {}
    monkeypatch.setattr(cli, "run_notebooks", lambda given, *_: taken.update(given))
    command = ["run", "--data", str(tmp_path), "--run-dir", "x", "-f", str(file), "-p", "k=9"]
    assert CliRunner().invoke(cli.main, command).exit_code == 0
    values = parameters.check_given(parameters.find_notebooks(), taken)
    assert values["k"] == 9
    assert values["variance"] == 1.0
    assert isinstance(values["variance"], float)
    assert values["standardize"] is True
    assert values["weights"] == "imagenet"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"standardize": "false"}, "standardize='false' is not of type bool"),
        ({"k": None}, "k=None is not of type int"),
        ({"run_dir": 2026}, "run_dir=2026 is not of type str"),
        ({"variance": 1.5}, "variance=1.5 is outside 0 to 1"),
    ],
)
def test_a_notebook_checks_its_own_parameters(values, message):
    declared = {"run_dir": "", "variance": 0.9, "k": 0, "standardize": False}
    with pytest.raises(FruitsError, match=f"^{message}"):
        parameters.check("03_pick_k", {**declared, **values})


@pytest.mark.slow
def test_export_makes_a_file_that_a_run_takes(tmp_path):
    target = tmp_path / "network.tflite"
    command = ["export", "--weights", "random", "--input-size", "64", "--to", str(target)]
    answer = CliRunner().invoke(cli.main, command)
    assert answer.exit_code == 0, answer.output
    assert target.read_bytes()[4:8] == b"TFL3"


def test_export_of_missing_weights_is_one_line(tmp_path):
    command = ["export", "--weights", "nowhere.h5", "--to", str(tmp_path / "network.tflite")]
    answer = CliRunner().invoke(cli.main, command)
    assert answer.exit_code == 1
    assert answer.stderr == (
        "fruits: weights=nowhere.h5 is not a file on this machine: give one that is\n"
    )


def test_sample_writes_the_embedded_sample(tmp_path):
    answer = CliRunner().invoke(cli.main, ["sample", str(tmp_path / "photographs")])
    assert answer.exit_code == 0
    files = [path for path in (tmp_path / "photographs").rglob("*") if path.is_file()]
    assert f"{len(files)} files" in answer.output
    assert len(files) == GOOD + REJECTS + SKIPPED
