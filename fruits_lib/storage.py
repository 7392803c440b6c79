"""Files by path or URI where no Spark is running, and the preflight of what a notebook will use."""

import mimetypes
import os
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

from fruits_lib import aws
from fruits_lib.errors import FruitsError

S3_SCHEMES = ("s3://", "s3a://", "s3n://")


def is_s3(uri: str) -> bool:
    return uri.startswith(S3_SCHEMES)


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/a key` into ("bucket", "a key"), without a slash at the key's end."""
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    return bucket, key.strip("/")


def local_path(uri: str) -> Path | None:
    """Return the absolute path of a file on this machine, by path or `file:` URI; else None."""
    if uri.startswith("file:"):
        uri = "/" + uri.removeprefix("file:").lstrip("/")
    return None if "://" in uri else Path(os.path.abspath(Path(uri).expanduser()))


# --- files --------------------------------------------------------------------------------------


def reader():
    """Return a function that reads one object by its `s3://` URI, whole, from any thread."""
    s3 = aws.client("s3", config=aws.RETRIES)

    def read(uri: str) -> bytes:
        bucket, key = uri.split("://", 1)[1].split("/", 1)
        return s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    return read


def read_text(uri: str) -> str:
    """Return the text of a local path, an `s3://` URI, or another one that pyarrow knows.

    A missing file is a FileNotFoundError; what S3 refuses is a FruitsError.
    """
    if is_s3(uri):
        try:
            return reader()(uri).decode()
        except (ClientError, BotoCoreError) as error:
            code = getattr(error, "response", {}).get("Error", {}).get("Code")
            if code in ("NoSuchKey", "404"):
                raise FileNotFoundError(uri) from None
            raise FruitsError(f"{uri}: {aws.explain(error)}") from None
    if path := local_path(uri):
        return path.read_text(encoding="utf-8")
    file_system, name = _arrow(uri)
    with file_system.open_input_stream(name) as stream:
        return stream.read().decode()


def write_bytes(uri: str, content: bytes) -> None:
    """Write one file, and the folders above it, in place of what was there.

    On S3 the object gets the content type of its name, so that a browser shows a report. What S3
    refuses is a FruitsError.
    """
    if is_s3(uri):
        bucket, key = bucket_and_key(uri)
        try:
            aws.client("s3", config=aws.RETRIES).put_object(
                Bucket=bucket, Key=key, Body=content, ContentType=content_type(key)
            )
        except (ClientError, BotoCoreError) as error:
            raise FruitsError(f"{uri}: {aws.explain(error)}") from None
    elif path := local_path(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    else:
        file_system, name = _arrow(uri)
        file_system.create_dir(name.rsplit("/", 1)[0])
        with file_system.open_output_stream(name) as stream:
            stream.write(content)


def write_text(uri: str, text: str) -> None:
    """Write one UTF-8 file; see `write_bytes`."""
    write_bytes(uri, text.encode())


def content_type(name: str) -> str:
    """Return the content type of a file by its name's suffix."""
    if name.endswith(".ipynb"):
        return "application/x-ipynb+json"
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _arrow(uri: str):
    from pyarrow import fs

    return fs.FileSystem.from_uri(uri)


class PapermillHandler:
    """Reads and writes notebooks for papermill by `read_text` and `write_text`.

    papermill's own handler for S3 asks for the permission to set ACLs, gives up on the first error,
    and cannot read a character that crosses a megabyte boundary.
    """

    def read(self, path: str) -> str:
        return read_text(path)

    def write(self, text: str, path: str) -> None:
        write_text(path, text)

    def pretty_path(self, path: str) -> str:
        return path


# --- preflight ----------------------------------------------------------------------------------


def preflight(data: str = "", run_dir: str = "", weights: str = "") -> None:
    """Check that photographs can be read and results written, before Spark starts.

    For each `s3://` URI one or two requests check the endpoint, the credentials, the bucket, its
    region and the permissions; nothing is written. Hadoop checks other places later.

    Raises
    ------
    FruitsError
        If a place cannot be used, or `data` and `run_dir` overlap.
    """
    if data and run_dir:
        _check_apart(data, run_dir)
    if is_s3(data):
        bucket, key = bucket_and_key(data)
        place = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "MaxKeys": 1}
        if not _ask("data", data, "list_objects_v2", **place).get("Contents"):
            raise FruitsError(f"data={data} holds no object: check the bucket and the prefix")
    if is_s3(weights):
        bucket, key = bucket_and_key(weights)
        _ask("weights", weights, "head_object", Bucket=bucket, Key=key)
    if is_s3(run_dir):
        # An upload that is started and aborted shows the permission to write, and leaves nothing.
        bucket, key = bucket_and_key(run_dir)
        place = {"Bucket": bucket, "Key": f"{key}/preflight".lstrip("/")}
        upload = _ask("run_dir", run_dir, "create_multipart_upload", **place)["UploadId"]
        _ask("run_dir", run_dir, "abort_multipart_upload", **place, UploadId=upload)


def _check_apart(data: str, run_dir: str) -> None:
    photographs, results = _folder(data), _folder(run_dir)
    if photographs.startswith(results) or results.startswith(photographs):
        raise FruitsError(
            f"run_dir={run_dir} and data={data} overlap: results must not mix with the "
            "photographs, give another run_dir"
        )


def _folder(uri: str) -> str:
    if is_s3(uri):  # three schemes of one connector
        return "s3://" + "/".join(bucket_and_key(uri)) + "/"
    return f"{local_path(uri) or uri.rstrip('/')}/"


def _ask(name: str, uri: str, operation: str, **arguments) -> dict:
    """Call S3; say in one line what it refuses."""
    if not arguments["Bucket"]:
        raise FruitsError(f"{name}={uri} names no bucket: write s3://bucket/folder")
    s3 = aws.client("s3", config=aws.FEW_RETRIES)
    try:
        answer = getattr(s3, operation)(**arguments)
    except (ConnectionError, HTTPClientError) as error:
        raise FruitsError(
            f"{name}={uri}: {s3.meta.endpoint_url} does not answer ({aws.explain(error)}): check "
            "AWS_ENDPOINT_URL and the network"
        ) from None
    except ClientError as error:
        raise FruitsError(f"{name}={uri}: {_refusal(error, arguments['Bucket'])}") from None
    except BotoCoreError as error:
        raise FruitsError(f"{name}={uri}: {aws.explain(error)}") from None
    # boto3 follows a bucket to its region by itself; Spark's connector does not.
    found = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
    region = aws.environment_region()
    if found and region and found != region:
        raise FruitsError(
            f"{name}={uri} is in region {found}, not {region}: set AWS_REGION={found}"
        )
    return answer


def _refusal(error: ClientError, bucket: str) -> str:
    code = error.response["Error"].get("Code", "")
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket}: check its name and AWS_ENDPOINT_URL"
    if code in ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        found = error.response["Error"].get("Region", "")
        return (
            f"AWS_REGION={aws.environment_region()} is not the bucket's region: set "
            f"AWS_REGION={found or '...'} ({aws.explain(error)})"
        )
    return aws.explain(error)
