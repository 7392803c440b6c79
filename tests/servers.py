"""The S3 servers and their faults that the tests run against: all on the loopback."""

import contextlib
import http.client
import http.server
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import pytest

from fruits_lib.connector import cache_folder

KEY = {"AWS_ACCESS_KEY_ID": "fruits-test", "AWS_SECRET_ACCESS_KEY": "a-secret-of-tests-alone"}
REGION = "eu-west-1"


def need(found: bool, what: str) -> None:
    """Skip, with what to install; where `FRUITS_REQUIRE` is set, as in CI, fail instead."""
    if not found:
        (pytest.fail if os.environ.get("FRUITS_REQUIRE") else pytest.skip)(what)


def free_port() -> int:
    """Return a port that the system gives to no connection or server that did not ask for it."""
    for port in random.SystemRandom().sample(range(15000, 32768), 100):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def await_port(port: int, process: subprocess.Popen) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended with exit code {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{process.args[0]} does not listen on port {port}")


def client(endpoint: str, service: str = "s3"):
    """Return a boto3 client of a server here, whatever the environment says."""
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=KEY["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEY["AWS_SECRET_ACCESS_KEY"],
    )


@dataclass
class S3Server:
    """A server of the S3 protocol in a process of its own.

    Attributes
    ----------
    kind : str
        `moto`, quick and lenient, or `minio`, real.
    folder : pathlib.Path
        Where MinIO keeps the objects, and each server its log.
    """

    kind: str
    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {**KEY, "AWS_ENDPOINT_URL": self.endpoint, "AWS_REGION": REGION}

    def start(self) -> None:
        environment = {**os.environ, "MINIO_SITE_REGION": REGION}
        if self.kind == "moto":
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        else:
            tool = cache_folder() / "bin/minio"
            need(tool.exists(), "MinIO is missing: run scripts/fetch-tools.sh")
            environment["MINIO_ROOT_USER"], environment["MINIO_ROOT_PASSWORD"] = KEY.values()
            command = [str(tool), "server", "--quiet", "--address", f"127.0.0.1:{self.port}"]
            command += ["--console-address", f"127.0.0.1:{free_port()}", str(self.folder)]
        with open(self.folder.with_suffix(".log"), "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        await_port(self.port, self.process)
        if self.kind == "minio":  # it listens before it serves
            for _ in range(300):
                with contextlib.suppress(Exception):
                    self.client().list_buckets()
                    return
                time.sleep(0.1)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def client(self, endpoint: str | None = None):
        return client(endpoint or self.endpoint)


@contextlib.contextmanager
def s3_server(kind: str, folder: Path):
    """Run a server for the length of a `with` block."""
    folder.mkdir(parents=True, exist_ok=True)
    server = S3Server(kind, folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Bucket:
    """A fresh bucket of a server."""

    name: str
    client: object

    def uri(self, key: str = "") -> str:
        return f"s3://{self.name}/{key}".rstrip("/")

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def upload(self, folder: Path, prefix: str) -> None:
        """Copy a folder of files, names as they are."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())

    def listing(self, prefix: str = "") -> dict[str, tuple]:
        """Return (etag, last modified) of every object below a prefix, by key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix
        )
        return {
            entry["Key"]: (entry["ETag"], entry["LastModified"])
            for page in pages
            for entry in page.get("Contents", [])
        }


class Faults:
    """What stands between a client and a server: toxiproxy, for latency, resets and outages."""

    def __init__(self, server: S3Server, log: Path):
        tool = cache_folder() / "bin/toxiproxy"
        need(tool.exists(), "toxiproxy is missing: run scripts/fetch-tools.sh")
        self.port, api = free_port(), free_port()
        self.api = f"http://127.0.0.1:{api}/proxies"
        with open(log, "w") as out:
            command = [str(tool), "-host", "127.0.0.1", "-port", str(api)]
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        await_port(api, self.process)
        upstream = f"127.0.0.1:{server.port}"
        self._ask({"name": "s3", "listen": f"127.0.0.1:{self.port}", "upstream": upstream})

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, kind: str, toxicity: float = 1.0, **attributes) -> None:
        toxic = {"type": kind, "toxicity": toxicity, "attributes": attributes}
        self._ask(toxic, "/s3/toxics")

    def set_enabled(self, enabled: bool) -> None:
        self._ask({"enabled": enabled}, "/s3")

    def _ask(self, body: dict, path: str = "") -> None:
        request = urllib.request.Request(
            self.api + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request).close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class SlowDown(http.server.BaseHTTPRequestHandler):
    """Forwards a request to the server, or answers it with 503 SlowDown, as S3 does under load."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body waits 40 ms for the header to be acknowledged
    upstream: int
    share: float
    seen: list[str]
    refused: list[str]

    def handle_any(self) -> None:
        self.seen.append(self.requestline)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if random.random() < self.share:
            self.refused.append(self.requestline)
            answer = b"<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>"
            self.send_response(503)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)
            return
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.upstream)) as there:
            # Header by header, the Host's too: the signature covers them.
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    there.putheader(name, value)
            there.endheaders(body)
            response = there.getresponse()
            content = response.read()
            self.send_response_only(response.status, response.reason)
            for name, value in response.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            size = response.getheader("Content-Length") if self.command == "HEAD" else len(content)
            if response.status != 204:
                self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def slow_down(server: S3Server, share: float):
    """Answer a share of the requests to a server with 503; yields (endpoint, refused requests)."""
    with _proxy(server, share) as (endpoint, handler):
        yield endpoint, handler.refused


@contextlib.contextmanager
def recorded(server: S3Server):
    """Write down the requests to a server; yields (endpoint, request lines)."""
    with _proxy(server, 0) as (endpoint, handler):
        yield endpoint, handler.seen


@contextlib.contextmanager
def _proxy(server: S3Server, share: float):
    values = {"upstream": server.port, "share": share, "seen": [], "refused": []}
    handler = type("Handler", (SlowDown,), values)
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}", handler
    finally:
        proxy.shutdown()
        proxy.server_close()


@contextlib.contextmanager
def answering(*answers):
    """A server that gives these answers, (status, headers, body), the last one for ever."""
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = left.pop(0) if len(left) > 1 else left[0]
            if not status:
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_POST = do_DELETE = do_GET

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
