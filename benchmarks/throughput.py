"""Images per second, Spark against the bare loop over the same files; writes README.md.

    make bench ARGS="--data /path/to/photographs --weights imagenet"

Both sides decode, resize and infer with the same functions on the same files. The bare loop is one
process on one core; Spark uses all cores, and also lists the files, moves them to its workers,
writes Parquet and keeps a checkpoint. The sides take turns, so that a slow spell of the machine
slows both.
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from pipeline import write_features, write_index  # noqa: E402

from fruits_lib import backbones, runs, session, udf  # noqa: E402

SHARED = Path(os.environ.get("FRUITS_SHARED", ROOT.parent / "shared"))
README = Path(__file__).with_name("README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(SHARED / "fruits360"))
    parser.add_argument("--weights", default="imagenet" if SHARED.exists() else "random")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if SHARED.exists():
        os.environ.setdefault("KERAS_HOME", str(SHARED / "keras"))

    spark = session.start_session("throughput")
    folder = Path(tempfile.mkdtemp(prefix="fruits-bench-"))
    try:
        prepared = runs.open_run(spark, str(folder / "prepared"))
        index = write_index(prepared, asked.data)
        network = backbones.export_backbone(prepared, weights=asked.weights)
        paths = [row.path.removeprefix("file:") for row in prepared.read_table("index").collect()]
        bare, ours = [], []
        for number in range(asked.rounds):
            seconds, expected = bare_loop(paths, network)
            bare.append(len(paths) / seconds)
            run = runs.open_run(spark, str(folder / str(number)))
            write_index(run, asked.data)
            started = time.monotonic()
            write_features(run, network)
            ours.append(len(paths) / (time.monotonic() - started))
            print(f"bare {bare[-1]:.0f}, Spark {ours[-1]:.0f} images/s", flush=True)
        difference = largest_difference(run, expected)
    finally:
        cores = spark.sparkContext.defaultParallelism
        spark.stop()
        shutil.rmtree(folder)
    write_readme(index.images, cores, bare, ours, difference, network)


def bare_loop(paths: list[str], network: backbones.Backbone) -> tuple[float, dict]:
    """Return the seconds, and the features by path, of one process without Spark."""
    started = time.monotonic()
    infer = udf.open_backbone(network.content)
    size = network.spec.input_size
    features = {}
    for path in paths:
        features[path] = infer(udf.decode_image(Path(path).read_bytes(), size))
    return time.monotonic() - started, features


def largest_difference(run: runs.Run, expected: dict) -> float:
    """Return the largest absolute difference between Spark's features and the bare loop's."""
    table = run.read_table("features").select("path", "features").toPandas()
    theirs = np.stack([expected[path.removeprefix("file:")] for path in table["path"]])
    return float(np.abs(np.stack(table["features"]) - theirs).max())


def write_readme(count, cores, bare, ours, difference, network) -> None:
    """Write the figures to README.md, and print them."""
    one, spark = statistics.median(bare), statistics.median(ours)
    text = f"""# Measured

`make bench`, {date.today()}, {platform.machine()}, {cores} cores,
Python {platform.python_version()}: {count:,} photographs, {network}.
Median of {len(bare)} rounds; the sides take turns.

| | images per second |
|---|---|
| bare decode + infer loop, one process, one core | {one:.0f} |
| 02_featurize on {cores} cores, from listing the folder to the last Parquet file | {spark:.0f} |
| **share of {cores} x the bare loop** | **{spark / (cores * one):.2f}** |

Rounds: bare {", ".join(f"{x:.0f}" for x in bare)}; Spark {", ".join(f"{x:.0f}" for x in ours)}.
The first Spark round includes the JVM's warm-up.
Largest difference between the two sides' features: {difference:.1e}.
"""
    README.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
