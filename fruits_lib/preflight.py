"""Look at the buckets of a run before anything expensive starts."""

import time
from pathlib import Path

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
)

from fruits_lib import aws
from fruits_lib.errors import FruitsError
from fruits_lib.storage import bucket_and_key, is_s3

PATIENCE = 12  # seconds


def preflight(data: str = "", run_dir: str = "", weights: str = "") -> None:
    """Check that photographs can be read and results written, and that the two lie apart.

    Of each `s3://` URI the endpoint, the credentials, the bucket, its region and the permissions
    are checked, within 20 seconds, by one request or two; nothing is written. Other places are left
    to Hadoop.

    Parameters
    ----------
    data, run_dir, weights : str
        As the notebooks take them; empty ones are not looked at.

    Raises
    ------
    FruitsError
        If a place cannot be used, or one lies within the other.
    """
    _check_apart(data, run_dir)
    if is_s3(data):
        _check_data(data)
    if is_s3(weights):
        _check_weights(weights)
    if is_s3(run_dir):
        _check_writable(run_dir)


def _check_apart(data: str, run_dir: str) -> None:
    if not (data and run_dir):
        return
    photographs, results = _folder(data), _folder(run_dir)
    if photographs.startswith(results) or results.startswith(photographs):
        raise FruitsError(
            f"run_dir={run_dir} and data={data} lie one within the other: results go apart from "
            "the photographs, give another run_dir"
        )


def _folder(uri: str) -> str:
    if is_s3(uri):  # three names of one connector
        return "s3://" + "/".join(bucket_and_key(uri)) + "/"
    path = uri.removeprefix("file://").removeprefix("file:")
    return uri.rstrip("/") + "/" if "://" in path else f"{Path(path).absolute()}/"


def _check_data(data: str) -> None:
    bucket, key = bucket_and_key(data)
    place = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "MaxKeys": 1}
    answer = _ask("data", data, "list_objects_v2", **place)
    if not answer.get("Contents"):
        raise FruitsError(f"data={data} holds no object: check the bucket and the prefix")


def _check_weights(weights: str) -> None:
    bucket, key = bucket_and_key(weights)
    _ask("weights", weights, "head_object", Bucket=bucket, Key=key)


def _check_writable(run_dir: str) -> None:
    """An upload that is begun and given up shows the permission to write, and leaves nothing."""
    bucket, key = bucket_and_key(run_dir)
    place = {"Bucket": bucket, "Key": f"{key}/preflight".lstrip("/")}
    upload = _ask("run_dir", run_dir, "create_multipart_upload", **place)["UploadId"]
    _ask("run_dir", run_dir, "abort_multipart_upload", **place, UploadId=upload)


def _ask(name: str, uri: str, operation: str, **arguments) -> dict:
    """Call S3 once; say in one line what it refuses."""
    if not arguments["Bucket"]:
        raise FruitsError(f"{name}={uri} names no bucket: write s3://bucket/folder")
    s3 = aws.client("s3", config=aws.IMPATIENT)
    try:
        answer = _patiently(lambda: getattr(s3, operation)(**arguments))
    except (ConnectionError, HTTPClientError) as error:
        raise FruitsError(
            f"{name}={uri}: {s3.meta.endpoint_url} does not answer ({_line(error)}): check "
            "AWS_ENDPOINT_URL and the network"
        ) from None
    except ClientError as error:
        raise FruitsError(f"{name}={uri}: {_refusal(error, arguments)}") from None
    except BotoCoreError as error:
        raise FruitsError(f"{name}={uri}: {aws.explain(error)}") from None
    _check_region(name, uri, answer["ResponseMetadata"])
    return answer


def _patiently(request) -> dict:
    """Ask again while S3 says that it is busy, for a quarter of a minute."""
    started = time.monotonic()
    while True:
        try:
            return request()
        except ClientError as error:
            busy = error.response["ResponseMetadata"].get("HTTPStatusCode") == 503
            if not busy or time.monotonic() - started > PATIENCE:
                raise
        time.sleep(0.2)


def _check_region(name: str, uri: str, metadata: dict) -> None:
    """boto3 follows a bucket to its region by itself; Spark's connector does not."""
    found = metadata["HTTPHeaders"].get("x-amz-bucket-region")
    region = aws.environment_region()
    if found and region and found != region:
        raise FruitsError(
            f"{name}={uri} lies in region {found}, not {region}: set AWS_REGION={found}"
        )


def _refusal(error: ClientError, arguments: dict) -> str:
    code = error.response["Error"].get("Code", "")
    if code == "NoSuchBucket":
        return f"there is no bucket {arguments['Bucket']}: check its name and AWS_ENDPOINT_URL"
    if code in ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        found = error.response["Error"].get("Region", "")
        return (
            f"AWS_REGION={aws.environment_region()} is not the bucket's region: set "
            f"AWS_REGION={found or '...'} ({_line(error)})"
        )
    return aws.explain(error)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
