"""One of two processes gets a run folder; a dead one keeps none."""

import os
import subprocess
import sys
import threading
import time

import pytest

from fruits_lib import lease
from fruits_lib.errors import FruitsError
from fruits_lib.lease import take

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


def test_the_same_token_joins_and_does_not_end_it(place, monkeypatch):
    held = take(*place)
    take(*place).release()
    as_another(monkeypatch)
    with pytest.raises(FruitsError, match="is in use by"):
        take(*place)
    held.release()


def test_nothing_is_left_in_the_bucket(bucket):
    take(bucket.uri("run")).release()
    assert not bucket.listing("run")
