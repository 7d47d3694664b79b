"""The bootstrap that refits the offsets of the classes in every replicate, on all rows and without each fold.

The estimates of a rule among C classes are its measures: a vector of the C class error rates, the C shares of wrong
rows among those predicted as each class, the mean class error, 1 - macro F1 and 1 - accuracy, all of which are losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble.decision.class_objective import ClassObjective
from ensemble.decision.class_offsets import OffsetRefit
from ensemble.decision.cross_fitting import Split
from ensemble.decision.rates import Floats, Labels, apply_offsets, class_offsets

MEAN_ERROR, MACRO_F1, ACCURACY = -3, -2, -1
"""The places of three measures: the mean class error, 1 - macro F1, and 1 - accuracy."""

PLACES = {"mean-class-error": MEAN_ERROR, "macro-f1": MACRO_F1, "accuracy": ACCURACY}
"""The place of the loss of each objective among the measures."""


def measures(confusion: Floats) -> Floats:
    """Return the measures (..., 2C + 3) of confusion matrices (..., C, C) of weights [label][prediction].

    A class without rows has the error rate 0, and one as which no row is predicted has the precision 0.

    Examples
    --------
    >>> measures(np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 1.0, 1.0]])).round(2)
    array([0.25, 0.  , 0.5 , 0.  , 0.5 , 0.  , 0.25, 0.27, 0.25])
    """
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    counts, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    errors = (counts - correct) / np.maximum(counts, 1)
    imprecision = 1 - correct / np.maximum(predicted, 1)
    losses = [ClassObjective(kind).losses(correct, predicted, counts)[..., None] for kind in PLACES]  # type: ignore[arg-type]
    return np.concatenate([errors, imprecision, *losses], axis=-1)


def confusions(labels: Labels, y_pred: NDArray[np.integer], classes: int, weights: Floats) -> Floats:
    """Return the confusion matrices (b, C, C) of predictions (n,) of rows with weights (b, n)."""
    cell = labels.astype(np.int64) * classes + y_pred
    cells = cell + classes**2 * np.arange(len(weights))[:, None]
    counts = np.bincount(cells.ravel(), weights.ravel(), classes**2 * len(weights))
    return np.asarray(counts.reshape(-1, classes, classes), np.float64)


class ClassRefitRule:
    """A cross-fitted rule among C classes, prepared for bootstrap replicates that refit its offsets.

    Parameters
    ----------
    scores : function that returns a float64 array (n, C)
        The scores of the deployed rule, which was fitted on all rows. They are computed again in each replicate, so
        that they need not be stored.
    labels : int8 array (n,)
        0 to C - 1.
    offsets : tuple of C floats
        Of the deployed rule.
    splits : sequence of Split
        The rule fitted without each fold. The scores are kept; only the offsets are refitted, from those of the split.
    objective : ClassObjective
        What the offsets minimise.
    """

    def __init__(
        self,
        scores: Callable[[], Floats],
        labels: Labels,
        offsets: tuple[float, ...],
        splits: Sequence[Split],
        objective: ClassObjective,
    ) -> None:
        self._scores, self._labels, self._splits = scores, labels, splits
        self._deployed = OffsetRefit(scores(), labels, objective, offsets)
        self._without = [
            OffsetRefit(each.scores[~each.inside], labels[~each.inside], objective, class_offsets(each.threshold))
            for each in splits
        ]

    def refit(self, weights: Floats) -> tuple[tuple[float, ...], Floats, Floats]:
        """Refit the offsets on one replicate.

        Parameters
        ----------
        weights : float64 array (n,)
            How often each row was drawn.

        Returns
        -------
        C floats, float64 array (2C + 3,), float64 array (2C + 3,)
            The deployed offsets, the measures of the nested predictions of the drawn rows, and those of the deployed
            offsets on the unweighted rows.
        """
        labels, y_pred = self._labels, np.empty(self._labels.size, np.int8)
        for split, refit in zip(self._splits, self._without, strict=True):
            inside, scores = split.inside, split.scores
            y_pred[inside] = apply_offsets(scores[inside], refit.refit(scores, labels, np.where(inside, 0, weights)))
        scores = self._scores()
        offsets = self._deployed.refit(scores, labels, weights)
        deployed, once = apply_offsets(scores, offsets), np.ones((1, weights.size))
        nested, true = (
            measures(confusions(self._labels, predicted, len(offsets), each))[0]
            for predicted, each in ((y_pred, weights[None]), (deployed, once))
        )
        return offsets, nested, true

    def errors(self, weights: Floats) -> Floats:
        """Return the errors of the nested measures, (b, 2C + 3), in replicates with row weights (b, n)."""
        return np.array([nested - true for _, nested, true in map(self.refit, weights)])


class ClassFixedRule:
    """A rule among C classes whose predictions are kept in bootstrap replicates: none of its offsets is fitted.

    Parameters
    ----------
    y_pred, labels : int8 array (n,)
        0 to C - 1; the labels contain every class.
    classes : int
    """

    def __init__(self, y_pred: Labels, labels: Labels, classes: int) -> None:
        self._y_pred, self._labels, self._classes = y_pred, labels, classes

    def errors(self, weights: Floats) -> Floats:
        """Return the measures, (b, 2C + 3), of rows with weights (b, n), less those of the unweighted rows."""
        of_weighted, of_rows = (
            measures(confusions(self._labels, self._y_pred, self._classes, each))
            for each in (weights, np.ones((1, self._labels.size)))
        )
        return of_weighted - of_rows
