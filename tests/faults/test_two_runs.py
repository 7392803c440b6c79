"""Two runs start on one run folder: one finishes, the other one says who has the folder."""

import io
import os
import random
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fruits_lib import lease, storage
from fruits_lib.runs import read_manifest
from fruits_lib.sample import GOOD, REJECTS
from fruits_lib.stages import verified

ROUNDS = int(os.environ.get("FRUITS_ROUNDS", "2"))  # in each place
ONLY = ["--only", "01"]
# A lease in a bucket is renewed more often, so that the second run soon hears that the first lives.
FRUITS = "from fruits_lib import cli, lease; lease.RENEWAL = 1; cli.main()"


def start(data, run_dir, *options):
    environment = {name: value for name, value in os.environ.items() if name != lease.TOKEN}
    return subprocess.Popen(
        [sys.executable, "-c", FRUITS, "run", "--data", data, "--run-dir", run_dir, *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def paths(run_dir) -> list[str]:
    """Return the path of every row of a run's index."""
    files = [file for file in storage.files_in(f"{run_dir}/index") if file.endswith(".parquet")]
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(file))) for file in files]
    return pa.concat_tables(tables)["path"].to_pylist()


def two_runs(data, run_dir, pause, *options) -> None:
    """Start two runs, and assert that one finishes while the other one is refused in a line."""
    first = start(data, run_dir, *options)
    time.sleep(pause)
    pair = first, start(data, run_dir, *options)
    with ThreadPoolExecutor() as threads:
        said = list(threads.map(lambda process: process.communicate()[1], pair))
    codes = [process.returncode for process in pair]
    assert sorted(codes) == [0, 1], said
    refusal = said[codes.index(1)]
    assert re.fullmatch(r"fruits: run_dir=\S+ is in use by .+: wait until it ends, .+\n", refusal)


@pytest.fixture(params=["folder", "bucket"])
def place(request, sample, tmp_path):
    """A folder or a bucket with the photographs in `photographs`: its path or URI."""
    if request.param == "folder":
        shutil.copytree(sample, tmp_path / "photographs")
        return str(tmp_path)
    bucket = request.getfixturevalue("bucket")
    bucket.upload(sample, "photographs")
    return bucket.uri()


def test_one_of_two_indexes_the_photographs(place):
    rng = random.Random(0)
    runs = [f"{place}/{number}" for number in range(ROUNDS)]
    pauses = [rng.uniform(0, 5) for _ in runs]
    # Two rounds at once: most of a run's time, one core works.
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda *a: two_runs(f"{place}/photographs", *a, *ONLY), runs, pauses))
    for run in runs:
        assert sorted(paths(run)) == sorted(set(paths(run)))
        assert len(paths(run)) == GOOD + REJECTS


def test_one_of_two_does_the_whole_run(place, tiny):
    options = ["-p", f"weights={tiny}", "-p", "input_size=32"]
    two_runs(f"{place}/photographs", f"{place}/run", 1, *options)
    manifest = read_manifest(f"{place}/run")
    assert verified(manifest)
    assert (manifest["featurize"]["features"], manifest["featurize"]["rejects"]) == (GOOD, REJECTS)
