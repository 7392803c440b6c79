"""05, 06: one check of a finished run, and all of them together."""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from fruits_lib.errors import FruitsError, VerificationError
from fruits_lib.runs import Run
from fruits_lib.text import printable

SCORE_TOLERANCE = 1e-6  # scores are float32, each within 6e-8 of its value
SMALLEST_VARIANCE = 1e-6  # share of the first eigenvalue below which rounding counts too much


@dataclass(frozen=True)
class Check:
    """One property of a finished run."""

    name: str
    figure: int | float | None  # what was found; None if that is not finite
    shown: str  # the figure as text; "< bound / 10" for errors that vary from machine to machine
    bound: str  # what the figure is compared with
    passed: bool | None  # None: not judged, because rows that it needs failed an earlier check
    remedy: str

    def __str__(self) -> str:
        status = {True: "ok", False: "FAILED", None: "-"}[self.passed]
        note = {True: "", False: f"  {self.remedy}", None: "  not judged: rows failed above"}
        figure = f"{self.name:<44} {self.shown:>9}  ({self.bound})"
        return printable(f"{status:<7} {figure}{note[self.passed]}")


@dataclass(frozen=True)
class Verification:
    """All checks of one run."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.passed is False]

    def __str__(self) -> str:
        passed = sum(check.passed is True for check in self.checks)
        return f"{passed} of {len(self.checks)} checks passed"

    def require(self) -> None:
        """Raise VerificationError, in one line, if a check failed."""
        if self.failed:
            found = "; ".join(f"{c.name} = {c.shown} ({c.bound}): {c.remedy}" for c in self.failed)
            total = len(self.checks)
            raise VerificationError(f"{len(self.failed)} of {total} checks failed: {found}")


def at_most(bound: float, name: str, errors, remedy: str, judged: bool = True) -> Check:
    """Check that errors, a number or an array, do not exceed a bound."""
    figure = np.abs(errors).max()
    passed = bool(figure <= bound) if judged else None
    if isinstance(figure, float):
        shown = f"< {bound / 10:g}" if figure < bound / 10 else f"{figure:.2g}"
        figure = float(figure) if np.isfinite(figure) else None  # JSON has no NaN
    else:
        figure, shown = int(figure), f"{figure:,}"
    return Check(name, figure, shown, f"at most {bound:g}", passed, remedy)


def none_of(name: str, found: list[str], remedy: str) -> Check:
    """Check that a list of faults is empty; the remedy names the first one."""
    example = f"{found[0]}: {remedy}" if found else remedy
    return Check(name, len(found), f"{len(found):,}", "at most 0", not found, example)


def difference(first: dict, second: dict) -> float:
    """Return the largest difference of arrays of the same name, as a share of the largest value.

    It is infinite if two of them differ in shape, or the second is not there, and NaN if there is
    one.
    """
    pairs = [[np.asarray(d.get(name), float) for d in (first, second)] for name in first]
    if any(a.shape != b.shape for a, b in pairs):
        return np.inf
    # Not by Python's max, which passes over NaN.
    return np.max([np.abs(a - b).max() / (np.abs(a).max() or 1) for a, b in pairs])


def rows_per_path(tables: dict[str, DataFrame]) -> DataFrame:
    """Return the number of rows of each path in each table: path, and a column per table."""
    rows = [
        table.select("path", *(F.lit(int(name == other)).alias(other) for other in tables))
        for name, table in tables.items()
    ]
    return reduce(DataFrame.union, rows).groupBy("path").agg(*(F.sum(n).alias(n) for n in tables))


@contextmanager
def reading(run: Run, name: str, notebook: str):
    """Turn whatever is wrong with a part of the run into one line that names it."""
    try:
        yield
    except FruitsError:
        raise
    except Exception as error:  # JSON, zip, NumPy and Hadoop each raise their own
        line = f"{type(error).__name__}: {getattr(error, 'java_exception', error)}".splitlines()[0]
        raise FruitsError(
            f"{run.path(name)} cannot be read ({line}): run {notebook} again"
        ) from None
