"""report.html: what a run's notebooks say and show, without their code."""

from itertools import pairwise
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

from fruits_lib.runs import read_manifest
from fruits_lib.storage import read_text, write_text

TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(run_dir: str, notebooks: list[str], summary: dict[str, str]) -> None:
    """Write `report.html` into a run folder, a path or URI.

    It shows the executed notebooks in this order, leaving out those that do not exist, below a
    table of the summary (see `summarize`).
    """
    merged = nbformat.v4.new_notebook()
    for path in notebooks:
        merged.cells += _shown(path)
    for number, cell in enumerate(merged.cells):
        cell["id"] = str(number)  # nbformat warns of ids that two notebooks share
    exporter = HTMLExporter(
        template_name="basic", template_file=str(TEMPLATE), exclude_anchor_links=True
    )
    page, _ = exporter.from_notebook_node(merged, {"summary": summary})
    write_text(f"{run_dir}/report.html", page)


def _shown(path: str) -> list[nbformat.NotebookNode]:
    """Return the cells that show something."""
    try:
        cells = nbformat.reads(read_text(path), as_version=4).cells
    except FileNotFoundError:
        return []
    for cell in cells:
        if cell.cell_type == "code":  # stderr holds progress bars
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]

    def silent(cell) -> bool:
        return cell is not None and cell.cell_type == "code" and not cell.outputs

    # A sentence such as "Start Spark." is left out with its silent cell; headings stay.
    return [
        cell
        for cell, following in pairwise([*cells, None])
        if not silent(cell) and (cell.source.startswith("#") or not silent(following))
    ]


def summarize(run_dir: str, seconds: float) -> dict[str, str]:
    """Return the main figures of a run, finished or not, by name; `seconds` is its wall time."""
    manifest = read_manifest(run_dir)
    lines = {}
    if load := manifest.get("load"):
        lines["images in"] = (
            f"{load['images']:,} of {load['labels']} labels ({load['skipped']} skipped), "
            f"from {load['data']}"
        )
    if features := manifest.get("featurize"):
        lines["features out"] = (
            f"{features['features']:,} x {features['width']:,} ({features['computed']:,} computed "
            f"now) by {features['backbone']}, {features['weights']} weights"
        )
        lines["rejects"] = f"{features['rejects']:,}"
    if picked := manifest.get("pick_k"):
        for name in ("raw", "standardized"):
            k, share = picked[name]["k"], picked[name]["explained_variance"]
            chosen = " <- chosen" if picked["standardize"] == (name == "standardized") else ""
            lines[f"k {name}"] = f"{k:,} explains {share:.2%} of the variance{chosen}"
    if checks := manifest.get("verify"):
        lines["checks passed"] = f"{checks['passed']} of {len(checks['checks'])}"
    lines["wall time"] = f"{seconds:.0f} s"
    lines["report"] = f"{run_dir}/report.html"
    return lines
