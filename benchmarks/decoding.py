"""Photographs scaled while they are decoded, against decoding them whole.

    make bench ARGS="decoding"

A photograph of the collection, enlarged to the sizes of cameras and saved as a JPEG, is decoded to
the network's input in turns: whole, as runs that began with version 1 go on, and scaled.
"""

import argparse
import io
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from tables import photographs, table, write_section

from fruits_lib.udf import Decoding, decode_image

SIDES = {"100 x 100": (100, 100), "2": (1920, 1080), "12": (4000, 3000), "48": (8000, 6000)}
INPUT = 224  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    rows = [("megapixels", "whole, ms", "scaled, ms", "times", "difference: mean", "largest")]
    with TemporaryDirectory() as folder:
        (file,) = photographs(Path(folder, "one"), 1).rglob("*.jpg")
        small = Image.open(file).convert("RGB")
    for name, size in SIDES.items():
        content = io.BytesIO()
        # Grain, because an enlarged photograph alone is smooth, and quick to decode.
        grain = np.random.default_rng(0).normal(0, 6, (size[1], size[0], 1))
        large = np.asarray(small.resize(size, Image.Resampling.BICUBIC)) + grain
        Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=92)
        took, pixels = {1: [], 2: []}, {}
        for _ in range(rounds):
            for version in took:
                started = time.perf_counter()
                decoding = Decoding(version=version)
                pixels[version] = decode_image(content.getvalue(), INPUT, decoding).astype(float)
                took[version].append(1000 * (time.perf_counter() - started))
        whole, scaled = (median(took[version]) for version in took)
        difference = np.abs(pixels[1] - pixels[2])
        figures = f"{whole:.1f}", f"{scaled:.1f}", f"**{whole / scaled:.1f}**"
        rows.append((name, *figures, f"{difference.mean():.2f}", f"{difference.max():.0f}"))
    text = f"""One core, median of {rounds}, to {INPUT} x {INPUT} pixels. The difference is that of
the network's input, in grey levels of 256.

{table(*rows)}"""
    write_section("Large photographs", text)


if __name__ == "__main__":
    main()
