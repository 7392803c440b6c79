"""The recipes: what they set, what `fruits` says of them, and the layout of study C."""

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from fruits_lib import cli, load, parameters, recipes
from fruits_lib.runs import open_run

RECIPES = recipes.find_recipes()
each_recipe = pytest.mark.parametrize("name", RECIPES)

STUDIES = {  # what DESIGN says that each one did
    "mobilenet-raw-90": ("mobilenet_v2", 224, "avg", False, {"variance": 0.9}),
    "mobilenet-standardized-200": ("mobilenet_v2", 224, "avg", True, {"k": 200}),
    "mobilenet-original-size": ("mobilenet_v2", 224, "avg", False, {"variance": 0.9}),
    "vgg16-random-20": ("vgg16", 100, "max", False, {"k": 20}),
    "vgg16-imagenet-20": ("vgg16", 100, "max", False, {"k": 20}),
    "resnet50-standardized-25": ("resnet50", 224, "avg", True, {"k": 25}),
}


@each_recipe
def test_sets_what_the_study_did(name):
    values = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    backbone, size, pooling, standardize, choice = STUDIES[name]
    assert (values["backbone"], values["input_size"]) == (backbone, size)
    assert (values["pooling"], values["standardize"]) == (pooling, standardize)
    assert {key: values[key] for key in ("k", "variance") if key in values} == choice
    assert values["weights"] == ("random" if "random" in name else "imagenet")


@each_recipe
def test_is_accepted_by_the_notebooks(name):
    given = parameters.given([], str(RECIPES[name]))
    assert parameters.check_given(parameters.find_notebooks(), given).keys() == given.keys()


@each_recipe
def test_every_line_says_where_its_value_comes_from(name):
    lines = RECIPES[name].read_text(encoding="utf-8").splitlines()
    assert re.match(r"# [A-E][: ]", lines[0])
    assert all(re.match(r"# |\w+: \S+  # \S", line) for line in lines)
    assert all(len(line) <= 100 for line in lines)


def test_are_listed_with_what_was_reported():
    answer = CliRunner().invoke(cli.main, ["recipes"])
    lines = answer.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    for name, words in {"mobilenet-raw-90": "A: k = 191", "vgg16-random-20": "D: k = 20"}.items():
        assert any(re.match(f"{name} +{words}", line) for line in lines)


@each_recipe
def test_the_docs_have_a_row_of_each(name):
    text = (Path(__file__).parents[1] / "docs/recipes.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in text


def test_help_of_run_names_them():
    assert "fruits recipes" in CliRunner().invoke(cli.main, ["run", "--help"]).stdout


def test_study_c_s_layout_gives_labels_and_splits(spark, tmp_path):
    places = [
        (split, label, f"{label}/r{turn}_{number}.jpg")
        for split in ("Training", "Test", "Validation")
        for label in ("apple_6", "apple_braeburn_1")
        for turn, number in ((0, 103), (1, 7))
    ]
    for split, _, name in places:
        file = tmp_path / "fruits-360-original-size" / split / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"pixels")
    run = open_run(spark, str(tmp_path / "run"), str(tmp_path / "fruits-360-original-size"))
    listing = load.list_files(run)
    found = {(split, label, path) for path, label, split, *_ in listing.images}
    assert found == {(split, label, f"{split}/{name}") for split, label, name in places}
    assert not listing.set_aside
