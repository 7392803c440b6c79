"""One `fruits run` from a bucket to it, as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from node_keys import node_keys
from servers import KEY, REGION

from fruits_lib.sample import GOOD, REJECTS, SET_ASIDE

pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning")
BIN = Path(sys.executable).parent
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def command(name, *arguments):
    """Run a command as a user does; return the finished process."""
    return subprocess.run([BIN / name, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(server, new_bucket, sample):
    """One `fruits run` with a node's keys: (bucket, listing before, finished process, keys)."""
    bucket = new_bucket()
    bucket.upload(sample, "photographs")
    before = bucket.listing("photographs/")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        keys = node_keys(bucket)
        for name, value in keys.items():
            patch.setenv(name, value)
        answer = command(
            *("fruits", "run", "--data", bucket.uri("photographs")),
            *("--run-dir", bucket.uri("runs/first")),
            *("-p", "weights=random", "-p", "input_size=64"),
        )
    assert answer.returncode == 0, answer.stderr
    return bucket, before, answer, keys


class TestAWholeRun:
    def test_every_image_is_counted_and_every_check_passes(self, whole):
        recorded = json.loads(whole[0].get("runs/first/manifest.json"))
        assert recorded["load"]["images"] == GOOD + REJECTS
        assert recorded["load"]["files"] == GOOD + REJECTS + SET_ASIDE
        assert recorded["featurize"]["features"] == GOOD
        assert recorded["verify"]["failed"] == 0

    def test_executed_notebooks_and_report_lie_in_the_bucket(self, whole):
        for path in NOTEBOOKS.glob("[0-9]*.ipynb"):
            text = whole[0].get(f"runs/first/notebooks/{path.name}").decode()
            cells = nbformat.reads(text, as_version=4).cells
            assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
        assert b"32 of 32" in whole[0].get("runs/first/report.html")

    def test_the_photographs_are_not_touched(self, whole):
        bucket, before, *_ = whole
        assert bucket.listing("photographs/") == before

    def test_pyarrow_reads_the_features(self, whole, server):
        s3 = pyarrow.fs.S3FileSystem(
            access_key=KEY["AWS_ACCESS_KEY_ID"],
            secret_key=KEY["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=server.endpoint,
            region=REGION,
        )
        table = pq.read_table(f"{whole[0].name}/runs/first/features", filesystem=s3)
        assert table.num_rows == GOOD

    def test_keys_are_nowhere(self, whole):
        bucket, _, answer, keys = whole
        written = [bucket.get(key) for key in bucket.listing("runs/")]
        for secret in [*KEY.values(), *keys.values()]:
            assert secret not in answer.stdout + answer.stderr
            assert not any(secret.encode() in content for content in written)

    def test_a_finished_run_is_not_overwritten_without_being_told(self, whole, server, monkeypatch):
        bucket = whole[0]
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        before = bucket.listing("runs/")
        answer = command(
            *("fruits", "run", "--data", bucket.uri("photographs")),
            *("--run-dir", bucket.uri("runs/first"), "-p", "weights=random"),
        )
        assert answer.returncode == 1
        assert "--overwrite" in answer.stderr.splitlines()[-1]
        assert bucket.listing("runs/") == before

    def test_papermill_runs_a_notebook_of_the_bucket(self, whole, server, monkeypatch):
        bucket = whole[0]
        for name, value in {**server.environment, "AWS_DEFAULT_REGION": REGION}.items():
            monkeypatch.setenv(name, value)
        bucket.put("notebooks/03.ipynb", (NOTEBOOKS / "03_pick_k.ipynb").read_bytes())
        answer = command(
            *("papermill", bucket.uri("notebooks/03.ipynb"), bucket.uri("out/03.ipynb")),
            *("-p", "run_dir", bucket.uri("runs/first"), "-p", "variance", "0.5"),
            *("-p", "overwrite", "True"),
        )
        assert answer.returncode == 0, answer.stderr
        assert b"explained variance" in bucket.get("out/03.ipynb")
