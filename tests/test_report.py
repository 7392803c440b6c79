"""The report: what notebooks say and show, without their code; and the figures of a run."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fruits_lib import report

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
MANIFEST = {
    "load": {"images": 1234, "labels": 6, "skipped": 1, "data": "s3://bucket/photographs"},
    "featurize": {
        "features": 1231,
        "rejects": 3,
        "width": 1280,
        "computed": 31,
        "backbone": "mobilenet_v2",
        "weights": "imagenet",
    },
    "pick_k": {
        "standardize": True,
        "raw": {"k": 72, "explained_variance": 0.9008},
        "standardized": {"k": 86, "explained_variance": 0.90044},
    },
    "verify": {"passed": 1, "checks": [{}, {}]},
}


def stream(text, name="stdout"):
    return new_output("stream", text=text, name=name)


@pytest.fixture
def page(tmp_path):
    """A function that returns the report of notebooks, each given by its cells."""

    def write(*notebooks, summary=None):
        paths = []
        for number, cells in enumerate(notebooks):
            paths.append(str(tmp_path / f"{number}.ipynb"))
            nbformat.write(new_notebook(cells=cells), paths[-1])
        report.write_report(str(tmp_path), [*paths, str(tmp_path / "none.ipynb")], summary or {})
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


def test_text_output_and_pictures_are_shown_without_code(page):
    shown = page(
        [
            new_markdown_cell("# Load\n\nFind *the* photographs."),
            new_code_cell("secret = 1", outputs=[stream("6 labels")], execution_count=1),
            new_code_cell("x", outputs=[new_output("display_data", {"image/png": PIXEL})]),
            new_code_cell("y", outputs=[new_output("execute_result", {"text/plain": "seven"})]),
        ]
    )
    for text in ("Load</h1>", "Find <em>the</em> photographs.", "6 labels", "seven", PIXEL):
        assert text in shown
    for text in ("secret", "In&nbsp;[", "Out[", "¶", "<script"):
        assert text not in shown


def test_a_silent_cell_takes_its_sentence_along_but_no_heading(page):
    shown = page(
        [
            new_markdown_cell("# Verify"),
            new_code_cell("run_dir = ''"),
            new_markdown_cell("Start Spark."),
            new_code_cell("start()"),
            new_markdown_cell("Compute."),
            new_code_cell("compute()", outputs=[stream("100%|####", "stderr"), stream("done")]),
            new_markdown_cell("Wait."),
            new_code_cell("wait()", outputs=[stream("50%|##", "stderr")]),
            new_markdown_cell("The end."),
        ]
    )
    for text in ("Verify</h1>", "Compute.", "done", "The end."):
        assert text in shown
    for text in ("Start Spark.", "Wait.", "%|"):
        assert text not in shown


@pytest.mark.filterwarnings("error")  # nbformat would warn the user
def test_notebooks_follow_each_other_although_cells_share_ids(page):
    cells = [[new_markdown_cell(text, id="same")] for text in ("first", "second")]
    shown = page(*cells)
    assert shown.index("first") < shown.index("second")


def test_an_error_is_shown_without_its_terminal_codes(page):
    error = new_output("error", traceback=["\x1b[0;31mFruitsError\x1b[0m: no image"])
    shown = page([new_code_cell("load()", outputs=[error])])
    assert '<span class="ansi-red-fg">FruitsError</span>: no image' in shown
    assert "\x1b" not in shown


def test_the_summary_is_a_table_in_which_nothing_is_html(page):
    shown = page([], summary={"images in": "3 of 1 label, from a<b>&c"})
    assert "<th>images in</th><td>3 of 1 label, from a&lt;b&gt;&amp;c</td>" in shown


def test_a_template_in_the_working_folder_is_not_taken(page, tmp_path, monkeypatch):
    (tmp_path / "report.html.j2").write_text("another page")
    monkeypatch.chdir(tmp_path)
    assert "another page" not in page([new_markdown_cell("mine")])


def test_summary_of_a_whole_run(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    assert report.summarize(str(tmp_path), 61.4) == {
        "images in": "1,234 of 6 labels (1 skipped), from s3://bucket/photographs",
        "features out": "1,231 x 1,280 (31 computed now) by mobilenet_v2, imagenet weights",
        "rejects": "3",
        "k raw": "72 explains 90.08% of the variance",
        "k standardized": "86 explains 90.04% of the variance <- chosen",
        "checks passed": "1 of 2",
        "wall time": "61 s",
        "report": f"{tmp_path}/report.html",
    }


def test_summary_of_a_run_that_failed_at_once(tmp_path):
    assert list(report.summarize(str(tmp_path), 1)) == ["wall time", "report"]
