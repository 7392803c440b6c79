"""Machines of a cluster on this one: a Debian root in namespaces, a loopback of its own."""

import contextlib
import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
from servers import need

from fruits_lib.emr.staging import NODE_LOCK, build_wheelhouse
from fruits_lib.errors import FruitsError

MACHINE_SH = Path(__file__).with_name("machine.sh")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = ("unshare", "nsenter", "setpriv", "chroot", "mount", "ip", "tar")
ROOT_TAR = "machine-root-bookworm-1.tar"  # another recipe, another number
PACKAGES = (
    *("python3.11", "python3-venv", "python3-pip", "sudo", "ca-certificates", "curl", "procps"),
    *("openjdk-17-jre-headless", "openssh-server", "nodejs"),  # of tests/emr_box
)
RECIPE = [
    *("mmdebstrap", "--mode=root", "--variant=apt", "--format=tar"),
    *(f"--include={','.join(PACKAGES)}", "bookworm"),
]
USERS = ("hadoop", "yarn", "livy", "jovyan", "amina")
AWSCLI = "awscli==1.46.2"


class Machine:
    """One machine. Use it in a `with` block: no process and no mount outlives that.

    Parameters
    ----------
    root : pathlib.Path
        Unpacked root, which stays as it is.
    folder : pathlib.Path
        Empty folder to mount on.
    server : list of str
        Command that runs as long as the machine does, seen from the host's root.
    binds : dict of str to pathlib.Path
        Files and folders of the host, seen read-only, by their place in the machine.
    environment : dict of str to str
        Of whatever runs there.
    network : bool
        With the host's network; else a loopback of its own and nothing beyond it.
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        server: list[str],
        binds: dict[str, Path],
        environment: dict[str, str],
        network: bool = False,
    ):
        self.root = folder / "root"
        self._folder = folder
        self._environment = environment
        self._process = subprocess.Popen(
            # Should pytest be killed, so is unshare; should unshare be, so is all inside.
            ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
            + ([] if network else ["--net"])
            + ["bash", MACHINE_SH, root, folder]
            + [f"{source}:{target}" for target, source in binds.items()]
            + ["--", *server],
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        try:
            assert self._process.stdout.readline() == "up\n"
            self.set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def set_up(self) -> None:
        """Do what has to be done before it is of use."""

    @property
    def namespaces(self) -> list[str]:
        """The command that runs another in the namespaces of this machine, at the host's root."""
        pid = self._process.pid
        # unshare itself stays outside the process namespace that it made for machine.sh.
        return ["nsenter", f"--target={pid}", "--mount", "--net"] + [
            f"--pid=/proc/{pid}/ns/pid_for_children"
        ]

    def enter(self, script: str, user: str = "hadoop", **environment: str) -> list[str]:
        """Return the command that runs a script in this machine."""
        known = {"PATH": PATH, "HOME": f"/home/{user}", **self._environment, **environment}
        return [
            *self.namespaces,
            *("chroot", str(self.root), "/usr/bin/env", "--ignore-environment"),
            *(f"{name}={value}" for name, value in known.items()),
            *("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"),
            *("bash", "-c", f"cd /; {script}"),
        ]

    def run(self, script: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.enter(script, **options), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )

    def put(self, place: str, text: str, mode: str = "644") -> None:
        """Write a file of root's; its folder need not be there."""
        script = f"install -D -m {mode} /dev/stdin {place}"
        subprocess.run(self.enter(script, user="root"), input=text, text=True, check=True)

    def check(self, script: str, **options) -> str:
        """Run a script that has to succeed; return its output."""
        answer = self.run(script, **options)
        assert answer.returncode == 0, f"{script}: {answer.stdout}{answer.stderr}"
        return answer.stdout


def kill_all(process: subprocess.Popen) -> None:
    """End a process and all that it started, at once, as a power cut does."""
    started = psutil.Process(process.pid).children(recursive=True)
    for one in [*started, process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    assert not psutil.wait_procs(started, timeout=30)[1]


def kept(target: Path, make) -> Path:
    """Return `target`; what an interrupted `make(path)` leaves does not pass for it."""
    if not target.exists():
        begun = target.with_name(f"{target.name}.{os.getpid()}")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            make(begun)
            begun.rename(target)
        finally:
            shutil.rmtree(begun, ignore_errors=True)
            begun.unlink(missing_ok=True)
    return target


def node_wheels(cache: Path) -> Path:
    """Return the wheelhouse of this machine's architecture, as `fruits emr create` stages it."""
    arch, lock = platform.machine(), hashlib.sha256(NODE_LOCK.read_bytes()).hexdigest()[:12]
    try:
        return kept(cache / f"node-wheels-{arch}-{lock}", lambda path: build_wheelhouse(path, arch))
    except FruitsError as error:
        need(False, f"no wheelhouse: {error}")


def unpack_root(cache: Path, folder: Path) -> None:
    """Make an empty folder the root of a fresh machine of Amazon's; what it takes is kept."""
    need(sys.platform == "linux" and os.geteuid() == 0, "a fresh root needs Linux and root: sudo")
    absent = [tool for tool in TOOLS if not shutil.which(tool)]
    need(not absent, f"{', '.join(absent)} missing: install util-linux, iproute2 and tar")
    tar = kept(cache / ROOT_TAR, _build_root)
    wheels = kept(cache / AWSCLI.replace("==", "-"), _download_awscli)
    subprocess.run(["tar", "--extract", f"--file={tar}", f"--directory={folder}"], check=True)
    _prepare(folder, wheels)


def _build_root(target: Path) -> None:
    install_debian("mmdebstrap")
    subprocess.run([*RECIPE, target], check=True)


def install_debian(command: str) -> None:
    """Install the package of Debian that is called as its command, unless the command is there."""
    if not shutil.which(command):
        need(
            bool(shutil.which("apt-get")) and os.geteuid() == 0,
            f"{command} is missing, and apt-get or root too: install {command}",
        )
        subprocess.run(["apt-get", "update", "--quiet"], check=True)
        subprocess.run(["apt-get", "install", "--yes", "--quiet", command], check=True)


def _download_awscli(target: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    done = subprocess.run([*pip, f"--dest={target}", AWSCLI]).returncode == 0
    need(done, f"{AWSCLI} cannot be downloaded: a package index is needed once")


def _prepare(root: Path, aws_wheels: Path) -> None:
    """Make an unpacked Debian a machine of Amazon's: user hadoop, aws command, dnf."""
    shutil.copytree(aws_wheels, root / "mnt/aws")
    # --copies: works while a test hides /usr/bin/python3.11
    install = (
        "python3.11 -m venv --copies /opt/aws; "
        "/opt/aws/bin/pip install --quiet --no-index --find-links /mnt/aws awscli; "
        "ln -s /opt/aws/bin/aws /usr/bin/aws; "
        f"for user in {' '.join(USERS)}; do useradd --create-home --user-group $user; done; "
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
