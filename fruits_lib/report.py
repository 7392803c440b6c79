"""report.html: what a run's notebooks say and show, without their code, and how it was made."""

import re
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from fruits_lib.pca import few_images
from fruits_lib.runs import read_manifest
from fruits_lib.storage import local_path, read_text, write_text
from fruits_lib.text import printable

TEMPLATE = Path(__file__).with_name("report.html.j2")
# What each step leaves in the run folder.
FILES = {
    "load": {
        "index/": "the photographs: path, label, split",
        "set_aside/": "all other files, with the reason",
    },
    "featurize": {
        "backbone/": "the network, one LiteRT file",
        "features/": "a feature vector per photograph",
        "rejects/": "the photographs that were rejected, with the reason",
    },
    "pick_k": {"spectrum/": "eigenvalues, and the k that was chosen"},
    "pca": {
        "model/": "the model for Spark ML",
        "model.npz": "the model for NumPy",
        "pca/": "the scores of each photograph",
        "pca_csv/": "the same as text",
    },
    "classify": {
        "classifier/": "the model with a classifier, for Spark ML",
        "classifier.npz": "the classifier for NumPy",
        "labels/": "the label that each photograph got",
    },
    "apply": {
        "pca/": "the scores of each photograph, by the model of another run",
        "labels/": "the label that each photograph got",
    },
}


def write_report(run_dir: str, notebooks: list[str], summary: dict[str, str]) -> None:
    """Write `report.html` into a run folder, a path or URI.

    It shows the executed notebooks in this order, leaving out those that do not exist. Above them
    are a summary (see `summarize`), what the manifest tells of the run, and links to its files. A
    damaged notebook, such as one that a killed program half wrote, has a line instead.
    """
    manifest = read_manifest(run_dir)
    merged = nbformat.v4.new_notebook()
    links = {}
    for path in notebooks:
        shown = _shown(path)
        if shown or shown is None:
            merged.cells += shown or []
            name = path.removeprefix(f"{local_path(run_dir) or run_dir.rstrip('/')}/")
            links[name] = "damaged, not shown here: run it again" if shown is None else ""
    for step, files in FILES.items():
        links |= files if step in manifest else {}
    if not manifest.get("pca", {}).get("csv"):
        links.pop("pca_csv/", None)
    if not manifest.get("apply", {"labels": True})["labels"]:
        del links["labels/"]
    if manifest:
        links["manifest.json"] = "parameters, versions, counts and checks, for programs"
    for number, cell in enumerate(merged.cells):
        cell["id"] = str(number)  # nbformat warns of ids that two notebooks share
    resources = {
        "summary": summary,
        "facts": _facts(manifest, run_dir),
        "steps": _steps(manifest),
        "files": [(quote(name), name, what) for name, what in links.items()],
        "contents": _contents(merged.cells),
    }
    exporter = HTMLExporter(
        template_name="basic", template_file=str(TEMPLATE), exclude_anchor_links=True
    )
    page, _ = exporter.from_notebook_node(merged, resources)
    write_text(f"{run_dir.rstrip('/')}/report.html", page)


# --- what the notebooks show --------------------------------------------------------------------


def _shown(path: str) -> list[nbformat.NotebookNode] | None:
    """Return the cells that show something, None if the notebook is damaged."""
    try:
        notebook = nbformat.reads(read_text(path), as_version=4)
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError, nbformat.ValidationError):  # half of one, or none at all
        return None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    # Stdout comes in pieces; of a progress bar its last state stays.
    cells = CoalesceStreamsPreprocessor(enabled=True)(notebook, {})[0].cells

    def silent(cell) -> bool:
        return cell is not None and cell.cell_type == "code" and not cell.outputs

    # A sentence such as "Start Spark." is left out with its silent cell; headings stay.
    return [
        cell
        for cell, following in pairwise([*cells, None])
        if not silent(cell) and (cell.source.startswith("#") or not silent(following))
    ]


def _contents(cells: list) -> list[tuple[str, str, bool]]:
    """Return (cell's id, text, whether it is a notebook's title) of every heading and figure.

    A figure is called what the sentence above it says, which becomes its alternative text.
    """
    contents, sentence = [], ""
    for cell in cells:
        if cell.cell_type == "markdown":
            line = re.sub(r"[`*]|\[(.*?)\]\(.*?\)", r"\1", cell.source.partition("\n")[0])
            sentence = re.split(r"(?<=[.?!:]) ", line.lstrip("# "))[0].rstrip(".:")
            if line.startswith("#"):
                contents.append((cell["id"], sentence, line.startswith("# ")))
        elif sentence and any("image/png" in output.get("data", {}) for output in cell.outputs):
            contents.append((cell["id"], sentence, False))
            cell.metadata["alt"] = sentence
    return contents


# --- what the manifest tells --------------------------------------------------------------------


def _facts(manifest: dict, run_dir: str) -> dict[str, str]:
    """Return when, where and with which versions a run was made, by name."""
    facts = {}
    if created := manifest.get("created"):
        finished = [step["finished"] for step in _entries(manifest).values()]
        facts["date"] = " to ".join(map(_time, [created, *sorted(finished)[-1:]]))
        facts["run folder"] = str(local_path(run_dir) or run_dir.rstrip("/"))
    if environment := manifest.get("environment"):
        commit = environment["git_commit"]
        facts["code"] = f"fruits_lib {environment['fruits_lib']}, " + (
            f"commit {commit}" if commit else "not from a git checkout"
        )
        names = ("python", "java", "spark", "hadoop")
        versions = {name.title(): environment[name] for name in names} | environment["packages"]
        facts["versions"] = ", ".join(f"{name} {v}" for name, v in versions.items() if v)
        facts["ran on"] = f"{environment['master']}, parallelism {environment['parallelism']}"
    facts["report written"] = _time(datetime.now(UTC).isoformat(timespec="seconds"))
    return facts


def _steps(manifest: dict) -> list[tuple[str, str, dict[str, str]]]:
    """Return (name, when and how long, parameters and counts) of every step that was recorded."""
    return [
        (
            name,
            f"finished {_time(step['finished'])}, {step.get('seconds', 0):,} s",
            {
                key: f"{value:,}" if type(value) is int and key != "seed" else str(value)
                for key, value in step.items()
                if key not in ("seconds", "finished")
                and not isinstance(value, dict | list)
                and value != ""
            },
        )
        for name, step in _entries(manifest).items()
    ]


def _entries(manifest: dict) -> dict[str, dict]:
    return {
        name: step
        for name, step in manifest.items()
        if isinstance(step, dict) and "finished" in step
    }


def _time(stamp: str) -> str:
    return stamp.replace("T", " ").replace("+00:00", " UTC")


# --- the summary --------------------------------------------------------------------------------


def summarize(run_dir: str, seconds: float) -> dict[str, str]:
    """Return the main figures of a run, finished or not, by name; `seconds` is its wall time."""
    manifest = read_manifest(run_dir)
    lines = {}
    if load := manifest.get("load"):
        lines |= _files(load)
    if features := manifest.get("featurize"):
        lines |= _features(features, load["images"])
    if picked := manifest.get("pick_k"):
        if split := picked.get("fit_split"):
            lines["fitted on"] = f"{split} alone, {picked['images']:,} images"
        if warning := picked.get("warning"):  # of the fitted images, which may be fewer
            lines["warning"] = warning
        for name in ("raw", "standardized"):
            k, share = picked[name]["k"], picked[name]["explained_variance"]
            chosen = " <- chosen" if picked["standardize"] == (name == "standardized") else ""
            lines[f"k {name}"] = f"{k:,} explains {share:.2%} of the variance{chosen}"
    if checks := manifest.get("verify"):
        lines["checks passed"] = f"{checks['passed']} of {len(checks['checks'])}"
    if labels := manifest.get("classify"):
        lines |= _labels(labels)
    if applied := manifest.get("apply"):
        lines.pop("warning", None)  # about components, and none are fitted
        lines |= _applied(applied)
    lines["wall time"] = f"{seconds:.0f} s"
    lines["report"] = f"{run_dir.rstrip('/')}/report.html"
    return {name: printable(line) for name, line in lines.items()}


def _labels(labels: dict) -> dict[str, str]:
    """Say how well labels were recognised, and on what."""
    lines = {
        "labels": f"{labels['accuracy']:.2%} right of {labels['tested']:,} photographs "
        f"({labels['tested_on']}), {labels['knn_accuracy']:.2%} by {labels['neighbors']:,} "
        f"nearest neighbours; fitted on {labels['fitted']:,} ({labels['fitted_on']})"
    }
    if "fruits_accuracy" in labels:
        lines["new fruits"] = f"{labels['fruits_accuracy']:.2%} right of fruits held out whole"
    checks = labels["checks"]
    passed = sum(check["passed"] is True for check in checks)
    lines["labels checked"] = f"{passed} of {len(checks)}"
    return lines


def _applied(applied: dict) -> dict[str, str]:
    """Say what another run's model made of the photographs."""
    model, checks = applied["run"].removeprefix("file:"), applied["checks"]
    lines = {"scores": f"{applied['images']:,} x {applied['k']:,} by the model of {model}"}
    if "accuracy" in applied:
        lines["labels"] = (
            f"{applied['accuracy']:.2%} of {applied['labelled']:,} images got the label of their "
            "folder"
        )
    passed = sum(check["passed"] is True for check in checks)
    return {**lines, "checks passed": f"{passed} of {len(checks)}"}


def _files(load: dict, kinds: int = 4) -> dict[str, str]:
    """Say what became of the files; of those set aside, the most frequent kinds."""
    aside = sorted(load["set_aside"], key=lambda kind: -kind["files"])
    count = sum(kind["files"] for kind in aside)
    labels = f"of {load['labels']:,} label{'s' * (load['labels'] != 1)}"
    lines = {
        "files": f"{load['files']:,} = {load['images']:,} images "
        f"{labels if load['labels'] else '(no labels)'} + {count:,} set aside, "
        f"in {load['data'].removeprefix('file:')}"
    }
    if aside:
        named = [_kind(kind) for kind in aside[:kinds]]
        if rest := sum(kind["files"] for kind in aside[kinds:]):
            named.append(f"{rest:,} for other reasons")
        lines["set aside"] = " + ".join(named)
    return lines


def _kind(kind: dict) -> str:
    extension = f" ({kind['extension']})" if kind["extension"] else ""
    return f"{kind['files']:,} {kind['reason']}{extension}"


def _features(features: dict, indexed: int) -> dict[str, str]:
    """Say how many images have features; `indexed` is how many 01_load found."""
    n, d, rejected = features["features"], features["width"], features["rejects"]
    images = n + rejected
    lines = {
        "images": f"{images:,} = {n:,} with features + {rejected:,} rejected",
        "features": f"{n:,} x {d:,} by {features['backbone']}, {features['weights']} weights",
    }
    if indexed != images:
        lines["images"] += f" (but {indexed:,} are in the index)"
    if features["computed"] != images:
        lines["features"] += f" ({features['computed']:,} of the {images:,} images computed now)"
    if error := features.get("error"):
        lines["refused"] = error
    if warning := few_images(n, d):
        lines["warning"] = warning
    return lines
