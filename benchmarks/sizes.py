"""Smaller inputs: speed beside accuracy, by which a user chooses `input_size`.

make bench ARGS="sizes --sizes 224 128"
"""

import argparse
import tempfile
from pathlib import Path

from pipeline import (
    classify_scores,
    pick_k,
    write_features,
    write_index,
    write_scores,
)
from tables import SHARED, WEIGHTS, photographs, table, write_section

from fruits_lib import backbones, runs, session

# Keras has a file for each of its sizes; one of them serves all here.
FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=int, default=3936)
    parser.add_argument("--sizes", type=int, nargs="*", default=(224, 160, 128, 96))
    asked = parser.parse_args()
    weights = str(SHARED / "keras/models" / FILE) if SHARED.exists() else WEIGHTS
    rows = [("input, pixels", "images per second", "ratio", "k at 90 %", "accuracy", "macro F1")]
    rates = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = photographs(folder / "photographs", asked.photographs)
        spark = session.start_session("sizes")
        networks = {}
        for number, size in enumerate((max(asked.sizes), *asked.sizes)):  # the first one warms up
            run = runs.open_run(spark, f"{folder}/{number}")
            write_index(run, data)
            networks[size] = networks.get(size) or backbones.export_backbone(
                run, weights=weights, input_size=size
            )
            done = write_features(run, networks[size])
            if number == 0:
                continue
            rates[size] = done.computed / run.manifest()["featurize"]["seconds"]
            pick_k(run, fit_split="Training")
            write_scores(run)
            found = classify_scores(run)
            ratio = rates[size] / rates[asked.sizes[0]]
            entry = run.manifest()
            judged = entry["classify"]
            rows.append(
                (
                    size,
                    f"{rates[size]:.0f}",
                    f"{ratio:.2f}",
                    entry["pca"]["k"],
                    f"{judged['accuracy']:.2%}",
                    f"{judged['macro_f1']:.4f}",
                )
            )
            print(rows[-1], found, flush=True)
        spark.stop()
    text = f"""{asked.photographs:,} photographs through 02, MobileNetV2, one set of weights
(those of 224 pixels). k and the classifier of 06 (logistic regression) know Training alone;
accuracy is that on Test, whose photographs in Fruits-360 are other angles of the same fruits.

{table(*rows)}"""
    write_section("Smaller inputs", text)


if __name__ == "__main__":
    main()
