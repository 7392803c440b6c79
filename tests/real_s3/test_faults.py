"""A whole run while the real server fails: it finishes, and every image is there once."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from servers import Faults, slow_down

FRUITS = Path(sys.executable).with_name("fruits")
IMAGES = 36


@pytest.fixture
def photographs(bucket, sample):
    """A bucket with a part of the sample: a fault is as good on few images."""
    files = sorted(file for file in sample.glob("Training/*/*.jpg") if file.stat().st_size > 1000)
    for file in files[:: len(files) // IMAGES][:IMAGES]:
        bucket.put(f"photographs/{file.relative_to(sample).as_posix()}", file.read_bytes())
    return bucket


@pytest.fixture
def faults(server, tmp_path):
    proxy = Faults(server, tmp_path / "toxiproxy.log")
    yield proxy
    proxy.close()


class Running:
    """A `fruits run` of the sample, from the bucket to it, in a process of its own."""

    def __init__(self, bucket, *arguments):
        self.bucket = bucket
        self.process = subprocess.Popen(
            [FRUITS, "run", "--data", bucket.uri("photographs"), "--run-dir", bucket.uri("run")]
            + ["-p", "weights=random", "-p", "batch_size=12", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that its kernel and Spark can be killed with it
        )
        self.lines, self.errors = [], []
        self.readers = [
            threading.Thread(
                target=lambda: self.lines.extend(iter(self.process.stdout.readline, ""))
            ),
            threading.Thread(target=lambda: self.errors.extend(self.process.stderr)),
        ]
        for reader in self.readers:
            reader.start()

    def await_first_batch(self) -> None:
        """Wait until featurize is at work: its first batch is in the bucket, others are to come."""
        while not any("features/batch_id=0/" in key for key in self.bucket.listing("run/")):
            assert self.process.poll() is None, self.errors
            time.sleep(0.1)

    def finish(self) -> dict:
        """Wait for its end; return its manifest, after checking that it is a good one."""
        self.process.wait()
        for reader in self.readers:
            reader.join()
        assert self.process.returncode == 0, "".join(self.errors)[-2000:]
        manifest = json.loads(self.bucket.get("run/manifest.json"))
        found = manifest["featurize"]["features"] + manifest["featurize"]["rejects"]
        assert (manifest["load"]["images"], found) == (IMAGES, IMAGES)
        assert manifest["verify"]["failed"] == 0
        return manifest


def test_the_server_is_killed_and_comes_back(photographs, server):
    running = Running(photographs)
    running.await_first_batch()
    server.kill()
    time.sleep(5)
    server.start()
    running.finish()


def test_an_outage_of_eight_seconds(photographs, faults, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.endpoint)
    running = Running(photographs)
    running.await_first_batch()
    faults.set_enabled(False)
    time.sleep(8)
    faults.set_enabled(True)
    running.finish()


def test_latency(photographs, faults, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.endpoint)
    faults.add("latency", latency=200, jitter=50)
    Running(photographs, "-p", "batch_size=0").finish()  # one batch: each has its round trips


def test_resets(photographs, faults, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.endpoint)
    faults.add("reset_peer", toxicity=0.1, timeout=100)
    Running(photographs).finish()


def test_a_quarter_of_the_requests_is_refused(photographs, server, monkeypatch):
    random.seed(0)
    with slow_down(server, 0.25) as (endpoint, refused):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        Running(photographs).finish()
    assert len(refused) > 50


def test_a_run_killed_in_the_middle_resumes(photographs):
    running = Running(photographs)
    running.await_first_batch()
    os.killpg(running.process.pid, signal.SIGKILL)
    manifest = Running(photographs).finish()
    assert manifest["featurize"]["computed"] < IMAGES
