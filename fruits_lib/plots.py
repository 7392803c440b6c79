"""Every figure: plain arrays in, a matplotlib Figure out, never shown here.

pyplot makes the figures, so that `%matplot plt` finds the current one in both kernels. Every figure
is readable for a few labels and for hundreds, and where there are none: where every label is null.
Those that show photographs are in `fruits_lib.pictures`. None depends on a person's settings of
matplotlib: see `drawing`.
"""

import logging
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, wraps

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fruits_lib.text import printable

FONT = "DejaVu Sans"  # matplotlib brings it
BARS = 40  # labels with a bar and a name each; of more, `images_per_label` draws a summary
MATRIX = 30  # labels of a confusion matrix
NEVER = 12  # of one without confusions
ENDS = 8  # labels that the summary names at each end


def _in_own_style(function: Callable) -> Callable:
    """Call a function with matplotlib's own settings in place of a person's matplotlibrc."""

    @wraps(function)
    def styled(*args, **kwargs):
        with plt.style.context({"font.family": [FONT]}, after_reset=True):
            return function(*args, **kwargs)

    return styled


def drawing(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw a figure, and later render it, in a style that is the same for everybody.

    Some settings, such as `text.usetex`, count when a text is made, others when it is rendered.
    """

    @wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        figure = _in_own_style(draw)(*args, **kwargs)
        set_fonts(figure)
        for name in ("draw", "get_tightbbox", "savefig"):
            setattr(figure, name, _in_own_style(getattr(figure, name)))
        return figure

    return drawn


@drawing
def images_per_label(counts: pd.DataFrame) -> Figure:
    """Draw images per label: stacked bars, one colour per split; above 40 labels, a summary.

    Without labels there is one bar per split.

    Parameters
    ----------
    counts : pandas.DataFrame
        One row per label (the index, null for images without one), one column per split.
    """
    labels = names(counts.index)
    if labels is None:
        return _bars(counts.sum(), "Images")
    counts = counts.set_axis(labels).loc[lambda table: table.sum(axis=1).sort_values().index]
    if len(counts) > BARS:
        return _summary(counts)
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.25 * len(counts)), layout="constrained")
    _stack(axes, counts)
    axes.set_xlabel("images")
    axes.set_title("Images per label", loc="left")
    if counts.shape[1] > 1:
        # Below the axes, where no title is, however many splits there are.
        figure.legend(loc="outside lower left", ncols=4, frameon=False)
    return figure


def _stack(axes: Axes, counts: pd.DataFrame) -> None:
    """Draw horizontal bars, one per row of `counts` from the bottom, with the total beside each."""
    left = np.zeros(len(counts))
    for split, images in counts.items():
        bars = axes.barh(range(len(counts)), images, left=left, label=text(split, 30))
        left += images.to_numpy()
    axes.bar_label(bars, [f" {total:,.0f}" for total in left])
    axes.set_yticks(range(len(counts)), [text(label, 40) for label in counts.index])
    axes.margins(x=0.12)
    axes.set_ylim(-0.6, len(counts) - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.spines[["top", "right"]].set_visible(False)


def _summary(counts: pd.DataFrame) -> Figure:
    """Draw the sizes of all labels, and name those at both ends; `counts` ascends."""
    figure, (sizes, ends) = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    bottom = np.zeros(len(counts))
    for split, images in counts[::-1].items():
        top = bottom + images.to_numpy()
        edges = np.arange(len(counts) + 1)
        sizes.stairs(top, edges, baseline=bottom, fill=True, label=text(split, 30))
        bottom = top
    median = np.median(bottom)
    sizes.axhline(median, color="black", linestyle="--", linewidth=1)
    note = f"median {median:,.0f}"
    sizes.annotate(note, (len(counts), median), (0, 3), textcoords="offset points", ha="right")
    sizes.set(xlim=(0, len(counts)), xlabel="labels, largest first", ylabel="images")
    sizes.set_title(f"Images of each of {len(counts):,} labels", loc="left")
    sizes.yaxis.set_major_locator(MaxNLocator(integer=True))
    sizes.spines[["top", "right"]].set_visible(False)
    if counts.shape[1] > 1:
        handles = sizes.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower left", ncols=4, frameon=False)
    gap = pd.DataFrame(0, [""], counts.columns)
    _stack(ends, pd.concat([counts[:ENDS], gap, counts[-ENDS:]]))
    ends.texts[ENDS].set_text("")  # the total of the gap
    ends.tick_params(axis="y", length=0)
    ends.set_xlabel("images")
    ends.set_title(f"The {ENDS} largest and the {ENDS} smallest", loc="left")
    return figure


@drawing
def explained_variance(
    raw: np.ndarray,
    standardized: np.ndarray,
    chosen: dict[str, int],
    target: float | None,
    n: int,
    fit_split: str = "",
) -> Figure:
    """Draw cumulative explained variance and reconstruction error, raw and standardized.

    The reconstruction error of k components is the root mean square of what they leave out, as a
    share of that of the centred data: the root of the share of variance that they do not explain.

    Parameters
    ----------
    raw, standardized : numpy.ndarray, shape (d,)
        Explained variance ratio of each component.
    chosen : dict of str to int
        k by name: "raw", then "standardized".
    target : float or None
        Ratio that k was chosen to reach; a dashed line.
    n : int
        Number of vectors: they have min(n - 1, d) components at most, where the curves end.
    fit_split : str
        The split that the vectors are of, named above the curves; empty: all of them.
    """
    figure, (share, error) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    if fit_split:
        title = f"{n:,} images of {fit_split} alone, on which the components are fitted"
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    # The elbow and k are what people look at, not the long tail.
    end = min(n - 1, len(raw), max(10, 2 * max(chosen.values())))
    for ratio, colour, (name, k) in zip(
        (raw, standardized), ("tab:blue", "tab:orange"), chosen.items(), strict=True
    ):
        explained = np.concatenate([[0], np.cumsum(ratio)[:end]]).clip(0, 1)
        for axes, curve in ((share, explained), (error, np.sqrt(1 - explained))):
            note = f"{name}: {curve[k]:.1%} with k = {k:,}"
            axes.plot(curve, "-o", color=colour, markevery=[k], label=note)
            axes.plot([k, k], [0, curve[k]], ":", color=colour, linewidth=1)
    if target:
        share.axhline(target, color="grey", ls="--", lw=1, label=f"asked for: {target:.1%}")
    share.set_title("Explained variance, cumulative", loc="left")
    error.set_title("Reconstruction error (RMS, of the data's)", loc="left")
    share.legend(loc="lower right")
    error.legend(loc="upper right")
    for axes in (share, error):
        axes.set(xlabel="components", xlim=(0, end * 1.02), ylim=(0, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


@drawing
def confusion_matrix(confusions: pd.DataFrame) -> Figure:
    """Draw how often photographs of one label were taken for another; right answers in grey.

    Only confused labels are drawn: those of the most frequent pairs, 30 at most, the most confused
    first. If no label is confused, the first 12 are drawn with their right answers.

    Parameters
    ----------
    confusions : pandas.DataFrame
        label, predicted, photographs: every pair that occurs, right answers too.
    """
    pairs = confusions.astype({"label": str, "predicted": str})
    wrong = pairs[pairs["label"] != pairs["predicted"]]
    sides = [wrong.groupby(side)["photographs"].sum() for side in ("label", "predicted")]
    errors = sides[0].add(sides[1], fill_value=0).sort_values(ascending=False, kind="stable")
    everyone = sorted({*pairs["label"], *pairs["predicted"]})
    # Those of the most frequent pairs: of many labels, each confused a little, the sums say less.
    largest = wrong.sort_values("photographs", ascending=False, kind="stable")
    among = pd.unique(largest[["label", "predicted"]].to_numpy().ravel())[:MATRIX]
    shown = [label for label in errors.index if label in set(among)] or everyone[:NEVER]
    table = pairs.pivot(index="label", columns="predicted", values="photographs")
    table = table.reindex(index=shown, columns=shown).fillna(0).to_numpy(int)
    off = np.where(np.eye(len(shown), dtype=bool), 0, table)

    side = 0.34 * len(shown) + 0.2
    figure, axes = plt.subplots(figsize=(max(side + 2.6, 5.5), side + 3), layout="constrained")
    axes.imshow(np.where(off, off, np.nan), cmap="Reds", vmin=0, vmax=max(1.4 * off.max(), 10))
    for row, column in zip(*np.nonzero(table), strict=True):
        right = row == column
        number = f"{table[row, column]:,}"
        size = 8 if len(number) < 4 else 6.5
        colour = "grey" if right else "black"
        axes.text(column, row, number, size=size, color=colour, ha="center", va="center")
    wrapped = [text(label, 26) for label in shown]
    axes.set_xticks(range(len(shown)), wrapped, rotation=90)
    axes.set_yticks(range(len(shown)), wrapped)
    axes.set_xticks(np.arange(len(shown)) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(shown)) + 0.5, minor=True)
    axes.grid(which="minor", color="gainsboro", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="taken for", ylabel="label")
    total, drawn = int(wrong["photographs"].sum()), int(off.sum())
    never, all_labels = len(everyone) - len(errors), f"{len(everyone):,} labels"
    if total:
        title = f"{len(shown)} of {all_labels}, the most confused first: {drawn:,} of {total:,} "
        title += "confusions"
        if never:
            title += f"\n{never:,} label{'s are' if never > 1 else ' is'} never confused"
    else:
        title = f"No label is confused: right answers, {len(shown)} of {all_labels}"
    figure.suptitle(title, x=0.01, ha="left", size=11)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # turned names are a little longer
    return figure


@drawing
def accuracy_by_k(accuracies: pd.Series, photographs: int) -> Figure:
    """Draw the accuracy of nearest neighbours against the number of scores that they see.

    Parameters
    ----------
    accuracies : pandas.Series
        Accuracy by number of scores, ascending; the last one is the k that was chosen.
    photographs : int
        How many were judged, for the title.
    """
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    axes.plot(accuracies.index, accuracies, "-o", color="tab:blue", markersize=4, clip_on=False)
    k, best = accuracies.index[-1], accuracies.iloc[-1]
    note = f"chosen: k = {k:,}, {best:.1%}"
    axes.plot([k], [best], "o", color="tab:orange", markersize=9, label=note, clip_on=False)
    axes.set_xscale("log", base=2)
    ticks = [j for j in accuracies.index if j == k or j < 0.8 * k]  # names need room
    axes.set_xticks(ticks, [f"{j:,}" for j in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set(xlabel="scores seen: the first ...", ylabel="accuracy")
    axes.set_ylim(min(accuracies.min() - 0.02, 0.9), 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", frameon=False)
    axes.set_title(
        f"Accuracy of nearest neighbours, {photographs:,} photographs", loc="left", pad=12
    )
    return figure


def _bars(images: pd.Series, title: str, colour: str = "tab:blue") -> Figure:
    """Draw one bar per row, the first on top."""
    wrapped = [text(name, 45, 3) for name in images.index]
    row = 0.3 + 0.17 * max(name.count("\n") for name in wrapped)
    figure, axes = plt.subplots(figsize=(8, 1 + row * len(images)), layout="constrained")
    bars = axes.barh(range(len(images)), images, height=0.6, color=colour)
    axes.bar_label(bars, [f" {number:,.0f}" for number in images])
    axes.set_yticks(range(len(images)), wrapped)
    axes.set_ylim(len(images) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left")
    return figure


# --- text ---------------------------------------------------------------------------------------


def names(labels: Sequence[str | None]) -> pd.Series | None:
    """Return a name for every label, or None if all are null."""
    labels = pd.Series(list(labels), dtype=object)
    return None if labels.isna().all() else labels.fillna("(no label)")


def text(value: str, width: int, lines: int = 1) -> str:
    """Return text that matplotlib shows as it is.

    It is wrapped to `lines` of `width` characters (half as many where they are wide, as Chinese
    ones are), and loses its middle where it does not fit, for the ends tell labels and file names
    apart. Dollar signs are no mathematics, and a character that no installed font has is a question
    mark, which is logged once.
    """
    whole = printable(" ".join(unicodedata.normalize("NFC", str(value)).split()))
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in whole)
    width = width * len(whole) // (len(whole) + wide) if wide else width
    wrapped, room = textwrap.wrap(whole, width), width * lines
    while len(wrapped) > lines:
        half = room // 2
        wrapped, room = (
            textwrap.wrap(f"{whole[: room - half - 1]}…{whole[-half:]}", width),
            room - 1,
        )

    def drawn(character: str) -> str:
        if family_of(character):
            return character
        _say_unknown()
        return "?"

    return "\n".join("".join(map(drawn, line)) for line in wrapped).replace("$", r"\$")


def set_fonts(figure: Figure) -> None:
    """Give every text of a figure the fonts that have its characters."""
    for shown in figure.findobj(Text):
        shown.set_fontfamily(families(shown.get_text()))


def families(shown: str) -> list[str]:
    """Return the fonts that together have all characters of a text, `FONT` first."""
    found = dict.fromkeys(map(family_of, shown.replace("\n", "")))
    return [FONT, *(family for family in found if family not in (FONT, None))]


@cache
def family_of(character: str) -> str | None:
    """Return an installed font that has a character, `FONT` if that has it, or None."""
    if get_font(findfont(FONT)).get_char_index(ord(character)):
        return FONT
    return next((name for name, has in _installed() if (has == ord(character)).any()), None)


@cache
def _installed() -> list[tuple[str, np.ndarray]]:
    """Return family and characters of every upright font of this machine, the largest first."""
    found = []
    for entry in fontManager.ttflist:
        # The last resort has a box for every character there is.
        if entry.style == "normal" and "lastresort" not in entry.fname.lower():
            with suppress(OSError, RuntimeError):  # gone since matplotlib looked, or damaged
                characters = get_font(entry.fname).get_charmap()
                found.append((entry.name, np.fromiter(characters, np.uint32)))
    return sorted(found, key=lambda font: -len(font[1]))


@cache
def _say_unknown() -> None:
    logging.getLogger(__name__).warning(
        "figures show ? for characters of names that no installed font has: install a font that "
        "has them, such as Noto Sans CJK for Chinese, Japanese and Korean"
    )
