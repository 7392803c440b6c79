"""Faults of a cluster, each at a known moment."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from subprocess import CompletedProcess

import psutil
import settings
from box import Box
from work import read_rows

from fruits_lib.storage import bucket_and_key

# The smallest session of Livy's that works; it computes nothing, and so needs no executor.
IDLE = {
    "kind": "pyspark",
    "idleTimeout": "10s",  # in place of emr-config.json's hour
    "conf": {
        "spark.driver.memory": "768m",
        "spark.driver.memoryOverhead": "768m",
        "spark.dynamicAllocation.initialExecutors": "0",
    },
}
OUTAGE = 10  # seconds
ACTIVE = ("NEW", "NEW_SAVING", "SUBMITTED", "ACCEPTED", "RUNNING")  # applications of YARN's


@dataclass(frozen=True)
class Struck:
    """The outcome of work that faults struck.

    Attributes
    ----------
    answer : subprocess.CompletedProcess
    before, batches : int
        Batches that were done when the work began, and after the last fault.
    returned : list
        What the faults returned.
    """

    answer: CompletedProcess
    before: int
    batches: int
    returned: list


def strike(
    box: Box,
    run_dir: str,
    work: Callable[[], CompletedProcess],
    *faults: Callable[[Box], object],
) -> Struck:
    """Do work that featurizes; cause each fault when one more batch is done."""
    before = batches = finished_batches(box, run_dir)
    returned = []
    with ThreadPoolExecutor(1) as executor:
        answer = executor.submit(work)
        for fault in faults:
            box.wait(
                "another batch",
                lambda done=batches: answer.done() or finished_batches(box, run_dir) > done,
                seconds=480,
            )
            assert not answer.done(), answer.result().stderr
            returned.append(fault(box))
            batches = finished_batches(box, run_dir)
        return Struck(answer.result(), before, batches, returned)


def finished_batches(box: Box, run_dir: str) -> int:
    """Return how many batches of a run are complete."""
    keys = box.bucket.listing(f"{bucket_and_key(run_dir)[1]}/rejects/")
    return sum(key.endswith("/rejects.parquet") for key in keys)


def paths(box: Box, run_dir: str, *tables: str) -> list[str]:
    """Return the images of all rows of some tables of a run, sorted."""
    return sorted(path for table in tables for (path,) in read_rows(box, run_dir, table, ["path"]))


# --- faults ---------------------------------------------------------------------------------------


def end_session(box: Box) -> None:
    """Delete the Livy session of the running notebook, as somebody else could."""
    box.livy(f"sessions/{notebook_sessions(box)[0]['id']}", "DELETE")


def kill_driver(box: Box) -> None:
    """Kill the JVM of the running notebook, YARN's application master."""
    application = notebook_sessions(box)[0]["appId"]
    (driver,) = [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "java"
        and "ApplicationMaster" in " ".join(process.info["cmdline"])
        and application in " ".join(process.info["cmdline"])
    ]
    driver.kill()


def lose_node(box: Box) -> str:
    """Kill the node without the driver once it has an executor; return its name."""
    application = box.yarn(f"cluster/apps/{notebook_sessions(box)[0]['appId']}")
    driver = application["amHostHttpAddress"].split(":")[0]
    (node,) = set(settings.CORE) - {driver}
    box.wait(f"an executor on {node}", lambda: node_report(box, node)["numContainers"] > 0)
    box.kill(node)
    return node


def take_s3_away(box: Box) -> None:
    """Kill the S3 server, and start it again some seconds later."""
    box.kill("s3")
    time.sleep(OUTAGE)
    box.start_s3()
    box.wait("S3", lambda: box.bucket.listing("stage/"))


# --- Livy's sessions and YARN's nodes -------------------------------------------------------------


def notebook_sessions(box: Box) -> list[dict]:
    """Return Livy's sessions that sparkmagic opened: they have no name."""
    return [session for session in box.livy("sessions")["sessions"] if not session["name"]]


def notebook_applications(box: Box, *states: str) -> list[dict]:
    """Return YARN's applications of such sessions, the latest one last."""
    found = [app for app in box.applications(*states) if app["name"].startswith("livy-session-")]
    return sorted(found, key=lambda app: app["id"])


def node_report(box: Box, node: str) -> dict:
    """Return what YARN says of a node."""
    nodes = box.yarn("cluster/nodes")["node"]
    (report,) = [one for one in nodes if one["nodeHostName"] == node]
    return report


def leave_alone(box: Box) -> tuple[dict, dict]:
    """Leave an idle and a busy session alone until Livy ends one of them.

    The idle one was used last, so only its work saves the busy one from being ended first. Returns
    what YARN then says of the idle one's application, and Livy of the busy one.
    """
    busy, idle = (
        box.livy("sessions", "POST", name=name, **IDLE)["id"] for name in ("busy", "idle")
    )
    try:
        for session in (busy, idle):
            _await_state(box, session, "idle", touched=(busy, idle))
        code = "import time; time.sleep(3600)"
        box.livy(f"sessions/{busy}/statements", "POST", code=code)
        _await_state(box, busy, "busy", touched=(idle,))
        application = box.livy(f"sessions/{idle}")["appId"]
        # Livy looks for such sessions every minute.
        box.wait("the end of the idle session", lambda: idle not in _sessions(box), seconds=200)
        spared = box.livy(f"sessions/{busy}")

        def report() -> dict:
            return box.yarn(f"cluster/apps/{application}")

        box.wait("the end of its application", lambda: report()["state"] not in ACTIVE)
        return report(), spared
    finally:
        for session in {busy, idle} & _sessions(box):
            box.livy(f"sessions/{session}", "DELETE")


def _sessions(box: Box) -> set[int]:
    return {session["id"] for session in box.livy("sessions")["sessions"]}


def _await_state(box: Box, session: int, state: str, touched: tuple[int, ...]) -> None:
    """Wait for a state; keep the sessions in `touched` from timing out meanwhile."""

    def reached() -> bool:
        for one in touched:
            box.livy(f"sessions/{one}/connect", "POST")
        return box.livy(f"sessions/{session}")["state"] == state

    box.wait(f"session {session} to be {state}", reached)
