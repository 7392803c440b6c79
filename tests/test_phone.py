"""`fruits export --run-dir`: one file for an app answers what Spark answered."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from classified import reduced
from click.testing import CliRunner
from pipeline import classify_scores

from fruits_lib import cli
from fruits_lib.phone import TOLERANCE, export_run
from fruits_lib.results import open_results
from fruits_lib.udf import decode_image, open_backbone


@pytest.fixture(scope="module")
def unlabelled(spark, sample, tiny, tmp_path_factory):
    return reduced(spark, tmp_path_factory.mktemp("phone") / "run", sample, tiny)


@pytest.fixture(scope="module")
def exported(unlabelled, tmp_path_factory):
    """A run with a classifier, the folder for the app, and what was exported: in int8."""
    classify_scores(unlabelled)
    folder, target = unlabelled.uri.removeprefix("file:"), tmp_path_factory.mktemp("app")
    return folder, target, export_run(folder, str(target), "int8")


def refusal(*arguments):
    answer = CliRunner().invoke(cli.main, ["export", *map(str, arguments)])
    assert answer.exit_code == 1
    (line,) = answer.stderr.splitlines()
    return line


def test_float32_answers_what_spark_answered(exported):
    plain = exported[2].agreements[0]
    assert plain.precision == "float32"
    assert plain.same_label == 1
    assert plain.difference <= TOLERANCE


def test_it_is_judged_by_the_tested_photographs(exported):
    run = open_results(exported[0])
    entry = run.require("classify")
    assert (exported[2].photographs, exported[2].split) == (entry["tested"], "Test")
    assert exported[2].agreements[0].accuracy == pytest.approx(entry["accuracy"])


def test_int8_is_smaller_and_takes_the_same_photograph(exported):
    plain, small = exported[2].agreements
    assert small.precision == "int8"
    assert small.size < plain.size / 2
    assert small.same_label > 0.8


def test_the_file_alone_labels_photographs(exported, sample):
    content = Path(exported[2].file).read_bytes()
    with zipfile.ZipFile(exported[2].file) as archive:
        labels = archive.read("labels.txt").decode().splitlines()
        facts = json.loads(archive.read("metadata.json"))
    assert facts["labels"] == labels
    infer, right = open_backbone(content), []
    for row in open_results(exported[0]).read_table("labels", ["path", "label"]).to_pylist():
        if row["path"].startswith("Test/"):
            probabilities = infer(decode_image((sample / row["path"]).read_bytes(), 32))
            assert probabilities.dtype == np.float32
            assert probabilities.sum() == pytest.approx(1, abs=0.02)  # int8 rounds each of them
            right.append(labels[probabilities.argmax()] == row["label"])
    assert np.mean(right) == pytest.approx(exported[2].agreements[1].accuracy)


def test_the_table_lies_beside_the_file(exported):
    table = exported[1].joinpath(exported[2].file.replace(".tflite", ".md")).read_text()
    assert table == f"{exported[2]}\n"
    assert "| same label as Spark" in table


def test_a_run_without_a_classifier_names_06(unlabelled, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    manifest = unlabelled.manifest()
    manifest.pop("classify", None)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    line = refusal("--run-dir", folder, "--to", tmp_path / "app")
    assert "run 06_classify first" in line
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "int4"], "--precision int4 is not known: choose one of float32"),
        (["--pooling", "max"], "--pooling max is given by --run-dir: leave it out"),
        (["--weights", "none.h5"], "weights=none.h5 cannot be read"),
    ],
    ids=["precision", "pooling", "weights"],
)
def test_bad_options_are_one_line(exported, tmp_path, arguments, words):
    assert words in refusal("--run-dir", exported[0], "--to", tmp_path / "app", *arguments)


def test_precision_belongs_to_a_run(tmp_path):
    assert "belongs to --run-dir" in refusal("--precision", "int8", "--to", tmp_path / "a.tflite")
