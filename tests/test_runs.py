"""The run folder keeps small files under any name, and its manifest says what was done."""

import json
import re

import numpy as np
import pytest

from fruits_lib.errors import FruitsError
from fruits_lib.runs import (
    Run,
    environment,
    open_run,
    read_bytes,
    read_manifest,
    scratch_folder,
    write_bytes,
)

ODD_NAMES = ["plain", "with space", "100%", "%20", "Pêche", "a#b", "a+b", "[x]{y}", "a:b"]


@pytest.fixture
def run(spark, tmp_path):
    return open_run(spark, str(tmp_path / "run 100%"))


@pytest.mark.parametrize("name", ODD_NAMES)
def test_bytes_come_back_from_under_any_folder_name(spark, tmp_path, name):
    content = bytes(range(256)) * 100
    uri = f"{tmp_path}/{name}/file.bin"
    write_bytes(spark, uri, content)
    assert read_bytes(spark, uri) == content
    assert (tmp_path / name / "file.bin").read_bytes() == content


def test_a_file_is_replaced(run):
    run.write_bytes("file", b"long before")
    run.write_bytes("file", b"now")
    assert run.read_bytes("file") == b"now"


def test_an_empty_file_is_kept(run):
    run.write_bytes("deep/er/file", b"")
    assert run.read_bytes("deep/er/file") == b""


def test_a_missing_file_is_one_line(run):
    with pytest.raises(FruitsError, match=r"run 100%/absent does not exist: check the path$"):
        read_bytes(run.spark, run.path("absent"))


def test_exists_tells_files_and_folders_from_nothing(run):
    run.write_bytes("folder/file", b"x")
    assert run.exists("folder")
    assert run.exists("folder/file")
    assert not run.exists("folder/other")


@pytest.mark.parametrize("ending", ["", "/", "//"])
def test_the_uri_is_qualified_and_has_no_slash_at_its_end(spark, tmp_path, ending):
    assert open_run(spark, f"{tmp_path}{ending}").uri == f"file:{tmp_path}"


def test_a_path_and_its_uri_are_one_run(spark, tmp_path):
    assert open_run(spark, str(tmp_path)) == open_run(spark, f"file://{tmp_path}")


def test_without_a_name_the_run_lies_among_the_temporary_files(spark):
    assert open_run(spark).uri == f"file:{scratch_folder(spark)}/run"


def test_a_new_run_has_a_manifest(run):
    manifest = run.manifest()
    assert manifest["run"] == run.uri
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["created"])


def test_the_manifest_keeps_every_stage(run):
    run.record("load", data="file:/Pêche 100%", images=3)
    run.record("featurize", seconds=1.5)
    manifest = run.manifest()
    assert manifest["load"]["data"] == "file:/Pêche 100%"
    assert manifest["load"]["images"] == 3
    assert manifest["featurize"]["seconds"] == 1.5
    assert manifest["featurize"]["finished"] >= manifest["load"]["finished"]


def test_a_stage_that_runs_again_replaces_its_record(run):
    run.record("load", images=3, skipped=1)
    run.record("load", images=4)
    assert run.manifest()["load"].keys() == {"images", "seconds", "finished"}


def test_the_manifest_says_what_is_needed_to_repeat_a_run(run):
    run.record("load")
    recorded = run.manifest()["environment"]
    assert recorded == environment(run.spark)
    assert recorded["spark"].startswith("3.5.")
    assert recorded["packages"]["pyspark"] == recorded["spark"]
    assert recorded["master"] == "local[2]"


def test_people_can_read_the_manifest(run, tmp_path):
    run.record("load", data="Pêche")
    text = (tmp_path / "run 100%" / "manifest.json").read_text(encoding="utf-8")
    assert '"data": "Pêche"' in text
    assert json.loads(text) == run.manifest()


def test_a_table_comes_back(run):
    run.spark.range(5).write.parquet(run.path("numbers"))
    assert run.read_table("numbers").count() == 5


def test_a_missing_part_names_the_way_out(run):
    way_out = "is missing: run the notebook that writes {} first$"
    with pytest.raises(FruitsError, match="/features " + way_out.format("features")):
        run.read_table("features")
    with pytest.raises(FruitsError, match="/spectrum.npz " + way_out.format("spectrum")):
        run.read_bytes("spectrum/spectrum.npz")


@pytest.mark.parametrize("uri", ["nope://bucket/run", "", "a:b/c"])
def test_what_cannot_be_reached_is_one_line(spark, uri):
    with pytest.raises(FruitsError, match=r"cannot be reached .*: check the path") as caught:
        Run(spark, uri).exists("x") if uri else read_bytes(spark, uri)
    assert "\n" not in str(caught.value)


def test_the_manifest_is_read_without_spark_too(run, tmp_path):
    run.record("load", data="s3://bucket/photographs")
    for run_dir in (tmp_path / "run 100%", f"{tmp_path}/run 100%/", run.uri):
        assert read_manifest(str(run_dir)) == run.manifest()
    assert read_manifest(str(tmp_path / "absent")) == {}


def test_the_photographs_are_those_that_the_manifest_names(spark, run):
    run.record("load", data="s3://bucket/photographs")
    assert open_run(spark, run.uri).data == "s3://bucket/photographs"
    assert open_run(spark, run.uri, "/elsewhere/").data == "file:/elsewhere"


@pytest.mark.parametrize("values", [{"k": 3, "variance": None}, {"x": np.arange(3.0), "b": True}])
def test_arrays_and_scalars_come_back(run, values):
    run.write_npz("values.npz", values)
    found = run.read_npz("values.npz")
    assert found.keys() == {name for name, value in values.items() if value is not None}
    for name, value in found.items():
        np.testing.assert_array_equal(value, values[name])
        assert type(value) is type(values[name])
