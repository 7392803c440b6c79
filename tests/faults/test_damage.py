"""What a full disk, a read-only one or damage leaves: one line, and its way out works."""

import os
import shutil
import subprocess
from contextlib import suppress

import pyarrow.parquet as pq
import pytest
from pipeline import check, pick_k, write_features, write_index, write_scores
from servers import need

from fruits_lib.backbones import export_backbone
from fruits_lib.errors import FruitsError
from fruits_lib.runs import open_run
from fruits_lib.stages import STAGES, verified


def steps(run, data, tiny):
    """01 to 05, by what the manifest calls them."""

    def featurize():
        network = export_backbone(run, weights=str(tiny), input_size=32)
        write_features(run, network, batch_size=30)

    return {
        "load": lambda: write_index(run, data),
        "featurize": featurize,
        "pick_k": lambda: pick_k(run),
        "pca": lambda: write_scores(run),
        "verify": lambda: check(run).require(),
    }


def assert_refused(step, *words) -> None:
    with pytest.raises(FruitsError) as caught:
        step()
    (line,) = str(caught.value).splitlines()
    for word in words:
        assert word in line


def run_from(stage, run, todo) -> None:
    """Run a stage and those that follow, and see that all checks pass."""
    names = list(todo)
    for name in names[names.index(stage) :]:
        todo[name]()
    assert verified(run.manifest())


# --- disks --------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A disk of 32 MB."""
    need(os.geteuid() == 0, "a disk is mounted by root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("stage", list(STAGES)[:4])
def test_a_full_disk(spark, sample, tiny, disk, stage):
    run = open_run(spark, str(disk / "run"))
    todo = steps(run, sample, tiny)
    for name in list(todo)[: list(todo).index(stage)]:
        todo[name]()
    filler = disk / "filler"
    with suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert_refused(todo[stage], "No space left on device", ": ")
    filler.unlink()
    run_from(stage, run, todo)


def test_a_disk_that_became_read_only(spark, sample, tiny, disk):
    run = open_run(spark, str(disk / "run"))
    todo = steps(run, sample, tiny)
    todo["load"]()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert_refused(todo["featurize"], "Read-only file system", "give a folder that you may write")
    other = open_run(spark, str(disk.with_name("other")))
    run_from("load", other, steps(other, sample, tiny))


# --- damage -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(spark, sample, tiny, tmp_path_factory):
    run = open_run(spark, str(tmp_path_factory.mktemp("whole") / "run"))
    run_from("load", run, steps(run, sample, tiny))
    return run


@pytest.fixture
def copy(spark, whole, sample, tiny, tmp_path):
    """A copy of a whole run to damage: its folder, the run, its steps."""
    folder = tmp_path / "run"
    shutil.copytree(whole.uri.removeprefix("file:"), folder)
    run = open_run(spark, str(folder))
    return folder, run, steps(run, sample, tiny)


def cut(file):
    file.write_bytes(file.read_bytes()[:-50])
    file.with_name(f".{file.name}.crc").unlink(missing_ok=True)


def test_a_truncated_parquet_file(copy):
    folder, run, todo = copy
    cut(next(folder.glob("features/batch_id=1/*.parquet")))
    assert_refused(todo["pick_k"], "the pass over the features stopped", "run 02_featurize again")
    run_from("featurize", run, todo)


@pytest.mark.parametrize("table", ["features", "rejects"])
def test_a_batch_that_is_gone(copy, table):
    folder, run, todo = copy
    files = folder.glob(f"{table}/batch_id=*/*.parquet")
    shutil.rmtree(next(file for file in files if pq.read_metadata(file).num_rows).parent)
    assert_refused(todo["verify"], "run 02_featurize again")
    run_from("featurize", run, todo)


def test_a_damaged_manifest(copy):
    folder, run, todo = copy
    cut(folder / "manifest.json")
    assert_refused(todo["pick_k"], "is not JSON: remove it and run from 01_load on")
    (folder / "manifest.json").unlink()
    run_from("load", run, todo)


def test_a_damaged_backbone_json(copy):
    folder, run, todo = copy
    cut(folder / "backbone/backbone.json")
    assert_refused(todo["verify"], "cannot be read", "run 02_featurize again")
    assert_refused(todo["featurize"], "is not JSON: remove it and run 02_featurize again")
    (folder / "backbone/backbone.json").unlink()
    run_from("featurize", run, todo)
