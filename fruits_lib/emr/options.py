"""Options that several commands of `fruits emr` share."""

import click
from botocore.exceptions import BotoCoreError

from fruits_lib import aws
from fruits_lib.emr.spec import ClusterSpec
from fruits_lib.errors import FruitsError


def _region() -> str:
    try:
        return aws.environment_region() or ClusterSpec.region
    except BotoCoreError as error:
        raise FruitsError(aws.explain(error)) from None


REGION = click.option("--region", default=_region, help="Default: AWS_REGION, else eu-west-1.")
YES = click.option("--yes", is_flag=True, help="Do not ask.")
NAME = click.option("--name", default=ClusterSpec.name, show_default=True, help="Cluster's name.")


def spec_options(command):
    """Add an option for each field of ClusterSpec."""

    def option(name: str, meaning: str):
        default = getattr(ClusterSpec, name)
        return click.option(
            "--" + name.replace("_", "-"), default=default, show_default=default != "", help=meaning
        )

    options = [
        click.option("--stage", required=True, metavar="S3_URI", help="For code, notebooks, logs."),
        NAME,
        REGION,
        option("release", "EMR release."),
        option("primary", "Instance type of the primary node."),
        option("core", "Instance type of core nodes."),
        option("task", "Instance type of task nodes."),
        option("core_nodes", "Core nodes, on demand."),
        option("task_nodes", "Task nodes at most, spot; 0: none."),
        option("idle_minutes", "Without work, after which the cluster ends itself."),
        option("ebs_gb", "Root volume of each node in GB."),
        option("service_role", "Role of the cluster."),
        option("instance_profile", "Role of its nodes."),
        option("security_configuration", "Made if there is none of this name."),
        option("subnet", "EC2 subnet."),
        option("key_name", "EC2 key pair, for the tunnel."),
        option("ssh_group", "Security group added to the primary node, for the tunnel."),
        click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="More tags."),
    ]
    for add in reversed(options):
        command = add(command)
    return command


def cluster_options(command):
    """Add what names an existing cluster."""
    for add in (NAME, REGION, click.argument("cluster_id", required=False)):
        command = add(command)
    return command


def spec(asked: dict) -> ClusterSpec:
    """Return the specification that `spec_options` ask for, which it takes out of the rest."""
    tags = dict(_tag(text) for text in asked.pop("tags"))
    stage = asked.pop("stage").rstrip("/")
    return ClusterSpec(stage=stage, tags=tags, **asked)


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise FruitsError(f"--tag {text} has no key and value: write --tag key=value")
    return key, value
