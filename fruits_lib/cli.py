"""The `fruits` command: a thin face over the notebooks and the library."""

import logging
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

import fruits_lib
from fruits_lib import backbones, networks, recipes, storage, user
from fruits_lib.errors import FruitsError, Signalled

# What takes long to import is imported where it is used: `fruits predict` is done in a second.


class _Line(click.ClickException):
    """An error that is one line on stderr, and the exit code."""

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code

    def show(self, file=None) -> None:
        with suppress(OSError):  # the terminal may be closed
            click.echo(f"fruits: {self.message}", err=True)


class _Group(click.Group):
    """Prints every FruitsError as one line; loads `fruits emr` only when it is asked for."""

    def invoke(self, context: click.Context):
        try:
            with _signals():
                return super().invoke(context)
        except FruitsError as error:
            raise _Line(str(error)) from None
        except Signalled as error:
            raise _Line("interrupted", error.code) from None

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), "emr"])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name == "emr":
            from fruits_lib.emr.cli import emr

            return emr
        return super().get_command(context, name)


@contextmanager
def _signals() -> Iterator[None]:
    """Raise `Signalled` where a closed terminal or a cancelled step would end this process."""

    def stop(number: int, _) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)  # a second one must not stop the cleaning up
        raise Signalled(number)

    # One that is ignored stays so: that of `nohup`.
    signals = (signal.SIGTERM, signal.SIGHUP)
    handled = [each for each in signals if signal.getsignal(each) == signal.SIG_DFL]
    for each in handled:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each in handled:
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Say in one line that an interrupted command can go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        logging.getLogger("asyncio").disabled = True  # it would print the cell's own interrupt
        code = getattr(error, "code", 130)
        raise _Line("interrupted: the same command goes on where it stopped", code) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fruits_lib.__version__)
def main() -> None:
    """CNN features and principal components of photographs, verified, on Apache Spark."""
    user.give_home()


@main.command(context_settings={"allow_extra_args": True})
@click.option("--data", help="Folder or URI of photographs, label folders below it; for 01.")
@click.option("--run-dir", help="Run folder: results, notebooks, report.")
@click.option("-p", "pairs", multiple=True, metavar="NAME=VALUE", help="A notebook's parameter.")
@click.option("-f", "file", type=click.Path(exists=True, dir_okay=False), help="YAML of them.")
@click.option("--recipe", metavar="NAME", help="A study's YAML: see `fruits recipes`.")
@click.option("--from", "first", metavar="NN", help="Start at this notebook: 3 or pick_k.")
@click.option("--only", metavar="NN", help="Run this notebook alone.")
@click.option("--overwrite", is_flag=True, help="Replace the results of a finished run.")
def run(data, run_dir, pairs, file, recipe, first, only, overwrite: bool) -> None:
    """Run the notebooks in order, headless, and write one report.

    DATA and RUN_DIR are folders on this machine, in a bucket (s3://) or on any other file system
    that Spark has a connector for. A -p wins over -f and --recipe. 06 is skipped, and says
    so, where photographs have no labels: that is no error.
    """
    from fruits_lib import execute, parameters

    options = {"data": data, "run_dir": run_dir, "overwrite": overwrite or None}
    given = parameters.given(pairs, recipes.parameters_file(file, recipe), options)
    if extra := click.get_current_context().args:
        raise FruitsError(f"{extra[0]!r} belongs to no option: write -p name=value, quote spaces")
    with _interruptible():
        execute.run_notebooks(given, first, only, {pair.partition("=")[0] for pair in pairs})


@main.command()
@click.option("--run-dir", help="Run whose network and model are applied; it is only read.")
@click.option("--data", help="Folder or URI of new photographs; labels are not needed.")
@click.option("--to", help="Folder or URI for the results, the notebook, the report.")
@click.option("-p", "pairs", multiple=True, metavar="NAME=VALUE", help="The notebook's parameter.")
@click.option("--overwrite", is_flag=True, help="Replace the results of another model.")
def apply(run_dir, data, to, pairs, overwrite: bool) -> None:
    """Score new photographs with the model of a run, and label them if it has a classifier.

    Nothing is fitted. The same command goes on after an interruption, and computes new photographs
    alone when some are added. Each place is a folder on this machine, in a bucket (s3://) or on any
    other file system that Spark has a connector for.
    """
    from fruits_lib import execute, parameters

    options = {"run_dir": run_dir, "data": data, "to": to, "overwrite": overwrite or None}
    with _interruptible():
        execute.apply_notebook(parameters.given(pairs, None, options))


@main.command()
def demo() -> None:
    """Run everything on the embedded sample, in runs/demo, which is emptied first.

    With ImageNet weights where Keras has them or can reach them, else with seeded random ones.
    """
    with _interruptible():
        _demo()


def _demo() -> None:
    from fruits_lib import execute
    from fruits_lib.lease import take
    from fruits_lib.sample import write_sample

    photographs, run_dir = "runs/demo-photographs", "runs/demo"
    take(run_dir).release()  # refused while another demo runs
    for folder in (photographs, run_dir):
        shutil.rmtree(folder, ignore_errors=True)
    click.echo(f"{write_sample(photographs)} files of the embedded sample are in {photographs}")
    weights = "imagenet" if networks.imagenet_available() else "random"
    if weights == "random":
        click.echo("ImageNet weights cannot be reached from here: using seeded random weights.")
    execute.run_notebooks({"weights": weights, "data": photographs, "run_dir": run_dir})


@main.command("recipes")
def list_recipes() -> None:
    """List the recipes of `fruits run --recipe NAME`, with what their people reported."""
    known = recipes.find_recipes()
    for name, file in known.items():
        click.echo(f"{name:<{max(map(len, known))}}  {recipes.reported(file)}")


@main.command()
@click.argument("folder", type=click.Path(file_okay=False))
def sample(folder: str) -> None:
    """Write the embedded sample, 124 drawn photographs, to a folder."""
    from fruits_lib.sample import write_sample

    click.echo(f"{write_sample(folder)} files are in {folder}")


@main.command()
@click.argument("photographs", nargs=-1, required=True, metavar="PHOTO...")
@click.option("--run-dir", required=True, help="Folder or URI of a run that has finished 04.")
@click.option("--figure", metavar="FILE.png", help="Draw them beside their nearest photographs.")
def predict(photographs: tuple[str, ...], run_dir: str, figure: str | None) -> None:
    """Say what photographs show: label, probability, nearest known photographs.

    The run is only read. Without a classifier (06_classify) the first scores take the place of the
    labels. The exit code is 1 if a photograph is rejected.
    """
    from fruits_lib.predict import draw, predict
    from fruits_lib.results import open_results

    if figure is not None and not figure.endswith(".png"):
        raise FruitsError(f"--figure {figure} does not end in .png: give the name of a PNG file")
    run = open_results(run_dir)
    predictions = predict(run, photographs)
    click.echo("\n\n".join(map(str, predictions)))
    if figure:
        draw(run, predictions, figure)
    if any(prediction.reason for prediction in predictions):
        sys.exit(1)


@main.command()
@click.option("--run-dir", help="Export a run's network and classifier as one file for an app.")
@click.option("--precision", help="float32, float16 or int8; with --run-dir.")
@click.option("--backbone", help=f"{', '.join(networks.NETWORKS)}.  [default: mobilenet_v2]")
@click.option("--weights", help="[default: imagenet; with --run-dir those of the run]")
@click.option("--input-size", type=int, help="Pixels; 0 for the network's own.  [default: 0]")
@click.option("--pooling", help="[default: avg]")
@click.option("--seed", type=int, help="Of random weights.  [default: 0]")
@click.option("--to", "target", required=True, help="FILE.tflite; with --run-dir a folder.")
def export(target: str, run_dir: str | None, precision: str | None, **asked) -> None:
    """Export a backbone for machines without TensorFlow, or a whole run as one file for an app.

    Both are LiteRT files that take one uint8 RGB photograph. A backbone gives its features; with
    --run-dir the file gives the probability of every label, and what it answers is compared with
    the run's own answers; the exit code is 1 if they are too far apart.
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    if run_dir is not None:
        from fruits_lib.phone import export_run

        exported = export_run(run_dir, target, precision or "float32", **asked)
        click.echo(exported)
        if exported.fault:
            raise FruitsError(exported.fault)
        return
    if precision is not None:
        raise FruitsError(f"--precision {precision} belongs to --run-dir: give that too")
    spec = networks.check_backbone(**asked)
    weights = None if spec.weights in ("imagenet", "random") else Path(spec.weights)
    if weights and not weights.is_file():
        raise FruitsError(f"weights={weights} is not a file on this machine: give one that is")
    if Path(target).is_dir():
        raise FruitsError(f"--to {target} is a folder: give a file, such as {target}/FILE.tflite")
    storage.check_writable(str(Path(target).absolute().parent), "--to")
    content = backbones.export(spec, weights.read_bytes() if weights else None)
    storage.write_file(Path(target), content)
    click.echo(f"{target}: {len(content):,} bytes, give it as weights={target}")
