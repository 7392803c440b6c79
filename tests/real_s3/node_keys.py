"""The keys that a cluster's node has, by the policy in infrastructure.yaml."""

import json

from iam import stack

from fruits_lib import aws


def node_keys(bucket) -> dict[str, str]:
    """Return the environment of a node of the bucket's cluster."""
    with stack.account():
        made = stack.create(BucketName=bucket.name)
    (inline,) = made.properties["NodeRole"]["Policies"]
    policy = inline["PolicyDocument"]
    # The key for a node's disks is not S3's, and MinIO takes no other service's resources.
    policy["Statement"] = [s for s in policy["Statement"] if ":kms:" not in json.dumps(s)]
    keys = aws.client("sts").assume_role(
        RoleArn="arn:aws:iam::123456789012:role/any",
        RoleSessionName="node",
        Policy=json.dumps(policy),
    )["Credentials"]
    return {
        "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
        "AWS_SESSION_TOKEN": keys["SessionToken"],
    }
