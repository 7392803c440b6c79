"""What the notebooks do, step by step, in the test's own process."""

from pyspark.ml import PipelineModel
from pyspark.ml.functions import array_to_vector, vector_to_array

from fruits_lib import featurize, load, moments, pca, reduce, udf, verify
from fruits_lib.runs import open_run


def write_index(run, data):
    """01: list the photographs and write the index."""
    run = open_run(run.spark, run.uri, str(data))
    return load.write_index(run, load.list_images(run))


def write_features(run, network, max_reject_ratio=0.05, max_pixels=50_000_000, **options):
    """02: compute the features of new images; `featurizer` replaces the library's own."""
    featurizer = options.pop("featurizer", udf.featurizer)
    run = open_run(run.spark, run.uri)
    content = run.spark.sparkContext.broadcast(network.content)
    images = load.new_images(run, **options)
    featurized = images.mapInArrow(
        featurizer(content, network.spec.input_size, max_pixels), udf.SCHEMA
    )
    return featurize.write(run, featurized, network, max_pixels, max_reject_ratio, **options)


def pick_k(run, variance=0.9, k=0, standardize=False):
    """03: choose k and write the spectrum."""
    statistics = moments.compute(run.read_table("features"))
    spectrum = pca.spectrum(statistics)
    raw, standardized = (pca.choose(spectrum, scaling, variance, k) for scaling in (False, True))
    chosen = standardized if standardize else raw
    components = pca.principal_components(statistics, chosen.k, standardize)
    reduce.write_spectrum(run, spectrum, components, raw, standardized)


def transform(features, model):
    """Scores by the stock model: path, label, split, pca."""
    vectors = features.withColumn("features_vector", array_to_vector("features"))
    scores = model.transform(vectors).withColumn("pca", vector_to_array("pca_vector", "float32"))
    return scores.select("path", "label", "split", "pca")


def write_scores(run):
    """04: save the model and apply it."""
    components = reduce.read_components(run)
    pca.pipeline_model(components).write().overwrite().save(run.path("model"))
    model = PipelineModel.load(run.path("model"))
    return reduce.write_scores(run, transform(run.read_table("features"), model), components)


def check(run):
    """05: every check, recorded."""
    results = verify.read_results(run)
    checks = (verify.check_rows, verify.check_model, verify.check_scores)
    return verify.record(run, [found for function in checks for found in function(results)])
