"""A whole run while the real server fails: it finishes, and every image is there once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from servers import Faults, slow_down

FRUITS = Path(sys.executable).with_name("fruits")
IMAGES = 36


@pytest.fixture(scope="module")
def photographs(new_bucket, sample):
    """A bucket with a part of the sample: a fault is as good on few images."""
    bucket = new_bucket()
    files = sorted(file for file in sample.glob("Training/*/*.jpg") if file.stat().st_size > 1000)
    for file in files[:: len(files) // IMAGES][:IMAGES]:
        bucket.put(f"photographs/{file.relative_to(sample).as_posix()}", file.read_bytes())
    return bucket


@pytest.fixture
def start(photographs, server):
    """A function that starts a run, on the server or on what stands before it."""
    return lambda name, **options: Running(photographs, server, name, **options)


class Running:
    """A `fruits run` of the photographs, from the bucket to it, in a process of its own."""

    def __init__(self, bucket, server, name: str, endpoint: str = "", batch_size: int = 12):
        self.bucket, self.name = bucket, name
        self.log = server.folder.with_name(f"{name}.log")
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [FRUITS, "run", "--data", bucket.uri("photographs"), "--run-dir", bucket.uri(name)]
                + ["-p", "weights=random", "-p", f"batch_size={batch_size}"],
                env={
                    **os.environ,
                    **server.environment,
                    "AWS_ENDPOINT_URL": endpoint or server.endpoint,
                },
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that its kernel and Spark can be killed with it
            )

    def await_first_batch(self) -> None:
        """Wait until featurize is at work: its first batch is done, others are to come."""
        first = f"{self.name}/rejects/batch_id=0/rejects.parquet"
        while first not in self.bucket.listing(f"{self.name}/"):
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.1)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> dict:
        """Wait for its end; return its manifest, after checking that it is a good one."""
        self.process.wait()
        assert self.process.returncode == 0, self.log.read_text()[-2000:]
        manifest = json.loads(self.bucket.get(f"{self.name}/manifest.json"))
        found = manifest["featurize"]["features"] + manifest["featurize"]["rejects"]
        assert (manifest["load"]["images"], found) == (IMAGES, IMAGES)
        assert manifest["verify"]["failed"] == 0
        return manifest


def test_the_server_is_killed_and_comes_back(start, server):
    running = start("killed")
    running.await_first_batch()
    server.kill()
    time.sleep(5)
    server.start()
    running.finish()


def test_an_outage_of_eight_seconds(start, server, tmp_path):
    with closing(Faults(server, tmp_path / "toxiproxy.log")) as proxy:
        running = start("outage", endpoint=proxy.endpoint)
        running.await_first_batch()
        proxy.set_enabled(False)
        time.sleep(8)
        proxy.set_enabled(True)
        running.finish()


def test_a_run_killed_in_the_middle_resumes(start):
    running = start("resumed")
    running.await_first_batch()
    running.kill()
    manifest = start("resumed").finish()
    assert 0 < manifest["featurize"]["computed"] < IMAGES


@pytest.fixture(scope="module")
def slow(photographs, server, tmp_path_factory):
    """Runs that mostly wait, so that they wait together: (by fault, requests that were refused)."""
    folder = tmp_path_factory.mktemp("proxies")
    random.seed(0)
    with ExitStack() as stack:
        latency = stack.enter_context(closing(Faults(server, folder / "latency.log")))
        latency.add("latency", latency=200, jitter=50)
        resets = stack.enter_context(closing(Faults(server, folder / "resets.log")))
        resets.add("reset_peer", toxicity=0.1, timeout=100)
        busy, refused = stack.enter_context(slow_down(server, 0.25))
        endpoints = {"latency": latency.endpoint, "resets": resets.endpoint, "busy": busy}
        # One batch: each has its round trips.
        runs = {
            name: Running(photographs, server, name, endpoint, batch_size=0)
            for name, endpoint in endpoints.items()
        }
        yield runs, refused
        for running in runs.values():
            if running.process.poll() is None:
                running.kill()


def test_latency(slow):
    slow[0]["latency"].finish()


def test_resets(slow):
    slow[0]["resets"].finish()


def test_a_quarter_of_the_requests_is_refused(slow):
    runs, refused = slow
    runs["busy"].finish()
    assert len(refused) > 50
