"""One process at a time writes a run folder, by a lease that a dead process cannot keep."""

import atexit
import fcntl
import getpass
import json
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from fruits_lib import aws, storage
from fruits_lib.errors import FruitsError

NAME = ".lease"  # Spark reads no file whose name begins with a dot
RENEWAL = 10  # seconds between two renewals of a lease that is a file
DEAD = 40  # seconds without one after which the owner is taken for dead
# A process and those that it starts share one lease, such as `fruits run` and its kernels.
TOKEN = "FRUITS_LEASE"


class Lease:
    """A run folder that this process may write until `release`; see `take`."""

    def __init__(self, uri: str = "", store=None):
        self._uri, self._store = uri, store  # without a store, it is joined, or nothing is leased
        self._ended, self._lost = threading.Event(), threading.Event()

    def keep_renewing(self) -> "Lease":
        """Renew the store's file in a thread, until `release`."""
        threading.Thread(target=self._renew, args=(RENEWAL,), daemon=True).start()
        atexit.register(self.release)  # or a notebook that failed would keep it for a while
        return self

    def _renew(self, pause: float) -> None:
        while not self._ended.wait(pause):
            with suppress(Exception):  # an outage; what follows may reach it again
                if not self._store.renew():
                    self._lost.set()
                    return

    def check(self) -> None:
        """Raise FruitsError if another process took the lease, because this one seemed dead."""
        if self._lost.is_set():
            raise FruitsError(
                f"another process took run_dir={self._uri} while this one could not renew its "
                "lease: let that one end, then run this again"
            )

    def release(self) -> None:
        """Let other processes write the run folder."""
        if not self._ended.is_set():
            self._ended.set()
            if self._store and not self._lost.is_set():
                self._store.delete()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_) -> None:
        self.release()


def take(uri: str, spark=None) -> Lease:
    """Lease a run folder to this process and those that it starts.

    On a local folder the operating system frees the lease of a dead process. Elsewhere the lease is
    a file that its owner renews: one that does not change for `DEAD` seconds is taken over, by a
    conditional write. On a file system that only Hadoop knows, `spark` is needed: without it
    nothing is leased.

    Raises
    ------
    FruitsError
        If another process has the lease, or the folder cannot be written.
    """
    token = os.environ.setdefault(TOKEN, uuid4().hex)
    since = datetime.now(UTC).isoformat(timespec="minutes")
    who = f"{getpass.getuser()} on {socket.gethostname()}, process {os.getpid()}, since {since}"
    body = json.dumps({"token": token, "who": who}).encode()
    path = storage.local_path(uri)
    if storage.is_s3(uri):
        store = _Object(uri)
    elif uri.startswith("file:") or spark is None:
        return _lock(uri, path, body, token) if path else Lease(uri)
    else:
        store = _HadoopFile(uri, spark)
    watched = time.monotonic()
    seen = None
    while not store.create(body, replace=seen if time.monotonic() - watched > DEAD else None):
        found = store.read()
        if found is None:  # released in this moment
            time.sleep(0.1)
            continue
        version, content = found
        if _owner(content).get("token") == token:
            return Lease(uri)
        if seen not in (None, version):
            raise _in_use(uri, content)
        seen = version
        time.sleep(min(1, DEAD / 10))
    return Lease(uri, store).keep_renewing()


def _owner(content: bytes) -> dict:
    with suppress(ValueError):
        return json.loads(content)
    return {}


def _in_use(uri: str, content: bytes) -> FruitsError:
    return FruitsError(
        f"run_dir={uri} is in use by {_owner(content).get('who', 'another process')}: wait until "
        "it ends, or give another run_dir"
    )


def _lock(uri: str, folder: Path, body: bytes, token: str) -> Lease:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _LockedFile(folder / NAME)
        content = file.take(body)
    except OSError as error:
        raise FruitsError(
            f"run_dir={uri} cannot be written ({error.strerror}): give a folder that you may write"
        ) from None
    if content is None:
        return Lease(uri, file)
    if _owner(content).get("token") == token:
        return Lease(uri)
    raise _in_use(uri, content)


class _LockedFile:
    """A file that is locked while its owner lives."""

    def __init__(self, path: Path):
        # Without a buffer, which a full disk would fail to flush once more when it is closed.
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115

    def take(self, body: bytes) -> bytes | None:
        """Lock the file and write its owner, or return what the owner wrote."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            return self._file.read()
        except OSError:  # a network file system without locks
            return None
        try:
            self._file.truncate(0)
            self._file.write(body)
        except OSError:
            self._file.close()  # or a traceback that is kept would keep the lock
            raise
        return None

    def delete(self) -> None:
        self._file.truncate(0)
        self._file.close()


class _Object:
    """An object of S3 that is written only if its ETag is still the expected one."""

    def __init__(self, uri: str):
        bucket, key = storage.bucket_and_key(uri)
        self._place = {"Bucket": bucket, "Key": f"{key}/{NAME}".lstrip("/")}
        self._s3 = aws.client("s3", config=aws.RETRIES)
        self._body, self._etag = b"", None

    def create(self, body: bytes, replace: str | None = None) -> bool:
        self._body = body
        return self._put(**({"IfMatch": replace} if replace else {"IfNoneMatch": "*"}))

    def renew(self) -> bool:
        return self._put(IfMatch=self._etag)

    def _put(self, **condition) -> bool:
        # A new body each time: the same one would have the same ETag, and look dead.
        body = self._body.replace(b'"token"', f'"at": {time.time()}, "token"'.encode())
        try:
            self._etag = self._s3.put_object(**self._place, Body=body, **condition)["ETag"]
        except ClientError as error:
            if error.response["Error"].get("Code") in _CONFLICTS:
                # A put whose answer was lost is repeated, and then finds itself.
                found = self.read()
                if found is None or found[1] != body:
                    return False
                self._etag = found[0]
            elif condition and error.response["Error"].get("Code") == "NotImplemented":
                return self._put()  # a store without conditional writes: without a lease
            else:
                raise FruitsError(f"{self._place}: {aws.explain(error)}") from None
        except BotoCoreError as error:
            raise FruitsError(f"{self._place}: {aws.explain(error)}") from None
        return True

    def read(self) -> tuple[str, bytes] | None:
        try:
            found = self._s3.get_object(**self._place)
        except ClientError as error:
            if error.response["Error"].get("Code") in ("NoSuchKey", "404"):
                return None
            raise FruitsError(f"{self._place}: {aws.explain(error)}") from None
        return found["ETag"], found["Body"].read()

    def delete(self) -> None:
        with suppress(FruitsError, ClientError, BotoCoreError):
            found = self.read()
            if found and found[0] == self._etag:
                self._s3.delete_object(**self._place)


_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey", "404")


class _HadoopFile:
    """A file on HDFS or another file system, which creates a file for one of two at once."""

    def __init__(self, uri: str, spark):
        hadoop = spark._jvm.org.apache.hadoop.fs
        self._path, self._new_path = hadoop.Path(f"{uri}/{NAME}"), hadoop.Path
        self._fs = self._path.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration())
        self._io = spark._jvm.org.apache.commons.io.IOUtils
        self._now = spark._jvm.System.currentTimeMillis
        self._body = b""

    def create(self, body: bytes, replace: str | None = None) -> bool:
        if replace and not self._remove(replace):
            return False
        try:
            stream = self._fs.create(self._path, False)
        except Exception:
            return False
        stream.write(bytearray(body))
        stream.close()
        self._body = body
        return True

    def _remove(self, version: str) -> bool:
        """Remove the file if it is still of this version; a rename succeeds for one of two."""
        aside = self._new_path(f"{self._path.toString()}-{uuid4().hex}")
        try:
            self._fs.rename(self._path, aside)
            if str(self._fs.getFileStatus(aside).getModificationTime()) != version:
                self._fs.rename(aside, self._path)  # the file of one that was quicker
                return False
            self._fs.delete(aside, False)
        except Exception:
            return False
        return True

    def renew(self) -> bool:
        self._fs.setTimes(self._path, self._now(), -1)
        return self.read()[1] == self._body

    def read(self) -> tuple[str, bytes] | None:
        try:
            version = str(self._fs.getFileStatus(self._path).getModificationTime())
            stream = self._fs.open(self._path)
            content = bytes(self._io.toByteArray(stream))
            stream.close()
        except Exception:
            return None
        return version, content

    def delete(self) -> None:
        self._fs.delete(self._path, False)
