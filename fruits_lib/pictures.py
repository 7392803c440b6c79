"""Figures with photographs in them: made as in `fruits_lib.plots`, from thumbnails."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from fruits_lib.plots import drawing, families, names, set_fonts, text

GRID_LABELS = 36  # that `sample_grid` has room for
GRID_IMAGES = 6  # of each
GRID_UNLABELLED = 40  # photographs, where there are no labels
NAMED = 12  # labels in a legend, and named where they lie
THUMBNAIL = 26  # side of a photograph among scores, in points


@drawing
def sample_grid(thumbnails: pd.DataFrame, labels_in_all: int) -> Figure:
    """Draw the first photographs of as many labels as fit, by name; each label has a row.

    A photograph that the pipeline rejects is a frame with the reason. Without labels the
    photographs make a plain grid.

    Parameters
    ----------
    thumbnails : pandas.DataFrame
        label (null if there is none), path, pixels (uint8 array (s, s, 3), or None for a reject),
        reason (text or None). Six photographs are drawn of each of 36 labels at most.
    labels_in_all : int
        Number of labels in the collection, for the title.
    """
    labels = names(thumbnails["label"])
    if labels is None:
        return _plain_grid(thumbnails.sort_values("path")[:GRID_UNLABELLED])
    table = thumbnails.assign(label=labels.to_numpy()).sort_values(["label", "path"])
    groups = list(table.groupby("label"))[:GRID_LABELS]
    # Side by side: blocks of rows, of this many photographs, of this size in inches.
    blocks, columns, side = next(
        layout[1:]
        for layout in ((6, 1, 6, 0.95), (12, 2, 6, 0.75), (GRID_LABELS, 3, 5, 0.62))
        if len(groups) <= layout[0]
    )
    rows = -(-len(groups) // blocks)
    across, down = columns * side + 0.3, side + 0.27
    axes = _canvas(max(blocks * across, 5), rows * down + 0.4)
    first = f"the first {len(groups)} of " if len(groups) < labels_in_all else ""
    count = f"{labels_in_all:,} label{'s' * (labels_in_all != 1)}"
    title = f"First photographs of {first}{count}, by name"
    axes.text(0.1, 0.2, title, fontsize=11, va="center")
    for number, (label, group) in enumerate(groups):
        left, top = 0.1 + number // rows * across, 0.6 + number % rows * down
        axes.text(left, top - 0.04, text(label, int(columns * side * 13)), fontsize=8, va="bottom")
        for column, photograph in enumerate(group[:columns].itertuples()):
            _draw(axes, left + column * side, top, side, photograph)
    return axes.figure


def _plain_grid(thumbnails: pd.DataFrame) -> Figure:
    columns, side = 8, 1.0
    axes = _canvas(columns * side + 0.2, -(-len(thumbnails) // columns) * side + 0.5)
    axes.text(0.1, 0.2, f"{len(thumbnails)} photographs, without labels", fontsize=11, va="center")
    for number, photograph in enumerate(thumbnails.itertuples()):
        row, column = divmod(number, columns)
        _draw(axes, 0.1 + column * side, 0.4 + row * side, side, photograph)
    return axes.figure


@drawing
def extremes(ends: pd.DataFrame, ratios: Sequence[float], per_end: int = 4) -> Figure:
    """Draw the photographs with the lowest and the highest scores of each component.

    Parameters
    ----------
    ends : pandas.DataFrame
        component (from 1), end ("low" or "high"), path, label (or null), score, pixels (uint8 array
        (s, s, 3), or None).
    ratios : sequence of float
        Explained variance ratio of component 1, 2, and so on.
    per_end : int
        Photographs at each end.
    """
    components = sorted(ends["component"].unique())
    side, names_width, gap, caption = 1.0, 1.25, 0.35, 0.5
    high = names_width + per_end * side + gap
    axes = _canvas(high + per_end * side + 0.1, len(components) * (side + caption) + 0.35)
    axes.text(names_width, 0.2, "lowest scores", fontsize=10, va="center")
    axes.text(high, 0.2, "highest scores", fontsize=10, va="center")
    for row, component in enumerate(components):
        top = 0.35 + row * (side + caption)
        share = f"component {component}\n{ratios[component - 1]:.1%} of variance"
        axes.text(0.1, top + side / 2, share, fontsize=8, va="center")
        for end, left in (("low", names_width), ("high", high)):
            found = ends[(ends["component"] == component) & (ends["end"] == end)]
            found = found.sort_values("score", ascending=end == "low")[:per_end]
            for column, photograph in enumerate(found.sort_values("score").itertuples()):
                x = left + column * side
                _draw(axes, x, top, side, photograph)
                name = photograph.path.rsplit("/", 1)[-1]
                name = name if pd.isna(photograph.label) else photograph.label
                note = f"{text(name, 17, 2)}\n{photograph.score:.3g}"
                axes.text(x + side / 2, top + side, note, fontsize=7, ha="center", va="top")
    return axes.figure


@drawing
def confusions(pairs: pd.DataFrame) -> Figure:
    """Draw photographs beside the nearest known photograph of the label that they got.

    Parameters
    ----------
    pairs : pandas.DataFrame
        label, predicted, probability, photographs (so confused; 0 for a right answer), pixels and
        nearest_pixels (uint8 arrays (s, s, 3), or None).
    """
    side, caption, gap = 1.3, 0.62, 0.5
    columns = 2 if len(pairs) > 1 else 1
    across, down = 2 * side + gap, side + caption
    rows = -(-len(pairs) // columns)
    axes = _canvas(max(columns * across + 0.1, 5), rows * down + 0.45)
    title = "Left: a photograph. Right: the nearest known one of the label that it got"
    axes.text(0.1, 0.2, title, fontsize=8 if columns == 1 else 10, va="center")
    for number, pair in enumerate(pairs.itertuples()):
        row, column = divmod(number, columns)
        left, top = 0.1 + column * across, 0.45 + row * down
        for x, pixels, label in (
            (left, pair.pixels, pair.label),
            (left + side, pair.nearest_pixels, pair.predicted),
        ):
            _draw(axes, x, top, side, pair._replace(pixels=pixels))
            name = text(label, 20, 2)
            axes.text(x + side / 2, top + side, name, fontsize=7.5, ha="center", va="top")
        times = f"{pair.photographs:,} so confused, this one " if pair.photographs else "right, "
        note = f"{times}{pair.probability:.0%} sure"
        axes.text(left + side, top + down - 0.2, note, fontsize=7.5, ha="center", color="dimgrey")
    return axes.figure


@drawing
def nearest(table: pd.DataFrame) -> Figure:
    """Draw photographs, a row each, beside the known ones that are nearest to them.

    Parameters
    ----------
    table : pandas.DataFrame
        photograph (number of the row, whose first picture is the photograph itself), caption
        (lines), pixels (uint8 array (s, s, 3), or None), reason (text or None).
    """
    side, gap, note, head = 1.25, 0.3, 0.66, 0.4
    rows = [list(group.itertuples()) for _, group in table.groupby("photograph")]
    known = max(map(len, rows)) - 1
    axes = _canvas(0.2 + side + gap + max(known, 2) * side, head + len(rows) * (side + note))
    axes.text(0.1, 0.2, "Photograph" + "s" * (len(rows) > 1), fontsize=10, va="center")
    if known:
        title = "Nearest known photographs, and the distance of their scores"
        axes.text(0.1 + side + gap, 0.2, title, fontsize=10, va="center")
    for number, row in enumerate(rows):
        top = head + number * (side + note)
        for column, photograph in enumerate(row):
            x = 0.1 + column * side + gap * (column > 0)
            _draw(axes, x, top, side, photograph)
            caption = "\n".join(text(line, 20, 2) for line in photograph.caption.split("\n"))
            axes.text(x + side / 2 - 0.02, top + side, caption, fontsize=7, ha="center", va="top")
    return axes.figure


@drawing
def predictions(table: pd.DataFrame, images: int) -> Figure:
    """Draw photographs with the label that each was given, and its probability.

    A label that is not that of the photograph's folder is red, and the folder's follows it.

    Parameters
    ----------
    table : pandas.DataFrame
        path, label, predicted, probability (each of the last three may be null), pixels (uint8
        array (s, s, 3), or None); drawn in this order.
    images : int
        Number of photographs in the collection, for the title.
    """
    columns, side, caption = 8, 1.15, 0.55
    axes = _canvas(columns * side + 0.2, -(-len(table) // columns) * (side + caption) + 0.45)
    share = f"{len(table)} of" if len(table) < images else "All"
    title = f"{share} {images:,} photographs"
    if table["predicted"].notna().any():
        title += ", the least certain first"
    axes.text(0.1, 0.2, title, fontsize=11, va="center")
    for number, photograph in enumerate(table.itertuples()):
        row, column = divmod(number, columns)
        left, top = 0.1 + column * side, 0.42 + row * (side + caption)
        _draw(axes, left, top, side, photograph)
        note, colour = text(photograph.path.rsplit("/", 1)[-1], 19, 2), "black"
        if pd.notna(photograph.predicted):
            note = f"{text(photograph.predicted, 19)}\n{photograph.probability:.1%}"
            if pd.notna(photograph.label) and photograph.label != photograph.predicted:
                note, colour = f"{note}\nin {text(photograph.label, 16)}", "tab:red"
        middle = left + side / 2 - 0.02
        axes.text(middle, top + side, note, fontsize=7, color=colour, ha="center", va="top")
    return axes.figure


def _canvas(width: float, height: float) -> Axes:
    """Return axes over a whole new figure, in inches from its top left corner."""
    axes = plt.figure(figsize=(width, height)).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    return axes


def _draw(axes: Axes, left: float, top: float, side: float, photograph) -> None:
    """Draw a photograph (a row with `pixels`, perhaps `reason`) into a square of the canvas."""
    edge = side - 0.04
    if photograph.pixels is not None:
        extent = (left, left + edge, top + edge, top)
        axes.imshow(photograph.pixels, extent=extent, aspect="auto")
        return
    axes.add_patch(Rectangle((left, top), edge, edge, fill=False, edgecolor="grey", linewidth=0.8))
    reason = getattr(photograph, "reason", None)
    note = f"rejected: {reason}" if reason else "not readable"
    size = 5 if side < 0.9 else 6.5
    wrapped = text(note, int(edge * 100 / size), int(edge * 55 / size))
    axes.text(left + 0.04, top + edge / 2, wrapped, fontsize=size, va="center")


@drawing
def scores(
    points: np.ndarray,
    labels: Sequence[str | None],
    ratios: Sequence[float],
    thumbnails: Sequence[tuple[int, np.ndarray]] | None = None,
    new: int = 0,
) -> Figure:
    """Draw the scores of the first two components, coloured by label.

    The largest labels are named at their medians; 12 or fewer also have a legend.

    Parameters
    ----------
    points : numpy.ndarray, shape (n, 2) or (n, 1)
        Scores of the first two components; with one component, y is 0.
    labels : sequence of str or None, length n - new
    ratios : sequence of float
        The components' explained variance ratios, for the axis labels.
    thumbnails : sequence of (int, uint8 ndarray (s, s, 3)), optional
        Rows of `points` and their photographs, drawn at their points, the first ones first; those
        that would hide a name or another photograph are left out.
    new : int
        How many of the last points are no part of the run: they are black rings.
    """
    figure, axes = plt.subplots(
        figsize=(9.5, 6.5 if points.shape[1] > 1 else 3), layout="constrained"
    )
    plane = np.column_stack([points[:, 0], points[:, 1:].sum(axis=1)])
    known = len(plane) - new
    named = names(labels)
    sizes = pd.Series(dtype=int) if named is None else named.value_counts().sort_index()
    palette = "tab10" if len(sizes) <= 10 else "tab20" if len(sizes) <= 20 else "turbo"
    shades = plt.get_cmap(palette, None if len(sizes) <= 20 else len(sizes))
    colours = {label: shades(number) for number, label in enumerate(sizes.index)}
    of_point = [shades(0)] * known if named is None else [colours[label] for label in named]
    of_point += ["black"] * new
    # In an order of chance, or the last label would hide the others.
    order = np.random.default_rng(0).permutation(known)
    dot = 16 if len(plane) <= 1000 else 6
    axes.scatter(*plane[order].T, s=dot, alpha=0.6, color=[of_point[row] for row in order])
    rings = axes.scatter(*plane[known:].T, s=18, facecolors="none", edgecolors="black")
    axes.margins(0.07)
    axes.set_xlabel(f"component 1 ({ratios[0]:.1%} of variance)")
    if points.shape[1] > 1:
        axes.set_ylabel(f"component 2 ({ratios[1]:.1%} of variance)")
    else:
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    keys = dict(colours) if len(sizes) <= NAMED else {}
    dots = [Line2D([], [], marker="o", linestyle="", color=c) for c in keys.values()]
    if dots or new:
        handles = [*dots, *[rings] * bool(new)]
        legend = axes.legend(
            handles, handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
        )
        keys = [*(text(label, 24, 2) for label in keys), f"{new:,} new"]
        for entry, key in zip(legend.texts, keys, strict=False):
            entry.set_text(key)  # a legend would drop "_label"
    set_fonts(figure)
    figure.draw_without_rendering()  # settles the layout, and so where a point lies in pixels
    taken = _name_largest(axes, plane[:known], named, colours, sizes) if len(sizes) else []
    _place(axes, plane, of_point, thumbnails or (), taken)
    return figure


def _name_largest(axes: Axes, plane: np.ndarray, named, colours: dict, sizes) -> list[Bbox]:
    """Name the largest labels at or near their medians, and return the boxes of the names."""
    taken, unit = [], axes.figure.dpi / 72
    for label in sizes.sort_values(ascending=False, kind="stable").index:
        if len(taken) == NAMED:
            break
        shown = text(label, 22, 2)
        name = axes.text(
            0,
            0,
            shown,
            fontfamily=families(shown),
            ha="center",
            va="center",
            fontsize=8,
            color=np.multiply(colours[label][:3], 0.6),
            path_effects=[withStroke(linewidth=3, foreground="white")],
            zorder=5,
        )
        name.set_in_layout(False)
        half = np.array(name.get_window_extent().size) / 2 + 2
        middle = axes.transData.transform(np.median(plane[(named == label).to_numpy()], axis=0))
        for offset in (0, 12, -12, 24, -24):
            place = middle + (0, offset * unit)
            place = place.clip(axes.bbox.min + half, axes.bbox.max - half)
            if _take(taken, place, half):
                name.set_position(axes.transData.inverted().transform(place))
                break
        else:
            name.remove()
    return taken


def _place(axes: Axes, plane: np.ndarray, of_point: list, thumbnails, taken: list[Bbox]) -> None:
    """Draw the photographs that have room at their points."""
    # With a margin: points stay visible between the photographs.
    half = np.full(2, 1.3 * THUMBNAIL / 2 * axes.figure.dpi / 72)
    for row, pixels in thumbnails:
        if pixels is None or not _take(taken, axes.transData.transform(plane[row]), half):
            continue
        image = OffsetImage(pixels, zoom=THUMBNAIL / len(pixels))
        frame = {"edgecolor": of_point[row], "linewidth": 1.5}
        box = AnnotationBbox(image, plane[row], pad=0.08, bboxprops=frame)
        box.set_in_layout(False)
        axes.add_artist(box)


def _take(taken: list[Bbox], middle: np.ndarray, half: np.ndarray) -> bool:
    """Add a box to those taken, unless it would overlap one of them."""
    box = Bbox([middle - half, middle + half])
    if free := not any(box.overlaps(other) for other in taken):
        taken.append(box)
    return free
