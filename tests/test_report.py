"""The report: what notebooks say and show, without their code; and the figures of a run."""

import json
import re

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pipeline import entry

from fruits_lib import report

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
MANIFEST = {
    "run": "file:/runs/one",
    "created": "2026-11-26T10:00:00+00:00",
    "environment": {
        "fruits_lib": "0.3",
        "git_commit": "c0ffee",
        "python": "3.11.9",
        "java": "17.0.1",
        "spark": "3.5.8",
        "hadoop": "3.3.4",
        "master": "local[2]",
        "parallelism": 2,
        "packages": {"numpy": "1.26.4", "tensorflow-cpu": None},
    },
    "load": {
        "finished": "2026-11-26T10:01:00+00:00",
        "seconds": 4.2,
        "data": "s3://bucket/photographs",
        "files": 1239,
        "images": 1234,
        "labels": 6,
        "set_aside": [
            {"reason": "hidden", "extension": ".jpg", "files": 1},
            {"reason": "no image", "extension": ".txt", "files": 4},
        ],
    },
    "featurize": {
        **entry("featurize"),
        "finished": "2026-11-26T10:02:00+00:00",
        "seconds": 60.0,
        "features": 1231,
        "rejects": 3,
        "width": 1280,
        "computed": 31,
        "backbone": "mobilenet_v2",
        "weights": "imagenet",
    },
    "pick_k": {
        **entry("pick_k"),
        "finished": "2026-11-26T10:03:00+00:00",
        "standardize": True,
        "raw": {"k": 72, "explained_variance": 0.9008},
        "standardized": {"k": 86, "explained_variance": 0.90044},
    },
    "verify": {"finished": "2026-11-26T10:04:00+00:00", "passed": 1, "checks": [{}, {}]},
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


def test_a_label_that_is_html_is_shown_as_text(page, tmp_path):
    label = "<img src=x onerror=alert(1)>"
    load = {**MANIFEST["load"], "data": f"/data/{label}"}
    (tmp_path / "manifest.json").write_text(json.dumps({**MANIFEST, "load": load}))
    outputs = [
        stream(label),
        new_output("execute_result", {"text/plain": label}),
        new_output("display_data", {"text/html": pd.DataFrame({label: [label]})._repr_html_()}),
        new_output("error", traceback=[f"FruitsError: {label}"]),
    ]
    shown = page(
        [new_code_cell("x", outputs=[output]) for output in outputs], summary={"in": label}
    )
    assert "<img" not in shown
    assert shown.count("&lt;img src=x onerror=alert(1)&gt;") == len(outputs) + 3


def test_a_template_in_the_working_folder_is_not_taken(page, tmp_path, monkeypatch):
    (tmp_path / "report.html.j2").write_text("another page")
    monkeypatch.chdir(tmp_path)
    assert "another page" not in page([new_markdown_cell("mine")])


def test_a_progress_bar_is_shown_as_it_ended(page):
    pieces = [stream("\r 10% bar"), stream("err", "stderr"), stream("\r100% bar"), stream("\nend")]
    shown = page([new_code_cell("run()", outputs=pieces)])
    assert "<pre>100% bar\nend</pre>" in shown
    assert " 10% bar" not in shown


def picture():
    return new_code_cell("x", outputs=[new_output("display_data", {"image/png": PIXEL})])


def test_the_contents_lead_to_every_title_and_figure(page):
    shown = page(
        [
            new_markdown_cell("# 1 · Load\n\nFind the photographs."),
            new_markdown_cell("Draw `them`, *all* of [them](http://x). Twice."),
            picture(),
            new_markdown_cell("## More & more"),
        ],
        [new_markdown_cell("# 2 · Featurize"), new_markdown_cell("Why?"), picture()],
    )
    listed = re.findall(r'<a href="#cell-id=(\d+)">(.*?)</a>', shown)
    assert [text for _, text in listed] == [
        "1 · Load",
        "Draw them, all of them",
        "More &amp; more",
        "2 · Featurize",
        "Why?",
    ]
    for number, _ in listed:
        assert shown.count(f'id="cell-id={number}"') == 1
    assert 'alt="Why?"' in shown


def test_the_contents_lead_to_the_parts_of_the_page(page, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    shown = page([])
    for anchor in re.findall(r'href="#(\w+)"', shown):
        assert f'id="{anchor}"' in shown


def test_date_versions_commit_and_parameters_are_those_of_the_manifest(page, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    shown = page([])
    for name, value in {
        "date": "2026-11-26 10:00:00 UTC to 2026-11-26 10:04:00 UTC",
        "run folder": str(tmp_path),  # where it lies now, whatever its manifest says
        "code": "fruits_lib 0.3, commit c0ffee",
        "versions": "Python 3.11.9, Java 17.0.1, Spark 3.5.8, Hadoop 3.3.4, numpy 1.26.4",
        "data": "s3://bucket/photographs",
        "images": "1,234",
        "backbone": "mobilenet_v2",
        "standardize": "True",
    }.items():
        assert f"<th>{name}</th><td>{value}</td>" in shown
    assert "finished 2026-11-26 10:02:00 UTC, 60.0 s" in shown
    assert "[{" not in shown


def test_files_are_links_that_work_where_the_folder_is(page, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    shown = page([new_markdown_cell("# One")])
    links = set(re.findall(r'href="([^#"]+)"', shown))
    folders = {"index/", "set_aside/", "backbone/", "features/", "rejects/", "spectrum/"}
    assert links == {"0.ipynb", "manifest.json", *folders}


def test_half_a_notebook_is_left_out_with_a_line(tmp_path):
    whole = nbformat.writes(new_notebook(cells=[new_markdown_cell("# Whole")]))
    (tmp_path / "1.ipynb").write_text(whole)
    (tmp_path / "2.ipynb").write_text(whole[: len(whole) // 2])
    (tmp_path / "3.ipynb").write_text("[]")
    report.write_report(str(tmp_path), [f"{tmp_path}/{n}.ipynb" for n in (1, 2, 3)], {})
    shown = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Whole" in shown
    assert re.sub(r"<.*?>", "", shown).count("damaged, not shown here: run it again") == 2


@pytest.mark.parametrize("csv", [True, False])
def test_the_csv_file_is_a_link_only_if_it_was_asked_for(page, tmp_path, csv):
    pca = entry("pca", finished="2026-11-26T10:03:30+00:00", csv=csv)
    (tmp_path / "manifest.json").write_text(json.dumps({**MANIFEST, "pca": pca}))
    assert ('href="pca_csv/"' in page([])) is csv


def test_links_survive_odd_names(tmp_path):
    nbformat.write(new_notebook(cells=[new_markdown_cell("# One")]), tmp_path / "50% #1.ipynb")
    report.write_report(tmp_path.as_uri(), [str(tmp_path / "50% #1.ipynb")], {})
    shown = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<a href="50%25%20%231.ipynb">50% #1.ipynb</a>' in shown


def test_a_run_that_failed_at_once_has_a_report(page):
    shown = page([new_markdown_cell("# Load")])
    assert "<th>report written</th>" in shown
    assert "Parameters" not in shown


@pytest.fixture
def summary(tmp_path):
    """A function that returns the summary of a manifest with some entries replaced."""

    def summarize(**replaced):
        manifest = {
            name: {**entry, **replaced.get(name, {})} if isinstance(entry, dict) else entry
            for name, entry in MANIFEST.items()
        }
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        return report.summarize(str(tmp_path), 61.4)

    return summarize


def test_summary_of_a_whole_run(summary, tmp_path):
    lines = summary()
    assert lines.pop("warning").startswith("1,231 photographs for 1,280 features: ")
    assert lines == {
        "files": "1,239 = 1,234 images of 6 labels + 5 set aside, in s3://bucket/photographs",
        "set aside": "4 no image (.txt) + 1 hidden (.jpg)",
        "images": "1,234 = 1,231 with features + 3 rejected",
        "features": "1,231 x 1,280 by mobilenet_v2, imagenet weights "
        "(31 of the 1,234 images computed now)",
        "k raw": "72 explains 90.08% of the variance",
        "k standardized": "86 explains 90.04% of the variance <- chosen",
        "checks passed": "1 of 2",
        "wall time": "61 s",
        "report": f"{tmp_path}/report.html",
    }


def test_summary_names_the_split_that_was_fitted(summary):
    lines = summary(pick_k={"fit_split": "Training", "images": 900, "warning": "900 are few"})
    assert lines["fitted on"] == "Training alone, 900 images"
    assert lines["warning"] == "900 are few"


def test_summary_of_a_run_that_failed_at_once(tmp_path):
    assert list(report.summarize(str(tmp_path), 1)) == ["wall time", "report"]


def test_summary_without_labels_and_with_nothing_set_aside(summary):
    lines = summary(load={"labels": 0, "files": 1234, "set_aside": []})
    assert (
        lines["files"]
        == "1,234 = 1,234 images (no labels) + 0 set aside, in s3://bucket/photographs"
    )
    assert "set aside" not in lines


def test_summary_of_files_set_aside_for_many_reasons_adds_up(summary):
    aside = [{"reason": f"r{n}", "extension": "", "files": n} for n in range(1, 8)]
    lines = summary(load={"set_aside": aside})
    assert lines["set aside"] == "7 r7 + 6 r6 + 5 r5 + 4 r4 + 6 for other reasons"


def test_summary_is_silent_about_what_was_computed_if_it_was_everything(summary):
    assert summary(featurize={"computed": 1234})["features"].endswith("imagenet weights")


def test_summary_says_when_features_are_not_those_of_the_index(summary):
    lines = summary(load={"images": 1300})
    assert (
        lines["images"] == "1,234 = 1,231 with features + 3 rejected (but 1,300 are in the index)"
    )


def test_summary_shows_why_features_were_refused(summary):
    assert summary(featurize={"error": "too many rejects"})["refused"] == "too many rejects"


@pytest.mark.parametrize(("width", "warned"), [(1231, False), (1232, True)])
def test_summary_warns_of_fewer_photographs_than_features(summary, width, warned):
    assert ("warning" in summary(featurize={"width": width})) is warned
