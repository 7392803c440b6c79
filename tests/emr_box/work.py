"""What people do in the box: notebooks by papermill, and notebooks in a browser."""

import base64
import io
import json
import shlex
import subprocess
from dataclasses import dataclass, field

import nbformat
import numpy as np
import pyarrow.parquet as pq
from box import CLUSTER, Box
from browser import Person
from PIL import Image

from fruits_lib.parameters import declared, find_notebooks
from fruits_lib.storage import bucket_and_key

NOTEBOOKS = [path.stem for path in find_notebooks()]
PATIENCE = 400  # seconds for one notebook; two people share two cores
# Papermill gives up where S3 is away for ten seconds; without autosave it asks between cells alone.
PAPERMILL = (
    "cd ~; /opt/jupyterhub/bin/papermill --autosave-cell-every 0 "
    "--no-progress-bar --kernel pysparkkernel {notebook} {output} {parameters}"
)


def given(notebook: str, **values) -> dict:
    """Return the values that a notebook declares as parameters."""
    (path,) = [path for path in find_notebooks() if path.stem == notebook]
    return {name: value for name, value in values.items() if name in declared(path)}


def papermill(box: Box, notebook: str, run_dir: str, **values) -> subprocess.CompletedProcess:
    """Run one staged notebook, such as `01_load`, as amina, with the kernel PySpark.

    The executed notebook goes to `run_dir`/notebooks; `values` are further parameters.
    """
    parameters = {"run_dir": run_dir, **values}
    pairs = (f"-p {name} {shlex.quote(str(value))}" for name, value in parameters.items())
    return box.run(
        PAPERMILL.format(
            notebook=f"{CLUSTER.stage}/notebooks/{notebook}.ipynb",
            output=f"{run_dir}/notebooks/{notebook}.ipynb",
            parameters=" ".join(pairs),
        ),
        user="amina",
    )


def read_notebook(box: Box, uri: str) -> nbformat.NotebookNode:
    """Return a notebook of the bucket."""
    return nbformat.reads(box.bucket.get(bucket_and_key(uri)[1]).decode(), as_version=4)


def read_manifest(box: Box, run_dir: str) -> dict:
    """Return the manifest of a run in the bucket."""
    return json.loads(box.bucket.get(f"{bucket_and_key(run_dir)[1]}/manifest.json"))


def read_rows(box: Box, run_dir: str, table: str, columns: list[str]) -> list[tuple]:
    """Return the rows of a Parquet folder of a run in the bucket, sorted."""
    keys = box.bucket.listing(f"{bucket_and_key(run_dir)[1]}/{table}/")
    rows = []
    for key in keys:
        if key.endswith(".parquet"):
            content = pq.read_table(io.BytesIO(box.bucket.get(key)), columns=columns).to_pydict()
            rows += zip(*(content[name] for name in columns), strict=True)
    return sorted(rows, key=lambda row: row[0])


@dataclass
class Visit:
    """What the page said to a wrong password, and the notebooks as saved after Run All."""

    refusal: str = ""
    notebooks: dict[str, nbformat.NotebookNode] = field(default_factory=dict)


def in_the_browser(person: Person, run_dir: str, **values) -> Visit:
    """Log in, open every notebook, type its parameters into their cell, and run it."""
    visit = Visit(refusal=person.log_in("a wrong one"))
    assert person.log_in() == ""
    for name in NOTEBOOKS:
        path = f"{name}.ipynb"
        person.open(path, "PySpark")
        cell = person.parameters_cell(path)
        source = person.read(path)["cells"][cell]["source"]
        person.type_into(cell, fill_in(source, given(name, run_dir=run_dir, **values)))
        notebook = person.run_all(path, PATIENCE)
        person.take_picture(name)
        visit.notebooks[name] = nbformat.from_dict(notebook)
        person.shut_down(path)
    return visit


def fill_in(source: str, values: dict) -> str:
    """Return a parameters cell with other values, and its own types and comments."""
    lines = source.splitlines()
    for position, line in enumerate(lines):
        name, _, rest = line.partition(":")
        if name in values:
            kind, comment = rest.partition("=")[0], rest.partition("  #")[2]
            lines[position] = f"{name}:{kind}= {values[name]!r}  #{comment}"
    return "\n".join(lines)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the code cells without papermill's own."""
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])
    ]


def text(cell: nbformat.NotebookNode) -> str:
    """Return what a cell printed."""
    return "".join(
        output["text"]
        for output in cell.outputs
        if output["output_type"] == "stream" and output["name"] == "stdout"
    )


def pictures(cell: nbformat.NotebookNode) -> list[np.ndarray]:
    """Return a cell's figures as arrays of pixels."""
    shown = (output.get("data", {}).get("image/png") for output in cell.outputs)
    contents = (base64.b64decode(encoded) for encoded in shown if encoded)
    return [np.asarray(Image.open(io.BytesIO(content))) for content in contents]


def error(notebook: nbformat.NotebookNode) -> str:
    """Return the error that ended a notebook; empty without one."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return f"{output['ename']}: {output['evalue']}"
    return ""
