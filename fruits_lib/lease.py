"""One process at a time writes a run folder, by a lease that a dead process cannot keep."""

import atexit
import fcntl
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

from fruits_lib import aws, storage, user
from fruits_lib.errors import FruitsError

NAME = ".lease"  # Spark reads no file whose name begins with a dot
RENEWAL = 10  # seconds between two renewals of a lease that is a file
DEAD = 40  # seconds without one after which the owner is taken for dead
# A process and those that it starts share one lease, such as `fruits run` and its kernels.
TOKEN = "FRUITS_LEASE"


class Lease:
    """A run folder that this process may write until `release`; see `take`."""

    def __init__(self, uri: str = "", store=None, notebook: str = ""):
        self._uri, self._store = uri, store  # without a store nothing is leased
        self._notebook, self._token = notebook, os.environ.setdefault(TOKEN, uuid4().hex)
        self._owned = self._joined = False  # joined: another process of ours has it
        self._ended, self._lost = threading.Event(), threading.Event()
        self._renewing: threading.Thread | None = None

    def hold(self) -> bool:
        """Lease the folder if it is not ours yet; return whether it was taken now.

        Raises
        ------
        FruitsError
            If another process has it, or the folder cannot be written.
        """
        store = self._store
        if store is None or self._owned or (self._joined and not store.is_locked):
            return False
        if self._joined:
            self.check()
        body, process = _body(self._token, self._notebook), _process()
        started, seen, replace = time.monotonic(), None, None
        while not store.create(body, replace):
            found, waited = store.read(), time.monotonic() - started
            if waited > 2 * DEAD if found is None else found[0] == replace:
                raise FruitsError(
                    f"run_dir={self._uri}: its file {NAME} can neither be read nor replaced: "
                    "remove it, or give another run_dir"
                )
            if found is None:  # released in this moment
                time.sleep(min(0.1, DEAD / 10))
                continue
            version, content = found
            owner = _owner(content)
            if owner.get("token") == self._token:
                if store.is_locked or owner.get("process") != process:
                    self._joined = True
                    return False
                replace = version  # a cell that runs again takes it from its own first run
                continue
            if store.is_locked or seen not in (None, version):
                raise _in_use(self._uri, owner)
            seen, replace = version, version if waited > DEAD else None
            if not replace:
                time.sleep(min(1, DEAD / 10))
        self._own()
        return True

    def _own(self) -> None:
        self._owned, self._joined = True, False
        self._ended, self._lost = threading.Event(), threading.Event()
        atexit.register(self.release)  # or it would stay for a while
        if shell := storage.ipython_shell():
            shell.events.register("post_run_cell", self._after_cell)
        if not self._store.is_locked:
            arguments = self._ended, self._lost, RENEWAL
            self._renewing = threading.Thread(target=self._renew, args=arguments, daemon=True)
            self._renewing.start()

    def _renew(self, ended: threading.Event, lost: threading.Event, pause: float) -> None:
        while not ended.wait(pause):
            with suppress(Exception):  # an outage; what follows may reach it again
                if not self._store.renew():
                    lost.set()
                    return

    def _after_cell(self, result) -> None:
        """Give the folder back after a cell that failed: nobody may come to run another one."""
        if not result.success:
            self.release()

    def check(self) -> None:
        """Ask the store; raise FruitsError if the lease is not ours any more.

        Another process takes it from one that cannot renew it, such as a laptop that sleeps.
        """
        if not (self._owned or self._joined):
            return
        found = self._store.read()
        if found is None:
            raise FruitsError(
                f"run_dir={self._uri} is not leased to this process any more: the folder was moved "
                "or removed, or another process took it and has ended: run this again"
            )
        if self._lost.is_set() or _owner(found[1]).get("token") != self._token:
            raise FruitsError(
                f"another process took run_dir={self._uri} while this one could not renew its "
                "lease: let that one end, then run this again"
            )

    def release(self) -> None:
        """Let other processes write the run folder."""
        owned, self._owned, self._joined = self._owned, False, False
        if not owned:
            return
        self._ended.set()
        atexit.unregister(self.release)
        if shell := storage.ipython_shell():
            with suppress(ValueError):
                shell.events.unregister("post_run_cell", self._after_cell)
        if self._renewing:
            self._renewing.join(DEAD)  # a renewal on its way would write the file again
        if not self._lost.is_set():
            self._store.delete()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_) -> None:
        self.release()


def take(uri: str, spark=None, notebook: str = "") -> Lease:
    """Lease a run folder to this process and those that it starts.

    On a local folder the operating system frees the lease of a dead process. Elsewhere the lease is
    a file that its owner renews: one that does not change for `DEAD` seconds is taken over, by a
    conditional write. On a file system that only Hadoop knows, `spark` is needed: without it
    nothing is leased. In IPython a cell that fails gives the lease back.

    Parameters
    ----------
    uri : str
        Qualified, of the run folder.
    spark : SparkSession, optional
    notebook : str
        Shown to others who want the folder.

    Raises
    ------
    FruitsError
        If another process has the lease, or the folder cannot be written.
    """
    path = storage.local_path(uri)
    if storage.is_s3(uri):
        store = _Object(uri)
    elif uri.startswith("file:") or spark is None:
        store = _LockedFile(uri, path) if path else None
    else:
        store = _HadoopFile(uri, spark)
    lease = Lease(uri, store, notebook)
    lease.hold()
    return lease


def _body(token: str, notebook: str) -> bytes:
    """Return what a lease says of its owner."""
    since = datetime.now(UTC).isoformat(timespec="minutes")
    in_kernel = hasattr(storage.ipython_shell(), "kernel")
    if in_kernel:  # JupyterLab tells a kernel the path of its notebook
        notebook = Path(os.environ.get("JPY_SESSION_NAME", notebook)).name
    words = [notebook] if notebook else []
    words += [f"{user.name()} on {socket.gethostname()}"]
    words += [f"{'kernel ' * in_kernel}process {os.getpid()}", f"since {since}"]
    who = {"who": ", ".join(words), "kernel": in_kernel, "process": _process()}
    return json.dumps({"token": token, **who, "id": uuid4().hex}).encode()


def _process() -> str:
    return f"{os.getpid()} on {socket.gethostname()}"


def _owner(content: bytes) -> dict:
    with suppress(ValueError):
        return json.loads(content)
    return {}


def _in_use(uri: str, owner: dict) -> FruitsError:
    idle = (
        "if it does nothing, shut that kernel down in JupyterLab (Running Terminals and Kernels); "
        "else "
    )
    return FruitsError(
        f"run_dir={uri} is in use by {owner.get('who', 'another process')}: "
        f"{idle * bool(owner.get('kernel'))}wait until it ends, or give another run_dir"
    )


def _unwritable(uri: str, reason: str) -> FruitsError:
    return FruitsError(
        f"run_dir={uri} cannot be written ({reason}): give a folder that you may write"
    )


class _LockedFile:
    """A file that is locked while its owner lives."""

    is_locked = True

    def __init__(self, uri: str, folder: Path):
        self._uri, self._path, self._file = uri, folder / NAME, None

    def create(self, body: bytes, replace: str | None = None) -> bool:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer, which a full disk would fail to flush once more when it is closed.
            file = open(self._path, "a+b", buffering=0)  # noqa: SIM115
            try:
                if not self._lock(file):
                    file.close()
                    return False
                file.truncate(0)
                file.write(body)
            except OSError:
                file.close()  # or a traceback that is kept would keep the lock
                raise
        except OSError as error:
            raise _unwritable(self._uri, error.strerror) from None
        self._file = file
        return True

    def _lock(self, file) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a network file system without locks: the last one to write has it
            return True
        return True

    def read(self) -> tuple[str, bytes] | None:
        try:
            return "", self._path.read_bytes()  # by its path: the folder may have been moved
        except (FileNotFoundError, NotADirectoryError):
            return None

    def delete(self) -> None:
        with suppress(OSError):
            self._file.truncate(0)
        self._file.close()


class _Object:
    """An object of S3 that is written only if its ETag is still the expected one."""

    is_locked = False

    def __init__(self, uri: str):
        self._uri = uri
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
                raise FruitsError(f"run_dir={self._uri}: {aws.explain(error)}") from None
        except BotoCoreError as error:
            raise FruitsError(f"run_dir={self._uri}: {aws.explain(error)}") from None
        return True

    def read(self) -> tuple[str, bytes] | None:
        try:
            found = self._s3.get_object(**self._place)
        except ClientError as error:
            if error.response["Error"].get("Code") in ("NoSuchKey", "404"):
                return None
            raise FruitsError(f"run_dir={self._uri}: {aws.explain(error)}") from None
        except BotoCoreError as error:
            raise FruitsError(f"run_dir={self._uri}: {aws.explain(error)}") from None
        return found["ETag"], found["Body"].read()

    def delete(self) -> None:
        with suppress(FruitsError, ClientError, BotoCoreError):
            found = self.read()
            if found and found[0] == self._etag:
                self._s3.delete_object(**self._place)


_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey", "404")


class _HadoopFile:
    """A file on HDFS or another file system, which creates a file for one of two at once.

    The owner renews it by writing a second file, of its own name: writing the lease itself again
    could replace that of another process that took it in this moment. Times are not relied on:
    object stores do not set them.
    """

    is_locked = False

    def __init__(self, uri: str, spark):
        hadoop = spark._jvm.org.apache.hadoop.fs
        self._uri, self._new_path = uri, lambda ending="": hadoop.Path(f"{uri}/{NAME}{ending}")
        self._path = self._new_path()
        self._fs = self._path.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration())
        self._io = spark._jvm.org.apache.commons.io.IOUtils
        self._body = b""

    def create(self, body: bytes, replace: tuple | None = None) -> bool:
        if replace and not self._remove(replace):
            return False
        try:
            self._write(self._path, body, overwrite=False)
        except Exception as error:
            with suppress(Exception):
                if self._fs.exists(self._path):  # another process was quicker
                    return False
            raise _unwritable(self._uri, _reason(error)) from None
        self._body = body
        return True

    def _write(self, path, content: bytes, overwrite: bool) -> None:
        stream = self._fs.create(path, overwrite)
        stream.write(bytearray(content))
        stream.close()

    def _remove(self, version: tuple) -> bool:
        """Remove the file if it is still of this version; a rename succeeds for one of two."""
        if self.read() is None or self.read()[0] != version:
            return False
        aside = self._new_path(f"-{uuid4().hex}")
        with suppress(Exception):
            self._fs.rename(self._path, aside)
            if self._content(aside) == version[0]:
                self._fs.delete(aside, False)
                self._fs.delete(self._renewed(version[0]), False)
                return True
            self._fs.rename(aside, self._path)  # the file of one that was quicker
        return False

    def _renewed(self, body: bytes):
        return self._new_path(f"-{_owner(body).get('id', '')}")

    def renew(self) -> bool:
        if self._content(self._path) != self._body:
            return False
        self._write(self._renewed(self._body), str(time.time()).encode(), overwrite=True)
        return True

    def read(self) -> tuple[tuple, bytes] | None:
        content = self._content(self._path)
        if content is None:
            return None
        return (content, self._content(self._renewed(content))), content

    def _content(self, path) -> bytes | None:
        from py4j.protocol import Py4JJavaError

        try:
            stream = self._fs.open(path)
            content = bytes(self._io.toByteArray(stream))
            stream.close()
        except Py4JJavaError as error:
            if "FileNotFound" in error.java_exception.getClass().getName():
                return None
            raise FruitsError(
                f"run_dir={self._uri}: its file {NAME} cannot be read ({_reason(error)}): check "
                "the folder and its file system"
            ) from None
        return content

    def delete(self) -> None:
        with suppress(Exception):
            if self._content(self._path) == self._body:
                self._fs.delete(self._renewed(self._body), False)
                self._fs.delete(self._path, False)


def _reason(error: Exception) -> str:
    """Return the first line of what Java says."""
    return str(getattr(error, "java_exception", error)).splitlines()[0]
