"""`fruits predict`: one photograph or a few, by a finished run, without Spark and TensorFlow."""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fruits_lib import results, storage
from fruits_lib.errors import FruitsError
from fruits_lib.regression import Regression
from fruits_lib.results import Results
from fruits_lib.text import printable
from fruits_lib.udf import ImageError, decode_image, open_backbone

NEAREST = 5  # known photographs that are named
FIRST = 5  # scores that are printed where there is no classifier
THUMBNAIL = 128  # side of a photograph in the figure, in pixels


@dataclass(frozen=True)
class Neighbor:
    """A photograph of the run."""

    path: str  # below the run's data folder
    label: str | None
    distance: float  # Euclidean, between the scores


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run says of one photograph. As text: the lines that `fruits predict` prints.

    Attributes
    ----------
    photograph : str
        As it was asked for.
    content : bytes
        The file.
    reason : str
        Why it is rejected, as in `rejects/`; empty if it is not.
    scores : ndarray of float64, shape (k,)
        Of the principal components; empty for a reject.
    guesses : list of (str, float)
        Labels and their probabilities, the likeliest first; none without a classifier.
    nearest : list of Neighbor
        The nearest photographs of the run, the nearest first.
    """

    photograph: str
    content: bytes
    reason: str
    scores: np.ndarray
    guesses: list[tuple[str, float]]
    nearest: list[Neighbor]

    def __str__(self) -> str:
        if self.reason:
            return f"{printable(self.photograph)}\n  rejected       {printable(self.reason)}"
        rows = [
            (name, printable(label), f"{probability:.1%}")
            for name, (label, probability) in zip(
                ("label", "second guess"), self.guesses, strict=False
            )
        ]
        # Three significant digits of the largest distance, for all: they line up.
        digits = max(0, 2 - math.floor(math.log10(max(self.nearest[-1].distance, 1e-9))))
        rows += [
            (
                "" if number else "nearest",
                printable(near.label or ""),
                f"distance {near.distance:.{digits}f}",
            )
            for number, near in enumerate(self.nearest)
        ]
        paths = [""] * len(self.guesses) + [printable(near.path) for near in self.nearest]
        wide, high = (max(len(row[column]) for row in rows) for column in (1, 2))
        lines = [
            f"  {name:<14} {label:<{wide}}  {figure:>{high}}  {path}".rstrip()
            for (name, label, figure), path in zip(rows, paths, strict=True)
        ]
        if not self.guesses:
            shown = "  ".join(f"{score:.4g}" for score in self.scores[:FIRST])
            more = f" ... ({len(self.scores)} in all)" if len(self.scores) > FIRST else ""
            lines.insert(0, f"  {'scores':<14} {shown}{more}")
        return "\n".join([printable(self.photograph), *lines])


def predict(run: Results, photographs: Sequence[str]) -> list[Prediction]:
    """Return what a run says of photographs: paths or URIs of files.

    They are decoded as the run's own were. A photograph that would be in `rejects/` has a reason
    instead of scores.

    Raises
    ------
    FruitsError
        If a photograph is missing or a folder, or the run lacks a result.
    """
    run.require("pca")
    contents = [_read(photograph, run.decoding.max_bytes) for photograph in photographs]
    model, infer = run.read_npz("model.npz"), open_backbone(run.read_backbone())
    classifier = run.read_npz("classifier.npz") if run.classified else None
    known = run.read_table("pca", ["path", "label", "pca"])
    known_scores = results.scores_of(known)
    if known_scores.shape[1] != len(model["components"]):
        raise FruitsError(f"{run.uri}/pca is not of its model.npz: run 04_pca again")
    found = []
    for photograph, content in zip(photographs, contents, strict=True):
        try:
            pixels = decode_image(content, run.spec.input_size, run.decoding)
        except ImageError as error:
            found.append(Prediction(photograph, content, str(error), np.empty(0), [], []))
            continue
        scores = results.reduce(model, infer(pixels)[np.newaxis])
        guesses = _guesses(classifier, scores) if classifier else []
        distances = np.linalg.norm(known_scores - scores, axis=1)
        nearest = [
            Neighbor(known["path"][row].as_py(), known["label"][row].as_py(), distances[row])
            for row in map(int, np.argsort(distances, kind="stable")[:NEAREST])
        ]
        found.append(Prediction(photograph, content, "", scores[0], guesses, nearest))
    return found


def draw(run: Results, predictions: Iterable[Prediction], target: str) -> None:
    """Write a PNG file, a path or URI: each photograph beside its nearest known ones."""
    import matplotlib

    matplotlib.use("agg")  # no window, wherever this runs
    import pandas as pd

    from fruits_lib import pictures

    rows = []
    for number, prediction in enumerate(predictions):
        lines = [printable(_name(prediction.photograph))]
        lines += [
            f"{printable(label)} {probability:.1%}" for label, probability in prediction.guesses[:1]
        ]
        pixels = _thumbnail(prediction.content, run)
        rows.append((number, "\n".join(lines), pixels, prediction.reason))
        files = run.photographs(near.path for near in prediction.nearest)
        for near, content in zip(prediction.nearest, files, strict=True):
            pixels = _thumbnail(content, run) if content else None
            caption = f"{printable(near.label or _name(near.path))}\n{near.distance:.3g}"
            rows.append((number, caption, pixels, None))
    columns = ["photograph", "caption", "pixels", "reason"]
    image = io.BytesIO()
    pictures.nearest(pd.DataFrame(rows, columns=columns)).savefig(image, format="png", dpi=150)
    try:
        storage.write_bytes(target, image.getvalue())
    except OSError as error:
        raise FruitsError(
            f"--figure {target} cannot be written ({error.strerror}): give another place"
        ) from None


def _name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _guesses(classifier: dict, scores: np.ndarray) -> list[tuple[str, float]]:
    (probabilities,) = Regression(**classifier).probabilities(scores)
    order = np.argsort(-probabilities, kind="stable")[:2]
    return [(str(classifier["labels"][i]), float(probabilities[i])) for i in order]


def _read(photograph: str, max_bytes: int) -> bytes:
    path = storage.local_path(photograph)
    if path and (path.is_char_device() or path.is_block_device()):
        raise FruitsError(f"{photograph} is a device: give photographs")
    try:
        return storage.read_bytes(photograph, most=max_bytes)
    except IsADirectoryError:
        raise FruitsError(
            f"{photograph} is a folder: give photographs, or `fruits apply` for a folder"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a scheme that nobody knows
        missing = isinstance(error, FileNotFoundError)
        reason = "there is no such file" if missing else str(error).splitlines()[0]
        raise FruitsError(f"{photograph} cannot be read ({reason}): check the path") from None


def _thumbnail(content: bytes, run: Results) -> np.ndarray | None:
    try:
        return decode_image(content, THUMBNAIL, run.decoding)
    except ImageError:
        return None
