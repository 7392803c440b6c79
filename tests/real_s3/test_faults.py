"""02 while the real server fails: it finishes, and every image is there once."""

import time
from contextlib import closing

import pytest
from running import IMAGES, Running
from servers import Faults


@pytest.fixture
def start(photographs, server):
    """A function that starts 02, after 01, on the server or on what stands before it."""

    def start(name, endpoint=""):
        data = ("--data", photographs.uri("photographs"))
        before = Running(photographs, server, name, "", "--only", "01", "--overwrite", *data)
        assert before.process.wait() == 0, before.log.read_text()[-2000:]
        options = ("--only", "02", "-p", "weights=random", "-p", "batch_size=12")
        return Running(photographs, server, name, endpoint, *options)

    return start


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
