"""What infrastructure.yaml makes in an account, and what its policies allow."""

import ast
import fnmatch
import json
import re
from pathlib import Path

import boto3
import botocore.session
import parliament
import pytest
from botocore import xform_name
from iam import stack
from iam.simulator import ACCOUNT, ANSWERS, QUESTIONS, TAG, ask

import fruits_lib

OPTIONS = {"SshCidr": "203.0.113.7/32", "OperatorGroup": "people", "BudgetEmail": "a@example.com"}
pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning")


@pytest.fixture(scope="module")
def account():
    with stack.account():
        boto3.client("iam").create_group(GroupName="people")
        yield


@pytest.fixture(scope="module")
def full(account):
    return stack.create(**OPTIONS)


@pytest.fixture(scope="module")
def bare(account):
    return stack.create(name="bare")


# --- what it makes -------------------------------------------------------------------------------

NAMES = {"ServiceRole", "InstanceProfile", "SecurityConfiguration", "OperatorPolicy"}


def test_outputs_are_what_create_reads(full):
    assert set(full.outputs) == {"Stage", "Data", "Runs", "Subnet", "SshGroup"} | NAMES
    assert full.outputs["Stage"] == "s3://example-fruits/fruits"
    assert full.outputs["Data"] == "s3://example-fruits/photographs"
    assert full.outputs["Runs"] == "s3://example-fruits/runs"


def test_bucket_is_private_encrypted_and_tidied(full):
    bucket = full.properties["Bucket"]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    uploads, logs = bucket["LifecycleConfiguration"]["Rules"]
    assert uploads["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    assert (logs["Prefix"], logs["ExpirationInDays"]) == ("fruits/logs/", 30)
    made = boto3.client("s3").get_bucket_encryption(Bucket="example-fruits")
    (rule,) = made["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"


def test_bucket_outlives_the_stack(full):
    bucket = full.template["Resources"]["Bucket"]
    assert bucket["DeletionPolicy"] == "RetainExceptOnCreate"
    assert bucket["UpdateReplacePolicy"] == "Retain"


def test_subnet_is_public_and_reaches_s3_by_the_endpoint(full):
    ec2, joined = boto3.client("ec2"), full.properties["SubnetRoutes"]
    assert joined["SubnetId"] == full.outputs["Subnet"]
    (subnet,) = ec2.describe_subnets(SubnetIds=[joined["SubnetId"]])["Subnets"]
    assert subnet["MapPublicIpOnLaunch"]
    (table,) = ec2.describe_route_tables(RouteTableIds=[joined["RouteTableId"]])["RouteTables"]
    targets = [route["GatewayId"].split("-")[0] for route in table["Routes"]]
    assert sorted(targets) == ["igw", "local", "vpce"]


def test_network_carries_the_tag_of_emr(full):
    # Attachments, routes and rules take no tags.
    taggable = re.compile(
        "AWS::EC2::(VPC|Subnet|InternetGateway|RouteTable|SecurityGroup|.*Endpoint)"
    )
    for key, resource in full.template["Resources"].items():
        if taggable.fullmatch(resource["Type"]):
            assert {"Key": TAG, "Value": "true"} in full.properties[key]["Tags"], key
    subnet = boto3.client("ec2").describe_subnets(SubnetIds=[full.outputs["Subnet"]])["Subnets"][0]
    assert {"Key": TAG, "Value": "true"} in subnet["Tags"]


def test_ssh_is_open_to_one_address(full):
    group = full.outputs["SshGroup"]
    (made,) = boto3.client("ec2").describe_security_groups(GroupIds=[group])["SecurityGroups"]
    (rule,) = made["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert [way["CidrIp"] for way in rule["IpRanges"]] == ["203.0.113.7/32"]


def test_rules_between_the_groups_of_emr_belong_to_the_stack(full):
    groups = {full.properties[f"Core{kind}"]["GroupId"] for kind in ("Tcp", "Udp", "Icmp")}
    (primary,) = boto3.client("ec2").describe_security_groups(GroupIds=[*groups])["SecurityGroups"]
    assert primary["GroupName"] == "ElasticMapReduce-master"
    rules = {(r["IpProtocol"], r["FromPort"], r["ToPort"]) for r in primary["IpPermissions"]}
    assert rules == {("tcp", 0, 65535), ("udp", 0, 65535), ("icmp", -1, -1)}


def test_instance_profile_is_named_like_its_role(full):
    name = full.outputs["InstanceProfile"]
    made = boto3.client("iam").get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    assert [role["RoleName"] for role in made["Roles"]] == [name]


def test_security_configuration_asks_for_imdsv2_and_encryption(full):
    name = full.outputs["SecurityConfiguration"]
    made = boto3.client("emr").describe_security_configuration(Name=name)["SecurityConfiguration"]
    (key,) = (found["KeyArn"] for found in boto3.client("kms").list_keys()["Keys"])
    assert ast.literal_eval(made) == {  # moto stores Python's text of it
        "InstanceMetadataServiceConfiguration": {
            "MinimumInstanceMetadataServiceVersion": 2,
            "HttpPutResponseHopLimit": 2,
        },
        "EncryptionConfiguration": {
            "EnableInTransitEncryption": False,
            "EnableAtRestEncryption": True,
            "AtRestEncryptionConfiguration": {
                "S3EncryptionConfiguration": {"EncryptionMode": "SSE-S3"},
                "LocalDiskEncryptionConfiguration": {
                    "EncryptionKeyProviderType": "AwsKms",
                    "AwsKmsKey": key,
                    "EnableEbsEncryption": True,
                },
            },
        },
    }


def test_the_disks_key_is_for_ec2_and_the_two_roles(full):
    _, disks = full.properties["DiskKey"]["KeyPolicy"]["Statement"]
    assert disks["Condition"] == {
        "StringEquals": {"kms:CallerAccount": ACCOUNT},
        "StringLike": {"kms:ViaService": "ec2.eu-west-1.amazonaws.com*"},
    }
    for role in ("ServiceRole", "NodeRole"):
        (policy,) = full.properties[role]["Policies"]
        (grant,) = (s for s in policy["PolicyDocument"]["Statement"] if s["Sid"] == "Disks")
        assert grant["Resource"].split(":")[2] == "kms"
        assert "*" not in grant["Resource"]


def test_budget_mails_and_group_gets_the_policy(full):
    assert full.properties["Budget"]["Budget"]["BudgetLimit"] == {"Amount": 50, "Unit": "USD"}
    (notice,) = full.properties["Budget"]["NotificationsWithSubscribers"]
    assert [to["Address"] for to in notice["Subscribers"]] == ["a@example.com"]
    attached = boto3.client("iam").list_attached_group_policies(GroupName="people")
    (policy,) = attached["AttachedPolicies"]
    assert policy["PolicyArn"] == full.outputs["OperatorPolicy"]


def test_bare_stack_has_no_optional_parts(full, bare):
    assert set(full.outputs) - set(bare.outputs) == {"SshGroup"}
    assert set(full.properties) - set(bare.properties) == {"SshGroup", "Budget"}
    assert "Groups" not in bare.properties["OperatorPolicy"]


def test_two_stacks_share_no_name(full, bare):
    assert not {full.outputs[name] for name in NAMES} & {bare.outputs[name] for name in NAMES}


def test_partition_follows_the_region(account):
    china = stack.create("cn-north-1", name="china", BudgetEmail="a@example.com").properties
    # The ARNs of moto's own roles and buckets are not the template's.
    own = json.dumps(china).replace(f"arn:aws:iam::{ACCOUNT}", "").replace("arn:aws:s3:::", "")
    assert "arn:aws:" not in own
    for service in ("elasticmapreduce", "ec2"):
        assert f'"Service": "{service}.amazonaws.com.cn"' in own
    assert '"CNY"' in own


@pytest.mark.parametrize(("region", "zone"), [("us-east-1", "use1-az4"), ("eu-west-1", None)])
def test_subnet_avoids_the_old_zone_of_us_east_1(account, region, zone):
    subnet = stack.create(region, name=f"zone-{region}").properties["Subnet"]
    assert subnet.get("AvailabilityZoneId") == zone


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        ("BucketName", ["my-fruits"], ["s3://my-fruits", "My-Fruits", "a.b.c", "ab"]),
        ("DataPrefix", ["photographs", "jupyter2"], ["", "jupyter", "a/b", "/a", "a*", "${a}"]),
        ("SshCidr", ["", "203.0.113.7/32"], ["203.0.113.7", "0.0.0.0/0", "203.0.113.0/24"]),
    ],
)
def test_parameters_are_checked_before_anything_is_made(full, parameter, good, bad):
    pattern = full.template["Parameters"][parameter]["AllowedPattern"]
    assert [v for v in good + bad if re.fullmatch(pattern, v)] == good


# --- what its policies allow -------------------------------------------------------------------


@pytest.fixture(scope="module")
def policies(full):
    """Return the policy documents of the full stack, read back from IAM, by who has them."""
    iam = boto3.client("iam")

    def managed(arn: str) -> dict:
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        return iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]

    def inline(role: str) -> dict:
        (name,) = iam.list_role_policies(RoleName=role)["PolicyNames"]
        made = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        return ast.literal_eval(made)  # moto stores Python's text of it

    def trust(role: str) -> dict:
        return iam.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]

    service, node = full.outputs["ServiceRole"], full.outputs["InstanceProfile"]
    by_aws = {
        role: full.properties[role]["ManagedPolicyArns"] for role in ("ServiceRole", "NodeRole")
    }
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    return {
        "operator": [managed(full.outputs["OperatorPolicy"])],
        "service": [inline(service), *map(managed, by_aws["ServiceRole"])],
        "node": [inline(node), *map(managed, by_aws["NodeRole"])],
        "admin": [{"Version": "2012-10-17", "Statement": [everything]}],
        "service-role": [trust(service)],
        "node-role": [trust(node)],
        "bucket": [full.properties["BucketPolicy"]["PolicyDocument"]],
    }


@pytest.fixture(scope="module")
def answer(full, policies):
    roles = {"service-role": "ServiceRole", "node-role": "InstanceProfile"}
    names = {key: full.outputs[output] for key, output in roles.items()}
    return lambda questions: ask(questions, policies, names)


@pytest.fixture(scope="module")
def answers(answer):
    return answer(QUESTIONS)


@pytest.mark.parametrize("number", range(len(QUESTIONS)), ids=lambda n: "-".join(QUESTIONS[n][:3]))
def test_answer(answers, number):
    assert answers[number] == ANSWERS[QUESTIONS[number][4]], QUESTIONS[number]


def test_simulator_refuses_a_misspelt_action(answer):
    (said,) = answer([["admin", "s3:GetObjekt", "bucket/x", "-"]])
    assert said.startswith("error")


def test_simulator_refuses_a_condition_key_that_the_action_ignores(answer):
    (said,) = answer([["admin", "s3:GetObject", "bucket/x", "s3:prefix=x"]])
    assert said == "error: ignored s3:prefix"


# --- what a linter of policies says --------------------------------------------------------------

OWN = ("operator", "service", "node", "service-role", "node-role", "bucket")


def lint(policy: dict) -> list:
    # A trust policy names no resource, being attached to it; parliament knows no such policies.
    role = f"arn:aws:iam::{ACCOUNT}:role/any"
    whole = [{"Resource": role, **statement} for statement in policy["Statement"]]
    return parliament.analyze_policy_string(json.dumps({**policy, "Statement": whole})).findings


def tolerated(finding) -> bool:
    if finding.issue == "UNKNOWN_CONDITION_FOR_ACTION":
        # AWS lists the key for the resource, a cluster, where parliament does not look.
        return "elasticmapreduce:ResourceTag/project for action" in finding.detail
    # Only DescribeCluster says whose a cluster is: operators may ask it of all.
    return (finding.issue, finding.detail) == (
        "RESOURCE_STAR",
        ["elasticmapreduce:DescribeCluster"],
    )


@pytest.mark.parametrize("name", OWN)
def test_parliament_finds_nothing(policies, name):
    found = lint(policies[name][0])
    assert [str(finding) for finding in found if not tolerated(finding)] == []


def test_parliament_would_find_a_misspelt_action(policies):
    spoilt = json.loads(json.dumps(policies["node"][0]).replace("s3:GetObject", "s3:GetObjekt"))
    assert {finding.issue for finding in lint(spoilt)} == {"UNKNOWN_ACTION"}


def test_statement_ids_are_unique(policies):
    for name in OWN:
        ids = [statement.get("Sid") for statement in policies[name][0]["Statement"]]
        assert len(set(ids)) == len(ids), name


def test_operator_policy_is_within_the_size_of_a_managed_one(account):
    """IAM takes 6144 characters without white space, whatever names people choose."""
    prefixes = {f"{kind}Prefix": kind[0] * 100 for kind in ("Stage", "Data", "Runs")}
    long = stack.create(name="s" * 55, **prefixes).properties["OperatorPolicy"]["PolicyDocument"]
    assert len(json.dumps(long, separators=(",", ":"))) <= 6144


def test_operator_may_do_what_the_code_calls(policies):
    words = {  # clients' methods, and the names that paginators are asked for
        getattr(node, "attr", getattr(node, "value", None))
        for file in (Path(fruits_lib.__file__).parent / "emr").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute | ast.Constant)
        and not ast.unparse(node).startswith(("botocore.", "session."))  # no client of a service
    }
    session, own = botocore.session.Session(), {"elasticmapreduce": "emr"}
    own |= {"servicequotas": "service-quotas"}
    called = [
        f"{prefix}:{operation}"
        for prefix in ("cloudformation", "ec2", "elasticmapreduce", "pricing", "servicequotas")
        for operation in session.get_service_model(own.get(prefix, prefix)).operation_names
        if xform_name(operation) in words
    ]
    assert "elasticmapreduce:RunJobFlow" in called
    allowed = []
    for statement in policies["operator"][0]["Statement"]:
        actions = statement["Action"]
        allowed += [actions] if isinstance(actions, str) else actions
    assert [c for c in called if not any(fnmatch.fnmatchcase(c, a) for a in allowed)] == []
