"""Spectrum, k and the Spark model, against scikit-learn and against each other."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from pipeline import transform
from pyspark.ml.functions import array_to_vector
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from vectors import CONSTANT, D, N, assert_one_line, in_memory

from fruits_lib import moments as statistics
from fruits_lib import pca
from fruits_lib.errors import FruitsError


@pytest.fixture(scope="module")
def spectrum(moments):
    return pca.spectrum(moments)


def spark_scores(model, features):
    """Scores in double precision, in order of path."""
    vectors = features.withColumn("features_vector", array_to_vector("features"))
    rows = model.transform(vectors).orderBy("path").select("pca_vector").collect()
    return np.stack([row.pca_vector.toArray() for row in rows])


def sklearn_input(table, standardize):
    """What scikit-learn's PCA must be given; its scaler divides by n where Spark has n - 1."""
    x = table.astype(np.float64)
    return StandardScaler().fit_transform(x) * np.sqrt((N - 1) / N) if standardize else x


# --- spectrum and k -----------------------------------------------------------------------------


@pytest.mark.parametrize("standardize", [False, True])
def test_explained_variance_ratios_equal_sklearn(spectrum, table, standardize):
    expected = PCA(svd_solver="full").fit(sklearn_input(table, standardize))
    found = pca.explained_variance_ratio(spectrum.eigenvalues(standardize))
    np.testing.assert_allclose(found, expected.explained_variance_ratio_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99])
def test_k_equals_sklearn(spectrum, table, standardize, variance):
    expected = PCA(variance, svd_solver="full").fit(sklearn_input(table, standardize))
    choice = pca.choose(spectrum, standardize, variance=variance)
    assert choice.k == expected.n_components_
    assert choice.explained == pytest.approx(expected.explained_variance_ratio_.sum(), abs=1e-9)


def test_k_where_a_share_is_met_exactly():
    # side="right": sklearn asks for more than the share, so 0.5 of two equal halves takes both.
    assert pca.choose_k(np.array([1.0, 1.0]), 0.5, n=10) == 2


def test_all_the_variance_is_the_rank():
    x = (
        np.random.default_rng(2).standard_normal((50, 3))
        @ np.ones((3, 8))
        * [1, 2, 3, 4, 5, 6, 7, 8]
    )
    assert pca.choose_k(pca.spectrum(in_memory(x)).raw, 1.0, n=50) == 1


@pytest.mark.parametrize("variance", [0, -0.1, 1.01, float("nan")])
def test_share_out_of_range(variance):
    with pytest.raises(FruitsError) as error:
        pca.choose_k(np.ones(10), variance, n=100)
    assert_one_line(error, str(variance), "above 0 and up to 1")


def test_share_out_of_reach():
    with pytest.raises(FruitsError) as error:  # 5 vectors give 4 components
        pca.choose_k(np.ones(10), 0.9, n=5)
    assert_one_line(error, "0.9 is not reached", "4 components", "0.4")


@pytest.mark.parametrize(
    ("k", "n", "d"), [(50, 50, 300), (301, 2000, 300), (0, 50, 300), (-1, 50, 300)]
)
def test_k_out_of_range(k, n, d):
    with pytest.raises(FruitsError) as error:
        pca.check_k(k, n, d)
    assert_one_line(error, f"k = {k}", f"between 1 and {min(n - 1, d)}")


def test_fixed_k(spectrum):
    choice = pca.choose(spectrum, True, 0.9, k=5)
    ratio = pca.explained_variance_ratio(spectrum.standardized)
    assert choice == pca.Choice(True, 5, pytest.approx(ratio[:5].sum()), None)


def test_constant_columns_add_nothing(spectrum):
    assert np.flatnonzero(spectrum.std == 0).tolist() == CONSTANT
    assert np.isfinite(spectrum.standardized).all()
    assert spectrum.standardized.sum() == pytest.approx(D - len(CONSTANT), rel=1e-12)


def test_constant_column_is_found_in_spite_of_rounding():
    x = np.full((1000, 2), 1e6 / 3)
    x[:, 1] += np.where(np.arange(1000) == 5, np.spacing(np.float32(x[0, 1])), 0)
    centred = x - x.mean(axis=0) * (1 + 1e-13)  # the mean is off by some rounding
    found = pca.spectrum(statistics.Moments(1000, x.mean(axis=0), centred.T @ centred))
    assert found.std[0] == 0  # rounding is no variance
    assert found.std[1] > 0  # the smallest step of one float32 value is


def test_equal_vectors():
    with pytest.raises(FruitsError) as error:
        pca.choose_k(pca.spectrum(in_memory(np.ones((10, 3)) / 3)).raw, 0.9, n=10)
    assert_one_line(error, "total variance is 0")


# --- components and the Spark model -------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["raw", "standardized"])
def fitted(request, moments):
    return pca.principal_components(moments, 30, standardize=request.param)


@pytest.fixture(scope="module")
def model(spark, fitted):
    return pca.pipeline_model(fitted)


@pytest.fixture(scope="module")
def scores(model, features):
    return spark_scores(model, features)


def test_scores_equal_sklearn_up_to_sign(fitted, scores, table):
    x = sklearn_input(table, fitted.standardize)
    expected = PCA(fitted.k, svd_solver="full").fit_transform(x)
    expected *= np.sign((expected * scores).sum(axis=0))
    np.testing.assert_allclose(scores, expected, atol=1e-6 * expected.std())


def test_score_variances_are_the_eigenvalues(fitted, scores):
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-9 * scores.std())
    np.testing.assert_allclose(scores.var(axis=0, ddof=1), fitted.eigenvalues, rtol=1e-9)


def test_components_match_the_spectrum(fitted, spectrum):
    values = spectrum.eigenvalues(fitted.standardize)
    np.testing.assert_allclose(fitted.eigenvalues, values[: fitted.k], rtol=1e-9)
    assert fitted.total_variance == pytest.approx(values.sum(), rel=1e-12)


def test_components_are_orthonormal(fitted):
    product = fitted.components @ fitted.components.T
    np.testing.assert_allclose(product, np.eye(fitted.k), atol=1e-12)


def test_largest_loading_is_positive(fitted):
    rows = fitted.components
    assert (rows.max(axis=1) == np.abs(rows).max(axis=1)).all()


def test_projection_keeps_the_rows_and_rounds_scores_to_float32(features, model, scores):
    projected = transform(features, model)
    assert projected.dtypes == [
        ("path", "string"), ("label", "string"), ("split", "string"), ("pca", "array<float>"),
    ]  # fmt: skip
    rows = projected.orderBy("path").collect()
    np.testing.assert_array_equal([row.pca for row in rows], scores.astype(np.float32))


def test_model_gives_the_components_back(fitted, model, tmp_path):
    path = str(tmp_path / "model")
    model.write().save(path)
    for found in (pca.components_of(model), pca.components_of(type(model).load(path))):
        assert found.standardize == fitted.standardize
        for name in ("mean", "std", "scale", "components"):
            np.testing.assert_array_equal(getattr(found, name), getattr(fitted, name))
        for name in ("eigenvalues", "explained_variance_ratio"):
            np.testing.assert_allclose(getattr(found, name), getattr(fitted, name), rtol=1e-14)


def test_model_of_other_stages(model):
    with pytest.raises(FruitsError) as error:
        pca.components_of(type(model)(model.stages[:1]))
    assert_one_line(error, "StandardScalerModel, not")


STRANGER = """
import sys
import numpy as np
from pyspark.ml import PipelineModel
from pyspark.ml.functions import array_to_vector
from pyspark.sql import SparkSession

model, features, out = sys.argv[1:]
builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
builder.config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1")  # starts sooner
for name in ("host", "bindAddress"):
    builder.config(f"spark.driver.{name}", "127.0.0.1")
spark = builder.getOrCreate()
vectors = spark.read.parquet(features)
vectors = vectors.withColumn("features_vector", array_to_vector("features"))
scores = PipelineModel.load(model).transform(vectors).orderBy("path")
rows = scores.select("pca_vector").collect()
np.save(out, np.stack([row.pca_vector.toArray() for row in rows]))
assert not any(name.startswith("fruits_lib") for name in sys.modules)
"""


def test_model_works_where_fruits_lib_is_not(features, moments, tmp_path):
    model = pca.pipeline_model(pca.principal_components(moments, 30, standardize=True))
    model.write().save(str(tmp_path / "model"))
    parquet = features.inputFiles()[0].removeprefix("file://")
    arguments = [str(tmp_path / "model"), parquet, str(tmp_path / "scores.npy")]
    subprocess.run([sys.executable, "-c", STRANGER, *arguments], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), spark_scores(model, features))


def test_fewer_images_than_features_are_a_warning():
    few = pca.Spectrum(2, np.zeros(5), np.ones(5), np.ones(5), np.ones(5))
    size, warning = str(few).splitlines()
    assert size == "2 images x 5 features"
    assert warning.startswith("Warning: 2 photographs for 5 features: ")
    assert str(replace(few, n=6)) == "6 images x 5 features"


def test_a_spectrum_of_one_split_says_so():
    of_split = pca.Spectrum(6, np.zeros(5), np.ones(5), np.ones(5), np.ones(5), "Training")
    assert str(of_split) == "6 images of Training alone x 5 features"
