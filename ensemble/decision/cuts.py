"""The cuts of one score among which a bootstrap replicate looks for the best one; refits.py describes the method."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemble.decision.objective import HTER, TOLERANCE, Objective
from ensemble.decision.rates import Floats, Labels
from ensemble.decision.threshold import above_all, below_all, crossings, midpoint

Integers: TypeAlias = NDArray[np.integer[Any]]

_ROOM = 3.0
"""The margin within which cuts count as near the best one: divided by the square root of the number of rows of the
rarer label, it is a difference in error rate. The standard deviation of a resampled rate is at most 0.5 in this unit
for independent rows, so the margin is at least six of them. Where whole groups are resampled, the number of rows is
divided by their design effect. A smaller value would only cost time, since a replicate that needs more cuts searches
all of them."""


class Cuts:
    """The cuts of one score that can be best for some weights of the rows.

    Parameters
    ----------
    scores : float64 array (n,)
        Finite.
    labels : int8 array (n,)
        0 or 1.
    objective : Objective
        What a threshold minimises.
    fitted : bool array (n,), optional
        The rows that the threshold is fitted on; it is evaluated on the others. If None, it is fitted and evaluated on
        all rows.

    Attributes
    ----------
    thresholds : float64 array (c,)
        In ascending order; the first predicts all fitted rows as 1, the last predicts them all as 0.
    code : int array (n,)
        The bin of each row in the tables that `counts` returns: set of rows (fitted or evaluated), label, and number of
        thresholds that predict the row as 1.
    """

    def __init__(
        self, scores: Floats, labels: Labels, objective: Objective = HTER, fitted: NDArray[np.bool_] | None = None
    ) -> None:
        x, y = (scores, labels) if fitted is None else (scores[fitted], labels[fitted])
        n_pos = int(np.count_nonzero(y))
        self._objective = objective.on_rows(y.size - n_pos, n_pos)
        order = np.argsort(x)
        x, y = x[order], y[order]
        del order
        cuts = crossings(x, y)
        midpoints = midpoint(x[cuts - 1], x[cuts])
        self.thresholds: Floats = np.concatenate(([below_all(x[0])], midpoints, [above_all(x[-1])]))
        ones_below = np.cumsum(y, dtype=np.int64)[cuts - 1]
        self._below = np.zeros((2, self.thresholds.size))  # by label: the fitted rows that a threshold predicts as 0
        self._below[:, 1:-1] = cuts - ones_below, ones_below
        self._below[:, -1] = y.size - n_pos, n_pos
        self._totals = self._below[:, -1:]
        self._tables = 1 if fitted is None else 2
        self._rows = scores, labels, fitted
        self._left_out = False, False  # whether `near_best` has left out cuts below these, and above

    @cached_property
    def code(self) -> Integers:
        scores, labels, fitted = self._rows
        code = np.searchsorted(self.thresholds, scores, "right")  # how many thresholds predict the row as 1
        code += (labels if fitted is None else labels + 2 * ~fitted) * np.int64(self.thresholds.size + 1)
        return code

    @property
    def size(self) -> int:
        """The number of values that a row's code can have."""
        return self._tables * 2 * (self.thresholds.size + 1)

    def of_merged(self, rows: Integers, code: Integers) -> Cuts:
        """Return a copy for merged rows: each of the rows (m,) stands for all that have its code."""
        merged = copy(self)
        merged.code, merged._rows = code[rows], (np.empty(0), np.empty(0, np.int8), None)
        if merged.size < 2**31:
            merged.code = merged.code.astype(np.int32, copy=False)
        return merged

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return two tables of weighted counts: of the fitted rows, and of the evaluated rows.

        Entry (y, i) is the total weight of the rows of label y whose score is at or above exactly i thresholds.

        Parameters
        ----------
        weights : float64 array (..., n)
            Of one replicate or of several.

        Returns
        -------
        float64 arrays (..., 2, c + 1)
        """
        flat = summed(self.code, self.size, weights.reshape(-1, self.code.size))
        tables = flat.reshape(*weights.shape[:-1], self._tables, 2, -1)
        return tables[..., 0, :, :], tables[..., -1, :, :]

    def best(self, table: Floats) -> NDArray[np.int64]:
        """Return the index of the threshold that is best for each table of counts (..., 2, c + 1).

        Among equally good cuts, the one with the smallest |FPR - FNR| is preferred, as in `fit_threshold` (where the
        objective bounds a rate: with the smallest value of that rate), then the lowest. If no row was drawn between
        that cut and the next ones, the middle of these is returned. The error rate of a class without drawn rows is 0.

        The index is -1 if `near_best` has left out a cut that may be as good.
        """
        fpr, fnr = self.rates(table)
        at_or_below, at_or_above = self._objective.one_sided_losses(fpr, fnr)
        cost = at_or_below + at_or_above
        least = cost.min(axis=-1) + TOLERANCE
        tie = np.where(cost <= least[..., None], self._objective.tie(fpr, fnr), np.inf)
        first = np.argmax(tie <= tie.min(axis=-1, keepdims=True) + TOLERANCE, axis=-1)
        segment, size = np.arange(self.thresholds.size + 1), self.thresholds.size
        drawn_above = table.any(axis=-2) & (segment > first[..., None])
        last = np.where(drawn_above, segment, size).min(axis=-1) - 1  # no row was drawn between the first and this cut
        below_left_out, above_left_out = self._left_out
        left_out = (below_left_out & (at_or_below[..., 0] <= least)) | (
            above_left_out & (at_or_above[..., -1] <= least)
        )
        return np.where(left_out, -1, (first + last) // 2)

    def rates(self, table: Floats) -> tuple[Floats, Floats]:
        """Return the FPR and FNR at each cut, (..., c) each, of tables of counts (..., 2, c + 1)."""
        # Column i: the rows that threshold i predicts as 0; the last column: all rows.
        below = np.cumsum(table, axis=-1)
        return _rates(below[..., :-1], below[..., -1:])

    def rates_of_rows(self, cut: slice | NDArray[np.int64] = slice(None)) -> tuple[Floats, Floats]:
        """Return the FPR and FNR at these cuts, (c,) each, of the fitted rows, each counted once."""
        return _rates(self._below[:, cut], self._totals)

    def best_of_rows(self) -> tuple[int, float]:
        """Return the lowest cut with the least loss on the fitted rows, each counted once, and this loss."""
        loss = np.add(*self._objective.one_sided_losses(*self.rates_of_rows()))
        cut = int(loss.argmin())
        return cut, float(loss[cut])

    def near_best(self, effects: tuple[float, float] = (1.0, 1.0)) -> Cuts:
        """Return a copy with only the range of cuts whose loss on the unweighted rows is near the least.

        `effects` are the design effects of the groups that are resampled, on FPR and on FNR.
        """
        fpr, fnr = self.rates_of_rows()
        _, least = self.best_of_rows()
        room = _ROOM / np.sqrt(max((self._totals[:, 0] / effects).min(), 1))
        at_or_below, at_or_above = self._objective.one_sided_losses(fpr - room, fnr - room)
        low = max(int(np.count_nonzero(at_or_below > least)) - 1, 0)
        high = min(int(np.count_nonzero(at_or_above <= least)) + 1, self.thresholds.size)
        near = copy(self)
        near.__dict__.pop("code", None)  # that of the other cuts
        near.thresholds, near._left_out = self.thresholds[low:high].copy(), (low > 0, high < self.thresholds.size)
        near._below, near._totals = self._below[:, low:high].copy(), self._totals.copy()
        return near


def _rates(below: Floats, totals: Floats) -> tuple[Floats, Floats]:
    """Return FPR and FNR (..., c) from counts by label: of the rows predicted as 0 (..., 2, c), of all (..., 2, 1)."""
    n_neg, n_pos = np.moveaxis(totals, -2, 0)
    fpr = np.minimum(n_neg, 1) - below[..., 0, :] / np.maximum(n_neg, 1)
    return fpr, below[..., 1, :] / np.maximum(n_pos, 1)


def summed(place: Integers, places: int, weights: Floats) -> Floats:
    """Return the sums (b, places) of weights (b, n) over the rows of each place (n,)."""
    if len(weights) == 1:
        return np.asarray(np.bincount(place, weights[0], places), np.float64)[None]
    bins = place + places * np.arange(len(weights))[:, None]
    sums = np.bincount(bins.ravel(), weights.ravel(), places * len(weights))
    return np.asarray(sums, np.float64).reshape(-1, places)
