"""`make emr-box`: the box for a person to play with, until Ctrl-C."""

import shlex
import signal
import tempfile
import time
from pathlib import Path

import parts
import pytest
from box import BUCKET, PASSWORDS, Box
from settings import HISTORY_PORT, HUB_PORT, PRIMARY

from fruits_lib.backbones import export
from fruits_lib.networks import check_backbone
from fruits_lib.sample import write_sample
from fruits_lib.storage import cache_folder

WEIGHTS = "weights/random.tflite"
GUIDE = """
The box is up after {seconds:.0f} s. YARN has two nodes of 12 GB; together they use 3 to 6 GB.

tunnel         {tunnel}
JupyterHub     https://127.0.0.1:{hub}/user/jovyan/lab, through the tunnel (certificate self-signed)
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
            write_sample(sample)
            box.bucket.upload(sample, "photographs")
            box.bucket.put(WEIGHTS, export(check_backbone("mobilenet_v2", "random")))
            staged = box.bucket.listing("stage/backbones/")
            print(guide(box, time.monotonic() - started, bool(staged)), flush=True)
            signal.pause()


def guide(box: Box, seconds: float, imagenet: bool) -> str:
    """Return the addresses, passwords and commands of the box."""
    ssh = ["ssh", "-F", str(box.ssh_config), "-i", str(box.key), "hadoop@box"]
    ports = (HUB_PORT, HISTORY_PORT)
    forwards = [part for port in ports for part in ("-L", f"127.0.0.1:{port}:{PRIMARY}:{port}")]
    step = [*ssh, "/opt/fruits/bin/fruits", "run"]
    step += ["--data", f"s3://{BUCKET}/photographs", "--run-dir", f"s3://{BUCKET}/runs/steps"]
    weights = "imagenet" if imagenet else f"s3://{BUCKET}/{WEIGHTS}"
    step += ["-p", f"weights={weights}"]
    return GUIDE.format(
        seconds=seconds,
        tunnel=shlex.join([*ssh, "-N", *forwards]),
        hub=HUB_PORT,
        history=HISTORY_PORT,
        bucket=BUCKET,
        weights=weights,
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
