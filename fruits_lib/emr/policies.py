"""Least privilege: what the operator, the cluster, its nodes and the buckets are allowed."""

import re
from dataclasses import dataclass

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError, UnknownRegionError

from fruits_lib import aws
from fruits_lib.emr.spec import ClusterSpec
from fruits_lib.errors import FruitsError
from fruits_lib.storage import bucket_and_key

# Every cluster of ours carries both. By the first, operators are held to their own clusters. The
# second is AWS's: EMR hands it on to all that it creates in EC2, and its own policies ask for it.
PROJECT_TAG = ("project", "fruits")
EMR_TAG = ("for-use-with-amazon-emr-managed-policies", "true")

# In IAM's patterns these have a meaning; in a key they are letters.
_LITERAL = str.maketrans({"*": "${*}", "?": "${?}", "$": "${$}"})


@dataclass(frozen=True)
class _Folder:
    """A prefix of a bucket, as IAM names it."""

    name: str
    partition: str
    bucket: str
    key: str

    @property
    def bucket_arn(self) -> str:
        return f"arn:{self.partition}:s3:::{self.bucket}"

    @property
    def patterns(self) -> list[str]:
        """Patterns of the folder and all in it; `photos*` would match photos2/ as well."""
        key = self.key.translate(_LITERAL)
        return [key, f"{key}/*"] if key else ["*"]

    @property
    def objects(self) -> list[str]:
        return [f"{self.bucket_arn}/{pattern}" for pattern in self.patterns]

    def overlaps(self, other: "_Folder") -> bool:
        ours, theirs = (f"{f.bucket}/{f.key}".rstrip("/") + "/" for f in (self, other))
        return ours.startswith(theirs) or theirs.startswith(ours)


@dataclass(frozen=True)
class _Place:
    """Where the cluster runs, and what it is allowed to touch there."""

    partition: str
    region: str
    account: str
    service_role: str
    instance_profile: str
    stage: _Folder
    logs: _Folder
    jupyter: _Folder
    jovyan: _Folder
    data: _Folder
    run: _Folder

    def arn(self, service: str, resource: str) -> str:
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    def role(self, name: str) -> str:
        return f"arn:{self.partition}:iam::{self.account}:role/{name}"

    def principal(self, service: str) -> str:
        suffix = ".cn" if self.partition == "aws-cn" else ""
        return f"{service}.amazonaws.com{suffix}"


def documents(
    stage: str,
    data: str,
    run: str,
    region: str,
    account: str = "",
    service_role: str = ClusterSpec.service_role,
    instance_profile: str = ClusterSpec.instance_profile,
) -> dict[str, dict]:
    """Return the policy documents of one project, by name.

    `operator` is for the person who runs `fruits emr`. `service-role` and `node` are for the roles
    of the cluster and of its nodes, `service-role-trust` and `node-trust` say who may take them.
    `bucket-NAME` is for each bucket, and replaces the policy that it has.

    Buckets encrypted by SSE-S3, S3's own, need nothing more; one under a KMS key also needs
    `kms:Decrypt` and `kms:GenerateDataKey` on that key.

    Parameters
    ----------
    stage, data, run : str
        `s3://bucket/prefix` of the staging folder, of the photographs, and of the run folder or
        the folder of several runs.
    region : str
        The only one in which clusters can be created.
    account : str
        Twelve digits. Empty: the account of the credentials in use, asked of STS.
    service_role, instance_profile : str
        Names of the two roles; EMR wants an instance profile named like its role.

    Raises
    ------
    FruitsError
        If a name is none, or the run folder, the photographs and the staged code do not lie apart.
    """
    place = _check(stage, data, run, region, account, service_role, instance_profile)
    buckets = {f.bucket: f.bucket_arn for f in (place.stage, place.data, place.run)}
    return {
        "operator": _operator(place),
        "service-role": _service_role(place),
        "service-role-trust": _service_role_trust(place),
        "node": _node(place),
        "node-trust": _node_trust(place),
        **{f"bucket-{name}": _bucket(arn) for name, arn in buckets.items()},
    }


def _check(
    stage: str,
    data: str,
    run: str,
    region: str,
    account: str,
    service_role: str,
    instance_profile: str,
) -> _Place:
    try:
        partition = botocore.session.Session().get_partition_for_region(region)
    except UnknownRegionError:
        raise FruitsError(f"region={region!r} is none: give one such as eu-west-1") from None
    for name, value in {"service_role": service_role, "instance_profile": instance_profile}.items():
        if not re.fullmatch(r"[\w+=,.@-]{1,64}", value, re.ASCII):
            raise FruitsError(
                f"{name}={value!r} is no role's name: at most 64 letters, digits or +=,.@-_, "
                "not its ARN"
            )
    staged = _folder("stage", stage, partition)
    place = _Place(
        partition,
        region,
        account or _account(region),
        service_role,
        instance_profile,
        stage=staged,
        logs=_Folder("the logs", partition, staged.bucket, f"{staged.key}/logs".lstrip("/")),
        jupyter=_Folder("JupyterHub's notebooks", partition, staged.bucket, "jupyter"),
        jovyan=_Folder("its first user's", partition, staged.bucket, "jupyter/jovyan"),
        data=_folder("data", data, partition),
        run=_folder("run", run, partition),
    )
    if not re.fullmatch(r"\d{12}", place.account, re.ASCII):
        raise FruitsError(f"account={account!r} is no account: give its twelve digits")
    for folder in (place.stage, place.run):
        if not folder.key:
            raise FruitsError(
                f"{folder.name}=s3://{folder.bucket} is a whole bucket: give a prefix in it"
            )
    _check_apart(place)
    return place


def _check_apart(place: _Place) -> None:
    """Nodes write to some folders; photographs and the code of the next cluster are not in them."""
    pairs = [(place.data, f) for f in (place.run, place.jupyter, place.logs)]
    pairs += [(place.stage, f) for f in (place.run, place.jupyter)]
    for kept, written in pairs:
        if kept.overlaps(written):
            raise FruitsError(
                f"{kept.name}=s3://{kept.bucket}/{kept.key} and {written.name} "
                f"(s3://{written.bucket}/{written.key}) lie one within the other: nodes write to "
                f"the second, give another prefix"
            )


def _folder(name: str, uri: str, partition: str) -> _Folder:
    bucket, key = bucket_and_key(uri) if uri.startswith("s3://") else ("", "")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise FruitsError(f"{name}={uri!r} names no bucket: write s3://bucket/prefix")
    return _Folder(name, partition, bucket, key)


def _account(region: str) -> str:
    try:
        return aws.client("sts", region).get_caller_identity()["Account"]
    except (BotoCoreError, ClientError) as error:
        raise FruitsError(
            f"account is not known ({aws.explain(error)}): give its twelve digits"
        ) from None


def _policy(*statements: dict) -> dict:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(sid: str, actions: list[str], resources: str | list[str], **conditions) -> dict:
    """Return a statement; `StringEquals={key: value}` and its like are the conditions."""
    statement = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
    return {**statement, "Condition": conditions} if conditions else statement


def _tls_only() -> dict:
    return {
        "Sid": "NoPlainHttp",
        "Effect": "Deny",
        "Action": "s3:*",
        "Resource": "*",
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }


def _list(sid: str, *folders: _Folder) -> list[dict]:
    """Allow to list folders, bucket by bucket.

    The answer to a HEAD or a GET of a missing object hangs on this permission too (404, else 403,
    which Spark's connector takes for an error); S3 then takes the object's key for `s3:prefix`.
    """
    prefixes = {}
    for folder in folders:
        prefixes.setdefault(folder.bucket_arn, []).extend(folder.patterns)
    return [
        _allow(f"{sid}{n}", ["s3:ListBucket"], arn, StringLike={"s3:prefix": patterns})
        for n, (arn, patterns) in enumerate(prefixes.items())
    ] + [_allow(f"{sid}Region", ["s3:GetBucketLocation"], sorted(prefixes))]


def _operator(place: _Place) -> dict:
    """The calls of `fruits emr`, on clusters of ours, in one region.

    Creating a cluster with tags asks for AddTags on `cluster/*`. So a cluster that has no project
    yet can be given ours, and ended; one of another project cannot.
    """
    here = {"aws:RequestedRegion": place.region}
    project, fruits = PROJECT_TAG
    clusters = place.arn("elasticmapreduce", "cluster/*")
    ours = {f"elasticmapreduce:ResourceTag/{project}": fruits}
    tagged = {f"aws:RequestTag/{key}": value for key, value in (PROJECT_TAG, EMR_TAG)}
    return _policy(
        _allow(
            "CreateTagged", ["elasticmapreduce:RunJobFlow"], "*", StringEquals={**here, **tagged}
        ),
        _allow(
            "TagWhileCreating",
            ["elasticmapreduce:AddTags"],
            clusters,
            StringEquals=tagged,
            StringEqualsIfExists=ours,
        ),
        _allow(
            "FindClusters",
            [
                "elasticmapreduce:ListClusters",
                "elasticmapreduce:CreateSecurityConfiguration",
                "elasticmapreduce:DescribeSecurityConfiguration",
            ],
            "*",
            StringEquals=here,
        ),
        # Also of others' clusters: only the answer says whose it is.
        _allow("ReadTags", ["elasticmapreduce:DescribeCluster"], clusters),
        _allow(
            "UseOurClusters",
            [
                "elasticmapreduce:AddJobFlowSteps",
                "elasticmapreduce:ListInstanceGroups",
                "elasticmapreduce:ListInstances",
                "elasticmapreduce:ListSteps",
                "elasticmapreduce:SetTerminationProtection",
                "elasticmapreduce:TerminateJobFlows",
            ],
            clusters,
            StringEquals=ours,
        ),
        _pass_role("PassServiceRole", place, place.service_role, "elasticmapreduce"),
        _pass_role("PassNodeRole", place, place.instance_profile, "ec2"),
        _allow("ReadPrices", ["pricing:GetProducts"], "*"),
        _allow(
            "Stage",
            ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            [*place.stage.objects, *place.jovyan.objects],
        ),
        _allow("ReadResults", ["s3:GetObject"], place.run.objects),
        # The preflight begins an upload of this name, and gives it up.
        _allow(
            "TryToWrite",
            ["s3:PutObject", "s3:AbortMultipartUpload"],
            [f"{folder}/preflight" for folder in place.run.objects],
        ),
        *_list("List", place.stage, place.jovyan, place.run, place.data),
        _tls_only(),
    )


def _pass_role(sid: str, place: _Place, role: str, service: str) -> dict:
    return _allow(
        sid,
        ["iam:PassRole"],
        place.role(role),
        StringEquals={"iam:PassedToService": place.principal(service)},
    )


def _node(place: _Place) -> dict:
    """What the nodes do in S3, and nothing else.

    By AWS's guide to an instance profile of least privilege EMR's own agents need no more than to
    write the logs, where its debugging by SQS, EMRFS and the Glue catalogue are not used. That is
    from the guide: no live cluster was at hand.
    """
    write = [
        "s3:GetObject",
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
        "s3:ListMultipartUploadParts",
    ]
    return _policy(
        _allow("Read", ["s3:GetObject"], [*place.data.objects, *place.stage.objects]),
        _allow("Write", write, [*place.run.objects, *place.jupyter.objects]),
        _allow("WriteLogs", ["s3:PutObject"], place.logs.objects),
        *_list("List", place.data, place.stage, place.run, place.jupyter),
        # A committer that gives up looks for what it had begun. S3 knows no prefix here.
        _allow("ListUploads", ["s3:ListBucketMultipartUploads"], place.run.bucket_arn),
        _tls_only(),
    )


def _bucket(arn: str) -> dict:
    return _policy({**_tls_only(), "Principal": "*", "Resource": [arn, f"{arn}/*"]})


def _node_trust(place: _Place) -> dict:
    return _policy(_trust(place.principal("ec2")))


def _service_role_trust(place: _Place) -> dict:
    """EMR alone, and only on behalf of this account: else others' EMR could ask for the role."""
    conditions = {
        "StringEquals": {"aws:SourceAccount": place.account},
        "ArnLike": {"aws:SourceArn": place.arn("elasticmapreduce", "*")},
    }
    return _policy({**_trust(place.principal("elasticmapreduce")), "Condition": conditions})


def _trust(service: str) -> dict:
    return {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}


def _service_role(place: _Place) -> dict:
    """What EMR does in EC2 with this account's means: AWS's AmazonEMRServicePolicy_v2, narrowed.

    Of its version 6 (February 2026), without auto scaling by CloudWatch, placement groups, capacity
    reservations and dedicated hosts, which our clusters do not use; in one region and account; and
    with the nodes' role as the only one to pass on. Subnet and VPC must carry `EMR_TAG`.
    """
    key, value = EMR_TAG
    resource = {"StringEquals": {f"aws:ResourceTag/{key}": value}}
    request = {"StringEquals": {f"aws:RequestTag/{key}": value}}
    endpoint = {f"aws:RequestTag/{key}": value, "aws:RequestTag/Name": "emr-service-vpce"}

    def ec2(*kinds: str) -> list[str]:
        return [place.arn("ec2", f"{kind}/*") for kind in kinds]

    template, fleet = ec2("launch-template"), ["ec2:RunInstances", "ec2:CreateFleet"]
    templates = ["ec2:CreateLaunchTemplate", "ec2:CreateLaunchTemplateVersion"]
    image = f"arn:{place.partition}:ec2:{place.region}::image/ami-*"
    return _policy(
        _allow(
            "CreateInTaggedNetwork",
            ["ec2:CreateNetworkInterface", *fleet, *templates],
            ec2("subnet", "security-group"),
            **resource,
        ),
        _allow("UseTaggedTemplate", [*fleet, templates[1]], template, **resource),
        _allow("CreateTaggedTemplate", [templates[0]], template, **request),
        _allow("CreateTaggedInstances", fleet, ec2("instance", "volume"), **request),
        _allow(
            "CreateFrom",
            [*fleet, *templates],
            [*ec2("network-interface", "key-pair", "fleet"), image],
        ),
        _allow(
            "CreateTaggedInterface",
            ["ec2:CreateNetworkInterface"],
            ec2("network-interface"),
            **request,
        ),
        _allow(
            "ManageTagged",
            [
                "ec2:DeleteLaunchTemplate",
                "ec2:DeleteNetworkInterface",
                "ec2:ModifyInstanceAttribute",
                "ec2:TerminateInstances",
            ],
            ec2("launch-template", "network-interface", "instance", "security-group", "volume"),
            **resource,
        ),
        _allow(
            "ManageTagsOfTagged",
            ["ec2:CreateTags", "ec2:DeleteTags"],
            ec2("instance", "volume", "network-interface", "launch-template"),
            **resource,
        ),
        _allow(
            "TagWhileCreating",
            ["ec2:CreateTags"],
            ec2("instance", "volume", "network-interface", "launch-template"),
            StringEquals={
                "ec2:CreateAction": [
                    "RunInstances",
                    "CreateFleet",
                    "CreateLaunchTemplate",
                    "CreateNetworkInterface",
                ]
            },
        ),
        _allow(
            "Look",
            [
                "ec2:DescribeAccountAttributes",
                "ec2:DescribeDhcpOptions",
                "ec2:DescribeImages",
                "ec2:DescribeInstances",
                "ec2:DescribeInstanceTypeOfferings",
                "ec2:DescribeLaunchTemplates",
                "ec2:DescribeNetworkAcls",
                "ec2:DescribeNetworkInterfaces",
                "ec2:DescribeRouteTables",
                "ec2:DescribeSecurityGroups",
                "ec2:DescribeSubnets",
                "ec2:DescribeVolumes",
                "ec2:DescribeVolumeStatus",
                "ec2:DescribeVpcAttribute",
                "ec2:DescribeVpcEndpoints",
                "ec2:DescribeVpcs",
            ],
            "*",
            StringEquals={"aws:RequestedRegion": place.region},
        ),
        _allow("CreateTaggedGroup", ["ec2:CreateSecurityGroup"], ec2("security-group"), **request),
        _allow("CreateGroupInTaggedVpc", ["ec2:CreateSecurityGroup"], ec2("vpc"), **resource),
        _allow(
            "TagGroupWhileCreating",
            ["ec2:CreateTags"],
            ec2("security-group"),
            StringEquals={
                f"aws:RequestTag/{key}": value,
                "ec2:CreateAction": "CreateSecurityGroup",
            },
        ),
        _allow(
            "ManageTaggedGroups",
            [
                "ec2:AuthorizeSecurityGroupEgress",
                "ec2:AuthorizeSecurityGroupIngress",
                "ec2:RevokeSecurityGroupEgress",
                "ec2:RevokeSecurityGroupIngress",
            ],
            ec2("security-group"),
            **resource,
        ),
        # EMR 7.5 and later: the way to EMR out of a subnet without internet.
        _allow(
            "ServiceEndpointInTaggedVpc",
            ["ec2:CreateVpcEndpoint", "ec2:ModifyVpcEndpoint"],
            ec2("vpc-endpoint", "subnet", "security-group", "vpc"),
            **resource,
        ),
        _allow(
            "CreateServiceEndpoint",
            ["ec2:CreateVpcEndpoint"],
            ec2("vpc-endpoint"),
            StringEquals=endpoint,
        ),
        _allow(
            "TagServiceEndpoint",
            ["ec2:CreateTags"],
            ec2("vpc-endpoint"),
            StringEquals={**endpoint, "ec2:CreateAction": "CreateVpcEndpoint"},
        ),
        _pass_role("PassNodeRole", place, place.instance_profile, "ec2"),
    )
