"""The files that EMR writes on a node: its own settings, and those of emr-config.json."""

import json
from pathlib import Path
from xml.sax.saxutils import escape

from fruits_lib.session import LIVY_PORT

PRIMARY, CORE = "primary", ("core-1", "core-2")  # names of the one loopback's addresses
ADDRESSES = {PRIMARY: "127.0.0.1", "core-1": "127.0.0.11", "core-2": "127.0.0.12"}
S3_PORT, YARN_PORT, HISTORY_PORT, HUB_PORT = 9000, 8088, 18080, 9443
EVENTS = f"hdfs://{PRIMARY}:8020/var/log/spark/apps"
# Every JVM runs for minutes only: compile quickly rather than well.
QUICK_JVM = "-XX:TieredStopAtLevel=1"
LIVY = "/usr/lib/livy"

# What EMR sets before it applies a request's configurations, as far as the box needs it, with the
# box's own addresses. EMR's external shuffle service is left out: Spark keeps executors that hold
# shuffle files instead.
DEFAULTS = {
    "core-site": {
        "fs.defaultFS": f"hdfs://{PRIMARY}:8020",
        "hadoop.tmp.dir": "/mnt/tmp/${user.name}",
        "hadoop.proxyuser.livy.hosts": "*",
        "hadoop.proxyuser.livy.groups": "*",
        # EMR's S3A, of a later Hadoop, needs none of these: it has the role and the region.
        "fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
        "fs.s3a.endpoint": f"http://{PRIMARY}:{S3_PORT}",
        "fs.s3a.endpoint.region": "eu-west-1",
        "fs.s3a.path.style.access": "true",
        "fs.s3a.connection.ssl.enabled": "false",
        "fs.s3a.aws.credentials.provider": (
            "com.amazonaws.auth.EnvironmentVariableCredentialsProvider"
        ),
    },
    "hdfs-site": {
        "dfs.replication": "1",
        "dfs.permissions.enabled": "false",
        "dfs.namenode.name.dir": "file:///mnt/namenode",
        "dfs.datanode.data.dir": "file:///mnt/hdfs",
        "dfs.namenode.datanode.registration.ip-hostname-check": "false",
        "dfs.safemode.extension": "0",
        **{
            f"dfs.{name}": f"{PRIMARY}:{port}"
            for name, port in {
                "namenode.http-address": 9870,
                "datanode.address": 9866,
                "datanode.http.address": 9864,
                "datanode.ipc.address": 9867,
            }.items()
        },
    },
    "yarn-site": {
        "yarn.resourcemanager.hostname": PRIMARY,
        "yarn.nodemanager.hostname": "${node}",  # a property of each NodeManager's JVM
        "yarn.nodemanager.address": "${node}:8041",
        "yarn.nodemanager.localizer.address": "${node}:8040",
        "yarn.nodemanager.collector-service.address": "${node}:8048",
        "yarn.nodemanager.webapp.address": "${node}:8042",
        "yarn.nodemanager.local-dirs": "/mnt/yarn/${node}",
        "yarn.nodemanager.log-dirs": "/var/log/yarn/${node}",
        "yarn.nodemanager.disk-health-checker.max-disk-utilization-per-disk-percentage": "99",
        "yarn.nodemanager.env-whitelist": "JAVA_HOME,HADOOP_CONF_DIR,SPARK_HOME,PATH,LANG,TZ",
        "yarn.nodemanager.resource.cpu-vcores": "4",
        "yarn.scheduler.minimum-allocation-mb": "32",
        "yarn.resourcemanager.nodemanagers.heartbeat-interval-ms": "250",
        # If true, Hadoop 3.3 leaves the memory limit to cgroups, which are off (YARN-11967).
        "yarn.nodemanager.resource.memory.enforced": "false",
        # EMR takes ten minutes to notice a dead node.
        "yarn.resourcemanager.nm.liveness-monitor.expiry-interval-ms": "15000",
        "yarn.nm.liveness-monitor.expiry-interval-ms": "15000",
    },
    "capacity-scheduler": {
        "yarn.scheduler.capacity.root.queues": "default",
        "yarn.scheduler.capacity.root.default.capacity": "100",
        "yarn.scheduler.capacity.node-locality-delay": "0",
        "yarn.scheduler.capacity.maximum-am-resource-percent": "0.1",
    },
    "spark-defaults": {
        "spark.master": "yarn",
        "spark.submit.deployMode": "client",
        "spark.yarn.jars": "local:/usr/lib/spark/jars/*",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": EVENTS,
        "spark.history.fs.logDirectory": EVENTS,
        "spark.history.fs.update.interval": "2s",
        "spark.yarn.historyServer.address": f"{PRIMARY}:{HISTORY_PORT}",
        # Spark's own releases ignore this key. EMR's would take executor sizes as minimums.
        "spark.yarn.heterogeneousExecutors.enabled": "true",
        "spark.driver.extraJavaOptions": QUICK_JVM,
        "spark.executor.extraJavaOptions": QUICK_JVM,
        "spark.yarn.am.extraJavaOptions": QUICK_JVM,
    },
    "livy-conf": {
        "livy.server.host": PRIMARY,
        "livy.server.port": str(LIVY_PORT),
        "livy.spark.master": "yarn",
        "livy.spark.deploy-mode": "cluster",
        "livy.repl.enable-hive-context": "false",
    },
    "jupyter-sparkmagic-conf": {
        "kernel_python_credentials": {
            "username": "",
            "password": "",
            "url": f"http://{PRIMARY}:{LIVY_PORT}",
            "auth": "None",
        },
        "session_configs": {"driverMemory": "1000M", "executorCores": 2},
        "livy_server_heartbeat_timeout_seconds": 0,
    },
}
# Where EMR writes each classification; the suffix tells the format.
FILES = {
    "core-site": "/etc/hadoop/conf/core-site.xml",
    "hdfs-site": "/etc/hadoop/conf/hdfs-site.xml",
    "yarn-site": "/etc/hadoop/conf/yarn-site.xml",
    "capacity-scheduler": "/etc/hadoop/conf/capacity-scheduler.xml",
    "spark-defaults": "/etc/spark/conf/spark-defaults.conf",
    "spark-env": "/etc/spark/conf/spark-env.sh",
    "livy-conf": "/etc/livy/conf/livy.conf",
}


def merge(configurations: list[dict], node_mb: int) -> dict[str, dict]:
    """Return all settings by classification: EMR's, then those of a request over them.

    `node_mb` is the memory of a node that YARN may use.
    """
    memory = ("nodemanager.resource.memory-mb", "scheduler.maximum-allocation-mb")
    merged = {name: dict(DEFAULTS.get(name, {})) for name in {*DEFAULTS, *FILES}}
    merged["yarn-site"] |= {f"yarn.{name}": str(node_mb) for name in memory}
    for entry in configurations:
        merged.setdefault(entry["Classification"], {}).update(entry["Properties"])
        for export in entry.get("Configurations", []):
            merged[entry["Classification"]] |= export["Properties"]
    return merged


def unquoted(value):
    """Return what EMR writes of a string into a JSON file: `300`, not `"300"`."""
    try:
        return json.loads(value)
    except (TypeError, json.JSONDecodeError):
        return value


def write(settings: dict[str, dict], livy: Path, role: dict[str, str]) -> dict[str, str]:
    """Return the text of every file by its path.

    Parameters
    ----------
    settings : dict
        From `merge`; changed in place.
    livy : pathlib.Path
        Livy's folder on the host.
    role : dict of str to str
        Environment of every container, in place of an EC2 instance's role.
    """
    # Files that every node has: `local:` saves sending them to each session.
    for kind, folder in {"rsc": "rsc-jars", "repl": "repl_2.12-jars"}.items():
        settings["livy-conf"][f"livy.{kind}.jars"] = ",".join(
            f"local:{LIVY}/{folder}/{jar.name}"
            for jar in sorted((livy / folder).glob("*.jar"))
            if not jar.name.startswith("netty-")  # Spark has its own
        )
    settings["yarn-site"]["yarn.nodemanager.admin-env"] = ",".join(
        f"{key}={value}" for key, value in role.items()
    )
    texts = {path: _text(name, settings[name]) for name, path in FILES.items()}
    rsc = "livy.rsc.jars"
    client = {"livy.rsc.rpc.server.address": PRIMARY, rsc: settings["livy-conf"][rsc]}
    return texts | {
        "/etc/livy/conf/livy-client.conf": _text("livy-conf", client),
        "/etc/hadoop/conf/log4j.properties": LOG4J,
        "/etc/hosts": "127.0.0.1 localhost\n"
        + "".join(f"{address} {name}\n" for name, address in ADDRESSES.items()),
    }


LOG4J = """log4j.rootLogger=INFO,A
log4j.appender.A=org.apache.log4j.ConsoleAppender
log4j.appender.A.target=System.err
log4j.appender.A.layout=org.apache.log4j.PatternLayout
log4j.appender.A.layout.ConversionPattern=%d{HH:mm:ss} %p %c{1}: %m%n
"""


def _text(classification: str, properties: dict) -> str:
    kind = FILES[classification].rsplit(".", 1)[1]
    if kind == "xml":
        entries = "".join(
            f"<property><name>{escape(key)}</name><value>{escape(value)}</value></property>\n"
            for key, value in properties.items()
        )
        return f"<configuration>\n{entries}</configuration>\n"
    line = "export {}={}\n" if kind == "sh" else "{} {}\n"
    if classification == "livy-conf":
        line = "{} = {}\n"
    return "".join(line.format(key, value) for key, value in properties.items())
