"""02_featurize against the limit: one bare process per core, all at once; where the rest goes.

    make bench ARGS="throughput --photographs 20000"

Both sides decode, resize and infer with the same functions on the same files. The bare processes
have nothing else to do: they have imported all before the clock starts, and keep the features in
memory. Spark also looks for rows that are there, hashes the files and writes Parquet. The sides
take turns, so that a slow spell of the machine slows both. A last round, not timed against the bare
loop, counts the seconds that Spark's workers spend in each kind of work.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from pipeline import write_features, write_index
from tables import WEIGHTS, photographs, table, write_section
from watched import watched

from fruits_lib import backbones, runs, session, udf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = photographs(folder / "photographs", asked.photographs)
        spark = session.start_session("throughput")
        cores = spark.sparkContext.defaultParallelism
        prepared = runs.open_run(spark, f"{folder}/prepared")
        write_index(prepared, data)
        network = backbones.export_backbone(prepared, weights=WEIGHTS)
        paths = [path for path, *_ in prepared.read_table("index").collect()]

        def ours(name: str, **options) -> tuple[runs.Run, float]:
            run = runs.open_run(spark, f"{folder}/{name}")
            write_index(run, data)
            started = time.monotonic()
            write_features(run, network, **options)
            return run, time.monotonic() - started

        write_features(prepared, network)  # the JVM is as warm as the bare processes
        shares = [(data, paths[core::cores], network) for core in range(cores)]
        seconds = {"bare": [], "Spark": []}
        with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
            list(pool.map(bare_loop, [(data, paths[:8], network)] * cores))
            for number in range(asked.rounds):
                started = time.monotonic()
                found = list(pool.map(bare_loop, shares))
                seconds["bare"].append(time.monotonic() - started)
                run, took = ours(str(number))
                seconds["Spark"].append(took)
                print({side: each[-1] for side, each in seconds.items()}, flush=True)
        expected = {path: vector for part in found for path, vector in part.items()}
        rows = run.read_table("features").select("path", "features").toPandas()
        theirs = np.stack([expected[path] for path in rows["path"]])
        difference = float(np.abs(np.stack(rows["features"]) - theirs).max())
        (folder / "spent").mkdir()
        _, took = ours("watched", featurizer=watched(str(folder / "spent")))
        spent = Counter()
        for file in (folder / "spent").iterdir():
            spent.update(json.loads(file.read_text()))
        spark.stop()
    spent["outside the workers' tasks"] = cores * took - spent.pop("task")
    write(len(paths), cores, seconds, difference, network, spent)


def bare_loop(share: tuple) -> dict:
    """Return the features by path."""
    data, paths, network = share
    infer, size = udf.open_backbone(network.content), network.spec.input_size
    return {p: infer(udf.decode_image((data / p).read_bytes(), size)) for p in paths}


def write(count, cores, seconds, difference, network, spent) -> None:
    share = statistics.median(b / s for b, s in zip(*seconds.values(), strict=True))
    rows = [("", "images per second", "rounds")]
    for side, each in seconds.items():
        rates = [f"{count / s:.0f}" for s in each]
        rows.append((side, f"{count / statistics.median(each):.0f}", ", ".join(rates)))
    total = sum(spent.values())
    bare = 1000 * cores * statistics.median(seconds["bare"]) / count
    kinds = [("where Spark's seconds go", "ms per image and core", "share")]
    for name, amount in spent.most_common():
        kinds.append((name, f"{1000 * amount / count:.2f}", f"{amount / total:.1%}"))
    text = f"""{count:,} photographs, {network}. Bare: {cores} processes, one per core,
all at once. Spark: 02 on the same cores, from the index to the last Parquet file. **Share of the
limit: {share:.2f}**, the median of {len(seconds["bare"])} rounds; goal at least 0.90 at 20,000.
A bare process takes {bare:.2f} ms per image. Largest difference between the two
sides' features: {difference:.1e}.

{table(*rows)}

{table(*kinds)}"""
    write_section("Against the limit", text)


if __name__ == "__main__":
    main()
