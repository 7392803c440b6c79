"""What the containers on YARN take of memory, beside what it lets them have."""

import contextlib
import os
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil
from box import Box

INTERVAL = 1.0  # seconds; YARN itself looks every three
DRIVER, MASTER, EXECUTOR = "driver of a session", "application master of a step", "executor"
KINDS = {
    "org.apache.spark.deploy.yarn.ApplicationMaster": DRIVER,
    "org.apache.spark.deploy.yarn.ExecutorLauncher": MASTER,
    "org.apache.spark.executor.YarnCoarseGrainedExecutorBackend": EXECUTOR,
}
MB = 1 << 20


@dataclass
class Container:
    """One container, and the most that it was seen to take.

    Attributes
    ----------
    id, kind : str
    limit_mb : int
        Memory that YARN lets it have.
    heap_mb : int
        Limit of its JVM's heap.
    cores : int
        Tasks at once, of an executor; else 0.
    jvm_mb, python_mb : float
        Peaks of the JVM, and of all its Python processes together.
    worker_mb : float
        Peak of one of them.
    total_mb : float
        Peak of all its processes together, resident pages that they share counted for each: so
        YARN counts (`ProcfsBasedProcessTree`).
    """

    id: str
    kind: str
    limit_mb: int
    heap_mb: int
    cores: int
    jvm_mb: float = 0
    python_mb: float = 0
    worker_mb: float = 0
    total_mb: float = 0

    @property
    def application(self) -> str:
        return "application_" + "_".join(self.id.split("_")[-4:-2])

    def update(self, processes: list[tuple[str, float]]) -> None:
        """Take note of what its processes, by name, take now."""
        python = [mb for name, mb in processes if name.startswith("python")]
        jvm = sum(mb for name, mb in processes if name == "java")
        self.jvm_mb = max(self.jvm_mb, jvm)
        self.python_mb = max(self.python_mb, sum(python))
        self.worker_mb = max(self.worker_mb, *python, 0)
        self.total_mb = max(self.total_mb, sum(mb for _, mb in processes))


class Peaks:
    """Follows all containers of a box from outside, in a `with` block.

    Parameters
    ----------
    box : Box
    """

    def __init__(self, box: Box):
        self._box = box
        self._containers: dict[str, Container] = {}
        self._ended = threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self):
        self._following = self._thread.submit(self._follow)
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._following.result()
        self._thread.shutdown()

    def containers(self, kind: str = "") -> list[Container]:
        """Return the containers seen so far, of one kind or all."""
        return [it for it in list(self._containers.values()) if kind in ("", it.kind)]

    def _follow(self) -> None:
        # Of the box: by its processes' namespace. Other boxes may be at work beside it.
        namespace = os.readlink(f"/proc/{self._box._process.pid}/ns/pid_for_children")
        while not self._ended.wait(INTERVAL):
            for leader, members in _sessions().items():
                # Gone meanwhile: it will not be seen again.
                with contextlib.suppress(ProcessLookupError, FileNotFoundError, psutil.Error):
                    if os.readlink(f"/proc/{leader}/ns/pid") == namespace:
                        self._look(psutil.Process(leader).cmdline(), members)

    def _look(self, command: list[str], members: list[int]) -> None:
        text = " ".join(command)
        found = re.search(r"container(_\d+_\d+)(_\d+)_\d+", text)
        kind = next((KINDS[word] for word in text.split() if word in KINDS), "")
        if not (found and kind):  # of something else, or not yet what it is going to be
            return
        if found[0] not in self._containers:
            limit = self._limit(found[0], *found.groups())
            if not limit:
                return
            heap, cores = re.search(r"-Xmx(\d+)m", text), re.search(r"--cores (\d+)", text)
            self._containers[found[0]] = Container(
                found[0], kind, limit, int(heap[1]), int(cores[1]) if cores else 0
            )
        self._containers[found[0]].update(list(_resident(members)))

    def _limit(self, container: str, application: str, attempt: str) -> int:
        """Return what YARN lets a container have; 0 if YARN does not say."""
        name = f"application{application}/appattempts/appattempt{application}_{attempt[1:]:0>6}"
        with contextlib.suppress(OSError):
            found = self._box.yarn(f"cluster/apps/{name}/containers")
            # A list of one comes without its brackets.
            for it in [found] if isinstance(found, dict) else found:
                if it["containerId"] == container:
                    return int(it["allocatedMB"])
        return 0


def _sessions() -> dict[int, list[int]]:
    """Return the processes of this machine by the leader of their session.

    YARN starts each container as a session, in which its JVM and Python stay.
    """
    sessions = defaultdict(list)
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            sessions[os.getsid(pid)].append(pid)
    return sessions


def _resident(pids: list[int]) -> Iterator[tuple[str, float]]:
    """Return name and resident memory of processes that are still there."""
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            with process.oneshot():
                yield process.name(), process.memory_info().rss / MB
