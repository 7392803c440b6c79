"""One HTML report of a run, from its executed notebooks and its manifest."""

import html
import json

import nbformat
from nbconvert import HTMLExporter
from traitlets.config import Config

from fruits_lib.storage import read_text, write_text

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
        color: #222; }}
h1 {{ font-size: 1.5rem; margin: 3rem 0 0.5rem; border-top: 1px solid #ddd; padding-top: 1.5rem; }}
h1.title {{ border: 0; font-size: 2rem; margin-top: 0; padding-top: 0; }}
pre {{ background: #f6f6f4; padding: 0.7rem 1rem; overflow-x: auto; font-size: 0.85rem; }}
table {{ border-collapse: collapse; }}
td, th {{ border: 0; padding: 0.15rem 1.2rem 0.15rem 0; text-align: left; vertical-align: top; }}
thead {{ display: none; }}
img {{ max-width: 100%; }}
.anchor-link, .jp-InputPrompt, .jp-OutputPrompt, .prompt {{ display: none; }}
.ansi-red-fg {{ color: #b00020; }}
</style></head><body>
<h1 class="title">{title}</h1>
<table>{summary}</table>
{body}
</body></html>
"""


def write_report(run_dir: str, notebooks: list[str], summary: dict[str, str]) -> None:
    """Write `report.html` into a run folder: what its notebooks say and show, without their code.

    Parameters
    ----------
    run_dir : str
        Path or URI.
    notebooks : list of str
        The executed notebooks, in order; those that did not run are left out.
    summary : dict of str to str
        Shown at the top.
    """
    merged = nbformat.v4.new_notebook()
    for path in notebooks:
        for cell in _cells(path):
            if cell.cell_type == "code":  # progress bars are for those who wait
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
                if not cell.outputs:
                    _drop_sentence(merged.cells)
                    continue
            merged.cells.append(cell)
    for number, cell in enumerate(merged.cells):
        cell["id"] = f"cell-{number}"
    config = Config()
    config.HTMLExporter.exclude_input = True
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in summary.items()
    )
    body, _ = HTMLExporter(config=config, template_name="basic").from_notebook_node(merged)
    page = PAGE.format(title="Fruits run", summary=rows, body=body)
    write_text(f"{run_dir}/report.html", page)


def _cells(path: str) -> list[nbformat.NotebookNode]:
    try:
        return nbformat.reads(read_text(path), as_version=4).cells
    except FileNotFoundError:
        return []


def _drop_sentence(cells: list[nbformat.NotebookNode]) -> None:
    """Drop the sentence before a cell that shows nothing, such as "Start Spark"."""
    if cells and cells[-1].cell_type == "markdown" and not cells[-1].source.startswith("#"):
        cells.pop()


def read_manifest(run_dir: str) -> dict:
    """Return a run's manifest, without Spark; an empty one if there is none."""
    try:
        return json.loads(read_text(f"{run_dir}/manifest.json"))
    except FileNotFoundError:
        return {}


def summarize(run_dir: str, seconds: float) -> dict[str, str]:
    """Return what a run came to, as far as it got, by name.

    Parameters
    ----------
    run_dir : str
        Path or URI.
    seconds : float
        Wall time of the whole run.
    """
    manifest = read_manifest(run_dir)
    lines = {}
    if load := manifest.get("load"):
        lines["images in"] = f"{load['images']:,} of {load['labels']} labels"
        lines["images in"] += f" ({load['skipped']} skipped), from {load['data']}"
    if features := manifest.get("featurize"):
        lines["features out"] = f"{features['features']:,} x {features['width']:,}"
        lines["features out"] += f" ({features['computed']:,} computed now)"
        lines["features out"] += f" by {features['backbone']}, {features['weights']} weights"
        lines["rejects"] = f"{features['rejects']:,}"
    if picked := manifest.get("pick_k"):
        for key, name in (("raw", "raw"), ("standardized", "standardised")):
            chosen = " <- chosen" if picked["standardize"] == (key == "standardized") else ""
            k, share = picked[key]["k"], picked[key]["explained_variance"]
            lines[f"k {name}"] = f"{k:,} explains {share:.2%} of the variance{chosen}"
    if checks := manifest.get("verify"):
        lines["checks passed"] = f"{checks['passed']} of {len(checks['checks'])}"
    lines["wall time"] = f"{seconds:.0f} s"
    lines["report"] = f"{run_dir}/report.html"
    return lines
