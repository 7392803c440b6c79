"""YARN's containers have the region and the memory that emr-config.json sets, and no more."""

import json
import re

import peaks as sampler
import pytest
from box import REQUEST
from servers import REGION
from settings import CORE
from work import NOTEBOOKS, read_notebook

GREEDY = """\
import time
from pyspark.sql import SparkSession

def take(_):
    kept = b"x" * (1200 << 20)
    time.sleep(120)  # YARN looks every three seconds
    return len(kept)

spark = SparkSession.builder.appName("greedy").getOrCreate()
spark.sparkContext.parallelize([0], 1).map(take).collect()
"""
# 896 MB: a heap of 512, and the smallest overhead of Spark.
SMALL = {
    "spark.dynamicAllocation.enabled": "false",
    "spark.executor.instances": "1",
    "spark.executor.cores": "1",
    "spark.executor.memory": "512m",
    "spark.executor.memoryOverhead": "384m",
    "spark.task.maxFailures": "1",
}


@pytest.fixture(scope="session")
def seen(peaks, amina, step):
    """All containers seen so far, amina's and a step's among them."""
    amina[1].result()
    return peaks.containers()


@pytest.fixture(scope="session")
def kernels(box, seen, amina):
    """Those of amina's kernels: sparkmagic shows each one's application in the notebook."""
    notebooks = [read_notebook(box, f"{amina[0]}/notebooks/{name}.ipynb") for name in NOTEBOOKS]
    shown = set(re.findall(r"application_\d+_\d+", json.dumps(notebooks)))
    return [one for one in seen if one.application in shown]


@pytest.fixture(scope="session")
def configured():
    """spark-defaults of emr-config.json, for the box's nodes."""
    (properties,) = (
        entry["Properties"]
        for entry in REQUEST["Configurations"]
        if entry["Classification"] == "spark-defaults"
    )
    return properties


def megabytes(configured: dict, name: str) -> int:
    """Heap and overhead of a driver or executor."""
    sizes = (configured[f"spark.{name}.{part}"] for part in ("memory", "memoryOverhead"))
    return sum(int(size.removesuffix("m")) for size in sizes)


def of_kind(containers: list[sampler.Container], kind: str) -> list[sampler.Container]:
    found = [one for one in containers if one.kind == kind]
    assert found, f"no container was a {kind}"
    return found


def node_setting(box, node: str, name: str) -> str:
    """Return a setting as a NodeManager has it."""
    url = f"http://{node}:8042/conf?name={name}"
    answer = box.check(f"curl --silent --fail --header 'Accept: application/json' '{url}'")
    return json.loads(answer)["property"]["value"]


@pytest.mark.parametrize("kind", [sampler.DRIVER, sampler.MASTER, sampler.EXECUTOR])
def test_every_container_has_the_region(seen, kind):
    """By emr-config.json alone: neither YARN nor Livy has one to hand on."""
    assert {one.region for one in of_kind(seen, kind)} == {REGION}


@pytest.mark.parametrize("node", CORE)
def test_yarn_checks_real_memory_and_no_addresses(box, node):
    names = ("pmem-check-enabled", "vmem-check-enabled", "resource.memory.enforced")
    found = [node_setting(box, node, f"yarn.nodemanager.{name}") for name in names]
    # If the last one is true, Hadoop's default, YARN leaves the check to cgroups, if there are any.
    assert found == ["true", "false", "false"]


def test_every_container_stays_below_its_limit(seen):
    assert of_kind(seen, sampler.EXECUTOR)
    assert [one for one in seen if one.total_mb >= one.limit_mb] == []


def test_executors_ran_python_beside_their_jvm(seen):
    """Otherwise nothing was measured."""
    most = max(of_kind(seen, sampler.EXECUTOR), key=lambda one: one.python_mb)
    assert most.jvm_mb > 0
    assert most.total_mb > most.python_mb > most.worker_mb > 0


@pytest.mark.parametrize(
    ("kind", "name"), [(sampler.DRIVER, "driver"), (sampler.EXECUTOR, "executor")]
)
def test_limits_are_those_of_the_configuration(kernels, configured, kind, name):
    limits = {one.limit_mb for one in of_kind(kernels, kind)}
    assert limits == {megabytes(configured, name)}


def test_a_kernels_driver_has_the_configured_heap(kernels, configured):
    """EMR's own template of sparkmagic would ask for 1,000 MB."""
    heaps = {f"{one.heap_mb}m" for one in of_kind(kernels, sampler.DRIVER)}
    assert heaps == {configured["spark.driver.memory"]}


def test_a_kernels_executors_have_the_configured_heap_and_cores(kernels, configured):
    """EMR's own template of sparkmagic would ask for 2 cores."""
    found = {(f"{one.heap_mb}m", str(one.cores)) for one in of_kind(kernels, sampler.EXECUTOR)}
    assert found == {(configured["spark.executor.memory"], configured["spark.executor.cores"])}


def test_our_settings_of_executors_replace_emrs(box):
    """EMR's Spark would take executor sizes as minimums."""
    key = "spark.yarn.heterogeneousExecutors.enabled"
    assert box.check(f"grep {key} /etc/spark/conf/spark-defaults.conf") == f"{key} false\n"


def test_a_container_beyond_its_limit_is_killed(box):
    """Last here, because `peaks` sees this container too."""
    box.put("/mnt/tmp/greedy.py", GREEDY)
    conf = " ".join(f"--conf {key}={value}" for key, value in SMALL.items())
    answer = box.run(f"/usr/lib/spark/bin/spark-submit {conf} /mnt/tmp/greedy.py")
    assert answer.returncode != 0
    assert "Container killed by YARN for exceeding physical memory limits" in answer.stdout
    assert "of 896 MB physical memory used" in answer.stdout
