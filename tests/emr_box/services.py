"""The services of the box: what each runs, as which user, and the port that shows it is ready."""

from typing import NamedTuple

import hub
import settings

from fruits_lib.session import LIVY_PORT

JVM = f"java -XX:+UseSerialGC {settings.QUICK_JVM} -Xmx{{}}m"
# What Hadoop 3.3 and Livy 0.9 reach into, on Java 17.
OPENS = " ".join(
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in (
        *("java.io", "java.net", "java.nio", "java.util", "java.util.concurrent", "sun.nio.ch"),
        *("java.util.concurrent.atomic", "java.lang", "java.lang.invoke", "java.lang.reflect"),
        *("sun.net.dns", "sun.net.util", "sun.nio.cs", "sun.security.action", "sun.util.calendar"),
    )
)
HADOOP = f"{OPENS} -cp '/etc/hadoop/conf:/usr/lib/hadoop:/mnt/hadoop/*' "
HDFS, YARN = "org.apache.hadoop.hdfs.server", "org.apache.hadoop.yarn.server"
NAMENODE = f"{HDFS}.namenode.NameNode"
HDFS_SHELL = f"{JVM.format(128)} {HADOOP} org.apache.hadoop.fs.FsShell"
LIVY = f"{OPENS} -cp '{settings.LIVY}/jars/*:/etc/livy/conf:/etc/hadoop/conf' "


class Service(NamedTuple):
    script: str
    user: str
    port: int
    host: str = settings.PRIMARY


def _daemon(megabytes: int, command: str) -> str:
    return f"exec {JVM.format(megabytes)} {command}"


SERVICES = {
    "namenode": Service(
        f"{JVM.format(128)} {HADOOP} {NAMENODE} -format -nonInteractive; "
        + _daemon(256, f"{HADOOP} {NAMENODE}"),
        "hadoop",
        8020,
    ),
    "datanode": Service(_daemon(256, f"{HADOOP} {HDFS}.datanode.DataNode"), "hadoop", 9866),
    "resourcemanager": Service(
        _daemon(384, f"{HADOOP} {YARN}.resourcemanager.ResourceManager"),
        "yarn",
        settings.YARN_PORT,
    ),
    **{
        node: Service(
            _daemon(256, f"-Dnode={node} {HADOOP} {YARN}.nodemanager.NodeManager"),
            "yarn",
            8042,
            node,
        )
        for node in settings.CORE
    },
    "livy": Service(_daemon(384, f"{LIVY} org.apache.livy.server.LivyServer"), "livy", LIVY_PORT),
    "history": Service(
        "exec /usr/lib/spark/bin/spark-class org.apache.spark.deploy.history.HistoryServer",
        "hadoop",
        settings.HISTORY_PORT,
    ),
    "hub": Service(hub.START_HUB, "root", settings.HUB_PORT, "localhost"),
}
