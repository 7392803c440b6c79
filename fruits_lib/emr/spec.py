"""What a cluster is asked to be, what is refused before it costs money, and EMR's request."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import fruits_lib
from fruits_lib import aws, user
from fruits_lib.emr.prices import instance_type
from fruits_lib.errors import FruitsError
from fruits_lib.storage import bucket_and_key

CONFIGURATIONS = Path(fruits_lib.__file__).parents[1] / "emr-config.json"
APPLICATIONS = ("Hadoop", "JupyterHub", "Livy", "Spark")
# Operators may only use clusters with the first tag; AWS's policy of the service role asks for the
# second.
PROJECT_TAG = ("project", "fruits")
EMR_TAG = ("for-use-with-amazon-emr-managed-policies", "true")
DATA_GB = 64  # beside its root volume, each node's volume for HDFS, shuffles and container logs
DRIVER_MB = 4096


def default_name() -> str:
    """Return `fruits-<user>`: two people in one account have two clusters."""
    return "fruits-" + (re.sub(r"[^A-Za-z0-9_.-]", "", user.name()) or "user")


def _option(meaning: str, default: str | int = "", output: str = ""):
    """A field that is an option of `fruits emr`, and perhaps an output of infrastructure.yaml."""
    return field(default=default, metadata={"help": meaning, "output": output})


@dataclass(frozen=True)
class ClusterSpec:
    """What a cluster is asked to be; everything else follows from it."""

    stage: str = _option("s3://bucket/prefix for code, notebooks and logs.", output="Stage")
    name: str = field(default_factory=default_name)
    region: str = "eu-west-1"
    release: str = _option("EMR release.", "emr-7.14.0")
    primary: str = _option("Instance type of the primary node.", "m5.xlarge")
    core: str = _option("Instance type of core nodes.", "m5.xlarge")
    task: str = _option("Instance type of task nodes.", "m5.xlarge")
    core_nodes: int = _option("Core nodes, on demand.", 2)
    task_nodes: int = _option("Task nodes at most, spot; they come and go with the work.", 0)
    idle_minutes: int = _option("Without work, after which the cluster ends itself.", 30)
    ebs_gb: int = _option("Root volume of each node in GB.", 32)
    service_role: str = _option("Role of the cluster.", output="ServiceRole")
    instance_profile: str = _option("Of the nodes.", output="InstanceProfile")
    security_configuration: str = _option("EMR's.", output="SecurityConfiguration")
    subnet: str = _option("EC2 subnet.", output="Subnet")
    ssh_group: str = _option("Security group that lets you in by SSH.", output="SshGroup")
    key_name: str = _option("EC2 key pair, for the tunnel.")
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def groups(self) -> list[tuple[str, str, int, str]]:
        """Groups of nodes: role, instance type, number, market."""
        groups = [
            ("MASTER", self.primary, 1, "ON_DEMAND"),
            ("CORE", self.core, self.core_nodes, "ON_DEMAND"),
            ("TASK", self.task, self.task_nodes, "SPOT"),
        ]
        return [group for group in groups if group[2]]


def stack_outputs(name: str, region: str) -> dict[str, str]:
    """Return the outputs of a CloudFormation stack made from infrastructure.yaml."""
    client = aws.client("cloudformation", region, aws.RETRIES)
    (stack,) = client.describe_stacks(StackName=name)["Stacks"]
    return {entry["OutputKey"]: entry["OutputValue"] for entry in stack.get("Outputs", [])}


def check_stage(stage: str) -> None:
    """Raise FruitsError if a stage is not a prefix in a bucket."""
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^/](.*[^/])?", stage):
        raise FruitsError(f"stage={stage!r} is not s3://bucket/prefix: give --stack, or --stage")


def check_spec(spec: ClusterSpec) -> None:
    """Raise FruitsError if the release cannot run this project, or the nodes do not match.

    That would fail minutes later at our cost. EMR refuses other mistakes at once.
    """
    found = re.fullmatch(r"emr-(\d+)\.(\d+)\.\d+", spec.release)
    if spec.release.startswith("emr-spark-8"):
        raise FruitsError(f"release {spec.release} has no JupyterHub: choose a 7.x from 7.10.0 on")
    if found and (int(found[1]), int(found[2])) < (7, 10):
        raise FruitsError(
            f"release {spec.release} reads s3:// with EMRFS, which writes _$folder$ markers where "
            "the node role may not write: choose emr-7.10.0 or later"
        )
    if spec.core_nodes < 1 or spec.task_nodes < 0:
        counts = f"{spec.core_nodes} core and {spec.task_nodes} task nodes"
        raise FruitsError(f"{counts}: at least 1 and 0 are needed")
    kinds = {kind: instance_type(kind, spec.region) for _, kind, _, _ in spec.groups}
    if len({kind.arch for kind in kinds.values()}) > 1:
        found = ", ".join(f"{name} ({kind.arch})" for name, kind in kinds.items())
        raise FruitsError(f"nodes of two architectures, {found}: choose one, as the wheels have")
    core, task = kinds[spec.core], kinds.get(spec.task)
    if spec.task_nodes and (core.vcpu, core.yarn_mb) != (task.vcpu, task.yarn_mb):
        pair = f"task nodes {spec.task} and core nodes {spec.core}"
        raise FruitsError(f"{pair} differ in vCPUs or memory: executors are alike, choose one size")


def check_quota(request: dict, region: str) -> None:
    """Raise FruitsError if a cluster has more vCPUs on demand than the account may start."""
    client = aws.client("service-quotas", region, aws.FEW_RETRIES)
    answer = client.get_service_quota(ServiceCode="ec2", QuotaCode="L-1216C47A")
    quota, needed = answer["Quota"]["Value"], 0
    for group in request["Instances"]["InstanceGroups"]:
        kind = group["InstanceType"]
        if group["Market"] == "ON_DEMAND" and re.match(r"[acdhimrtz]\d", kind):
            needed += group["InstanceCount"] * instance_type(kind, region).vcpu
    if needed > quota:
        raise FruitsError(
            f"{needed} vCPUs are needed, the account's quota in {region} (L-1216C47A) is "
            f"{quota:g}: ask AWS for more (docs/emr.md), or choose fewer or smaller nodes"
        )


def load_configurations(spec: ClusterSpec) -> list[dict]:
    """Return emr-config.json for this cluster's bucket, region and nodes.

    The file suits m5.xlarge nodes; `executor_settings` suits others. With spot nodes, application
    masters stay on core nodes, because a session dies with its driver.

    Raises
    ------
    FruitsError
        If the file is missing or incomplete, or a value is not a string or still to be edited.
    """
    try:
        configurations = json.loads(CONFIGURATIONS.read_text(encoding="utf-8"))
        properties = {entry["Classification"]: entry["Properties"] for entry in configurations}
        properties["jupyter-s3-conf"]["s3.persistence.bucket"] = bucket_and_key(spec.stage)[0]
        properties["spark-defaults"].update(executor_settings(spec))
        yarn = properties["yarn-site"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FruitsError(
            f"{CONFIGURATIONS} cannot be used ({type(error).__name__}: {error}): run from a "
            "checkout, and compare the file with the repository's"
        ) from None
    if spec.task_nodes:
        yarn["yarn.node-labels.enabled"] = "true"
        yarn["yarn.node-labels.am.default-node-label-expression"] = "CORE"
    for entry in configurations:
        for part in (entry, *entry.get("Configurations", [])):
            for key, value in part["Properties"].items():
                if key.endswith("AWS_REGION"):
                    part["Properties"][key] = spec.region
                elif not isinstance(value, str) or "YOUR-BUCKET" in value:
                    raise FruitsError(
                        f"{CONFIGURATIONS.name}: {entry['Classification']} {key}={value!r} is not "
                        "a string, or still to be edited: write a string in quotes"
                    )
    return configurations


def executor_settings(spec: ClusterSpec) -> dict[str, str]:
    """Return how Spark's driver and executors share a node's memory, as spark-defaults.

    YARN on EMR counts memory, not processors. So an executor with one task per vCPU takes two
    thirds of YARN's memory or more: no node gets two of them. A driver takes the rest, 4 GB at
    most. Most of an executor's memory is outside its heap, where the Python workers are.
    """
    node = instance_type(spec.core, spec.region)
    driver = min(DRIVER_MB, node.yarn_mb // 3)
    executor = node.yarn_mb - driver
    heap = executor * 3 // 8
    return {
        "spark.driver.memory": f"{driver // 2}m",
        "spark.driver.memoryOverhead": f"{driver // 2}m",
        "spark.executor.cores": str(node.vcpu),
        "spark.executor.memory": f"{heap}m",
        "spark.executor.memoryOverhead": f"{executor - heap}m",
        "spark.dynamicAllocation.initialExecutors": str(spec.core_nodes),
        "spark.default.parallelism": str(node.vcpu * (spec.core_nodes + spec.task_nodes)),
    }


def build_request(spec: ClusterSpec) -> dict:
    """Return the input of EMR's RunJobFlow, after `check_stage` and `check_spec`."""
    check_stage(spec.stage)
    check_spec(spec)
    arguments = ["--stage", spec.stage, "--region", spec.region]
    bootstrap = {"Path": f"{spec.stage}/bootstrap.sh", "Args": arguments}
    tags = {**spec.tags, **dict((PROJECT_TAG, EMR_TAG))}
    optional = {"Ec2SubnetId": spec.subnet, "Ec2KeyName": spec.key_name}
    optional["AdditionalMasterSecurityGroups"] = [spec.ssh_group] * bool(spec.ssh_group)
    limits = {
        "UnitType": "Instances",
        "MinimumCapacityUnits": spec.core_nodes,
        "MaximumCapacityUnits": spec.core_nodes + spec.task_nodes,
        "MaximumOnDemandCapacityUnits": spec.core_nodes,
        "MaximumCoreCapacityUnits": spec.core_nodes,
    }
    return {
        "Name": spec.name,
        "ReleaseLabel": spec.release,
        "LogUri": f"{spec.stage}/logs/",
        "Applications": [{"Name": name} for name in APPLICATIONS],
        "Configurations": load_configurations(spec),
        "BootstrapActions": [{"Name": "fruits", "ScriptBootstrapAction": bootstrap}],
        "Instances": {
            "InstanceGroups": [_group(*group) for group in spec.groups],
            "KeepJobFlowAliveWhenNoSteps": True,
            "UnhealthyNodeReplacement": True,
            **{key: value for key, value in optional.items() if value},
        },
        "ServiceRole": spec.service_role,
        "JobFlowRole": spec.instance_profile,
        "SecurityConfiguration": spec.security_configuration,
        "EbsRootVolumeSize": spec.ebs_gb,
        "AutoTerminationPolicy": {"IdleTimeout": 60 * spec.idle_minutes},
        "ManagedScalingPolicy": {"ComputeLimits": limits},
        "ScaleDownBehavior": "TERMINATE_AT_TASK_COMPLETION",
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }


def _group(role: str, kind: str, count: int, market: str) -> dict:
    volume = {"VolumeSpecification": {"VolumeType": "gp3", "SizeInGB": DATA_GB}}
    return {
        "InstanceRole": role,
        "InstanceType": kind,
        "InstanceCount": count,
        "Market": market,
        "EbsConfiguration": {"EbsBlockDeviceConfigs": [{**volume, "VolumesPerInstance": 1}]},
    }
