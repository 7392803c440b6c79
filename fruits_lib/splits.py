"""06: which photographs a classifier is fitted on, and which it is tested on."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from fruits_lib.text import printable

FITTED_SHARE = 0.8  # of each label's photographs, where folders say nothing
NO_FRUITS = (
    "No whole fruit can be held out: that needs labels of a kind and a number, such as apple_6, "
    "with several numbers of a kind."
)


@dataclass(frozen=True, eq=False)
class Parts:
    """A table of photographs in two parts; the rest is in neither."""

    table: DataFrame  # with a column `part`: fitted, tested or null
    fitted_on: str
    tested_on: str
    fitted: int  # photographs
    tested: int
    labels: int  # of the fitted photographs
    tested_labels: int
    left_out: dict[str, int]  # photographs in neither part, by reason
    warning: str = ""  # what flatters figures of the tested photographs
    asked: int = 0  # neighbours that were to vote

    def __str__(self) -> str:
        fitted, tested = f"{self.fitted:,} photographs", f"{self.tested:,} photographs"
        lines = [
            f"fitted on {self.fitted_on}: {fitted} of {self.labels:,} labels",
            f"tested on {self.tested_on}: {tested} of {self.tested_labels:,} labels",
        ]
        if self.nothing:
            lines = [f"nothing to classify: {self.nothing}"]
        lines += [f"neither: {n:,} photographs {reason}" for reason, n in self.left_out.items()]
        if self.neighbors < self.asked:
            lines.append(
                f"neighbors={self.asked} is more than are fitted: all {self.neighbors:,} vote"
            )
        lines += [f"Warning: {self.warning}"] if self.warning else []
        return "\n".join(lines)

    @property
    def nothing(self) -> str:
        """Why there is nothing to classify; empty if there is something."""
        if not self.labels:
            return "no photograph with scores has a label"
        if self.labels == 1:
            where = "of Training" if self.by_folder else "with scores and a label"
            return f"all photographs {where} are of one label, at least two are needed"
        if not self.tested and self.by_folder:
            return f"no photograph of {self.tested_on} has a label of Training"
        if not self.tested:
            return f"each of {self.labels:,} labels has one photograph, so none is left for a test"
        return ""

    @property
    def neighbors(self) -> int:
        """How many of the nearest fitted photographs vote."""
        return min(self.asked, self.fitted)

    @property
    def by_folder(self) -> bool:
        return self.fitted_on == "Training"

    @property
    def training(self) -> DataFrame:
        return self.table.filter("part = 'fitted'")

    @property
    def test(self) -> DataFrame:
        return self.table.filter("part = 'tested'")


def why_nothing(load: dict) -> str:
    """Return why there is nothing to classify, if what 01_load counted shows it.

    `Parts.nothing` decides by the photographs that have scores, which may be of fewer labels.
    """
    labels = load.get("labels", 2)
    if labels > 1:
        return ""
    return "all photographs are of one label" if labels else "no photograph has a label"


def divide(table: DataFrame, seed: int = 0) -> Parts:
    """Divide photographs as their folders do, or by a hash of their paths.

    Training is for fitting and Test for testing, or Validation where there is no Test. Where
    folders give no such pair, a seeded hash of the path chooses 80 % of each label for fitting; of
    a label with one photograph, that one. Photographs without a label are in neither part.

    Parameters
    ----------
    table : pyspark.sql.DataFrame
        path, label and split, and any other columns.
    seed : int

    Returns
    -------
    Parts
        Its `nothing` says if fewer than two labels would be fitted, or no photograph tested.
    """
    counts = table.groupBy("label", "split").count().collect()
    left_out: dict[str, int] = {}
    for row in counts:
        if row.label is None:
            _count(left_out, "without a label", row)
    counts = [row for row in counts if row.label is not None]
    splits = {row.split for row in counts}
    tested_on = next((split for split in ("Test", "Validation") if split in splits), None)
    if "Training" in splits and tested_on:
        return _by_folder(table, counts, tested_on, left_out)
    return _by_hash(table, counts, seed, left_out)


def _by_folder(table: DataFrame, counts: list, tested_on: str, left_out: dict) -> Parts:
    known = {row.label: row["count"] for row in counts if row.split == "Training"}
    tested = {}
    for row in sorted(counts, key=lambda row: row.split or ""):
        if row.split == tested_on and row.label in known:
            tested[row.label] = row["count"]
        elif row.split == tested_on:
            _count(left_out, f"of {tested_on}, of a label that Training lacks", row)
        elif row.split != "Training":
            _count(left_out, f"of {row.split}" if row.split else "without a split", row)
    part = F.when(F.col("split") == "Training", "fitted").when(
        F.col("split") == tested_on, "tested"
    )
    part = F.when(F.col("label").isin(sorted(known)), part)
    return Parts(
        table.withColumn("part", part),
        "Training",
        tested_on,
        fitted=sum(known.values()),
        tested=sum(tested.values()),
        labels=len(known),
        tested_labels=len(tested),
        left_out=left_out,
    )


def _by_hash(table: DataFrame, counts: list, seed: int, left_out: dict) -> Parts:
    sizes: dict[str, int] = {}
    for row in counts:
        _count(sizes, row.label, row)
    fitted = sum(max(1, int(FITTED_SHARE * size)) for size in sizes.values())
    of_label = Window.partitionBy("label")
    chance = F.sha2(F.concat(F.lit(f"{seed}/"), "path"), 256)
    rank = F.row_number().over(of_label.orderBy(chance, "path"))
    bound = F.greatest(F.lit(1), F.floor(FITTED_SHARE * F.count("*").over(of_label)))
    part = F.when(rank <= bound, "fitted").otherwise("tested")
    return Parts(
        table.withColumn("part", F.when(F.col("label").isNotNull(), part)),
        f"{FITTED_SHARE:.0%} of the photographs, seed {seed}".replace("%", " %"),
        f"the other {1 - FITTED_SHARE:.0%}".replace("%", " %"),
        fitted=fitted,
        tested=sum(sizes.values()) - fitted,
        labels=len(sizes),
        tested_labels=sum(size > 1 for size in sizes.values()),
        left_out=left_out,
    )


def by_fruit(table: DataFrame) -> Parts | None:
    """Hold whole fruits out, where labels name them: a kind and a number, as `apple_6`.

    Of each kind with several fruits the last one is for testing, with all its photographs; all
    others are for fitting. The column `label` of the parts is the kind. Returns None where no kind
    has several fruits, or there is one kind alone. Photographs without a label are left out.
    """
    table = table.filter("label is not null")
    labels = [row.label for row in table.select("label").distinct().collect()]
    kinds = {label: fruit[0] for label, fruit in zip(labels, map(_fruit, labels), strict=True)}
    held = held_out(labels)
    if not held or len(set(kinds.values())) < 2:
        return None
    kind = F.create_map(*(F.lit(text) for pair in kinds.items() for text in pair))[F.col("label")]
    part = F.when(F.col("label").isin(held), "tested").otherwise("fitted")
    divided = table.withColumn("part", part).withColumn("label", kind)
    sizes = {row.part: row["count"] for row in divided.groupBy("part").count().collect()}
    return Parts(
        divided,
        "all other fruits",
        f"{len(held):,} whole fruits: {_shortened(held)}",
        fitted=sizes["fitted"],
        tested=sizes["tested"],
        labels=len(set(kinds.values())),
        tested_labels=len(held),
        left_out={},
    )


def held_out(labels: Iterable[str]) -> list[str]:
    """Return the last fruit of each kind with several; without a number, a fruit comes first."""
    fruits: dict[str, list] = {}
    for label in labels:
        kind, number = _fruit(label)
        fruits.setdefault(kind, []).append((number, label))
    return sorted(max(of_kind)[1] for of_kind in fruits.values() if len(of_kind) > 1)


def _fruit(label: str) -> tuple[str, int]:
    """Return kind and number of a label: of `Apple Red 1`, "Apple Red" and 1."""
    found = re.fullmatch(r"(.*[^\W\d_].*?)[\W_]*(\d+)", label)
    return (found[1], int(found[2])) if found else (label, 0)


def _count(counts: dict[str, int], name: str, row) -> None:
    counts[name] = counts.get(name, 0) + row["count"]


def _shortened(names: list[str], shown: int = 5) -> str:
    rest = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(map(printable, names[:shown])) + rest
