"""Every image becomes features or a reject, exactly once, and the network runs once for it."""

import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet
import pytest
from PIL import Image
from pipeline import write_features, write_index
from pyspark.sql import functions as F

from fruits_lib import batches, load, origin
from fruits_lib import featurize as stage
from fruits_lib.backbones import export_backbone
from fruits_lib.errors import FruitsError
from fruits_lib.featurize import check_featurize
from fruits_lib.runs import Run, open_run
from fruits_lib.sample import GOOD, REJECTS
from fruits_lib.udf import Decoding, decode_image, featurizer, open_backbone

REASONS = {
    "Test/Grape Blue/truncated.jpg": "damaged image: image file is truncated",
    "Training/Cherry 1/empty.jpg": "empty file",
    "Training/mango_ripe/text.jpg": "not an image",
}


def local(run, name):
    return run.path(name).removeprefix("file:")


def photograph(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number % 256, 99, 200)).save(path)


def rows(run, name):
    """How often each path stands in a table."""
    return Counter(row.path for row in run.read_parquet(name).select("path").collect())


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


@pytest.fixture(scope="module")
def batched(spark, tiny, tmp_path_factory):
    """Six photographs, featurized in three batches: (run folder, backbone)."""
    folder = tmp_path_factory.mktemp("batched")
    for number in range(6):
        photograph(folder / f"data/label/{number}.png", number)
    run, backbone = start(spark, folder / "run", folder / "data", tiny)
    write_features(run, backbone, batch_size=2)
    return folder / "run", backbone


@pytest.fixture
def copied(spark, batched, tmp_path):
    """A copy of it, to damage: (run, backbone)."""
    shutil.copytree(batched[0], tmp_path / "run")
    return open_run(spark, str(tmp_path / "run")), batched[1]


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
    features = [
        *place,
        ("features", "array<float>"),
        ("weights_sha256", "string"),
        ("content_sha256", "string"),
        ("truncated", "boolean"),
    ]
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


def test_features_are_those_of_a_plain_loop(done, sample):
    run, backbone, _, _ = done
    infer = open_backbone(backbone.content)
    for row in run.read_table("features").collect()[::5]:
        content = (sample / row.path).read_bytes()
        expected = infer(decode_image(content, 32))
        np.testing.assert_array_equal(np.float32(row.features), expected)
        assert row.content_sha256 == hashlib.sha256(content).hexdigest()


def test_every_row_names_the_weights(done):
    run, backbone, _, _ = done
    names = run.read_table("features").select("weights_sha256").distinct().collect()
    assert [name.weights_sha256 for name in names] == [backbone.sha256]


def test_the_network_sees_each_image_once(done):
    run, _, result, log = done
    assert Counter(noted(log, "image")) == rows(run, "index")
    assert result.computed == GOOD + REJECTS


def test_workers_do_not_import_tensorflow(done):
    assert set(noted(done[3], "tensorflow")) == {"False"}


def test_workers_get_few_images_at_a_time(spark, tiny, tmp_path, monkeypatch):
    for number in range(150):
        photograph(tmp_path / f"data/label/{number}.png")
    run, backbone = start(spark, tmp_path / "run", tmp_path / "data", tiny)
    monkeypatch.setattr("fruits_lib.files.IMAGES_PER_TASK", 1000)  # one task on each core
    result = write_features(run, backbone, featurizer=spied(tmp_path / "log"))
    assert result.features == 150
    sizes = list(map(int, noted(tmp_path / "log", "batch")))
    assert (max(sizes), sum(sizes)) == (64, 150)


def test_files_have_a_size_whatever_the_number_of_tasks(spark, tiny, tmp_path, monkeypatch):
    for number in range(150):
        photograph(tmp_path / f"data/label/{number}.png")
    run, backbone = start(spark, tmp_path / "run", tmp_path / "data", tiny)
    monkeypatch.setattr(stage, "FILE_BYTES", 50 * 1280 * 4)
    write_features(run, backbone, batch_size=150)
    files = list(tmp_path.glob("run/features/batch_id=0/*.parquet"))
    assert len(files) == 4
    # What makes Spark write them in half the time: no level for nulls, no dictionary.
    parquet = pyarrow.parquet.ParquetFile(files[0]).metadata
    vectors = parquet.row_group(0).column(parquet.schema.names.index("array"))
    assert vectors.path_in_schema == "features.array"
    assert "PLAIN_DICTIONARY" not in vectors.encodings


def test_all_cores_write_where_files_cost_nothing(spark):
    cores = spark.sparkContext.defaultParallelism
    assert cores > 1
    assert stage._files(Run(spark, "file:/run"), 10, 1280) == cores
    assert stage._files(Run(spark, "s3://fruits/run"), 10, 1280) == 1


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
    with pytest.raises(FruitsError, match=r"run 02_featurize first \(2 of 86 images were rejected"):
        run.read_table("features")  # what follows does not use it
    assert rows(run, "features").total() == 84
    assert write_features(run, backbone, max_reject_ratio=0.03).computed == 0


def test_a_folder_of_rejects_alone_is_no_crash(spark, tiny, tmp_path):
    for name, content in (("empty.jpg", b""), ("text.png", b"text")):
        (tmp_path / "data/label").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/label" / name).write_bytes(content)
    run, backbone = start(spark, tmp_path / "run", tmp_path / "data", tiny)
    result = write_features(run, backbone, max_reject_ratio=1)
    assert (result.features, result.rejects) == (0, 2)
    assert run.read_table("features").dtypes[3] == ("features", "array<float>")


UNREAD = {"absent": "No such file or directory", "a folder": "Is a directory"}


@pytest.mark.parametrize("fault", UNREAD)
def test_a_photograph_that_cannot_be_read_is_a_reject_until_it_can(few, fault):
    run, backbone, data = few
    path = data / "label/0.png"
    content = path.read_bytes()
    path.unlink()
    if fault == "a folder":
        path.mkdir()
    result = write_features(run, backbone, max_reject_ratio=1)
    assert (result.features, result.rejects) == (5, 1)
    run = open_run(run.spark, run.uri)
    assert stage.reject_reasons(run)["reason"][0] == f"cannot be read: {UNREAD[fault]}"
    shutil.rmtree(path, ignore_errors=True)
    path.write_bytes(content)
    result = write_features(run, backbone)
    assert (result.features, result.rejects, result.computed) == (6, 0, 1)


@pytest.mark.parametrize(("truncated", "features"), [("reject", 6), ("accept", 7)])
def test_a_truncated_jpeg_is_rejected_or_accepted_and_counted(few, truncated, features):
    run, backbone, data = few
    Image.effect_noise((64, 64), 50).save(data / "label/cut.jpg")
    content = (data / "label/cut.jpg").read_bytes()
    (data / "label/cut.jpg").write_bytes(content[: len(content) // 2])
    write_index(run, data)
    result = write_features(run, backbone, max_reject_ratio=1, truncated=truncated)
    assert (result.features, result.truncated) == (features, features - 6)
    assert ("1 of them from truncated files" in str(result)) == (truncated == "accept")
    assert run.manifest()["featurize"]["truncated"] == features - 6


def test_a_file_of_two_terabytes_is_a_reject_that_is_not_read(few):
    run, backbone, data = few
    with open(data / "label/huge.tif", "wb") as file:
        file.truncate(2 * 10**12)
    write_index(run, data)
    result = write_features(run, backbone, max_reject_ratio=1)
    assert (result.features, result.rejects) == (6, 1)
    run = open_run(run.spark, run.uri)
    reason = "2000000000000 bytes, more than max_bytes=500000000"
    assert list(stage.reject_reasons(run)["reason"]) == [reason]
    (thumbnail,) = load.thumbnails(run, ["label/huge.tif"])["reason"]
    assert thumbnail == reason
    found = origin.check_sample(run, backbone.content, 32, seed=0)
    assert all(check.passed for check in found)


def test_a_shortage_of_memory_stops_the_batch_and_says_where(few):
    run, backbone, _ = few

    def failing(*arguments):
        def run_backbone(batches):
            from unittest.mock import patch

            from fruits_lib import udf

            decode = udf._decode_image

            def fail_at_3(content, *options):
                if hashlib.sha256(content).hexdigest() == third:
                    raise MemoryError
                return decode(content, *options)

            with patch.object(udf, "_decode_image", fail_at_3):
                yield from featurizer(*arguments)(batches)

        return run_backbone

    third = hashlib.sha256((few[2] / "label/3.png").read_bytes()).hexdigest()
    message = r"^02_featurize stopped \(PhotographError: 'label/3.png': MemoryError\): run it again"
    with pytest.raises(FruitsError, match=message) as caught:
        write_features(run, backbone, featurizer=failing)
    assert "\n" not in str(caught.value)
    assert write_features(run, backbone).features == 6


# --- how photographs were decoded ---------------------------------------------------------------


@pytest.fixture
def limited(few):
    """The same with a truncated JPEG and a large one, computed: (run, backbone, data folder)."""
    run, backbone, data = few
    Image.effect_noise((64, 64), 50).save(data / "label/cut.jpg")
    content = (data / "label/cut.jpg").read_bytes()
    (data / "label/cut.jpg").write_bytes(content[: len(content) // 2])
    Image.linear_gradient("L").resize((640, 320)).save(data / "label/large.jpg")
    write_index(run, data)
    limits = {"max_pixels": 100_000, "truncated": "accept", "max_reject_ratio": 1}
    result = write_features(run, backbone, **limits)
    assert (result.features, result.truncated, result.rejects) == (7, 1, 1)
    return run, backbone, data


def killed(run, **changes):
    """Take away what 02 records at its end, and change `backbone.json`; None removes a key."""
    run.void("featurize")
    entry = {**json.loads(run.read_bytes("backbone/backbone.json")), **changes}
    kept = {name: value for name, value in entry.items() if value is not None}
    run.write_bytes("backbone/backbone.json", json.dumps(kept).encode())


def test_the_same_limits_compute_nothing_again(limited):
    run, backbone, _ = limited
    killed(run)
    limits = {"max_pixels": 100_000, "truncated": "accept", "max_reject_ratio": 1}
    assert write_features(run, backbone, **limits).computed == 0


@pytest.mark.parametrize("after", ["a kill", "its end"])
def test_another_limit_computes_again_what_limits_decide_and_nothing_else(limited, after):
    run, backbone, _ = limited
    if after == "a kill":
        killed(run)
    result = write_features(run, backbone, max_reject_ratio=1)
    assert (result.features, result.truncated, result.rejects) == (7, 0, 1)
    assert result.computed == 2
    assert rows(run, "rejects") == {"label/cut.jpg": 1}
    assert rows(run, "features") + rows(run, "rejects") == rows(run, "index")


def test_a_lower_limit_keeps_features_and_05_proves_them(few):
    run, backbone, _ = few
    write_features(run, backbone)
    assert write_features(run, backbone, max_pixels=63, max_bytes=9).computed == 0
    assert all(check.passed for check in origin.check_sample(run, backbone.content, 32, seed=0))


@pytest.mark.parametrize("ended", [True, False], ids=["finished", "killed"])
def test_a_run_of_an_older_version_goes_on_as_it_began(spark, limited, tiny, ended):
    run, _, _ = limited
    entry = run.manifest()["featurize"]
    names = ("decoding", "max_bytes", "max_pixels", "accept_truncated")
    killed(run, **dict.fromkeys(names))
    if ended:
        old = {name: entry[name] for name in entry.keys() - {"decoding", "max_bytes"}}
        manifest = {**run.manifest(), "featurize": old}
        run.write_bytes("manifest.json", json.dumps(manifest).encode())
    backbone = export_backbone(run, weights=str(tiny), input_size=32)
    with pytest.raises(FruitsError, match=r"of version 2, .* of version 1: give udf.Decoding"):
        stage.new_images(run, backbone, Decoding())
    result = write_features(run, backbone, truncated="accept")
    assert (result.features, result.computed) == (8, 2)
    content = (limited[2] / "label/large.jpg").read_bytes()
    expected = open_backbone(backbone.content)(decode_image(content, 32, Decoding(version=1)))
    found = run.read_parquet("features").filter("path = 'label/large.jpg'").first().features
    np.testing.assert_array_equal(np.float32(found), expected)
    assert run.manifest()["featurize"]["decoding"] == 1
    assert all(check.passed for check in origin.check_sample(run, backbone.content, 32, seed=0))


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
    os.utime(data / "label/old.png", (1, 1))
    (data / "label/empty.png").write_bytes(b"")
    write_index(run, data)
    result = write_features(run, backbone, max_reject_ratio=1)
    assert (result.images, result.computed) == (8, 2)
    assert rows(run, "features") + rows(run, "rejects") == rows(run, "index")


# --- failures -----------------------------------------------------------------------------------


def test_a_run_killed_between_two_writes_of_a_batch_resumes(few, monkeypatch):
    run, backbone, _ = few
    real = batches.write_rejects

    def fail(run, batch_id, rejects, digest):
        if batch_id == 1:
            raise OSError("disk full\nand more")
        real(run, batch_id, rejects, digest)

    message = (
        r"^02_featurize stopped \(OSError: disk full\): run it again, it goes on where it stop"
    )
    with monkeypatch.context() as patch:
        patch.setattr(batches, "write_rejects", fail)
        with pytest.raises(FruitsError, match=message) as caught:
            write_features(run, backbone, batch_size=2)
    assert "\n" not in str(caught.value)
    assert rows(run, "features").total() == 4  # batches 0 and 1, of which 1 is not complete
    result = write_features(run, backbone, batch_size=3)
    assert result.computed == 4
    assert rows(run, "features") == rows(run, "index")


def test_a_run_whose_first_batch_lost_its_workers_resumes(few):
    run, backbone, _ = few

    def killed(*_):
        def run_backbone(batches):
            os._exit(137)
            yield

        return run_backbone

    message = r"^02_featurize stopped \(SparkException: Python worker exited unexpectedly"
    with pytest.raises(FruitsError, match=message):
        write_features(run, backbone, featurizer=killed)
    assert write_features(run, backbone).features == 6


def remove_batch(run):
    shutil.rmtree(local(run, "features/batch_id=1"))


def remove_rejects(run):
    shutil.rmtree(local(run, "rejects"))


def double_batch(run):
    for table in ("features", "rejects"):
        shutil.copytree(local(run, f"{table}/batch_id=1"), local(run, f"{table}/batch_id=7"))


def cut_file(run):
    files = Path(local(run, "features/batch_id=1")).glob("*.parquet")
    path = max(files, key=lambda file: file.stat().st_size)  # some have no row
    path.write_bytes(path.read_bytes()[:-100])
    path.with_name(f".{path.name}.crc").unlink()


def uncommit(run):
    Path(local(run, "features/batch_id=1/_SUCCESS")).unlink()


def relabel(run):
    edit(run, "label", "'pear'")


def narrow(run):
    edit(run, "features", "slice(features, 1, 3)")


def spoil_with(number):
    def spoil(run):
        edit(run, "features", f"concat(array(float({number})), slice(features, 2, 100000))")

    return spoil


def edit(run, column, value):
    """Change a column of batch 1."""
    rows = run.read_parquet("features/batch_id=1").withColumn(column, F.expr(value))
    rows.localCheckpoint().write.mode("overwrite").parquet(run.path("features/batch_id=1"))


FAULTS = {  # what happened to a run of three batches -> photographs that are computed again
    remove_batch: 2,
    remove_rejects: 6,
    double_batch: 0,
    cut_file: (1, 2),
    uncommit: 2,
    relabel: 2,
    narrow: 2,
    **dict.fromkeys(map(spoil_with, ("null", "'NaN'", "'Infinity'", "'-Infinity'")), 2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_happened_to_the_features_02_mends_and_keeps_what_is_sound(copied, fault):
    run, backbone = copied
    before = {row.path: row.features for row in run.read_parquet("features").collect()}
    fault(run)
    result = write_features(run, backbone)
    assert rows(run, "features") == rows(run, "index")
    assert {row.path: row.features for row in run.read_parquet("features").collect()} == before
    expected = FAULTS[fault]
    assert result.computed in (expected if isinstance(expected, tuple) else (expected,))


@pytest.mark.parametrize("moment", ["write_rejects", "delete"])
def test_a_kill_while_rows_are_taken_away_loses_and_doubles_nothing(copied, monkeypatch, moment):
    run, backbone = copied
    double_batch(run)

    def fail(*_):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(batches if moment == "write_rejects" else Run, moment, fail)
        with pytest.raises(FruitsError, match="killed"):
            write_features(run, backbone)
    assert write_features(run, backbone).computed == 0
    assert rows(run, "features") == rows(run, "index")


def test_without_an_index_the_error_names_the_way_out(spark, tiny, tmp_path):
    run = open_run(spark, str(tmp_path))
    backbone = export_backbone(run, weights=str(tiny), input_size=32)
    with pytest.raises(FruitsError, match="holds no run: check the path, or run 01_load first$"):
        write_features(run, backbone)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0, 0.1), r"^max_pixels=0 is outside 1 to 178956970: choose one inside$"),
        ((178_956_971, 0.1), r"^max_pixels=178956971 is outside"),
        ((1, -0.1), r"^max_reject_ratio=-0\.1 is outside 0 to 1: choose one inside$"),
        ((1, 1.1), r"^max_reject_ratio=1\.1 is outside"),
        ((1, float("nan")), r"^max_reject_ratio=nan is outside"),
        ((1, 0.1, -1), r"^batch_size=-1 is below 0: choose 0 for 1,500 images per core$"),
        ((1, 0.1, 0, "keep"), r"^truncated='keep' is not known: choose reject or accept$"),
        ((1, 0.1, 0, "reject", 0), r"^max_bytes=0 is outside 1 to 2147483647: choose one inside$"),
        ((1, 0.1, 0, "reject", 2**31), r"^max_bytes=2147483648 is outside"),
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
    decoding = {
        "max_pixels": 50_000_000,
        "max_bytes": 500_000_000,
        "accept_truncated": False,
        "decoding": 2,
    }
    beside = json.loads(run.read_bytes("backbone/backbone.json"))
    for entry in (recorded, beside):
        assert {name: entry[name] for name in decoding} == decoding


def test_progress_counts_images_on_stdout(few, capsys):
    run, backbone, _ = few
    write_features(run, backbone, batch_size=3)
    captured = capsys.readouterr()
    assert "6/6" in captured.out
    assert captured.err == ""


def test_progress_moves_before_the_first_batch_ends(spark, tiny, tmp_path, capsys, monkeypatch):
    for number in range(40):
        photograph(tmp_path / f"data/label/{number}.png")
    run, backbone = start(spark, tmp_path / "run", tmp_path / "data", tiny)
    monkeypatch.setattr("fruits_lib.files.IMAGES_PER_TASK", 4)

    def slow(*arguments):
        run_backbone = featurizer(*arguments)

        def wait(batches):
            time.sleep(1.5)
            yield from batches

        return lambda batches: run_backbone(wait(batches))

    write_features(run, backbone, featurizer=slow)
    counts = {int(n) for n in re.findall(r"(\d+)/40", capsys.readouterr().out)}
    assert counts - {0, 40}
