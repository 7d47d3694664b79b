"""The class offsets that are best for an objective, by exact sweeps over one offset at a time.

The predicted class is the one with the greatest score plus offset. If all offsets but one are fixed, a row switches to
the class of that offset at a certain value of it, so the rows are sorted by this value, and one pass over them gives
the loss at every distinct cut, as for a threshold (threshold.py). The classes are visited in turn until no offset alone
can improve the loss. This optimum is coordinate-wise: a change of several offsets at once may be better still.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.decision.class_objective import MEAN_CLASS_ERROR, ClassObjective
from ensemble.decision.objective import TOLERANCE, Objective
from ensemble.decision.rates import Cut, Floats, Labels, apply_offsets, check_logits, class_indices
from ensemble.decision.threshold import above_all, below_all, fit_threshold, midpoint

MOST_ROUNDS = 100
"""The number of visits of each class after which the sweeps end. They end after two to five, unless rounding of huge
scores makes a cut worse than its counts."""


REFIT_ROUNDS = 1
"""The number of visits of each class in a refit. On drawn data of 3 to 18 classes, the first visit brought 70 to 97 %
of the improvement, and the spread of the errors was that at rest to within 8 %, in a third of the time."""

LEAST_ROWS = 300
"""The least number of rows near the cut of a class among which a refit searches; with fewer rows, it searches all."""


def fit_cut(scores: Floats, labels: Labels, objective: Objective | ClassObjective) -> Cut:
    """Return the threshold of scores (n,), or the offsets of scores (n, C), that is best for the objective.

    Raises
    ------
    ConfigError
        There are more than two classes, and the objective is for two classes alone.
    """
    if scores.ndim > 1:
        return fit_offsets(scores, labels, class_objective(objective))
    if isinstance(objective, ClassObjective):
        raise TypeError(f"the objective of a threshold is one of two classes; got {objective}")
    return fit_threshold(scores, labels, objective)


def class_objective(objective: Objective | ClassObjective) -> ClassObjective:
    """Return the objective among more than two classes; HTER means the mean of the class error rates.

    Raises
    ------
    ConfigError
        It is an objective of two classes alone.
    """
    return objective if isinstance(objective, ClassObjective) else ClassObjective.parse(objective.text)


def fit_offsets(
    scores: ArrayLike,
    labels: ArrayLike,
    objective: ClassObjective = MEAN_CLASS_ERROR,
    start: tuple[float, ...] | None = None,
    weights: ArrayLike | None = None,
) -> tuple[float, ...]:
    """Return the offsets at which no change of a single offset improves the objective.

    Each offset is fitted by an exact sweep over every distinct cut while the others are fixed. Its candidates are the
    midpoints of adjacent distinct values at which rows switch to the class, and one beyond each end. Among equally good
    cuts, the one with the smallest difference between the largest and the smallest class error rate is preferred, then
    the one with the widest gap, then the greatest offset. For two classes with the scores 0 and z, the second offset is
    minus the threshold of `fit_threshold`, and this preference is the same.

    Parameters
    ----------
    scores : float64 array (n, C)
        Finite.
    labels : int8 array (n,)
        0 to C - 1; without weights, all present.
    objective : ClassObjective
        What is minimised.
    start : C floats, optional
        The offsets at which the sweeps start. They are kept unless an offset improves on them. If None, the sweeps run
        twice, from offsets of 0 and from minus the logarithms of the class shares, and the better result is returned.
    weights : array (n,), optional
        Whole numbers, how often each row counts; 1 by default. A class without weight has the error rate 0.

    Returns
    -------
    tuple of C floats
        The first is 0.

    Raises
    ------
    DataError
        Shapes differ, a score is not finite, or a class is absent.

    Notes
    -----
    Losses that differ by less than `objective.TOLERANCE` are equal. A visit of a class costs one sort.

    Examples
    --------
    >>> scores = [[0.0, -2.0, -9.0], [0.0, -1.0, -9.0], [0.0, 1.0, -9.0], [0.0, 3.0, 0.0], [0.0, -2.0, 6.0]]
    >>> fit_offsets(scores, [0, 0, 1, 1, 2])
    (0.0, 0.0, -1.5)
    """
    task = "cannot fit the class offsets"
    x = np.asarray(scores, np.float64)
    if weights is None:
        classes = x.shape[-1]
        if classes > 2:
            x, y = check_logits(task, x, labels, classes=classes)
        else:
            x, y = check_logits(task, x, labels, ndim=2)
        w = np.ones(y.size)
    else:
        w = np.asarray(weights, np.float64)
        drawn = w > 0
        x, y, w = x[drawn], class_indices(task, "labels", np.asarray(labels)[drawn], x.shape[-1]), w[drawn]
    if start is not None:
        return _Sweeps(x, y, w, objective, np.array(start)).run(centre=False)
    counts = np.maximum(np.bincount(y, w, x.shape[1]), 1)
    starts = np.zeros(x.shape[1]), np.log(counts[0]) - np.log(counts)
    sweeps = [_Sweeps(x, y, w, objective, offsets) for offsets in starts]

    def reached(offsets: ArrayLike) -> tuple[float, float]:
        return sweeps[0].reached(*sweeps[0].counted(np.arange(y.size), apply_offsets(x, offsets)))

    first, second = (each.run(centre=True) for each in sweeps)
    best = second if _lower(reached(second), reached(first)) else first
    # Where scores of two classes are equal, the first visits may move offsets of 0 that no cut can replace.
    if reached(starts[0])[0] < reached(best)[0] - TOLERANCE:
        return _Sweeps(x, y, w, objective, starts[0]).run(centre=False)
    return best


class OffsetRefit:
    """Offsets that are refitted on bootstrap replicates of the rows, with the sweeps near the offsets of all rows.

    A replicate moves the best cut by about n^(2/3) rows (Kim and Pollard 1990, Cube root asymptotics). A visit of a
    class therefore sweeps only the cuts among the rows within a radius of the present one, which is the radius that
    holds three times as many rows, and at least `LEAST_ROWS`, at the offsets of all rows. The next visit begins at the
    new cut. The rows are not stored.

    Parameters
    ----------
    scores : float64 array (n, C)
        Finite.
    labels : int8 array (n,)
        0 to C - 1.
    objective : ClassObjective
    offsets : tuple of C floats
        Those that were fitted on these rows; the sweeps start there.
    """

    def __init__(self, scores: Floats, labels: Labels, objective: ClassObjective, offsets: tuple[float, ...]) -> None:
        self._objective, self._offsets = objective, offsets
        sweeps = _Sweeps(scores, labels, np.ones(labels.size), objective, np.array(offsets))
        self._radii = sweeps.radii(max(LEAST_ROWS, math.ceil(3 * labels.size ** (2 / 3))))

    def refit(self, scores: Floats, labels: Labels, weights: Floats) -> tuple[float, ...]:
        """Return the offsets (C,) of rows with scores (n, C), labels (n,) and weights (n,); the first is 0.

        Rows with the weight 0 need not be those that the radius was measured on.
        """
        drawn = weights > 0
        x, y, w = scores[drawn], labels[drawn], weights[drawn]
        return _Sweeps(x, y, w, self._objective, np.array(self._offsets), self._radii).run(False, REFIT_ROUNDS)


class _Sweeps:
    """The state of the sweeps on weighted rows.

    `radii` (C,), if given, bounds the distance of the rows from the present cut of a class among which it may move.
    """

    def __init__(
        self, x: Floats, y: Labels, w: Floats, objective: ClassObjective, offsets: Floats, radii: Floats | None = None
    ) -> None:
        self._x, self._w, self._objective, self._radii = np.asfortranarray(x), w, objective, radii
        self._y = y.astype(np.int64)
        self._rows = np.arange(y.size)
        self._offsets = offsets.astype(np.float64)
        # The classes are in descending order, because argmax returns the first of equal values.
        self._shifted = np.ascontiguousarray((x + self._offsets)[:, ::-1])
        self._counts: Floats = np.bincount(self._y, w, x.shape[1]).astype(np.float64)
        per_row = np.full(x.shape[1], w.sum()) if objective.kind == "accuracy" else x.shape[1] * self._counts
        self._cost = 1 / np.maximum(per_row, 1)  # the loss of a row that is predicted wrongly, by its label
        self._predict()

    def _predict(self) -> None:
        """Predict all rows at the present offsets, and count them."""
        column = self._shifted.argmax(axis=1)
        self._best = self._shifted[self._rows, column]  # the greatest shifted score of each row (n,)
        self._y_pred = self._counts.size - 1 - column
        self._correct, self._predicted = self.counted(self._rows, self._y_pred)

    def run(self, centre: bool, rounds: int = MOST_ROUNDS) -> tuple[float, ...]:
        """Visit the classes until as many visits as there are classes have moved no offset; return the offsets (C,).

        Each class is visited `rounds` times at most.

        If `centre`, the first visit of a class other than the first moves its offset to the preferred cut, even if that
        does not improve the loss. Otherwise only an improvement moves an offset.
        """
        classes = self._counts.size
        order = [*range(1, classes), 0]
        at_rest = 0
        for number in range(classes * rounds):
            moved = self._visit(order[number % classes], centre and number < classes - 1)
            at_rest = 0 if moved else at_rest + 1
            if at_rest == classes:
                break
        return tuple((self._offsets - self._offsets[0]).tolist())

    def radii(self, rows: int) -> Floats:
        """Return the distance from the cut of each class within which there are so many rows (C,)."""
        last = min(rows, self._y.size) - 1
        offsets = enumerate(self._offsets)
        return np.array([np.sort(np.abs(self._against_rivals(c)[1] + offset))[last] for c, offset in offsets])

    def _against_rivals(self, c: int) -> tuple[NDArray[np.int64], Floats]:
        """Return the best class but `c` of each row (n,), and the score of c less the shifted score of that class (n,).

        The class c is predicted if this margin is above minus the offset of c, or equal to it and c the higher class.
        """
        rivals, margins = self._y_pred.copy(), self._x[:, c] - self._best
        inside = np.flatnonzero(rivals == c)
        others = self._shifted[inside]
        others[:, -1 - c] = -np.inf
        column = others.argmax(axis=1)
        rivals[inside] = self._counts.size - 1 - column
        margins[inside] = self._x[inside, c] - others[np.arange(inside.size), column]
        return rivals, margins

    def _visit(self, c: int, centre: bool) -> bool:
        """Sweep over the offset of class `c`, and return whether it was moved."""
        rivals, margins = self._against_rivals(c)
        everywhere, rows = self._radii is None, self._rows
        if self._radii is not None:
            rows = np.flatnonzero(np.abs(margins + self._offsets[c]) <= self._radii[c])
        rows = rows[np.argsort(margins[rows])]
        present = self._y_pred[rows] == c
        now = rows.size - int(np.count_nonzero(present))  # the present cut: rows from it on are predicted as c
        if not present[now:].all():  # of rows whose score of c equals that of their rival, some are predicted as c
            rows = rows[np.lexsort((present, margins[rows]))]
        x = margins[rows]
        distinct = np.concatenate(([everywhere], x[1:] > x[:-1], [everywhere]))[: x.size + 1]
        if not distinct.any():
            return False
        losses = self._losses(c, rows, rivals[rows])
        tied = np.flatnonzero(distinct & (losses <= losses[distinct].min() + TOLERANCE))
        if not centre and tied.size == 1 and tied[0] == now:
            return False
        spreads = self._spreads(c, rows, rivals[rows], tied)
        spread = np.ptp((self._counts - self._correct) / np.maximum(self._counts, 1))
        if not centre and not _lower((losses[tied].min(), spreads.min()), (losses[now], spread)):
            return False
        self._offsets[c] = -_preferred(x, tied[spreads <= spreads.min() + TOLERANCE]) + 0.0  # no negative zero
        self._shifted[:, -1 - c] = self._x[:, c] + self._offsets[c]
        self._predict()
        return True

    def counted(self, rows: NDArray[np.int64], y_pred: NDArray[np.integer]) -> tuple[Floats, Floats]:
        """Return the weights of the rows predicted correctly and of those predicted as each class, (C,) each."""
        labels, w, classes = self._y[rows], self._w[rows], self._counts.size
        correct, predicted = np.bincount(labels, w * (labels == y_pred), classes), np.bincount(y_pred, w, classes)
        return np.asarray(correct, np.float64), np.asarray(predicted, np.float64)

    def reached(self, correct: Floats, predicted: Floats) -> tuple[float, float]:
        """Return the loss, and the difference between the largest and the smallest class error rate."""
        errors = (self._counts - correct) / np.maximum(self._counts, 1)
        return float(self._objective.losses(correct, predicted, self._counts)), float(errors.max() - errors.min())

    def _at_lowest_cut(self, c: int, rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Return the counts (C,) of correct and of predicted rows if all of these rows are predicted as `c`."""
        correct, predicted = self.counted(rows, self._y_pred[rows])
        correct, predicted = self._correct - correct, self._predicted - predicted
        correct[c] += self._w[rows[self._y[rows] == c]].sum()
        predicted[c] += self._w[rows].sum()
        return correct, predicted

    def _losses(self, c: int, rows: NDArray[np.int64], rivals: NDArray[np.int64]) -> Floats:
        """Return the loss at every cut of the sorted rows (n + 1,), up to a constant for all cuts."""
        labels, w = self._y[rows], self._w[rows]
        of_c, of_rival = labels == c, labels == rivals
        if self._objective.kind != "macro-f1":
            return _cumulative(w * self._cost[labels] * (of_c.astype(np.float64) - of_rival))
        correct, predicted = self._at_lowest_cut(c, rows)
        n = self._counts[c] + predicted[c] - _cumulative(w)
        of_class = 2 * (correct[c] - _cumulative(w * of_c)) / np.maximum(n, 1)
        # A row changes the F1 score of c and of its rival alone, so the scores of the rivals follow rival by rival.
        f1 = 2 * correct / np.maximum(self._counts + predicted, 1)
        grouped = np.argsort(rivals.astype(np.int8), kind="stable")
        r = rivals[grouped]
        first = np.searchsorted(r, r)  # of the rows of the same rival
        added, added_correct = (
            sums[1:] - sums[first] for sums in (_cumulative(w[grouped]), _cumulative((w * of_rival)[grouped]))
        )
        scores = 2 * (correct[r] + added_correct) / np.maximum(self._counts[r] + predicted[r] + added, 1)
        before = np.where(first == np.arange(r.size), f1[r], np.concatenate(([0.0], scores[:-1])))
        steps = np.empty(r.size)
        steps[grouped] = scores - before
        return np.asarray(-(of_class + _cumulative(steps)) / f1.size)

    def _spreads(self, c: int, rows: NDArray[np.int64], rivals: NDArray[np.int64], cuts: NDArray[np.int64]) -> Floats:
        """Return the difference between the largest and the smallest class error rate at each cut (t,)."""
        labels, w, classes = self._y[rows], self._w[rows], self._counts.size
        changed = np.flatnonzero((labels == c) | (labels == rivals))
        segment = np.searchsorted(cuts, changed, "right")  # the number of cuts that predict the row as c
        cells = np.bincount(segment * classes + labels[changed], w[changed], (cuts.size + 1) * classes)
        gained = np.cumsum(cells.reshape(-1, classes), axis=0)[:-1]  # by the rows before each cut; lost by class c
        gained[:, c] *= -1
        wrong = self._counts - self._at_lowest_cut(c, rows)[0] - gained
        return np.asarray(np.ptp(wrong / np.maximum(self._counts, 1), axis=1))


def _cumulative(steps: Floats) -> Floats:
    """Return the sums of the first 0, 1, ..., n steps (n + 1,)."""
    sums: Floats = np.concatenate(([0.0], np.cumsum(steps)))
    return sums


def _lower(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Return whether a loss and a spread are lower than others beyond rounding; the loss comes first."""
    if abs(a[0] - b[0]) > TOLERANCE:
        return bool(a[0] < b[0])
    return bool(a[1] < b[1] - TOLERANCE)


def _preferred(x: Floats, cuts: NDArray[np.int64]) -> float:
    """Return the threshold of the cut with the widest gap, then the lowest, of cuts of sorted values (n,)."""
    if cuts[0] == 0:
        return below_all(x[0])
    if cuts[-1] == x.size:
        return above_all(x[-1])
    gaps = x[cuts] / 2 - x[cuts - 1] / 2  # each value is halved first: the gap of two huge values must not overflow
    widest = cuts[np.argmax(gaps)]
    return float(midpoint(x[widest - 1], x[widest]))
