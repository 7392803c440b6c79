"""The request for a cluster: what it always has, and every refusal before AWS sees it."""

import copy
import gzip
import json
import re
from pathlib import Path

import boto3
import moto.emr
import pytest
from moto import mock_aws

from fruits_lib.emr.prices import load_prices
from fruits_lib.emr.request import (
    RELEASES,
    build_request,
    check_request,
    load_configurations,
    security_configuration,
)
from fruits_lib.emr.spec import DATA_GB, ClusterSpec
from fruits_lib.errors import FruitsError

STAGE = "s3://orchard/stage"


def request(**asked):
    spec = ClusterSpec(STAGE, **asked)
    return build_request(spec, load_configurations(spec))


def limits(asked):
    return asked["ManagedScalingPolicy"]["ComputeLimits"]


def groups(asked):
    return {group["InstanceRole"]: group for group in asked["Instances"]["InstanceGroups"]}


@pytest.fixture(scope="module")
def tables():
    """Return a function that reads one of moto's copies of EMR's own lists."""
    folder = Path(moto.emr.__file__).parent / "resources"
    return lambda name: json.loads(gzip.decompress((folder / f"{name}.json.gz").read_bytes()))


# --- what is built ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"task_nodes": 3},
        {"primary": "m6g.xlarge", "core": "m6g.2xlarge"},
        {"core": "c7g.2xlarge", "primary": "m7g.xlarge", "task": "m6g.xlarge"},
        {"release": "emr-7.0.0", "subnet": "subnet-1", "key_name": "key", "ssh_group": "sg-1"},
        {"tags": {"owner": "Zoë 🍎", "project": "fruits"}, "name": "Äpfel 🍏"},
    ],
)
def test_what_is_built_passes_the_check(asked):
    check_request(request(**asked))


def test_what_emr_tells_of_a_cluster_passes_too():
    told = request()
    del told["Configurations"][1]["Properties"]  # it leaves out what is empty
    check_request(told)


def test_moto_takes_it():
    with mock_aws():
        emr = boto3.client("emr", region_name="eu-west-1")
        cluster = emr.run_job_flow(**request(task_nodes=2))["JobFlowId"]
        assert emr.describe_cluster(ClusterId=cluster)["Cluster"]["ReleaseLabel"] == RELEASES[-1]


def test_a_cluster_always_ends_itself():
    assert request(idle_minutes=45)["AutoTerminationPolicy"] == {"IdleTimeout": 45 * 60}


def test_without_task_nodes_nothing_scales():
    assert limits(request(core_nodes=4)) == {
        "UnitType": "Instances",
        "MinimumCapacityUnits": 4,
        "MaximumCapacityUnits": 4,
        "MaximumOnDemandCapacityUnits": 4,
        "MaximumCoreCapacityUnits": 4,
    }


def test_scaling_adds_spot_nodes_only():
    bounds = limits(request(core_nodes=2, task_nodes=5))
    assert bounds["MaximumCapacityUnits"] == 7
    assert bounds["MaximumOnDemandCapacityUnits"] == bounds["MaximumCoreCapacityUnits"] == 2


def test_only_task_nodes_are_spot():
    markets = {role: group["Market"] for role, group in groups(request(task_nodes=1)).items()}
    assert markets == {"MASTER": "ON_DEMAND", "CORE": "ON_DEMAND", "TASK": "SPOT"}


def test_volumes_are_those_that_the_price_counts():
    for group in groups(request(task_nodes=1)).values():
        (volume,) = group["EbsConfiguration"]["EbsBlockDeviceConfigs"]
        assert volume["VolumesPerInstance"] * volume["VolumeSpecification"]["SizeInGB"] == DATA_GB


def test_nodes_are_made_by_the_staged_script():
    (action,) = request()["BootstrapActions"]
    assert action["ScriptBootstrapAction"] == {
        "Path": f"{STAGE}/bootstrap.sh",
        "Args": ["--stage", STAGE],
    }


def test_steps_run_one_after_the_other():
    assert request()["StepConcurrencyLevel"] == 1


def test_network_settings_are_there_when_asked_only():
    names = {"Ec2SubnetId", "Ec2KeyName", "AdditionalMasterSecurityGroups"}
    assert not names & request()["Instances"].keys()
    assert names <= request(subnet="a", key_name="b", ssh_group="c")["Instances"].keys()


def test_tags_that_the_policies_ask_for_cannot_be_lost():
    tags = {
        tag["Key"]: tag["Value"] for tag in request(tags={"project": "x", "owner": "me"})["Tags"]
    }
    assert tags["project"] == "fruits"
    assert tags["for-use-with-amazon-emr-managed-policies"] == "true"
    assert tags["owner"] == "me"


def test_only_imdsv2_answers_and_a_container_reaches_it():
    settings = security_configuration()["InstanceMetadataServiceConfiguration"]
    assert settings["MinimumInstanceMetadataServiceVersion"] == 2
    assert settings["HttpPutResponseHopLimit"] == 2


# --- tables of ours against EMR's own -----------------------------------------------------------


def test_releases_are_those_of_emr(tables):
    labels = tables("release-labels-eu-west-1")
    assert set(RELEASES) == {label for label in labels if label.startswith("emr-7.")}


@pytest.mark.parametrize("release", [RELEASES[0], RELEASES[-1]])
def test_instance_types_are_emrs(release, tables):
    assert load_prices()["instance_types"].keys() <= set(tables(f"instance-types-{release}"))


# --- refusals -----------------------------------------------------------------------------------


def at(path, value):
    """Return a change of a request: the value at a path, or without one, its removal."""

    def change(asked):
        *above, last = path
        for key in above:
            asked = asked[key]
        if value is None:
            del asked[last]
        else:
            asked[last] = value

    return change


MASTER, CORE, TASK = (("Instances", "InstanceGroups", position) for position in range(3))
LIMITS = ("ManagedScalingPolicy", "ComputeLimits")
SPARK = ("Configurations", 0)
REFUSALS = {
    # botocore's model
    "unknown key": (
        at(["Colour"], "red"),
        'takes no such request: Unknown parameter in input: "Col',
    ),
    "no name": (at(["Name"], None), 'Missing required parameter in input: "Name"'),
    "wrong type": (at(["StepConcurrencyLevel"], "one"), "Invalid type for parameter StepConc"),
    # EMR's model
    "list of values": (at([*CORE, "Market"], "CHEAP"), "Market=CHEAP is not known: choose ON_DEM"),
    "length": (at(["Name"], "x" * 257), "Name has 257 characters, 0 to 256 are allowed"),
    "character": (at(["Name"], "a\x00b"), "Name='a\\x00b' has a character that EMR does not"),
    "number": (
        at(["ManagedScalingPolicy", "UtilizationPerformanceIndex"], 101),
        "UtilizationPerformanceIndex=101 is outside 1 to 100",
    ),
    # the cluster
    "release 8": (at(["ReleaseLabel"], "emr-spark-8.1.0"), "emr-spark-8.1.0 has no JupyterHub"),
    "release": (at(["ReleaseLabel"], "emr-7.99.0"), "emr-7.99.0 is not known: choose emr-7.0.0 to"),
    "old release": (at(["ReleaseLabel"], "emr-6.15.0"), "emr-6.15.0 is not known"),
    "no release": (at(["ReleaseLabel"], None), "release none is not known"),
    "application": (
        at(["Applications"], [{"Name": "Hadoop"}, {"Name": "Spark"}, {"Name": "Livy"}]),
        "application JupyterHub is missing",
    ),
    "service role": (at(["ServiceRole"], None), "ServiceRole is missing: create the roles"),
    "node role": (at(["JobFlowRole"], ""), "JobFlowRole is missing: create the roles"),
    "IMDS": (at(["SecurityConfiguration"], None), "SecurityConfiguration is missing"),
    "logs": (at(["LogUri"], "/var/log"), "LogUri=/var/log is no s3://bucket/prefix"),
    "no logs": (at(["LogUri"], None), "LogUri=None is no s3://"),
    "bootstrap": (
        at(["BootstrapActions", 0, "ScriptBootstrapAction", "Path"], "bootstrap.sh"),
        "bootstrap action bootstrap.sh is no s3://bucket/key",
    ),
    "root volume": (at(["EbsRootVolumeSize"], 10), "EbsRootVolumeSize=10 is outside 15 to 100 GB"),
    "steps at once": (at(["StepConcurrencyLevel"], 300), "StepConcurrencyLevel=300 is outside 1"),
    "no idle time": (at(["AutoTerminationPolicy"], None), "a forgotten cluster would never end"),
    "short idle time": (
        at(["AutoTerminationPolicy", "IdleTimeout"], 59),
        "an idle time of 59 seconds is outside 60 to 604800",
    ),
    "long idle time": (
        at(["AutoTerminationPolicy", "IdleTimeout"], 604_801),
        "an idle time of 604801 seconds is outside",
    ),
    "transient": (
        at(["Instances", "KeepJobFlowAliveWhenNoSteps"], False),
        "KeepJobFlowAliveWhenNoSteps is not true",
    ),
    "protected": (at(["Instances", "TerminationProtected"], True), "TerminationProtected is true"),
    "empty tag": (at(["Tags", 0, "Key"], ""), "tag ''='fruits' is too long or empty"),
    "long tag": (at(["Tags", 0, "Value"], "x" * 257), "is too long or empty"),
    "AWS's tag": (at(["Tags", 0, "Key"], "aws:x"), "tag aws:x begins with aws:"),
    "double tag": (
        at(["Tags"], [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]),
        "tag a is there 2 times",
    ),
    # the nodes
    "fleets too": (at(["Instances", "InstanceFleets"], []), "instance fleets together"),
    "neither": (at(["Instances", "InstanceGroups"], None), "instance fleets or neither"),
    "instance type": (
        at([*CORE, "InstanceType"], "m9.huge"),
        "m9.huge is not known here: choose m5",
    ),
    "processors": (
        at([*CORE, "InstanceType"], "m6g.xlarge"),
        "m5.xlarge (x86_64), m6g.xlarge (aarch64): choose one",
    ),
    "spot core": (at([*CORE, "Market"], "SPOT"), "CORE nodes on the SPOT market"),
    "spot primary": (at([*MASTER, "Market"], "SPOT"), "MASTER nodes on the SPOT market"),
    "no core": (at([*CORE, "InstanceCount"], 0), "0 CORE nodes: at least 1 is needed"),
    "two primaries": (at([*MASTER, "InstanceCount"], 2), "2 primary and 2 core nodes"),
    "no bounds": (at(["ManagedScalingPolicy"], {}), "ManagedScalingPolicy has no ComputeLimits"),
    "unit": (at([*LIMITS, "UnitType"], "VCPU"), "managed scaling counts VCPU: count Instances"),
    "none at least": (at([*LIMITS, "MinimumCapacityUnits"], 0), "managed scaling from 0 nodes"),
    "crossed": (
        at([*LIMITS, "MaximumCapacityUnits"], 1),
        "managed scaling from 2 to 1 nodes: the maximum is below the minimum",
    ),
    "too many": (
        at([*CORE, "InstanceCount"], 9),
        "10 core and task nodes, managed scaling allows 3",
    ),
    "on demand": (
        at([*LIMITS, "MaximumOnDemandCapacityUnits"], 9),
        "MaximumOnDemandCapacityUnits=9 is outside 1 to the maximum of 3",
    ),
    "core": (
        at([*LIMITS, "MaximumCoreCapacityUnits"], 0),
        "MaximumCoreCapacityUnits=0 is outside 1 to the maximum of 3",
    ),
    # the configurations
    "boolean": (
        at([*SPARK, "Properties", "spark.speculation"], False),
        'spark-defaults spark.speculation=False is no string: write "false"',
    ),
    "classification": (
        at([*SPARK, "Classification"], "spark-default"),
        "classification spark-default is none of release 7's",
    ),
    "console's form": (
        at(SPARK, {"classification": "spark", "properties": {}}),
        "a configuration has classification, properties: write an object with",
    ),
    "variables": (
        at(["Configurations", 1, "Properties"], {"PYSPARK_PYTHON": "x"}),
        "spark-env has Properties of its own: put its variables into a nested",
    ),
    "nested": (
        at(["Configurations", 1, "Configurations", 0, "Classification"], "env"),
        "spark-env nests env: only export can be nested",
    ),
    "secret": (
        at([*SPARK, "Properties", "spark.hadoop.fs.s3a.secret.key"], "x"),
        "spark.hadoop.fs.s3a.secret.key is a secret",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSALS.values(), ids=REFUSALS)
def test_it_is_refused_in_one_line(change, message):
    asked = copy.deepcopy(request(task_nodes=1))
    change(asked)
    with pytest.raises(FruitsError, match=re.escape(message)) as raised:
        check_request(asked)
    assert "\n" not in str(raised.value)
