"""The bootstrap of a rule whose threshold is fitted: in every replicate it is fitted anew, with and without each fold.

A replicate is a set of weights, how often each row was drawn. Sorting is done once: in the order of a score, the best
cut lies between a row of label 0 and a row of label 1 above it, whatever the weights, so rows between two such places
are one segment, and a replicate is a weighted count over segments and a cumulative sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import Calls, Floats
from ensemble.decision.rules import Split
from ensemble.decision.threshold import HTER, Objective, above_all, below_all, midpoint

Pair = tuple[float, float]
"""FPR and FNR."""

_SAME = 1e-12
"""Rates, which are shares of counts, that are this near are the same."""


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

    def __init__(self, scores: Floats, labels: Calls, fitted: NDArray[np.bool_] | None = None) -> None:
        of_fit = slice(None) if fitted is None else fitted
        x, y = scores[of_fit], labels[of_fit]
        order = np.argsort(x)
        x, y = x[order], y[order]
        starts = np.flatnonzero(np.concatenate(([True], x[1:] > x[:-1])))  # of runs of one score
        has_pos = np.add.reduceat(y, starts, dtype=np.int64) > 0
        has_neg = np.add.reduceat(1 - y, starts, dtype=np.int64) > 0
        cuts = starts[1:][has_neg[:-1] & has_pos[1:]]
        middles = midpoint(x[cuts - 1], x[cuts])
        self.thresholds: Floats = np.concatenate(([below_all(x[0])], middles, [above_all(x[-1])]))
        places = self.thresholds.size + 1
        place = np.searchsorted(self.thresholds, scores, "right")  # how many thresholds call the row 1
        self._code = place * 2 + labels
        self._size = places * 2
        if fitted is not None:
            self._code = self._code + np.where(fitted, 0, self._size)
        self._tables = 1 if fitted is None else 2

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the weighted counts of the rows that are fitted on and of those that are scored, (c + 1, 2) each.

        Row i of a table holds the rows that the first i thresholds call 1, a column a label.
        """
        tables = np.bincount(self._code, weights, self._size * self._tables).reshape(self._tables, -1, 2)
        return tables[0], tables[-1]

    def best(self, table: Floats, objective: Objective) -> int:
        """Return the index of the threshold that is best for the counts.

        Ties go to the smallest |FPR - FNR| (where a rate is held: to the smallest held rate), as in `fit_threshold`,
        then to the lowest; of a stretch of cuts with no row drawn between them, to the middle one. A class of which no
        row was drawn has no errors.
        """
        drawn = table.sum(axis=0)
        of_neg, of_pos = np.maximum(drawn, 1)
        below = np.cumsum(table, axis=0)[:-1]  # (c, 2): the rows that a threshold calls 0
        false_neg, false_pos = below[:, 1] / of_pos, (drawn[0] - below[:, 0]) / of_neg
        if objective.max_fpr is not None:
            cost = np.where(false_pos <= objective.max_fpr + _SAME, false_neg, np.inf)
        elif objective.max_fnr is not None:
            cost = np.where(false_neg <= objective.max_fnr + _SAME, false_pos, np.inf)
        else:
            cost = objective.cost_fpr * false_pos + objective.cost_fnr * false_neg
        tied = np.flatnonzero(cost <= cost.min() + _SAME)
        if objective.max_fpr is not None:
            tie = false_pos[tied]
        elif objective.max_fnr is not None:
            tie = false_neg[tied]
        else:
            tie = np.abs(false_pos[tied] - false_neg[tied])
        first = int(tied[np.flatnonzero(tie <= tie.min() + _SAME)[0]])
        last = first
        while last + 1 < cost.size and not table[last + 1].any():  # no row was drawn between the two cuts
            last += 1
        return (first + last) // 2

    def rates(self, table: Floats, cut: int) -> Pair:
        """Return FPR and FNR of the counts at a cut."""
        total, below = table.sum(axis=0), table[: cut + 1].sum(axis=0)
        return float(1 - below[0] / total[0]), float(below[1] / total[1])


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


class Resampler:
    """Draws rows with replacement, whole groups, stratified by class: "only label 0", "only label 1" and "both".

    Parameters
    ----------
    labels : int8 array (n,)
        0 or 1.
    groups : int64 array (n,), optional
        Every row is a group if None.
    """

    def __init__(self, labels: Calls, groups: ArrayLike | None) -> None:
        self._units = np.arange(labels.size) if groups is None else np.unique(groups, return_inverse=True)[1]
        has = np.zeros((int(self._units.max()) + 1, 2), bool)
        has[self._units, labels] = True
        strata = (has[:, 0] & ~has[:, 1], has[:, 1] & ~has[:, 0], has.all(axis=1))
        self._strata = [np.flatnonzero(stratum) for stratum in strata if stratum.any()]
        self._size = len(has)

    def draw(self, rng: np.random.Generator) -> Floats:
        """Return how often each row is drawn (n,)."""
        drawn = np.zeros(self._size)
        for stratum in self._strata:
            drawn[stratum] = np.bincount(rng.integers(0, stratum.size, stratum.size), minlength=stratum.size)
        return drawn[self._units]


def refit_replicates(
    scores: Floats,
    labels: Calls,
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
    resampler, deployed = Resampler(labels, groups), Cuts(scores, labels)
    population, _ = deployed.counts(np.ones(labels.size))
    without = [Cuts(split.scores, labels, ~split.inside) for split in splits]
    totals = np.empty(2)
    for _ in range(replicates):
        weights = resampler.draw(rng)
        table, _ = deployed.counts(weights)
        totals[:] = table.sum(axis=0)
        cut = deployed.best(table, objective)
        false_pos = false_neg = 0.0
        for cuts in without:
            fit, held_out = cuts.counts(weights)
            at = cuts.best(fit, objective)
            false_pos += held_out[at + 1 :, 0].sum()
            false_neg += held_out[: at + 1, 1].sum()
        nested = float(false_pos / totals[0]), float(false_neg / totals[1])
        yield Replicate(weights, float(deployed.thresholds[cut]), nested, deployed.rates(population, cut))


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
