"""Photographs to features in Parquet: Ray Data and Daft against 01 and 02, from the command on.

    make bench ARGS="others --photographs 3936 20000"

Ray Data runs a class of ours in `map_batches`, one actor per core, and Daft a batch method of a
class, one instance per core, as their own documentation does batch inference. Both read the files
themselves, decode with Pillow and run our LiteRT file. They live in an environment of their own,
made once in the cache folder from requirements-others.txt. The sides take turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
from tables import WEIGHTS, photographs, table, timed, write_section

from fruits_lib.backbones import export
from fruits_lib.connector import cache_folder
from fruits_lib.networks import check_backbone

PINNED = Path(__file__).with_name("requirements-others.txt")
CORES = os.cpu_count()
OURS = "01 and 02"
SIDES = Path(__file__).with_name("others_sides.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=int, nargs="+", default=(3936, 20000))
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    python = environment()
    rows = [("photographs", "", "seconds", "images per second", "ours is so much faster")]
    with tempfile.TemporaryDirectory() as name:
        network, worst = Path(name, "n.tflite"), 0.0
        network.write_bytes(export(check_backbone("mobilenet_v2", WEIGHTS)))
        for count in asked.photographs:
            folder = Path(name, str(count))
            data = photographs(folder / "photographs", count)
            seconds = {OURS: [], "Ray Data": [], "Daft": []}
            for number in range(asked.rounds):
                for side, each in seconds.items():
                    to = folder / f"{side}{number}"
                    command = [sys.executable if side == OURS else python, SIDES, side]
                    paths = f"{PINNED.parents[1]}:{PINNED.parents[1] / 'tests'}"
                    each.append(timed([*command, data, network, to], PYTHONPATH=paths))
                    print(count, side, f"{each[-1]:.1f}", flush=True)
            ours = read(folder / f"{OURS}0")
            for side, each in seconds.items():
                middle = statistics.median(each)
                speed = f"{middle / statistics.median(seconds[OURS]):.2f}"
                rows.append((f"{count:,}", side, f"{middle:.1f}", f"{count / middle:.0f}", speed))
                theirs = read(folder / f"{side}0")
                worst = max(worst, *(np.abs(theirs[path] - ours[path]).max() for path in ours))
    text = f"""Photographs on {CORES} cores, from the command to Parquet, median of
{asked.rounds} rounds. Each side is one script, ours too. Goal: ahead of both. The largest
difference between another side's features and ours is {worst:.1e}.

{table(*rows)}

{", ".join(line for line in PINNED.read_text().split() if "==" in line)}."""
    write_section("What a user would pick instead", text)


def environment() -> Path:
    """Return the Python that has Ray Data and Daft, after making its environment if necessary."""
    folder = cache_folder() / "others"
    if not (folder / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "--quiet", "-r", PINNED], check=True)
        (folder / "made").touch()
    return folder / "bin/python"


def read(folder: Path) -> dict:
    """Return the features by file name of what one side wrote."""
    if (folder / "features").exists():
        folder = folder / "features"
    found = ds.dataset(folder, format="parquet").to_table(columns=["path", "features"]).to_pandas()
    vectors = map(np.asarray, found["features"])
    return {"/".join(p.split("/")[-2:]): v for p, v in zip(found["path"], vectors, strict=True)}


if __name__ == "__main__":
    main()
