"""06: who is fitted and who is tested, the figures, and a classifier that 05 can trust."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline import classify_scores, pick_k, write_scores
from pipeline import entry as entry_of
from pyspark.ml import PipelineModel
from pyspark.ml.functions import array_to_vector

from fruits_lib import answers, classify, models, pca, splits, verify
from fruits_lib.errors import FruitsError, VerificationError
from fruits_lib.runs import open_run

LABELS = ("apple", "lemon", "pêche blanche")
WIDTH = 6


# --- a small run --------------------------------------------------------------------------------


def write_scored(spark, folder, places):
    """Write a run up to 04: features that are near a corner of its own for each label."""
    run, rng = open_run(spark, str(folder)), np.random.default_rng(0)
    names = sorted({label for label, _ in places if label})
    corners = 4 * np.eye(max(WIDTH, len(names) + 1))  # the last one of those without a label
    corners = corners[[names.index(label) if label else -1 for label, _ in places]]
    vectors = (corners + rng.normal(size=corners.shape)).astype(np.float32)
    table = pa.table(
        {
            "path": [f"{split}/{label}/{i}.jpg" for i, (label, split) in enumerate(places)],
            "label": pa.array([label for label, _ in places], pa.string()),
            "split": pa.array([split for _, split in places], pa.string()),
            "features": pa.array(list(vectors)),
        }
    )
    (folder / "features").mkdir(parents=True)
    pq.write_table(table, folder / "features/part.parquet")
    with run.step("load") as entry:
        sizes = {"files": len(places), "images": len(places), "labels": len(names)}
        entry.update(entry_of("load", data="file:/data", unlabelled=0, **sizes))
    with run.step("featurize") as entry:
        entry.update(entry_of("featurize", features=len(places), width=vectors.shape[1]))
    pick_k(run, k=4)
    write_scores(run)
    return run


def places_of(counts):
    """Label and split of every photograph, of {(label, split): number}."""
    return [place for place, number in counts.items() for _ in range(number)]


BY_FOLDER = {(label, split): n for label in LABELS for split, n in (("Training", 8), ("Test", 4))}


@pytest.fixture(scope="module")
def classified(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classified") / "run: a, b"  # Spark ML minds such a name
    assert not classify_scores(write_scored(spark, folder, places_of(BY_FOLDER))).failed
    return folder


@pytest.fixture
def copy(spark, classified, tmp_path):
    """A copy of it, to break: its folder and its `Run`."""
    shutil.copytree(classified, tmp_path / "copy")
    return tmp_path / "copy", open_run(spark, str(tmp_path / "copy"))


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


# --- fitted and tested --------------------------------------------------------------------------


def frame(spark, counts):
    rows = [(f"{i}.jpg", *place) for i, place in enumerate(places_of(counts))]
    return spark.createDataFrame(rows, "path string, label string, split string")


def divided(spark, counts, **options):
    """The parts, and how many photographs of each label are in each part."""
    parts = splits.divide(frame(spark, counts), **options)
    found = {(row.label, row.part): row["count"] for row in by_part(parts.table)}
    assert parts.fitted == sum(n for (_, part), n in found.items() if part == "fitted")
    assert parts.tested == sum(n for (_, part), n in found.items() if part == "tested")
    assert sum(parts.left_out.values()) == sum(n for (_, part), n in found.items() if not part)
    return parts, found


def by_part(table):
    return table.groupBy("label", "part").count().collect()


def test_training_is_fitted_and_test_is_tested(spark):
    counts = {("a", "Training"): 3, ("b", "Training"): 2, ("a", "Test"): 2, ("b", "Validation"): 4}
    parts, found = divided(spark, counts)
    assert (parts.fitted_on, parts.tested_on) == ("Training", "Test")
    assert found == {("a", "fitted"): 3, ("b", "fitted"): 2, ("a", "tested"): 2, ("b", None): 4}
    assert parts.left_out == {"of Validation": 4}


def test_validation_is_tested_where_there_is_no_test(spark):
    counts = {("a", "Training"): 3, ("b", "Training"): 2, ("a", "Validation"): 2, ("b", None): 1}
    parts, _ = divided(spark, counts)
    assert parts.tested_on == "Validation"
    assert parts.left_out == {"without a split": 1}


def test_a_label_that_training_lacks_is_left_out_and_counted(spark):
    counts = {("a", "Training"): 3, ("b", "Training"): 2, ("a", "Test"): 2, ("kiwi", "Test"): 4}
    parts, _ = divided(spark, counts)
    assert parts.left_out == {"of Test, of a label that Training lacks": 4}
    assert "neither: 4 photographs of Test, of a label that Training lacks" in str(parts)


@pytest.mark.parametrize("split", [None, "Test", "Training"])
def test_without_such_splits_each_label_is_divided_by_a_hash(spark, split):
    counts = {("a", split): 10, ("b", split): 5, ("c", split): 2, ("one", split): 1}
    parts, found = divided(spark, counts)
    assert found.pop(("one", "fitted")) == 1
    sizes = {
        (label, part): n
        for label, *both in (("a", 8, 2), ("b", 4, 1), ("c", 1, 1))
        for part, n in zip(("fitted", "tested"), both, strict=True)
    }
    assert found == sizes
    assert parts.fitted_on == "80 % of the photographs, seed 0"
    assert parts.tested_on == "the other 20 %"
    assert (parts.labels, parts.tested_labels) == (4, 3)


def test_the_seed_alone_decides_the_hash(spark):
    counts = {("a", None): 10, ("b", None): 10}
    tested = [
        {row.path for row in splits.divide(frame(spark, counts).repartition(n), s).test.collect()}
        for n, s in ((1, 0), (3, 0), (1, 1))
    ]
    assert tested[0] == tested[1] != tested[2]


@pytest.mark.parametrize(
    "places",
    [
        {("a", None): 10, ("b", None): 5},
        {("a", "Training"): 3, ("b", "Training"): 2, ("a", "Test"): 2},
    ],
)
def test_photographs_without_a_label_are_in_neither_part_and_counted(spark, places):
    nameless = {(None, split): 1 for split in ("Training", "Test", None)}
    with_labels, _ = divided(spark, places)
    parts, found = divided(spark, {**places, **nameless})
    assert found[(None, None)] == 3
    assert parts.left_out == {"without a label": 3}
    assert (parts.fitted, parts.tested, parts.labels) == (
        with_labels.fitted,
        with_labels.tested,
        with_labels.labels,
    )


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({(None, None): 9}, "no photograph with scores has a label"),
        ({("a", None): 9, (None, None): 1}, "with scores and a label are of one label"),
        ({("a", "Training"): 9, ("b", "Test"): 9}, "of Training are of one label"),
        ({("a", None): 1, ("b", None): 1}, "each of 2 labels has one photograph"),
        (
            {("a", "Training"): 1, ("b", "Training"): 1, ("c", "Test"): 1},
            "no photograph of Test has a label of Training",
        ),
    ],
)
def test_where_nothing_can_be_judged_the_parts_say_so(spark, counts, words):
    parts = splits.divide(frame(spark, counts))
    assert words in parts.nothing
    assert str(parts).startswith(f"nothing to classify: {parts.nothing}")


def test_fewer_fitted_photographs_than_neighbours_all_vote_and_are_named(copy):
    _, run = copy
    parts = classify.divide(run, run.read_table("pca"), neighbors=25, seed=0)
    assert parts.neighbors == 24
    assert "\nneighbors=25 is more than are fitted: all 24 vote" in str(parts)
    few = classify.divide(run, run.read_table("pca"), neighbors=5, seed=0)
    assert few.neighbors == 5
    assert "vote" not in str(few)


@pytest.mark.parametrize(
    ("labels", "held"),
    [
        (["apple_6", "apple_10", "pear_3", "lemon"], ["apple_10"]),
        (
            ["Apple Red 1", "Apple Red 2", "Grape White", "Grape White 2"],
            ["Apple Red 2", "Grape White 2"],
        ),
        (["Cherry 1", "Lemon 100%", "mango_ripe", "Pêche2"], []),
        (["2019", "2020"], []),
    ],
)
def test_the_last_fruit_of_a_kind_is_held_out(labels, held):
    assert splits.held_out(labels) == held


def test_fruits_are_held_out_whole(spark):
    counts = {
        (label, split): 2
        for label in ("apple_1", "apple_2", "pear")
        for split in ("Training", "Test")
    }
    parts = splits.by_fruit(frame(spark, counts))
    assert {(row.label, row.part): row["count"] for row in by_part(parts.table)} == {
        ("apple", "fitted"): 4,
        ("apple", "tested"): 4,
        ("pear", "fitted"): 4,
    }
    assert (parts.fitted, parts.tested, parts.labels) == (8, 4, 2)


@pytest.mark.parametrize("labels", [("apple", "pear"), ("class 1", "class 2")])
def test_names_that_tell_no_fruits_apart_hold_none_out(spark, labels):
    assert splits.by_fruit(frame(spark, {(label, None): 2 for label in labels})) is None


# --- the figures --------------------------------------------------------------------------------


def test_figures_are_those_of_their_definitions():
    judged = classify.judge(["a", "a", "a", "b"], ["a", "a", "b", "b"])
    assert judged.accuracy == 0.75
    table = judged.labels
    assert table.loc["a"].tolist() == [3, 1, pytest.approx(2 / 3), pytest.approx(0.8)]
    assert table.loc["b"].tolist() == [1, 0.5, 1, pytest.approx(2 / 3)]
    assert list(table.index) == ["b", "a"]
    assert judged.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)


def test_of_many_labels_the_worst_are_shown_and_the_others_counted():
    labels = [f"{i:03}" for i in range(131)]
    lines = classify.judge(labels, ["000", "000", *labels[2:]]).worst().splitlines()
    assert len(lines) == 2 + 20 + 1
    assert lines[2].startswith("001 ")
    assert lines[-1] == "... and 111 labels with an F1 of at least 1.000"


def photographs(labels, scores):
    paths = [f"{i}.jpg" for i in range(len(labels))]
    return classify.Photographs(np.array(paths), np.array(labels), np.array(scores, np.float32))


def test_accuracy_by_k_ends_with_all_scores():
    scores = np.random.default_rng(0).normal(size=(40, 5))
    labels = np.where(scores[:, 4] > 0, "up", "down")
    both = photographs(labels, scores * [1, 1, 1, 1, 99])
    found = classify.accuracy_by_k(both, both, 3)
    assert list(found.index) == [1, 2, 4, 5]
    assert found[5] == 1 > found[4]


def test_a_confusion_is_shown_beside_the_nearest_known_photograph_of_its_label():
    known = photographs(["a", "b", "b"], [[0], [5], [8]])
    tested = photographs(["a", "a", "b"], [[6], [7], [8]])
    given = pd.DataFrame({"path": tested.paths, "label": tested.labels})
    given = given.assign(predicted="b", probability=[0.6, 0.9, 0.8])
    found = classify.worst_confusions(given, known, tested).to_dict("records")
    assert [(row["path"], row["photographs"], row["nearest"]) for row in found] == [
        ("1.jpg", 2, "2.jpg"),
        ("2.jpg", 0, "2.jpg"),
    ]


# --- what is written ----------------------------------------------------------------------------


def test_the_manifest_says_what_the_figures_mean(classified):
    entry = manifest(classified)["classify"]
    assert {name: entry[name] for name in ("classes", "fitted_on", "tested_on", "fitted")} == {
        "classes": 3,
        "fitted_on": "Training",
        "tested_on": "Test",
        "fitted": 24,
    }
    assert (entry["tested"], entry["neighbors"], entry["seed"]) == (12, 1, 0)
    assert 0.8 < entry["accuracy"] <= 1
    assert "fruits_accuracy" not in entry
    assert "fit_split=Training" in entry["warning"]
    assert all(check["passed"] for check in entry["checks"])


def test_stock_spark_labels_a_feature_vector(spark, classified, tmp_path):
    shutil.copytree(classified, tmp_path / "run")
    features = spark.read.parquet(str(tmp_path / "run/features"))
    vectors = features.withColumn("features_vector", array_to_vector("features"))
    row = PipelineModel.load(str(tmp_path / "run/classifier")).transform(vectors).first()
    assert {"pca_vector", "rawPrediction", "probability", "prediction"} <= set(row.asDict())
    assert row.predicted == row.label


def test_numpy_alone_gives_the_same_labels(classified):
    scores = pd.read_parquet(classified / "pca").sort_values("path")
    labels = pd.read_parquet(classified / "labels").sort_values("path")
    model = np.load(classified / "classifier.npz")
    logits = np.stack(scores["pca"]) @ model["coefficients"].T + model["intercepts"]
    ours = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert list(model["labels"][ours.argmax(axis=1)]) == list(labels["predicted"])
    np.testing.assert_allclose(labels["probability"], ours.max(axis=1), atol=1e-6)
    assert list(labels.columns) == ["path", "label", "split", "predicted", "probability"]


def test_two_labels_without_splits_are_multinomial_too(spark, tmp_path):
    run = write_scored(spark, tmp_path / "run", places_of({("a", None): 10, ("b", None): 10}))
    assert not classify_scores(run, seed=3).failed
    assert np.load(tmp_path / "run/classifier.npz")["coefficients"].shape == (2, 4)
    entry = manifest(tmp_path / "run")["classify"]
    assert entry["fitted_on"] == "80 % of the photographs, seed 3"
    assert "those tested among them" in entry["warning"]
    assert "fit_split=" not in entry["warning"]


def test_a_reduction_that_has_not_seen_test_is_not_warned_of(copy, spark):
    folder, run = copy
    run.amend("pick_k", fit_split="Training")
    parts = classify.divide(run, run.read_table("pca"), neighbors=1, seed=0)
    assert parts.warning == ""


def test_what_01_counted_does_not_decide(spark, tmp_path):
    """Two unlabelled photographs that are rejects, and one with scores."""
    places = {("a", None): 6, ("b", None): 6, ("one", None): 1, (None, None): 1}
    run = write_scored(spark, tmp_path / "run", places_of(places))
    run.amend("load", images=17, labels=4, unlabelled=3)  # a label of rejects alone, too
    result = classify_scores(run, neighbors=99)
    assert not result.failed
    rows = {row.path: row for row in run.read_table("labels").collect()}
    assert len(rows) == 14
    (nameless,) = (row for row in rows.values() if row.label is None)
    assert nameless.predicted in ("a", "b", "one")
    entry = manifest(tmp_path / "run")["classify"]
    assert (entry["classes"], entry["fitted"], entry["tested"]) == (3, 9, 4)


def test_nothing_to_classify_gives_the_folder_back(spark, tmp_path):
    run = write_scored(spark, tmp_path / "run", [(label, None) for label in "abcdef"])
    run = open_run(spark, run.uri, stage="classify")
    assert classify.divide(run, run.read_table("pca"), 5, 0).nothing
    open_run(spark, run.uri, stage="classify").lease.release()
    assert "classify" not in run.manifest()


CODE = """
from pathlib import Path
Path({mark!r}).touch()
class Stage:
    @classmethod
    def read(cls): raise RuntimeError
"""


@pytest.mark.parametrize("part", ["metadata/part-00000", "metadata"])
def test_a_strangers_class_is_refused_before_it_is_imported(copy, tmp_path, monkeypatch, part):
    """PySpark imports the class that a Python pipeline names."""
    folder, run = copy
    mark = tmp_path / "imported"
    (tmp_path / "strange_module.py").write_text(CODE.format(mark=str(mark)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    stage = {"class": "strange_module.Stage", "uid": "s", "paramMap": {}, "defaultParamMap": {}}
    pipeline = {**stage, "class": "pyspark.ml.pipeline.PipelineModel"}
    pipeline["paramMap"] = {"language": "Python", "stageUids": ["s"]}
    shutil.rmtree(folder / "classifier")
    for name, metadata in (("classifier", pipeline), ("classifier/stages/0_s", stage)):
        (folder / name / part).parent.mkdir(parents=True)
        (folder / name / part).write_text(json.dumps(metadata) + "\n")
    with pytest.raises(FruitsError, match=r"/classifier names \S+, which is no stage"):
        models.load_model(run, "classifier")
    assert not mark.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.update({"class": "org.example.Stage"}),
        lambda entry: entry["paramMap"].update(stageUids=["x/../../../elsewhere"]),
        lambda entry: entry.pop("class"),
    ],
)
def test_another_class_or_place_of_a_stage_is_refused(copy, change):
    folder, run = copy
    (file,) = (folder / "model/metadata").glob("part-*")
    (folder / "model/metadata" / f".{file.name}.crc").unlink(missing_ok=True)
    entry = json.loads(file.read_text())
    change(entry)
    file.write_text(json.dumps(entry))
    with pytest.raises(FruitsError, match=r"/model names .*, which is no stage"):
        models.load_model(run)


# --- the checks ---------------------------------------------------------------------------------


def cells(change):
    """Change the rows of labels/, a list of dicts."""

    def damage(folder, run):
        table = pq.read_table(folder / "labels", partitioning=None)
        rows = table.to_pylist()
        change(rows)
        shutil.rmtree(folder / "labels")
        (folder / "labels").mkdir()
        pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "labels/part.parquet")

    return damage


def of_first(name, value):
    return cells(lambda rows: rows[0].update({name: value(rows[0][name])}))


def numbers(name, change):
    """Change an array of classifier.npz."""

    def damage(folder, run):
        arrays = run.read_npz("classifier.npz")
        run.write_npz("classifier.npz", {**arrays, name: change(arrays[name])})

    return damage


def other_names(folder, run):
    """classifier/ and classifier.npz name the classes in another order."""
    *first, names = models.load_model(run, "classifier").stages
    turned = PipelineModel([*first, names.setLabels(names.getLabels()[::-1])])
    turned.write().overwrite().save(run.path("classifier"))
    run.write_npz("classifier.npz", vars(models.regression_of(turned)))


def other_model(folder, run):
    """classifier/ reduces otherwise than model/."""
    stages = models.load_model(run, "classifier").stages
    components = pca.components_of(models.load_model(run))
    first = pca.pipeline_model(replace(components, mean=components.mean + 1e-3)).stages
    PipelineModel([*first, *stages[2:]]).write().overwrite().save(run.path("classifier"))


def entry(**values):
    return lambda folder, run: run.amend("classify", **values)


ROWS = "scores without a label, or labels without"
FIGURES = "accuracy or F1 unlike the manifest's"
NPZ = "classifier.npz unlike classifier/"
MUTATIONS = {
    "a label of another class": (
        of_first("predicted", lambda label: LABELS[LABELS.index(label) - 1]),
        "labels other than the most probable",
    ),
    "a label that is none": (
        of_first("predicted", lambda _: "quince"),
        "labels other than the most probable",
    ),
    "a probability": (of_first("probability", lambda p: p - 1e-4), "probabilities unlike softmax"),
    "a probability that is none": (
        of_first("probability", lambda _: None),
        "probabilities unlike softmax",
    ),
    "the photograph's label": (
        of_first("label", lambda _: "lemon pie"),
        "labels or splits unlike those of pca/",
    ),
    "the photograph's split": (
        of_first("split", lambda _: None),
        "labels or splits unlike those of pca/",
    ),
    "a path": (of_first("path", lambda path: f"{path}g"), ROWS),
    "a row removed": (cells(lambda rows: rows.pop()), ROWS),
    "a row twice": (cells(lambda rows: rows.append(rows[0])), ROWS),
    "coefficients for NumPy": (numbers("coefficients", lambda a: a * (1 + 1e-9)), NPZ),
    "an intercept for NumPy": (numbers("intercepts", lambda a: a + 1e-9), NPZ),
    "labels for NumPy": (numbers("labels", lambda a: a[::-1]), NPZ),
    "names of the classes": (other_names, "labels other than the most probable"),
    "the classifier's reduction": (other_model, "classifier/ unlike model/"),
    "accuracy in the manifest": (entry(accuracy=0.5), FIGURES),
    "F1 in the manifest": (entry(macro_f1=0.5), FIGURES),
    "number of tested photographs": (entry(tested=13), FIGURES),
    "accuracy of neighbours in the manifest": (entry(knn_accuracy=0.5), FIGURES),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_was_changed_is_caught_by_the_check_meant_for_it(copy, mutation):
    damage, name = MUTATIONS[mutation]
    damage(*copy)
    caught = next(check for check in answers.check_classifier(copy[1]) if check.name == name)
    assert caught.passed is False
    assert caught.remedy == "run 06_classify again"


def test_a_missing_or_damaged_part_is_named_with_the_way_out(copy):
    folder, run = copy
    (folder / "classifier.npz").write_bytes(b"no archive")
    with pytest.raises(FruitsError, match=r"classifier.npz cannot be read .* 06_classify again$"):
        answers.check_classifier(run)
    shutil.rmtree(folder / "classifier")
    with pytest.raises(FruitsError, match=r"classifier cannot be read .* 06_classify again$"):
        answers.check_classifier(run)


def test_05_records_what_it_finds_where_06_did(copy):
    folder, run = copy
    cells(lambda rows: rows.pop())(folder, run)
    result = verify.record(run, [], answers.check_classifier(run))
    with pytest.raises(VerificationError, match="of 7 checks failed: scores without a label"):
        result.require()
    recorded = manifest(folder)
    assert [check["name"] for check in recorded["classify"]["checks"] if not check["passed"]][
        0
    ] == ROWS
    assert recorded["verify"]["checks"] == []


def test_without_a_classifier_there_is_nothing_to_check(copy):
    folder, run = copy
    run.void("classify")
    assert answers.check_classifier(run) == []
    assert answers.why_none(run).endswith(
        "of an older result than the run's: run 06_classify again"
    )
    run.delete("labels")
    assert answers.why_none(run).startswith("06_classify has not run")
