"""The fitted models of a run: stock Spark ML, and the classifier's numbers for NumPy."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import numpy as np
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegressionModel
from pyspark.ml.feature import IndexToString, PCAModel, StandardScalerModel

from fruits_lib.errors import FruitsError
from fruits_lib.regression import Regression
from fruits_lib.runs import Run, file_system, qualify, read_bytes, scratch_folder, write_bytes

CLASSIFIER = [StandardScalerModel, PCAModel, LogisticRegressionModel, IndexToString]
CLASSES = {  # what metadata may name
    f"org.apache.spark.ml.{name}"
    for name in (
        "PipelineModel",
        "feature.StandardScalerModel",
        "feature.PCAModel",
        "classification.LogisticRegressionModel",
        "feature.IndexToString",
    )
}


def load_model(run: Run, name: str = "model") -> PipelineModel:
    """Load `model/` or `classifier/` of a run, whatever its folder is called.

    Raises
    ------
    FruitsError
        If it names a class that is none of `CLASSES`. Spark imports what is named, from the working
        directory too, and a run folder may be a stranger's.
    """
    with _copy(run) as copy:
        _copy_files(run, run.path(name), copy)
        _check_classes(run, name, copy)
        return PipelineModel.load(copy)


def _check_classes(run: Run, name: str, copy: str) -> None:
    """Raise FruitsError if a metadata file of a model names something else than stock stages."""
    for file in _files(run, copy):
        hidden = file.rsplit("/", 1)[1][0] in "._"  # and so for Hadoop, too
        if hidden or "metadata" not in file.lower().split("/"):
            continue
        text = read_bytes(run.spark, copy + file).decode(errors="replace")
        for line in filter(None, re.split(r"[\r\n]", text)):  # as Spark splits it
            if (found := _foreign(line)) is not None:
                raise FruitsError(
                    f"{run.path(name)} names {found}, which is no stage that fruits_lib writes: "
                    "nothing of it was loaded, give a run folder that you trust"
                )


def _foreign(metadata: str) -> str | None:
    """Return what a line of a model's metadata names that is no stage of `CLASSES`, or None."""
    try:
        entry = json.loads(metadata)
        stages = entry["paramMap"].get("stageUids", [])
        # With a slash in it, a stage would lie outside the model's folder.
        return next((uid for uid in stages if "/" in uid), None) or (
            None if entry["class"] in CLASSES else str(entry["class"])
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return metadata[:60]


def save_model(run: Run, model: PipelineModel, name: str = "model") -> None:
    """Save `model/` or `classifier/` of a run, in place of what was there."""
    with _copy(run) as copy:
        model.save(copy)
        run.delete(name)
        _copy_files(run, copy, run.path(name))


@contextmanager
def _copy(run: Run) -> Iterator[str]:
    """Yield the URI of a temporary folder for a model, which Spark ML reads and writes.

    Spark ML takes commas, colons and brackets in a path for its own, and asks S3 a hundred times a
    stage. TMPDIR may have them.
    """
    copy = f"{scratch_folder(run.spark)}/model-{uuid4().hex}"
    if re.search(r"[][{}*?,:\\]", copy.split("://")[-1].partition("/")[2]):
        copy = f"/tmp/fruits-{uuid4().hex}"
    copy = qualify(run.spark, copy)
    try:
        yield copy
    finally:
        fs, path = file_system(run.spark, copy)
        fs.delete(path, True)


def _copy_files(run: Run, source: str, target: str) -> None:
    """Copy a model's files by one request each: Hadoop's copy asks S3 seven times about each."""
    for name in _files(run, source):
        write_bytes(run.spark, target + name, read_bytes(run.spark, source + name))


def _files(run: Run, folder: str) -> Iterator[str]:
    """Yield all files below a folder, from the slash that ends the folder's name on."""
    fs, path = file_system(run.spark, folder)
    found = fs.listFiles(path, True)
    while found.hasNext():
        yield found.next().getPath().toString().removeprefix(path.toString())


def regression_of(classifier: PipelineModel) -> Regression:
    """Return the numbers of `classifier/`, or raise FruitsError if its stages are others."""
    stages = [type(stage) for stage in classifier.stages]
    if stages != CLASSIFIER:
        raise FruitsError(
            f"the classifier's stages are {', '.join(s.__name__ for s in stages)}, not "
            f"{', '.join(s.__name__ for s in CLASSIFIER)}: run 06_classify again"
        )
    *_, regression, names = classifier.stages
    return Regression(
        np.array(names.getLabels()),
        regression.coefficientMatrix.toArray(),
        regression.interceptVector.toArray(),
    )
