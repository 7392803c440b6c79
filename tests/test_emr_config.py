"""emr-config.json: what the console and `fruits emr` give to EMR, and its documentation."""

import json
import re
from pathlib import Path

import pytest

from fruits_lib.emr import request
from fruits_lib.emr.prices import instance_type, load_prices
from fruits_lib.emr.request import executor_settings, load_configurations
from fruits_lib.emr.spec import ClusterSpec
from fruits_lib.errors import FruitsError

PYTHON = "/opt/fruits/venv/bin/python"
DOC = request.CONFIGURATIONS.parent / "docs" / "emr-config.md"
COMMITTED = json.loads(request.CONFIGURATIONS.read_text(encoding="utf-8"))


def spec(**asked):
    return ClusterSpec("s3://orchard/stage", **asked)


def settings(entries):
    """Return {(classification, key): value}, an export's under the classification around it."""
    return {
        (entry["Classification"], key): value
        for entry in entries
        for part in (entry, *entry.get("Configurations", []))
        for key, value in part["Properties"].items()
    }


def loaded(**asked):
    return settings(load_configurations(spec(**asked)))


def megabytes(values, *names):
    return sum(int(values[f"spark.{name}"].removesuffix("m")) for name in names)


def test_every_key_is_documented_with_its_value_and_nothing_else_is():
    documented = {}
    for section in re.split(r"(?m)^## ", DOC.read_text(encoding="utf-8")):
        name = section.split("\n")[0]
        for key, value in re.findall(r"(?m)^\| `([^`]+)` \| `([^`]+)` \| \S", section):
            documented[name, key] = value
    assert documented == settings(COMMITTED)


def test_every_value_is_a_string():
    assert all(isinstance(value, str) for value in settings(COMMITTED).values())


@pytest.mark.parametrize(
    ("classification", "key"),
    [
        ("spark-defaults", "spark.pyspark.python"),
        ("spark-defaults", "spark.pyspark.driver.python"),
        ("spark-defaults", "spark.yarn.appMasterEnv.PYSPARK_PYTHON"),
        ("spark-defaults", "spark.executorEnv.PYSPARK_PYTHON"),
        ("spark-env", "PYSPARK_PYTHON"),
    ],
)
def test_one_python_runs_driver_application_master_and_executors(classification, key):
    assert settings(COMMITTED)[classification, key] == PYTHON


def test_the_file_alone_needs_its_bucket_edited():
    with pytest.raises(FruitsError, match=r"s3\.persistence\.bucket=YOUR-BUCKET is to be edited"):
        request.check_request({"Configurations": COMMITTED})


def test_the_stages_bucket_keeps_the_notebooks():
    assert loaded()["jupyter-s3-conf", "s3.persistence.bucket"] == "orchard"


def test_the_file_alone_suits_two_of_the_default_nodes():
    mine = {key: value for (_, key), value in settings(COMMITTED).items()}
    assert executor_settings(spec()).items() <= mine.items()


@pytest.mark.parametrize("kind", load_prices()["instance_types"])
def test_a_node_takes_one_executor_and_a_driver_beside_it(kind):
    node, values = instance_type(kind), executor_settings(spec(core=kind))
    executor = megabytes(values, "executor.memory", "executor.memoryOverhead")
    driver = megabytes(values, "driver.memory", "driver.memoryOverhead")
    assert executor + driver <= node.yarn_mb < 2 * executor
    assert driver >= 512 + 384  # what a step's application master takes


@pytest.mark.parametrize("kind", load_prices()["instance_types"])
def test_a_tasks_worker_has_what_was_measured_for_small_photographs(kind):
    values = executor_settings(spec(core=kind))
    tasks = int(values["spark.executor.cores"])
    assert tasks == instance_type(kind).vcpu
    assert megabytes(values, "executor.memoryOverhead") >= 512 + tasks * 340


def test_an_m5_worker_has_what_was_measured_for_the_largest_photographs():
    assert megabytes(executor_settings(spec()), "executor.memoryOverhead") >= 512 + 4 * 892


def test_parallelism_counts_the_vcpus_of_all_workers():
    values = executor_settings(spec(core="m5.2xlarge", task="m6g.2xlarge", task_nodes=3))
    assert values["spark.default.parallelism"] == str(8 * (2 + 3))


def test_the_memory_table_is_what_is_set():
    rows = re.findall(r"(?m)^\| ([cmr]\d\S*(?:, \S+)*) \| (.*) \|$", DOC.read_text("utf-8"))
    documented = {kind: row for kinds, row in rows for kind in kinds.split(", ")}
    names = ("executor.memory", "executor.memoryOverhead")
    for kind in load_prices()["instance_types"]:
        values, node = executor_settings(spec(core=kind)), instance_type(kind)
        overhead = megabytes(values, "executor.memoryOverhead")
        expected = [
            node.yarn_mb,
            megabytes(values, "driver.memory", "driver.memoryOverhead"),
            megabytes(values, *names),
            megabytes(values, "executor.memory"),
            overhead,
            node.vcpu,
            (overhead - 512) // node.vcpu,
        ]
        assert documented[kind] == " | ".join(f"{number:,}" for number in expected)


def test_task_nodes_of_another_size_are_refused():
    with pytest.raises(FruitsError, match=r"task nodes m5\.2xlarge and core nodes m5\.xlarge"):
        load_configurations(spec(task="m5.2xlarge", task_nodes=1))


def test_masters_stay_off_spot_nodes():
    label = ("yarn-site", "yarn.node-labels.am.default-node-label-expression")
    assert loaded(task_nodes=1)[label] == "CORE"
    assert label not in loaded()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is no JSON"),
        ('{"Classification": "spark"}', "configurations are a dict: write a list"),
        ('[{"classification": "spark", "properties": {}}]', "has classification, properties"),
        ('[{"Classification": "spark", "Properties": 5}]', "has Classification, Properties: write"),
        ('[{"Classification": "spark-env", "Configurations": [{}]}]', "has nothing: write"),
        ("[7]", "a configuration has 7"),
        ("[]", "has no spark-defaults"),
    ],
)
def test_a_broken_file_is_named(text, message, tmp_path, monkeypatch):
    file = tmp_path / "emr-config.json"
    file.write_text(text)
    monkeypatch.setattr(request, "CONFIGURATIONS", file)
    with pytest.raises(FruitsError, match=message) as raised:
        load_configurations(spec())
    assert str(file) in str(raised.value)


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(request, "CONFIGURATIONS", Path(tmp_path, "none.json"))
    with pytest.raises(FruitsError, match=r"none\.json is missing: run from a checkout"):
        load_configurations(spec())


@pytest.mark.parametrize("stage", ["s3://bucket", "s3://bucket/", "bucket/x", "s3://Bucket/x", ""])
def test_a_stage_is_a_prefix_in_a_bucket(stage):
    with pytest.raises(FruitsError, match=r"is no s3://bucket/prefix"):
        load_configurations(ClusterSpec(stage))
