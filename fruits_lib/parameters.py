"""The notebooks' parameters: what they declare, and a check of values before anything runs."""

import ast
import difflib
import os
import sys
from pathlib import Path

import yaml

from fruits_lib.backbones import check_backbone
from fruits_lib.errors import FruitsError
from fruits_lib.featurize import check_featurize
from fruits_lib.reduction import check_choice

TYPES = {"str": str, "int": int, "float": float, "bool": bool}
CHECKS = {
    check_backbone: ("backbone", "weights", "input_size", "pooling", "seed"),
    check_featurize: ("max_pixels", "max_reject_ratio", "batch_size"),
    check_choice: ("variance", "k"),
}


def find_notebooks() -> list[Path]:
    """Return the notebooks in order: those of the checkout, or of the installed wheel.

    Raises
    ------
    FruitsError
        If there are none.
    """
    folders = [Path(__file__).parents[1] / "notebooks", Path(sys.prefix, "share/fruits/notebooks")]
    for folder in folders:
        if notebooks := sorted(folder.glob("[0-9][0-9]_*.ipynb")):
            return notebooks
    raise FruitsError(f"{folders[0]} holds no notebooks: install the project with `make setup`")


def declared(notebook: Path) -> dict[str, dict]:
    """Return what a notebook's `parameters` cell declares, as papermill reads it, by name."""
    import papermill

    return papermill.inspect_notebook(notebook)


def check(notebooks: list[Path], given: dict) -> dict:
    """Return the given values, each in the type that the notebooks declare, paths made absolute.

    Parameters
    ----------
    notebooks : list of pathlib.Path
    given : dict
        Values by name; text is turned into the declared type.

    Raises
    ------
    FruitsError
        If a name is unknown, a value has the wrong type or is out of its bounds, or the data
        folder is missing.
    """
    known = {name: entry for path in notebooks for name, entry in declared(path).items()}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            way_out = (
                f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            )
            raise FruitsError(f"parameter {name} is unknown: {way_out}")
    values = {name: _typed(name, value, known[name]) for name, value in given.items()}
    defaults = {name: ast.literal_eval(entry["default"]) for name, entry in known.items()}
    for check_values, names in CHECKS.items():
        check_values(**{name: {**defaults, **values}[name] for name in names})
    for name in {"data", "run_dir", "weights"} & values.keys():
        values[name] = _absolute(values[name], keep=name == "weights")
    if not _is_uri(values["data"]) and not os.path.isdir(values["data"]):
        raise FruitsError(f"data={values['data']} is no folder: give one that holds images")
    return values


def _typed(name: str, value, entry: dict):
    kind = TYPES[entry["inferred_type_name"]]
    convert = _boolean if kind is bool else kind
    if isinstance(value, str) or (kind is float and type(value) is int):
        try:
            return convert(value)
        except ValueError:
            pass
    elif type(value) is kind:
        return value
    raise FruitsError(f"{name}={value!r} is no {kind.__name__}: {entry['help'] or 'give another'}")


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _absolute(path: str, keep: bool) -> str:
    """A notebook does not run where the command was typed. `keep`: a name may be no path at all."""
    path = path.removeprefix("file:").replace("///", "/", 1)
    if _is_uri(path) or (keep and not os.path.exists(path)):
        return path
    return os.path.abspath(path)


def _is_uri(path: str) -> bool:
    return "://" in path


def given(pairs: tuple[str, ...], file: str | None) -> dict:
    """Return what `-p NAME=VALUE` and `-f FILE` give, by name; `-p` wins."""
    return {**_from_yaml(file), **dict(_pair(pair) for pair in pairs)}


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise FruitsError(f"-p {text} has no =: write -p name=value")
    return name, value


def _from_yaml(file: str | None) -> dict:
    if file is None:
        return {}
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise FruitsError(f"{file} is no YAML ({str(error).splitlines()[0]}): mend it") from None
    if not isinstance(values, dict):
        raise FruitsError(f"{file} holds no names: write one `name: value` a line")
    return values
