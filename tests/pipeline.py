"""What the notebooks do, step by step, in the test's own process."""

from dataclasses import replace

from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import IndexToString, StringIndexer
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.sql import functions as F

from fruits_lib import (
    apply,
    backbones,
    classify,
    featurize,
    keys,
    load,
    models,
    moments,
    pca,
    reduce,
    udf,
    verify,
)
from fruits_lib.neighbors import accuracy
from fruits_lib.runs import open_run


def entry(stage, **values):
    """Return an entry of a manifest that has every key that readers need."""
    found = {}
    for name, key in keys.MANIFEST[stage].items():
        if key.always:
            first, *more = name.split(".")
            kind = key.kind[0] if isinstance(key.kind, tuple) else key.kind
            found.setdefault(first, {}) if more else None
            (found[first] if more else found)[name.split(".")[-1]] = kind()
    return {**found, **values}


def write_index(run, data, overwrite=False, exclude=""):
    """01: list the photographs and write the index."""
    run = open_run(run.spark, run.uri, str(data), "load", overwrite=True)
    return load.write_index(run, load.list_files(run, exclude), overwrite)


def write_features(run, network, max_reject_ratio=0.05, max_pixels=50_000_000, **options):
    """02: compute the features of new images; `featurizer` replaces the library's own."""
    featurizer = options.pop("featurizer", udf.featurizer)
    limits = {name: options.pop(name) for name in ("max_bytes", "truncated") if name in options}
    decoding = udf.Decoding(max_pixels, version=network.decoding, **limits)
    run = open_run(run.spark, run.uri, stage="featurize", overwrite=True)
    content = run.spark.sparkContext.broadcast(network.content)
    run_backbone = featurizer(content, network.spec.input_size, decoding)
    images = featurize.new_images(run, network, decoding, options.get("batch_size", 0))
    featurized = [batch.mapInArrow(run_backbone, udf.schema()) for batch in images]
    return featurize.write(run, featurized, network, decoding, max_reject_ratio, **options)


def pick_k(run, variance=0.9, k=0, standardize=False, fit_split=""):
    """03: choose k and write the spectrum."""
    run = open_run(run.spark, run.uri, stage="pick_k", overwrite=True)
    fit_split, features = reduce.fitted_split(run, fit_split, k), run.read_table("features")
    fitted = features.filter(features.split == fit_split) if fit_split else features
    statistics = moments.compute(fitted)
    spectrum = pca.spectrum(statistics, fit_split)
    raw, standardized = (pca.choose(spectrum, scaling, variance, k) for scaling in (False, True))
    chosen = standardized if standardize else raw
    components = pca.principal_components(statistics, chosen.k, standardize)
    reduce.write_spectrum(run, spectrum, components, raw, standardized)


def transform(features, model):
    """Scores by the stock model: path, label, split, pca."""
    vectors = features.withColumn("features_vector", array_to_vector("features"))
    scores = model.transform(vectors).withColumn("pca", vector_to_array("pca_vector", "float32"))
    return scores.select("path", "label", "split", "pca")


def write_scores(run, csv=False):
    """04: save the model and apply it."""
    run = open_run(run.spark, run.uri, stage="pca", overwrite=True)
    components = reduce.read_components(run)
    model = pca.pipeline_model(components)
    scores = transform(run.read_table("features"), model)
    return reduce.write_scores(run, scores, model, components, csv)


def check(run):
    """05: every check, recorded."""
    run = open_run(run.spark, run.uri, stage="verify")
    results = verify.read_results(run)
    checks = (verify.check_photographs, verify.check_rows, verify.check_model, verify.check_scores)
    found = [check for function in checks for check in function(results)]
    return verify.record(run, found, sample_seed=results.seed)


def classify_scores(run, neighbors=1, seed=0):
    """06: fit on one part, judge the other, write classifier and labels."""
    run = open_run(run.spark, run.uri, stage="classify", overwrite=True)
    scores = run.read_table("pca").withColumn("pca_vector", array_to_vector("pca")).cache()
    parts = classify.divide(run, scores, neighbors, seed)
    indexer = StringIndexer(inputCol="label", outputCol="class", stringOrderType="alphabetAsc")
    columns = {"featuresCol": "pca_vector", "labelCol": "class", "standardization": False}
    regression = LogisticRegression(family="multinomial", regParam=0.01, maxIter=50, **columns)
    classes, fitted = Pipeline(stages=[indexer, regression]).fit(parts.training).stages
    names = IndexToString(inputCol="prediction", outputCol="predicted", labels=classes.labels)
    labels = classify.to_labels(PipelineModel([fitted, names]).transform(parts.table))
    answers = labels.filter("part = 'tested'").toPandas()
    judged = classify.judge(answers["label"], answers["predicted"])
    classifier = PipelineModel([*models.load_model(run).stages, fitted, names])
    voters = map(classify.to_driver, (parts.training, parts.test))
    nearest = replace(judged, accuracy=accuracy(*voters, parts.neighbors))
    figures = {"regression": judged, "nearest": nearest, "fruits": None}
    neighbors = parts.neighbors
    found = classify.write(run, parts, classifier, labels, figures, neighbors=neighbors, seed=seed)
    scores.unpersist()
    return found


def apply_model(spark, run_dir, data, to, overwrite=False, max_reject_ratio=0.5, **limits):
    """apply: score and label new photographs by the model of a run; see `apply.write`."""
    known = apply.open_known(spark, str(run_dir))
    run = apply.open_results(known, str(data), str(to), overwrite)
    network = backbones.copy_backbone(known.run, run)
    load.write_index(run, load.list_files(run), overwrite)
    decoding = udf.Decoding(version=network.decoding, **limits)
    run_backbone = udf.featurizer(
        spark.sparkContext.broadcast(network.content), network.spec.input_size, decoding
    )
    images = featurize.new_images(run, network, decoding)
    featurized = [batch.mapInArrow(run_backbone, udf.schema()) for batch in images]
    featurize.write(run, featurized, network, decoding, max_reject_ratio)
    vectors = run.read_table("features").withColumn("features_vector", array_to_vector("features"))
    answers = models.load_model(known.run, known.model).transform(vectors)
    answers = answers.withColumn("pca", vector_to_array("pca_vector", "float32"))
    answers = answers.drop("features", "features_vector", "features_scaled").cache()
    labels = None
    if known.model == "classifier":
        probability = F.array_max(vector_to_array("probability")).cast("float").alias("probability")
        labels = answers.select("path", "label", "split", "predicted", probability)
    return apply.write(known, run, answers.select("path", "label", "split", "pca"), labels)
