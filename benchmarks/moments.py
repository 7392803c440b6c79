"""Moments and spectrum against MLlib's StandardScaler and PCA, and against NumPy in memory.

    make bench ARGS="moments --widths 1280"

All read the same Parquet files of float32 vectors whose variances decay, and give the 200 first
components of the standardized vectors; ours also gives both spectra. Each side is a process of its
own, on all cores. Ours and MLlib have 1 GB of heap, Spark's default; where MLlib dies of that, it
runs again with 8. A second table counts the memory of our driver for other numbers of partitions.
"""

import argparse
import json
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from moments_sides import SIDES, K
from tables import table, write_section

PATIENCE = 600  # seconds for one side, its start included


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=22_688)
    parser.add_argument("--widths", type=int, nargs="*", default=(1280, 4608))
    parser.add_argument("--partitions", type=int, nargs="*", default=(2, 24, 200))
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        side, folder, *numbers = asked.side
        print(json.dumps(SIDES[side](folder, *map(int, numbers))))
        return
    rows = [("width", "ours, s", "MLlib, s", "times", "NumPy, s", "ours / NumPy", "explained")]
    memory = [("partitions", "seconds", "driver's Python, MB", "its JVM, MB")]
    for d in asked.widths:
        with tempfile.TemporaryDirectory() as folder:
            make_vectors(folder, asked.vectors, d)
            ours, mllib, numpy = (run(side, folder) for side in SIDES)
            heap = ""
            if mllib is None:
                mllib, heap = run("mllib", folder, heap=8), " with 8 GB, none with 1"
            least = ">= " if mllib is None else ""
            mllib = mllib or {"seconds": PATIENCE, "explained": float("nan")}
            explained = (f"{side['explained']:.6f}" for side in (ours, mllib, numpy))
            seconds = [side["seconds"] for side in (ours, mllib, numpy)]
            rows.append(
                (
                    f"{d:,}",
                    f"{seconds[0]:.1f}",
                    f"{least}{seconds[1]:.1f}{heap}",
                    f"**{least}{seconds[1] / seconds[0]:.1f}**",
                    f"{seconds[2]:.1f}",
                    f"{seconds[0] / seconds[2]:.2f}",
                    " / ".join(explained),
                )
            )
            print(rows[-1], flush=True)
            for partitions in asked.partitions if d == min(asked.widths) else ():
                found = run("ours", folder, partitions)
                memory.append((partitions, f"{found['seconds']:.1f}", *found["peak"]))
    text = f"""{asked.vectors:,} vectors, from the Parquet files to {K} components, each side once,
without its start. Goals: at least 5 times MLlib at 1,280 and 8 at 4,608, at most 2 times
NumPy's seconds. Explained: the share of the variance that the components of
ours / MLlib / NumPy explain.

{table(*rows)}

Ours at width {min(asked.widths):,}, by partitions of the moments; peak memory
of the driver's two processes:

{table(*memory)}"""
    write_section("Moments and spectrum", text)


def make_vectors(folder: str, n: int, d: int) -> None:
    """Write n vectors of width d as 24 Parquet files."""
    rng = np.random.default_rng(0)
    loadings = rng.standard_normal((400, d), np.float32) / np.arange(1, 401)[:, np.newaxis] ** 0.5
    for number, rows in enumerate(np.array_split(np.arange(n), 24)):
        x = rng.standard_normal((len(rows), 400), np.float32) @ loadings + 1
        x += 0.3 * rng.standard_normal(x.shape, np.float32)
        column = pa.ListArray.from_arrays(np.arange(len(x) + 1, dtype=np.int32) * d, x.ravel())
        pq.write_table(pa.table({"features": column}), f"{folder}/{number}.parquet")


def run(side: str, folder: str, partitions: int = 0, heap: int = 1) -> dict | None:
    """Return what a side found, in a process of its own; None if it died or hung."""
    command = [sys.executable, __file__, "--side", side, folder, str(partitions), str(heap)]
    try:
        found = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return json.loads(found.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
