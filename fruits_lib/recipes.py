"""The parameters of the five studies that this project replaces, as files for `fruits run`."""

import difflib
import sys
from pathlib import Path

from fruits_lib.errors import FruitsError


def find_recipes() -> dict[str, Path]:
    """Return the recipes by name: those of the checkout, or of the installed wheel."""
    folders = [
        Path(__file__).parents[1] / "notebooks/recipes",
        Path(sys.prefix, "share/fruits/notebooks/recipes"),
    ]
    for folder in folders:
        if files := sorted(folder.glob("*.yaml")):
            return {file.stem: file for file in files}
    raise FruitsError(f"{folders[0]} holds no recipes: install the project with `make setup`")


def reported(recipe: Path) -> str:
    """Return what a study's people reported: the first line of its recipe, a comment."""
    return recipe.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def parameters_file(file: str | None, recipe: str | None) -> str | None:
    """Return the YAML file that `-f FILE` or `--recipe NAME` gives, or None.

    Raises
    ------
    FruitsError
        If both are given, or no recipe has this name.
    """
    if recipe is None:
        return file
    if file is not None:
        raise FruitsError(f"-f {file} and --recipe {recipe} are both given: give one of them")
    known = find_recipes()
    if recipe not in known:
        near = difflib.get_close_matches(recipe, known, 2, 0.4)
        way_out = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
        raise FruitsError(f"recipe {recipe} is unknown: {way_out}")
    return str(known[recipe])
