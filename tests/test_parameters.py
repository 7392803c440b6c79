"""Parameters mean what they say: types, bounds and names, from the command and in a notebook."""

from types import SimpleNamespace

import pytest

from fruits_lib import parameters
from fruits_lib.errors import FruitsError

DECLARED = {"run_dir": "", "variance": 0.9, "k": 0, "standardize": False, "fit_split": ""}


@pytest.fixture
def choosing(monkeypatch):
    """A notebook's `globals()` after its parameters cell, of 03_pick_k without what it adds."""
    monkeypatch.setattr(
        parameters,
        "declared",
        lambda path: {
            name: {
                "type": type(value).__name__,
                "help": "what it is",
                "default": repr(value),
            }
            for name, value in DECLARED.items()
        },
    )
    return dict(DECLARED)


def refused(values):
    """Return the one line that refuses these `globals()`."""
    with pytest.raises(FruitsError) as caught:
        parameters.check("03_pick_k", values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_the_cell_declares_passes_as_it_is(choosing):
    assert parameters.check("03_pick_k", choosing) == DECLARED


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"standardize": "false"}, False),
        ({"standardize": "True"}, True),
        ({"k": "5"}, 5),
        ({"variance": "0.5"}, 0.5),
        ({"variance": 1}, 1.0),
    ],
)
def test_text_takes_its_type_where_the_notebook_reads_it(choosing, given, value):
    choosing.update(given)
    (name,) = given
    parameters.check("03_pick_k", choosing)
    assert (choosing[name], type(choosing[name])) == (value, type(value))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"standardize": "no"}, "standardize='no' is not of type bool"),
        ({"standardize": 0}, "standardize=0 is not of type bool, but int"),
        ({"k": 5.0}, "k=5.0 is not of type int, but float"),
        ({"k": True}, "k=True is not of type int, but bool"),
        ({"k": None}, "k=None is not of type int"),
        ({"run_dir": 2026}, "run_dir=2026 is not of type str, but int: quote it, or papermill -r"),
        ({"variance": float("nan")}, "variance=nan is not a finite number"),
        ({"variance": "inf"}, "variance=inf is not a finite number"),
        ({"variance": 10**400}, "is not of type float"),
        ({"variance": 1.5}, "variance=1.5 is outside 0 to 1"),
        ({"fit_split": "Trainning"}, "fit_split='Trainning' is not a split: give one of Training,"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:40],
)
def test_a_wrong_value_is_one_line(choosing, given, words):
    assert words in refused({**choosing, **given})


def test_a_missing_parameter_is_one_line(choosing):
    del choosing["k"]
    assert "parameter k has no value: run the parameters cell" in refused(choosing)


class TestNamesInLivy:
    """Its kernel has no IPython: what somebody gave is all that `globals()` has."""

    def test_an_unknown_one_is_refused(self, choosing):
        words = "parameter varience is unknown: did you mean variance?"
        assert refused({**choosing, "varience": 0.8}) == words

    def test_objects_and_private_names_are_none(self, choosing):
        parameters.check("03_pick_k", {**choosing, "spark": object(), "_": 1, "re": pytest})


class TestNamesInIPython:
    @pytest.fixture
    def cells(self, monkeypatch):
        """What was run before, as IPython keeps it."""
        ran = ["", "run_dir: str = ''\nvarience = 0.5"]
        shell = SimpleNamespace(user_ns={"In": ran})
        monkeypatch.setattr(parameters, "ipython_shell", lambda: shell)
        return ran

    def test_an_unknown_one_of_papermill_is_refused(self, choosing, cells):
        cells.append("# Parameters\nrun_dir = 'x'\nvarience = 0.8\n")
        assert "did you mean variance?" in refused(choosing)

    def test_names_of_other_cells_are_the_user_s_own(self, choosing, cells):
        cells += ["# Parameters\nk = 5\n", "size = 3"]
        parameters.check("03_pick_k", {**choosing, "size": 3})


def test_p_wins_over_f_and_text_takes_the_declared_type(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("k: 7\nvariance: 1\nstandardize: true\n", encoding="utf-8")
    given = parameters.given(["k=9"], str(file), {"run_dir": "x", "data": None})
    values = parameters.check_given(parameters.find_notebooks(), given)
    assert values == {"run_dir": "x", "k": 9, "variance": 1.0, "standardize": True}
    assert isinstance(values["variance"], float)


@pytest.mark.parametrize("content", [b"k: \xff", b"k: [1"])
def test_a_file_that_is_no_yaml_is_one_line(tmp_path, content):
    (tmp_path / "p.yaml").write_bytes(content)
    with pytest.raises(FruitsError, match="is not valid YAML"):
        parameters.given([], str(tmp_path / "p.yaml"))


def test_a_name_that_is_no_text_is_unknown():
    with pytest.raises(FruitsError, match="parameter 1 is unknown"):
        parameters.check_given(parameters.find_notebooks(), {1: 2})
