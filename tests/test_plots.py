"""Figures: what they show, and that it can be read for no, few and many labels."""

import io
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from IPython.core.pylabtools import print_figure
from matplotlib import font_manager
from matplotlib.cbook import is_math_text
from matplotlib.image import AxesImage
from matplotlib.offsetbox import AnnotationBbox

from fruits_lib import pictures, plots

AWKWARD = ["100 %", "$5_and_$6", "_hidden", "Ac\u0327ai\u0301", "苹果", "Very_long_label_" * 5]
PIXELS = np.zeros((8, 8, 3), np.uint8)

pytestmark = pytest.mark.filterwarnings("error")  # matplotlib's would be red lines in a notebook


@pytest.fixture(autouse=True)
def figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def labels_of(number):
    """Labels by name; one that is null for 0."""
    return (AWKWARD + [f"Variety {i}" for i in range(number)])[:number] or [None]


def thumbnails_of(labels, each=6, reason=None):
    pixels = None if reason else PIXELS
    rows = [(label, f"{label}/{i}", pixels, reason) for label, i in product(labels, range(each))]
    return pd.DataFrame(rows, columns=["label", "path", "pixels", "reason"])


def counts_of(labels):
    sizes = np.arange(len(labels)) + 1
    return pd.DataFrame({"Training": 3 * sizes, "Test": sizes}, pd.Index(labels, dtype=object))


def ends_of(label):
    rows = [
        (component, end, "folder/photo.jpg", label, i if end == "high" else -i, PIXELS)
        for component, end, i in product((1, 2), ("low", "high"), range(1, 6))
    ]
    return pd.DataFrame(rows, columns=["component", "end", "path", "label", "score", "pixels"])


def confusions_of(labels, wrong=1):
    """Every label was right once, and taken for the next one `wrong` times its number."""
    rows = [(label, label, 1) for label in labels]
    pairs = zip(labels, labels[1:], strict=False)
    rows += [(a, b, wrong * i) for i, (a, b) in enumerate(pairs, 1) if wrong]
    return pd.DataFrame(rows, columns=["label", "predicted", "photographs"])


def pairs_of(labels):
    rows = [
        (a, b, 0.5, 3, PIXELS, None) for a, b in zip(labels, labels[1:] or labels, strict=False)
    ]
    names = ["label", "predicted", "probability", "photographs", "pixels", "nearest_pixels"]
    return pd.DataFrame(rows[:8], columns=names)


def plane_of(labels, each=5):
    """Points in clusters, and the label of each point."""
    points = np.random.default_rng(0).normal(size=(len(labels) * each, 2))
    owner = np.arange(len(points)) % len(labels)
    return points + 4 * np.c_[owner % 6, owner // 6], [labels[row] for row in owner]


def drawn(number, kind):
    labels = labels_of(number)
    if kind == "grid":
        return pictures.sample_grid(thumbnails_of(labels), number)
    if kind == "rejected":
        reason = "66000000 pixels, more than max_pixels=50000000"
        return pictures.sample_grid(thumbnails_of(labels, reason=reason), number)
    if kind == "counts":
        return plots.images_per_label(counts_of(labels))
    if kind == "extremes":
        return pictures.extremes(ends_of(labels[-1]), [0.5, 0.25])
    if kind == "matrix":
        return plots.confusion_matrix(confusions_of(labels))
    if kind == "pairs":
        return pictures.confusions(pairs_of(labels))
    points, names = plane_of(labels)
    return pictures.scores(points, names, [0.5, 0.25], [(row, PIXELS) for row in range(5)])


def words(figure):
    return [artist.get_text() for artist in figure.findobj(plt.Text) if artist.get_text()]


def boxes(artists):
    return [artist.get_window_extent() for artist in artists]


def overlapping(boxes):
    return [pair for i, pair in enumerate(boxes) if any(pair.overlaps(b) for b in boxes[:i])]


@pytest.mark.parametrize(
    "kind", ["grid", "rejected", "counts", "extremes", "scores", "matrix", "pairs"]
)
@pytest.mark.parametrize("number", [0, 2, 12, 24, 131])
def test_no_text_is_cut_off(number, kind):
    figure = drawn(number, kind)
    figure.canvas.draw()
    box = figure.get_tightbbox()
    assert box.min.min() > -1e-6
    assert (box.max < figure.get_size_inches() + 1e-6).all()
    named = [name for axes in figure.axes for name in axes.texts]  # left out of the box above
    assert all(figure.bbox.contains(*corner) for b in boxes(named) for corner in b.get_points())


def test_text_is_never_mathematics():
    assert not is_math_text(plots.text("from $5 to $6", 40))


def test_text_that_does_not_fit_keeps_both_ends():
    short = plots.text("Training_" + "x" * 90 + "_17.jpg", 20, 2)
    assert short.startswith("Training_")
    assert short.endswith("_17.jpg")
    assert [len(line) <= 20 for line in short.split("\n")] == [True, True]


def test_text_has_glyphs_only(fresh_fonts):
    assert plots.text("Ac\u0327ai\u0301\n苹 \x07\udcff", 40) == r"Açaí ? \x07\udcff"


@pytest.mark.parametrize(
    ("number", "title"),
    [
        (0, "6 photographs, without labels"),
        (1, "First photographs of 1 label, by name"),
        (36, "First photographs of 36 labels, by name"),
        (131, "First photographs of the first 36 of 131 labels, by name"),
    ],
)
def test_the_grid_says_which_labels_it_shows(number, title):
    assert title in words(drawn(number, "grid"))


def test_the_grid_shows_the_first_labels_by_name():
    shown = words(pictures.sample_grid(thumbnails_of([f"{i:03}" for i in range(130, -1, -1)]), 131))
    assert shown[1:] == [f"{i:03}" for i in range(36)]


def test_the_grid_takes_labels_that_the_table_lacks_for_not_shown():
    assert "the first 2 of 131 labels" in words(pictures.sample_grid(thumbnails_of("ab"), 131))[0]


def test_rows_of_the_grid_do_not_touch():
    figure = drawn(131, "grid")
    assert not overlapping(boxes(figure.findobj(AxesImage)))


def test_a_rejected_photograph_is_a_frame_with_its_reason():
    figure = pictures.sample_grid(thumbnails_of("a", each=1, reason="empty file"), 1)
    assert not figure.findobj(AxesImage)
    assert "rejected: empty file" in [word.replace("\n", " ") for word in words(figure)]


@pytest.mark.parametrize("number", [2, 40, 131])
def test_the_title_and_the_legend_of_counts_are_apart(number):
    figure = plots.images_per_label(counts_of([f"label {i}" for i in range(number)]))
    figure.canvas.draw()
    titles = [axes._left_title for axes in figure.axes]
    assert len(boxes([*titles, *figure.legends])) >= 2
    assert not overlapping(boxes([*titles, *figure.legends]))


def test_counts_are_those_of_every_label_and_split():
    axes = plots.images_per_label(counts_of(["a", "b"])).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [3, 6, 1, 2]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [total.get_text() for total in axes.texts] == [" 4", " 8"]


def test_labels_that_look_alike_when_cut_have_bars_of_their_own():
    alike = ["x" * 30 + middle + "x" * 30 for middle in "ab"]
    axes = plots.images_per_label(counts_of(alike)).axes[0]
    assert len({bar.get_y() for bar in axes.patches}) == 2


def test_the_summary_of_many_labels_names_median_largest_and_smallest():
    figure = plots.images_per_label(counts_of([f"label {i}" for i in range(1, 132)]))
    assert {"median 264", "label 1", "label 8", "label 124", "label 131"} <= set(words(figure))
    assert " 0" not in words(figure)


def test_counts_without_labels_have_a_bar_per_split():
    axes = plots.images_per_label(counts_of([None])).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Training", "Test"]
    assert [bar.get_width() for bar in axes.patches] == [3, 1]


@pytest.mark.parametrize(("n", "end"), [(2, 1), (4, 3), (9, 6)])
def test_curves_end_at_the_last_component_that_the_vectors_have(n, end):
    ratio = np.full(6, 1 / 6)
    share, error = plots.explained_variance(
        ratio, ratio, {"raw": 1, "standardized": 1}, None, n
    ).axes
    for axes in (share, error):
        assert axes.lines[0].get_xdata()[-1] == end


def test_curves_of_one_split_name_it_and_others_name_none():
    ratio = np.full(6, 1 / 6)
    chosen = {"raw": 1, "standardized": 1}
    of_split = plots.explained_variance(ratio, ratio, chosen, None, 9, "Training")
    assert "9 images of Training alone" in of_split.get_suptitle()
    assert not plots.explained_variance(ratio, ratio, chosen, None, 9).get_suptitle()


def test_the_reconstruction_error_is_that_of_the_vectors():
    rows = np.random.default_rng(0).normal(size=(20, 4)) * [4, 3, 2, 1]
    rows -= rows.mean(axis=0)
    _, values, directions = np.linalg.svd(rows, full_matrices=False)
    ratio = values**2 / np.sum(values**2)
    figure = plots.explained_variance(ratio, ratio, {"raw": 2, "standardized": 3}, 0.9, 20)
    left_out = rows - rows @ directions[:2].T @ directions[:2]
    expected = np.sqrt(np.mean(left_out**2) / np.mean(rows**2))
    assert figure.axes[1].lines[0].get_ydata()[2] == pytest.approx(expected)
    assert f"raw: {expected:.1%} with k = 2" in words(figure)


@pytest.mark.parametrize(("number", "entries"), [(0, 0), (2, 2), (12, 12), (13, 0), (131, 0)])
def test_scores_have_a_legend_of_few_labels_only(number, entries):
    legend = drawn(number, "scores").axes[0].get_legend()
    assert (len(legend.texts) if legend else 0) == entries


def test_scores_name_the_largest_labels_where_they_lie():
    points, names = plane_of([f"v{i}" for i in range(20)])
    points = np.vstack([points, np.full((50, 2), -5) + np.arange(50)[:, np.newaxis] % 2])
    axes = pictures.scores(points, [*names, *["many"] * 50], [0.5, 0.25]).axes[0]
    assert len(axes.texts) == 12
    assert axes.texts[0].get_text() == "many"
    assert np.allclose(axes.texts[0].get_position(), -4.5)


def test_scores_without_labels_have_one_colour_and_no_names():
    axes = drawn(0, "scores").axes[0]
    assert len(np.unique(axes.collections[0].get_facecolor(), axis=0)) == 1
    assert not axes.texts


def test_photographs_among_scores_hide_neither_names_nor_each_other():
    points, names = plane_of([f"variety {i}" for i in range(24)])
    figure = pictures.scores(points, names, [0.5, 0.25], [(i, PIXELS) for i in range(120)])
    figure.canvas.draw()
    shown = figure.findobj(AnnotationBbox)
    shown = [artist for artist in shown if not isinstance(artist, plt.Annotation)]
    assert 10 < len(shown) < 120
    assert not overlapping(boxes([*figure.axes[0].texts, *shown]))


def test_scores_of_one_component_are_a_line():
    axes = pictures.scores(np.array([[1.0], [2.0]]), ["a", "b"], [0.5]).axes[0]
    assert (axes.collections[0].get_offsets()[:, 1] == 0).all()
    assert not axes.get_ylabel()


def test_extremes_rise_from_the_lowest_to_the_highest_score():
    ends = ends_of("apple")
    figure = pictures.extremes(ends.sample(frac=1, random_state=0), [0.5, 0.25])
    captions = [word for word in words(figure) if word.startswith("apple")]
    assert captions == [f"apple\n{score}" for score in (-5, -4, -3, -2, 2, 3, 4, 5)] * 2
    assert "component 2\n25.0% of variance" in words(figure)


def test_extremes_without_labels_are_named_by_file():
    assert "photo.jpg\n5" in words(pictures.extremes(ends_of(None), [0.5, 0.25]))


def test_the_most_confused_labels_are_drawn_and_the_others_counted():
    figure = plots.confusion_matrix(confusions_of(labels_of(131)))
    (axes,) = figure.axes
    drawn = [tick.get_text() for tick in axes.get_yticklabels()]
    assert len(drawn) == plots.MATRIX
    assert drawn[0] == "Variety 123"  # taken for another 130 times, and another for it 129 times
    title = figure.get_suptitle()
    assert "30 of 131 labels, the most confused first: " in title
    assert " of 8,515 confusions" in title


def test_without_confusions_a_matrix_has_the_right_answers():
    figure = plots.confusion_matrix(confusions_of(labels_of(24), wrong=0))
    assert figure.get_suptitle() == "No label is confused: right answers, 12 of 24 labels"
    assert [word for word in words(figure) if word == "1"] == ["1"] * 12


def test_the_chosen_k_is_marked_and_close_ticks_have_room():
    figure = plots.accuracy_by_k(pd.Series([0.5, 0.7, 0.9, 0.91], [1, 32, 64, 72]), 5000)
    (axes,) = figure.axes
    assert "chosen: k = 72, 91.0%" in words(figure)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "32", "72"]
    assert axes.get_title(loc="left").endswith("5,000 photographs")


# --- whatever a person's machine has ------------------------------------------------------------

PERSONAL = {
    "text.usetex": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["STIXGeneral"],
    "font.size": 30,
    "figure.dpi": 50,
    "figure.facecolor": "black",
    "savefig.bbox": "tight",
    "savefig.dpi": 300,
    "axes.unicode_minus": False,
}


@pytest.mark.parametrize("kind", ["grid", "counts", "scores", "matrix", "variance"])
def test_a_persons_settings_change_nothing(kind):
    """The settings are there while a figure is drawn, and while it is rendered."""

    def images():
        if kind == "variance":  # its ticks are percentages, which TeX writes in another way
            ratios = np.full(10, 0.1)
            chosen = {"raw": 3, "standardized": 4}
            figure = plots.explained_variance(ratios, ratios, chosen, 0.5, 20)
        else:
            figure = drawn(12, kind)
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return file.getvalue(), print_figure(figure)

    plain = images()
    with plt.rc_context(PERSONAL):
        personal = images()
        assert plt.rcParams["text.usetex"]
    assert personal == plain  # as a file, and in a notebook


@pytest.fixture
def fresh_fonts(monkeypatch):
    """The fonts of matplotlib alone, looked at anew."""
    caches = (plots.family_of, plots._installed, plots._say_unknown)
    own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    for cached in caches:
        cached.cache_clear()
    yield font_manager.fontManager
    for cached in caches:
        cached.cache_clear()


def write_font(file, name, characters):
    """Write a font whose characters are squares."""
    pen = TTGlyphPen(None)
    for move, point in zip("mlll", [(0, 0), (0, 900), (900, 900), (900, 0)], strict=True):
        {"m": pen.moveTo, "l": pen.lineTo}[move](point)
    pen.closePath()
    square = pen.glyph()
    glyphs = [".notdef", *(f"g{ord(character)}" for character in characters)]
    font = FontBuilder(1000)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap({ord(character): f"g{ord(character)}" for character in characters})
    font.setupGlyf(dict.fromkeys(glyphs, square))
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": name, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(file)


def test_names_are_drawn_in_an_installed_font_that_has_their_characters(
    fresh_fonts, tmp_path, caplog
):
    write_font(tmp_path / "test.ttf", "Test Han", "苹果")
    fresh_fonts.addfont(tmp_path / "test.ttf")
    for figure in (plots.images_per_label(counts_of(["苹果", "pear"])), drawn(6, "scores")):
        figure.canvas.draw()  # a missing glyph is a warning, so an error here
        (name,) = {shown for shown in words(figure) if "苹" in shown}
        assert name == "苹果"
    assert plots.families("a 苹") == ["DejaVu Sans", "Test Han"]
    assert not caplog.records


def test_characters_that_no_font_has_are_named_once(fresh_fonts, caplog):
    assert plots.text("苹果", 40) == "??"
    assert plots.text("香蕉", 40) == "??"
    (record,) = caplog.records
    assert "install a font" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_wide_characters_take_the_room_of_two(fresh_fonts, tmp_path):
    write_font(tmp_path / "test.ttf", "Test Han", "苹")
    fresh_fonts.addfont(tmp_path / "test.ttf")
    assert max(map(len, plots.text("苹" * 20, 10, 2).split("\n"))) == 5
