"""A fresh machine as EMR gives it to bootstrap.sh, and a bucket beside it."""

import subprocess
import sys
from pathlib import Path

import pyspark
from machine import Machine
from servers import free_port

STAGE = "s3://fruits/stage"
REGION = "us-east-1"  # of the instance, by moto


class Node(Machine):
    """One node, in a `with` block.

    Parameters
    ----------
    root, folder, network
        As of `Machine`.
    stage : pathlib.Path
        What is put under `STAGE` in the bucket.
    """

    def __init__(self, root: Path, folder: Path, stage: Path, network: bool = False):
        port = free_port()  # with a network, the port is the host's
        url = f"http://127.0.0.1:{port}"
        super().__init__(
            root,
            folder,
            [Path(sys.executable).with_name("moto_server"), "-H127.0.0.1", f"-p{port}"],
            {"/mnt/stage": stage, "/mnt/pyspark": Path(pyspark.__file__).parent},
            {
                "URL": url,
                "AWS_ENDPOINT_URL": url,
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": url,  # moto answers for the instance too
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
            },
            network,
        )

    def set_up(self) -> None:
        self.check("curl --silent --retry 60 --retry-delay 1 --retry-connrefused $URL/moto-api/")
        self.check(f"aws s3 mb {STAGE.rsplit('/', 1)[0]} --region {REGION}")
        self.check(f"aws s3 cp --recursive --only-show-errors /mnt/stage {STAGE}")

    def bootstrap(self, arguments: str = "", **options) -> subprocess.CompletedProcess:
        # Whatever the umask, all users have to read what comes of it.
        script = f"umask 077; bash /mnt/stage/bootstrap.sh --stage {STAGE} {arguments}"
        answer = self.run(script, **options)
        print(f"{answer.stdout}{answer.stderr}")  # pytest shows it, of a test that fails
        return answer

    def mount_small_disk(self, folder: str, size: str) -> None:
        subprocess.run(
            ["nsenter", f"--target={self._process.pid}", "--mount"]
            + ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", f"{self.root}{folder}"],
            check=True,
        )
