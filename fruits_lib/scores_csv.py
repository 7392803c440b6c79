"""04, 05: the scores as text, `pca_csv/`: path, label, split, pca_1 to pca_k."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from fruits_lib.runs import Run, reader

FOLDER = "pca_csv"
_OPTIONS = {  # as other programs read and write it, whatever characters a name holds
    "header": True,
    "escape": '"',
    "multiLine": True,
    "ignoreLeadingWhiteSpace": False,
    "ignoreTrailingWhiteSpace": False,
}


def write(run: Run, k: int) -> None:
    """Write the rows of `pca/` as one file, in the order of the paths.

    One file, because a header in each of several would have to be cut out to join them.
    """
    columns = (F.element_at("pca", i).alias(name) for i, name in enumerate(_names(k), start=1))
    table = run.read_parquet("pca").select("path", "label", "split", *columns)
    run.write_table(FOLDER, table.coalesce(1).sortWithinPartitions("path"), "csv", _OPTIONS)


def differing(run: Run, k: int) -> int:
    """Return how many rows `pca/` and `pca_csv/` do not have in common."""
    text, scores = _read(run, k), run.read_table("pca")
    return text.exceptAll(scores).count() + scores.exceptAll(text).count()


def _read(run: Run, k: int) -> DataFrame:
    """Return path, label, split and pca (``array<float>``), as in `pca/`."""
    types = dict.fromkeys(("path", "label", "split"), "string") | dict.fromkeys(_names(k), "float")
    schema = ", ".join(f"{name} {kind}" for name, kind in types.items())
    options = {**_OPTIONS, "enforceSchema": False}
    table = reader(run.spark).options(**options).csv(run.path(FOLDER), schema)
    return table.select("path", "label", "split", F.array(*_names(k)).alias("pca"))


def _names(k: int) -> list[str]:
    return [f"pca_{i}" for i in range(1, k + 1)]
