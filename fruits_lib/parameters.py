"""The notebooks' parameters: what their cells declare, and a check before anything runs."""

import ast
import difflib
import inspect
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import yaml

from fruits_lib.apply import check_apply
from fruits_lib.classify import check_classify
from fruits_lib.errors import FruitsError
from fruits_lib.featurize import check_featurize
from fruits_lib.networks import check_backbone
from fruits_lib.reduce import check_choice
from fruits_lib.storage import PLACES, check_names, ipython_shell, local_path

# A line of a parameters cell. papermill reads the same, but its import costs a kernel seconds.
DECLARATION = re.compile(r"^(\w+): (\w+) = (.+?)  # (.+)$", re.MULTILINE)
TYPES = {"str": str, "int": int, "float": float, "bool": bool}
CHECKS = (
    check_apply,
    check_backbone,
    check_choice,
    check_classify,
    check_featurize,
)  # by the names of their arguments


def find_notebooks() -> list[Path]:
    """Return the numbered notebooks in order: of the checkout, or of the installed wheel."""
    folders = [Path(__file__).parents[1] / "notebooks", Path(sys.prefix, "share/fruits/notebooks")]
    for folder in folders:
        if notebooks := sorted(folder.glob("[0-9][0-9]_*.ipynb")):
            return notebooks
    raise FruitsError(f"{folders[0]} holds no notebooks: install the project with `make setup`")


def find_notebook(name: str) -> Path:
    """Return the notebook of a name, one of the numbered ones or another beside them."""
    return find_notebooks()[0].with_name(f"{name}.ipynb")


def declared(notebook: Path) -> dict[str, dict]:
    """Return what a notebook's `parameters` cell declares, by name: type, default and help."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    return {
        name: {"type": kind, "default": default, "help": help_text}
        for name, kind, default, help_text in DECLARATION.findall("".join(cell["source"]))
    }


def check(notebook: str, namespace: dict[str, object]) -> dict:
    """Check a notebook's own parameters in its `globals()`, and return them.

    Text takes the declared type, in `namespace` too: papermill's `-p standardize false` gives text,
    which Python takes for true.

    Raises
    ------
    FruitsError
        If a parameter has another type than the parameters cell declares, is out of its bounds or
        missing, or if one was given that the notebook does not have.
    """
    known = declared(find_notebook(notebook))
    _refuse_unknown(_given_names(namespace), known)
    if missing := known.keys() - namespace.keys():
        raise FruitsError(f"parameter {min(missing)} has no value: run the parameters cell first")
    values = _checked({name: namespace[name] for name in known}, known)
    _check_bounds(values)
    namespace.update(values)
    return values


def check_given(notebooks: Iterable[Path], given: Mapping[str, object]) -> dict:
    """Return the values given to a whole run, text converted to the types that notebooks declare.

    Raises
    ------
    FruitsError
        If a name is unknown, a value has the wrong type or is out of its bounds, a place cannot be
        one (`storage.check_names`), or the data folder is missing.
    """
    known = {name: entry for path in notebooks for name, entry in declared(path).items()}
    _refuse_unknown(given, known)
    values = _checked(given, known)
    defaults = {name: ast.literal_eval(entry["default"]) for name, entry in known.items()}
    _check_bounds({**defaults, **values})
    check_names(**{name: values.get(name, "") for name in PLACES})
    folder = local_path(values["data"]) if values.get("data") else None
    if folder and not folder.is_dir():
        raise FruitsError(f"data={values['data']} is not a folder: give one that holds images")
    return values


def _given_names(namespace: Mapping[str, object]) -> list[str]:
    """Return the names that papermill's cell sets; where no IPython keeps cells, of all values."""
    shell = ipython_shell()
    if shell is None:  # Livy: before the first library call, there are parameters and objects alone
        plain = {str, int, float, bool, type(None)}
        return [name for name in namespace if name[0] != "_" and type(namespace[name]) in plain]
    cells = [cell for cell in shell.user_ns["In"] if cell.startswith("# Parameters")]
    nodes = ast.walk(ast.parse(cells[-1] if cells else ""))
    return [node.id for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store)]


def _refuse_unknown(names: Iterable[str], known: Mapping[str, dict]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            way_out = (
                f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            )
            raise FruitsError(f"parameter {name} is unknown: {way_out}")


def _check_bounds(values: dict) -> None:
    for check_values in CHECKS:
        names = inspect.signature(check_values).parameters
        if values.keys() >= names.keys():
            check_values(**{name: values[name] for name in names})


def _checked(values: Mapping[str, object], known: Mapping[str, dict]) -> dict:
    """Return values in their declared types, or raise FruitsError."""
    checked = {}
    for name, value in values.items():
        kind, help_text = TYPES[known[name]["type"]], known[name]["help"]
        with suppress(KeyError, ValueError, OverflowError):
            if type(value) is str and kind is bool:
                value = {"true": True, "false": False}[value.lower()]
            elif type(value) is str or (type(value) is int and kind is float):
                value = kind(value)
        if type(value) is not kind:
            found, text = type(value).__name__, f"quote it, or papermill -r {name} {value}"
            raise FruitsError(
                f"{name}={value!r} is not of type {kind.__name__}, but {found}: "
                f"{text if kind is str else help_text}"
            )
        if kind is float and not math.isfinite(value):
            raise FruitsError(f"{name}={value} is not a finite number: {help_text}")
        checked[name] = value
    return checked


def given(
    pairs: Iterable[str], file: str | None = None, options: Mapping[str, object] | None = None
) -> dict:
    """Return what `-p NAME=VALUE`, `-f FILE` and options such as `--data` give, by name.

    `-p` wins over the file; options that are None are not given.

    Raises
    ------
    FruitsError
        If a pair has no `=`, the file is no YAML of names, or an option is given again by name.
    """
    for pair in pairs:
        if "=" not in pair:
            raise FruitsError(f"-p {pair} has no =: write -p {pair}=value")
    values = {**(_from_yaml(file) if file else {}), **dict(pair.split("=", 1) for pair in pairs)}
    options = {name: value for name, value in (options or {}).items() if value is not None}
    for name in sorted(options.keys() & values.keys()):
        option = f"--{name.replace('_', '-')}"
        raise FruitsError(f"{name}={values[name]} and {option} are both given: give one of them")
    return {**values, **options}


def _from_yaml(file: str) -> dict:
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0]
        raise FruitsError(f"{file} is not valid YAML ({line}): correct it") from None
    if not isinstance(values, dict):
        raise FruitsError(f"{file} holds no names: write one `name: value` a line")
    return values
