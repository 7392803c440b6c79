"""What goes wrong on a cluster, at a moment that is known."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from subprocess import CompletedProcess

import psutil
import settings
from box import Box
from work import read_rows

from fruits_lib.storage import bucket_and_key

# A session of Livy's for a person who pays attention to nothing else: as small as it works.
SMALL = {
    "spark.driver.memory": "768m",
    "spark.driver.memoryOverhead": "768m",
    "spark.dynamicAllocation.initialExecutors": "0",
}


def finished_batches(box: Box, run_dir: str) -> int:
    """Return how many micro-batches the checkpoint of a run says are done."""
    keys = box.bucket.listing(f"{bucket_and_key(run_dir)[1]}/checkpoint/commits/")
    return sum(key.rsplit("/", 1)[1].isdigit() for key in keys)


def strike(
    box: Box, run_dir: str, work: Callable[[], CompletedProcess], fault: Callable[[], None]
) -> CompletedProcess:
    """Return the answer of `work`, which featurizes, and in the middle of which `fault` strikes.

    The middle: one more micro-batch than before is done, and not all of the images are.
    """
    before = finished_batches(box, run_dir)
    with ThreadPoolExecutor(1) as executor:
        answer = executor.submit(work)
        box.wait(
            "another micro-batch",
            lambda: answer.done() or finished_batches(box, run_dir) > before,
            seconds=480,
        )
        fault()
        assert not answer.done(), answer.result().stderr
        return answer.result()


# --- faults ---------------------------------------------------------------------------------------


def end_session(box: Box) -> None:
    """Delete the Livy session of the notebook that runs, as somebody else could."""
    box.livy(f"sessions/{notebook_session(box)['id']}", "DELETE")


def kill_application_master(box: Box) -> None:
    """Kill the JVM of the notebook's driver, which is YARN's application master too."""
    application = notebook_session(box)["appId"]
    for node in settings.CORE:
        for process in box.processes(node):
            command = process.cmdline()
            if process.name() == "java" and "ApplicationMaster" in " ".join(command):
                if application in " ".join(command):
                    process.kill()
