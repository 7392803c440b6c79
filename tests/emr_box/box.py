"""EMR in a box: HDFS, YARN, Livy, S3, JupyterHub and sshd on one machine, in namespaces."""

import contextlib
import functools
import json
import platform
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import hub
import pyspark
import settings
from machine import Machine, kill_all
from parts import Parts
from servers import KEY, REGION, Bucket, await_port, client, free_port
from services import HDFS_SHELL, SERVICES

from fruits_lib.emr import request, staging, wheelhouse
from fruits_lib.emr.prices import instance_type
from fruits_lib.emr.spec import ClusterSpec
from fruits_lib.session import LIVY_PORT

BUCKET = "fruits"
CLUSTER = ClusterSpec(f"s3://{BUCKET}/stage")  # two core nodes m5.xlarge, as `fruits emr create`
ROLE = KEY | {  # in place of an EC2 instance's
    "AWS_ENDPOINT_URL": f"http://{settings.PRIMARY}:{settings.S3_PORT}",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
}
ENVIRONMENT = ROLE | {
    "JAVA_HOME": "/usr/lib/jvm/java",
    "HADOOP_CONF_DIR": "/etc/hadoop/conf",
    "SPARK_HOME": "/usr/lib/spark",
    "SPARK_SUBMIT_OPTS": settings.QUICK_JVM,
    "LIVY_CONF_DIR": "/etc/livy/conf",
    "LIVY_LOG_DIR": "/var/log/livy",
    "LANG": "C.UTF-8",
}
PASSWORDS = {"jovyan": "one-of-the-box", "amina": "another-of-the-box"}
# Where EMR has Spark; pip's has the same files elsewhere, and no connector.
LAYOUT = """
ln -s "$(dirname "$(dirname "$(readlink -f /usr/bin/java)")")" /usr/lib/jvm/java
mkdir -p /usr/lib/spark/jars /usr/lib/spark/python /mnt/tmp
ln -s /mnt/pyspark/jars/*.jar /mnt/s3a/*.jar /usr/lib/spark/jars/
ln -s /mnt/pyspark/bin /mnt/pyspark/sbin /usr/lib/spark/
ln -s /mnt/pyspark/python/lib /usr/lib/spark/python/lib
ln -s /mnt/pyspark /usr/lib/spark/python/pyspark
ln -s /etc/spark/conf /usr/lib/spark/conf
for name in hdfs datanode secondary static; do
  install -D /dev/stdin /usr/lib/hadoop/webapps/$name/WEB-INF/web.xml <<<'<web-app/>'
done
install -d -o hadoop /mnt/namenode /mnt/hdfs
install -d -o livy /var/log/livy
install -d -o yarn /mnt/yarn /var/log/yarn
chmod 1777 /mnt/tmp
echo "127.0.0.1 $(hostname)" >>/etc/hosts
"""


class Box(Machine):
    """The box, in a `with` block.

    Parameters
    ----------
    parts : Parts
    folder : pathlib.Path
        Empty folder to work in; logs stay there.
    backbone : pathlib.Path, optional
        `.tflite` file to stage; else ImageNet's is exported, where it is to be had.
    """

    def __init__(self, parts: Parts, folder: Path, backbone: Path | None = None):
        self.parts, self.folder, self.backbone = parts, folder, backbone
        for name in ("logs", "mount", "objects"):
            (folder / name).mkdir()
        self._ports = {
            port: free_port() for port in (settings.S3_PORT, LIVY_PORT, settings.YARN_PORT)
        }
        self._services: dict[str, subprocess.Popen] = {}
        super().__init__(
            parts.root,
            folder / "mount",
            ["sleep", "infinity"],
            {
                "/mnt/pyspark": Path(pyspark.__file__).parent,
                "/mnt/hadoop": parts.hadoop,
                "/mnt/s3a": parts.s3a,
                "/mnt/bootstrap.sh": staging.CHECKOUT / "bootstrap.sh",
                settings.LIVY: parts.livy,
                hub.HOME: parts.hub,
            },
            ENVIRONMENT,
        )

    # --- start ------------------------------------------------------------------------------------

    def set_up(self) -> None:
        self._write_files()
        self._open_ssh()
        self.start_s3()
        for name in ("namenode", "datanode", "resourcemanager", *settings.CORE):
            self.start(name)
        self._stage()
        self.check(f"bash /mnt/bootstrap.sh --stage {CLUSTER.stage}")
        self.wait("HDFS", lambda: self._listens("namenode") and self._listens("datanode"))
        self.start("livy")
        self.wait("YARN", lambda: self.yarn("cluster/metrics")["activeNodes"] == 2)
        self.check(f"{HDFS_SHELL} -mkdir -p {settings.EVENTS}")
        self.start("history")
        self.start("hub")
        self.wait("Livy", lambda: self._listens("livy"))
        self.check(hub.HUB_ANSWERS)

    def _write_files(self) -> None:
        configurations = request.load_configurations(CLUSTER)
        merged = settings.merge(configurations, instance_type(CLUSTER.core).yarn_mb)
        jars = {
            f"livy.{kind}.jars": [
                f"{settings.LIVY}/{folder}/{jar.name}"
                for jar in sorted((self.parts.livy / folder).glob("*.jar"))
                if not jar.name.startswith("netty-")  # Spark brings it
            ]
            for kind, folder in {"rsc": "rsc-jars", "repl": "repl_2.12-jars"}.items()
        }
        texts = settings.write(merged, jars, ROLE)
        values = merged["jupyter-sparkmagic-conf"].items()
        sparkmagic = {key: settings.unquoted(value) for key, value in values}
        texts |= hub.files(BUCKET, ROLE["AWS_ENDPOINT_URL"], ROLE, sparkmagic, list(PASSWORDS))
        # Whoever comes in by ssh finds what EMR gives to hadoop.
        variables = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
        texts["/etc/ssh/box_config"] += f"SetEnv {variables}\n"
        for place, text in texts.items():
            self.put(place, text)
        self.check(LAYOUT, user="root")

    def _open_ssh(self) -> None:
        """Let hadoop in by ssh, with a key, and forward what the tests look at."""
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        public = Path(f"{self.key}.pub").read_text()
        self.check(hub.accounts(PASSWORDS, public), user="root")
        host_key, sshd = self.check(hub.HOST_KEY), self.enter(hub.SSHD, user="root")
        self.ssh_config = hub.write_ssh_config(self.folder, host_key, sshd)
        command = ["ssh", "-F", self.ssh_config, "-i", self.key, "-N"]
        command += ["-o", "ExitOnForwardFailure=yes"]
        for remote, local in self._ports.items():
            command += ["-L", f"127.0.0.1:{local}:{settings.PRIMARY}:{remote}"]
        self._spawn("ssh", [*command, "hadoop@box"])
        await_port(self._ports[settings.S3_PORT], self._services["ssh"])

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    def _stage(self) -> None:
        """Write to the bucket what `fruits emr create` and `fruits emr wheelhouse` do."""
        s3, arch = self.bucket.client, platform.machine()
        self.wait("S3", lambda: s3.list_buckets())
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        staging.stage(s3, CLUSTER, wheelhouse.build_wheel(self.folder), self.backbone)
        wheelhouse.upload(s3, sorted(self.parts.wheels.iterdir()), CLUSTER.stage, arch)

    # --- services ---------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start a service, or start it again."""
        self._spawn(name, self.enter(SERVICES[name].script, user=SERVICES[name].user))

    def start_s3(self) -> None:
        """Start the bucket's server; what it held before is there again."""
        address = f"{settings.ADDRESSES[settings.PRIMARY]}:{settings.S3_PORT}"
        variables = {
            "MINIO_ROOT_USER": KEY["AWS_ACCESS_KEY_ID"],
            "MINIO_ROOT_PASSWORD": KEY["AWS_SECRET_ACCESS_KEY"],
            "MINIO_SITE_REGION": REGION,
        }
        command = [*self.namespaces, "env", *(f"{key}={value}" for key, value in variables.items())]
        command += [self.parts.minio, "server", "--quiet", "--address", address]
        self._spawn(
            "s3", [*command, "--console-address", "127.0.0.1:9001", self.folder / "objects"]
        )

    def kill(self, name: str) -> None:
        """End a service and all that it started at once, as a power cut does."""
        kill_all(self._services.pop(name))

    def _spawn(self, name: str, command: list) -> None:
        with open(self.folder / f"logs/{name}.log", "a") as log:
            self._services[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __exit__(self, *_) -> None:
        super().__exit__()
        for process in self._services.values():
            process.kill()
            process.wait()

    def _listens(self, name: str) -> bool:
        """Whether a service accepts connections; asked inside, for ssh accepts for all."""
        it = SERVICES[name]
        return self.run(f"exec 3<>/dev/tcp/{it.host}/{it.port}").returncode == 0

    def wait(self, what: str, condition: Callable[[], object], seconds: float = 240) -> None:
        """Wait until something is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                if condition():
                    return
            time.sleep(0.3)
        raise AssertionError(f"{what}: not so after {seconds} seconds, see {self.folder}/logs")

    # --- what is in it ----------------------------------------------------------------------------

    @functools.cached_property
    def bucket(self) -> Bucket:
        """The one bucket, seen from the host."""
        return Bucket(BUCKET, client(f"http://127.0.0.1:{self._ports[settings.S3_PORT]}"))

    def yarn(self, path: str) -> dict:
        """Return an answer of the ResourceManager, such as `cluster/apps`, without its wrapper."""
        (answer,) = self._ask(settings.YARN_PORT, f"ws/v1/{path}").values()
        return answer or {}

    def applications(self, *states: str) -> list[dict]:
        """Return YARN's applications in some states."""
        return self.yarn(f"cluster/apps?states={','.join(states)}").get("app", [])

    def livy(self, path: str, method: str = "GET", **body) -> dict:
        """Return an answer of Livy, such as `sessions`."""
        return self._ask(LIVY_PORT, path, method, **body)

    def _ask(self, port: int, path: str, method: str = "GET", **body) -> dict:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._ports[port]}/{path}",
            json.dumps(body).encode() if body else None,
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)
