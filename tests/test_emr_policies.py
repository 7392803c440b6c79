"""The policies of `fruits emr policies`: what must be allowed is, what must be refused is."""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import botocore.session
import parliament
import pytest
from botocore import xform_name
from moto import mock_aws

import fruits_lib.emr
from fruits_lib.emr import policies
from fruits_lib.emr.request import build_request
from fruits_lib.emr.spec import ClusterSpec
from fruits_lib.errors import FruitsError

ACCOUNT = "123456789012"
PLACE = {
    "stage": "s3://example-lab/fruits",
    "data": "s3://example-photos/2026/photos",
    "run": "s3://example-lab/runs",
    "region": "eu-west-1",
    "account": ACCOUNT,
}
DOCUMENTS = policies.documents(**PLACE)


# What the policies answer. iam-simulate is a program for Node.js: `npm ci` puts it, as pinned by
# tests/iam/package-lock.json, into the cache, once.

IAM = Path(__file__).parent / "iam"


def missing(reason: str):
    if os.environ.get("FRUITS_REQUIRE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def simulator():
    """A function from simulations to answers."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        missing("iam-simulate needs Node.js 18 or later: install node and npm")
    files = [IAM / "package.json", IAM / "package-lock.json"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(os.environ.get("FRUITS_CACHE") or home / "fruits")
    folder = cache / f"iam-simulate-{digest}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".iam-simulate-") as scratch:
            for file in files:
                shutil.copy(file, scratch)
            command = [
                npm,
                "ci",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--fetch-retries=1",
            ]
            made = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
            if made.returncode:
                said = [line for line in made.stderr.splitlines() if "error" in line]
                missing(f"npm cannot fetch iam-simulate ({(said or ['?'])[0]}): give it a registry")
            Path(scratch).chmod(0o755)
            try:  # another run may have been faster
                Path(scratch).rename(folder)
            except OSError:
                if not folder.exists():
                    raise

    def simulate(simulations: list[dict]) -> list[str]:
        answered = subprocess.run(
            [node, IAM / "simulate.mjs", folder],
            input=json.dumps(simulations),
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(answered.stdout)

    return simulate


def question(who: str, action: str, resource: str, context: dict, documents=DOCUMENTS) -> dict:
    """One request, with all policies that have a say in it."""
    service, bucket = action.split(":")[0], resource.removeprefix("arn:aws:s3:::").split("/")[0]
    attached = documents.get(TRUST[resource] if service == "sts" else f"bucket-{bucket}")
    identity = {**documents, "admin": EVERYTHING}.get(who)  # None: an AWS service asks
    return {
        "request": {
            "principal": f"arn:aws:iam::{ACCOUNT}:role/{who}" if identity else who,
            "action": action,
            "resource": {"resource": resource, "accountId": ACCOUNT},
            "contextVariables": {**USUAL.get(service, {}), **context},
        },
        "identityPolicies": [{"name": who, "policy": identity}] if identity else [],
        "serviceControlPolicies": [],
        "resourceControlPolicies": [],
        **({"resourcePolicy": attached} if attached else {}),
    }


LAB, PHOTOS = "arn:aws:s3:::example-lab", "arn:aws:s3:::example-photos"
CLUSTER = f"arn:aws:elasticmapreduce:eu-west-1:{ACCOUNT}:cluster/j-1"
CLUSTERS = f"arn:aws:elasticmapreduce:eu-west-1:{ACCOUNT}:cluster/*"
PARIS = f"arn:aws:elasticmapreduce:eu-west-3:{ACCOUNT}:cluster/j-1"
SERVICE_ROLE = f"arn:aws:iam::{ACCOUNT}:role/fruits-emr-service"
NODE_ROLE = f"arn:aws:iam::{ACCOUNT}:role/fruits-emr-node"
ADMIN_ROLE = f"arn:aws:iam::{ACCOUNT}:role/admin"
EMR, EC2 = "elasticmapreduce.amazonaws.com", "ec2.amazonaws.com"
TRUST = {SERVICE_ROLE: "service-role-trust", NODE_ROLE: "node-trust"}
EVERYTHING = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
}
PLAIN, IN_REGION = {"aws:SecureTransport": "false"}, {"aws:RequestedRegion": "eu-west-1"}
USUAL = {  # what a request carries, unless a question says otherwise
    "s3": {"aws:SecureTransport": "true"},
    "elasticmapreduce": IN_REGION,
    "ec2": IN_REGION,
}
OURS = {"elasticmapreduce:ResourceTag/project": "fruits"}
THEIRS = {"elasticmapreduce:ResourceTag/project": "wine"}
AWS_TAG = "for-use-with-amazon-emr-managed-policies"
ASKED = {"aws:RequestTag/project": "fruits", f"aws:RequestTag/{AWS_TAG}": "true"}
TAGGED = {f"aws:ResourceTag/{AWS_TAG}": "true"}
TO_EMR, TO_EC2 = {"iam:PassedToService": EMR}, {"iam:PassedToService": EC2}
YES, NO, NEVER = "Allowed", "ImplicitlyDenied", "ExplicitlyDenied"


def ec2(resource: str, region: str = "eu-west-1") -> str:
    return f"arn:aws:ec2:{region}:{ACCOUNT}:{resource}"


def prefix(value: str) -> dict:
    return {"s3:prefix": value}


def source(account: str) -> dict:
    arn = f"arn:aws:elasticmapreduce:eu-west-1:{account}:cluster/j-1"
    return {"aws:SourceAccount": account, "aws:SourceArn": arn}


QUESTIONS = [
    # Nodes read photographs, and only those.
    ("node", "s3:GetObject", f"{PHOTOS}/2026/photos/Apple 1/r0_1.jpg", {}, YES),
    ("node", "s3:ListBucket", PHOTOS, prefix("2026/photos/"), YES),
    ("node", "s3:ListBucket", PHOTOS, prefix("2026/photos"), YES),
    ("node", "s3:GetObject", f"{PHOTOS}/2026/photos2/x.jpg", {}, NO),
    ("node", "s3:ListBucket", PHOTOS, prefix("2026/photos2/"), NO),
    ("node", "s3:ListBucket", PHOTOS, prefix("2026/"), NO),
    ("node", "s3:ListBucket", PHOTOS, {}, NO),
    ("node", "s3:PutObject", f"{PHOTOS}/2026/photos/x.jpg", {}, NO),
    ("node", "s3:DeleteObject", f"{PHOTOS}/2026/photos/x.jpg", {}, NO),
    ("node", "s3:GetBucketLocation", PHOTOS, {}, YES),
    # They write results: as objects, in parts, and away again.
    ("node", "s3:PutObject", f"{LAB}/runs/2026-11/features/part-0.parquet", {}, YES),
    ("node", "s3:DeleteObject", f"{LAB}/runs/2026-11/features/_temporary/", {}, YES),
    ("node", "s3:AbortMultipartUpload", f"{LAB}/runs/2026-11/preflight", {}, YES),
    ("node", "s3:ListMultipartUploadParts", f"{LAB}/runs/2026-11/x", {}, YES),
    ("node", "s3:ListBucketMultipartUploads", LAB, {}, YES),
    ("node", "s3:ListBucketMultipartUploads", PHOTOS, {}, NO),
    ("node", "s3:PutObject", f"{LAB}/runs/", {}, YES),
    ("node", "s3:PutObject", f"{LAB}/runs-of-others/x", {}, NO),
    ("node", "s3:ListBucket", LAB, prefix("runs/2026-11/manifest.json"), YES),
    ("node", "s3:PutBucketPolicy", LAB, {}, NO),
    ("node", "s3:CreateBucket", "arn:aws:s3:::example-new", {}, NO),
    # Code is read, logs and JupyterHub's notebooks are written.
    ("node", "s3:GetObject", f"{LAB}/fruits/bootstrap.sh", {}, YES),
    ("node", "s3:ListBucket", LAB, prefix("fruits/wheelhouse/x86_64/"), YES),
    ("node", "s3:PutObject", f"{LAB}/fruits/bootstrap.sh", {}, NO),
    ("node", "s3:PutObject", f"{LAB}/fruits/logs/j-1/steps/s-1/stderr.gz", {}, YES),
    ("node", "s3:DeleteObject", f"{LAB}/fruits/logs/j-1/steps/s-1/stderr.gz", {}, NO),
    ("node", "s3:PutObject", f"{LAB}/jupyter/jovyan/01_load.ipynb", {}, YES),
    # Never without TLS, whoever asks and whosever the bucket.
    ("node", "s3:GetObject", f"{PHOTOS}/2026/photos/x.jpg", PLAIN, NEVER),
    ("node", "s3:GetObject", "arn:aws:s3:::example-other/x", PLAIN, NEVER),
    ("admin", "s3:GetObject", f"{PHOTOS}/2026/photos/x.jpg", PLAIN, NEVER),
    ("admin", "s3:ListBucket", LAB, PLAIN, NEVER),
    ("admin", "s3:GetObject", f"{PHOTOS}/2026/photos/x.jpg", {}, YES),
    # A node starts no cluster and passes no role.
    ("node", "elasticmapreduce:RunJobFlow", "*", ASKED, NO),
    ("node", "iam:PassRole", NODE_ROLE, TO_EC2, NO),
    # Operators create clusters that carry both tags, in one region.
    ("operator", "elasticmapreduce:RunJobFlow", "*", ASKED, YES),
    ("operator", "elasticmapreduce:AddTags", CLUSTERS, ASKED, YES),
    ("operator", "elasticmapreduce:RunJobFlow", "*", {}, NO),
    ("operator", "elasticmapreduce:RunJobFlow", "*", {"aws:RequestTag/project": "fruits"}, NO),
    (
        "operator",
        "elasticmapreduce:RunJobFlow",
        "*",
        {**ASKED, "aws:RequestedRegion": "us-east-1"},
        NO,
    ),
    ("operator", "iam:PassRole", SERVICE_ROLE, TO_EMR, YES),
    ("operator", "iam:PassRole", NODE_ROLE, TO_EC2, YES),
    ("operator", "iam:PassRole", ADMIN_ROLE, TO_EMR, NO),
    ("operator", "iam:PassRole", NODE_ROLE, {"iam:PassedToService": "lambda.amazonaws.com"}, NO),
    ("operator", "iam:PassRole", SERVICE_ROLE, TO_EC2, NO),
    # They use and end their own.
    ("operator", "elasticmapreduce:ListClusters", "*", {}, YES),
    ("operator", "elasticmapreduce:DescribeCluster", CLUSTER, THEIRS, YES),
    ("operator", "elasticmapreduce:TerminateJobFlows", CLUSTER, OURS, YES),
    ("operator", "elasticmapreduce:TerminateJobFlows", CLUSTER, THEIRS, NO),
    ("operator", "elasticmapreduce:TerminateJobFlows", CLUSTER, {}, NO),
    ("operator", "elasticmapreduce:TerminateJobFlows", PARIS, OURS, NO),
    ("operator", "elasticmapreduce:AddJobFlowSteps", CLUSTER, OURS, YES),
    ("operator", "elasticmapreduce:AddJobFlowSteps", CLUSTER, THEIRS, NO),
    ("operator", "elasticmapreduce:AddTags", CLUSTER, {**ASKED, **THEIRS}, NO),
    ("operator", "elasticmapreduce:RemoveTags", CLUSTER, OURS, NO),
    # Prices, for `prices --refresh`, are AWS's own and everybody's.
    ("operator", "pricing:GetProducts", "*", {}, YES),
    ("node", "pricing:GetProducts", "*", {}, NO),
    # They stage code and read results; photographs they count.
    ("operator", "s3:PutObject", f"{LAB}/fruits/bootstrap.sh", {}, YES),
    ("operator", "s3:PutObject", f"{LAB}/jupyter/jovyan/01_load.ipynb", {}, YES),
    ("operator", "s3:PutObject", f"{LAB}/jupyter/alice/01_load.ipynb", {}, NO),
    ("operator", "s3:GetObject", f"{LAB}/fruits/logs/j-1/steps/s-1/stderr.gz", {}, YES),
    ("operator", "s3:GetObject", f"{LAB}/runs/2026-11/notebooks/02_featurize.ipynb", {}, YES),
    ("operator", "s3:PutObject", f"{LAB}/runs/2026-11/preflight", {}, YES),
    ("operator", "s3:PutObject", f"{LAB}/runs/2026-11/manifest.json", {}, NO),
    ("operator", "s3:ListBucket", PHOTOS, prefix("2026/photos/"), YES),
    ("operator", "s3:GetObject", f"{PHOTOS}/2026/photos/x.jpg", {}, NO),
    ("operator", "s3:GetObject", f"{LAB}/fruits/bootstrap.sh", PLAIN, NEVER),
    ("operator", "ec2:RunInstances", ec2("instance/*"), {}, NO),
    # EMR acts in EC2 on what carries its tag, in one region, and passes on one role.
    ("service-role", "ec2:RunInstances", ec2("subnet/subnet-1"), TAGGED, YES),
    ("service-role", "ec2:RunInstances", ec2("subnet/subnet-1"), {}, NO),
    ("service-role", "ec2:RunInstances", ec2("subnet/subnet-1", "eu-west-3"), TAGGED, NO),
    ("service-role", "ec2:TerminateInstances", ec2("instance/i-1"), TAGGED, YES),
    ("service-role", "ec2:TerminateInstances", ec2("instance/i-1"), {}, NO),
    ("service-role", "ec2:AuthorizeSecurityGroupIngress", ec2("security-group/sg-1"), TAGGED, YES),
    ("service-role", "ec2:AuthorizeSecurityGroupIngress", ec2("security-group/sg-1"), {}, NO),
    ("service-role", "ec2:DescribeSubnets", "*", {}, YES),
    ("service-role", "ec2:DescribeSubnets", "*", {"aws:RequestedRegion": "us-east-1"}, NO),
    ("service-role", "iam:PassRole", NODE_ROLE, TO_EC2, YES),
    ("service-role", "iam:PassRole", ADMIN_ROLE, TO_EC2, NO),
    ("service-role", "s3:GetObject", f"{PHOTOS}/2026/photos/x.jpg", {}, NO),
    # Who may take the roles.
    (EMR, "sts:AssumeRole", SERVICE_ROLE, source(ACCOUNT), YES),
    (EMR, "sts:AssumeRole", SERVICE_ROLE, source("210987654321"), NO),
    (EC2, "sts:AssumeRole", NODE_ROLE, {}, YES),
    (EC2, "sts:AssumeRole", SERVICE_ROLE, source(ACCOUNT), NO),
    ("lambda.amazonaws.com", "sts:AssumeRole", NODE_ROLE, {}, NO),
]


@pytest.fixture(scope="session")
def answers(simulator):
    return simulator([question(*asked) for *asked, _ in QUESTIONS])


@pytest.mark.parametrize("number", range(len(QUESTIONS)), ids=lambda n: "-".join(QUESTIONS[n][:3]))
def test_answer(answers, number):
    *asked, wanted = QUESTIONS[number]
    assert answers[number] == wanted, asked


def test_simulator_refuses_a_misspelt_action(simulator):
    (answer,) = simulator([question("admin", "s3:GetObjekt", f"{LAB}/x", {})])
    assert answer.startswith("error")


def test_simulator_refuses_a_condition_key_that_the_action_ignores(simulator):
    (answer,) = simulator([question("admin", "s3:GetObject", f"{LAB}/x", prefix("x"))])
    assert answer == "error: ignored s3:prefix"


def test_a_wildcard_in_a_key_is_a_letter(simulator):
    documents = policies.documents(**{**PLACE, "data": "s3://example-photos/new?"})
    letter, other = (f"{PHOTOS}/{folder}/x.jpg" for folder in ("new?", "new2"))
    assert letter.replace("?", "${?}").replace("x.jpg", "*") in str(documents["node"])
    (answer,) = simulator([question("node", "s3:GetObject", other, {}, documents)])
    assert answer == NO


def test_operator_may_send_the_request_of_create(simulator):
    spec = ClusterSpec(PLACE["stage"], tags={"owner": "someone"})
    tags = {f"aws:RequestTag/{it['Key']}": it["Value"] for it in build_request(spec, [])["Tags"]}
    asked = [("elasticmapreduce:RunJobFlow", "*"), ("elasticmapreduce:AddTags", CLUSTERS)]
    assert simulator([question("operator", *it, tags) for it in asked]) == [YES, YES]


# What a linter of policies says.


def lint(policy: dict) -> list:
    # A trust policy names no resource, being attached to it; parliament knows no such policies.
    whole = [{"Resource": NODE_ROLE, **statement} for statement in policy["Statement"]]
    found = parliament.analyze_policy_string(json.dumps({**policy, "Statement": whole}))
    return found.findings


def tolerated(finding, policy: dict) -> bool:
    if finding.issue == "UNKNOWN_CONDITION_FOR_ACTION":
        # AWS lists the key for the resource, a cluster, which parliament does not look at.
        return "elasticmapreduce:ResourceTag/project for action" in finding.detail
    if finding.issue == "RESOURCE_MISMATCH":
        # One call asks for several resources, each under its own condition, so in statements of
        # their own: the policy as a whole must name them all.
        return all(granted(policy, it["action"], it["required_format"]) for it in finding.detail)
    # The one of EMR's questions to EC2 that could name a resource; AWS's policy does not either.
    return finding.issue == "RESOURCE_STAR" and finding.detail == ["ec2:DescribeVpcAttribute"]


def granted(policy: dict, action: str, resource: str) -> bool:
    return any(
        action in statement["Action"] and parliament.is_arn_match("", resource, pattern)
        for statement in policy["Statement"]
        for pattern in statement["Resource"]
    )


@pytest.mark.parametrize("name", DOCUMENTS)
def test_parliament_finds_nothing(name):
    policy = DOCUMENTS[name]
    untold = [str(it) for it in lint(policy) if not tolerated(it, policy)]
    assert untold == []


def test_parliament_would_find_a_misspelt_action():
    spoilt = json.loads(json.dumps(DOCUMENTS["node"]).replace("s3:GetObject", "s3:GetObjekt"))
    assert {it.issue for it in lint(spoilt)} == {"UNKNOWN_ACTION"}


def test_parliament_would_find_a_resource_left_out():
    spoilt = json.loads(json.dumps(DOCUMENTS["service-role"]).replace(":subnet/*", ":vpc/*"))
    assert any(it.issue == "RESOURCE_MISMATCH" and not tolerated(it, spoilt) for it in lint(spoilt))


# What IAM and S3 accept.


@pytest.mark.parametrize(
    ("name", "most"), [("operator", 6144), ("service-role", 10240), ("node", 10240)]
)
def test_size_is_within_the_limit(name, most):
    """Of a managed policy, which a user's must be, and of a role's inline policy."""
    long = policies.documents(**{**PLACE, "data": f"s3://{'b' * 63}/{'k' * 300}"})
    assert len(json.dumps(long[name], separators=(",", ":"))) <= most


@pytest.mark.parametrize("name", DOCUMENTS)
def test_statement_ids_are_unique(name):
    ids = [it["Sid"] for it in DOCUMENTS[name]["Statement"] if "Sid" in it]
    assert len(set(ids)) == len(ids)


def test_nothing_is_allowed_on_every_resource_of_s3():
    for name in ("operator", "node", "service-role"):
        for statement in DOCUMENTS[name]["Statement"]:
            if statement["Effect"] == "Allow" and statement["Resource"] == "*":
                assert not any(action.startswith("s3:") for action in statement["Action"])


def test_operator_is_allowed_exactly_what_the_code_calls():
    model = botocore.session.Session().get_service_model("emr")
    operations = {xform_name(name): name for name in model.operation_names}
    called = set()
    for file in Path(fruits_lib.emr.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            # A client's method, or the name that a paginator is asked for.
            word = getattr(node, "attr", getattr(node, "value", None))
            if isinstance(word, str) and not ast.unparse(node).startswith("botocore."):
                called |= {operations[word]} if word in operations else set()
    allowed = re.findall(r"elasticmapreduce:([A-Z]\w+)\"", json.dumps(DOCUMENTS["operator"]))
    # RunJobFlow asks for AddTags as well, when it is given tags.
    assert set(allowed) == called | {"AddTags"}


# Names, regions, folders.


def test_each_bucket_has_its_policy():
    names = [name for name in DOCUMENTS if name.startswith("bucket-")]
    assert names == ["bucket-example-lab", "bucket-example-photos"]


def test_partition_follows_the_region():
    text = json.dumps(policies.documents(**{**PLACE, "region": "cn-north-1"}))
    assert "arn:aws-cn:" in text
    assert "arn:aws:" not in text
    assert "ec2.amazonaws.com.cn" in text


def test_account_is_that_of_the_credentials(monkeypatch):
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        assert policies.documents(**{**PLACE, "account": ""}) == DOCUMENTS


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"region": "europe"}, "region='europe' is none: give one such as eu-west-1"),
        ({"account": "1234"}, "account='1234' is no account: give its twelve digits"),
        ({"stage": "fruits"}, "stage='fruits' names no bucket: write s3://bucket/prefix"),
        ({"run": "s3://example-lab"}, "run=s3://example-lab is a whole bucket: give a prefix"),
        ({"service_role": SERVICE_ROLE}, "is no role's name: at most 64"),
        ({"data": "s3://example-lab/runs/photos"}, "lie one within the other"),
        ({"data": "s3://example-lab"}, "lie one within the other"),
        ({"data": "s3://example-lab/jupyter/x"}, "lie one within the other"),
        ({"run": "s3://example-lab/fruits/runs"}, "lie one within the other"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_names_are_refused(wrong, message):
    with pytest.raises(FruitsError) as caught:
        policies.documents(**{**PLACE, **wrong})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
