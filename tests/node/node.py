"""A fresh machine as EMR gives it to bootstrap.sh: Debian in namespaces, a bucket beside it."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pyspark

NODE_SH = Path(__file__).with_name("node.sh")
STAGE = "s3://fruits/stage"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Node:
    """One node. Use it in a `with` block: no process and no mount outlives that.

    Parameters
    ----------
    root : pathlib.Path
        Unpacked root, which stays as it is.
    folder : pathlib.Path
        Empty folder to mount on.
    stage : pathlib.Path
        What is put under `STAGE` in the bucket.
    network : bool
        With the host's network; else a loopback of its own and nothing beyond it.
    """

    def __init__(self, root: Path, folder: Path, stage: Path, network: bool = False):
        with socket.socket() as probe:  # with a network, the port is the host's
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._root = folder / "root"
        spark = Path(pyspark.__file__).parents[1]
        server = [Path(sys.executable).with_name("moto_server"), "-H127.0.0.1", f"-p{port}"]
        self._process = subprocess.Popen(
            # Should pytest be killed, so is unshare; should unshare be, so is all inside.
            ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
            + ([] if network else ["--net"])
            + ["bash", NODE_SH, root, folder, stage, spark, *server],
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Node":
        try:
            assert self._process.stdout.readline() == "up\n"
            self.check(
                "curl --silent --retry 60 --retry-delay 1 --retry-connrefused $URL/moto-api/"
            )
            self.check(f"aws s3 mb {STAGE.rsplit('/', 1)[0]}")
            self.check(f"aws s3 cp --recursive --only-show-errors /mnt/stage {STAGE}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def enter(self, script: str, user: str = "hadoop", **environment: str) -> list[str]:
        """Return the command that runs a script in this node."""
        pid = self._process.pid
        known = {
            "PATH": PATH,
            "HOME": f"/home/{user}",
            "URL": self.url,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "eu-west-1",
            **environment,
        }
        return [
            # unshare itself stays outside the process namespace that it made for node.sh.
            *("nsenter", f"--target={pid}", "--mount", "--net"),
            f"--pid=/proc/{pid}/ns/pid_for_children",
            *("chroot", str(self._root), "/usr/bin/env", "--ignore-environment"),
            *(f"{name}={value}" for name, value in known.items()),
            *("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"),
            *("bash", "-c", f"cd /; {script}"),
        ]

    def run(self, script: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.enter(script, **options), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )

    def check(self, script: str, **options) -> str:
        """Run a script that has to succeed; return its output."""
        answer = self.run(script, **options)
        assert answer.returncode == 0, f"{script}: {answer.stdout}{answer.stderr}"
        return answer.stdout

    def bootstrap(self, arguments: str = "", **options) -> subprocess.CompletedProcess:
        # Whatever the umask, all users have to read what comes of it.
        script = f"umask 077; bash /mnt/stage/bootstrap.sh --stage {STAGE} {arguments}"
        answer = self.run(script, **options)
        print(f"{answer.stdout}{answer.stderr}")  # pytest shows it, of a test that fails
        return answer

    def mount_small_disk(self, folder: str, size: str) -> None:
        subprocess.run(
            ["nsenter", f"--target={self._process.pid}", "--mount"]
            + ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", f"{self._root}{folder}"],
            check=True,
        )


def kill_all(process: subprocess.Popen) -> None:
    """End a process and all that it started, at once, as a power cut does."""
    started = psutil.Process(process.pid).children(recursive=True)
    for one in [*started, process]:
        one.kill()
    process.wait()
    assert not psutil.wait_procs(started, timeout=30)[1]


def prepare(root: Path, aws_wheels: Path) -> None:
    """Make an unpacked Debian a machine of Amazon's: user hadoop, aws command, dnf."""
    shutil.copytree(aws_wheels, root / "mnt/aws")
    # --copies: works while a test hides /usr/bin/python3.11
    install = (
        "python3.11 -m venv --copies /opt/aws; "
        "/opt/aws/bin/pip install --quiet --no-index --find-links /mnt/aws awscli; "
        "ln -s /opt/aws/bin/aws /usr/bin/aws; "
        "for user in hadoop yarn; do useradd --create-home --user-group $user; done; "
        "install -m 666 /dev/null /var/log/dnf.log"
    )
    subprocess.run(
        ["chroot", str(root), "env", "-i", f"PATH={PATH}", "bash", "-euc", install], check=True
    )
    (root / "etc/sudoers.d/hadoop").write_text("hadoop ALL=(ALL) NOPASSWD:ALL\n")
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")
    dnf = root / "usr/bin/dnf"  # writes down what it was asked, and gives back a hidden Python
    dnf.write_text(
        '#!/bin/sh\necho "$@" >>/var/log/dnf.log\nmv /opt/hidden/python3.11 /usr/bin/python3.11\n'
    )
    dnf.chmod(0o755)
    # The way to the package index is the host's.
    names = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    for path in {"/etc/resolv.conf", "/etc/pip.conf", *(os.environ.get(name) for name in names)}:
        if path and Path(path).is_file():
            copy = Path(f"{root}{path}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
