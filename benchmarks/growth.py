"""01 and 02 at 1,000, 10,000 and 100,000 images: time per image, the driver's memory, a kill.

    make bench ARGS="growth --images 1000 10000"

The images are hard links to a hundred photographs of 32 x 32 pixels. The table's network is
MobileNetV2 at 32 pixels with random weights, so that a hundred thousand take minutes; the killed
run has the one at 224 pixels, as users have. Each run has a driver of its own, which first computes
a thousand other images to be warm.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from pipeline import write_features, write_index
from tables import peak_mb, photographs, table, write_section

from fruits_lib import backbones, runs, session
from fruits_lib.networks import check_backbone

TINY, FULL = 32, 224  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="*", default=(1_000, 10_000, 100_000))
    parser.add_argument("--killed", type=int, default=20_000, help="Images of the killed run.")
    parser.add_argument("--driver", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.driver:
        *places, size = asked.driver
        print(json.dumps(drive(*map(Path, places), int(size))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "warm", 1000)
        for size in (TINY, FULL):
            content = backbones.export(check_backbone("mobilenet_v2", "random", size))
            (folder / f"{size}.tflite").write_bytes(content)
        rows = [("images", "seconds", "ms per image", "driver's Python, MB", "its JVM, MB")]
        for number in asked.images:
            make_images(folder / str(number), number)
            found = compute(folder, str(number), f"run{number}", TINY)
            each = f"{1000 * found['seconds'] / number:.3f}"
            rows.append((f"{number:,}", f"{found['seconds']:.1f}", each, *found["peak"]))
            print(rows[-1], flush=True)
        text = f"""01 and 02 of images of 32 pixels, by a network of {TINY}, from listing the
folder to the last row. Goal: time per image and the driver's memory flat within 10 %.

{table(*rows)}

{killed(folder, asked.killed)}"""
    write_section("Growth", text)


def make_images(folder: Path, number: int) -> None:
    """Make so many names for a hundred small photographs; a file has at most 65,000 names."""
    sources = sorted(photographs(folder.with_name("hundred"), 100).rglob("*.jpg"))
    for source in sources:
        Image.open(source).resize((32, 32)).save(source)
    for i in range(number):
        target = folder / f"label {i // 1000}" / f"{i}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(sources[i % 100], target)


def compute(folder: Path, data: str, to: str, size: int, kill_after: float = 0) -> dict:
    """Return what a driver of its own found; with `kill_after`, kill it and all its processes."""
    command = [sys.executable, __file__, "--driver", folder, data, to, str(size)]
    options = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **options) as process:
        if kill_after:
            while "load" not in runs.read_manifest(f"{folder}/{to}"):
                time.sleep(0.1)
            time.sleep(kill_after)
            os.killpg(process.pid, signal.SIGKILL)
            return {}
        return json.loads(process.stdout.read().splitlines()[-1])


def drive(folder: Path, data: Path, to: Path, size: int) -> dict:
    """Run 01 and 02, and return their seconds without the start of Spark, and the peak memory."""
    spark = session.start_session("growth")
    weights = str(folder / f"{size}.tflite")
    for place, where in ((folder / "warm", f"{to}-warm"), (folder / data, to)):
        run, begun = runs.open_run(spark, f"{folder}/{where}"), time.monotonic()
        write_index(run, place)
        indexed = time.monotonic() - begun
        network = backbones.export_backbone(run, weights=weights, input_size=size)
        done = write_features(run, network)
        seconds = time.monotonic() - begun
    java = spark.sparkContext._gateway.proc.pid
    assert done.features == done.images, done
    return {
        "seconds": seconds,
        "indexed": indexed,
        "computed": done.computed,
        "peak": [peak_mb(), peak_mb(java)],
    }


def killed(folder: Path, number: int) -> str:
    """Return what a kill half way and a second run cost, in words."""
    data = str(number)
    if not (folder / data).exists():
        make_images(folder / data, number)
    whole = compute(folder, data, "whole", FULL)
    again = compute(folder, data, "whole", FULL)
    half = whole["indexed"] + (whole["seconds"] - whole["indexed"]) / 2
    compute(folder, data, "killed", FULL, kill_after=half - whole["indexed"])
    resumed = compute(folder, data, "killed", FULL)
    total = half + resumed["seconds"]
    return f"""{number:,} images by a network of {FULL} pixels, without a kill:
{whole["seconds"]:.1f} s. Killed half way (SIGKILL to every process), after {half:.1f} s, and
started again: {total:.1f} s, **{total / whole["seconds"]:.2f} of it** (goal 1.10);
{number - resumed["computed"]:,} images were done. Run again with nothing new:
{again["seconds"]:.1f} s, **{again["seconds"] / whole["seconds"]:.2f}** (goal 0.10)."""


if __name__ == "__main__":
    main()
