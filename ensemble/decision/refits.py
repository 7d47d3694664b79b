"""The bootstrap that refits the threshold of a rule in every replicate, on all rows and without each fold.

A replicate is a vector of row weights: how often each row was drawn. The rows are sorted only once. Whatever the
weights, the best cut of the sorted scores lies between a row of label 0 and a higher row of label 1. The rows between
two such cuts form a segment, so a replicate costs a weighted count over segments and a cumulative sum.

Most of these cuts are far too bad to be best in any replicate. A replicate therefore first searches the cuts near the
best one, with the rows beyond them counted together. If that cannot exclude that another cut is better, it searches all
cuts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.bootstrap import Resampler
from ensemble.decision.cross_fitting import Split
from ensemble.decision.intervals import Interval
from ensemble.decision.objective import HTER, TOLERANCE, Objective
from ensemble.decision.rates import Floats, Labels
from ensemble.decision.threshold import above_all, below_all, crossings, midpoint

Pair = tuple[float, float]
"""An FPR and an FNR, or a difference in each."""

_ROOM = 3.0
"""The margin within which cuts count as near the best one: divided by the square root of the number of rows of the
rarer label, it is a difference in error rate. The standard deviation of a resampled rate is at most 0.5 in this unit
for independent rows, so the margin is at least six of them. A smaller value would only cost time, since a replicate
that needs more cuts searches all of them."""


class Cuts:
    """The cuts of one score that can be best for some weights of the rows.

    Parameters
    ----------
    scores : float64 array (n,)
        Finite.
    labels : int8 array (n,)
        0 or 1.
    fitted : bool array (n,), optional
        The rows that the threshold is fitted on; it is evaluated on the others. If None, it is fitted and evaluated on
        all rows.

    Attributes
    ----------
    thresholds : float64 array (c,)
        In ascending order; the first predicts all fitted rows as 1, the last predicts them all as 0.
    code : int64 array (n,)
        The bin of each row in the tables that `counts` returns: set of rows (fitted or evaluated), label, and number of
        thresholds that predict the row as 1.
    """

    def __init__(self, scores: Floats, labels: Labels, fitted: NDArray[np.bool_] | None = None) -> None:
        selected = slice(None) if fitted is None else fitted
        x, y = scores[selected], labels[selected]
        order = np.argsort(x)
        x, y = x[order], y[order]
        cuts = crossings(x, y)
        midpoints = midpoint(x[cuts - 1], x[cuts])
        self.thresholds: Floats = np.concatenate(([below_all(x[0])], midpoints, [above_all(x[-1])]))
        self._tables = 1 if fitted is None else 2
        table = np.zeros(labels.size, np.int64) if fitted is None else np.where(fitted, 0, 1)
        segment = np.searchsorted(self.thresholds, scores, "right")  # how many thresholds predict the row as 1
        self.code = (table * 2 + labels) * (self.thresholds.size + 1) + segment
        self._left_out = False, False  # whether `near_best` has left out cuts below these, and above

    @property
    def size(self) -> int:
        """The number of values that a row's code can have."""
        return self._tables * 2 * (self.thresholds.size + 1)

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return two tables of weighted counts, (2, c + 1) each: of the fitted rows, and of the evaluated rows.

        Entry (y, i) is the total weight of the rows of label y whose score is at or above exactly i thresholds.
        """
        tables = np.bincount(self.code, weights, self.size).reshape(self._tables, 2, -1)
        return tables[0], tables[-1]

    def best(self, table: Floats, objective: Objective) -> int | None:
        """Return the index of the threshold that is best for a table of counts.

        Among equally good cuts, the one with the smallest |FPR - FNR| is preferred, as in `fit_threshold` (where the
        objective bounds a rate: with the smallest value of that rate), then the lowest. If no row was drawn between
        that cut and the next ones, the middle of these is returned. The error rate of a class without drawn rows is 0.

        Return None if `near_best` has left out a cut that may be as good.
        """
        fpr, fnr = self.rates(table)
        at_or_below, at_or_above = objective.one_sided_losses(fpr, fnr)
        cost = at_or_below + at_or_above
        least = cost.min() + TOLERANCE
        below_left_out, above_left_out = self._left_out
        if (below_left_out and at_or_below[0] <= least) or (above_left_out and at_or_above[-1] <= least):
            return None
        tied = np.flatnonzero(cost <= least)
        tie = objective.tie(fpr[tied], fnr[tied])
        first = int(tied[np.flatnonzero(tie <= tie.min() + TOLERANCE)[0]])
        last = first
        while last + 1 < cost.size and not table[:, last + 1].any():  # no row was drawn between the two cuts
            last += 1
        return (first + last) // 2

    def rates(self, table: Floats) -> tuple[Floats, Floats]:
        """Return the FPR and FNR at each cut, (c,) each, of a table of counts."""
        below = np.cumsum(table, axis=1)  # column i: the rows that threshold i predicts as 0; the last column: all rows
        n_neg, n_pos = below[:, -1]
        return min(n_neg, 1) - below[0, :-1] / max(n_neg, 1), below[1, :-1] / max(n_pos, 1)

    def near_best(self, objective: Objective) -> Cuts:
        """Return a copy with only the range of cuts whose loss on the unweighted rows is near the least."""
        table, _ = self.counts(np.ones(self.code.size))
        fpr, fnr = self.rates(table)
        least = np.add(*objective.one_sided_losses(fpr, fnr)).min()
        room = _ROOM / np.sqrt(max(table.sum(axis=1).min(), 1))
        at_or_below, at_or_above = objective.one_sided_losses(fpr - room, fnr - room)
        low = max(int(np.count_nonzero(at_or_below > least)) - 1, 0)
        high = min(int(np.count_nonzero(at_or_above <= least)) + 1, self.thresholds.size)
        near = copy(self)
        near.thresholds, near._left_out = self.thresholds[low:high], (low > 0, high < self.thresholds.size)
        table_and_label, segment = np.divmod(self.code, self.thresholds.size + 1)
        near.code = table_and_label * (high - low + 1) + np.clip(segment - low, 0, high - low)
        return near


def _merged(all_cuts: Sequence[Cuts]) -> tuple[NDArray[np.int64], list[Cuts]]:
    """Merge rows that have the same code in each of the cuts, since they need to be counted only once.

    Returns
    -------
    int64 array (n,)
        The merged row that each row belongs to.
    list of Cuts
        The cuts with the codes of the merged rows.
    """
    merged_row = np.zeros(all_cuts[0].code.size, np.int64)
    first = merged_row[:0]
    for cuts in all_cuts:
        _, first, merged_row = np.unique(merged_row * cuts.size + cuts.code, return_index=True, return_inverse=True)
    merged = []
    for cuts in all_cuts:
        merged.append(copy(cuts))
        merged[-1].code = cuts.code[first]
    return merged_row, merged


@dataclass(frozen=True)
class Replicate:
    """One bootstrap replicate, with its deployed threshold, its nested estimate, and the rates that it estimates."""

    weights: Floats  # (n,), how often each row was drawn
    threshold: float  # fitted on the drawn rows
    nested: Pair  # the nested estimate on the drawn rows
    true: Pair  # the rates of `threshold` on the unweighted rows, the population that the replicate is drawn from

    @property
    def errors(self) -> Pair:
        """The error of the nested estimate, nested minus true, in FPR and in FNR."""
        return self.nested[0] - self.true[0], self.nested[1] - self.true[1]


def refit_replicates(
    scores: Floats,
    labels: Labels,
    splits: Sequence[Split],
    groups: ArrayLike | None = None,
    objective: Objective = HTER,
    seed: int = 0,
    replicates: int = 1000,
) -> Iterator[Replicate]:
    """Yield bootstrap replicates of the rows, each with thresholds that are refitted on it.

    Parameters
    ----------
    scores : float64 array (n,)
        The scores of the deployed rule, which was fitted on all rows.
    labels : int8 array (n,)
        0 or 1.
    splits : sequence of Split
        The rule fitted without each fold. The scores are kept; only the thresholds are refitted.
    groups : int64 array (n,), optional
        Rows of one group are drawn together; if None, every row is a group.
    objective : Objective
        What the thresholds minimise.
    seed : int
        The same seed gives the same replicates.
    replicates : int
        The number of replicates.
    """
    rng = np.random.default_rng(seed_sequence(seed, "refit"))
    weights_of, deployed = Resampler(labels, groups).weights_of(rng), Cuts(scores, labels)
    all_cuts = [deployed, *(Cuts(split.scores, labels, ~split.inside) for split in splits)]
    merged_row, near = _merged([cuts.near_best(objective) for cuts in all_cuts])
    true = np.stack(deployed.rates(deployed.counts(np.ones(labels.size))[0]), axis=1).tolist()
    for _ in range(replicates):
        weights = weights_of.draw()
        result = _refitted(near, np.bincount(merged_row, weights), objective)
        if result is None:
            result = _refitted(all_cuts, weights, objective)
        assert result is not None, "a search of all cuts finds the best one"
        threshold, nested = result
        false_pos, false_neg = true[np.searchsorted(deployed.thresholds, threshold)]
        yield Replicate(weights, threshold, nested, (false_pos, false_neg))


def _refitted(all_cuts: Sequence[Cuts], weights: NDArray[Any], objective: Objective) -> tuple[float, Pair] | None:
    """Return the deployed threshold and the nested FPR and FNR of weighted rows.

    The first of `all_cuts` is that of the deployed score; the others are those of the rule without each fold. Return
    None if a cut that `near_best` has left out may be the best.
    """
    deployed, *without = all_cuts
    table, _ = deployed.counts(weights)
    cut = deployed.best(table, objective)
    if cut is None:
        return None
    false_pos = false_neg = 0.0
    for cuts in without:
        fitted, held_out = cuts.counts(weights)
        fold_cut = cuts.best(fitted, objective)
        if fold_cut is None:
            return None
        false_pos += held_out[0, fold_cut + 1 :].sum()
        false_neg += held_out[1, : fold_cut + 1].sum()
    totals = table.sum(axis=1)
    return float(deployed.thresholds[cut]), (float(false_pos / totals[0]), float(false_neg / totals[1]))


def refit_interval(estimate: Pair, errors: Sequence[Pair], objective: Objective = HTER) -> Interval:
    """Return the 95 % interval of the deployed rule's loss: the estimate minus the quantiles of the centred errors.

    It is the basic (pivotal) bootstrap interval. The errors of the nested estimate in the replicates, which include the
    variation of the fitted threshold, stand for the error of the nested estimate on the rows themselves (Davison and
    Hinkley 1997, Bootstrap Methods and their Application, section 5.2).

    The errors are centred first. Their mean is not that of the nested estimate on the rows themselves, which is nearly
    unbiased: a replicate has fewer distinct rows, so fitting a threshold on it costs more.

    Parameters
    ----------
    estimate : (FPR, FNR)
        The nested estimate.
    errors : sequence of (FPR, FNR)
        The errors of the replicates (`Replicate.errors`), at least one.
    objective : Objective
        The objective whose loss the interval is for.

    Returns
    -------
    Interval
        Clipped to [0, 1].
    """
    losses = np.array([objective.loss(*error) for error in errors])
    low, high = np.quantile(losses - losses.mean(), [0.025, 0.975])
    loss = objective.loss(*estimate)
    return Interval(float(np.clip(loss - high, 0, 1)), float(np.clip(loss - low, 0, 1)))
