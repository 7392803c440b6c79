"""The containers on YARN, seen from outside: their region, their memory, and its limit."""

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
    """One container and its peaks.

    Attributes
    ----------
    id, kind : str
    region : str
        AWS_REGION of its processes; empty if they have none.
    limit_mb, heap_mb : int
        Memory that YARN grants it, and the largest heap of its JVM.
    cores : int
        Tasks at once, of an executor; else 0.
    jvm_mb, python_mb, worker_mb : float
        Of the JVM, of all Python processes together, and of one of them.
    total_mb : float
        Of all processes together. Shared resident pages count once for each process, as YARN
        counts them (`ProcfsBasedProcessTree`).
    """

    id: str
    kind: str
    region: str
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
        """Raise the peaks to what its processes, (name, MB), take now."""
        python = [mb for name, mb in processes if name.startswith("python")]
        jvm = sum(mb for name, mb in processes if name == "java")
        self.jvm_mb = max(self.jvm_mb, jvm)
        self.python_mb = max(self.python_mb, sum(python))
        self.worker_mb = max(self.worker_mb, *python, 0)
        self.total_mb = max(self.total_mb, sum(mb for _, mb in processes))


class Peaks:
    """Follows all containers of a box, in a `with` block."""

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
        return [one for one in list(self._containers.values()) if kind in ("", one.kind)]

    def _follow(self) -> None:
        # The namespace tells the box's processes from those of other boxes.
        namespace = os.readlink(f"/proc/{self._box._process.pid}/ns/pid_for_children")
        while not self._ended.wait(INTERVAL):
            for leader, members in _sessions().items():
                with contextlib.suppress(ProcessLookupError, FileNotFoundError, psutil.Error):
                    if os.readlink(f"/proc/{leader}/ns/pid") == namespace:
                        self._look(psutil.Process(leader), members)

    def _look(self, leader: psutil.Process, members: list[int]) -> None:
        text = " ".join(leader.cmdline())
        found = re.search(r"container(_\d+_\d+)(_\d+)_\d+", text)
        kind = next((KINDS[word] for word in text.split() if word in KINDS), "")
        if not (found and kind):  # another program, or YARN's script that is about to start it
            return
        if found[0] not in self._containers:
            limit = self._limit(found[0], *found.groups())
            if not limit:
                return
            heap, cores = re.search(r"-Xmx(\d+)m", text), re.search(r"--cores (\d+)", text)
            region = leader.environ().get("AWS_REGION", "")
            self._containers[found[0]] = Container(
                found[0], kind, region, limit, int(heap[1]), int(cores[1]) if cores else 0
            )
        self._containers[found[0]].update(list(_resident(members)))

    def _limit(self, container: str, application: str, attempt: str) -> int:
        """Return the memory that YARN grants a container; 0 if YARN does not say."""
        name = f"application{application}/appattempts/appattempt{application}_{attempt[1:]:0>6}"
        with contextlib.suppress(OSError):
            found = self._box.yarn(f"cluster/apps/{name}/containers")
            # A list of one comes without its brackets.
            for one in [found] if isinstance(found, dict) else found:
                if one["containerId"] == container:
                    return int(one["allocatedMB"])
        return 0


def _sessions() -> dict[int, list[int]]:
    """Return this machine's processes by session leader; each container is one session."""
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
