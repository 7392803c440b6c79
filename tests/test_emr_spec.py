"""What a cluster is asked to be: the request, what is refused, and what a stack gives."""

from dataclasses import fields

import boto3
import pytest
from fake_emr import REGION, STAGE, fake_world
from moto import mock_aws

from fruits_lib.emr import prices
from fruits_lib.emr.spec import (
    CONFIGURATIONS,
    DATA_GB,
    ClusterSpec,
    build_request,
    check_quota,
    check_spec,
    default_name,
    stack_outputs,
)
from fruits_lib.errors import FruitsError

READ = {field.metadata["output"] for field in fields(ClusterSpec) if field.metadata} - {""}
TEMPLATE = CONFIGURATIONS.with_name("infrastructure.yaml")


@pytest.fixture
def world():
    with fake_world() as opened:
        yield opened


def request(**asked):
    return build_request(ClusterSpec(STAGE, **asked))


def groups(asked):
    return {group["InstanceRole"]: group for group in asked["Instances"]["InstanceGroups"]}


class TestRequest:
    def test_moto_takes_it(self):
        with mock_aws():
            emr = boto3.client("emr", region_name=REGION)
            cluster = emr.run_job_flow(**request(task_nodes=2, tags={"owner": "Zoë"}))["JobFlowId"]
            assert emr.describe_cluster(ClusterId=cluster)["Cluster"]["ReleaseLabel"] == (
                ClusterSpec.release
            )

    def test_without_task_nodes_nothing_scales(self):
        limits = request(core_nodes=4)["ManagedScalingPolicy"]["ComputeLimits"]
        assert {value for key, value in limits.items() if key != "UnitType"} == {4}

    def test_scaling_adds_spot_nodes_only(self):
        limits = request(task_nodes=5)["ManagedScalingPolicy"]["ComputeLimits"]
        assert limits["MaximumCapacityUnits"] == 7
        assert limits["MaximumOnDemandCapacityUnits"] == limits["MaximumCoreCapacityUnits"] == 2

    def test_only_task_nodes_are_spot(self):
        markets = {role: group["Market"] for role, group in groups(request(task_nodes=1)).items()}
        assert markets == {"MASTER": "ON_DEMAND", "CORE": "ON_DEMAND", "TASK": "SPOT"}

    def test_volumes_are_those_that_the_price_counts(self):
        for group in groups(request(task_nodes=1)).values():
            (volume,) = group["EbsConfiguration"]["EbsBlockDeviceConfigs"]
            assert volume["VolumesPerInstance"] * volume["VolumeSpecification"]["SizeInGB"] == (
                DATA_GB
            )

    def test_nodes_are_made_by_the_staged_script_in_the_region(self):
        (action,) = request(region="eu-west-3")["BootstrapActions"]
        assert action["ScriptBootstrapAction"] == {
            "Path": f"{STAGE}/bootstrap.sh",
            "Args": ["--stage", STAGE, "--region", "eu-west-3"],
        }

    def test_network_settings_are_there_only_when_given(self):
        names = {"Ec2SubnetId", "Ec2KeyName", "AdditionalMasterSecurityGroups"}
        assert not names & request()["Instances"].keys()
        given = request(subnet="a", key_name="b", ssh_group="c")["Instances"]
        assert [given[name] for name in sorted(names)] == [["c"], "b", "a"]

    def test_tags_that_the_policies_ask_for_cannot_be_lost(self):
        tags = request(tags={"project": "x", "owner": "me"})["Tags"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {
            "project": "fruits",
            "for-use-with-amazon-emr-managed-policies": "true",
            "owner": "me",
        }

    @pytest.mark.parametrize("stage", ["s3://bucket", "s3://bucket/", "bucket/x", "s3://B/x", ""])
    def test_a_stage_is_a_prefix_in_a_bucket(self, stage):
        with pytest.raises(FruitsError, match="is not s3://bucket/prefix: give --stack"):
            build_request(ClusterSpec(stage))


def test_two_people_have_two_names(monkeypatch):
    names = set()
    for user in ("zoe", "Amina B.", "../;"):
        monkeypatch.setenv("LOGNAME", user)
        names.add(default_name())
    assert names == {"fruits-zoe", "fruits-AminaB.", "fruits-.."}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"release": "emr-7.9.0"}, r"reads s3:// with EMRFS, which writes _\$folder\$ markers"),
        ({"release": "emr-6.15.0"}, "reads s3:// with EMRFS"),
        ({"release": "emr-spark-8.1.0"}, "has no JupyterHub: choose a 7.x from 7.10.0"),
        ({"core_nodes": 0}, "0 core and 0 task nodes: at least 1 and 0"),
        ({"task_nodes": -1}, "2 core and -1 task nodes"),
        ({"core": "m6g.xlarge"}, r"two architectures, m5.xlarge \(x86_64\), m6g.xlarge \(aarch64"),
        ({"task": "m5.2xlarge", "task_nodes": 1}, "task nodes m5.2xlarge and core nodes m5.xlarge"),
        ({"core": "c5.xlarge", "task": "m5.xlarge", "task_nodes": 1}, "differ in vCPUs or memory"),
    ],
)
def test_what_would_fail_minutes_later_is_refused_in_one_line(asked, message):
    with pytest.raises(FruitsError, match=message) as raised:
        check_spec(ClusterSpec(STAGE, **asked))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("release", ["emr-7.10.0", "emr-7.99.1"])
def test_tomorrows_release_is_not_refused(release):
    check_spec(ClusterSpec(STAGE, release=release))


class TestInstanceTypes:
    @pytest.mark.parametrize("kind", ["m5.xlarge", "r5.2xlarge", "m6g.2xlarge", "c5.xlarge"])
    def test_ec2_says_of_any_type_what_the_table_says(self, world, kind):
        asked = prices._ask_instance_type(kind, REGION)
        assert asked == prices.InstanceType(**prices.load_table()["instance_types"][kind])

    def test_one_that_the_table_does_not_have_can_be_used(self, world):
        check_spec(ClusterSpec(STAGE, primary="m6i.xlarge", core="m6i.4xlarge"))

    def test_one_that_nobody_knows_is_refused(self, world):
        with pytest.raises(FruitsError, match=r"m9\.huge is not in the table, and EC2 does not"):
            check_spec(ClusterSpec(STAGE, core="m9.huge"))


class TestQuota:
    def test_twelve_vcpus_are_needed_for_three_m5_xlarge(self, world):
        world.vcpus = 12.0
        check_quota(request(), REGION)
        world.vcpus = 11.0
        with pytest.raises(FruitsError, match=r"12 vCPUs are needed, .* \(L-1216C47A\) is 11: ask"):
            check_quota(request(), REGION)


class TestStack:
    def test_every_output_that_is_read_is_one_of_the_template(self, world):
        client = boto3.client("cloudformation", region_name=REGION)
        parameters = {"BucketName": "example-fruits", "SshCidr": "203.0.113.7/32"}
        client.create_stack(
            StackName="mine",
            TemplateBody=TEMPLATE.read_text(encoding="utf-8"),
            Parameters=[
                {"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()
            ],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        outputs = stack_outputs("mine", REGION)
        assert {*READ, "Data", "Runs"} <= outputs.keys()
        assert outputs["Stage"] == "s3://example-fruits/fruits"
