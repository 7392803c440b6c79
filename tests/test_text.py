"""Names are shown as they are, but for what a terminal would obey."""

import json

import numpy as np
import pandas as pd
import pytest

from fruits_lib import checks, classify, load, predict, report, text
from fruits_lib.errors import FruitsError

HOSTILE = "\x1b]0;pwned\x07\u202e\u2028\x9b\udcff\r\nkiwi"


def table():
    return text.table(pd.DataFrame({"Test": [2]}, index=[HOSTILE]))


def index():
    kinds = [{"reason": HOSTILE, "extension": HOSTILE, "files": 1}]
    return str(load.Index(2, 1, 1, kinds, unlabelled=0, normalised=0, dropped=0))


def worst():
    return classify.judge([HOSTILE], ["pear"]).worst()


def prediction(reason=""):
    nearest = [predict.Neighbor(HOSTILE, HOSTILE, 1.0)]
    guesses = [(HOSTILE, 0.9), ("pear", 0.1)]
    return str(predict.Prediction(HOSTILE, b"", reason, np.zeros(2), guesses, nearest))


def check():
    return str(checks.none_of("photographs gone", [HOSTILE], "run it again"))


SHOWN = {
    "01's table": table,
    "01's account": index,
    "06's table": worst,
    "predict": prediction,
    "predict, of a reject": lambda: prediction(HOSTILE),
    "a check": check,
    "an error": lambda: str(FruitsError(f"{HOSTILE} is missing: check the path")),
}


@pytest.mark.parametrize("shown", SHOWN)
def test_what_a_terminal_would_obey_is_shown_escaped(shown):
    lines = SHOWN[shown]().split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    assert any(r"\x1b]0;pwned\x07\u202e\u2028\x9b\udcff\r\nkiwi" in line for line in lines)


def test_the_summary_of_a_run_is_escaped(tmp_path):
    kind = {"reason": "not an image", "extension": HOSTILE, "files": 1}
    entry = {"files": 2, "images": 1, "labels": 1, "set_aside": [kind], "data": "file:/data"}
    (tmp_path / "manifest.json").write_text(json.dumps({"load": entry}))
    lines = report.summarize(str(tmp_path), 1.0)
    assert all(line.isprintable() for line in lines.values())
    assert r"\x1b]0;pwned" in lines["set aside"]


@pytest.mark.parametrize("name", ["Pêche", "苹果 100%", "a\u200db", "مانجو", r"\x1b", "🍎"])
def test_other_names_stay_as_they_are(name):
    assert text.printable(name) == name


def test_the_data_stay_as_they_are():
    assert list(classify.judge([HOSTILE], ["pear"]).labels.index) == [HOSTILE]
