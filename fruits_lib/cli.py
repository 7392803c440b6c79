"""The `fruits` command: a thin face over the notebooks and the library."""

import shutil
import sys
import time
from pathlib import Path

import click

import fruits_lib
from fruits_lib import parameters, report
from fruits_lib.errors import FruitsError
from fruits_lib.runs import read_manifest
from fruits_lib.storage import PapermillHandler, local_path


class _Line(click.ClickException):
    """An error that is one line on stderr and exit code 1."""

    def show(self, file=None) -> None:
        click.echo(f"fruits: {self.message}", err=True)


class _Group(click.Group):
    """Prints every FruitsError as one line; loads `fruits emr` only when it is asked for."""

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except FruitsError as error:
            raise _Line(str(error)) from None

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), "emr"])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name == "emr":
            from fruits_lib.emr.cli import emr

            return emr
        return super().get_command(context, name)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fruits_lib.__version__)
def main() -> None:
    """CNN features and principal components of photographs, verified, on Apache Spark."""


@main.command()
@click.option("--data", required=True, help="Folder or URI of photographs, label folders below it.")
@click.option("--run-dir", required=True, help="Run folder: results, notebooks, report.")
@click.option("-p", "pairs", multiple=True, metavar="NAME=VALUE", help="A notebook's parameter.")
@click.option("-f", "file", type=click.Path(exists=True, dir_okay=False), help="YAML of them.")
@click.option("--from", "first", metavar="NN", help="Start at this notebook, such as 03.")
@click.option("--only", metavar="NN", help="Run this notebook alone.")
@click.option("--overwrite", is_flag=True, help="Replace the results of a finished run.")
def run(data: str, run_dir: str, pairs, file, first, only, overwrite: bool) -> None:
    """Run notebooks 01 to 05 in order, headless, and write one report.

    DATA and RUN_DIR are folders on this machine, in a bucket (s3://) or on any other file system
    that Spark has a connector for.
    """
    given = {"weights": "imagenet", **parameters.given(pairs, file)}
    run_notebooks({**given, "data": data, "run_dir": run_dir}, first, only, overwrite)


@main.command()
def demo() -> None:
    """Run everything on the embedded sample, in runs/demo, which is emptied first.

    With ImageNet weights where Keras has them or can reach them, else with seeded random ones.
    """
    from fruits_lib.backbones import imagenet_available
    from fruits_lib.sample import write_sample

    photographs, run_dir = "runs/demo-photographs", "runs/demo"
    for folder in (photographs, run_dir):
        shutil.rmtree(folder, ignore_errors=True)
    click.echo(f"{write_sample(photographs)} files of the embedded sample are in {photographs}")
    weights = "imagenet" if imagenet_available() else "random"
    if weights == "random":
        click.echo("ImageNet weights cannot be reached from here: using seeded random weights.")
    run_notebooks({"weights": weights, "data": photographs, "run_dir": run_dir})


@main.command()
@click.argument("folder", type=click.Path(file_okay=False))
def sample(folder: str) -> None:
    """Write the embedded sample, 124 drawn photographs, to a folder."""
    from fruits_lib.sample import write_sample

    click.echo(f"{write_sample(folder)} files are in {folder}")


@main.command()
@click.option("--backbone", default="mobilenet_v2", show_default=True)
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--input-size", default=0, help="Pixels; 0 for the network's own.")
@click.option("--pooling", default="avg", show_default=True)
@click.option("--seed", default=0, help="Of random weights.")
@click.option("--to", "target", required=True, type=click.Path(dir_okay=False, path_type=Path))
def export(target: Path, **asked) -> None:
    """Export a backbone to a .tflite file, for machines without TensorFlow."""
    from fruits_lib.backbones import check_backbone, export

    spec = check_backbone(**asked)
    weights = None if spec.weights in ("imagenet", "random") else Path(spec.weights)
    if weights and not weights.is_file():
        raise FruitsError(f"weights={weights} is not a file on this machine: give one that is")
    content = export(spec, weights.read_bytes() if weights else None)
    target.write_bytes(content)
    click.echo(f"{target}: {len(content):,} bytes, give it as weights={target}")


def run_notebooks(
    given: dict, first: str | None = None, only: str | None = None, overwrite: bool = False
) -> None:
    """Check the parameters, run the notebooks from `first` on, or one, and report.

    Raises
    ------
    FruitsError
        Before anything starts: a parameter is wrong, or the run folder holds a finished run. Later:
        the line of the notebook that failed.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from papermill.iorw import papermill_io

    started = time.monotonic()
    notebooks = parameters.find_notebooks()
    values = parameters.check_given(notebooks, given)
    start = _position(notebooks, only or first)
    chosen = notebooks[start : start + 1] if only else notebooks[start:]
    run_dir = values["run_dir"].rstrip("/")
    if not overwrite:
        _refuse_finished(run_dir)
    folder, failure = local_path(run_dir), None
    if folder:
        Path(folder, "notebooks").mkdir(parents=True, exist_ok=True)
    else:
        papermill_io.register(f"{run_dir.split('://')[0]}://", PapermillHandler())
    outputs = {path: f"{folder or run_dir}/notebooks/{path.name}" for path in notebooks}
    for path in chosen:
        click.echo(f"\n== {path.stem}")
        known = parameters.declared(path)
        try:
            papermill.execute_notebook(
                path,
                outputs[path],
                {name: value for name, value in values.items() if name in known},
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                # ipykernel warns, at every start, that it talks over the loopback.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except PapermillExecutionError as error:
            failure = FruitsError(f"{path.stem}: {error.ename}: {error.evalue}")
            break
    summary = report.summarize(run_dir, time.monotonic() - started)
    report.write_report(run_dir, list(outputs.values()), summary)
    if failure:
        raise failure
    click.echo("\n" + "\n".join(f"{name:<16}{value}" for name, value in summary.items()))


def _refuse_finished(run_dir: str) -> None:
    verified = read_manifest(run_dir).get("verify")
    if verified and verified["passed"] == len(verified["checks"]):
        raise FruitsError(
            f"run_dir={run_dir} holds a run finished {verified['finished']}: give another run_dir, "
            "or --overwrite to replace its results (features that are there stay)"
        )


def _position(notebooks: list[Path], first: str | None) -> int:
    names = [path.stem for path in notebooks]
    for position, name in enumerate(names):
        if first in (None, name, name.split("_")[0]):
            return position
    raise FruitsError(f"{first} is not a notebook: choose one of {', '.join(names)}")
