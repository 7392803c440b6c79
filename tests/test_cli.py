"""The `fruits` command: the whole pipeline by papermill, and errors before anything starts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from papermill.iorw import papermill_io
from papermill.parameterize import parameterize_path
from pipeline import entry

from fruits_lib import backbones, cli, lease, parameters, recipes
from fruits_lib.networks import check_backbone
from fruits_lib.sample import GOOD, REJECTS, SET_ASIDE, write_sample
from fruits_lib.storage import PapermillHandler

FRUITS = Path(sys.executable).with_name("fruits")
QUICK = ["-p", "weights=random", "-p", "input_size=64"]


def fruits(*arguments):
    """Run `fruits` as a user does; return the finished process."""
    return subprocess.run([FRUITS, *map(str, arguments)], capture_output=True, text=True)


def manifest(run_dir):
    return json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def no_lease(monkeypatch):
    """Commands are independent processes, whatever tests leased before in this one."""
    monkeypatch.delenv(lease.TOKEN, raising=False)


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
        assert recorded["load"]["files"] == GOOD + REJECTS + SET_ASIDE
        assert recorded["featurize"]["features"] == GOOD
        assert recorded["featurize"]["rejects"] == REJECTS

    def test_passes_every_check(self, finished):
        recorded = manifest(finished[0])["verify"]
        assert recorded["failed"] == 0
        assert recorded["passed"] == len(recorded["checks"]) >= 28

    def test_says_what_it_came_to(self, finished):
        lines = finished[1].stdout
        assert "\nfiles           124 = 123 images of 6 labels + 1 set aside, in " in lines
        assert "\nimages          123 = 120 with features + 3 rejected\n" in lines
        names = ("features", "k raw", "k standardized", "checks passed", "labels", "labels checked")
        for name in (*names, "wall time", "report"):
            assert f"\n{name} " in lines

    def test_streams_what_the_notebooks_print(self, finished):
        assert "== 02_featurize" in finished[1].stdout
        assert "123 images = 120 rows of 1,280 features + 3 rejects" in finished[1].stdout
        assert "123/123" in finished[1].stdout
        assert "images/s" not in finished[1].stderr

    def test_keeps_the_executed_notebooks(self, finished):
        executed = sorted((finished[0] / "notebooks").glob("*.ipynb"))
        assert len(executed) == 6
        for path in executed:
            nbformat.validate(nbformat.read(path, as_version=4))

    def test_report_is_one_file_with_eight_pictures_and_no_code(self, finished):
        report = (finished[0] / "report.html").read_text(encoding="utf-8")
        assert report.count("data:image/png;base64,") == 8
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
def test_only_one_notebook_runs_when_asked(finished, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    before = manifest(run_dir)
    answer = fruits("run", "--run-dir", run_dir, "--overwrite", "--only", "03")
    assert answer.returncode == 0, answer.stderr
    after = manifest(run_dir)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"run", "pick_k"}  # the copy lies elsewhere
    # Model, scores and checks were made from the spectrum that is gone: nothing shows them.
    assert before.keys() - after.keys() == {"pca", "verify", "classify"}
    assert "checks passed" not in answer.stdout
    report = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "3 · Pick k" in report
    assert "5 · Verify" not in report
    answer = fruits("run", "--run-dir", run_dir, "--only", "05")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1].endswith(
        "run 04_pca first (its result is missing or was made from an older one)"
    )


@pytest.mark.slow
def test_a_single_notebook_guards_a_finished_run(finished, tmp_path):
    run_dir, before = finished[0], manifest(finished[0])
    command = [FRUITS.with_name("papermill"), parameters.find_notebooks()[2], tmp_path / "03.ipynb"]
    command += ["-p", "run_dir", run_dir, "-p", "variance", "0.95"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 1
    assert "holds a run finished" in answer.stderr
    assert manifest(run_dir) == before


@pytest.mark.slow
def test_a_second_run_on_the_same_folder_says_who_has_it(photographs, tmp_path):
    command = [FRUITS, "run", "--data", photographs, "--run-dir", tmp_path / "run", *QUICK]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while "== 01_load" not in first.stdout.readline():
            assert first.poll() is None
        os.killpg(first.pid, signal.SIGSTOP)  # or it might finish before the second starts
        second = subprocess.run(command, capture_output=True, text=True)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
    assert second.returncode == 1
    assert re.fullmatch(
        rf"fruits: run_dir=\S+ is in use by .*, process {first.pid}, since .*\n", second.stderr
    )


@pytest.mark.slow
def test_new_photographs_alone_are_computed_and_the_rest_goes_on_from_there(
    finished, photographs, tmp_path
):
    run_dir, label = tmp_path / "run", photographs / "Training" / "Lychée +1"
    shutil.copytree(finished[0], run_dir)
    label.mkdir()
    try:
        for path in sorted((photographs / "Training" / "Cherry 1").glob("*_100.jpg"))[:10]:
            shutil.copy(path, label)
        again = ("run", "--run-dir", run_dir, "--overwrite")
        answers = [
            fruits(*again, "--only", "01", "--data", photographs),
            fruits(*again, "--only", "02", *QUICK),
        ]
        computed = manifest(run_dir)["featurize"]
        answers.append(fruits(*again, "--from", "03", "-p", "k=5"))
    finally:
        shutil.rmtree(label)
    assert [answer.stderr for answer in answers if answer.returncode] == []
    recorded = manifest(run_dir)
    assert recorded["load"]["images"] == GOOD + REJECTS + 10
    assert recorded["featurize"]["computed"] == 10
    assert recorded["featurize"] == computed
    assert recorded["pca"]["k"] == 5
    assert recorded["verify"]["failed"] == 0
    assert "== 02_featurize" not in answers[2].stdout


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
    """The 992 Test photographs of ../shared, with ImageNet weights."""
    monkeypatch.setenv("KERAS_HOME", str(shared / "keras"))
    run_dir = tmp_path / "run"
    answer = fruits(
        "run", "--data", shared / "fruits360/Test", "--run-dir", run_dir, "-p", "weights=imagenet"
    )
    assert answer.returncode == 0, answer.stderr
    recorded = manifest(run_dir)
    assert recorded["load"]["images"] == recorded["featurize"]["features"] == 992
    assert recorded["featurize"]["width"] == 1280
    assert recorded["featurize"]["rejects"] == 0
    assert recorded["pick_k"]["raw"]["explained_variance"] >= 0.9
    assert recorded["pick_k"]["standardized"]["explained_variance"] >= 0.9
    assert recorded["verify"]["failed"] == 0


def test_a_damaged_manifest_is_one_line(tmp_path):
    (tmp_path / "manifest.json").write_text('{"load": {')
    command = ["run", "--run-dir", str(tmp_path), "--from", "03"]
    answer = CliRunner().invoke(cli.main, command)
    assert answer.exit_code == 1
    assert re.fullmatch(
        r"fruits: \S+/manifest.json is not JSON: remove it and run .*\n", answer.stderr
    )


class TestPhotographsWithoutLabels:
    """06 has nothing to do. No kernel starts, because nothing else is asked for."""

    @pytest.fixture
    def run_dir(self, tmp_path):
        load = {"data": "file:/data", "files": 9, "images": 9, "labels": 0, "unlabelled": 9}
        (tmp_path / "manifest.json").write_text(json.dumps({"load": {**load, "set_aside": []}}))
        return str(tmp_path)

    @pytest.mark.parametrize("option", ["--from", "--only"])
    def test_06_is_skipped_in_one_line(self, run_dir, option):
        answer = CliRunner().invoke(cli.main, ["run", "--run-dir", run_dir, option, "06"])
        assert answer.exit_code == 0, answer.output
        assert "\n== 06_classify is skipped: no photograph has a label\n" in answer.stdout


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
            (["-p", "fit_split=Exam"], ["fit_split='Exam'", "Training, Test, Validation"]),
            (["-p", "backbone=mobilnet"], ["backbone='mobilnet'", "mobilenet_v2"]),
            (["-p", "weights=imagnet"], ["weights='imagnet'"]),
            (["-p", "input_size=8"], ["input_size=8", "32"]),
            (["-p", "pooling=sum"], ["pooling='sum'", "avg, max"]),
            (["-p", "max_pixels=0"], ["max_pixels=0"]),
            (["-p", "max_reject_ratio=2"], ["max_reject_ratio=2", "0 to 1"]),
            (["-p", "batch_size=-1"], ["batch_size=-1"]),
            (["-p", "seed=-1"], ["seed=-1"]),
            (["-p", "neighbors=0"], ["neighbors=0", "below 1"]),
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


DECLARED = {
    "01_load": ["data: str = ''", "run_dir: str = ''", "overwrite: bool = False"],
    "02_featurize": ["run_dir: str = ''", "weights: str = 'random'", "overwrite: bool = False"],
    "03_pick_k": ["run_dir: str = ''", "k: int = 0", "variance: float = 0.9"],
}


def write_notebooks(folder, code="pass"):
    """Write notebooks that declare a few parameters and run this code."""
    paths = [folder / f"{name}.ipynb" for name in DECLARED]
    for path, lines in zip(paths, DECLARED.values(), strict=True):
        cells = ["\n".join(f"{line}  # help" for line in lines), code]
        notebook = nbformat.v4.new_notebook()
        notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
        notebook.cells[0].metadata["tags"] = ["parameters"]
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
    return paths


@pytest.fixture
def outputs():
    """Where each notebook that is not really run would be written, by its name."""
    return {}


@pytest.fixture
def started(tmp_path, monkeypatch, outputs):
    """Notebooks that are not really run: by name, the parameters that each was started with."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "photographs").mkdir()
    paths, taken = write_notebooks(tmp_path / "notebooks"), {}

    def take(path, output, values, **__):
        path, output = (Path(parameterize_path(str(name), values)) for name in (path, output))
        assert path.is_file()
        taken[path.stem], outputs[path.stem] = values, output

    monkeypatch.setattr(parameters, "find_notebooks", lambda: paths)
    monkeypatch.setattr("papermill.execute_notebook", take)
    monkeypatch.setattr("fruits_lib.session.shared_context", lambda *_: nullcontext())
    monkeypatch.setattr("fruits_lib.report.summarize", lambda *_: {})
    monkeypatch.setattr(backbones, "export", lambda spec: None)
    monkeypatch.chdir(tmp_path)
    return taken


def invoke(*arguments):
    """Call `fruits run` in this process, on the folder `run`."""
    return CliRunner().invoke(cli.main, ["run", "--run-dir", "run", *arguments])


def refusal(*arguments):
    """Return the one line that refuses."""
    answer = invoke(*arguments)
    assert answer.exit_code == 1
    (line,) = answer.stderr.splitlines()
    return line


def record(**stages):
    """Write a manifest into the folder `run`."""
    Path("run").mkdir(exist_ok=True)
    Path("run/manifest.json").write_text(json.dumps(stages), encoding="utf-8")


class TestWhatIsStarted:
    @pytest.fixture(autouse=True)
    def loaded(self, started):
        record(load=entry("load", files=1, data=str(Path("photographs").absolute())))

    @pytest.mark.parametrize("name", ["3", "03", "pick_k", "03_pick_k"])
    def test_a_notebook_has_four_names(self, name, started):
        assert invoke("--only", name).exit_code == 0
        assert list(started) == ["03_pick_k"]

    def test_the_network_is_exported_while_01_works(self, started, monkeypatch):
        exported = []
        monkeypatch.setattr(backbones, "export", exported.append)
        data, weights = ("--data", "photographs"), ("-p", "weights=random")
        assert invoke(*data, *weights).exit_code == 0
        assert exported == [check_backbone(weights="random")]
        assert invoke(*data, *weights, "--from", "2").exit_code == 0
        assert invoke(*data, "--only", "1").exit_code == 0
        assert len(exported) == 1  # where 02 is the first one, it exports itself

    def test_from_goes_on_to_the_end(self, started):
        assert invoke("--from", "featurize").exit_code == 0
        assert list(started) == ["02_featurize", "03_pick_k"]

    @pytest.mark.parametrize("way", [["--overwrite"], ["-p", "overwrite=true"]])
    def test_overwrite_reaches_the_notebooks_that_have_it(self, way, started):
        record(verify={"passed": 1, "checks": ["x"], "finished": "today"})
        assert invoke("--data", "photographs", *way).exit_code == 0
        assert started["01_load"]["overwrite"] is started["02_featurize"]["overwrite"] is True
        assert "overwrite" not in started["03_pick_k"]

    def test_executed_notebooks_are_written_whole(self, started, tmp_path):
        """By a rename: papermill's own handler writes in place, and a kill leaves half of one."""
        assert invoke("--only", "3").exit_code == 0
        written = papermill_io.get_handler(f"{tmp_path}/run/notebooks/03_pick_k.ipynb")
        assert type(written) is PapermillHandler

    def test_weights_are_imagenet_unless_told(self, started):
        invoke("--from", "2")
        assert started["02_featurize"]["weights"] == "imagenet"

    def test_kernels_get_absolute_paths(self, started, tmp_path):
        invoke("--data", "photographs", "-p", "weights=a.h5")
        assert started["01_load"]["data"] == str(tmp_path / "photographs")
        assert started["02_featurize"] == {
            "run_dir": str(tmp_path / "run"),
            "weights": str(tmp_path / "a.h5"),
        }

    @pytest.mark.parametrize("name", ["run{a,b}", "exp_{overwrite}", "{}", "}{", "{k:}"])
    def test_braces_in_the_run_folder_s_name_are_a_part_of_it(
        self, name, started, outputs, tmp_path
    ):
        Path("run").rename(name)
        answer = CliRunner().invoke(cli.main, ["run", "--run-dir", name, "--from", "2"])
        assert answer.exit_code == 0, answer.output
        expected = f"{tmp_path}/{name}/notebooks/03_pick_k.ipynb"
        assert str(outputs["03_pick_k"]) == expected
        assert started["03_pick_k"]["run_dir"] == f"{tmp_path}/{name}"

    def test_a_checkout_may_lie_below_a_folder_with_braces(self, started, tmp_path, monkeypatch):
        (tmp_path / "{check}out").mkdir()
        paths = write_notebooks(tmp_path / "{check}out")
        monkeypatch.setattr(parameters, "find_notebooks", lambda: paths)
        assert invoke("--from", "2").exit_code == 0
        assert list(started) == ["02_featurize", "03_pick_k"]

    def test_a_file_uri_stays_one(self, started, tmp_path):
        """On a cluster a path alone would be no place on this machine."""
        assert invoke("--data", f"file://{tmp_path}/photographs").exit_code == 0
        assert started["01_load"]["data"] == f"file:{tmp_path}/photographs"

    def test_home_is_expanded_in_a_quoted_option(self, started, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert invoke("--data", "~/photographs").exit_code == 0
        assert started["01_load"]["data"] == str(tmp_path / "photographs")

    def test_a_file_may_hold_what_does_not_run_and_is_told(self, started):
        Path("p.yaml").write_text("weights: random\nk: 5\n", encoding="utf-8")
        answer = invoke("--only", "3", "-f", "p.yaml")
        assert started == {"03_pick_k": {"run_dir": str(Path("run").absolute()), "k": 5}}
        assert answer.stderr == (
            "fruits: weights=random belongs to 02_featurize, which does not run\n"
        )


class TestContradictions:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--from", "2", "--only", "3"], "--from 2 and --only 3 are both given"),
            (["--data", "a", "-p", "data=b"], "data=b and --data are both given"),
            (["-p", "run_dir=b"], "run_dir=b and --run-dir are both given"),
            (
                ["--only", "3", "-p", "weights=random"],
                "belongs to 02_featurize",
            ),
            (["-p", "variance", "0.95"], "variance has no =: write -p variance=value"),
            (["--data", "my", "photographs"], "'photographs' belongs to no option"),
            ([], "--data is missing"),
            (["--data", ""], "--data is missing"),
            (["--only", "3", "--run-dir", ""], "--run-dir is missing"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    def test_is_one_line(self, arguments, words, started):
        assert words in refusal(*arguments)
        assert not started
        assert not Path("run").exists()

    def test_a_file_s_run_folder_beside_the_option(self, started):
        Path("p.yaml").write_text("run_dir: other", encoding="utf-8")
        assert "run_dir=other and --run-dir are both given" in refusal("-f", "p.yaml")

    def test_other_data_than_the_run_was_loaded_from(self, started):
        place = f"file:{Path('photographs').absolute()}"
        record(load=entry("load", files=1, data=place))
        Path("others").mkdir()
        assert "which 01_load read" in refusal("--only", "3", "--data", "others")
        assert invoke("--only", "3", "--data", "photographs").exit_code == 0

    def test_a_run_folder_that_is_a_file(self, started):
        Path("run").write_text("x")
        words = "run_dir=run cannot be written (File exists)"
        assert words in refusal("--data", "photographs", "--only", "1")

    def test_a_run_folder_that_is_not_there(self, started):
        words = "run_dir=run does not exist or holds no run: check the path, or run 01_load first"
        assert words in refusal("--from", "3")
        assert not Path("run").exists()


class TestRecipes:
    def test_takes_a_recipe_by_name_and_p_wins_over_it(self, started, monkeypatch):
        Path("a.yaml").write_text("# A: reported\nk: 7\nvariance: 0.8\n", encoding="utf-8")
        monkeypatch.setattr(recipes, "find_recipes", lambda: {"a": Path("a.yaml")})
        record(load=entry("load", files=1))
        answer = invoke("--only", "3", "--recipe", "a", "-p", "k=9")
        assert answer.exit_code == 0
        assert (started["03_pick_k"]["k"], started["03_pick_k"]["variance"]) == (9, 0.8)

    def test_an_unknown_recipe_is_one_line_with_near_matches(self, started):
        assert refusal("--recipe", "mobilenet-raw") == (
            "fruits: recipe mobilenet-raw is unknown: did you mean mobilenet-raw-90 or "
            "mobilenet-original-size?"
        )
        assert "known are mobilenet-original-size, " in refusal("--recipe", "7")
        assert not started

    def test_a_recipe_beside_a_file_is_one_line(self, started):
        Path("p.yaml").write_text("k: 5", encoding="utf-8")
        words = "-f p.yaml and --recipe mobilenet-raw-90 are both given: give one of them"
        assert words in refusal("--recipe", "mobilenet-raw-90", "-f", "p.yaml")


HERE = """
import signal
from pathlib import Path
from fruits_lib import backbones, cli, parameters
backbones.export = lambda spec: None
parameters.find_notebooks = lambda: sorted(Path().glob("*.ipynb"))
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if tests run in the background
cli.main()
"""


def start_here(folder, code):
    """Start `fruits run` on notebooks of this code, in a folder."""
    (folder / "photographs").mkdir()
    write_notebooks(folder, code)
    return subprocess.Popen(
        [sys.executable, "-c", HERE, "run", "--data", "photographs", "--run-dir", "run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def dead_kernel(running):
    """Return what the line about a dead kernel gives as the reason."""
    _, stderr = running.communicate()
    words = "its kernel was killed, is out of memory or does not start"
    line = rf"fruits: 01_load: {words} \((.*)\): run it again, it goes on from there"
    assert "Traceback" not in stderr
    assert running.returncode == 1
    return re.fullmatch(line, stderr.splitlines()[-1])[1]


def test_a_kernel_that_dies_is_one_line(tmp_path):
    running = start_here(tmp_path, "import os; os.kill(os.getpid(), 9)")
    assert dead_kernel(running) == "Kernel died"


def test_a_kernel_that_does_not_start_is_one_line(tmp_path):
    (tmp_path / "ipykernel_launcher.py").write_text("raise SystemExit(1)")  # is imported first
    running = start_here(tmp_path, "1")
    assert dead_kernel(running) == "Kernel died before replying to kernel_info"


def test_the_kernel_is_this_python_whatever_is_installed_as_python3(tmp_path, monkeypatch):
    other = {"argv": ["false"], "display_name": "Python 3", "language": "python"}
    (tmp_path / "kernels/python3").mkdir(parents=True)
    (tmp_path / "kernels/python3/kernel.json").write_text(json.dumps(other), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    shown = "import os, pathlib, sys; pathlib.Path('python').write_text(sys.executable); "
    assert dead_kernel(start_here(tmp_path, shown + "os.kill(os.getpid(), 9)")) == "Kernel died"
    assert (tmp_path / "python").read_text() == sys.executable


def test_a_run_folder_that_is_moved_away_while_it_runs_is_one_line(tmp_path):
    running = start_here(tmp_path, "import os; os.rename('run', 'elsewhere')")
    stderr = running.communicate()[1]
    assert running.returncode == 1
    assert stderr == (
        f"fruits: {tmp_path}/run/notebooks was moved or removed while notebooks ran: give the run "
        "folder's new place to the same command, it goes on from there\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_kernel_starts_where_tmpdir_is_long(tmp_path, monkeypatch):
    """Their sockets are files, and the path of a socket has 107 bytes at most."""
    (tmp_path / ("long" * 40)).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 40)))
    assert dead_kernel(start_here(tmp_path, "import os; os.kill(os.getpid(), 9)")) == "Kernel died"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_one_line_and_ends_the_kernel(tmp_path, number):
    begun = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); "
    running = start_here(tmp_path, begun + "time.sleep(600)")
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.05)
    running.send_signal(number)
    _, stderr = running.communicate()
    assert stderr == "fruits: interrupted: the same command goes on where it stopped\n"
    assert running.returncode == 128 + number
    assert (tmp_path / "run/.lease").read_text() == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.slow
def test_export_makes_a_file_that_a_run_takes(tmp_path):
    target = tmp_path / "network.tflite"
    command = ["export", "--weights", "random", "--input-size", "64", "--to", str(target)]
    answer = CliRunner().invoke(cli.main, command)
    assert answer.exit_code == 0, answer.output
    assert target.read_bytes()[4:8] == b"TFL3"


def test_export_says_that_it_cannot_write_before_it_builds_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "export", None)
    (tmp_path / "file").write_text("no folder")
    command = ["export", "--weights", "random", "--to", f"{tmp_path}/file/network.tflite"]
    answer = CliRunner().invoke(cli.main, command)
    assert answer.exit_code == 1
    assert answer.stderr == (
        f"fruits: --to={tmp_path}/file cannot be written (File exists): give a folder that you may "
        "write to and that has room\n"
    )


def test_export_makes_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "export", lambda *_: b"network")
    command = ["export", "--weights", "random", "--to", f"{tmp_path}/missing/network.tflite"]
    assert CliRunner().invoke(cli.main, command).exit_code == 0
    assert (tmp_path / "missing/network.tflite").read_bytes() == b"network"


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
    assert len(files) == GOOD + REJECTS + SET_ASIDE
