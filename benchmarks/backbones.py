"""All backbones side by side on the same photographs; writes backbones.md.

    make bench-backbones ARGS="--data /path/to/photographs --imagenet mobilenet_v2"

Each backbone decodes and infers in a bare loop on one thread. The backbones take turns, photograph
by photograph, so that a slow spell of the machine slows all; processor time is counted, so that
other programs do not. Only ImageNet weights say how well features tell fruit apart: for networks
named by --imagenet, all photographs are reduced and the Test ones labelled as their nearest
Training ones are, by scikit-learn. The others run with random weights, which are as fast.
"""

import argparse
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from fruits_lib import backbones, udf
from fruits_lib.networks import NETWORKS, check_backbone

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("FRUITS_SHARED", ROOT.parent / "shared"))
TABLE = Path(__file__).with_suffix(".md")
NEIGHBORS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(SHARED / "fruits360"))
    parser.add_argument("--imagenet", default="mobilenet_v2" if SHARED.exists() else "")
    parser.add_argument("--photographs", type=int, default=60, help="timed, of each backbone")
    asked = parser.parse_args()
    if SHARED.exists():
        os.environ.setdefault("KERAS_HOME", str(SHARED / "keras"))
    pretrained = {name for name in asked.imagenet.split(",") if name}
    files = sorted(Path(asked.data).rglob("*.jpg"))
    if not files or not pretrained <= NETWORKS.keys():
        sys.exit(f"{asked.data} has no .jpg file, or --imagenet names no backbone")

    contents, parameters = {}, {}
    for name in NETWORKS:
        weights = "imagenet" if name in pretrained else "random"
        contents[name] = backbones.export(check_backbone(name, weights))
        parameters[name] = backbones._in_own_process(count_parameters, name)
        print(f"{name}: exported, {weights} weights", flush=True)
    timed = files[:: max(1, len(files) // asked.photographs)][: asked.photographs]
    speeds = measure_speeds(contents, timed)
    quality = {name: measure_quality(contents[name], name, files) for name in pretrained}
    write_table(len(timed), len(files), contents, parameters, speeds, quality)


def count_parameters(name: str) -> int:
    return backbones._model(check_backbone(name, "random")).count_params()


def measure_speeds(contents: dict[str, bytes], files: list[Path]) -> dict[str, float]:
    """Return the images per second of processor time, by backbone."""
    infer = {name: udf.open_backbone(content) for name, content in contents.items()}
    seconds = {name: [] for name in infer}
    for file in (files[0], *files):  # the first one warms up
        for name in infer:
            started = time.process_time()
            infer[name](udf.decode_image(file.read_bytes(), NETWORKS[name].input_size))
            seconds[name].append(time.process_time() - started)
    return {name: 1 / float(np.mean(each[1:])) for name, each in seconds.items()}


def measure_quality(content: bytes, name: str, files: list[Path]) -> tuple[int, str]:
    """Return k at 90 % of all photographs' variance, and the accuracy where splits exist."""
    infer, size = udf.open_backbone(content), NETWORKS[name].input_size
    features = np.stack([infer(udf.decode_image(file.read_bytes(), size)).copy() for file in files])
    k = PCA(0.9, svd_solver="full").fit(features).n_components_
    labels = np.array([file.parent.name for file in files])
    splits = np.array([file.parts[-3] for file in files])
    fit, test = splits == "Training", splits == "Test"
    if not (fit.any() and test.any()):
        return k, ""
    pca = PCA(0.9, svd_solver="full").fit(features[fit])
    nearest = KNeighborsClassifier(NEIGHBORS).fit(pca.transform(features[fit]), labels[fit])
    return k, f"{nearest.score(pca.transform(features[test]), labels[test]):.1%}"


def write_table(timed, count, contents, parameters, speeds, quality) -> None:
    """Write the table to backbones.md, and print it."""
    lines = []
    for name, network in NETWORKS.items():
        k, accuracy = quality.get(name, ("", ""))
        lines.append(
            f"| `{name}` | {network.input_size} | {network.width:,} | {speeds[name]:.1f} "
            f"| {len(contents[name]) / 1e6:.1f} | {parameters[name] / 1e6:.1f} | {k} | {accuracy} |"
        )
    text = f"""# Backbones side by side

`make bench-backbones`, {date.today()}, {platform.machine()}, Python {platform.python_version()}:
{timed} photographs, decoded and inferred on one thread, the backbones in turn; images per second of
processor time. The load of the machine at the end was {os.getloadavg()[0]:.1f} on {os.cpu_count()}
cores: other programs slow all backbones, by the caches that they share. The input is square, in
pixels. k explains 90 % of the variance of all {count:,} photographs' raw features. Accuracy: labels
of Test by the {NEIGHBORS} nearest neighbours among the scores of Training, whose components explain
90 %; in Fruits-360 these are other angles of the same
fruits. Both are empty where no ImageNet weights were at hand.

| backbone | input | width | images/s and core | file, MB | parameters, M | k | accuracy |
|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""
    TABLE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
