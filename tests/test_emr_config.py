"""emr-config.json: what the console and `fruits emr` give to EMR, and its documentation."""

import json
import re

import pytest

from fruits_lib.emr import spec as specs
from fruits_lib.emr.prices import instance_type, load_table
from fruits_lib.emr.spec import ClusterSpec, executor_settings, load_configurations
from fruits_lib.errors import FruitsError

PYTHON = "/opt/fruits/venv/bin/python"
KINDS = load_table()["instance_types"]
DOC = specs.CONFIGURATIONS.parent / "docs" / "emr-config.md"
COMMITTED = json.loads(specs.CONFIGURATIONS.read_text(encoding="utf-8"))


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


@pytest.mark.parametrize(
    ("classification", "key"),
    [
        ("spark-defaults", "spark.yarn.appMasterEnv.AWS_REGION"),
        ("spark-defaults", "spark.executorEnv.AWS_REGION"),
        ("spark-env", "AWS_REGION"),
    ],
)
def test_every_process_has_the_cluster_s_region(classification, key):
    assert loaded(region="eu-west-3")[classification, key] == "eu-west-3"


def test_executors_have_the_size_that_is_set():
    """EMR's own default takes the size as a minimum."""
    key = "spark.yarn.heterogeneousExecutors.enabled"
    assert settings(COMMITTED)["spark-defaults", key] == "false"


@pytest.mark.parametrize("classification", ["spark-defaults", "yarn-site"])
def test_traffic_between_nodes_is_encrypted_on_both_sides(classification):
    """Executors', and that of the shuffle service, which reads YARN's settings."""
    for key in ("spark.authenticate", "spark.network.crypto.enabled"):
        assert settings(COMMITTED)[classification, key] == "true"


def test_the_stages_bucket_keeps_the_notebooks():
    assert loaded()["jupyter-s3-conf", "s3.persistence.bucket"] == "orchard"


def test_the_file_alone_suits_two_of_the_default_nodes():
    mine = {key: value for (_, key), value in settings(COMMITTED).items()}
    assert executor_settings(spec()).items() <= mine.items()


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_takes_one_executor_and_a_driver_beside_it(kind):
    node, values = instance_type(kind), executor_settings(spec(core=kind))
    executor = megabytes(values, "executor.memory", "executor.memoryOverhead")
    driver = megabytes(values, "driver.memory", "driver.memoryOverhead")
    assert executor + driver <= node.yarn_mb < 2 * executor
    assert driver >= 512 + 384  # what a step's application master takes


@pytest.mark.parametrize("kind", KINDS)
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
    for kind in KINDS:
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


def test_masters_stay_off_spot_nodes():
    label = ("yarn-site", "yarn.node-labels.am.default-node-label-expression")
    assert loaded(task_nodes=1)[label] == "CORE"
    assert label not in loaded()


def changed(tmp_path, monkeypatch, text):
    file = tmp_path / "emr-config.json"
    file.write_text(text)
    monkeypatch.setattr(specs, "CONFIGURATIONS", file)
    with pytest.raises(FruitsError) as raised:
        load_configurations(spec())
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("text", ["[", "{}", "[7]", "[]", '[{"classification": "spark-defaults"}]'])
def test_a_broken_file_is_named(text, tmp_path, monkeypatch):
    assert "emr-config.json cannot be used (" in changed(tmp_path, monkeypatch, text)


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(specs, "CONFIGURATIONS", tmp_path / "none.json")
    with pytest.raises(FruitsError, match=r"none\.json cannot be used .*: run from a checkout"):
        load_configurations(spec())


@pytest.mark.parametrize("value", [False, 300, "s3://YOUR-BUCKET/x"])
def test_a_value_that_is_no_string_or_still_to_be_edited_is_named(value, tmp_path, monkeypatch):
    entries = json.loads(json.dumps(COMMITTED))
    entries[0]["Properties"]["spark.speculation"] = value
    line = changed(tmp_path, monkeypatch, json.dumps(entries))
    assert f"spark-defaults spark.speculation={value!r} is not a string, or still to be" in line
