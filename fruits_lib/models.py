"""The fitted models of a run: stock Spark ML, and the classifier's numbers for NumPy."""

from uuid import uuid4

import numpy as np
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegressionModel
from pyspark.ml.feature import IndexToString, PCAModel, StandardScalerModel

from fruits_lib.errors import FruitsError
from fruits_lib.regression import Regression
from fruits_lib.runs import Run, file_system, qualify, scratch_folder

CLASSIFIER = [StandardScalerModel, PCAModel, LogisticRegressionModel, IndexToString]


def load_model(run: Run, name: str = "model") -> PipelineModel:
    """Load `model/` or `classifier/` of a run, whatever its folder is called.

    From a copy: Spark ML takes commas and colons in a path for its own.
    """
    copy = qualify(run.spark, f"{scratch_folder(run.spark)}/model-{uuid4().hex}")
    (of_run, path), (of_copy, target) = (
        file_system(run.spark, uri) for uri in (run.path(name), copy)
    )
    conf = run.spark.sparkContext._jsc.hadoopConfiguration()
    try:
        copy_files = run.spark._jvm.org.apache.hadoop.fs.FileUtil.copy
        copy_files(of_run, path, of_copy, target, False, conf)
        return PipelineModel.load(copy)
    finally:
        of_copy.delete(target, True)


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
