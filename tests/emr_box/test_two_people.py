"""The notebooks on YARN, by papermill and in the browser at once, beside the plain kernel."""

import json
import re
import subprocess
from pathlib import Path

import hub
import nbformat
import numpy as np
import pandas as pd
import pytest
from box import BUCKET, FRUITS
from work import (
    NOTEBOOKS,
    code_cells,
    error,
    pictures,
    read_manifest,
    read_notebook,
    read_rows,
    text,
)

# jovyan first: amina works while he does.


def test_a_wrong_password_is_refused(jovyan):
    assert jovyan[1].refusal == "Invalid username or password"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_run_all_runs_every_cell_in_the_browser(jovyan, name):
    notebook = jovyan[1].notebooks[name]
    assert error(notebook) == ""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_papermill_says_that_every_notebook_ran(amina):
    answers = amina[1].result()
    errors = "\n".join(answer.stderr[-2000:] for answer in answers.values())
    codes = {name: answer.returncode for name, answer in answers.items()}
    assert codes == dict.fromkeys([*NOTEBOOKS, "apply"], 0), errors


def test_the_model_gives_photographs_the_labels_that_it_gave_them_before(box, amina):
    amina[1].result()
    columns = ["path", "predicted"]
    known, new = (read_rows(box, uri, "labels", columns) for uri in (amina[0], f"{amina[0]}-new"))
    assert known == new


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_says_the_same_in_both_kernels(box, amina, plain, weights, backbone, name):
    amina[1].result()
    run_dir, data = plain
    here = nbformat.read(f"{run_dir}/notebooks/{name}.ipynb", as_version=4)
    there = read_notebook(box, f"{amina[0]}/notebooks/{name}.ipynb")
    replaced = {run_dir: "RUN", data: "DATA", amina[0]: "RUN", f"s3://{BUCKET}/photographs": "DATA"}
    replaced |= {weights: "WEIGHTS", str(backbone): "WEIGHTS"}
    assert [neutral(text(cell), replaced) for cell in code_cells(there)] == [
        neutral(text(cell), replaced) for cell in code_cells(here)
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_shows_the_same_figures_in_both_kernels(box, amina, plain, name):
    amina[1].result()
    here = nbformat.read(f"{plain[0]}/notebooks/{name}.ipynb", as_version=4)
    there = read_notebook(box, f"{amina[0]}/notebooks/{name}.ipynb")
    shown = [[figure.shape[1] > 300 for figure in pictures(cell)] for cell in code_cells(there)]
    assert shown == [[figure.std() > 1 for figure in pictures(cell)] for cell in code_cells(here)]


def test_the_manifest_is_the_same_but_for_times_and_places(box, amina, plain):
    amina[1].result()
    here = json.loads(Path(plain[0], "manifest.json").read_text(encoding="utf-8"))
    there = read_manifest(box, amina[0])
    same = here["environment"]["packages"].keys() - {"pyspark", "tensorflow-cpu"}  # not on nodes
    for name in same:
        assert there["environment"]["packages"][name] == here["environment"]["packages"][name]
    assert there["environment"]["spark"] == here["environment"]["spark"]
    assert timeless(there) == timeless(here)


def test_the_scores_are_the_same(box, amina, plain):
    amina[1].result()
    here = pd.read_parquet(Path(plain[0], "pca"))
    here = here.set_index("path").sort_index()
    there = scores(box, amina[0])
    assert list(there) == list(here.index)
    np.testing.assert_allclose(np.stack(list(there.values())), np.stack(here["pca"]), atol=1e-6)


def test_injected_parameters_arrive(box, amina, plain):
    amina[1].result()
    here = nbformat.read(f"{plain[0]}/notebooks/03_pick_k.ipynb", as_version=4)
    for notebook in (here, read_notebook(box, f"{amina[0]}/notebooks/03_pick_k.ipynb")):
        assert "variance = 0.8" in "".join(cell.source for cell in notebook.cells)
    assert read_manifest(box, amina[0])["pick_k"]["variance"] == 0.8


def test_a_failing_cell_fails_the_run_in_both_kernels(failed, plain, tmp_path):
    command = [FRUITS, "run", "--data", plain[1], "--run-dir", str(tmp_path / "empty")]
    here = subprocess.run([*command, "--only", "04"], capture_output=True, text=True)
    message = "holds no run: check the path, or run 01_load first"
    assert (failed.returncode, here.returncode) == (1, 1)
    assert message in failed.stderr
    assert message in here.stderr.splitlines()[-1]


def test_saved_notebooks_are_there_after_the_hub_has_restarted(box, jovyan):
    _, visit, person = jovyan
    box.kill("hub")  # with everybody's server
    box.start("hub")
    box.check(hub.HUB_ANSWERS)
    assert person.log_in() == ""
    for name in NOTEBOOKS:
        saved = nbformat.from_dict(person.read(f"{name}.ipynb"))
        assert [cell.outputs for cell in code_cells(saved)] == [
            cell.outputs for cell in code_cells(visit.notebooks[name])
        ]


def test_two_people_at_once_get_the_same_scores(box, amina, jovyan):
    amina[1].result()
    hers, his = scores(box, amina[0]), scores(box, jovyan[0])
    assert list(hers) == list(his)
    np.testing.assert_allclose(
        np.stack(list(his.values())), np.stack(list(hers.values())), atol=1e-6
    )


def test_yarn_has_no_application_left_after_the_last_cell(box, amina, jovyan):
    amina[1].result()
    box.wait("YARN to be idle", lambda: box.applications("ACCEPTED", "RUNNING") == [])
    assert box.livy("sessions")["total"] == 0
    finished = {app["finalStatus"] for app in box.applications("FINISHED")}
    assert finished == {"SUCCEEDED"}


def scores(box, run_dir):
    """Return {path: scores} of a run in the bucket."""
    return dict(read_rows(box, run_dir, "pca", ["path", "pca"]))


def neutral(said: str, replaced: dict[str, str]) -> str:
    """Return what a cell printed without places, progress, and sparkmagic's own words."""
    said = said.removeprefix("Starting Spark application\n")
    said = said.removeprefix("SparkSession available as 'spark'.\n").strip()
    for place, name in replaced.items():
        said = said.replace(place, name)
    return re.sub(r"\s*\d+%\|[^\n]*\]", "", said)  # the progress bar


def timeless(manifest: dict) -> dict:
    """Return a manifest without times, places and the machine that wrote it."""
    dropped = {"run", "created", "environment", "data", "weights", "seconds", "finished"}
    dropped |= {"figure", "shown"}  # of checks: rounding errors
    dropped |= {"sample_seed"}  # another one in each run
    return {
        key: [timeless(entry) for entry in value]
        if isinstance(value, list)
        else timeless(value)
        if isinstance(value, dict)
        else round(value, 9)
        if isinstance(value, float)
        else value
        for key, value in manifest.items()
        if key not in dropped
    }
