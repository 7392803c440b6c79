"""Every image becomes features or a reject, exactly once, and the network runs once for it."""

import os
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest
from PIL import Image
from pipeline import write_features, write_index

from fruits_lib import featurize as stage
from fruits_lib.backbones import export_backbone
from fruits_lib.errors import FruitsError
from fruits_lib.featurize import check_featurize
from fruits_lib.runs import open_run
from fruits_lib.sample import GOOD, REJECTS
from fruits_lib.session import settings
from fruits_lib.udf import decode_image, featurizer, open_backbone

REASONS = {
    "Test/Grape Blue/truncated.jpg": "damaged image: image file is truncated",
    "Training/Cherry 1/empty.jpg": "empty file",
    "Training/mango_ripe/text.jpg": "not a JPEG or PNG image",
}


def local(run, name):
    return run.path(name).removeprefix("file:")


def photograph(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number % 256, 99, 200)).save(path)


def rows(run, name):
    """How often each path stands in a table, below the data folder."""
    paths = run.read_table(name).toPandas()["path"]
    return Counter(paths.str.removeprefix(run.manifest()["load"]["data"] + "/"))


def start(spark, folder, data, tiny):
    """Return a run whose index is written, and its backbone."""
    run = open_run(spark, str(folder))
    write_index(run, data)
    return open_run(spark, run.uri), export_backbone(run, weights=str(tiny), input_size=32)


def spied(log):
    """Return a `featurizer` whose workers note every image, every batch, and what they import."""

    def spying(*arguments):
        run_backbone = featurizer(*arguments)

        def note(batches):
            import sys

            for batch in batches:
                with open(log, "a") as file:
                    file.writelines(f"image {path}\n" for path in batch["path"].to_pylist())
                    file.write(f"batch {batch.num_rows}\n")
                    file.write(f"tensorflow {'tensorflow' in sys.modules}\n")
                yield batch

        return lambda batches: run_backbone(note(batches))

    return spying


def noted(log, what):
    lines = log.read_text().splitlines()
    return [line.removeprefix(f"{what} ") for line in lines if line.startswith(f"{what} ")]


@pytest.fixture(scope="module")
def done(spark, sample, tiny, tmp_path_factory):
    """The sample, featurized in three batches: (run, backbone, result, log of the workers)."""
    folder = tmp_path_factory.mktemp("done 100% é")
    run, backbone = start(spark, folder / "run", sample, tiny)
    result = write_features(run, backbone, batch_size=50, featurizer=spied(folder / "log"))
    return run, backbone, result, folder / "log"


@pytest.fixture
def few(spark, tiny, tmp_path):
    """Six photographs, indexed: (run, backbone, data folder)."""
    for number in range(6):
        photograph(tmp_path / f"data/label/{number}.png", number)
    return *start(spark, tmp_path / "run", tmp_path / "data", tiny), tmp_path / "data"


# --- one row per image --------------------------------------------------------------------------


def test_every_image_is_in_features_or_rejects_once(done, sample):
    run = done[0]
    indexed = rows(run, "index")
    assert len(indexed) == GOOD + REJECTS
    assert rows(run, "features") + rows(run, "rejects") == indexed
    assert set(indexed.values()) == {1}


def test_pandas_and_pyarrow_read_the_same_rows(done):
    run = done[0]
    for name, count in (("features", GOOD), ("rejects", REJECTS)):
        assert len(pd.read_parquet(local(run, name))) == count
        assert pyarrow.dataset.dataset(local(run, name), partitioning="hive").count_rows() == count


def test_the_result_counts_what_the_run_holds(done):
    result = done[2]
    assert (result.images, result.features, result.rejects) == (GOOD + REJECTS, GOOD, REJECTS)
    assert str(result) == "123 images = 120 rows of 1,280 features + 3 rejects"


def test_the_schemas_are_the_contract(done):
    run = done[0]
    place = [("path", "string"), ("label", "string"), ("split", "string")]
    features = [*place, ("features", "array<float>"), ("weights_sha256", "string")]
    assert run.read_table("features").drop("batch_id").dtypes == features
    assert run.read_table("rejects").drop("batch_id").dtypes == [*place, ("reason", "string")]


def test_each_batch_has_a_folder_of_its_own(done):
    batches = {row.batch_id for row in done[0].read_table("features").collect()}
    assert batches == {0, 1, 2}


def test_label_and_split_are_those_of_the_index(done):
    run = done[0]
    columns = ["path", "label", "split"]
    found = (
        run.read_table("features").select(columns).union(run.read_table("rejects").select(columns))
    )
    assert sorted(found.collect()) == sorted(run.read_table("index").select(columns).collect())


# --- features -----------------------------------------------------------------------------------


def test_features_are_those_of_a_plain_loop(done):
    run, backbone, _, _ = done
    infer = open_backbone(backbone.content)
    for row in run.read_table("features").collect()[::5]:
        with open(row.path.removeprefix("file:"), "rb") as file:
            expected = infer(decode_image(file.read(), 32))
        np.testing.assert_array_equal(np.float32(row.features), expected)


def test_every_row_names_the_weights(done):
    run, backbone, _, _ = done
    names = run.read_table("features").select("weights_sha256").distinct().collect()
    assert [name.weights_sha256 for name in names] == [backbone.sha256]


def test_the_network_sees_each_image_once(done):
    run, _, result, log = done
    seen = Counter(noted(log, "image"))
    filled = run.read_table("index").filter("length > 0").collect()
    assert seen == Counter(row.path for row in filled)
    assert result.computed == len(filled)


def test_workers_do_not_import_tensorflow(done):
    assert set(noted(done[3], "tensorflow")) == {"False"}


def test_workers_get_few_images_at_a_time(spark, tiny, tmp_path, monkeypatch):
    for number in range(150):
        photograph(tmp_path / f"data/label/{number}.png")
    run, backbone = start(spark, tmp_path / "run", tmp_path / "data", tiny)
    one_task = {"spark.sql.files.openCostInBytes": "0", "spark.sql.files.minPartitionNum": "1"}
    monkeypatch.setattr(stage, "file_partitions", lambda spark: settings(spark, one_task))
    result = write_features(run, backbone, featurizer=spied(tmp_path / "log"))
    assert result.features == 150
    assert noted(tmp_path / "log", "batch") == ["64", "64", "22"]


# --- rejects ------------------------------------------------------------------------------------


def test_each_reject_has_a_reason(done):
    table = stage.reject_reasons(done[0])
    assert list(table["path"]) == sorted(REASONS)
    for path, reason in table.itertuples(index=False):
        assert reason.startswith(REASONS[path])
        assert "\n" not in reason


def test_too_large_an_image_is_a_reject(few):
    run, backbone, _ = few
    result = write_features(run, backbone, max_pixels=63, max_reject_ratio=1)
    assert (result.features, result.rejects) == (0, 6)
    assert set(stage.reject_reasons(run)["reason"]) == {"64 pixels, more than max_pixels=63"}


def test_too_many_rejects_fail_the_run_and_keep_what_was_computed(spark, sample, tiny, tmp_path):
    run, backbone = start(spark, tmp_path / "run", sample / "Training", tiny)
    message = r"^2 of 86 images were rejected, 2\.3%, more than max_reject_ratio=0\.02: look at "
    with pytest.raises(FruitsError, match=message):
        write_features(run, backbone, max_reject_ratio=0.02)
    assert run.read_table("features").count() == 84
    assert write_features(run, backbone, max_reject_ratio=0.03).computed == 0


def test_a_folder_of_rejects_alone_is_no_crash(spark, tiny, tmp_path):
    for name, content in (("empty.jpg", b""), ("text.png", b"text")):
        (tmp_path / "data/label").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/label" / name).write_bytes(content)
    run, backbone = start(spark, tmp_path / "run", tmp_path / "data", tiny)
    result = write_features(run, backbone, max_reject_ratio=1)
    assert (result.features, result.rejects) == (0, 2)
    assert run.read_table("features").dtypes[3] == ("features", "array<float>")


# --- again, and more ----------------------------------------------------------------------------


def test_a_second_run_computes_nothing(few):
    run, backbone, _ = few
    first = write_features(run, backbone)
    before = rows(run, "features")
    second = write_features(run, backbone)
    assert (first.computed, second.computed) == (6, 0)
    assert rows(run, "features") == before


def test_new_images_alone_are_computed_however_old_their_files_are(few):
    run, backbone, data = few
    write_features(run, backbone)
    photograph(data / "label/old.png", 7)
    long_ago = (data / "label/0.png").stat().st_mtime - 30 * 24 * 3600
    os.utime(data / "label/old.png", (long_ago, long_ago))
    (data / "label/empty.png").write_bytes(b"")
    write_index(run, data)
    result = write_features(run, backbone, max_reject_ratio=1)
    assert result.computed == 1
    assert rows(run, "features") + rows(run, "rejects") == rows(run, "index")
    assert result.images == 8


def test_old_and_new_files_are_computed_in_one_run(few):
    run, backbone, data = few
    for number, path in enumerate(sorted((data / "label").iterdir())):
        os.utime(path, (1e9 + number * 30 * 24 * 3600,) * 2)
    shutil.rmtree(local(run, "index"))
    write_index(run, data)
    assert write_features(run, backbone, batch_size=1).features == 6


def test_new_files_that_are_all_empty_are_no_crash(few):
    run, backbone, data = few
    write_features(run, backbone)
    (data / "label/empty.png").write_bytes(b"")
    write_index(run, data)
    result = write_features(run, backbone, max_reject_ratio=1)
    assert (result.features, result.rejects, result.computed) == (6, 1, 0)


# --- failures -----------------------------------------------------------------------------------


def test_a_run_killed_between_two_writes_of_a_batch_resumes(few, monkeypatch):
    run, backbone, _ = few
    real = stage._write_rejects

    def fail(run, batch_id, rejects):
        if batch_id == 1:
            raise OSError("disk full\nand more")
        real(run, batch_id, rejects)

    message = r"^featurizing stopped \(OSError: disk full\): run it again, it resumes where it stop"
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_write_rejects", fail)
        with pytest.raises(FruitsError, match=message) as caught:
            write_features(run, backbone, batch_size=2)
    assert "\n" not in str(caught.value)
    assert rows(run, "features").total() == 4  # batches 0 and 1, of which 1 is not known as done
    result = write_features(run, backbone, batch_size=3)  # replays batch 1 as it was
    assert result.computed == 4
    assert rows(run, "features") == rows(run, "index")


def test_a_run_whose_first_batch_lost_its_workers_resumes(few):
    run, backbone, _ = few

    def killed(*_):
        def run_backbone(batches):
            os._exit(137)
            yield

        return run_backbone

    message = r"^featurizing stopped \(SparkException: Python worker exited unexpectedly"
    with pytest.raises(FruitsError, match=message):
        write_features(run, backbone, featurizer=killed)
    assert write_features(run, backbone).features == 6


def test_without_its_checkpoint_a_run_is_refused(few):
    run, backbone, _ = few
    write_features(run, backbone)
    shutil.rmtree(local(run, "checkpoint"))
    message = r"/checkpoint is gone, .*: give another run_dir, or remove features/ and rejects/$"
    with pytest.raises(FruitsError, match=message):
        write_features(run, backbone)


def test_features_that_were_removed_are_missed(few):
    run, backbone, _ = few
    write_features(run, backbone, batch_size=4)
    shutil.rmtree(local(run, "features/batch_id=1"))
    with pytest.raises(FruitsError, match=r"has features or rejects of 4 images, .* index has 6: "):
        write_features(run, backbone)


def test_images_that_no_index_lists_are_noticed(few):
    run, backbone, data = few
    photograph(data / "label/late.png")
    with pytest.raises(FruitsError, match=r"of 7 images, .* index has 6: run 01_load again"):
        write_features(run, backbone)
    write_index(run, data)
    assert write_features(run, backbone).computed == 0


def test_without_an_index_the_error_names_the_way_out(spark, tiny, tmp_path):
    run = open_run(spark, str(tmp_path))
    backbone = export_backbone(run, weights=str(tiny), input_size=32)
    with pytest.raises(FruitsError, match=r"/index is missing: run the notebook that writes"):
        write_features(run, backbone)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0, 0.1), r"^max_pixels=0 is outside 1 to 178956970: choose one inside$"),
        ((178_956_971, 0.1), r"^max_pixels=178956971 is outside"),
        ((1, -0.1), r"^max_reject_ratio=-0\.1 is outside 0 to 1: choose one inside$"),
        ((1, 1.1), r"^max_reject_ratio=1\.1 is outside"),
        ((1, float("nan")), r"^max_reject_ratio=nan is outside"),
        ((1, 0.1, -1), r"^batch_size=-1 is below 0: choose 0 for 2,000 images per core$"),
    ],
)
def test_what_is_out_of_bounds_is_one_line(bounds, message):
    with pytest.raises(FruitsError, match=message):
        check_featurize(*bounds)


# --- what people see ----------------------------------------------------------------------------


def test_the_manifest_records_the_parameters_and_the_counts(done):
    run, backbone, result, _ = done
    recorded = run.manifest()["featurize"]
    assert recorded["weights_sha256"] == backbone.sha256
    assert recorded["features"] == GOOD
    assert recorded["rejects"] == REJECTS
    assert recorded["computed"] == result.computed
    assert recorded["max_pixels"] == 50_000_000


def test_nothing_is_written_where_nobody_watches(few, capfd):
    run, backbone, _ = few
    write_features(run, backbone)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_progress_counts_images_where_somebody_watches(few, capsys, monkeypatch):
    run, backbone, _ = few
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    write_features(run, backbone, batch_size=3)
    assert "6/6" in capsys.readouterr().err
