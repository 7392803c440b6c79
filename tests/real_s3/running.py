"""A `fruits run` against the real server, in a process of its own."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

FRUITS = Path(sys.executable).with_name("fruits")
IMAGES = 36


class Running:
    """A `fruits run` of the photographs, from the bucket to it, in a process of its own."""

    def __init__(self, bucket, server, name: str, endpoint: str = "", *options: str):
        self.bucket, self.name = bucket, name
        self.log = server.folder.with_name(f"{name}.log")
        endpoint = {"AWS_ENDPOINT_URL": endpoint or server.endpoint}
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [FRUITS, "run", "--run-dir", bucket.uri(name), *options],
                env={**os.environ, **server.environment, **endpoint},
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that its kernel and Spark can be killed with it
            )

    def await_first_batch(self) -> None:
        """Wait until featurize is at work: its first batch is done, others are to come."""
        first = f"{self.name}/rejects/batch_id=0/rejects.parquet"
        while first not in self.bucket.listing(f"{self.name}/"):
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.1)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> dict:
        """Wait for its end; return its manifest, after checking that it is a good one."""
        self.process.wait()
        assert self.process.returncode == 0, self.log.read_text()[-2000:]
        manifest = json.loads(self.bucket.get(f"{self.name}/manifest.json"))
        found = manifest["featurize"]["features"] + manifest["featurize"]["rejects"]
        assert (manifest["load"]["images"], found) == (IMAGES, IMAGES)
        assert len(self.paths()) == len(set(self.paths())) == IMAGES
        return manifest

    def paths(self) -> list[str]:
        """Return the path of every row of features/ and rejects/."""
        found = []
        for key in self.bucket.listing(f"{self.name}/"):
            if key.split("/")[1] in ("features", "rejects") and key.endswith(".parquet"):
                table = pq.read_table(io.BytesIO(self.bucket.get(key)), columns=["path"])
                found += table["path"].to_pylist()
        return found
