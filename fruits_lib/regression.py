"""The classifier of 06 for NumPy: what `classifier.npz` holds, and how to use it."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TIE = 1e-9  # classes this close are equally probable


@dataclass(frozen=True, eq=False)
class Regression:
    """Multinomial logistic regression: ``softmax(scores @ coefficients.T + intercepts)``.

    Attributes
    ----------
    labels : ndarray of str, shape (n,)
        The classes, in order.
    coefficients : ndarray of float64, shape (n, k)
    intercepts : ndarray of float64, shape (n,)
    """

    labels: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability of each class, (m, n), for scores (m, k)."""
        logits = scores @ self.coefficients.T + self.intercepts
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))  # no overflow
        return odds / odds.sum(axis=1, keepdims=True)

    def disagreement(self, scores: np.ndarray, labelled: pa.RecordBatch) -> tuple[int, float]:
        """Compare m photographs' labels and probabilities with those that their scores give.

        Parameters
        ----------
        scores : ndarray, shape (m, k)
        labelled : pyarrow.RecordBatch
            predicted and probability, as in `labels/`.

        Returns
        -------
        others : int
            Labels that are not the most probable ones.
        error : float
            The largest difference of a probability; infinite for one that is not a number.
        """
        probabilities = self.probabilities(scores)
        classes = pa.array(self.labels, pa.string())
        index = np.asarray(pc.index_in(labelled["predicted"], value_set=classes).fill_null(-1))
        own = np.where(index < 0, 0, probabilities[np.arange(len(index)), index])
        others = np.count_nonzero(~(own >= probabilities.max(axis=1, initial=0) - TIE))
        error = np.abs(own - labelled["probability"].to_numpy(zero_copy_only=False))
        return others, float(np.nan_to_num(error, nan=np.inf).max(initial=0))
