"""The notebooks' parameters: what their cells declare, and a check before anything runs."""

import ast
import difflib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from fruits_lib.backbones import check_backbone
from fruits_lib.errors import FruitsError
from fruits_lib.featurize import check_featurize
from fruits_lib.reduce import check_choice
from fruits_lib.storage import local_path

TYPES = {"str": str, "int": int, "float": float, "bool": bool}
CHECKS = {
    check_backbone: ("backbone", "weights", "input_size", "pooling", "seed"),
    check_featurize: ("max_pixels", "max_reject_ratio", "batch_size"),
    check_choice: ("variance", "k"),
}


def find_notebooks() -> list[Path]:
    """Return the notebooks in order: those of the checkout, or of the installed wheel."""
    folders = [Path(__file__).parents[1] / "notebooks", Path(sys.prefix, "share/fruits/notebooks")]
    for folder in folders:
        if notebooks := sorted(folder.glob("[0-9][0-9]_*.ipynb")):
            return notebooks
    raise FruitsError(f"{folders[0]} holds no notebooks: install the project with `make setup`")


def declared(notebook: Path) -> dict[str, dict]:
    """Return what a notebook's `parameters` cell declares, as papermill reads it, by name."""
    import papermill

    return papermill.inspect_notebook(notebook)


def check(notebook: str, namespace: Mapping[str, object]) -> dict:
    """Return a notebook's own parameters, taken from its `globals()`, after checking them.

    Raises
    ------
    FruitsError
        If a value has another type than the parameters cell declares, or is out of its bounds.
    """
    (path,) = (path for path in find_notebooks() if path.stem == notebook)
    known = declared(path)
    values = {name: _checked(name, namespace[name], entry) for name, entry in known.items()}
    _check_bounds(values)
    return values


def check_given(notebooks: Iterable[Path], given: Mapping[str, object]) -> dict:
    """Return the values given to a whole run, text converted to the types that notebooks declare.

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
    values = {
        name: _checked(name, _converted(value, known[name]), known[name])
        for name, value in given.items()
    }
    defaults = {name: ast.literal_eval(entry["default"]) for name, entry in known.items()}
    _check_bounds({**defaults, **values})
    folder = local_path(values["data"])
    if folder and not folder.is_dir():
        raise FruitsError(f"data={values['data']} is not a folder: give one that holds images")
    return values


def _check_bounds(values: dict) -> None:
    for check_values, names in CHECKS.items():
        if values.keys() >= set(names):
            check_values(**{name: values[name] for name in names})


def _checked(name: str, value, entry: dict):
    kind = TYPES[entry["inferred_type_name"]]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise FruitsError(
            f"{name}={value!r} is not of type {kind.__name__}: {entry['help'] or 'give another'}"
        )
    return value


def _converted(value, entry: dict):
    kind = TYPES[entry["inferred_type_name"]]
    if not isinstance(value, str) or kind is str:
        return value
    if kind is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    try:
        return kind(value)
    except ValueError:
        return value


def given(pairs: tuple[str, ...], file: str | None) -> dict:
    """Return what `-p NAME=VALUE` and `-f FILE` give, by name; `-p` wins."""
    for pair in pairs:
        if "=" not in pair:
            raise FruitsError(f"-p {pair} has no =: write -p name=value")
    return {**(_from_yaml(file) if file else {}), **dict(pair.split("=", 1) for pair in pairs)}


def _from_yaml(file: str) -> dict:
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        line = str(error).splitlines()[0]
        raise FruitsError(f"{file} is not valid YAML ({line}): correct it") from None
    if not isinstance(values, dict):
        raise FruitsError(f"{file} holds no names: write one `name: value` a line")
    return values
