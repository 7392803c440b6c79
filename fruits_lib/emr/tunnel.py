"""An SSH tunnel from this machine to a cluster's web pages."""

import shutil
import socket
import subprocess
from pathlib import Path

from fruits_lib.emr.cluster import Cluster
from fruits_lib.errors import FruitsError

HUB, HISTORY = 9443, 18080  # ports of JupyterHub and of Spark's history server, on EMR


def key_file(it: Cluster) -> Path:
    """Return where the private half of a cluster's key pair usually lies.

    Raises
    ------
    FruitsError
        If the cluster has no key pair.
    """
    if not it.key_name:
        raise FruitsError(
            f"{it.id} has no SSH key: a tunnel needs a cluster created with --key-name"
        )
    return Path.home() / ".ssh" / f"{it.key_name}.pem"


def ssh_command(
    it: Cluster, key: Path, hub_port: int = HUB, history_port: int = HISTORY
) -> list[str]:
    """Return the command that opens a tunnel, from these ports of this machine."""
    command = ["ssh", "-i", str(key), "-N", "-o", "ExitOnForwardFailure=yes"]
    # Without one, a router forgets a tunnel over which nothing goes.
    command += ["-o", "ServerAliveInterval=60"]
    for local, remote in ((hub_port, HUB), (history_port, HISTORY)):
        command += ["-L", f"127.0.0.1:{local}:{it.address}:{remote}"]
    return [*command, f"hadoop@{it.address}"]


def check(key: Path, ports: dict[str, int]) -> None:
    """Check that this machine can open a tunnel.

    Parameters
    ----------
    key : pathlib.Path
    ports : dict of str to int
        Ports of this machine by the option that names them.

    Raises
    ------
    FruitsError
        If the key or ssh is missing, or a port is taken.
    """
    if not key.is_file():
        raise FruitsError(f"{key} is no file: give the key pair's private half by --key")
    if not shutil.which("ssh"):
        raise FruitsError("ssh is not installed: install OpenSSH's client")
    for option, port in ports.items():
        _check_port(option, port)


def run(command: list[str]) -> None:
    """Run ssh until Ctrl-C.

    Raises
    ------
    FruitsError
        If it ends by itself, with a failure.
    """
    try:
        code = subprocess.run(command).returncode
    except KeyboardInterrupt:
        return
    if code:
        raise FruitsError(
            f"ssh ended with {code}: does the primary node's security group let your address in on "
            "port 22 (--ssh-group), and is the key the cluster's?"
        )


def _check_port(option: str, port: int) -> None:
    with socket.socket() as probe:
        # As ssh does: a port that a closed tunnel has just left is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise FruitsError(
                f"port {port} of this machine is not to be had ({error.strerror}): close what uses "
                f"it, such as another tunnel, or give another {option}"
            ) from None
