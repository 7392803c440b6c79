"""Recipe B, from its description, with Spark's own settings: photographs to scores as Parquet.

python benchmarks/recipe_b.py DATA TO K
"""

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from PIL import Image
from pyspark.ml.feature import PCA, StandardScaler
from pyspark.ml.functions import array_to_vector
from pyspark.sql import SparkSession
from pyspark.sql.functions import element_at, pandas_udf, split
from tables import WEIGHTS

from fruits_lib.session import use_java_17


def main(data: str, to: str, k: str) -> None:
    def build(weights):
        network = keras.applications.MobileNetV2
        return network(include_top=False, pooling="avg", weights=weights, input_shape=(224, 224, 3))

    def preprocess(content: bytes) -> np.ndarray:
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB").resize((224, 224)))
        return keras.applications.mobilenet_v2.preprocess_input(pixels.astype(np.float32))

    use_java_17()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = SparkSession.builder.getOrCreate()
    imagenet = "imagenet" if WEIGHTS == "imagenet" else None
    weights = spark.sparkContext.broadcast(build(imagenet).get_weights())

    @pandas_udf("array<float>")
    def featurize(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        model = build(None)
        model.set_weights(weights.value)
        for contents in batches:
            yield pd.Series(list(model.predict(np.stack(contents.map(preprocess)), verbose=0)))

    images = spark.read.format("binaryFile").option("recursiveFileLookup", "true")
    images = images.option("pathGlobFilter", "*.jpg").load(data).repartition(24)
    label = element_at(split("path", "/"), -2).alias("label")
    features = images.select("path", label, featurize("content").alias("features"))
    vectors = features.withColumn("vector", array_to_vector("features"))
    scaler = StandardScaler(inputCol="vector", outputCol="scaled", withMean=True, withStd=True)
    scaled = scaler.fit(vectors).transform(vectors)
    model = PCA(k=int(k), inputCol="scaled", outputCol="pca").fit(scaled)
    model.transform(scaled).select("path", "label", "pca").write.parquet(f"{to}/scores")
    explained = float(model.explainedVariance.values.sum())
    Path(to, "explained.json").write_text(json.dumps(explained))


if __name__ == "__main__":
    main(*sys.argv[1:])
