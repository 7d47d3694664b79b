"""The bootstrap of a rule whose threshold is fitted: in every replicate it is fitted anew, with and without each fold.

A replicate is a set of weights, how often each row was drawn. Sorting is done once: in the order of a score, the best
cut lies between a row of label 0 and a row of label 1 above it, whatever the weights, so rows between two such places
are one segment, and a replicate is a weighted count over segments and a cumulative sum.

Most of these cuts are far too bad to be best in any replicate. Only those near the best one are looked at, and the rows
beyond them are counted together; in a replicate where this leaves it open that another cut is better, all are.
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
"""FPR and FNR."""

_ROOM = 3.0
"""How far a rate may move when the rows are drawn anew, times the root of the rarer label's rows: more than it does."""


class Cuts:
    """The cuts of one score that can be best for some weights of the rows.

    Parameters
    ----------
    scores : float64 array (n,)
        Finite.
    labels : int8 array (n,)
        0 or 1.
    fitted : bool array (n,), optional
        The rows that a threshold is fitted on; the others are scored at it. All rows are both if None.

    Attributes
    ----------
    thresholds : float64 array (c,)
        Rising; the first calls all fitted rows 1, the last none.
    """

    def __init__(self, scores: Floats, labels: Labels, fitted: NDArray[np.bool_] | None = None) -> None:
        of_fit = slice(None) if fitted is None else fitted
        x, y = scores[of_fit], labels[of_fit]
        order = np.argsort(x)
        x, y = x[order], y[order]
        cuts = crossings(x, y)
        middles = midpoint(x[cuts - 1], x[cuts])
        self.thresholds: Floats = np.concatenate(([below_all(x[0])], middles, [above_all(x[-1])]))
        self._tables = 1 if fitted is None else 2
        table = np.zeros(labels.size, np.int64) if fitted is None else np.where(fitted, 0, 1)
        place = np.searchsorted(self.thresholds, scores, "right")  # how many thresholds call the row 1
        self.code = (table * 2 + labels) * (self.thresholds.size + 1) + place
        self._left_out = False, False  # whether there are cuts below these, and above

    @property
    def size(self) -> int:
        """How many values a row's code can have."""
        return self._tables * 2 * (self.thresholds.size + 1)

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the weighted counts of the rows that are fitted on and of those that are scored, (2, c + 1) each.

        A row of a table is a label; its column i holds the rows that the first i thresholds call 1.
        """
        tables = np.bincount(self.code, weights, self.size).reshape(self._tables, 2, -1)
        return tables[0], tables[-1]

    def best(self, table: Floats, objective: Objective) -> int | None:
        """Return the index of the threshold that is best for the counts.

        Ties go to the smallest |FPR - FNR| (where a rate is bounded: to its smallest value), as in `fit_threshold`,
        then to the lowest; of a stretch of cuts with no row drawn between them, to the middle one. A class of which no
        row was drawn has no errors. None where these are some of the cuts, and another may be as good.
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
        """Return FPR and FNR of the counts at each cut, (c,) each."""
        below = np.cumsum(table, axis=1)  # the rows that a threshold calls 0, and at last all
        n_neg, n_pos = below[:, -1]
        return min(n_neg, 1) - below[0, :-1] / max(n_neg, 1), below[1, :-1] / max(n_pos, 1)

    def near_best(self, objective: Objective) -> Cuts:
        """Return the cuts between the outermost two that come near the best one, of the rows as they are."""
        table, _ = self.counts(np.ones(self.code.size))
        fpr, fnr = self.rates(table)
        least = np.add(*objective.one_sided_losses(fpr, fnr)).min()
        room = _ROOM / np.sqrt(max(table.sum(axis=1).min(), 1))
        at_or_below, at_or_above = objective.one_sided_losses(fpr - room, fnr - room)
        low = max(int(np.count_nonzero(at_or_below > least)) - 1, 0)
        high = min(int(np.count_nonzero(at_or_above <= least)) + 1, self.thresholds.size)
        near = copy(self)
        near.thresholds, near._left_out = self.thresholds[low:high], (low > 0, high < self.thresholds.size)
        column, place = np.divmod(self.code, self.thresholds.size + 1)
        near.code = column * (high - low + 1) + np.clip(place - low, 0, high - low)
        return near


def _merged(every: Sequence[Cuts]) -> tuple[NDArray[np.int64], list[Cuts]]:
    """Return rows that none of the cuts tell apart as one: which one each row is in (n,), and the cuts of those."""
    one_of = np.zeros(every[0].code.size, np.int64)
    first = one_of[:0]
    for cuts in every:
        _, first, one_of = np.unique(one_of * cuts.size + cuts.code, return_index=True, return_inverse=True)
    merged = []
    for cuts in every:
        merged.append(copy(cuts))
        merged[-1].code = cuts.code[first]
    return one_of, merged


@dataclass(frozen=True)
class Replicate:
    """One bootstrap world: its nested estimate, its deployed threshold, and what that threshold does in our world."""

    weights: Floats  # (n,)
    threshold: float
    nested: Pair
    true: Pair  # of `threshold` on the rows as they are, which are the population that the replicate was drawn from

    @property
    def errors(self) -> Pair:
        """How far the nested estimate missed, for FPR and FNR."""
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
    """Draw the rows anew, and fit the threshold on them as it was fitted on the rows as they are.

    Parameters
    ----------
    scores : float64 array (n,)
        Of the deployed rule, fitted on all rows.
    labels : int8 array (n,)
        0 or 1.
    splits : sequence of Split
        The rule fitted without each fold. The scores are taken as they are; only thresholds are fitted anew.
    groups : int64 array (n,), optional
        Drawn whole; every row by itself if None.
    objective : Objective
        What the threshold is best for.
    seed : int
        The same seed draws the same replicates.
    replicates : int
        How many.
    """
    rng = np.random.default_rng(seed_sequence(seed, "refit"))
    weights_of, deployed = Resampler(labels, groups).weights_of(rng), Cuts(scores, labels)
    every = [deployed, *(Cuts(split.scores, labels, ~split.inside) for split in splits)]
    one_of, near = _merged([cuts.near_best(objective) for cuts in every])
    true = np.stack(deployed.rates(deployed.counts(np.ones(labels.size))[0]), axis=1).tolist()
    for _ in range(replicates):
        weights = weights_of.draw()
        found = _refitted(near, np.bincount(one_of, weights), objective) or _refitted(every, weights, objective)
        assert found is not None  # the best is one of all cuts
        threshold, nested = found
        false_pos, false_neg = true[np.searchsorted(deployed.thresholds, threshold)]
        yield Replicate(weights, threshold, nested, (false_pos, false_neg))


def _refitted(every: Sequence[Cuts], weights: NDArray[Any], objective: Objective) -> tuple[float, Pair] | None:
    """Return the deployed threshold of weighted rows, and the rates at the thresholds fitted without each fold.

    None where another cut than these may be the best.
    """
    deployed, *without = every
    table, _ = deployed.counts(weights)
    cut = deployed.best(table, objective)
    if cut is None:
        return None
    false_pos = false_neg = 0.0
    for cuts in without:
        fit, held_out = cuts.counts(weights)
        at = cuts.best(fit, objective)
        if at is None:
            return None
        false_pos += held_out[0, at + 1 :].sum()
        false_neg += held_out[1, : at + 1].sum()
    totals = table.sum(axis=1)
    return float(deployed.thresholds[cut]), (float(false_pos / totals[0]), float(false_neg / totals[1]))


def refit_interval(estimate: Pair, errors: Sequence[Pair], objective: Objective = HTER) -> Interval:
    """Return the 95 % interval of the deployed rule's loss: the estimate, less what its replicates miss by.

    It is the basic (pivotal) bootstrap interval: what nested estimates in bootstrap worlds miss the truth of those
    worlds by, the luck of the threshold included, is what ours may miss by (Davison and Hinkley 1997, Bootstrap Methods
    and their Application, section 5.2). The errors are centred first: a nested estimate is unbiased but for the part of
    the rows that a fold takes away, while in a bootstrap world, which is made of few distinct rows, a fitted threshold
    costs more than it does in ours.

    Parameters
    ----------
    estimate : (FPR, FNR)
        What is printed.
    errors : sequence of (FPR, FNR)
        How far the estimate of each replicate missed; at least one.
    objective : Objective
        Whose loss the interval is of.
    """
    missed = np.array([objective.loss(*error) for error in errors])
    low, high = np.quantile(missed - missed.mean(), [0.025, 0.975])
    loss = objective.loss(*estimate)
    return Interval(float(np.clip(loss - high, 0, 1)), float(np.clip(loss - low, 0, 1)))
