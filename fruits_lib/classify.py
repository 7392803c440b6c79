"""06: labels from scores: how good they are, and the step that writes them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
from pyspark.ml import PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from fruits_lib import answers, splits, text
from fruits_lib.checks import Verification
from fruits_lib.errors import FruitsError
from fruits_lib.models import regression_of, save_model
from fruits_lib.neighbors import Photographs, accuracy
from fruits_lib.neighbors import to_driver as to_driver  # for the notebook
from fruits_lib.runs import Run
from fruits_lib.splits import Parts

_EXAMPLE = ["path", "label", "predicted", "probability"]


@dataclass(frozen=True, eq=False)
class Figures:
    """How often a classifier is right. As text: with the labels that it finds worst."""

    photographs: int
    accuracy: float
    macro_f1: float  # mean of F1 over the labels that were tested
    labels: pd.DataFrame  # by label, worst F1 first: photographs, precision, recall, F1

    def __str__(self) -> str:
        return (
            f"{self.photographs:,} photographs: accuracy {self.accuracy:.2%}, "
            f"macro F1 {self.macro_f1:.4f}" + ("; no label is confused" * (self.accuracy == 1))
        )

    def worst(self, shown: int = 20) -> str:
        """Return the labels with the lowest F1 as a table."""
        table = text.table(self.labels[:shown], float_format="{:.3f}".format)
        if (rest := len(self.labels) - shown) > 0:
            best = self.labels["F1"].iloc[shown]
            return f"{table}\n... and {rest:,} labels with an F1 of at least {best:.3f}"
        return table


def check_classify(neighbors: int = 5) -> None:
    """Raise FruitsError if a parameter of 06_classify is out of its bounds."""
    if neighbors < 1:
        raise FruitsError(f"neighbors={neighbors} is below 1: give a number such as 5")


def divide(run: Run, scores: DataFrame, neighbors: int, seed: int) -> Parts:
    """Divide the scores of a run; see `splits.divide`.

    Photographs without a label are in neither part, and where fewer are fitted than `neighbors`,
    all of them vote. Where there is nothing to classify, which is no error, the run folder's lease
    ends here, as no result follows.
    """
    parts = splits.divide(scores, seed)
    if parts.nothing:
        run.lease.release()
        return parts
    return replace(parts, warning=_warning(run, parts), asked=neighbors)


def _warning(run: Run, parts: Parts) -> str:
    """Return why the reduction flatters the figures: it knows what is tested. Or nothing."""
    fitted_on = run.require("pick_k").get("fit_split", "")
    if fitted_on and parts.by_folder and fitted_on != parts.tested_on:
        return ""
    of = f"{fitted_on or 'all'} photographs"
    way_out = "; fit_split=Training in 03_pick_k leaves them out" if parts.by_folder else ""
    return (
        f"03_pick_k fitted the components on {of}, those tested among them: expect a little "
        f"less of photographs that it has never seen{way_out}"
    )


def to_labels(predictions: DataFrame) -> DataFrame:
    """Return path, label, split, predicted and its probability, and `part` if it is there."""
    probability = F.array_max(vector_to_array("probability")).cast("float").alias("probability")
    part = [name for name in ("part",) if name in predictions.columns]
    return predictions.select("path", "label", "split", "predicted", probability, *part)


def judge(labels: Sequence[str], predicted: Sequence[str]) -> Figures:
    """Compare predicted labels with the true ones.

    Precision is the share of the photographs given a label that have it, recall the share of those
    that have it that were given it, F1 their harmonic mean; each is 0 where it is 0 / 0.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    labels, predicted = np.asarray(labels, str), np.asarray(predicted, str)
    names = np.unique(labels)
    precision, recall, f1, photographs = precision_recall_fscore_support(
        labels, predicted, labels=names, zero_division=0
    )
    columns = {"photographs": photographs, "precision": precision, "recall": recall, "F1": f1}
    table = pd.DataFrame(columns, pd.Index(names, name="label", dtype=object))
    table = table.sort_values(["F1", "label"])
    accuracy = float(accuracy_score(labels, predicted))
    return Figures(len(labels), accuracy, float(f1.mean()), table)


def accuracy_by_k(fitted: Photographs, tested: Photographs, neighbors: int) -> pd.Series:
    """Return the accuracy of nearest neighbours by the first 1, 2, 4, ... and all k scores."""
    k, accuracies = fitted.scores.shape[1], {}
    for j in (*(2**power for power in range(k.bit_length()) if 2**power < k), k):
        parts = (replace(part, scores=part.scores[:, :j]) for part in (fitted, tested))
        accuracies[j] = accuracy(*parts, neighbors)
    return pd.Series(accuracies, name="accuracy")


def confusions(answers: pd.DataFrame) -> pd.DataFrame:
    """Count label, predicted, photographs of all pairs of label and answer, the right ones too."""
    pairs = answers.groupby(["label", "predicted"]).size().reset_index(name="photographs")
    return pairs.sort_values(["photographs", "label", "predicted"], ascending=[False, True, True])


def worst_confusions(
    answers: pd.DataFrame, fitted: Photographs, tested: Photographs, pairs: int = 8
) -> pd.DataFrame:
    """Return a photograph of each of the most frequent confusions, and what it was taken for.

    Where there are fewer confusions than `pairs`, the least probable right answer of each label
    follows, the least probable first.

    Parameters
    ----------
    answers : pandas.DataFrame
        path, label, predicted, probability of the tested photographs.
    fitted, tested : Photographs

    Returns
    -------
    pandas.DataFrame
        path, label, predicted, probability of the most certain photograph of each confusion;
        photographs (so confused; 0 for a right answer); nearest (path of the nearest fitted
        photograph of the predicted label).
    """
    wrong = answers[answers["label"] != answers["predicted"]].sort_values(
        ["probability", "path"], ascending=[False, True]
    )
    counts = confusions(wrong)[:pairs]
    examples = wrong.drop_duplicates(["label", "predicted"])
    unsure = answers[answers["label"] == answers["predicted"]].sort_values(["probability", "path"])
    unsure = unsure.drop_duplicates("label")
    found = pd.concat([counts.merge(examples), unsure.assign(photographs=0)])[:pairs]
    row_of = {path: row for row, path in enumerate(tested.paths)}
    nearest = []
    for path, label in zip(found["path"], found["predicted"], strict=True):
        known = fitted.labels == label
        distances = np.linalg.norm(fitted.scores[known] - tested.scores[row_of[path]], axis=1)
        nearest.append(fitted.paths[known][distances.argmin()])
    return found.assign(nearest=nearest)[[*_EXAMPLE, "photographs", "nearest"]]


def write(
    run: Run,
    parts: Parts,
    classifier: PipelineModel,
    labels: DataFrame,
    figures: dict[str, Figures | None],
    **parameters: int,
) -> Verification:
    """Write `classifier/`, for NumPy `classifier.npz`, and every photograph's answer as `labels/`.

    With the arrays of `classifier.npz`, the probabilities of the labels, in this order, are
    ``softmax(scores @ coefficients.T + intercepts)``. Everything is read back and checked.

    Parameters
    ----------
    run : Run
    parts : Parts
        What the classifier was fitted and tested on.
    classifier : pyspark.ml.PipelineModel
        The stages of `model/`, a LogisticRegressionModel and an IndexToString.
    labels : pyspark.sql.DataFrame
        As `to_labels` makes it.
    figures : dict
        `regression`, `nearest` and `fruits`, None where no label names a fruit.
    **parameters
        neighbors and seed.
    """
    regression = regression_of(classifier)
    with run.step("classify") as entry:
        save_model(run, classifier, "classifier")
        run.write_npz("classifier.npz", vars(regression))
        run.write_table("labels", labels.drop("part"))
        entry.update(
            classes=len(regression.labels),
            fitted_on=parts.fitted_on,
            tested_on=parts.tested_on,
            fitted=parts.fitted,
            tested=parts.tested,
            accuracy=figures["regression"].accuracy,
            macro_f1=figures["regression"].macro_f1,
            knn_accuracy=figures["nearest"].accuracy,
            **parameters,
        )
        if figures["fruits"]:
            entry["fruits_accuracy"] = figures["fruits"].accuracy
        if parts.warning:
            entry["warning"] = parts.warning
        checks = answers.check_classifier(run, entry)
        entry["checks"] = [asdict(check) for check in checks]
    return Verification(tuple(checks))
