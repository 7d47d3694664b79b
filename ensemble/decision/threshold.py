"""The threshold that is best for an objective, exactly; by default the one that minimises HTER."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.decision.objective import HTER, Objective
from ensemble.decision.rates import Floats, Labels, check_logits


def fit_threshold(logits: ArrayLike, labels: ArrayLike, objective: Objective = HTER) -> float:
    """Return the threshold that is best for `objective`, by exact sweep over every distinct cut.

    Candidates are the midpoints of adjacent distinct logits and one beyond each end. Ties go to the smallest
    |FPR - FNR| (where a rate is bounded: to the smallest value of that rate), then to the widest gap between the two
    logits beside the cut, then to the lowest. Rates are compared as integers over the common denominator n_neg * n_pos,
    so that a tie is a tie.

    Parameters
    ----------
    logits : float64 array (n,)
        Log-odds of label 1, finite.
    labels : int8 array (n,)
        0 or 1, both present.
    objective : Objective
        By default HTER.

    Returns
    -------
    float
        In logits; an image is predicted as 1 iff its logit is >= this value.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.

    Notes
    -----
    The gap beyond an end counts as infinite.

    One argsort: O(n log n).

    Examples
    --------
    >>> fit_threshold([-2.0, -1.0, 1.0, 3.0], [0, 0, 1, 1])
    0.0
    >>> fit_threshold([5.0, 5.0], [0, 1])
    4.0
    >>> fit_threshold([-2.0, -1.0, 1.0, 3.0], [0, 1, 0, 1], Objective.parse("fpr:0"))
    2.0
    """
    return fit_thresholds(logits, labels, (objective,))[0]


def fit_thresholds(logits: ArrayLike, labels: ArrayLike, objectives: Sequence[Objective]) -> list[float]:
    """Return what `fit_threshold` returns for each objective; the logits are sorted once."""
    x, y = check_logits("cannot fit a threshold", logits, labels)
    order = np.argsort(x)
    x, y = x[order], y[order]
    ones_below = np.concatenate(([0], np.cumsum(y, dtype=np.int64)))
    n_pos = int(ones_below[-1])
    n_neg = y.size - n_pos
    cuts = np.concatenate(([0], crossings(x, y), [y.size]))  # rows from a cut on are predicted as 1
    false_neg = ones_below[cuts]
    false_pos = n_neg - cuts + false_neg

    def best(objective: Objective) -> float:
        cost, tie = objective.costs(false_pos, false_neg, n_neg, n_pos)
        equal = np.flatnonzero(_least(cost))
        among = cuts[equal[_least(tie[equal])]]
        if among[0] == 0:
            return below_all(x[0])
        if among[-1] == y.size:
            return above_all(x[-1])
        gaps = x[among] / 2 - x[among - 1] / 2  # halves: the gap of two huge logits must not overflow
        widest = among[_least(-gaps)][0]
        return float(midpoint(x[widest - 1], x[widest]))

    return [best(objective) for objective in objectives]


def crossings(logits: Floats, labels: Labels) -> NDArray[np.int64]:
    """Return the cuts between a value that a label 0 has and the next one, if a label 1 has that.

    No other cut can be best, but for the two ends: it can be moved over rows that are predicted wrong, and none other.

    Parameters
    ----------
    logits : float64 array (n,)
        Rising.
    labels : int8 array (n,)
        0 or 1.

    Returns
    -------
    int64 array
        Rising; rows from a cut on are predicted as 1.

    Examples
    --------
    >>> crossings(np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 1, 0]))
    array([1, 3])
    """
    starts = np.flatnonzero(np.concatenate(([True], logits[1:] > logits[:-1])))  # of runs of one value
    has_one = np.maximum.reduceat(labels, starts) == 1
    has_zero = np.minimum.reduceat(labels, starts) == 0
    return np.asarray(starts[1:][has_zero[:-1] & has_one[1:]])


def below_all(lowest: float) -> float:
    """Return a threshold at which all logits down to `lowest` are predicted as 1."""
    return float(lowest - 1)


def above_all(highest: float) -> float:
    """Return a threshold at which no logit up to `highest` is predicted as 1."""
    return max(float(highest) + 1, math.nextafter(highest, math.inf))


def midpoint(below: ArrayLike, above: ArrayLike) -> Floats:
    """Return thresholds that call `above` 1 and `below` 0, halfway where the two are not neighbours."""
    low, high = np.asarray(below, np.float64), np.asarray(above, np.float64)
    middle = low / 2 + high / 2  # halves: the sum of two huge logits must not overflow
    return np.asarray(np.where((low < middle) & (middle <= high), middle, high))


def _least(cost: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(cost == cost.min())
