"""`fruits run` here and at an older commit, in turns, by the seconds of each notebook.

    make bench ARGS="whole_runs --against HEAD~1"

The older commit lies in a worktree and runs in the same environment. Both sides start with an empty
cache of backbones, so that the first run of each is a new user's first.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from tables import FRUITS, ROOT, WEIGHTS, photographs, table, timed, write_section

BEFORE = "20c494c"  # each notebook started a JVM of its own, and there was no 06
SIDES = ("before", "here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=int, default=992)
    parser.add_argument("--against", default=BEFORE, help="A commit.")
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, trees = photographs(folder / "photographs", asked.photographs), {"here": ROOT}
        trees["before"] = folder / "before"
        subprocess.run([*git, "add", "--detach", trees["before"], asked.against], check=True)
        runs = {side: [] for side in SIDES}
        try:
            for number in range(asked.rounds):
                for side in SIDES:
                    to = folder / f"{side}{number}"
                    cache = {"FRUITS_CACHE": str(folder / f"{side}-cache")}
                    command = [FRUITS, "run", "--data", data, "--run-dir", to]
                    command.append(f"-pweights={WEIGHTS}")
                    # Elsewhere, for Spark's workers import from the working directory first.
                    seconds = timed(command, folder, PYTHONPATH=str(trees[side]), **cache)
                    found = notebooks(to) | {"command": seconds}
                    found["**without 06**"] = seconds - found.get("06_classify", 0)
                    runs[side].append(found)
        finally:
            subprocess.run([*git, "remove", "--force", trees["before"]], check=True)
        results = {side: result(folder / f"{side}0") for side in SIDES}
    write(asked, runs, results)


def notebooks(run: Path) -> dict[str, float]:
    """Return the seconds of each notebook, its kernel's start among them, as papermill counts."""
    found = {}
    for path in sorted((run / "notebooks").glob("*.ipynb")):
        record = json.loads(path.read_text())["metadata"]["papermill"]
        found[path.stem] = record["duration"]
    return found


def result(run: Path) -> str:
    """Return what a run found, in words."""
    manifest = json.loads((run / "manifest.json").read_text())
    checks, pca = manifest["verify"], manifest["pca"]
    return (
        f"k = {pca['k']} explains {pca['explained_variance']:.6f}, "
        f"{checks['passed']} of {len(checks['checks'])} checks passed"
    )


def write(asked: argparse.Namespace, runs: dict, results: dict) -> None:
    first = {side: runs[side][0] for side in SIDES}
    later = {
        side: {name: statistics.median(run[name] for run in each[1:] or each) for name in each[0]}
        for side, each in runs.items()
    }
    rows = [("seconds", f"{asked.against}, first", "later", "here, first", "later", "ratio later")]
    for name, new in later["here"].items():
        old = later["before"].get(name)
        cells = [first["before"].get(name), old, first["here"][name], new]
        ratio = f"{new / old:.2f}" if old else ""
        rows.append((name, *("" if cell is None else f"{cell:.1f}" for cell in cells), ratio))
    text = f"""`fruits run` on {asked.photographs:,} photographs, {asked.rounds} rounds; the first
of each side starts with an empty cache, the median of the others is "later". Goal: at most 0.45
without 06, which the older commit lacks.

{table(*rows)}

Before: {results["before"]}. Here: {results["here"]}."""
    write_section("Whole runs", text)


if __name__ == "__main__":
    main()
