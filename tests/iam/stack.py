"""The stack of infrastructure.yaml, created in moto."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
from moto import mock_aws
from moto.cloudformation.models import cloudformation_backends
from moto.cloudformation.parsing import clean_json

import fruits_lib

TEMPLATE = Path(fruits_lib.__file__).parents[1] / "infrastructure.yaml"
ACCOUNT = "123456789012"


@contextlib.contextmanager
def account() -> Iterator[None]:
    """An empty account of moto's, but for AWS's managed policies."""
    settings = {"iam": {"load_aws_managed_policies": True}}
    with pytest.MonkeyPatch.context() as patch, mock_aws(config=settings):
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):  # of another server or account
            patch.delenv(name, raising=False)
        patch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        yield


def create(region: str = "eu-west-1", name: str = "fruits", **parameters) -> SimpleNamespace:
    """Create a stack: its outputs, its template, and the properties of its resources, resolved.

    moto skips the bucket policy and the budget, and drops some properties of other resources, such
    as a bucket's lifecycle: tests of those look at `properties`.
    """
    client = boto3.client("cloudformation", region_name=region)
    parameters = {"BucketName": f"example-{name}", **parameters}
    stack_id = client.create_stack(
        StackName=name,
        TemplateBody=TEMPLATE.read_text(encoding="utf-8"),
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in parameters.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )["StackId"]
    described = client.describe_stacks(StackName=name)["Stacks"][0]
    assert described["StackStatus"] == "CREATE_COMPLETE"
    stack = cloudformation_backends[ACCOUNT][region].stacks[stack_id]
    if region.startswith("cn-"):  # moto knows no partition but aws
        china = {"AWS::Partition": "aws-cn", "AWS::URLSuffix": "amazonaws.com.cn"}
        stack.resource_map._parsed_resources.update(china)
        stack.resource_map.load_conditions()
    conditions = {None: True, **dict(stack.resource_map.lazy_condition_map)}
    return SimpleNamespace(
        outputs={output["OutputKey"]: output["OutputValue"] for output in described["Outputs"]},
        template=stack.template_dict,
        properties={
            key: clean_json(resource["Properties"], stack.resource_map)
            for key, resource in stack.template_dict["Resources"].items()
            if conditions[resource.get("Condition")]
        },
    )
