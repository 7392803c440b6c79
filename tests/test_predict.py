"""`fruits predict`: what a run says of a photograph, without Spark, as Spark says it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from classified import reduced
from click.testing import CliRunner
from PIL import Image
from pipeline import classify_scores

from fruits_lib import cli, predict
from fruits_lib.errors import FruitsError
from fruits_lib.results import open_results
from fruits_lib.runs import open_run
from fruits_lib.udf import Decoding

WITHOUT = """
import sys
from fruits_lib.cli import main
main(sys.argv[1:], standalone_mode=False)
print(sorted({"pyspark", "tensorflow", "keras", "pandas"} & sys.modules.keys()))
"""


@pytest.fixture(scope="module")
def photographs(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "photo graphs 100%"
    shutil.copytree(sample, folder)
    return folder


@pytest.fixture(scope="module")
def unlabelled(spark, photographs, tiny, tmp_path_factory):
    """A run without a classifier."""
    folder = tmp_path_factory.mktemp("runs") / "run=1 [a]"
    reduced(spark, folder, photographs, tiny)
    return folder


@pytest.fixture(scope="module")
def folder(spark, unlabelled, tmp_path_factory):
    """The same run with a classifier."""
    folder = tmp_path_factory.mktemp("runs") / "classified"
    shutil.copytree(unlabelled, folder)
    classify_scores(open_run(spark, str(folder)))
    return folder


def files(photographs, paths):
    return [f"{photographs}/{path}" for path in paths]


def fruits(*arguments):
    return CliRunner().invoke(cli.main, ["predict", *map(str, arguments)])


def refusal(*arguments):
    answer = fruits(*arguments)
    assert answer.exit_code == 1
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    return line


def changed(folder, tmp_path, **stages):
    """Return a copy of a run whose manifest has other entries; None removes one."""
    shutil.copytree(folder, tmp_path / "changed")
    file = tmp_path / "changed" / "manifest.json"
    manifest = {**json.loads(file.read_text(encoding="utf-8")), **stages}
    kept = {name: entry for name, entry in manifest.items() if entry is not None}
    file.write_text(json.dumps(kept), encoding="utf-8")
    return file.parent


# --- the same answers as Spark's ----------------------------------------------------------------


def test_scores_are_those_of_spark(folder, photographs):
    known = pd.read_parquet(folder / "pca")[::7]
    found = predict.predict(open_results(str(folder)), files(photographs, known["path"]))
    expected = np.stack(known["pca"])
    ours = np.stack([prediction.scores for prediction in found])
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def test_labels_are_those_of_06(folder, photographs):
    known = pd.read_parquet(folder / "labels")[::7]
    found = predict.predict(open_results(str(folder)), files(photographs, known["path"]))
    assert [prediction.guesses[0][0] for prediction in found] == list(known["predicted"])
    probabilities = [prediction.guesses[0][1] for prediction in found]
    np.testing.assert_allclose(probabilities, known["probability"], atol=1e-5)


def test_the_second_guess_is_the_next_likely(folder, photographs):
    path = pd.read_parquet(folder / "labels")["path"][0]
    (found,) = predict.predict(open_results(str(folder)), [f"{photographs}/{path}"])
    (first, high), (second, low) = found.guesses
    assert first != second
    assert high >= low > 0


def test_a_known_photograph_is_nearest_to_itself(folder, photographs):
    known = pd.read_parquet(folder / "pca").sort_values("path")
    (found,) = predict.predict(open_results(str(folder)), files(photographs, known["path"][3:4]))
    assert found.nearest[0].path == known["path"].iloc[3]
    distances = np.linalg.norm(np.stack(known["pca"]) - found.scores, axis=1)
    assert [near.distance for near in found.nearest] == pytest.approx(sorted(distances)[:5])


# --- rejects and options of the run -------------------------------------------------------------


def test_a_reject_has_the_reason_of_02(folder, photographs):
    rejects = pd.read_parquet(folder / "rejects").sort_values("path")
    assert len(rejects) == 3
    found = predict.predict(open_results(str(folder)), files(photographs, rejects["path"]))
    assert [prediction.reason for prediction in found] == list(rejects["reason"])


def test_the_run_s_own_options_decide_what_is_rejected(folder, photographs, tmp_path):
    entry = open_results(str(folder)).require("featurize")
    strange = changed(
        folder, tmp_path, featurize={**entry, "max_pixels": 20_000, "accept_truncated": True}
    )
    names = ["Test/Grape Blue/truncated.jpg", "Test/Apple Braeburn/r_2_100.jpg"]
    accepted, large = predict.predict(open_results(str(strange)), files(photographs, names))
    assert accepted.reason == ""
    assert large.reason == "76800 pixels, more than max_pixels=20000"


def test_a_file_beyond_the_bound_is_a_reject(folder, photographs, tmp_path):
    entry = open_results(str(folder)).require("featurize")
    strange = changed(folder, tmp_path, featurize={**entry, "max_bytes": 1000})
    (path,) = files(photographs, ["Test/Apple Braeburn/r_2_100.jpg"])
    (found,) = predict.predict(open_results(str(strange)), [path])
    assert found.reason == "at least 1001 bytes, more than max_bytes=1000"
    assert len(found.content) == 1001


def test_a_run_of_an_older_version_is_predicted_as_it_was_decoded(folder, tmp_path):
    Image.effect_noise((640, 640), 90).save(tmp_path / "large.jpg")
    entry = open_results(str(folder)).require("featurize")
    older = {name: entry[name] for name in entry.keys() - {"decoding", "max_bytes"}}
    old, new = (
        open_results(str(place)) for place in (changed(folder, tmp_path, featurize=older), folder)
    )
    assert old.decoding.version == 1
    assert new.decoding == Decoding()
    (one,), (other,) = (predict.predict(run, [str(tmp_path / "large.jpg")]) for run in (old, new))
    assert not np.array_equal(one.scores, other.scores)


# --- the command --------------------------------------------------------------------------------


def test_a_device_is_one_line(folder):
    assert (
        refusal("/dev/zero", "--run-dir", folder)
        == "fruits: /dev/zero is a device: give photographs"
    )


def test_prints_label_second_guess_and_neighbours(folder, photographs):
    path = photographs / pd.read_parquet(folder / "labels")["path"][0]
    answer = fruits(path, "--run-dir", folder)
    assert (answer.exit_code, answer.stderr) == (0, "")
    name, *lines = answer.stdout.splitlines()
    assert name == str(path)
    assert [line[2:17].strip() for line in lines] == ["label", "second guess", "nearest", *[""] * 4]
    assert all("%" in line for line in lines[:2])
    assert len({line.index(line.split("  ")[-1]) for line in lines[2:]}) == 1  # one column


def test_without_a_classifier_prints_scores_and_neighbours(unlabelled, photographs):
    path = photographs / pd.read_parquet(unlabelled / "pca")["path"][0]
    answer = fruits(path, "--run-dir", unlabelled)
    assert answer.exit_code == 0
    assert answer.stdout.splitlines()[1].startswith("  scores         ")
    assert "label  " not in answer.stdout
    assert "\n  nearest " in answer.stdout


def test_the_exit_code_tells_of_a_reject(folder, photographs):
    good = photographs / pd.read_parquet(folder / "labels")["path"][0]
    answer = fruits(photographs / "Training/Cherry 1/empty.jpg", good, "--run-dir", folder)
    assert (answer.exit_code, answer.stderr) == (1, "")
    assert "  rejected       empty file\n" in answer.stdout
    assert "  label " in answer.stdout


def test_needs_neither_spark_nor_tensorflow_nor_pandas(folder, photographs):
    path = photographs / pd.read_parquet(folder / "labels")["path"][0]
    command = [sys.executable, "-c", WITHOUT, "predict", path, "--run-dir", folder]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.stdout.splitlines()[-1] == "[]", answer.stderr
    assert answer.stderr == ""


@pytest.mark.parametrize("number", [1, 8])
def test_draws_every_photograph_in_a_row(number, folder, photographs, tmp_path):
    paths = pd.read_parquet(folder / "labels")["path"][:number]
    target = tmp_path / "figure.png"
    chosen = [photographs / path for path in paths]
    answer = fruits(*chosen, "--run-dir", folder, "--figure", target)
    assert answer.exit_code == 0
    width, height = Image.open(target).size
    assert 1000 < width < 1600
    assert height > 200 * number


def test_draws_rejects_and_photographs_that_are_gone(folder, photographs, tmp_path):
    entry = open_results(str(folder)).require("load")
    moved = changed(folder, tmp_path, load={**entry, "data": f"file:{tmp_path}/gone"})
    good = photographs / pd.read_parquet(folder / "labels")["path"][0]
    bad = photographs / "Training/mango_ripe/text.jpg"
    answer = fruits(good, bad, "--run-dir", moved, "--figure", tmp_path / "figure.png")
    assert answer.exit_code == 1
    assert Image.open(tmp_path / "figure.png").size[1] > 400


# --- what cannot be done ------------------------------------------------------------------------


def test_bad_input_is_one_line(folder, photographs, tmp_path):
    path = photographs / pd.read_parquet(folder / "labels")["path"][0]
    assert "holds no run" in refusal(path, "--run-dir", tmp_path)
    assert "nope.jpg cannot be read (there is no such file)" in refusal(
        tmp_path / "nope.jpg", "--run-dir", folder
    )
    assert f"{photographs} is a folder" in refusal(photographs, "--run-dir", folder)
    assert "does not end in .png" in refusal(path, "--run-dir", folder, "--figure", "a.jpg")
    assert "cannot be read (" in refusal("nowhere://a/b.jpg", "--run-dir", folder)


@pytest.mark.parametrize(
    ("missing", "way_out"),
    [("pca", "run 04_pca again"), ("model.npz", "run 04_pca again")]
    + [("backbone", "run 02_featurize again"), ("classifier.npz", "run 06_classify again")],
)
def test_a_run_that_lost_a_part_names_the_step(missing, way_out, folder, photographs, tmp_path):
    broken = changed(folder, tmp_path)
    part = broken / missing
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    path = photographs / pd.read_parquet(folder / "labels")["path"][0]
    line = refusal(path, "--run-dir", broken)
    assert f"/{missing}" in line
    assert line.endswith(f"is missing: {way_out}")


def test_damaged_parts_are_one_line(folder, photographs, tmp_path):
    path = photographs / pd.read_parquet(folder / "labels")["path"][0]
    broken = changed(folder, tmp_path)
    (broken / "classifier.npz").write_bytes(b"PK")
    assert "classifier.npz is damaged (" in refusal(path, "--run-dir", broken)
    (broken / "manifest.json").write_text("{")
    assert "manifest.json is not JSON: remove it" in refusal(path, "--run-dir", broken)


def test_a_run_without_scores_names_04(folder, tmp_path):
    early = changed(folder, tmp_path, pca=None)
    with pytest.raises(FruitsError, match="run 04_pca first"):
        predict.predict(open_results(str(early)), ["any.jpg"])


def test_a_void_classifier_is_not_used(folder, photographs, tmp_path):
    void = changed(folder, tmp_path, classify=None)
    path = photographs / pd.read_parquet(folder / "labels")["path"][0]
    (found,) = predict.predict(open_results(str(void)), [str(path)])
    assert found.guesses == []
    assert len(found.nearest) == 5
