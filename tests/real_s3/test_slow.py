"""Whole runs on a bad line to the real server, in a file of their own: they wait, others work."""

import random
from contextlib import ExitStack, closing

import pytest
from running import Running
from servers import Faults, slow_down


@pytest.fixture(scope="module")
def slow(photographs, server, tmp_path_factory):
    """Runs that mostly wait, so that they wait together: (by fault, requests that were refused)."""
    folder = tmp_path_factory.mktemp("proxies")
    random.seed(0)
    with ExitStack() as stack:
        latency = stack.enter_context(closing(Faults(server, folder / "latency.log")))
        latency.add("latency", latency=100, jitter=50)
        resets = stack.enter_context(closing(Faults(server, folder / "resets.log")))
        resets.add("reset_peer", toxicity=0.1, timeout=100)
        busy, refused = stack.enter_context(slow_down(server, 0.25))
        endpoints = {"latency": latency.endpoint, "resets": resets.endpoint, "busy": busy}
        options = ("--data", photographs.uri("photographs"), "-p", "weights=random")
        runs = {
            name: Running(photographs, server, name, endpoint, *options)
            for name, endpoint in endpoints.items()
        }
        yield runs, refused
        for running in runs.values():
            if running.process.poll() is None:
                running.kill()


def test_latency(slow):
    assert slow[0]["latency"].finish()["verify"]["failed"] == 0


def test_resets(slow):
    assert slow[0]["resets"].finish()["verify"]["failed"] == 0


def test_a_quarter_of_the_requests_is_refused(slow):
    runs, refused = slow
    assert runs["busy"].finish()["verify"]["failed"] == 0
    assert len(refused) > 50
