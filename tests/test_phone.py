"""`fruits export --run-dir`: one file for an app answers what Spark answered."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from classified import reduced
from click.testing import CliRunner
from pipeline import classify_scores

from fruits_lib import appfile, cli, phone, splits
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
    assert (exported[2].photographs, exported[2].tested_on) == (entry["tested"], "Test")
    assert exported[2].agreements[0].accuracy == pytest.approx(entry["accuracy"])


def test_without_split_folders_it_is_judged_by_what_06_did_not_fit(spark, run_of_paths):
    """The division, without Spark, is that of 06."""
    seed, table = 3, run_of_paths
    parts = splits.divide(spark.createDataFrame(table), seed)
    entry = {"fitted_on": parts.fitted_on, "tested_on": parts.tested_on, "seed": seed}
    for ours, theirs in zip(phone._parts(table, entry), (parts.training, parts.test), strict=True):
        assert set(ours["path"]) == {row.path for row in theirs.select("path").collect()}
        assert len(ours) == theirs.count() > 0


@pytest.fixture
def run_of_paths():
    sizes = {"Pêche": 1, "apple": 2, "a\nb": 5, "pear": 33}
    rows = [
        (f"{label}/{n}é.jpg", label, None) for label, size in sizes.items() for n in range(size)
    ]
    return pd.DataFrame(rows, columns=["path", "label", "split"]).astype({"split": "string"})


def test_split_folders_divide_as_in_06(spark, run_of_paths):
    table = run_of_paths.assign(split=["Training", "Test"] * 20 + ["Test"])
    table.loc[len(table)] = "new/1.jpg", "a label that Training lacks", "Test"
    parts = splits.divide(spark.createDataFrame(table))
    entry = {"fitted_on": parts.fitted_on, "tested_on": parts.tested_on, "seed": 0}
    for ours, theirs in zip(phone._parts(table, entry), (parts.training, parts.test), strict=True):
        assert set(ours["path"]) == {row.path for row in theirs.select("path").collect()}


ODD_LABELS = [
    "a\nb",
    "a\\nb",
    "a\rb",
    "a\vb",
    "a\fb",
    "a\x1cb",
    "a\x85b",
    "a\u2028b",
    "a\u2029b",
    "a b",
]


def test_each_label_is_one_line_whatever_divides_lines(tiny):
    file = appfile.pack(tiny.read_bytes(), "odd", ODD_LABELS, {"labels": ODD_LABELS})
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        text = archive.read("labels.txt").decode()
        assert json.loads(archive.read("metadata.json"))["labels"] == ODD_LABELS
    for lines in (text.splitlines(), text.removesuffix("\n").split("\n")):
        assert len(set(lines)) == len(lines) == len(ODD_LABELS)
        assert [line.encode().decode("unicode_escape") for line in lines] == ODD_LABELS


def test_a_file_whose_labels_are_shifted_is_refused(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(appfile, "read_labels", lambda file: (["a"], ["a"]))
    words = "labels.txt of the file does not hold the"
    assert words in refusal("--run-dir", exported[0], "--to", tmp_path / "app")
    assert not list((tmp_path / "app").iterdir())


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(10, 10, 0.7225, 1), (0, 10, 0, 0.2775), (81, 263, 0.2553, 0.3662)],  # Newcombe (1998)
)
def test_the_interval_is_wilson_s(right, n, low, high):
    assert phone.interval(right / n, n) == pytest.approx((low, high), abs=5e-5)


def agreed(exported, **changes):
    found = exported[2]
    return replace(
        found, agreements=[*found.agreements[:1], replace(found.agreements[1], **changes)]
    )


def test_few_photographs_for_the_ranges_are_told(exported):
    assert exported[2].calibrated < phone.CALIBRATION
    line = f"by {exported[2].calibrated} photographs, fewer than 200"
    assert line in str(exported[2])
    assert "fewer than" not in str(replace(exported[2], calibrated=200))


@pytest.mark.parametrize(("precision", "bound"), [("float16", 0.01), ("int8", 0.05)])
def test_a_difference_beyond_the_bound_is_a_fault(exported, precision, bound):
    assert agreed(exported, precision=precision, difference=bound).fault == ""
    for difference in (bound * 1.1, float("nan")):
        beyond = agreed(exported, precision=precision, difference=difference)
        assert beyond.fault.startswith(f"{precision} differs from Spark by {difference:.1e} in a ")
        assert f"more than {bound}: give --precision float" in beyond.fault
        assert beyond.fault in str(beyond)


def test_the_exit_code_says_that_the_file_is_too_far_from_spark(exported, tmp_path, monkeypatch):
    beyond = agreed(exported, difference=0.19)
    monkeypatch.setattr(phone, "export_run", lambda *_, **__: beyond)
    answer = CliRunner().invoke(cli.main, ["export", "--run-dir", "a", "--to", "b"])
    assert answer.exit_code == 1
    assert answer.stdout == f"{beyond}\n"
    assert answer.stderr == f"fruits: {beyond.fault}\n"


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
