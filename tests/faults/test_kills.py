"""Whatever is killed when, the next run ends with exactly one row per image and passes 05."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from pipeline import check, pick_k, write_features, write_index, write_scores
from servers import await_port, free_port

from fruits_lib import lease
from fruits_lib.backbones import export_backbone
from fruits_lib.errors import FruitsError
from fruits_lib.runs import open_run
from fruits_lib.session import use_java_17
from fruits_lib.udf import featurizer

BATCH = 4  # images; 31 batches of the sample


@pytest.fixture
def run(spark, sample, tmp_path):
    """A run whose index is written."""
    run = open_run(spark, str(tmp_path / "run"))
    write_index(run, sample)
    return open_run(spark, run.uri)


@contextmanager
def driver(run, tiny, **environment):
    """02 in a process group of its own, which ends with the block, and its first line."""
    inherited = {name: value for name, value in os.environ.items() if name != lease.TOKEN}
    python_path = os.pathsep.join(
        [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("drive.py"), run.uri, tiny, str(BATCH)],
        env={**inherited, "PYTHONPATH": python_path, **environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its JVM is killed with it
    )
    try:
        while process.stdout.readline() != "starts\n":
            assert process.poll() is None
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def await_(condition, process) -> None:
    """Look all the time: the moments to kill at are short."""
    while not condition():
        assert process.poll() is None, "it ended before the moment came"


def verify(run) -> None:
    """Run what follows 02, and every check; one row per image is counted here as well."""
    pick_k(run)
    write_scores(run)
    check(run)
    tables = [run.read_table(name).select("path").collect() for name in ("features", "rejects")]
    found = Counter(row.path for table in tables for row in table)
    assert found == Counter(row.path for row in run.read_table("index").select("path").collect())


# --- the driver ---------------------------------------------------------------------------------


def complete(folder) -> int:
    return len(list(folder.glob("rejects/batch_id=*/rejects.parquet")))


def committing(folder) -> bool:
    """Whether Spark is writing a batch's Parquet, or moves it to its place."""
    return any(folder.glob("features/batch_id=*/_temporary/*/*/*"))


def between_features_and_rejects(folder) -> bool:
    return len(list(folder.glob("features/batch_id=*/_SUCCESS"))) > complete(folder)


MOMENTS = [committing, between_features_and_rejects, None]  # None: at any time


def test_a_driver_killed_at_ten_moments(run, tiny, tmp_path):
    rng, folder = random.Random(0), tmp_path / "run"
    for moment in rng.sample(MOMENTS * 4, 10):
        with driver(run, tiny) as process:
            after = complete(folder) + rng.randint(0, 2)
            await_(lambda after=after: complete(folder) >= after, process)
            if moment:
                await_(lambda moment=moment: moment(folder), process)
            else:
                time.sleep(rng.uniform(0, 0.5))
            assert process.poll() is None
    network = export_backbone(run, weights=str(tiny), input_size=32)
    result = write_features(run, network)
    assert 0 < result.computed < result.images
    verify(run)


# --- a Python worker, an executor ---------------------------------------------------------------


def dying(flag):
    """Return a `featurizer` whose first worker to come here kills itself after an image."""

    def make(*arguments):
        def die(batches):
            for batch in batches:
                yield batch.slice(0, 1)
                if not flag.exists():
                    flag.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch.slice(1)

        run_backbone = featurizer(*arguments)
        return lambda batches: run_backbone(die(batches))

    return make


def test_a_killed_worker_is_one_line_and_the_next_run_goes_on(run, tiny, tmp_path):
    network = export_backbone(run, weights=str(tiny), input_size=32)
    write = {"featurizer": dying(tmp_path / "killed"), "batch_size": 40}
    with pytest.raises(FruitsError, match=r"^02_featurize stopped \(.+\): run it again") as caught:
        write_features(run, network, **write)
    assert (tmp_path / "killed").exists()
    assert "\n" not in str(caught.value)
    write_features(run, network, **write)
    verify(run)


@pytest.fixture
def cluster(tmp_path):
    """A standalone cluster of two workers with a core each: (its URL, its workers)."""
    use_java_17()
    import pyspark

    home = Path(pyspark.__file__).parent
    port = free_port()
    environment = {
        **os.environ,
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
    }
    url, processes = f"spark://127.0.0.1:{port}", []

    def start(name, *arguments):
        command = [home / "bin/spark-class", f"org.apache.spark.deploy.{name}", *arguments]
        with open(tmp_path / f"{len(processes)}.log", "w") as log:
            processes.append(
                subprocess.Popen(
                    list(map(str, [*command, "--host", "127.0.0.1", "--webui-port", 0])),
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        return processes[-1]

    try:
        await_port(port, start("master.Master", "--port", port))
        work = ["--cores", 1, "--memory", "1g", "--work-dir", tmp_path / "work", url]
        yield url, [start("worker.Worker", *work) for _ in range(2)]
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def executors(worker) -> list[int]:
    """Process ids of the executors that a worker of the cluster has started."""
    lists = Path(f"/proc/{worker.pid}/task").glob("*/children")
    pids = sorted({pid for children in lists for pid in children.read_text().split()})
    return [int(pid) for pid in pids if b"Executor" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_killed_executor_is_no_hindrance(cluster, run, tiny, tmp_path):
    url, workers = cluster
    submit = f"--master {url} --conf spark.executor.memory=512m --conf spark.ui.enabled=false "
    submit += "--conf spark.driver.host=127.0.0.1 pyspark-shell"
    with driver(run, tiny, PYSPARK_SUBMIT_ARGS=submit, PYSPARK_PYTHON=sys.executable) as process:
        await_(lambda: complete(tmp_path / "run") >= 2, process)
        os.kill(executors(workers[0])[0], signal.SIGKILL)
        said = process.stdout.read()
        assert process.wait() == 0
    assert "123 images = 120 rows of 1,280 features + 3 rejects" in said
    verify(run)
