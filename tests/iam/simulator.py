"""Questions to IAM, as questions.txt writes them, and its answers, by iam-simulate."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
QUESTIONS = [
    re.split(r"\s{2,}", line)
    for line in (FOLDER / "questions.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
ANSWERS = {"yes": "Allowed", "no": "ImplicitlyDenied", "never": "ExplicitlyDenied"}
ACCOUNT, STRANGER, TAG = "123456789012", "111122223333", "for-use-with-amazon-emr-managed-policies"
HERE, ROLES = f"eu-west-1:{ACCOUNT}", f"arn:aws:iam::{ACCOUNT}:role"
EMR, EC2 = "elasticmapreduce.amazonaws.com", "ec2.amazonaws.com"

RESOURCES = {  # by the first word of a resource; what follows the word is kept
    "bucket": "arn:aws:s3:::example-fruits",
    "other": "arn:aws:s3:::example-other",
    "cluster": f"arn:aws:elasticmapreduce:{HERE}:cluster/j-1",
    "clusters": f"arn:aws:elasticmapreduce:{HERE}:cluster/*",
    "cluster-in-paris": f"arn:aws:elasticmapreduce:eu-west-3:{ACCOUNT}:cluster/j-1",
    "instance": f"arn:aws:ec2:{HERE}:instance",
    "subnet": f"arn:aws:ec2:{HERE}:subnet",
    "security-group": f"arn:aws:ec2:{HERE}:security-group",
    "ssm-document": f"arn:aws:ssm:{HERE}:document",
    "stack": f"arn:aws:cloudformation:{HERE}:stack/fruits/*",
    "other-stack": f"arn:aws:cloudformation:{HERE}:stack/wine/*",
    "admin-role": f"{ROLES}/admin",
    "spot-role": f"{ROLES}/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot",
    "cleanup-role": f"{ROLES}/aws-service-role/{EMR}/AWSServiceRoleForEMRCleanup",
}
CONTEXTS = {  # other words are key=value
    "-": {},
    "plain": {"aws:SecureTransport": "false"},
    "asked": {"aws:RequestTag/project": "fruits", f"aws:RequestTag/{TAG}": "true"},
    "owner": {"aws:RequestTag/owner": "someone"},
    "ours": {"elasticmapreduce:ResourceTag/project": "fruits"},
    "theirs": {"elasticmapreduce:ResourceTag/project": "wine"},
    "tagged": {f"aws:ResourceTag/{TAG}": "true"},
    "to-emr": {"iam:PassedToService": EMR},
    "to-ec2": {"iam:PassedToService": EC2},
    "for-emr": {"iam:AWSServiceName": EMR},
    "for-spot": {"iam:AWSServiceName": "spot.amazonaws.com"},
    "from-here": {"aws:SourceAccount": ACCOUNT, "aws:SourceArn": RESOURCES["cluster"]},
    "from-elsewhere": {
        "aws:SourceAccount": STRANGER,
        "aws:SourceArn": RESOURCES["cluster"].replace(ACCOUNT, STRANGER),
    },
}
USUAL = {"aws:SecureTransport": "true", "aws:RequestedRegion": "eu-west-1"}


def ask(questions: list[list[str]], policies: dict, roles: dict[str, str]) -> list[str]:
    """Return the simulator's answers, or `error: ...` where a question makes no sense.

    Parameters
    ----------
    questions : list of list of str
        Columns of questions.txt.
    policies : dict of str to list of dict
        Documents by who has them: someone who asks, or a resource.
    roles : dict of str to str
        Names of the stack's roles.
    """
    arns = {**RESOURCES, **{key: f"{ROLES}/{name}" for key, name in roles.items()}}
    answered = subprocess.run(
        ["node", FOLDER / "simulate.mjs", _install()],
        input=json.dumps([_simulation(question, policies, arns) for question in questions]),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(answered.stdout)


def _simulation(question: list[str], policies: dict, arns: dict[str, str]) -> dict:
    who, action, resource, contexts = question[:4]
    name, slash, rest = resource.partition("/")
    context = dict(USUAL)
    for word in contexts.split():
        context.update(CONTEXTS[word] if word in CONTEXTS else [word.split("=")])
    return {
        "request": {
            "principal": f"{ROLES}/{who}" if who in policies else who,  # else a service of AWS
            "action": action,
            "resource": {"resource": arns.get(name, name) + slash + rest, "accountId": ACCOUNT},
            "contextVariables": context,
        },
        "identityPolicies": [
            {"name": str(n), "policy": policy} for n, policy in enumerate(policies.get(who, []))
        ],
        "serviceControlPolicies": [],
        "resourceControlPolicies": [],
        **({"resourcePolicy": policies[name][0]} if name in policies else {}),
    }


def _install() -> Path:
    """Return the folder with iam-simulate, which `npm ci` installs into the cache, once."""
    files = [FOLDER / "package.json", FOLDER / "package-lock.json"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("FRUITS_CACHE") or home / "fruits") / f"iam-simulate-{digest}"
    if not (shutil.which("node") and shutil.which("npm")):
        _missing("iam-simulate needs Node.js 18 or later: install node and npm")
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".iam-simulate-"))
    for file in files:
        shutil.copy(file, scratch)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
    made = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
    if made.returncode == 0:
        with contextlib.suppress(OSError):  # another run may have been faster
            scratch.rename(folder)
    shutil.rmtree(scratch, ignore_errors=True)
    if not folder.exists():
        said = [line for line in made.stderr.splitlines() if "error" in line]
        _missing(f"npm cannot fetch iam-simulate ({(said or ['?'])[0]}): give it a registry")
    return folder


def _missing(reason: str):
    if os.environ.get("FRUITS_REQUIRE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
