"""The run folder keeps small files under any name, and its manifest says what was done."""

import json
import os
import pwd
import re
import shutil
import stat
import tempfile

import numpy as np
import pytest
from pipeline import entry as entry_of

from fruits_lib.apply import open_known
from fruits_lib.environment import environment
from fruits_lib.errors import FruitsError
from fruits_lib.results import open_results
from fruits_lib.runs import Run, open_run, read_bytes, read_manifest, scratch_folder, write_bytes
from fruits_lib.stages import STAGES, needed

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


def test_a_file_is_replaced_whole_where_only_hadoop_writes(spark, tmp_path):
    """By a rename: another name of the old file keeps its content."""
    (tmp_path / "file").write_bytes(b"before")
    os.link(tmp_path / "file", tmp_path / "old")
    write_bytes(spark, f"{tmp_path}/file", b"after")
    found = [(tmp_path / name).read_bytes() for name in ("old", "file")]
    assert found == [b"before", b"after"]
    assert not list(tmp_path.glob("*.part"))


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


@pytest.mark.parametrize("name", [*ODD_NAMES, "a,b", "a*b?", "x y/"])
def test_tables_and_files_come_back_from_a_run_folder_of_any_name(spark, tmp_path, name):
    (tmp_path / "abcb").mkdir()  # which a pattern would match too
    run = open_run(spark, f"{tmp_path}/{name}")
    with run.step("load") as entry:
        spark.range(3).selectExpr("string(id) as path").write.parquet(run.path("index"))
        entry.update(entry_of("load", files=3))
    assert run.read_table("index").count() == 3
    assert open_run(spark, f"{tmp_path}/{name}").require("load")["files"] == 3


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


def record(run, stage, **entries):
    with run.step(stage) as entry:
        entry.update(entry_of(stage, **entries))


def test_the_manifest_keeps_every_stage(run):
    record(run, "load", data="file:/Pêche 100%", images=3)
    record(run, "featurize", seconds=1.5)
    manifest = run.manifest()
    assert manifest["load"]["data"] == "file:/Pêche 100%"
    assert manifest["load"]["images"] == 3
    assert manifest["featurize"]["seconds"] == 1.5
    assert manifest["featurize"]["finished"] >= manifest["load"]["finished"]


def test_a_stage_that_runs_voids_itself_and_what_was_made_from_it(run):
    for stage in reversed(STAGES):
        for each in STAGES:
            record(run, each, old=True)
        with pytest.raises(KeyError), run.step(stage):
            raise KeyError  # as if it were killed
        # Whatever is written, the scores of another run's model do not stay.
        void = {"apply", *(later for later in STAGES if stage in (later, *needed(later)))}
        assert set(STAGES) & run.manifest().keys() == set(STAGES) - void


def test_neither_the_proof_nor_the_labels_void_each_other(run):
    for each in STAGES:
        record(run, each)
    run.void("classify")
    assert "verify" in run.manifest()
    run.void("verify")
    assert set(STAGES) & run.manifest().keys() == set(STAGES) - {"classify", "verify", "apply"}


def test_a_stage_needs_those_before_it(run):
    record(run, "load")
    message = r"run 02_featurize first \(its result is missing or was made from an older one\)$"
    with pytest.raises(FruitsError, match=message):
        record(run, "pick_k")


def test_a_stage_that_refused_its_result_is_not_used(run):
    record(run, "load", error="too many rejects")
    with pytest.raises(FruitsError, match=r"run 01_load first \(too many rejects\)$"):
        record(run, "featurize")


@pytest.mark.parametrize("stage", ["load", "featurize", "pick_k", "pca"])
def test_a_finished_run_is_replaced_only_with_overwrite(run, spark, stage):
    for each in STAGES:
        record(run, each, passed=2, checks=[{}, {}])
    with pytest.raises(FruitsError, match=r"^run_dir=.* holds a run finished .*overwrite=True"):
        open_run(spark, run.uri, stage=stage)
    assert open_run(spark, run.uri, stage=stage, overwrite=True) == run
    open_run(spark, run.uri, stage="verify")


def test_a_verified_run_may_get_the_labels_that_it_has_not(run, spark):
    for each in (*needed("verify"), "verify"):
        record(run, each, passed=2, checks=[{}, {}])
    open_run(spark, run.uri, stage="classify")


def test_a_run_that_failed_its_checks_may_be_continued(run, spark):
    for each in STAGES:
        record(run, each, passed=1, checks=[{}, {}])
    open_run(spark, run.uri, stage="pick_k")


def test_a_run_of_an_older_version_is_refused_in_one_line(run, spark):
    run.write_bytes("manifest.json", json.dumps({"load": {"images": 3}}).encode())
    with pytest.raises(FruitsError, match=r"older version .*: give another run_dir$"):
        open_run(spark, run.uri)


LOAD = entry_of("load")
DAMAGED = {  # a manifest -> what is said of it
    "a list": ([], r"manifest\.json is not the manifest of a run: remove it and run from 01"),
    "null": (None, "is not the manifest of a run"),
    "another program's": ({"created": 5}, "is not the manifest of a run"),
    "an entry that is null": ({"load": None}, r"\(load is None\): remove load from it and run 01_"),
    "an entry that is a list": (
        {"load": LOAD, "pca": [1]},
        r"\(pca is \[1\]\): .* run 04_pca again",
    ),
    "an empty entry": (
        {"classify": {}},
        r"\(classify has no fitted_on\): .* run 06_classify again",
    ),
    "an entry that lacks a key": (
        {"load": {**LOAD, "images": None}},
        r"\(load has images=None\)",
    ),
    "a figure that is text": ({"pca": {"k": "7"}}, r"\(pca has k='7'\)"),
    "an inner key": (
        {"pick_k": {**entry_of("pick_k"), "raw": {"k": 1}}},
        r"\(pick_k has no raw.explained_variance\)",
    ),
    "no versions": ({"environment": {}}, r"\(environment has no fruits_lib\): remove environment"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_manifest_that_is_none_is_one_line_for_all_who_read_it(run, spark, tmp_path, damage):
    content, line = DAMAGED[damage]
    run.write_bytes("manifest.json", json.dumps(content).encode())
    for read in (run.manifest, lambda: open_run(spark, run.uri), lambda: open_results(run.uri)):
        with pytest.raises(FruitsError, match=line) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_damaged_manifest_is_one_line(run, spark):
    run.write_bytes("manifest.json", b'{"load": {')
    with pytest.raises(FruitsError, match=r"manifest\.json is not JSON: remove it and run from 01"):
        open_run(spark, run.uri)


def test_what_spark_raises_in_a_stage_is_one_line(run, spark):
    message = r"^01_load stopped \(.+\): run it again"
    with pytest.raises(FruitsError, match=message) as caught, run.step("load"):
        spark.read.parquet(run.path("absent"))
    assert "\n" not in str(caught.value)


def test_it_says_where_it_reads_and_writes(spark, tmp_path):
    run = open_run(spark, str(tmp_path / "run"), str(tmp_path / "data"))
    assert str(run) == f"photographs: {tmp_path}/data\nresults:     {tmp_path}/run"


def test_the_manifest_says_what_is_needed_to_repeat_a_run(run):
    record(run, "load")
    recorded = run.manifest()["environment"]
    assert recorded == environment(run.spark)
    assert recorded["spark"].startswith("3.5.")
    assert recorded["packages"]["pyspark"] == recorded["spark"]
    assert recorded["master"] == "local[2]"


def test_people_can_read_the_manifest(run, tmp_path):
    record(run, "load", data="Pêche")
    text = (tmp_path / "run 100%" / "manifest.json").read_text(encoding="utf-8")
    assert '"data": "Pêche"' in text
    assert json.loads(text) == run.manifest()


def test_a_missing_part_names_the_way_out(run):
    for stage in STAGES:
        record(run, stage)
    with pytest.raises(FruitsError, match="/features is missing: run 02_featurize again$"):
        run.read_table("features")
    with pytest.raises(FruitsError, match=r"/spectrum\.npz is missing: run 03_pick_k again$"):
        run.read_bytes("spectrum/spectrum.npz")


@pytest.mark.parametrize("uri", ["nope://bucket/run", ""])
def test_what_cannot_be_reached_is_one_line(spark, uri):
    with pytest.raises(FruitsError, match=r"cannot be reached .*: check the path") as caught:
        Run(spark, uri).exists("x") if uri else read_bytes(spark, uri)
    assert "\n" not in str(caught.value)


def test_the_manifest_is_read_without_spark_too(run, tmp_path):
    record(run, "load", data="s3://bucket/photographs")
    for run_dir in (tmp_path / "run 100%", f"{tmp_path}/run 100%/", run.uri):
        assert read_manifest(str(run_dir)) == run.manifest()
    assert read_manifest(str(tmp_path / "absent")) == {}


def test_the_photographs_are_those_that_the_manifest_names(spark, run):
    record(run, "load", data="s3://bucket/photographs")
    assert open_run(spark, run.uri).data == "s3://bucket/photographs"
    assert open_run(spark, run.uri, "/elsewhere/").data == "file:/elsewhere"


@pytest.mark.parametrize(
    ("data", "run_dir"), [("/photographs", "file:///photographs/run"), ("/run/data", "/run")]
)
def test_a_run_folder_that_overlaps_the_photographs_is_refused(spark, data, run_dir):
    with pytest.raises(FruitsError, match="run_dir=.* and data=.* overlap"):
        open_run(spark, run_dir, data)


@pytest.mark.parametrize("values", [{"k": 3, "variance": None}, {"x": np.arange(3.0), "b": True}])
def test_arrays_and_scalars_come_back(run, values):
    run.write_npz("values.npz", values)
    found = run.read_npz("values.npz")
    assert found.keys() == {name for name, value in values.items() if value is not None}
    for name, value in found.items():
        np.testing.assert_array_equal(value, values[name])
        assert type(value) is type(values[name])


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("load", "apply")])
def test_a_folder_without_a_run_is_said_when_a_notebook_opens_it(spark, tmp_path, stage):
    message = "/absent does not exist or holds no run: check the path, or run 01_load first$"
    with pytest.raises(FruitsError, match=message):
        open_run(spark, f"{tmp_path}/absent", stage=stage)
    assert not (tmp_path / "absent").exists()


def test_a_folder_without_a_run_has_nothing_to_apply(spark, tmp_path):
    with pytest.raises(FruitsError, match="/absent does not exist or holds no run"):
        open_known(spark, f"{tmp_path}/absent")


def test_what_a_notebook_needs_is_said_when_it_opens_the_run(run, spark, tmp_path):
    record(run, "load")
    record(run, "featurize")
    with pytest.raises(FruitsError, match="run 03_pick_k first"):
        open_run(spark, run.uri, stage="pca")
    assert not (tmp_path / "run 100%/.lease").exists()


def test_a_run_that_was_copied_says_where_it_lies(run, spark, tmp_path):
    record(run, "load")
    copy = open_run(spark, str(shutil.copytree(tmp_path / "run 100%", tmp_path / "copy")))
    assert copy.manifest()["run"] == f"file:{tmp_path}/copy"
    record(copy, "featurize")
    assert read_manifest(copy.uri)["run"] == f"file:{tmp_path}/copy"


# --- temporary files ----------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty folder for temporary files, which all users share; the name of ours in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"fruits-{pwd.getpwuid(os.geteuid()).pw_name}"


def test_the_folder_of_the_sample_is_the_user_s_alone(spark, temporary):
    temporary.mkdir(mode=0o755)
    assert scratch_folder(spark) == str(temporary)
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700


def test_a_folder_that_another_user_made_first_is_refused_in_one_line(spark, temporary, tmp_path):
    (tmp_path / "theirs").mkdir()
    temporary.symlink_to(tmp_path / "theirs")
    with pytest.raises(FruitsError, match=r"cannot be used \(it is a link\): remove it, or set TM"):
        open_run(spark)
    temporary.unlink()
    temporary.write_text("")
    with pytest.raises(
        FruitsError, match=r"cannot be used \(File exists\): remove it, or set TMPD"
    ):
        open_run(spark)
    if os.geteuid() == 0:
        temporary.unlink()
        temporary.mkdir()
        os.chown(temporary, 12345, 12345)
        with pytest.raises(FruitsError, match=r"\(it belongs to uid 12345\): remove it, or set TM"):
            open_run(spark)
