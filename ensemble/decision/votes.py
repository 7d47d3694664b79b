"""Votes of the members, as functions from their logits to one score."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ensemble.decision.rates import Floats, apply_offsets

Score: TypeAlias = Callable[[Floats], Floats]
"""A function from member logits (n, m) to scores (n,), or from (n, m, C) to (n, C)."""


def vote_share(thresholds: ArrayLike) -> Score:
    """Return the score that is the share of members whose logit is at or above that member's threshold.

    With the threshold 1/2 it is the majority vote. An even split is predicted as 1, by the tie rule of rates.py.

    Parameters
    ----------
    thresholds : array (m,)
        One threshold for each member, in logits.

    Examples
    --------

    >>> vote_share([0.0, 1.0])(np.array([[0.5, 0.5], [-1.0, 0.0]]))
    array([0.5, 0. ])
    """
    cuts = np.asarray(thresholds, np.float64)
    return lambda logits: np.asarray((logits >= cuts).mean(axis=1))


def plurality(offsets: ArrayLike) -> Score:
    """Return the score that is the number of members that predict each class, at their offsets (m, C).

    Among classes with equally many votes, the one with the greatest mean of the members' logits plus offsets wins: the
    score has the rank of this mean among the classes, divided by C + 1, added.

    Examples
    --------
    >>> vote = plurality(np.zeros((2, 3)))
    >>> vote(np.array([[[0.0, 1.0, 2.0], [0.0, 3.0, 1.0]]]))
    array([[0.  , 1.5 , 1.25]])
    """
    added = np.asarray(offsets, np.float64)
    classes = added.shape[1]

    def score(logits: Floats) -> Floats:
        votes = (apply_offsets(logits, added)[:, :, None] == np.arange(classes)).sum(axis=1)
        # The second sort gives ranks; a stable sort ranks the higher of two equal classes higher.
        ranks = (logits + added).mean(axis=1).argsort(axis=1, kind="stable").argsort(axis=1)
        return np.asarray(votes + ranks / (classes + 1))

    return score
