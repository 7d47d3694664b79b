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
from typing import Protocol

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

CELLS_AT_ONCE = 2**19
"""The number of row weights that are drawn in one batch of replicates. They take 4 MiB, which stays in the cache."""


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
    code : int64 array (n,)
        The bin of each row in the tables that `counts` returns: set of rows (fitted or evaluated), label, and number of
        thresholds that predict the row as 1.
    """

    def __init__(
        self, scores: Floats, labels: Labels, objective: Objective = HTER, fitted: NDArray[np.bool_] | None = None
    ) -> None:
        selected = slice(None) if fitted is None else fitted
        x, y = scores[selected], labels[selected]
        n_neg, n_pos = np.bincount(y, minlength=2).tolist()
        self._objective = objective.on_rows(n_neg, n_pos)
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
        rows = weights.reshape(-1, self.code.size)
        bins = self.code + self.size * np.arange(len(rows))[:, None]
        flat = np.asarray(np.bincount(bins.ravel(), rows.ravel(), self.size * len(rows)), np.float64)
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
        n_neg, n_pos = np.moveaxis(below[..., -1:], -2, 0)
        fpr = np.minimum(n_neg, 1) - below[..., 0, :-1] / np.maximum(n_neg, 1)
        return fpr, below[..., 1, :-1] / np.maximum(n_pos, 1)

    def near_best(self) -> Cuts:
        """Return a copy with only the range of cuts whose loss on the unweighted rows is near the least."""
        table, _ = self.counts(np.ones(self.code.size))
        fpr, fnr = self.rates(table)
        least = np.add(*self._objective.one_sided_losses(fpr, fnr)).min()
        room = _ROOM / np.sqrt(max(table.sum(axis=1).min(), 1))
        at_or_below, at_or_above = self._objective.one_sided_losses(fpr - room, fnr - room)
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


class RefitRule:
    """A cross-fitted rule, prepared for bootstrap replicates that refit its thresholds.

    Parameters
    ----------
    scores : float64 array (n,)
        The scores of the deployed rule, which was fitted on all rows.
    labels : int8 array (n,)
        0 or 1.
    splits : sequence of Split
        The rule fitted without each fold. The scores are kept; only the thresholds are refitted. If it is empty, the
        apparent estimate takes the place of the nested one.
    objective : Objective
        What the thresholds minimise.
    """

    def __init__(self, scores: Floats, labels: Labels, splits: Sequence[Split], objective: Objective = HTER) -> None:
        deployed = Cuts(scores, labels, objective)
        self._all_cuts = [deployed, *(Cuts(split.scores, labels, objective, ~split.inside) for split in splits)]
        self._merged_row, self._near = _merged([cuts.near_best() for cuts in self._all_cuts])
        self._merged_rows = self._near[0].code.size
        self._thresholds = deployed.thresholds
        self._true = np.stack(deployed.rates(deployed.counts(np.ones(labels.size))[0]), axis=1)  # (c, 2)

    def refit(self, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Refit the thresholds on replicates of the rows.

        Parameters
        ----------
        weights : float64 array (b, n)
            How often each row was drawn.

        Returns
        -------
        float64 arrays (b,), (b, 2), (b, 2)
            The deployed threshold, the nested FPR and FNR on the drawn rows, and the FPR and FNR of that threshold on
            the unweighted rows.
        """
        bins = self._merged_row + self._merged_rows * np.arange(len(weights))[:, None]
        merged = np.asarray(np.bincount(bins.ravel(), weights.ravel(), self._merged_rows * len(weights)), np.float64)
        threshold, nested, complete = _refitted(self._near, merged.reshape(len(weights), -1))
        if not complete.all():
            threshold[~complete], nested[~complete], _ = _refitted(self._all_cuts, weights[~complete])
        return threshold, nested, self._true[np.searchsorted(self._thresholds, threshold)]

    def errors(self, weights: Floats) -> Floats:
        """Return the errors of the nested estimate, (b, 2), in replicates with row weights (b, n)."""
        _, nested, true = self.refit(weights)
        return nested - true


class FixedRule:
    """A rule whose predictions are kept in bootstrap replicates: none of its thresholds is fitted.

    Parameters
    ----------
    y_pred, labels : int8 array (n,)
        0 or 1; the labels contain both classes.
    """

    def __init__(self, y_pred: Labels, labels: Labels) -> None:
        wrong, is_pos = labels != y_pred, labels == 1
        self._sums = np.stack([wrong & ~is_pos, ~is_pos, wrong & is_pos, is_pos], axis=1).astype(np.float64)  # (n, 4)
        self._rates = self._rates_at(np.ones((1, labels.size)))

    def errors(self, weights: Floats) -> Floats:
        """Return FPR and FNR, (b, 2), on rows with weights (b, n), less those on the unweighted rows."""
        return self._rates_at(weights) - self._rates

    def _rates_at(self, weights: Floats) -> Floats:
        sums = weights @ self._sums  # integers, hence exact in any order
        return np.stack([sums[:, 0] / np.maximum(sums[:, 1], 1), sums[:, 2] / np.maximum(sums[:, 3], 1)], axis=1)


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
    rule: RefitRule, labels: Labels, groups: ArrayLike | None = None, seed: int = 0, replicates: int = 1000
) -> Iterator[Replicate]:
    """Yield bootstrap replicates of the rows, each with thresholds that are refitted on it.

    Parameters
    ----------
    rule : RefitRule
        Of the same rows.
    labels : int8 array (n,)
        0 or 1.
    groups : int64 array (n,), optional
        Rows of one group are drawn together; if None, every row is a group.
    seed : int
        The same labels, groups and seed give the same draws of rows.
    replicates : int
        The number of replicates.
    """
    for batch in _draws(labels, groups, seed, replicates):
        for weights, threshold, nested, true in zip(batch, *rule.refit(batch), strict=True):
            yield Replicate(
                weights, float(threshold), (float(nested[0]), float(nested[1])), (float(true[0]), float(true[1]))
            )


class Refittable(Protocol):
    """A rule whose estimates can be repeated in bootstrap replicates."""

    def errors(self, weights: Floats) -> Floats:
        """Return the errors of its estimates, (b, e), in replicates with row weights (b, n)."""


def refit_errors(
    rules: Sequence[Refittable],
    labels: Labels,
    groups: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = 1000,
) -> Floats:
    """Return the errors of the nested estimates of several rules in the same bootstrap replicates.

    The draws are those of `refit_replicates`. They are the same for all rules, so the variation that two rules have in
    common cancels in the difference of their errors.

    Parameters
    ----------
    rules : sequence of Refittable
        Of the same rows: each a `RefitRule` or `FixedRule`, or those of more than two classes (class_refits.py).
    labels, groups, seed, replicates
        As in `refit_replicates`.

    Returns
    -------
    float64 array (rules, replicates, e)
        The errors, nested minus true, in FPR and in FNR; of more than two classes, in the measures of class_refits.py.
    """
    batches = _draws(labels, groups, seed, replicates)
    return np.concatenate([[rule.errors(batch) for rule in rules] for batch in batches], axis=1)


def _draws(labels: Labels, groups: ArrayLike | None, seed: int, replicates: int) -> Iterator[Floats]:
    """Yield batches of row weights (b, n), `replicates` rows of weights in all."""
    weights_of = Resampler(labels, groups).weights_of(np.random.default_rng(seed_sequence(seed, "refit")))
    step = max(1, CELLS_AT_ONCE // labels.size)
    for start in range(0, replicates, step):
        yield np.stack([weights_of.draw() for _ in range(min(step, replicates - start))])


def _refitted(all_cuts: Sequence[Cuts], weights: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return the deployed thresholds (b,) and the nested FPR and FNR (b, 2) of weighted rows (b, n).

    The first of `all_cuts` is that of the deployed score; the others are those of the rule without each fold. The third
    array (b,) is false where a cut that `near_best` has left out may be the best; the others are then undefined.
    """
    deployed, *without = all_cuts
    table, _ = deployed.counts(weights)
    cut = deployed.best(table)
    complete, errors = cut >= 0, np.zeros((len(weights), 2))
    for cuts in without or (deployed,):
        fitted, held_out = cuts.counts(weights)
        fold_cut = cuts.best(fitted)
        complete &= fold_cut >= 0
        below = np.take_along_axis(np.cumsum(held_out, axis=-1), fold_cut[:, None, None], axis=-1)[..., 0]
        errors += np.stack([held_out[:, 0].sum(axis=-1) - below[:, 0], below[:, 1]], axis=1)
    return deployed.thresholds[cut], errors / table.sum(axis=-1), complete


def refit_interval(
    estimate: Pair, errors: ArrayLike, objective: Objective = HTER, within: Pair = (0.0, 1.0)
) -> Interval:
    """Return the 95 % interval of the deployed rule's loss: the estimate minus the quantiles of the centred errors.

    The same holds for a difference of two rules: the difference of their estimates, minus the quantiles of the
    differences of their errors in the same replicates.

    It is the basic (pivotal) bootstrap interval. The errors of the nested estimate in the replicates, which include the
    variation of the fitted threshold, stand for the error of the nested estimate on the rows themselves (Davison and
    Hinkley 1997, Bootstrap Methods and their Application, section 5.2).

    The errors are centred first. Their mean is not that of the nested estimate on the rows themselves, which is nearly
    unbiased: a replicate has fewer distinct rows, so fitting a threshold on it costs more.

    Parameters
    ----------
    estimate : (FPR, FNR)
        The nested estimate.
    errors : float64 array (r, 2)
        The errors of the replicates in FPR and in FNR (`Replicate.errors`), at least one.
    objective : Objective
        The objective whose loss the interval is for.
    within : (float, float)
        The interval is clipped to these values.
    """
    losses = objective.loss(*np.asarray(errors, np.float64).T)
    return centred_interval(objective.loss(*estimate), losses, within)


def centred_interval(estimate: float, errors: Floats, within: Pair = (0.0, 1.0)) -> Interval:
    """Return the estimate minus the 97.5 % and 2.5 % quantiles of the centred errors (r,); see `refit_interval`."""
    low, high = np.quantile(errors - errors.mean(), [0.025, 0.975])
    return Interval(float(np.clip(estimate - high, *within)), float(np.clip(estimate - low, *within)))
