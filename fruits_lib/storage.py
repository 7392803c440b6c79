"""Small texts by path or URI, where no Spark is running: notebooks, manifest, report."""

from pathlib import Path

from botocore.config import Config
from botocore.exceptions import ClientError

from fruits_lib import aws

S3_SCHEMES = ("s3://", "s3a://", "s3n://")
# What a run has computed is not lost because the bucket is away for half a minute.
PATIENT = Config(retries={"mode": "standard", "total_max_attempts": 10})


def is_s3(uri: str) -> bool:
    return uri.startswith(S3_SCHEMES)


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/a key` into ("bucket", "a key"), without a slash at the key's end."""
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    return bucket, key.strip("/")


def reader():
    """Return a function that reads one object by its `s3://` URI, whole, from any thread."""
    s3 = aws.client("s3", config=PATIENT)

    def read(uri: str) -> bytes:
        bucket, key = uri.split("://", 1)[1].split("/", 1)
        return s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    return read


def read_text(uri: str) -> str:
    """Return the content of one file.

    Parameters
    ----------
    uri : str
        Local path, `s3://` URI, or another one that pyarrow knows (`gs://`, `abfss://`, `hdfs://`).

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if is_s3(uri):
        bucket, key = bucket_and_key(uri)
        try:
            body = aws.client("s3", config=PATIENT).get_object(Bucket=bucket, Key=key)["Body"]
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                raise FileNotFoundError(uri) from None
            raise
        return body.read().decode()
    if "://" in uri:
        file_system, path = _arrow(uri)
        with file_system.open_input_stream(path) as stream:
            return stream.read().decode()
    return Path(uri).read_text(encoding="utf-8")


def write_text(uri: str, text: str) -> None:
    """Write one file, and the folders above it, in place of what was there."""
    if is_s3(uri):
        bucket, key = bucket_and_key(uri)
        aws.client("s3", config=PATIENT).put_object(Bucket=bucket, Key=key, Body=text.encode())
    elif "://" in uri:
        file_system, path = _arrow(uri)
        file_system.create_dir(path.rsplit("/", 1)[0])
        with file_system.open_output_stream(path) as stream:
            stream.write(text.encode())
    else:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        Path(uri).write_text(text, encoding="utf-8")


def _arrow(uri: str):
    from pyarrow import fs

    return fs.FileSystem.from_uri(uri)


class PapermillHandler:
    """What papermill reads and writes notebooks with, in place of its own.

    Its own handler for S3 asks for the permission to set ACLs, gives up on the first error, and
    cannot read a character that lies across a megabyte's border.
    """

    def read(self, path: str) -> str:
        return read_text(path)

    def write(self, text: str, path: str) -> None:
        write_text(path, text)

    def pretty_path(self, path: str) -> str:
        return path
