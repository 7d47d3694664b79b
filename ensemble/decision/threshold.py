"""The threshold that minimises HTER, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.decision.rates import checked


def fit_threshold(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the threshold that minimises HTER, by exact sweep over every distinct cut.

    Candidates are the midpoints of adjacent distinct logits and one beyond each end. Ties in HTER go to the smallest
    |FPR - FNR|, then to the widest gap between the two logits beside the cut, then to the lowest. Both rates are
    compared as integers over the common denominator n_neg * n_pos, so that a tie is a tie.

    Parameters
    ----------
    logits : float64 array (n,)
        Log-odds of label 1, finite.
    labels : int8 array (n,)
        0 or 1, both present.

    Returns
    -------
    float
        In logits; an image is called 1 iff its logit is >= this value.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.

    Notes
    -----
    The gap beyond an end counts as infinite, but this decides nothing: only "call everything 1" and "call everything
    0" reach |FPR - FNR| = 1 at HTER 1/2, so they tie with each other alone, and the lower one wins. The cut above the
    highest logit is therefore never returned.

    One argsort: O(n log n).

    Examples
    --------
    >>> fit_threshold([-2.0, -1.0, 1.0, 3.0], [0, 0, 1, 1])
    0.0
    >>> fit_threshold([5.0, 5.0], [0, 1])
    4.0
    """
    x, y = checked("cannot fit a threshold", logits, labels)
    order = np.argsort(x)
    x = x[order]
    ones_below = np.concatenate(([0], np.cumsum(y[order], dtype=np.int64)))
    n_pos = int(ones_below[-1])
    n_neg = y.size - n_pos

    cuts = np.flatnonzero(np.concatenate(([True], x[1:] > x[:-1])))  # rows from a cut on are called 1
    false_neg = ones_below[cuts] * n_neg  # FNR and FPR, both times n_neg * n_pos
    false_pos = (n_neg - cuts + ones_below[cuts]) * n_pos
    best = np.flatnonzero(_least(false_pos + false_neg))
    best = best[_least(np.abs(false_pos - false_neg)[best])]
    cuts = cuts[best]
    if cuts[0] == 0:
        return float(x[0] - 1)
    widest = cuts[_least(x[cuts - 1] / 2 - x[cuts] / 2)][0]  # halves: the gap of two huge logits must not overflow
    below, above = float(x[widest - 1]), float(x[widest])
    middle = below / 2 + above / 2
    return middle if below < middle <= above else above


def _least(cost: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(cost == cost.min())
