"""The request for a cluster: built from what is asked, and checked before it is sent."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import botocore.session
from botocore.model import Shape
from botocore.validate import ParamValidator

import fruits_lib
from fruits_lib.emr.policies import EMR_TAG, PROJECT_TAG
from fruits_lib.emr.prices import InstanceType, instance_type
from fruits_lib.emr.spec import DATA_GB, ClusterSpec
from fruits_lib.errors import FruitsError

CONFIGURATIONS = Path(fruits_lib.__file__).parents[1] / "emr-config.json"
BUCKET_TO_EDIT = "YOUR-BUCKET"  # in that file, for people who give it to EMR's console
APPLICATIONS = ("Hadoop", "JupyterHub", "Livy", "Spark")
# Release 8, `emr-spark-8.x`, has no JupyterHub.
RELEASES = tuple(f"emr-7.{minor}.0" for minor in range(15))
# The files of these applications and of the nodes (EMR Release Guide, "Configuration
# classifications" of release 7).
# fmt: off
CLASSIFICATIONS = frozenset([
    "capacity-scheduler", "container-executor", "container-log4j", "core-site", "docker-conf",
    "emrfs-site", "hadoop-env", "hadoop-kms-acls", "hadoop-kms-env", "hadoop-kms-java-home",
    "hadoop-kms-log4j", "hadoop-kms-site", "hadoop-log4j", "hadoop-ssl-client",
    "hadoop-ssl-server", "hdfs-encryption-zones", "hdfs-env", "hdfs-site", "httpfs-env",
    "httpfs-site", "jupyter-hub-conf", "jupyter-notebook-conf", "jupyter-s3-conf",
    "jupyter-sparkmagic-conf", "livy-client-conf", "livy-conf", "livy-env", "livy-log4j2",
    "mapred-env", "mapred-site", "spark", "spark-defaults", "spark-env", "spark-hive-site",
    "spark-log4j2", "spark-metrics", "yarn-env", "yarn-site",
])
# fmt: on
IDLE_SECONDS = (60, 604_800)  # what EMR takes
ROOT_GB = (15, 100)  # likewise, for release 7
DRIVER_MB = 4096
# botocore's patterns are Java's: characters beyond 16 bits as surrogate pairs.
JAVA_ASTRAL, PYTHON_ASTRAL = r"\uD800\uDC00-\uDBFF\uDFFF", r"\U00010000-\U0010FFFF"


# --- build --------------------------------------------------------------------------------------


def load_configurations(spec: ClusterSpec) -> list[dict]:
    """Return emr-config.json, for this cluster's bucket and nodes.

    The file suits m5.xlarge nodes; `executor_settings` suits others. Where there are spot nodes,
    application masters are kept off them: with its driver a Livy session would be lost.

    Raises
    ------
    FruitsError
        If the file is missing or no JSON, the stage is no bucket, or the nodes are not known or
        not of one size.
    """
    try:
        configurations = json.loads(CONFIGURATIONS.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FruitsError(f"{CONFIGURATIONS} is missing: run from a checkout") from None
    except json.JSONDecodeError as error:
        raise FruitsError(f"{CONFIGURATIONS} is no JSON ({error}): mend it") from None
    problem = next(_form_problems(configurations), None)
    if problem:
        raise FruitsError(f"{CONFIGURATIONS}: {problem}")
    properties = {it["Classification"]: it.setdefault("Properties", {}) for it in configurations}
    for name in ("spark-defaults", "yarn-site", "jupyter-s3-conf"):
        if name not in properties:
            raise FruitsError(f"{CONFIGURATIONS} has no {name}: put it back, it may be empty")
    properties["jupyter-s3-conf"]["s3.persistence.bucket"] = spec.bucket
    properties["spark-defaults"].update(executor_settings(spec))
    if spec.task_nodes:
        properties["yarn-site"].update(
            {
                "yarn.node-labels.enabled": "true",
                "yarn.node-labels.am.default-node-label-expression": "CORE",
            }
        )
    return configurations


def executor_settings(spec: ClusterSpec) -> dict[str, str]:
    """Return how Spark's driver and executors share a node's memory, as spark-defaults.

    YARN on EMR counts memory, not processors. So an executor with a task per vCPU takes two thirds
    of what YARN has, or more: no node ever gets two of them. The rest, 4 GB at most, takes a
    driver. Most of an executor lies outside its heap, where the Python workers are.
    """
    node = instance_type(spec.core)
    if spec.task_nodes and _size(instance_type(spec.task)) != _size(node):
        raise FruitsError(
            f"task nodes {spec.task} and core nodes {spec.core} differ in vCPUs or memory: choose "
            "one size, for all executors are alike"
        )
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


def _size(node: InstanceType) -> tuple[int, int]:
    return node.vcpu, node.yarn_mb


def build_request(spec: ClusterSpec, configurations: list[dict]) -> dict:
    """Return the input of EMR's RunJobFlow.

    Task nodes are spot and start with the cluster; managed scaling ends those without work, down
    to none, and starts them again. Core nodes hold HDFS and the drivers: they are on demand and
    stay.

    Parameters
    ----------
    spec : ClusterSpec
    configurations : list of dict
        From `load_configurations`.
    """
    groups = [
        _group("MASTER", spec.primary, 1, "ON_DEMAND"),
        _group("CORE", spec.core, spec.core_nodes, "ON_DEMAND"),
    ]
    if spec.task_nodes:
        groups.append(_group("TASK", spec.task, spec.task_nodes, "SPOT"))
    optional = {
        "Ec2SubnetId": spec.subnet,
        "Ec2KeyName": spec.key_name,
        "AdditionalMasterSecurityGroups": [spec.ssh_group] if spec.ssh_group else [],
    }
    tags = {**spec.tags, **dict((PROJECT_TAG, EMR_TAG))}
    return {
        "Name": spec.name,
        "ReleaseLabel": spec.release,
        "LogUri": f"{spec.stage}/logs/",
        "Applications": [{"Name": name} for name in APPLICATIONS],
        "Configurations": configurations,
        "BootstrapActions": [
            {
                "Name": "fruits",
                "ScriptBootstrapAction": {
                    "Path": f"{spec.stage}/bootstrap.sh",
                    "Args": ["--stage", spec.stage],
                },
            }
        ],
        "Instances": {
            "InstanceGroups": groups,
            "KeepJobFlowAliveWhenNoSteps": True,
            "TerminationProtected": False,
            "UnhealthyNodeReplacement": True,
            **{key: value for key, value in optional.items() if value},
        },
        "ServiceRole": spec.service_role,
        "JobFlowRole": spec.instance_profile,
        "SecurityConfiguration": spec.security_configuration,
        "EbsRootVolumeSize": spec.ebs_gb,
        "AutoTerminationPolicy": {"IdleTimeout": 60 * spec.idle_minutes},
        "ManagedScalingPolicy": {
            "ComputeLimits": {
                "UnitType": "Instances",
                "MinimumCapacityUnits": spec.core_nodes,
                "MaximumCapacityUnits": spec.core_nodes + spec.task_nodes,
                "MaximumOnDemandCapacityUnits": spec.core_nodes,
                "MaximumCoreCapacityUnits": spec.core_nodes,
            }
        },
        "ScaleDownBehavior": "TERMINATE_AT_TASK_COMPLETION",
        "StepConcurrencyLevel": 1,
        "VisibleToAllUsers": True,
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }


def _group(role: str, kind: str, count: int, market: str) -> dict:
    volume = {"VolumeType": "gp3", "SizeInGB": DATA_GB}
    return {
        "Name": role.lower(),
        "InstanceRole": role,
        "InstanceType": kind,
        "InstanceCount": count,
        "Market": market,
        "EbsConfiguration": {
            "EbsBlockDeviceConfigs": [{"VolumeSpecification": volume, "VolumesPerInstance": 1}]
        },
    }


def security_configuration() -> dict:
    """Return the EMR security configuration that a request names.

    IMDSv2 only. Two hops, for JupyterHub lives in a container on the primary node. What lies in
    the bucket is encrypted by the bucket's own default.
    """
    return {
        "InstanceMetadataServiceConfiguration": {
            "MinimumInstanceMetadataServiceVersion": 2,
            "HttpPutResponseHopLimit": 2,
        }
    }


# --- check --------------------------------------------------------------------------------------


def check_request(request: dict) -> None:
    """Check a request as far as this is possible without AWS.

    botocore knows names and types, EMR's model has bounds and lists of values; what neither says
    (EMR would, minutes later and at our cost) is checked here.

    Raises
    ------
    FruitsError
        What is wrong first, in one line.
    """
    # Own checks need the right types; but a wrong value in Configurations has a message of its own.
    for problems in (_configuration_problems, _model_problems, _cluster_problems, _node_problems):
        problem = next(problems(request), None)
        if problem:
            raise FruitsError(problem)


def _model_problems(request: dict) -> Iterator[str]:
    shape = _run_job_flow()
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        found = report.generate_report().splitlines()[0]
        yield f"RunJobFlow takes no such request: {found}"
    yield from _bound_problems(request, shape, "")


@functools.cache
def _run_job_flow() -> Shape:
    model = botocore.session.get_session().get_service_model("emr")
    return model.operation_model("RunJobFlow").input_shape


def _bound_problems(value, shape: Shape, name: str) -> Iterator[str]:
    """Lists of values, lengths, patterns and numbers, which botocore leaves to the service."""
    if shape.type_name == "structure":
        for key, member in value.items():
            yield from _bound_problems(member, shape.members[key], f"{name}.{key}".strip("."))
    elif shape.type_name == "list":
        for position, member in enumerate(value):
            yield from _bound_problems(member, shape.member, f"{name}[{position}]")
    elif shape.type_name == "string":
        least, most = shape.metadata.get("min", 0), shape.metadata.get("max", 1 << 20)
        pattern = shape.metadata.get("pattern", "").replace(JAVA_ASTRAL, PYTHON_ASTRAL)
        if shape.enum and value not in shape.enum:
            yield f"{name}={value} is not known: choose {', '.join(shape.enum)}"
        elif not least <= len(value) <= most:
            yield f"{name} has {len(value)} characters, {least} to {most} are allowed: change it"
        elif pattern and not re.fullmatch(pattern, value):
            yield f"{name}={value!r} has a character that EMR does not take: leave it out"
    elif shape.type_name in ("integer", "long"):
        least, most = shape.metadata.get("min", 0), shape.metadata.get("max", 1 << 31)
        if not least <= value <= most:
            yield f"{name}={value} is outside {least} to {most}: choose one inside"


def _form_problems(configurations, nested: bool = False) -> Iterator[str]:
    if not isinstance(configurations, list):
        yield f"configurations are a {type(configurations).__name__}: write a list, in brackets"
        return
    for entry in configurations:
        if not (
            isinstance(entry, dict)
            and isinstance(entry.get("Classification"), str)
            and isinstance(entry.get("Properties", {}), dict)
        ):
            found = ", ".join(entry) if isinstance(entry, dict) else repr(entry)
            yield (
                f"a configuration has {found or 'nothing'}: write an object with Classification (a "
                "name), Properties (an object) and, if needed, Configurations (a list)"
            )
        elif not nested:
            yield from _form_problems(entry.get("Configurations", []), nested=True)


def _configuration_problems(request: dict) -> Iterator[str]:
    configurations = request.get("Configurations", [])
    yield from _form_problems(configurations)
    for entry in configurations:
        name = entry["Classification"]
        if name not in CLASSIFICATIONS:
            yield (
                f"classification {name} is none of release 7's for {', '.join(APPLICATIONS)}: "
                "correct it or leave it out"
            )
        elif name.endswith("-env") and entry.get("Properties"):
            yield (
                f"{name} has Properties of its own: put its variables into a nested "
                "Configurations entry with the Classification export"
            )
        for inner in entry.get("Configurations", []):
            if inner["Classification"] != "export":
                yield f"{name} nests {inner['Classification']}: only export can be nested"
        for part in (entry, *entry.get("Configurations", [])):
            for key, value in part.get("Properties", {}).items():
                yield from _property_problems(f"{name} {key}", value)


def _property_problems(name: str, value) -> Iterator[str]:
    if not isinstance(value, str):
        yield f'{name}={value!r} is no string: write "{str(value).lower()}"'
    elif value == BUCKET_TO_EDIT:
        yield f"{name}={value} is to be edited: write the name of your bucket"
    elif re.search(r"secret|password|access\.?key", name, re.IGNORECASE):
        yield f"{name} is a secret, shown to all who may describe the cluster: use a role"


def _cluster_problems(request: dict) -> Iterator[str]:
    release = request.get("ReleaseLabel", "")
    applications = {it.get("Name") for it in request.get("Applications", [])}
    if release.startswith("emr-spark-8"):
        yield f"release {release} has no JupyterHub, as none of release 8: choose {RELEASES[-1]}"
    elif release not in RELEASES:
        yield f"release {release or 'none'} is not known: choose {RELEASES[0]} to {RELEASES[-1]}"
    for name in APPLICATIONS:
        if name not in applications:
            yield f"application {name} is missing: the notebooks need {', '.join(APPLICATIONS)}"
    for key in ("ServiceRole", "JobFlowRole"):
        if not request.get(key):
            yield f"{key} is missing: create the roles that `fruits emr policies` describes"
    if not request.get("SecurityConfiguration"):
        yield "SecurityConfiguration is missing: without it nodes answer to IMDSv1 too"
    if not _is_s3(request.get("LogUri", "")):
        yield f"LogUri={request.get('LogUri')} is no s3://bucket/prefix: logs die with the cluster"
    for action in request.get("BootstrapActions", []):
        path = action["ScriptBootstrapAction"]["Path"]
        if not _is_s3(path):
            yield f"bootstrap action {path} is no s3://bucket/key: nodes fetch it from the bucket"
    root = request.get("EbsRootVolumeSize", ROOT_GB[0])
    if not ROOT_GB[0] <= root <= ROOT_GB[1]:
        least, most = ROOT_GB
        yield f"EbsRootVolumeSize={root} is outside {least} to {most} GB: choose one inside"
    if not 1 <= request.get("StepConcurrencyLevel", 1) <= 256:
        steps = request["StepConcurrencyLevel"]
        yield f"StepConcurrencyLevel={steps} is outside 1 to 256: choose 1"
    yield from _end_problems(request)
    yield from _tag_problems(request.get("Tags", []))


def _end_problems(request: dict) -> Iterator[str]:
    instances = request["Instances"]
    least, most = IDLE_SECONDS
    idle = request.get("AutoTerminationPolicy", {}).get("IdleTimeout")
    if idle is None:
        yield "AutoTerminationPolicy has no IdleTimeout: a forgotten cluster would never end"
    elif not least <= idle <= most:
        yield (
            f"an idle time of {idle} seconds is outside {least} to {most}: choose 1 minute to "
            "7 days"
        )
    if not instances.get("KeepJobFlowAliveWhenNoSteps"):
        yield "KeepJobFlowAliveWhenNoSteps is not true: JupyterHub would end with the first step"
    if instances.get("TerminationProtected"):
        yield (
            "TerminationProtected is true: `fruits emr terminate` could not end the cluster; leave "
            "it false, what is worth keeping lies in the bucket"
        )


def _tag_problems(tags: list[dict]) -> Iterator[str]:
    keys = [tag.get("Key", "") for tag in tags]
    for tag, key in zip(tags, keys, strict=True):
        value = tag.get("Value", "")
        if not 1 <= len(key) <= 128 or len(value) > 256:
            yield f"tag {key!r}={value!r} is too long or empty: 1 to 128 characters, value to 256"
        elif key.lower().startswith("aws:"):
            yield f"tag {key} begins with aws:, which AWS keeps for itself: choose another name"
        elif keys.count(key) > 1:
            yield f"tag {key} is there {keys.count(key)} times: give it once"


def _node_problems(request: dict) -> Iterator[str]:
    instances = request["Instances"]
    if "InstanceFleets" in instances or "InstanceGroups" not in instances:
        both = "together" if "InstanceGroups" in instances else "or neither"
        yield f"instance groups and instance fleets {both}: give InstanceGroups alone"
        return
    groups = instances["InstanceGroups"]
    counts = dict.fromkeys(("MASTER", "CORE", "TASK"), 0)
    for group in groups:
        counts[group["InstanceRole"]] += group["InstanceCount"]
        if group["InstanceRole"] != "TASK" and group.get("Market") == "SPOT":
            yield (
                f"{group['InstanceRole']} nodes on the SPOT market: losing one can lose the "
                "cluster; take spot for task nodes"
            )
        if group["InstanceCount"] < 1:
            yield f"{group['InstanceCount']} {group['InstanceRole']} nodes: at least 1 is needed"
    if counts["MASTER"] != 1 or not counts["CORE"]:
        yield (
            f"{counts['MASTER']} primary and {counts['CORE']} core nodes: 1 primary and at least "
            "1 core node are needed"
        )
    kinds = {group["InstanceType"]: None for group in groups}
    try:
        processors = {kind: instance_type(kind).arch for kind in kinds}
    except FruitsError as error:
        yield str(error)
        return
    if len(set(processors.values())) > 1:
        found = ", ".join(f"{kind} ({arch})" for kind, arch in processors.items())
        yield (
            f"nodes of two processors, {found}: choose one, for the last bits of a feature depend "
            "on it, and so do the wheels"
        )
    yield from _scaling_problems(request.get("ManagedScalingPolicy", {}), counts)


def _scaling_problems(policy: dict, counts: dict[str, int]) -> Iterator[str]:
    limits = policy.get("ComputeLimits")
    if limits is None:
        yield "ManagedScalingPolicy has no ComputeLimits: nothing would bound the number of nodes"
        return
    least, most = limits["MinimumCapacityUnits"], limits["MaximumCapacityUnits"]
    started = counts["CORE"] + counts["TASK"]
    if limits["UnitType"] != "Instances":
        yield f"managed scaling counts {limits['UnitType']}: count Instances, as the groups do"
    elif least < 1:
        yield f"managed scaling from {least} nodes: at least 1 is needed"
    elif most < least:
        yield f"managed scaling from {least} to {most} nodes: the maximum is below the minimum"
    elif started > most:
        yield f"{started} core and task nodes, managed scaling allows {most}: raise its maximum"
    for key in ("MaximumOnDemandCapacityUnits", "MaximumCoreCapacityUnits"):
        if not 1 <= limits.get(key, most) <= most:
            yield f"{key}={limits[key]} is outside 1 to the maximum of {most}: choose one inside"


def _is_s3(uri: str) -> bool:
    return re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/.+", uri) is not None
