"""03, 04: which photographs are fitted, and the scores as text; test_pca.py has the mathematics."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pipeline import pick_k, write_scores
from test_verify import write_images
from vectors import assert_one_line

from fruits_lib import models, moments, pca, reduce, scores_csv
from fruits_lib.errors import FruitsError
from fruits_lib.runs import open_run

ODD = ['a "b", c.jpg', " lead and trail ", "line\nbreak.png", "back\\slash.jpg", "é 100%.jpg"]


@pytest.fixture(scope="module")
def run(spark, tmp_path_factory):
    """A run before 03: features of 20 Training, 9 Test and 9 photographs without a split."""
    folder = tmp_path_factory.mktemp("reduce")
    run = open_run(spark, str(folder))
    write_images(run, folder)
    return run


def of_split(run, split):
    table = run.read_table("features").filter(f"split = '{split}'").toPandas()
    return np.stack(table["features"]).astype(float)


# --- one split ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["Training", "train", "TRAINING"])
def test_a_split_has_the_spellings_of_its_folders(run, spelling):
    assert reduce.fitted_split(run, spelling) == "Training"


@pytest.mark.parametrize(
    ("split", "k", "words"),
    [
        ("Validation", 0, "has 0 photographs with features, at least 2 are needed"),
        ("Test", 9, "has 9 photographs with features, at least 10 are needed"),
        ("Exam", 0, "is not a split: give one of Training, Test, Validation"),
    ],
)
def test_a_split_with_too_few_photographs_is_one_line(run, split, k, words):
    with pytest.raises(FruitsError) as error:
        reduce.fitted_split(run, split, k)
    assert_one_line(error, split, words)
    if split != "Exam":
        assert_one_line(error, "there are Training (20), no split (9), Test (9)")


def test_the_model_is_that_of_the_split_and_the_scores_are_those_of_all(run):
    pick_k(run, k=3, fit_split="train")
    write_scores(run)
    model, training = run.read_npz("model.npz"), of_split(run, "Training")
    np.testing.assert_allclose(model["mean"], training.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(
        model["eigenvalues"],
        np.linalg.eigvalsh(np.cov(training.T))[::-1][:3],
        rtol=1e-9,
    )
    recorded = run.manifest()
    assert (recorded["pick_k"]["fit_split"], recorded["pick_k"]["images"]) == ("Training", 20)
    assert recorded["pca"]["images"] == 38


def test_the_texts_name_the_split(run):
    pick_k(run, k=3, fit_split="test")
    assert str(write_scores(run)).endswith("% of the variance of Test")


def test_without_a_split_all_are_fitted_and_the_manifest_says_so(run):
    pick_k(run, k=3)
    assert not str(write_scores(run)).endswith("Test")
    picked = run.manifest()["pick_k"]
    assert (picked["fit_split"], picked["images"]) == ("", 38)


def test_moments_of_other_rows_than_the_split_s_are_refused(run):
    spectrum = pca.spectrum(moments.compute(run.read_table("features")), "Training")
    choices = [pca.choose(spectrum, scaling, 0.9, 3) for scaling in (False, True)]
    with pytest.raises(FruitsError) as error:
        reduce.write_spectrum(run, spectrum, pca.Components(*[np.ones(1)] * 5), *choices)
    assert_one_line(error, "of 38 images where Training has 20")


# --- the scores as text -------------------------------------------------------------------------


def test_csv_holds_the_rows_of_pca_in_the_order_of_the_paths(run):
    pick_k(run, k=3)
    write_scores(run, csv=True)
    folder = run.uri.removeprefix("file:")
    (file,) = (path for path in run.folders("pca_csv") if path.endswith(".csv"))
    found = pd.read_csv(f"{folder}/pca_csv/{file}")
    stored = pd.read_parquet(f"{folder}/pca").sort_values("path")
    assert list(found.columns) == ["path", "label", "split", "pca_1", "pca_2", "pca_3"]
    assert list(found["path"]) == list(stored["path"])
    scores = found[["pca_1", "pca_2", "pca_3"]].to_numpy(np.float32)
    np.testing.assert_array_equal(scores, np.stack(stored["pca"]))
    assert run.manifest()["pca"]["csv"] is True


def test_names_of_any_characters_survive_csv(run, monkeypatch):
    rows = [(name, None, "Test", [1.0e-20, 2.5]) for name in ODD]
    table = run.spark.createDataFrame(
        rows, "path string, label string, split string, pca array<float>"
    )
    monkeypatch.setattr(type(run), "read_parquet", lambda *_: table)
    monkeypatch.setattr(type(run), "read_table", lambda *_: table)
    scores_csv.write(run, 2)
    assert scores_csv.differing(run, 2) == 0
    (file,) = (path for path in run.folders("pca_csv") if path.endswith(".csv"))
    found = pd.read_csv(f"{run.uri.removeprefix('file:')}/pca_csv/{file}")
    assert sorted(found["path"]) == sorted(ODD)
    assert found["label"].isna().all()


def test_csv_of_an_earlier_model_goes(run):
    pick_k(run, k=3)
    write_scores(run, csv=True)
    write_scores(run)
    assert not run.exists("pca_csv")
    assert run.manifest()["pca"]["csv"] is False


def test_csv_is_that_of_the_run_and_no_other_whatever_their_folders_are_called(run, tmp_path):
    pick_k(run, k=3)
    write_scores(run, csv=True)
    folder = Path(run.uri.removeprefix("file:"))
    for name in ("norm1", "norm[1]"):  # as a pattern, the second is the first
        shutil.copytree(folder, tmp_path / name)
    mine = open_run(run.spark, str(tmp_path / "norm[1]"))
    assert scores_csv.differing(mine, 3) == 0
    (file,) = (tmp_path / "norm[1]/pca_csv").glob("*.csv")
    file.with_name(f".{file.name}.crc").unlink()
    text, score = file.read_text().rsplit(",", 1)
    file.write_text(f"{text},{float(score) + 1}\n")
    assert scores_csv.differing(mine, 3) == 2


def test_a_model_is_loaded_whatever_the_temporary_folder_is_called(run, tmp_path, monkeypatch):
    (tmp_path / "a,b[1]:c").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a,b[1]:c"))
    pick_k(run, k=3)
    write_scores(run)
    assert len(models.load_model(run).stages) == 2
