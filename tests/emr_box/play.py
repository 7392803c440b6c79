"""`make emr-box`: the box for a person to play with, until Ctrl-C."""

import shlex
import signal
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import parts
import pytest
from box import BUCKET, PASSWORDS, Box

from fruits_lib.backbones import check_backbone, export
from fruits_lib.connector import cache_folder
from fruits_lib.emr import tunnel
from fruits_lib.emr.cluster import Cluster
from fruits_lib.sample import render_sample

WEIGHTS = "weights/random.tflite"
GUIDE = """
The box is up, in {seconds:.0f} s. YARN has two nodes of 12 GB, of which 3 to 6 GB get used in all.

tunnel         {command}
JupyterHub     https://127.0.0.1:{hub}, with the tunnel open (its certificate is its own)
               user jovyan, password {jovyan}; a second person: amina, {amina}
Spark history  http://127.0.0.1:{history}
in 01_load     data = "s3://{bucket}/photographs", run_dir = "s3://{bucket}/runs/mine"
in 02          run_dir as before, weights = "{weights}"
a step         {step}
logs           {logs}

Ctrl-C ends every process.
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fruits-emr-box-") as scratch:
        root, folder, sample = (Path(scratch, name) for name in ("root", "box", "sample"))
        for one in (root, folder):
            one.mkdir()
        started = time.monotonic()
        with Box(parts.collect(cache_folder(), root), folder) as box:
            render_sample(sample)
            box.bucket.upload(sample, "photographs")
            box.bucket.put(WEIGHTS, export(check_backbone("mobilenet_v2", "random")))
            staged = box.bucket.listing("stage/backbones/")
            print(guide(box, time.monotonic() - started, bool(staged)), flush=True)
            signal.pause()


def guide(box: Box, seconds: float, imagenet: bool) -> str:
    """Return what a person needs to know."""
    cluster = Cluster("box", "box", "WAITING", "", datetime.now(UTC), None, address="primary")
    command = tunnel.ssh_command(cluster, box.key)
    command[1:1] = ["-F", str(box.ssh_config)]
    step = [*command[:5], command[-1], "/opt/fruits/bin/fruits", "run", "--only", "01"]
    step += ["--data", f"s3://{BUCKET}/photographs", "--run-dir", f"s3://{BUCKET}/runs/steps"]
    return GUIDE.format(
        seconds=seconds,
        command=shlex.join(command),
        hub=tunnel.HUB,
        history=tunnel.HISTORY,
        bucket=BUCKET,
        weights="imagenet" if imagenet else f"s3://{BUCKET}/{WEIGHTS}",
        step=shlex.join(step),
        logs=box.folder / "logs",
        **PASSWORDS,
    )


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        main()
    except (pytest.skip.Exception, pytest.fail.Exception) as missing:
        raise SystemExit(f"emr-box: {missing}") from None
    except KeyboardInterrupt:
        print("emr-box: every process has ended")
