"""The one resampler of all bootstraps: rows, or whole groups, are drawn with replacement within strata of labels.

Each stratum ("only label 0", "only label 1", "both") keeps its number of groups, so the class counts stay (nearly) as
they are and no replicate lacks a class (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 8).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.decision.rates import Floats, Labels
from ensemble.errors import DataError

CELLS_AT_ONCE = 2**22
"""Int64 draws that one chunk of `draw_totals` holds in memory: 32 MiB."""


class Resampler:
    """Draws rows with replacement, whole groups, stratified by label.

    There are two ways to draw. `draw_weights` says how often each row is drawn. `draw_totals` says how often each
    outcome of the rows occurs: groups with the same counts of outcomes are alike, so a replicate is one multinomial
    draw over the kinds of group, which is faster by orders of magnitude.

    Parameters
    ----------
    labels : int8 array (n,)
        0 or 1.
    groups : int64 array (n,), optional
        Rows of one value are drawn together; every row is a group if None.

    Raises
    ------
    DataError
        The shapes differ.
    """

    def __init__(self, labels: Labels, groups: ArrayLike | None = None) -> None:
        self._labels, self._groups = labels, None if groups is None else np.asarray(groups)
        if self._groups is not None and self._groups.shape != labels.shape:
            raise DataError("cannot bootstrap", f"groups must have shape {labels.shape}; got {self._groups.shape}")

    def weights_of(self, rng: np.random.Generator) -> RowWeights:
        """Return a source of row weights, which prepares the strata once."""
        return RowWeights(self._labels, self._groups, rng)

    def draw_totals(
        self, outcome: NDArray[np.int64], outcomes: int, rng: np.random.Generator, replicates: int
    ) -> NDArray[np.int64]:
        """Return how often each outcome occurs in each replicate, (replicates, outcomes).

        Parameters
        ----------
        outcome : int64 array (n,)
            In [0, outcomes); the first half of the outcomes are those of rows with label 0.
        outcomes : int
        rng : Generator
        replicates : int
        """
        kinds, counts = kinds_of_group(outcome, outcomes, self._groups)
        half = outcomes // 2
        has_neg, has_pos = kinds[:, :half].any(axis=1), kinds[:, half:].any(axis=1)
        totals = np.zeros((replicates, outcomes), np.int64)
        for stratum in (has_neg & ~has_pos, has_pos & ~has_neg, has_neg & has_pos):
            kind, count = kinds[stratum], counts[stratum]
            if not count.size:
                continue
            step = max(1, CELLS_AT_ONCE // count.size)
            for start in range(0, replicates, step):
                rows = totals[start : start + step]
                rows += rng.multinomial(count.sum(), count / count.sum(), size=len(rows)) @ kind
        return totals


class RowWeights:
    """Draws of row weights, one replicate a call of `draw`."""

    def __init__(self, labels: Labels, groups: NDArray[np.int64] | None, rng: np.random.Generator) -> None:
        units = np.arange(labels.size) if groups is None else np.unique(groups, return_inverse=True)[1]
        has = np.zeros((int(units.max()) + 1, 2), bool)
        has[units, labels] = True
        strata = has[:, 0] + 2 * has[:, 1]
        self._rng, self._sizes = rng, [int(size) for size in np.bincount(strata) if size]
        position = np.empty(len(has), np.int64)
        position[np.argsort(strata, kind="stable")] = np.arange(len(has))
        self._unit_of = position[units]  # of each row; units are numbered stratum by stratum

    def draw(self) -> Floats:
        """Return how often each row is drawn in the next replicate (n,)."""
        drawn = [np.bincount(self._rng.integers(0, size, size), minlength=size) for size in self._sizes]
        return np.concatenate(drawn).astype(np.float64)[self._unit_of]


def kinds_of_group(
    outcome: NDArray[np.int64], outcomes: int, groups: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct counts (t, outcomes) of the outcomes in a group, and how many groups have them (t,).

    Parameters
    ----------
    outcome : int64 array (n,)
        In [0, outcomes).
    outcomes : int
        How many there can be.
    groups : int64 array (n,), optional
        Every row is a group if None.
    """
    if groups is None:
        kinds, counts = np.eye(outcomes, dtype=np.int64), np.bincount(outcome, minlength=outcomes)
        return kinds[counts > 0], counts[counts > 0]
    group_of = np.asarray(groups)
    if int(group_of.max()) - int(group_of.min()) > 4 * outcome.size:  # most numbers in between are unused
        group_of = np.unique(group_of, return_inverse=True)[1]
    group_of = group_of - group_of.min()
    table = np.bincount(group_of * outcomes + outcome, minlength=outcomes * (int(group_of.max()) + 1))
    table = table.reshape(-1, outcomes)
    table = table[table.any(axis=1)]
    base = int(table.max()) + 1
    if base**outcomes > 2**62:
        kinds, counts = np.unique(table, axis=0, return_counts=True)
        return kinds, counts
    digits = base ** np.arange(outcomes)[::-1]  # a row as one number: faster to sort
    numbers, counts = np.unique(table @ digits, return_counts=True)
    return numbers[:, None] // digits % base, counts
