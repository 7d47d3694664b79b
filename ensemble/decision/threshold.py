"""The threshold that is best for an objective, by an exact sweep over all cuts of the sorted logits.

A cut is a position in the sorted logits: rows from it on are predicted as 1, rows before it as 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.decision.objective import HTER, Objective
from ensemble.decision.rates import Floats, Labels, apply_threshold, check_logits, error_rates


def fit_threshold(logits: ArrayLike, labels: ArrayLike, objective: Objective = HTER) -> float:
    """Return the threshold that is best for `objective`, by an exact sweep over every distinct cut.

    The candidates are the midpoints of adjacent distinct logits, and one threshold beyond each end. Among equally good
    cuts, the one with the smallest |FPR - FNR| is preferred (where the objective bounds a rate: with the smallest value
    of that rate), then the one with the widest gap between the two adjacent logits, then the lowest. Rates are compared
    as integers over the common denominator n_neg * n_pos, so rounding neither makes nor breaks a tie.

    Parameters
    ----------
    logits : float64 array (n,)
        Log-odds of label 1, finite.
    labels : int8 array (n,)
        0 or 1, both present.
    objective : Objective
        What is minimised; HTER by default.

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
    The gap beyond an end counts as infinite. The cost is that of one sort, O(n log n).

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


def least_hter(logits: Floats, labels: Labels) -> float | None:
    """Return the HTER at the best threshold for logits (n,); None if a class is absent or a logit is not finite."""
    if labels.min() == labels.max() or not np.isfinite(logits).all():
        return None
    return error_rates(labels, apply_threshold(logits, fit_threshold(logits, labels))).hter


def fit_thresholds(logits: ArrayLike, labels: ArrayLike, objectives: Sequence[Objective]) -> list[float]:
    """Return the threshold for each objective, as `fit_threshold` does; the logits are sorted only once."""
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
        equal = np.flatnonzero(_is_least(cost))
        tied = cuts[equal[_is_least(tie[equal])]]
        if tied[0] == 0:
            return below_all(x[0])
        if tied[-1] == y.size:
            return above_all(x[-1])
        gaps = x[tied] / 2 - x[tied - 1] / 2  # each logit is halved first: the gap of two huge logits must not overflow
        widest = tied[_is_least(-gaps)][0]
        return float(midpoint(x[widest - 1], x[widest]))

    return [best(objective) for objective in objectives]


def crossings(logits: Floats, labels: Labels) -> NDArray[np.int64]:
    """Return the cuts that can be best for some objective, without the two ends.

    Such a cut lies between two adjacent distinct values of which the lower occurs with label 0 and the higher with
    label 1. Any other cut can be moved across rows that it predicts wrongly, without a new error.

    Parameters
    ----------
    logits : float64 array (n,)
        In ascending order.
    labels : int8 array (n,)
        0 or 1.

    Returns
    -------
    int64 array
        In ascending order; rows from a cut on are predicted as 1.

    Examples
    --------
    >>> crossings(np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 1, 0]))
    array([1, 3])
    """
    starts = np.flatnonzero(np.concatenate(([True], logits[1:] > logits[:-1])))  # the first row of each distinct value
    has_one = np.maximum.reduceat(labels, starts) == 1
    has_zero = np.minimum.reduceat(labels, starts) == 0
    return np.asarray(starts[1:][has_zero[:-1] & has_one[1:]])


def below_all(lowest: float) -> float:
    """Return a threshold at which `lowest` and all higher logits are predicted as 1."""
    return float(lowest - 1)


def above_all(highest: float) -> float:
    """Return a threshold at which `highest` and all lower logits are predicted as 0."""
    return max(float(highest) + 1, math.nextafter(highest, math.inf))


def midpoint(below: ArrayLike, above: ArrayLike) -> Floats:
    """Return thresholds that predict `above` as 1 and `below` as 0.

    A threshold lies halfway between the two; where no float64 lies between them, it is `above`.
    """
    low, high = np.asarray(below, np.float64), np.asarray(above, np.float64)
    middle = low / 2 + high / 2  # each logit is halved first: the sum of two huge logits must not overflow
    return np.asarray(np.where((low < middle) & (middle <= high), middle, high))


def _is_least(cost: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(cost == cost.min())
