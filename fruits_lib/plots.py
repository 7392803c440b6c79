"""Every figure: plain arrays in, a matplotlib Figure out, never shown here.

pyplot makes the figures, so that `%matplot plt` finds the current one in both kernels.
"""

import io
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image


def sample_grid(images: pd.DataFrame, per_label: int) -> Figure:
    """Draw a few images of every label, one row per label.

    Parameters
    ----------
    images : pandas.DataFrame
        label, content (file bytes); at most `per_label` rows per label.
    per_label : int
        Columns of the grid.
    """
    groups = images.groupby("label", sort=False)["content"]
    width = 1.1 * per_label + 1.6
    figure, axes = plt.subplots(
        len(groups), per_label, figsize=(width, 1.1 * len(groups)), squeeze=False
    )
    for row, (label, contents) in zip(axes, groups, strict=True):
        for cell in row:
            cell.set_axis_off()
        for cell, content in zip(row, contents, strict=False):
            try:
                cell.imshow(Image.open(io.BytesIO(content)).convert("RGB"))
            except OSError:
                cell.text(0.5, 0.5, "unreadable", ha="center", va="center", fontsize=8)
        row[0].text(-0.15, 0.5, label, ha="right", va="center", transform=row[0].transAxes)
    figure.subplots_adjust(left=1.6 / width, right=1, top=1, bottom=0, hspace=0.05)
    return figure


def images_per_label(counts: pd.DataFrame, largest: int = 40) -> Figure:
    """Draw images per label as stacked bars, one colour per split.

    Parameters
    ----------
    counts : pandas.DataFrame
        One row per label, one column per split.
    largest : int
        Number of labels to draw, the most frequent ones; the title says how many are left out.
    """
    shown = counts.loc[counts.sum(axis=1).nlargest(largest).index][::-1]
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.28 * len(shown)), layout="constrained")
    left = np.zeros(len(shown))
    for split, images in shown.items():
        bars = axes.barh(shown.index, images, left=left, label=split)
        left += images.to_numpy()
    axes.bar_label(bars, [f" {total:,.0f}" for total in left])
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("images")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    rest = len(counts) - len(shown)
    title = "Images per label" + (f" ({rest} smaller labels not shown)" if rest else "")
    axes.set_title(title, loc="left")
    return figure


def explained_variance(
    raw: np.ndarray, standardized: np.ndarray, chosen: dict[str, int], target: float | None
) -> Figure:
    """Draw cumulative explained variance, raw and standardized side by side.

    Parameters
    ----------
    raw, standardized : numpy.ndarray, shape (d,)
        Explained variance ratio of each component.
    chosen : dict of str to int
        k by title ("raw", "standardized"), marked in its panel.
    target : float or None
        Ratio that k was chosen to reach; a dashed line.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    # The elbow and k are what people look at, not the long tail.
    end = min(len(raw), max(10, 2 * max(chosen.values())))
    for axes, ratio, colour, (title, k) in zip(
        panels, (raw, standardized), ("tab:blue", "tab:orange"), chosen.items(), strict=True
    ):
        cumulative = np.cumsum(ratio)
        axes.plot(np.arange(1, end + 1), cumulative[:end], "-o", color=colour, markevery=[k - 1])
        note = f"k = {k:,}: {cumulative[k - 1]:.1%}"
        axes.annotate(note, (k, cumulative[k - 1]), (8, -16), textcoords="offset points")
        if target:
            axes.axhline(target, color="grey", linestyle="--", linewidth=1)
        axes.set(title=title, xlabel="components", ylim=(0, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("cumulative explained variance")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def scores(points: np.ndarray, labels: Sequence[str], ratios: Sequence[float]) -> Figure:
    """Draw the scores of the first two components, coloured by label.

    Parameters
    ----------
    points : numpy.ndarray, shape (n, 2) or (n, 1)
        Scores of the first two components; with one component, y is 0.
    labels : sequence of str, length n
    ratios : sequence of float
        The components' explained variance ratios, for the axis labels.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    table = pd.DataFrame({"label": labels, "x": points[:, 0], "y": points[:, 1:].sum(axis=1)})
    groups = table.groupby("label")
    colours = plt.get_cmap("tab10" if len(groups) <= 10 else "turbo", max(len(groups), 2))
    for number, (label, group) in enumerate(groups):
        axes.scatter(group.x, group.y, s=16, alpha=0.7, color=colours(number), label=label)
    if len(groups) <= 30:  # more would be wider than the picture
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_xlabel(f"component 1 ({ratios[0]:.1%} of variance)")
    if points.shape[1] > 1:
        axes.set_ylabel(f"component 2 ({ratios[1]:.1%} of variance)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def rejects(reasons: pd.Series) -> Figure:
    """Draw how many images were rejected for which reason."""
    kinds = reasons.str.replace(r"\d+", "…", regex=True).value_counts()[::-1]
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.35 * max(len(kinds), 1)), layout="constrained")
    if kinds.empty:
        axes.text(0.5, 0.5, "no image was rejected", ha="center", va="center")
        axes.set_axis_off()
        return figure
    axes.barh(kinds.index, kinds, color="tab:red")
    axes.set_xlabel("images rejected")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
