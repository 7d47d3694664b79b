"""Compare predictions of several classes on the same rows: macro F1 and accuracy, with paired intervals by group.

The predictions are fixed: the intervals resample the rows that are scored, not the training or the fitting of offsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REPLICATES = 2000
"""The number of bootstrap replicates; the ends of an interval then have standard errors of 3 % of its half-width."""


@dataclass(frozen=True)
class Score:
    """A score, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float

    def cells(self, signed: bool = False) -> tuple[str, str]:
        """Return the value and the interval as cells of a table."""
        form = "+.4f" if signed else ".4f"
        return format(self.value, form), f"{self.low:{form}} to {self.high:{form}}"


class Paired:
    """The same bootstrap replicates for every set of predictions.

    A replicate draws whole groups with replacement, within strata of the groups that contain the same classes.

    Parameters
    ----------
    labels : int array (n,)
        0 to C - 1.
    groups : array (n,), optional
        Rows of one group are drawn together; if None, every row is a group.
    seed : int
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray | None = None, seed: int = 0) -> None:
        self.labels, self.classes = labels, int(labels.max()) + 1
        each = np.arange(len(labels)) if groups is None else groups
        self.group_of = np.unique(each, return_inverse=True)[1]
        n = self.group_of.max() + 1
        contains = np.zeros((n, self.classes), bool)
        contains[self.group_of, labels] = True
        stratum_of = np.unique(contains, axis=0, return_inverse=True)[1].ravel()
        rng = np.random.default_rng(seed)
        self.weights = np.ones((REPLICATES + 1, n))  # the first replicate is the data
        for stratum in range(stratum_of.max() + 1):
            inside = np.flatnonzero(stratum_of == stratum)
            self.weights[1:, inside] = rng.multinomial(len(inside), [1 / len(inside)] * len(inside), REPLICATES)

    def macro_f1(self, y_pred: np.ndarray) -> np.ndarray:
        """Return the macro F1 of the data and of each replicate, (1 + REPLICATES,)."""
        correct = self._totals(self.labels, y_pred == self.labels)
        size = self._totals(self.labels) + self._totals(y_pred)
        return (2 * correct / np.maximum(size, 1)).mean(1)

    def accuracy(self, y_pred: np.ndarray) -> np.ndarray:
        """Return the accuracy of the data and of each replicate, (1 + REPLICATES,)."""
        return self._totals(self.labels, y_pred == self.labels).sum(1) / self._totals(self.labels).sum(1)

    def _totals(self, classes: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the weight of the rows of each class in each replicate, (1 + REPLICATES, C)."""
        cell = self.group_of * self.classes + classes
        counts = np.bincount(cell, rows, self.weights.shape[1] * self.classes)
        return self.weights @ counts.reshape(-1, self.classes)


def score(values: np.ndarray) -> Score:
    """Return the value of the data with the percentile interval of the replicates; see `Paired`."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return Score(float(values[0]), float(low), float(high))
