"""The bootstrap resampler: it draws labelled rows, or whole groups, with replacement within strata of labels.

The strata are the groups with only label 0, with only label 1, and with both. Each stratum keeps its number of groups,
so the class counts hardly change and no replicate lacks a class (Efron and Tibshirani 1993, An Introduction to the
Bootstrap, chapter 8). Of more than two classes, every set of classes that the groups have is a stratum; sets that too
few groups have form one stratum together, in which the class counts vary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.decision.rates import Floats, Labels
from ensemble.errors import DataError

CELLS_AT_ONCE = 2**22
"""The number of int64 values that `draw_totals` draws in one chunk. They take 32 MiB, which bounds its memory."""

LEAST_GROUPS = 20
"""The number of groups with the same set of several classes below which this set is no stratum of its own. In a stratum
of s groups, the variance of the bootstrap is too small by the factor 1 - 1/s; one group is always drawn as it is."""


class Resampler:
    """Draws whole groups of rows with replacement, stratified by label.

    There are two ways to draw. `weights_of` gives how often each row is drawn. `draw_totals` gives how often each
    outcome of the rows occurs: groups with the same counts of outcomes are interchangeable, so a replicate is one
    multinomial draw over the kinds of group, which is faster by orders of magnitude.

    Parameters
    ----------
    labels : int8 array (n,)
        Class indices.
    groups : int64 array (n,), optional
        Rows of one group are drawn together; if None, every row is a group.

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
        """Return an object that draws row weights; it computes the strata only once."""
        return RowWeights(self._labels, self._groups, rng)

    def draw_totals(
        self, outcome: NDArray[np.int64], outcomes: int, rng: np.random.Generator, replicates: int
    ) -> NDArray[np.int64]:
        """Draw replicates, and return how often each outcome occurs in each.

        The strata are the sets of labels that occur in a group (see `strata_of`). Every replicate has every label.

        Parameters
        ----------
        outcome : int64 array (n,)
            The outcome of each row, in [0, outcomes). Rows with one outcome have one label.
        outcomes : int
            The number of outcomes.
        rng : Generator
        replicates : int
            The number of replicates.

        Returns
        -------
        int64 array (replicates, outcomes)
        """
        kinds, counts = kinds_of_group(outcome, outcomes, self._groups)
        of_label = np.zeros((outcomes, int(self._labels.max()) + 1), bool)
        of_label[outcome, self._labels] = True
        has = kinds.astype(bool) @ of_label
        strata = strata_of(has, counts)
        totals = np.zeros((replicates, outcomes), np.int64)
        for stratum in np.unique(strata):
            kind, count = kinds[strata == stratum].astype(np.float64), counts[strata == stratum]
            step = max(1, CELLS_AT_ONCE // count.size)
            for start in range(0, replicates, step):
                rows = totals[start : start + step]
                drawn = rng.multinomial(count.sum(), count / count.sum(), size=len(rows))
                rows += (drawn @ kind).astype(np.int64)  # exact, and much faster in floating point
        for label in _may_lack(has, strata):
            lacking = np.flatnonzero(~totals[:, of_label[:, label]].any(axis=1))
            kind, count = kinds[has[:, label]], counts[has[:, label]]
            totals[lacking] += kind[rng.choice(count.size, lacking.size, p=count / count.sum())]
        return totals


class RowWeights:
    """Draws row weights; every call of `draw` returns one replicate, in which every label occurs."""

    def __init__(self, labels: Labels, groups: NDArray[np.int64] | None, rng: np.random.Generator) -> None:
        units = np.arange(labels.size) if groups is None else np.unique(groups, return_inverse=True)[1]
        has = _labels_of_groups(labels, units)
        strata = strata_of(has, np.ones(len(has), np.int64))
        self._rng, self._sizes = rng, [int(size) for size in np.bincount(strata) if size]
        position = np.empty(strata.size, np.int64)
        position[np.argsort(strata, kind="stable")] = np.arange(strata.size)
        self._unit_of = position[units]  # the group of each row (n,); groups are numbered stratum by stratum
        self._may_lack = [position[has[:, label]] for label in _may_lack(has, strata)]  # the groups with each of them

    def draw(self) -> Floats:
        """Draw the next replicate, and return how often each row is drawn (n,)."""
        times = [np.bincount(self._rng.integers(0, size, size), minlength=size) for size in self._sizes]
        drawn = np.concatenate(times)
        for units in self._may_lack:
            if not drawn[units].any():
                drawn[self._rng.choice(units)] += 1
        return drawn.astype(np.float64)[self._unit_of]


def _labels_of_groups(labels: Labels, units: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which labels occur in each group (g, C), from the labels and the groups of the rows."""
    classes = max(2, int(labels.max(initial=0)) + 1)
    has = np.zeros((int(units.max()) + 1, classes), bool)
    has[units, labels] = True
    return has


def _may_lack(has: NDArray[np.bool_], strata: NDArray[np.int64]) -> list[int]:
    """Return the labels that a replicate may lack: those that occur, but in all groups of no stratum."""
    in_all = [has[strata == stratum].all(axis=0) for stratum in np.unique(strata)]
    return np.flatnonzero(has.any(axis=0) & ~np.any(in_all, axis=0)).tolist()


def design_effects(labels: Labels, y_pred: Labels, groups: ArrayLike | None) -> tuple[float, float]:
    """Return by how much groups raise the variance of the FPR and of the FNR over that of independent rows.

    It is the ratio of the variance with whole groups as the unit to that with rows as the unit, at least 1; n rows then
    weigh as much as n divided by it (Kish 1965, Survey Sampling). If a class has no errors or nothing but errors, the
    rows of a group count as one.

    Parameters
    ----------
    labels, y_pred : int8 array (n,)
        0 or 1.
    groups : int64 array (n,), optional
        If None, every row is a group, and both are 1.

    Examples
    --------
    >>> labels, y_pred = np.repeat([0, 1], 8), np.tile([0, 0, 1, 1], 4)
    >>> design_effects(labels, y_pred, np.arange(16) // 2)
    (2.0, 2.0)
    """
    of_neg, of_pos = class_design_effects(labels, y_pred, groups, 2)
    return of_neg, of_pos


def class_design_effects(labels: Labels, y_pred: Labels, groups: ArrayLike | None, classes: int) -> tuple[float, ...]:
    """Return the design effect of the error rate of each class (C,), as `design_effects` does for two classes.

    With labels and predictions exchanged, they are the design effects of the precisions. A class without rows has 1.
    """
    if groups is None:
        return (1.0,) * classes
    group_of = np.unique(groups, return_inverse=True)[1]
    return tuple(design_effect(y_pred[rows] != c, group_of[rows]) for c, rows in enumerate(_rows_of(labels, classes)))


def _rows_of(labels: Labels, classes: int) -> list[NDArray[np.bool_]]:
    return [labels == c for c in range(classes)]


def design_effect(wrong: NDArray[np.bool_], group_of: NDArray[np.int64]) -> float:
    """Return the design effect of the share of rows that are wrong (n,), at least 1; 1 where there are no rows."""
    if not wrong.size:
        return 1.0
    share = wrong.mean()
    residual = wrong - share if 0 < share < 1 else np.ones(wrong.size)
    by_group = np.bincount(group_of, residual)
    return max(1.0, float((by_group**2).sum() / (residual**2).sum()))


def strata_of(has: NDArray[np.bool_], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the strata within which groups are drawn, one for each set of labels that occurs in a group.

    Groups of a single label come first, label by label, then those of several. Sets of several labels that fewer than
    `LEAST_GROUPS` groups have are one stratum.

    Parameters
    ----------
    has : bool array (t, C)
        Which labels occur in each group, or in each kind of group.
    counts : int64 array (t,)
        The number of groups of each kind.

    Returns
    -------
    int64 array (t,)
        Numbers from 0, some of which may not occur.

    Examples
    --------
    >>> strata_of(np.array([[True, True], [False, True], [True, False]]), np.array([20, 2, 3]))
    array([2, 1, 0])
    """
    strata = np.asarray(has.argmax(axis=1), np.int64)
    mixed = has.sum(axis=1) > 1
    if mixed.any():
        sets, set_of = np.unique(has[mixed], axis=0, return_inverse=True)
        groups = np.bincount(set_of.reshape(-1), counts[mixed])[set_of.reshape(-1)]
        strata[mixed] = has.shape[1] + np.where(groups < LEAST_GROUPS, len(sets), set_of.reshape(-1))
    return strata


def kinds_of_group(
    outcome: NDArray[np.int64], outcomes: int, groups: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the kinds of group: the distinct counts of outcomes in a group, and the number of groups with each.

    Parameters
    ----------
    outcome : int64 array (n,)
        The outcome of each row, in [0, outcomes).
    outcomes : int
        The number of possible outcomes.
    groups : int64 array (n,), optional
        If None, every row is a group.

    Returns
    -------
    int64 arrays (t, outcomes) and (t,)
        The counts of outcomes of each kind, and the number of groups of that kind.
    """
    if groups is None:
        kinds, counts = np.eye(outcomes, dtype=np.int64), np.bincount(outcome, minlength=outcomes)
        return kinds[counts > 0], counts[counts > 0]
    group_of = np.asarray(groups)
    # Where most numbers in the range are unused, the table below would be too large: groups are renumbered first.
    if int(group_of.max()) - int(group_of.min()) > 4 * outcome.size:
        group_of = np.unique(group_of, return_inverse=True)[1]
    group_of = group_of - group_of.min()
    table = np.bincount(group_of * outcomes + outcome, minlength=outcomes * (int(group_of.max()) + 1))
    table = table.reshape(-1, outcomes)
    table = table[table.any(axis=1)]
    base = int(table.max()) + 1
    if base**outcomes > 2**62:
        kinds, counts = np.unique(table, axis=0, return_counts=True)
        return kinds, counts
    digits = base ** np.arange(outcomes)[::-1]  # each row is encoded as one integer, which sorts faster than the row
    numbers, counts = np.unique(table @ digits, return_counts=True)
    return numbers[:, None] // digits % base, counts
