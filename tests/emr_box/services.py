"""The services of the box: what each runs, and as whom."""

from dataclasses import dataclass

import hub
import settings

from fruits_lib import session
from fruits_lib.emr import tunnel

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
NAMENODE = "org.apache.hadoop.hdfs.server.namenode.NameNode"
HDFS_SHELL = f"{JVM.format(128)} {HADOOP} org.apache.hadoop.fs.FsShell"
YARN = "org.apache.hadoop.yarn.server"
LIVY = f"{OPENS} -cp '{settings.LIVY}/jars/*:/etc/livy/conf:/etc/hadoop/conf' "


@dataclass(frozen=True)
class Service:
    """One service.

    Attributes
    ----------
    script : str
    user : str
    port : int
        On which it listens, of `host`, when it is ready.
    host : str
    """

    script: str
    user: str
    port: int
    host: str = settings.PRIMARY


SERVICES = {
    "namenode": Service(
        f"{JVM.format(128)} {HADOOP} {NAMENODE} -format -nonInteractive; "
        f"exec {JVM.format(256)} {HADOOP} {NAMENODE}",
        "hadoop",
        8020,
    ),
    "datanode": Service(
        f"exec {JVM.format(256)} {HADOOP} org.apache.hadoop.hdfs.server.datanode.DataNode",
        "hadoop",
        9866,
    ),
    "resourcemanager": Service(
        f"exec {JVM.format(384)} {HADOOP} {YARN}.resourcemanager.ResourceManager",
        "yarn",
        settings.YARN_PORT,
    ),
    **{
        node: Service(
            f"exec {JVM.format(256)} -Dnode={node} {HADOOP} {YARN}.nodemanager.NodeManager",
            "yarn",
            8042,
            node,
        )
        for node in settings.CORE
    },
    "livy": Service(
        f"exec {JVM.format(384)} {LIVY} org.apache.livy.server.LivyServer",
        "livy",
        session.LIVY_PORT,
    ),
    "history": Service(
        "exec /usr/lib/spark/bin/spark-class org.apache.spark.deploy.history.HistoryServer",
        "hadoop",
        tunnel.HISTORY,
    ),
    "hub": Service(hub.START_HUB, "root", tunnel.HUB, "localhost"),
}
