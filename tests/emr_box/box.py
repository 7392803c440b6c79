"""EMR in a box: HDFS, YARN, Livy, S3, JupyterHub and sshd on one machine, in namespaces."""

import contextlib
import functools
import json
import os
import shlex
import subprocess
import sys
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

from fruits_lib.emr.prices import instance_type
from fruits_lib.emr.spec import ClusterSpec, build_request
from fruits_lib.session import LIVY_PORT

BUCKET = "fruits"
CLUSTER = ClusterSpec(f"s3://{BUCKET}/stage", region=REGION)  # with two core nodes m5.xlarge
REQUEST = build_request(CLUSTER)
FRUITS = Path(sys.executable).with_name("fruits")
# In place of an EC2 instance's role and of S3's own address. No region: EMR gives a node none.
ROLE = KEY | {"AWS_ENDPOINT_URL": f"http://{settings.PRIMARY}:{settings.S3_PORT}"}
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
# Puts Spark where EMR has it; pip's has the same files elsewhere, and no S3A connector.
LAYOUT = """
ln -s "$(dirname "$(dirname "$(readlink -f /usr/bin/java)")")" /usr/lib/jvm/java
mkdir -p /usr/lib/spark/jars /usr/lib/spark/python /mnt/tmp
ln -s /mnt/pyspark/jars/*.jar /mnt/s3a/*.jar /usr/lib/spark/jars/
ln -s /mnt/pyspark/bin /mnt/pyspark/sbin /usr/lib/spark/
ln -s /usr/lib/spark/bin/spark-submit /usr/bin/
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
        `.tflite` file to stage; without it ImageNet's is exported, if Keras can get the weights.
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
                "/mnt/bootstrap.sh": Path(__file__).parents[2] / "bootstrap.sh",
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
        bootstrap = REQUEST["BootstrapActions"][0]["ScriptBootstrapAction"]
        self.check(shlex.join(["bash", "/mnt/bootstrap.sh", *bootstrap["Args"]]))
        self.wait("HDFS", lambda: self._listens("namenode") and self._listens("datanode"))
        self.start("livy")
        self.wait("YARN", lambda: self.yarn("cluster/metrics")["activeNodes"] == 2)
        self.check(f"{HDFS_SHELL} -mkdir -p {settings.EVENTS}")
        self.start("history")
        self.start("hub")
        self.wait("Livy", lambda: self._listens("livy"))
        self.check(hub.HUB_ANSWERS)

    def _write_files(self) -> None:
        node_mb = instance_type(CLUSTER.core).yarn_mb
        merged = settings.merge(REQUEST["Configurations"], node_mb)
        # Without /sys, joblib cannot count cores here, and would say so in the middle of a cell.
        cores = {"LOKY_MAX_CPU_COUNT": "1"}
        texts = settings.write(merged, self.parts.livy, ROLE | cores)
        values = merged["jupyter-sparkmagic-conf"].items()
        sparkmagic = {key: settings.unquoted(value) for key, value in values}
        texts |= hub.files(BUCKET, ROLE, sparkmagic, list(PASSWORDS))
        # A login by ssh finds what EMR gives to hadoop.
        variables = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
        texts["/etc/ssh/box_config"] += f"SetEnv {variables}\n"
        for path, text in texts.items():
            self.put(path, text)
        self.check(LAYOUT, user="root")

    def _open_ssh(self) -> None:
        """Let hadoop log in by ssh with a key, and forward the ports that tests read."""
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
        """Make the bucket, and fill the stage by `fruits emr stage`, from wheels fetched before."""
        s3 = self.bucket.client
        self.wait("S3", lambda: s3.list_buckets())
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        command = [FRUITS, "emr", "stage", "--stage", CLUSTER.stage, "--region", REGION]
        command += ["--weights", self.backbone] if self.backbone else []
        endpoint = {"AWS_ENDPOINT_URL": s3.meta.endpoint_url}
        wheels = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.parts.wheels)}
        subprocess.run(command, env=os.environ | KEY | endpoint | wheels, check=True)

    # --- services ---------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start a service, or start it again."""
        self._spawn(name, self.enter(SERVICES[name].script, user=SERVICES[name].user))

    def start_s3(self) -> None:
        """Start the S3 server, with the objects that it held before."""
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
        """Kill a service and all that it started at once, as a power cut does."""
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
        """Say whether a service accepts connections, asked inside: ssh's forward always does."""
        service = SERVICES[name]
        return self.run(f"exec 3<>/dev/tcp/{service.host}/{service.port}").returncode == 0

    def wait(self, what: str, condition: Callable[[], object], seconds: float = 240) -> None:
        """Wait until a condition holds; one that raises does not hold yet."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                if condition():
                    return
            time.sleep(0.3)
        raise AssertionError(f"waited {seconds} s for {what}: see {self.folder}/logs")

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
