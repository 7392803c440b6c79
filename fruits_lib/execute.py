"""Notebooks run headless: checked before anything starts, executed in order, and reported."""

import inspect
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from fruits_lib import backbones, parameters, session
from fruits_lib.apply import check_results
from fruits_lib.errors import FruitsError
from fruits_lib.lease import take
from fruits_lib.networks import KERAS_WEIGHTS, BackboneSpec, check_backbone
from fruits_lib.runs import read_manifest
from fruits_lib.splits import why_nothing
from fruits_lib.stages import STAGES, check_unfinished, recorded, verified
from fruits_lib.storage import (
    PLACES,
    PapermillHandler,
    check_writable,
    folder_uri,
    local_path,
    preflight,
)
from fruits_lib.text import printable

IMPORTS = ("fruits_lib.pictures", "fruits_lib.verify", "fruits_lib.featurize")  # and what they need


def run_notebooks(
    given: dict, first: str | None = None, only: str | None = None, needed: Iterable[str] = ()
) -> None:
    """Check the parameters, run the notebooks from `first` on, or one, and report.

    Raises
    ------
    FruitsError
        Before anything starts: a parameter is wrong, one that is `needed` belongs to a notebook
        that does not run, or the run folder holds a finished run or cannot be used. Later: the line
        of the notebook that failed.
    """
    session.check_open_files()
    started = time.monotonic()
    notebooks = parameters.find_notebooks()
    chosen = _chosen(notebooks, first, only)
    values = parameters.check_given(notebooks, {"weights": "imagenet", **given})
    known = {path: parameters.declared(path) for path in notebooks}
    idle = _idle(given, chosen, known)
    _refuse(idle, needed)
    used = {name for path in chosen for name in known[path]}
    _require({name: values.get(name) for name in ("data", "run_dir") if name in used})
    if local_path(values["run_dir"]):  # before preflight makes the folder
        _check_there(chosen[0], values["run_dir"])
    preflight(**{name: values.get(name, "") for name in used & set(PLACES)})
    _check_there(chosen[0], values["run_dir"])
    manifest = read_manifest(values["run_dir"])
    if not values.get("overwrite"):
        chosen = _unfinished(chosen, manifest, values["run_dir"])
        idle = _idle(given, chosen, known)
        _refuse(idle, needed)
    for line in idle.values():
        click.echo(f"fruits: {printable(line)}", err=True)
    if not any("data" in known[path] for path in chosen):
        _check_data(values.get("data"), manifest)
    with backbones.export_ahead(_later_backbone(chosen, values)):
        _execute(chosen, notebooks, values, values["run_dir"], started)


def apply_notebook(given: dict) -> None:
    """Check the parameters, run `apply.ipynb`, and report.

    Raises
    ------
    FruitsError
        Before anything starts: a parameter is wrong or a place cannot be used, the run has no
        model, or `to` holds something else. Later: the line of the notebook.
    """
    session.check_open_files()
    started, path = time.monotonic(), parameters.find_notebook("apply")
    _require({name: given.get(name) for name in ("run_dir", "data", "to")})
    values = parameters.check_given([path], given)
    known = read_manifest(values["run_dir"])
    recorded(known, values["run_dir"], "pca")
    preflight(**{name: values[name] for name in ("data", "run_dir", "to")})
    check_results(read_manifest(values["to"]), values["to"])
    _execute([path], [path], values, values["to"], started)


def _execute(
    chosen: list[Path],
    notebooks: list[Path],
    values: dict,
    results: str,
    started: float,
) -> None:
    """Run notebooks whose results go to one folder, and report on all that ran there.

    One that has nothing to do is left out, which is no failure.
    """
    # jsonschema would spend seconds on 38 grammars that check IRIs, which notebooks do not have.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from papermill.iorw import papermill_io

    from fruits_lib import report

    known = {path: parameters.declared(path) for path in chosen}
    run_dir, failure = results.rstrip("/"), ""
    if folder := local_path(results):
        check_writable(str(folder / "notebooks"))
    papermill_io.register(f"{folder or run_dir}/", PapermillHandler())
    outputs = {path: f"{folder or run_dir}/notebooks/{path.name}" for path in notebooks}
    # Absolute, because a kernel may start relative paths elsewhere: see `local_path`.
    for name in values.keys() & set(PLACES):
        if values[name] not in KERAS_WEIGHTS and (path := local_path(values[name])):
            values[name] = f"{'file:' * values[name].startswith('file:')}{path}"
    places = {name: str(values.get(name, "")) for name in PLACES}
    app = f"fruits {Path(run_dir).name}"
    # The kernels share this process's lease and SparkContext.
    with (
        take(results) as lease,
        session.shared_context(app, places),
        closing(_kernels(len(chosen))) as kernels,
    ):
        for path in list(chosen):
            if why := _why_not(path, read_manifest(run_dir)):
                chosen.remove(path)
                click.echo(f"\n== {path.stem} is skipped: {why}")
                continue
            click.echo(f"\n== {path.stem}")
            try:
                papermill.execute_notebook(
                    _verbatim(path),
                    _verbatim(outputs[path]),
                    {name: value for name, value in values.items() if name in known[path]},
                    progress_bar=False,
                    stdout_file=sys.stdout,
                    stderr_file=sys.stderr,
                    km=next(kernels),
                )
            except PapermillExecutionError as error:
                failure = f"{path.stem}: {error.ename}: {error.evalue}"
                break
            except RuntimeError as error:  # nbclient's, while the kernel starts or works
                why = f"its kernel was killed, is out of memory or does not start ({error})"
                failure = f"{path.stem}: {why}: run it again, it goes on from there"
                break
        lease.check()
        summary = report.summarize(run_dir, time.monotonic() - started)
        manifest = read_manifest(run_dir)
        # And the notebook that failed: one that found nothing to do has nothing to show.
        current = {path for path in notebooks if _stage(path) in manifest}
        current |= {path} if failure else set()
        shown = [outputs[path] for path in notebooks if path in current]
        report.write_report(run_dir, shown, summary)
    if failure:
        raise FruitsError(failure)
    click.echo("\n" + "\n".join(f"{name:<16}{value}" for name, value in summary.items()))


def _verbatim(path: Path | str) -> str:
    """Return a path as papermill, which fills parameters into braces, takes it unchanged."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _kernels(count: int) -> Iterator:
    """Yield kernels; each starts, with the notebooks' imports, while the one before works."""
    from jupyter_core.utils import run_sync

    # A socket's path has 107 bytes at most: TMPDIR may be longer, and Spark needs /tmp, too.
    with TemporaryDirectory(prefix="fruits-", dir="/tmp") as sockets:
        following = _start_kernel(f"{sockets}/{count}")
        try:
            for left in reversed(range(count)):
                kernel = following
                following = _start_kernel(f"{sockets}/{left}") if left else None
                try:
                    yield kernel
                finally:
                    run_sync(kernel.shutdown_kernel)(now=True)
        finally:
            if following:
                run_sync(following.shutdown_kernel)(now=True)


def _start_kernel(sockets: str):
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_core.utils import run_sync

    # Asynchronous, because the other one would wait for a cell that Ctrl-C interrupts. Sockets in
    # files, because another process can take a TCP port between its choice and its use.
    # Without folders of kernels, python3 is this Python's own, whatever is installed by that name.
    own = KernelSpecManager(kernel_dirs=[])
    kernel = AsyncKernelManager(transport="ipc", ip=sockets, kernel_spec_manager=own)
    imports = "; ".join(f"__import__({name!r})" for name in IMPORTS)
    run_sync(kernel.start_kernel)(
        extra_arguments=[
            # ipykernel warns, at every start, that it talks over the loopback.
            "--IPKernelApp.log_level=CRITICAL",
            "--IPKernelApp.ignore_cwd=True",  # Python would import what lies in it
            f"--IPKernelApp.exec_lines={imports}",
        ]
    )
    return kernel


def _check_there(first: Path, run_dir: str) -> None:
    """Raise FruitsError if there is no run where the first notebook needs one."""
    if _stage(first) != "load":
        recorded(read_manifest(run_dir), run_dir, "load")


def _idle(given: dict, chosen: list[Path], known: dict) -> dict[str, str]:
    """Say which values belong to notebooks that do not run, by name."""
    used = {name for path in chosen for name in known[path]} | {"data", "overwrite"}
    owners = {
        name: next(path.stem for path in known if name in known[path])
        for name in sorted(given.keys() - used)
    }
    return {
        name: f"{name}={given[name]} belongs to {owner}, which does not run"
        for name, owner in owners.items()
    }


def _refuse(idle: dict[str, str], needed: Iterable[str]) -> None:
    for name in idle.keys() & set(needed):
        raise FruitsError(f"{idle[name]}: leave it out, or run that notebook too")


def _unfinished(chosen: list[Path], manifest: dict, run_dir: str) -> list[Path]:
    """Leave out what a verified run has, or raise FruitsError if nothing is left."""
    left = [p for p in chosen if _stage(p) not in manifest and not _why_not(p, manifest)]
    if not verified(manifest) or not left:
        check_unfinished(manifest, run_dir, [_stage(path) for path in chosen])
        return chosen
    if left != chosen:
        click.echo(f"{printable(run_dir)} is verified: going on with {left[0].stem}")
    return left


def _later_backbone(chosen: list[Path], values: dict) -> BackboneSpec | None:
    """Return the network that a notebook after the first one will want, if there is one."""
    if "featurize" not in map(_stage, chosen[1:]):
        return None
    names = values.keys() & inspect.signature(check_backbone).parameters
    return check_backbone(**{name: values[name] for name in names})


def _stage(path: Path) -> str | None:
    return next((stage for stage, name in STAGES.items() if name == path.stem), None)


def _why_not(path: Path, manifest: dict) -> str:
    """Return why there is nothing for a notebook to do, or nothing."""
    return why_nothing(manifest.get("load", {})) if _stage(path) == "classify" else ""


def _check_data(data: str | None, manifest: dict) -> None:
    """Raise FruitsError if notebooks that take no photographs are given others than 01 read."""
    loaded = manifest.get("load", {}).get("data", data)
    if data and folder_uri(data) != folder_uri(loaded):
        raise FruitsError(f"data={data} is not {loaded}, which 01_load read: leave it out")


def _require(places: dict[str, str | None]) -> None:
    for name, value in places.items():
        if not value:
            raise FruitsError(f"--{name.replace('_', '-')} is missing: give a folder or a URI")


def _chosen(notebooks: list[Path], first: str | None, only: str | None) -> list[Path]:
    """Return the notebooks from `first` on, or `only` one; each by number, name or both."""
    if None not in (first, only):
        raise FruitsError(f"--from {first} and --only {only} are both given: give one of them")
    wanted = first if only is None else only
    for position, path in enumerate(notebooks):
        number, _, name = path.stem.partition("_")
        if wanted in (None, path.stem, number, number.lstrip("0"), name):
            return notebooks[position:] if only is None else [path]
    names = ", ".join(path.stem for path in notebooks)
    raise FruitsError(f"{wanted} is not a notebook: choose one of {names}")
