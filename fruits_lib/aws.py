"""Clients of AWS by the AWS conventions, and their errors in one line."""

import os

import boto3
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
)

from fruits_lib.errors import FruitsError

# Resets, outages of some seconds, 503 SlowDown: botocore waits longer before each new attempt.
RETRIES = Config(
    connect_timeout=10, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 10}
)
# For files in the middle of a run. The standard mode allows all threads of a client 35 retries
# together, which eight threads use up in six seconds; the legacy mode counts for each request.
# Nine attempts last 8 seconds or more but for one request in a million, and four minutes at most.
FILE_RETRIES = RETRIES.merge(Config(retries={"mode": "legacy", "total_max_attempts": 9}))
# For what is asked before a run: where one in ten is reset, six requests fail with a chance of
# 6e-10. Two seconds for each name a server that hangs in about half a minute.
PREFLIGHT = RETRIES.merge(Config(connect_timeout=2, read_timeout=2))
# For what can do without an answer, such as today's prices.
FEW_RETRIES = Config(
    connect_timeout=2, read_timeout=4, retries={"mode": "standard", "total_max_attempts": 5}
)

_EXPIRED = "the session has expired: log in again, for example `aws sso login`"
_UNKNOWN_KEY = "the access key is not known there: check AWS_PROFILE and AWS_ENDPOINT_URL"
_FORBIDDEN = "ask for the permissions that infrastructure.yaml grants"
WAYS_OUT = {
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "UnrecognizedClientException": _UNKNOWN_KEY,
    "InvalidClientTokenId": _UNKNOWN_KEY,
    "SignatureDoesNotMatch": "the secret key is wrong: check AWS_PROFILE",
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
    "AccessDenied": _FORBIDDEN,
    "AccessDeniedException": _FORBIDDEN,
    "403": _FORBIDDEN,  # the answer to a HEAD has no body to say more
    "404": "check the bucket, the key and AWS_ENDPOINT_URL",
}


def client(service: str, region: str = "", config: Config | None = None):
    """Return a boto3 client that follows the AWS conventions.

    Endpoint (`AWS_ENDPOINT_URL`), profile (`AWS_PROFILE`) and credentials come from the
    environment, the shared configuration files or the instance, never from parameters. An empty
    region is that of `environment_region`. A missing profile or region is a FruitsError.
    """
    try:
        # A client of its own session: boto3's default one would be shared between threads.
        made = boto3.Session().client(
            service, region_name=region or environment_region(), config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise FruitsError(explain(error)) from None
    if service == "s3":
        made.meta.events.register_first("choose-signer.s3", _sign_unless_public)
    return made


def unsigned_buckets() -> list[str]:
    """Return the buckets that `FRUITS_UNSIGNED_BUCKETS` names: public, read without an account."""
    names = os.environ.get("FRUITS_UNSIGNED_BUCKETS", "").split(",")
    return [name.strip() for name in names if name.strip()]


def _sign_unless_public(context: dict, **_):
    """Tell botocore not to sign a request to one of `unsigned_buckets`."""
    if context.get("input_params", {}).get("Bucket") in unsigned_buckets():
        return UNSIGNED
    return None


def environment_region() -> str | None:
    """Return the region that the environment or the profile names, or None.

    The SDKs disagree: Java's and the newer ones read `AWS_REGION`, boto3 `AWS_DEFAULT_REGION`.
    """
    return os.environ.get("AWS_REGION") or botocore.session.Session().get_config_variable("region")


def explain(error: Exception) -> str:
    """Return one line that says what AWS refused, and the way out where there is a known one."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return (
            "AWS credentials are missing: set AWS_PROFILE or give the machine a role; to read a "
            "public bucket, name it in FRUITS_UNSIGNED_BUCKETS"
        )
    if isinstance(error, ProfileNotFound):
        profile = os.environ.get("AWS_PROFILE")
        return f"there is no AWS_PROFILE={profile}: see `aws configure list-profiles`"
    if isinstance(error, NoRegionError):
        return "the AWS region is missing: set AWS_REGION, for example eu-west-1"
    if isinstance(error, ClientError):
        code = error.response["Error"].get("Code", "")
        message = error.response["Error"].get("Message", "").rstrip(".")
        text = f"{error.operation_name}: {code}: {message}"
        return " ".join(f"{text}: {WAYS_OUT[code]}".split() if code in WAYS_OUT else text.split())
    return " ".join(str(error).split())
