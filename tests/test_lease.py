"""One of two processes gets a run folder; a dead one keeps none."""

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import nbclient
import nbformat
import pytest
from IPython.core.events import EventManager, available_events
from pipeline import entry as entry_of

from fruits_lib import lease
from fruits_lib.errors import FruitsError
from fruits_lib.lease import take
from fruits_lib.runs import Run, open_run
from fruits_lib.stages import PLACE

# Takes the lease of a folder, says so, and keeps it until its standard input ends.
HOLD = """
import subprocess, sys
from fruits_lib.errors import FruitsError
from fruits_lib.lease import take
try:
    held = take(sys.argv[1])
except FruitsError as error:
    sys.exit(str(error))
child = subprocess.Popen(["sleep", "60"]) if len(sys.argv) > 2 else None
print("mine", child.pid if child else "", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def token(monkeypatch):
    """A token of this test's own, which other processes do not inherit."""
    monkeypatch.setenv(lease.TOKEN, "this test")


def holder(run_dir, *arguments, inherit=False):
    environment = {k: v for k, v in os.environ.items() if inherit or k != lease.TOKEN}
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir), *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def other(tmp_path):
    """Another process that has the lease of a folder, and a child."""
    process = holder(tmp_path, "with a child")
    said = process.stdout.readline().split()
    assert said[0] == "mine"
    yield process
    process.kill()
    subprocess.run(["kill", said[1]])


# --- a local folder -----------------------------------------------------------------------------


def test_a_second_process_is_refused_in_one_line(other, tmp_path):
    message = rf"^run_dir=file:{tmp_path} is in use by \w+ on \S+, process {other.pid}, since \S+: "
    with pytest.raises(FruitsError, match=message) as caught:
        take(f"file:{tmp_path}")
    assert str(caught.value).endswith(": wait until it ends, or give another run_dir")


def test_a_killed_process_keeps_nothing_though_its_child_lives(other, tmp_path):
    other.kill()
    other.wait()
    take(f"file:{tmp_path}").release()


def test_a_released_folder_is_free(tmp_path):
    take(f"file:{tmp_path}").release()
    process = holder(tmp_path)
    assert process.stdout.readline().startswith("mine")
    process.kill()


def test_the_same_process_and_its_children_share_a_lease(tmp_path):
    held = take(f"file:{tmp_path}/run")
    take(f"file:{tmp_path}/run").release()
    process = holder(tmp_path / "run", inherit=True)
    assert process.stdout.readline().startswith("mine")
    process.kill()
    process = holder(tmp_path / "run")
    assert "is in use by" in process.communicate()[1]
    held.release()


def test_one_of_two_that_start_at_once_gets_it(tmp_path):
    for number in range(5):
        pair = [holder(tmp_path / str(number)) for _ in range(2)]
        said = [process.communicate("")[0] for process in pair]
        codes = [process.returncode for process in pair]
        # The first may have ended before the second began.
        assert said.count("") == codes.count(1) <= 1


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FruitsError, match=r"^run_dir=file:.*/file cannot be written \(.+\): give"):
        take(f"file:{tmp_path}/file")


# --- a lease that is a file ---------------------------------------------------------------------


@pytest.fixture(params=["S3", "Hadoop"])
def place(request, spark, tmp_path, monkeypatch):
    """A run folder where a lease is a file, with quick times: the arguments of `take`."""
    monkeypatch.setattr(lease, "RENEWAL", 0.1)
    monkeypatch.setattr(lease, "DEAD", 2.5)  # no machine is so busy that it renews that late
    if request.param == "S3":
        bucket = request.getfixturevalue("bucket")
        return bucket.uri("run"), None
    monkeypatch.setattr(lease.storage, "local_path", lambda uri: None)  # as if it were on HDFS
    return str(tmp_path), spark


def as_another(monkeypatch):
    monkeypatch.setenv(lease.TOKEN, "another")


def test_one_that_is_renewed_is_refused(place, monkeypatch):
    held = take(*place)
    as_another(monkeypatch)
    with pytest.raises(FruitsError, match=r"is in use by .*, process \d+, since"):
        take(*place)
    held.check()
    held.release()
    take(*place).release()


def test_one_that_is_not_renewed_is_taken_over_and_its_owner_hears_of_it(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(lease, "RENEWAL", 5)  # as a machine that sleeps
        first = take(*place)
    as_another(monkeypatch)
    second = take(*place)
    end = time.monotonic() + 30
    while not first._lost.is_set() and time.monotonic() < end:
        time.sleep(0.1)
    with pytest.raises(FruitsError, match="^another process took run_dir=.*: let that one end"):
        first.check()
    first.release()  # is not the second one's
    second.check()
    second.release()


def test_one_of_two_takes_it_over(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(lease, "RENEWAL", 60)
        dead = take(*place)
    taken = []

    def attempt():
        try:
            taken.append(take(*place))
        except FruitsError as error:
            taken.append(error)

    monkeypatch.setattr(lease, "_owner", lambda content: {})  # no token is anybody's own
    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(result) for result in taken].count(lease.Lease) == 1
    assert dead is not None


def test_a_process_with_the_same_token_joins_and_does_not_end_it(place, monkeypatch):
    held = take(*place)
    with monkeypatch.context() as patch:
        patch.setattr(lease, "_process", lambda: "a kernel")
        take(*place).release()
    as_another(monkeypatch)
    with pytest.raises(FruitsError, match="is in use by"):
        take(*place)
    held.release()


def test_a_cell_that_runs_again_takes_the_lease_from_its_first_run(place, monkeypatch):
    """Or that one would keep the folder as long as the kernel lives."""
    first = take(*place)
    again = take(*place)
    again.check()
    again.release()
    as_another(monkeypatch)
    take(*place).release()
    first.release()


def test_nothing_is_left_in_the_bucket(bucket):
    take(bucket.uri("run")).release()
    assert not bucket.listing("run")


def test_a_release_waits_for_a_renewal_on_its_way(bucket, monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL", 0.01)
    held = take(bucket.uri("run"))
    written, answered = threading.Event(), threading.Event()
    put = held._store._s3.put_object

    def slow_put(**request):
        answer = put(**request)
        written.set()
        answered.wait(30)
        return answer

    held._store._s3.put_object = slow_put
    assert written.wait(30)
    release = threading.Thread(target=held.release)
    release.start()
    release.join(0.3)  # one that does not wait is done by then
    answered.set()
    release.join()
    assert not bucket.listing("run")


@pytest.fixture
def hadoop(spark, tmp_path, monkeypatch):
    """A run folder that only Hadoop knows."""
    monkeypatch.setattr(lease.storage, "local_path", lambda uri: None)
    return str(tmp_path), spark


def test_a_renewal_shows_where_the_file_system_sets_no_times(hadoop, tmp_path):
    store = lease._HadoopFile(*hadoop)
    assert store.create(b'{"id": "x"}')
    os.utime(tmp_path / ".lease", (0, 0))
    before = store.read()
    assert store.renew()
    os.utime(tmp_path / ".lease", (0, 0))
    assert store.read()[0] != before[0]
    store.delete()
    assert not [name for name in os.listdir(tmp_path) if not name.endswith(".crc")]


def test_a_release_leaves_the_lease_of_who_took_over(hadoop, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL", 60)  # nobody hears of it
    monkeypatch.setattr(lease, "DEAD", 0.5)
    first = take(*hadoop)
    as_another(monkeypatch)
    second = take(*hadoop)
    first.release()
    assert (tmp_path / ".lease").exists()
    second.check()
    second.release()


def test_a_folder_that_hadoop_cannot_write_is_one_line_at_once(hadoop, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FruitsError, match=r"^run_dir=.*/file cannot be written \(.+\): give"):
        take(f"{tmp_path}/file", hadoop[1])


def test_one_that_can_neither_be_read_nor_replaced_is_not_waited_for(bucket, monkeypatch):
    monkeypatch.setattr(lease, "DEAD", 0.1)
    monkeypatch.setattr(lease._Object, "create", lambda *_: False)
    with pytest.raises(FruitsError, match=r"\.lease can neither be read nor replaced: remove it"):
        take(bucket.uri("run"))


# --- two processes and one run ------------------------------------------------------------------


@pytest.mark.parametrize("joined", [False, True])
def test_a_process_that_lost_its_lease_writes_nothing(place, spark, monkeypatch, joined):
    """The owner, such as a laptop that slept, or a kernel of `fruits run` that shares its lease."""
    uri, rows = place[0], [("a.jpg", "A", None)]
    monkeypatch.setattr(lease, "RENEWAL", 60)
    monkeypatch.setattr(lease, "DEAD", 0.5)
    owner = loser = Run(spark, uri, lease=take(uri, spark))
    if joined:
        monkeypatch.setattr(lease, "_process", lambda: "a kernel")
        loser = Run(spark, uri, lease=take(uri, spark))
    as_another(monkeypatch)
    winner = Run(spark, uri, lease=take(uri, spark))
    with winner.step("load") as entry:
        winner.write_table("index", spark.createDataFrame(rows, PLACE))
        entry.update(entry_of("load", files=1))
    before = winner.manifest()
    for write in (
        lambda: loser.amend("load", files=2),
        lambda: loser.delete("index"),
        lambda: loser.write_table("index", spark.createDataFrame([], PLACE)),
        lambda: loser.step("load").__enter__(),
    ):
        with pytest.raises(FruitsError, match="another process took run_dir"):
            write()
    assert winner.manifest() == before
    assert winner.read_parquet("index").count() == 1
    owner.lease.release()
    winner.lease.check()
    winner.lease.release()


def test_a_joined_lease_that_its_owner_ended_is_lost(place, spark, monkeypatch):
    owner = take(*place)
    with monkeypatch.context() as patch:
        patch.setattr(lease, "_process", lambda: "a kernel")
        joined = take(*place)
    owner.release()
    with pytest.raises(FruitsError, match="is not leased to this process any more: the folder was"):
        joined.check()


def test_a_run_folder_that_is_moved_away_is_one_line(spark, tmp_path):
    run = open_run(spark, f"{tmp_path}/run", stage="load")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(FruitsError, match="the folder was moved or removed"), run.step("load"):
        pass
    assert not (tmp_path / "run").exists()


# --- a notebook that fails ----------------------------------------------------------------------


def test_a_cell_that_fails_gives_the_folder_back(tmp_path):
    cells = [
        f"from fruits_lib.lease import take\nheld = take('file:{tmp_path}')\nheld._owned",
        "1 / 0",
        "held._owned",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.execute(notebook, allow_errors=True)
    shown = [cell.outputs[0].get("data", {}).get("text/plain") for cell in notebook.cells]
    assert shown == ["True", None, "False"]


def test_the_line_names_an_idle_kernel_and_what_to_do(tmp_path, monkeypatch):
    kernel = SimpleNamespace(kernel=True, events=EventManager(None, available_events))
    monkeypatch.setattr(lease.storage, "ipython_shell", lambda: kernel)
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/04_pca.ipynb")
    held = take(f"file:{tmp_path}", notebook="04_pca")
    as_another(monkeypatch)
    message = (
        rf"is in use by 04_pca\.ipynb, \w+ on \S+, kernel process {os.getpid()}, since \S+: if it "
        r"does nothing, shut that kernel down in JupyterLab \(Running Terminals and Kernels\); "
        r"else wait until it ends, or give another run_dir$"
    )
    with pytest.raises(FruitsError, match=message):
        take(f"file:{tmp_path}")
    held.release()


def test_a_step_that_fails_gives_the_folder_back_and_the_next_one_takes_it(spark, tmp_path):
    run = open_run(spark, f"{tmp_path}/run", stage="load")
    with pytest.raises(KeyError), run.step("load"):
        raise KeyError
    process = holder(tmp_path / "run")
    assert process.stdout.readline().startswith("mine")
    process.communicate("")
    with run.step("load") as entry:
        entry.update(entry_of("load", files=1))
        assert "is in use by" in holder(tmp_path / "run").communicate()[1]
    assert run.require("load")["files"] == 1


def test_a_run_that_another_process_wrote_meanwhile_is_opened_again(spark, tmp_path):
    run = open_run(spark, f"{tmp_path}/run", stage="load")
    run.lease.release()  # as after a cell that failed
    with open_run(spark, run.uri, stage="load").step("load") as entry:
        entry.update(entry_of("load", files=1))
    message = "another process wrote run_dir=.*: run the notebook again from its first cell$"
    with pytest.raises(FruitsError, match=message), run.step("load"):
        pass
    assert run.require("load")["files"] == 1
