"""The fitted models of a run: stock Spark ML, and the classifier's numbers for NumPy."""

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


def load_model(run: Run, name: str = "model") -> PipelineModel:
    """Load `model/` or `classifier/` of a run, whatever its folder is called."""
    with _copy(run) as copy:
        _copy_files(run, run.path(name), copy)
        return PipelineModel.load(copy)


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
    fs, path = file_system(run.spark, source)
    found = fs.listFiles(path, True)
    while found.hasNext():
        name = found.next().getPath().toString().removeprefix(path.toString())
        write_bytes(run.spark, target + name, read_bytes(run.spark, source + name))


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
