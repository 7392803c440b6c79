"""JupyterHub of the box, and sshd.

EMR runs the same programs in a container; here they are in `/opt/jupyterhub`, with their settings
where EMR keeps them, in `/etc/jupyter`.
"""

import hashlib
import json
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import settings
from machine import kept

from fruits_lib.errors import FruitsError

HERE = Path(__file__).parent
LOCKS = [HERE / name for name in ("hub.lock", "package.json", "package-lock.json")]
HOME = "/opt/jupyterhub"  # in the box; an environment works only where it was made
URL = f"https://127.0.0.1:{settings.HUB_PORT}"

# EMR's hub, 1.5.0, opens the classic notebook page, and so does this one: people go to Lab by its
# address, /user/NAME/lab.
HUB_CONFIG = """\
c = get_config()
c.JupyterHub.bind_url = "{url}"
c.JupyterHub.ssl_key = "hub.key"
c.JupyterHub.ssl_cert = "hub.crt"
c.JupyterHub.authenticator_class = "pam"
c.PAMAuthenticator.open_sessions = False  # there is no logind here
c.Authenticator.allowed_users = {users}
c.Authenticator.admin_users = {{"jovyan"}}
c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"
c.Spawner.cmd = "{home}/bin/jupyterhub-singleuser"
c.Spawner.ip = "127.0.0.1"
c.Spawner.default_url = "/tree"
c.Spawner.start_timeout = c.Spawner.http_timeout = 300  # the box shares its cores with Spark
c.Spawner.environment = {environment}
c.ConfigurableHTTPProxy.command = [
    "/usr/bin/node", "{home}/node_modules/configurable-http-proxy/bin/configurable-http-proxy"
]
"""

# Each user's server has its notebooks in the bucket, as EMR's jupyter-s3-conf does it.
SERVER_CONFIG = """\
import os

c = get_config()
c.ServerApp.contents_manager_class = "s3contents.S3ContentsManager"
c.S3ContentsManager.bucket = "{bucket}"
c.S3ContentsManager.prefix = "jupyter/" + os.environ["JUPYTERHUB_USER"]
c.S3ContentsManager.endpoint_url = "{endpoint}"
"""

# The hub's database outlives it: a restarted hub knows who is logged in.
START_HUB = f"""\
mkdir --parents /srv/jupyterhub
cd /srv/jupyterhub
test -f hub.crt || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 30 \
  -subj /CN=jupyterhub -addext subjectAltName=IP:127.0.0.1 -keyout hub.key -out hub.crt
exec {HOME}/bin/jupyterhub --config /etc/jupyter/conf/jupyterhub_config.py \
  --pid-file /run/jupyterhub.pid
"""
# The proxy answers before the hub does, with errors.
HUB_ANSWERS = (
    "curl --silent --insecure --fail --output /dev/null --retry 120 --retry-delay 1 "
    f"--retry-all-errors {URL}/hub/health"
)

SSHD_CONFIG = """\
HostKey /etc/ssh/box_host_key
AllowUsers hadoop
AuthenticationMethods publickey
UsePAM no
AllowTcpForwarding local
LogLevel ERROR
"""
# One sshd per connection, on its standard input and output: it has no port.
SSHD = "exec /usr/sbin/sshd -i -f /etc/ssh/box_config"
HOST_KEY = "cat /etc/ssh/box_host_key.pub"


def environment(root: Path, cache: Path) -> Path:
    """Return the folder to mount at `HOME`: the hub, its proxy and its kernels.

    The Python of `root` builds it once, from wheels and packages that this machine fetches; what
    cannot be fetched or built raises FruitsError.
    """
    Path(f"{root}{HOME}").mkdir(parents=True, exist_ok=True)
    recipe = [INSTALL.encode(), *(path.read_bytes() for path in LOCKS)]
    digest = hashlib.sha256(b"".join(recipe)).hexdigest()[:12]
    target = cache / f"jupyterhub-{platform.machine()}-{digest}"
    return kept(target, lambda begun: _build(root, begun))


INSTALL = f"""\
cd {HOME}
python3.11 -m venv .
bin/pip install --quiet --no-cache-dir --no-index --find-links wheels --require-hashes --no-deps \
  --requirement hub.lock
rm -r wheels
bin/jupyter-kernelspec install --sys-prefix \\
  lib/python3.11/site-packages/sparkmagic/kernels/pysparkkernel
# No question about news, which there are none without a network.
bin/jupyter-labextension disable --level=sys_prefix @jupyterlab/apputils-extension:announcements
"""


def _build(root: Path, begun: Path) -> None:
    begun.mkdir(mode=0o755)
    for path in LOCKS:
        shutil.copy(path, begun)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps"]
    pip += ["--only-binary=:all:", f"--dest={begun}/wheels", f"--requirement={LOCKS[0]}"]
    _must("pip", pip, "a package index is needed once")
    npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
    _must("npm", npm, "npm and its registry are needed once", cwd=begun)
    script = (
        f'mount --bind "$0" "$1{HOME}"; exec chroot "$1" env --ignore-environment '
        f"PATH=/usr/sbin:/usr/bin:/sbin:/bin bash -euc {shlex.quote(INSTALL)}"
    )
    enter = ["unshare", "--mount", "bash", "-euc", script, str(begun), str(root)]
    _must("venv", enter, "the root has to have Debian's python3-venv")


def _must(what: str, command: list[str], way_out: str, **options) -> None:
    try:
        made = subprocess.run(command, capture_output=True, text=True, **options)
        code, said = made.returncode, made.stderr.strip()
    except FileNotFoundError as error:
        code, said = 1, str(error)
    if code:
        lines = [line for line in said.splitlines() if "error" in line.lower()] or [said]
        raise FruitsError(f"no JupyterHub for the box: {what}: {lines[0]}: {way_out}")


def files(bucket: str, role: dict[str, str], sparkmagic: dict, users: list[str]) -> dict[str, str]:
    """Return the settings of the hub, of its kernels and of sshd, by their path in the box.

    Parameters
    ----------
    bucket : str
        Holds each user's notebooks, under `jupyter/USER/`.
    role : dict of str to str
        Environment of the users' servers, in place of an EC2 instance's role.
    sparkmagic : dict
        Content of its `config.json`.
    users : list of str
        May log in.
    """
    endpoint = role["AWS_ENDPOINT_URL"]
    kernel = json.dumps(sparkmagic, indent=2)
    return {
        "/etc/jupyter/conf/jupyterhub_config.py": HUB_CONFIG.format(
            url=URL, home=HOME, users=set(users), environment=role
        ),
        "/etc/jupyter/jupyter_server_config.py": SERVER_CONFIG.format(
            bucket=bucket, endpoint=endpoint
        ),
        **{f"/home/{user}/.sparkmagic/config.json": kernel for user in users},
        "/etc/ssh/box_config": SSHD_CONFIG,
    }


def accounts(passwords: dict[str, str], public_key: str) -> str:
    """Return the script that opens the hub's accounts, and hadoop's to one SSH key."""
    lines = [f"{user}:{password}" for user, password in passwords.items()]
    return f"""\
set -eu
printf '%s\\n' {shlex.join(lines)} | chpasswd
for user in {shlex.join(passwords)}; do chown --recursive $user: /home/$user/.sparkmagic; done
# Debian's own host key is the same for everyone who unpacks this root.
mkdir --parents /run/sshd
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/box_host_key
# No password. The `!` that useradd writes would lock the account for keys too.
usermod --password '*' hadoop
install --directory --owner=hadoop --mode=700 /home/hadoop/.ssh
echo {shlex.quote(public_key.strip())} >/home/hadoop/.ssh/authorized_keys
chown hadoop: /home/hadoop/.ssh/authorized_keys
"""


def write_ssh_config(folder: Path, host_key: str, enter: list[str]) -> Path:
    """Write the configuration with which `ssh -F` reaches the box under any address.

    `enter` is the command that runs `SSHD` in the box as root.
    """
    (folder / "known_hosts").write_text(f"box {host_key}")
    config = folder / "ssh_config"
    config.write_text(
        "Host *\n"
        f"  ProxyCommand {shlex.join(enter).replace('%', '%%')}\n"  # % begins one of ssh's names
        "  HostKeyAlias box\n"
        f'  UserKnownHostsFile "{folder}/known_hosts"\n'
        "  StrictHostKeyChecking yes\n"
        "  IdentitiesOnly yes\n"
    )
    return config
