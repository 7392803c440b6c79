"""The notebooks as files: readable by papermill, sparkmagic and nbval, and compared for real."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from fruits_lib import parameters
from fruits_lib.stages import STAGES

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

KERNEL = {"name": "python3", "display_name": "Python 3"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def test_the_notebooks_are_numbered_in_order_and_one_applies_a_run():
    names = [path.stem for path in NOTEBOOKS]
    assert names == [*(stage for stage in STAGES.values() if stage != "apply"), "apply"]


@each_notebook
def test_opens_with_what_it_reads_and_writes(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "| reads |" in first.source
    assert "| writes |" in first.source


@each_notebook
def test_every_parameter_has_a_type_and_a_comment(path):
    declared = parameters.declared(path)
    assert "run_dir" in declared
    for entry in declared.values():
        assert entry["type"] in parameters.TYPES
        assert entry["help"]


@each_notebook
def test_papermill_reads_the_same_parameters(path):
    theirs = papermill.inspect_notebook(path)
    assert {name: list(entry.values()) for name, entry in parameters.declared(path).items()} == {
        name: [entry[key] for key in ("inferred_type_name", "default", "help")]
        for name, entry in theirs.items()
    }


@each_notebook
def test_every_code_cell_was_counted_so_that_nbval_compares_it(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_no_committed_output_names_a_machine_path_or_an_error(path):
    text = path.read_text(encoding="utf-8")
    assert "/tmp/" not in text.replace("/tmp/fruits", "")
    assert str(Path.home()) not in text
    assert '"output_type": "error"' not in text


@each_notebook
def test_cells_are_plain_python_that_both_kernels_run(path):
    for cell in code_cells(path):
        lines = cell.source.splitlines()
        assert lines[0][0] not in "%!"
        magics = [line for line in lines if line.startswith(("%", "!", "get_ipython", "await"))]
        assert magics in ([], ["%matplot plt"])
        if magics:  # Livy drops what such a cell prints, and wants the magic last
            assert lines[-1] == "%matplot plt"
            assert "print(" not in cell.source


@each_notebook
def test_the_last_cell_stops_spark(path):
    assert "session.stop_session(spark)" in code_cells(path)[-1].source


@each_notebook
def test_a_sentence_stands_before_every_step(path):
    cells = nbformat.read(path, as_version=4).cells
    kinds = "".join(cell.cell_type[0] for cell in cells)
    assert "ccc" not in kinds
    assert all(len(cell.source.splitlines()) <= 12 for cell in cells)


def nbval(path, folder):
    """Run nbval over one notebook as `make test` does; return (exit code, output)."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval"]
    command += ["--nbval-sanitize-with", str(ROOT / "tests" / "nbval_sanitize.cfg"), str(path)]
    answer = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
    )
    return answer.returncode, answer.stdout


@pytest.mark.slow
def test_nbval_sees_one_changed_figure(tmp_path):
    """In what 01 prints, shown again by cells that print nothing else."""
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL})
    printed = [output for cell in code_cells(NOTEBOOKS[0]) for output in cell.outputs]
    for number, output in enumerate((output for output in printed if "text" in output), start=1):
        source = f"print({output.text!r}, end='')"
        stream = nbformat.v4.new_output("stream", text=output.text)
        cell = nbformat.v4.new_code_cell(source, execution_count=number, outputs=[stream])
        notebook.cells.append(cell)
    nbformat.write(notebook, tmp_path / "right.ipynb")
    (shown,) = [cell.outputs[0] for cell in notebook.cells if "123 images" in cell.outputs[0].text]
    shown.text = shown.text.replace("123 images", "124 images")
    nbformat.write(notebook, tmp_path / "wrong.ipynb")

    right, _ = nbval(tmp_path / "right.ipynb", tmp_path)
    wrong, output = nbval(tmp_path / "wrong.ipynb", tmp_path)

    assert right == 0
    assert wrong == 1
    assert "1 failed" in output
    assert "124 images" in output
