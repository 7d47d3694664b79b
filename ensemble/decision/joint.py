"""The rates of several targets together: an image is right where the labels of all its targets are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.bootstrap import RowWeights
from ensemble.decision.intervals import Interval, central
from ensemble.decision.rates import Floats
from ensemble.errors import DataError

REPLICATES = 1000
"""The number of bootstrap replicates behind an interval."""


@dataclass(frozen=True)
class JointRow:
    """A combination of labels: its rows, those that are predicted as this combination, and those that are both."""

    labels: tuple[int, ...]  # one for each target
    count: int
    predicted: int
    correct: int

    @property
    def recall(self) -> float:
        return self.correct / self.count

    @property
    def f1(self) -> float:
        return 2 * self.correct / (self.count + self.predicted)


@dataclass(frozen=True)
class JointRates:
    """Accuracy and macro F1 of the combination of several targets, with 95 % intervals.

    Attributes
    ----------
    rows : tuple of JointRow
        Every combination that occurs in the labels, in ascending order.
    accuracy, macro_f1 : float
        The share of images of which all targets are right, and the mean F1 over `rows`.
    accuracy_interval, macro_f1_interval : Interval
        Of a bootstrap that keeps the predictions.
    """

    rows: tuple[JointRow, ...]
    accuracy: float
    macro_f1: float
    accuracy_interval: Interval
    macro_f1_interval: Interval

    @property
    def n(self) -> int:
        """The number of images."""
        return sum(row.count for row in self.rows)


def measure_joint(
    labels: ArrayLike, y_pred: ArrayLike, groups: ArrayLike | None = None, seed: int = 0, replicates: int = REPLICATES
) -> JointRates:
    """Return the rates of the combination of several targets.

    A prediction that is a combination without labelled images is wrong, and counts for the F1 of no combination.

    The intervals are percentiles of a bootstrap over images, or over groups, within the combinations. The predictions
    are kept: where they are nested, the intervals leave out that thresholds and offsets were fitted.

    Parameters
    ----------
    labels, y_pred : int array (n, t)
        A class index for each of t targets.
    groups : int64 array (n,), optional
        Images of one group are drawn together; if None, every image is a group.
    seed : int
        The same seed gives the same intervals.
    replicates : int
        The number of bootstrap replicates.

    Raises
    ------
    DataError
        The shapes differ.

    Examples
    --------
    >>> rates = measure_joint([[0, 0], [0, 1], [1, 1], [1, 1]], [[0, 0], [0, 0], [1, 1], [1, 1]])
    >>> rates.accuracy, [row.f1 for row in rates.rows]
    (0.75, [0.6666666666666666, 0.0, 1.0])
    """
    y_true, predicted = np.asarray(labels, np.int64), np.asarray(y_pred, np.int64)
    if y_true.ndim != 2 or y_true.shape != predicted.shape:
        raise DataError(
            "cannot measure several targets", f"shapes must be (n, t) and equal; got {y_true.shape}, {predicted.shape}"
        )
    combinations, of_row = np.unique(y_true, axis=0, return_inverse=True)
    of_row, c = of_row.ravel(), len(combinations)
    by_labels = {tuple(each): index for index, each in enumerate(combinations.tolist())}
    as_combination = np.array([by_labels.get(tuple(each), c) for each in predicted.tolist()])  # c: no combination
    correct = of_row == as_combination

    def counts(weights: Floats) -> NDArray[np.float64]:
        """Return the rows, the predicted rows and the correct rows of each combination, (3, c)."""
        return np.stack(
            [
                np.bincount(of_row, weights, c),
                np.bincount(as_combination, weights, c + 1)[:c],
                np.bincount(of_row, weights * correct, c),
            ]
        )

    def accuracy_and_f1(weights: Floats) -> tuple[float, float]:
        rows, as_this, right = counts(weights)
        return float(right.sum() / rows.sum()), float(np.mean(2 * right / np.maximum(rows + as_this, 1)))

    whole = counts(np.ones(len(of_row))).astype(np.int64).T.tolist()
    accuracy, macro_f1 = accuracy_and_f1(np.ones(len(of_row)))
    rng = np.random.default_rng(seed_sequence(seed, "joint"))
    of_groups = None if groups is None else np.asarray(groups)
    weights_of = RowWeights(of_row.astype(np.int16), of_groups, rng)
    drawn = np.array([accuracy_and_f1(weights_of.draw()) for _ in range(replicates)])
    return JointRates(
        rows=tuple(JointRow(tuple(each), *row) for each, row in zip(combinations.tolist(), whole, strict=True)),
        accuracy=accuracy,
        macro_f1=macro_f1,
        accuracy_interval=central(drawn[:, 0]),
        macro_f1_interval=central(drawn[:, 1]),
    )
