"""Files by path or URI where no Spark is running, and the preflight of what a notebook will use."""

import mimetypes
import os
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
)

from fruits_lib import aws
from fruits_lib.bounded import read_file
from fruits_lib.errors import FruitsError
from fruits_lib.networks import KERAS_WEIGHTS

PLACES = ("data", "run_dir", "weights", "to")  # parameters that are a path or URI; see `preflight`
S3_SCHEMES = ("s3://", "s3a://", "s3n://")
START = "FRUITS_START"  # the folder at which relative paths of JupyterLab's kernels start


def is_s3(uri: str) -> bool:
    return uri.startswith(S3_SCHEMES)


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/a key` into ("bucket", "a key"), without a slash at the key's end."""
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    return bucket, key.strip("/")


def local_path(uri: str) -> Path | None:
    """Return the absolute path of a file on this machine, by path or `file:` URI; else None.

    Only `scheme://` makes another URI: a colon may be part of a name. `~` is the home folder. A
    relative path starts at the current folder, so that papermill, IPython and `fruits run` mean the
    same by it. JupyterLab starts a kernel in the notebook's folder: where `make lab` started it,
    the kernel's paths start at `FRUITS_START`.
    """
    if uri.startswith("file:"):
        uri = "/" + uri.removeprefix("file:").lstrip("/")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", uri):
        return None
    # Jupyter's server names a session to its kernel, and to nothing that a terminal starts.
    start = os.environ.get(START, "") if "JPY_SESSION_NAME" in os.environ else ""
    return Path(os.path.abspath(os.path.join(start, os.path.expanduser(uri))))


def cache_folder() -> Path:
    """Return the folder for what is fetched or made once: `FRUITS_CACHE`, else the user's cache."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FRUITS_CACHE") or Path(caches, "fruits"))


def ipython_shell():
    """Return the IPython that runs this code, in a notebook or a terminal, or None."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


# --- files --------------------------------------------------------------------------------------


def _s3():
    """Return the client of this environment; a new one takes as long as two requests."""
    return _client(frozenset(item for item in os.environ.items() if item[0].startswith("AWS_")))


@lru_cache(maxsize=1)
def _client(environment: frozenset):
    return aws.client("s3", config=aws.FILE_RETRIES)


def reader():
    """Return a function that reads one object by its `s3://` URI from any thread.

    It reads the object whole; with a bound, as `read_bytes` does.
    """
    s3 = _s3()

    def read(uri: str, most: int | None = None) -> bytes:
        bucket, key = uri.split("://", 1)[1].split("/", 1)
        for later_attempts in (2, 1, 0):
            answer = s3.get_object(Bucket=bucket, Key=key)
            too_long = most is not None and answer["ContentLength"] > most
            try:
                return answer["Body"].read(most + 1 if too_long else None)
            except (HTTPClientError, IncompleteReadError):  # botocore repeats requests, not bodies
                if not later_attempts:
                    raise

    return read


def read_bytes(
    uri: str, read_object: Callable[..., bytes] | None = None, most: int | None = None
) -> bytes:
    """Return the content of a local path, an `s3://` URI, or another one that pyarrow knows.

    `read_object` is what `reader` returned, where one client serves many files. Of a longer file
    than `most` come that many bytes and one more. A missing file is a FileNotFoundError; what S3
    refuses is a FruitsError.
    """
    if is_s3(uri):
        try:
            return (read_object or reader())(uri, most)
        except (ClientError, BotoCoreError) as error:
            code = getattr(error, "response", {}).get("Error", {}).get("Code")
            if code in ("NoSuchKey", "404"):
                raise FileNotFoundError(uri) from None
            raise FruitsError(f"{uri}: {aws.explain(error)}") from None
    if path := local_path(uri):
        return path.read_bytes() if most is None else read_file(path, most)
    file_system, name = _arrow(uri)
    with file_system.open_input_stream(name) as stream:
        return stream.read(None if most is None else most + 1)


def read_text(uri: str) -> str:
    """Return the text of one UTF-8 file; see `read_bytes`."""
    return read_bytes(uri).decode()


def files_in(uri: str) -> list[str]:
    """Return the URIs of the files in a folder, sorted, none if it is missing."""
    folder = uri.rstrip("/") + "/"
    if is_s3(uri):
        bucket, key = bucket_and_key(uri)
        pages = _s3().get_paginator("list_objects_v2")
        try:
            prefix = f"{key}/".lstrip("/")
            found = pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
            keys = [entry["Key"] for page in found for entry in page.get("Contents", [])]
        except (ClientError, BotoCoreError) as error:
            raise FruitsError(f"{uri}: {aws.explain(error)}") from None
        names = [key.rsplit("/", 1)[-1] for key in keys]
    elif path := local_path(uri):
        names = [entry.name for entry in path.iterdir() if entry.is_file()] if path.is_dir() else []
    else:
        from pyarrow.fs import FileSelector

        file_system, name = _arrow(uri)
        found = file_system.get_file_info(FileSelector(name, allow_not_found=True))
        names = [entry.base_name for entry in found if entry.is_file]
    return [folder + name for name in sorted(filter(None, names))]


def write_bytes(uri: str, content: bytes) -> None:
    """Write one file, and the folders above it, in place of what was there.

    On S3 the object gets the content type of its name, so that a browser shows a report. What S3
    refuses is a FruitsError.
    """
    if is_s3(uri):
        bucket, key = bucket_and_key(uri)
        try:
            _s3().put_object(Bucket=bucket, Key=key, Body=content, ContentType=content_type(key))
        except (ClientError, BotoCoreError) as error:
            raise FruitsError(f"{uri}: {aws.explain(error)}") from None
    elif path := local_path(uri):
        write_file(path, content)
    else:
        file_system, name = _arrow(uri)
        file_system.create_dir(name.rsplit("/", 1)[0])
        with file_system.open_output_stream(name) as stream:
            stream.write(content)


def write_file(path: Path, content: bytes) -> None:
    """Write a file on this machine, and the folders above it; a kill leaves no half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)  # it would keep a full disk full
        raise


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


_GO_ON = "give the run folder's new place to the same command, it goes on from there"


class PapermillHandler:
    """Reads and writes notebooks for papermill by `read_text` and `write_text`.

    papermill's own handler for S3 asks for the permission to set ACLs, gives up on the first error,
    and cannot read a character that crosses a megabyte boundary. That for local files leaves half a
    notebook when it is killed.
    """

    def read(self, path: str) -> str:
        return read_text(path)

    def write(self, text: str, path: str) -> None:
        if (local := local_path(path)) and not local.parent.is_dir():
            raise FruitsError(f"{local.parent} was moved or removed while notebooks ran: {_GO_ON}")
        write_text(path, text)

    def pretty_path(self, path: str) -> str:
        return path


# --- preflight ----------------------------------------------------------------------------------


def preflight(data: str = "", run_dir: str = "", weights: str = "", to: str = "") -> None:
    """Check that photographs can be read and results written, before Spark starts.

    For each `s3://` URI one or two requests check the endpoint, the credentials, the bucket, its
    region and the permissions; nothing is written. A run folder on this machine is made and written
    to, unless a Spark of its own (`SPARK_HOME`, EMR) decides where a path lies. Hadoop checks other
    places later. Results are written to the run folder; where `to` is given, they are written
    there, and the run folder is only read.

    Raises
    ------
    FruitsError
        If a place cannot be used, or the folder of the results overlaps one that is only read.
    """
    check_names(data=data, run_dir=run_dir, weights=weights, to=to)
    name, results = ("to", to) if to else ("run_dir", run_dir)
    for read in [{"data": data}, {"run_dir": run_dir}] if to else [{"data": data}]:
        check_apart(**read, **{name: results})
    if is_s3(data):
        bucket, key = bucket_and_key(data)
        place = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "MaxKeys": 1}
        if not _ask("data", data, "list_objects_v2", **place).get("Contents"):
            raise FruitsError(f"data={data} holds no object: check the bucket and the prefix")
    if is_s3(weights):
        bucket, key = bucket_and_key(weights)
        _ask("weights", weights, "head_object", Bucket=bucket, Key=key)
    if to and is_s3(run_dir):
        bucket, key = bucket_and_key(run_dir)
        place = {"Bucket": bucket, "Prefix": f"{key}/manifest.json".lstrip("/"), "MaxKeys": 1}
        if not _ask("run_dir", run_dir, "list_objects_v2", **place).get("Contents"):
            raise FruitsError(f"run_dir={run_dir} holds no manifest.json: give a run's folder")
    if is_s3(results):
        # An upload that is started and aborted shows the permission to write, and leaves nothing.
        bucket, key = bucket_and_key(results)
        place = {"Bucket": bucket, "Key": f"{key}/preflight".lstrip("/")}
        upload = _ask(name, results, "create_multipart_upload", **place)["UploadId"]
        _ask(name, results, "abort_multipart_upload", **place, UploadId=upload)
    elif results and not {"SPARK_HOME", "PYSPARK_SUBMIT_ARGS"} & os.environ.keys():
        check_writable(results, name)


def check_names(**places: str) -> None:
    """Raise FruitsError if a place's name cannot be stored, or means another file system to Spark.

    A path without a scheme is a file of this machine to Python, and one of the default file system
    to Spark; where a cluster's configuration is here, it says which that is.
    """
    for name, uri in places.items():
        path = str(local_path(uri) or uri)
        if (text := os.fsencode(path).decode("utf-8", "backslashreplace")) != path:
            raise FruitsError(f"{name}={text} is a name that is not UTF-8: rename it")
    check_schemes(configured_file_system(), **places)


def check_schemes(default: str, **places: str) -> None:
    """Raise FruitsError for a path without a scheme where Spark's default is not this machine.

    Parameters
    ----------
    default : str
        URI of the default file system, such as `hdfs://primary:8020`; empty if it is not known.
    **places : str
        By name; empty ones, and the words for Keras' own weights, are none.
    """
    if not default or default.startswith("file:"):
        return
    for name, uri in places.items():
        named = uri in ("", *KERAS_WEIGHTS) or uri.startswith("file:")
        if not named and (path := local_path(uri)):
            raise FruitsError(
                f"{name}={uri} names no file system: write {default.rstrip('/')}{path} for the one "
                f"of this cluster, or file://{path} for a disk of its machines"
            )


def configured_file_system() -> str:
    """Return the default file system of the Spark in `SPARK_HOME`, where its configuration says so.

    Hadoop's is in `HADOOP_CONF_DIR`, or beside Spark's own.
    """
    home, hadoop = os.environ.get("SPARK_HOME"), os.environ.get("HADOOP_CONF_DIR")
    for folder in (hadoop, f"{home}/conf") if home else ():
        with suppress(OSError, ElementTree.ParseError):
            properties = ElementTree.parse(f"{folder}/core-site.xml").iter("property")
            values = {entry.findtext("name"): entry.findtext("value") for entry in properties}
            return values.get("fs.defaultFS") or ""
    return ""


def check_writable(uri: str, name: str = "run_dir") -> None:
    """Make a folder on this machine and write to it, or raise FruitsError with the reason."""
    if not (folder := local_path(uri)):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(8192))
            file.flush()
            os.fsync(file.fileno())  # a full disk may show only now
    except OSError as error:
        raise FruitsError(
            f"{name}={uri} cannot be written ({error.strerror}): give a folder that you may "
            "write to and that has room"
        ) from None


def check_apart(**places: str) -> None:
    """Raise FruitsError if the second of two folders, of results, overlaps the first one."""
    (read, source), (name, results) = places.items()
    if source and results and overlap(source, results):
        what = "the photographs" if read == "data" else "the run that is applied"
        raise FruitsError(
            f"{name}={results} and {read}={source} overlap: results must not mix with {what}, "
            f"give another {name}"
        )


def overlap(one: str, other: str) -> bool:
    """Return whether one of two folders, by path or URI, is the other or lies in it."""
    one, other = folder_uri(one), folder_uri(other)
    return one.startswith(other) or other.startswith(one)


def folder_uri(uri: str) -> str:
    """Return one spelling of a folder's path or URI, with a slash at its end, to compare it by.

    On this machine it is the folder that symbolic links lead to.
    """
    if is_s3(uri):  # three schemes of one connector
        uri = "s3://" + "/".join(bucket_and_key(uri))
    elif path := local_path(uri):
        uri = os.path.realpath(path)
    else:
        scheme, place = uri.split("://", 1)
        server, _, path = place.partition("/")
        path = os.path.normpath("/" + path.lstrip("/"))
        uri = f"{scheme.lower()}://{server.lower()}{path}"
    return uri.rstrip("/") + "/"


def _ask(name: str, uri: str, operation: str, **arguments) -> dict:
    """Call S3; say in one line what it refuses."""
    if not arguments["Bucket"]:
        raise FruitsError(f"{name}={uri} names no bucket: write s3://bucket/folder")
    s3 = aws.client("s3", config=aws.PREFLIGHT)
    try:
        answer = getattr(s3, operation)(**arguments)
    except (ConnectionError, HTTPClientError) as error:
        raise FruitsError(
            f"{name}={uri}: {s3.meta.endpoint_url} does not answer ({aws.explain(error)}): check "
            "AWS_ENDPOINT_URL and the network"
        ) from None
    except ClientError as error:
        if error.response["Error"].get("Code") == "NoSuchUpload":
            return {}  # aborted by an attempt whose answer was lost
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
