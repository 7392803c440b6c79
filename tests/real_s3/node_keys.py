"""The keys that a cluster's node has, by the policy in infrastructure.yaml."""

import json

from iam import stack

from fruits_lib import aws


def node_keys(bucket) -> dict[str, str]:
    """Return the environment of a node of the bucket's cluster."""
    with stack.account():
        made = stack.create(BucketName=bucket.name)
    (inline,) = made.properties["NodeRole"]["Policies"]
    keys = aws.client("sts").assume_role(
        RoleArn="arn:aws:iam::123456789012:role/any",
        RoleSessionName="node",
        Policy=json.dumps(inline["PolicyDocument"]),
    )["Credentials"]
    return {
        "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
        "AWS_SESSION_TOKEN": keys["SessionToken"],
    }
