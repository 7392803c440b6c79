"""From photographs to scores on disk: the studies' way (recipe B) against `fruits run`.

    make bench ARGS="studies --photographs 992 3936 22688"

The studies' way is written from its description: Keras' MobileNetV2, rebuilt from broadcast weights
in a scalar-iterator pandas UDF; 24 partitions of a binaryFile table; StandardScaler with mean and
deviation, MLlib's PCA, Parquet; nothing is persisted, so that every action runs the network again.
Both sides are commands of their own, on the same cores, and take turns.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from tables import FRUITS, WEIGHTS, photographs, table, timed, write_section

THEIRS = Path(__file__).with_name("recipe_b.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=int, nargs="*", default=(992, 3936))
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    rows = [
        ("photographs", "recipe B, to its scores", "01 to 04, to the scores", "times")
        + ("all of `fruits run`", "times", f"variance explained, k = {asked.k}: theirs, ours")
    ]
    for number in asked.photographs:
        with tempfile.TemporaryDirectory() as name:
            rows.append(compare(Path(name), number, asked.k, asked.rounds))
        print(rows[-1], flush=True)
    text = f"""Seconds, median of {asked.rounds} rounds, each side from its command on. Goal:
at least 6 times at 992 photographs, 12 at 3,936, 20 at 22,688; the same variance to 0.001.

{table(*rows)}"""
    write_section("The studies' way", text)


def compare(folder: Path, number: int, k: int, rounds: int) -> tuple:
    """Return a row of the table."""
    data = photographs(folder / "photographs", number)
    seconds = {"theirs": [], "scores": [], "whole": []}
    for turn in range(rounds):
        to, run = folder / f"theirs{turn}", folder / f"ours{turn}"
        seconds["theirs"].append(timed([sys.executable, THEIRS, data, to, str(k)]))
        started = time.time()
        options = [f"weights={WEIGHTS}", f"k={k}", "standardize=True"]
        command = [FRUITS, "run", "--data", data, "--run-dir", run]
        seconds["whole"].append(timed([*command, *(f"-p{option}" for option in options)]))
        manifest = json.loads((run / "manifest.json").read_text())
        finished = datetime.fromisoformat(manifest["pca"]["finished"]).timestamp()
        seconds["scores"].append(finished + 1 - started)  # the record has whole seconds
    explained = json.loads((to / "explained.json").read_text())
    theirs, scores, whole = (statistics.median(each) for each in seconds.values())
    return (
        *(f"{number:,}", f"{theirs:.0f}", f"{scores:.0f}", f"**{theirs / scores:.1f}**"),
        *(f"{whole:.0f}", f"{theirs / whole:.1f}"),
        f"{explained:.5f}, {manifest['pca']['explained_variance']:.5f}",
    )


if __name__ == "__main__":
    main()
