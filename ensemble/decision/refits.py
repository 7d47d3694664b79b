"""The bootstrap that refits the threshold of a rule in every replicate, on all rows and without each fold.

A replicate is a vector of row weights: how often each row was drawn. The rows are sorted only once. Whatever the
weights, the best cut of the sorted scores lies between a row of label 0 and a higher row of label 1. The rows between
two such cuts form a segment, so a replicate costs a weighted count over segments and a cumulative sum.

Most of these cuts are far too bad to be best in any replicate. A replicate therefore first searches the cuts near the
best one, with the rows beyond them counted together. If that cannot exclude that another cut is better, it searches all
cuts. These are prepared again each time, for one score at a time, since they would take much more memory than the rest.
Whole groups that are drawn together make the rates vary more, so more cuts count as near.

Rows that no cut near the best one tells apart are merged: a rule stores only which merged row each row belongs to, and
its cuts store what is theirs for the merged rows. Several rules on the same rows share one such merging, so a replicate
passes over all rows only once, and what is stored for a row hardly grows with the number of rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.bootstrap import Resampler, design_effects
from ensemble.decision.cross_fitting import Split
from ensemble.decision.cuts import Cuts, Integers, summed
from ensemble.decision.intervals import Interval
from ensemble.decision.objective import HTER, Objective
from ensemble.decision.rates import Floats, Labels, apply_threshold

Pair = tuple[float, float]
"""An FPR and an FNR, or a difference in each."""

CELLS_AT_ONCE = 2**19
"""The number of row weights that are drawn in one batch of replicates. They take 4 MiB, which stays in the cache. Of
more rows, a batch has one replicate."""


def _merged(row: Integers, code: Integers) -> tuple[Integers, Integers]:
    """Return the rows merged that agree in `row` and `code` (n,), and one row that stands for each merged row (m,)."""
    both = row * np.int64(int(code.max(initial=0)) + 1)
    both += code
    order = np.argsort(both)
    both = both[order]
    is_first = np.ones(both.size, bool)
    np.not_equal(both[1:], both[:-1], out=is_first[1:])
    del both
    number: Integers = np.cumsum(is_first, dtype=_integer_of(row.size))
    number -= 1
    merged_row = np.empty_like(number)
    merged_row[order] = number
    return merged_row, order[is_first]


def _integer_of(most: int) -> type[np.int32] | type[np.int64]:
    """Return the type that takes the least memory for numbers up to this one."""
    return np.int32 if most < 2**31 else np.int64


class RefitRule:
    """A cross-fitted rule, prepared for bootstrap replicates that refit its thresholds.

    Parameters
    ----------
    scores : float64 array (n,), or a function that returns it
        The scores of the deployed rule, which was fitted on all rows. A function is called again if a replicate needs
        all cuts, so that the scores need not be stored.
    labels : int8 array (n,)
        0 or 1.
    splits : sequence of Split
        The rule fitted without each fold. The scores are kept; only the thresholds are refitted. If it is empty, the
        apparent estimate takes the place of the nested one.
    objective : Objective
        What the thresholds minimise.
    groups : int64 array (n,), optional
        The groups of rows that are drawn together. They change no result, only how many cuts count as near.

    Attributes
    ----------
    merged_row : int array (n,)
        The merged row that each row belongs to.
    """

    def __init__(
        self,
        scores: Floats | Callable[[], Floats],
        labels: Labels,
        splits: Sequence[Split],
        objective: Objective = HTER,
        groups: ArrayLike | None = None,
    ) -> None:
        self._scores, self._labels, self._splits, self._objective = scores, labels, splits, objective
        self.merged_row: Integers = np.zeros(labels.size, np.int32)
        self._near = list[Cuts]()
        effects = (1.0, 1.0)
        for j in range(len(splits) + 1):
            cuts = self._every_cut(j)
            if j == 0 and groups is not None:
                effects = self._design_effects(cuts, groups)
            near, before = cuts.near_best(effects), self.merged_row
            del cuts
            code = near.code
            self.merged_row, first = _merged(before, code)
            self._near = [each.of_merged(before[first], each.code) for each in self._near]
            self._near.append(near.of_merged(first, code))

    def _every_cut(self, j: int) -> Cuts:
        """Return all cuts of the deployed score if j is 0, otherwise those of the rule without the fold of split j."""
        if j == 0:
            return Cuts(self._scores() if callable(self._scores) else self._scores, self._labels, self._objective)
        split = self._splits[j - 1]
        return Cuts(split.scores, self._labels, self._objective, ~split.inside)

    def _design_effects(self, deployed: Cuts, groups: ArrayLike) -> Pair:
        """Return the design effects of groups on FPR and FNR at the best cut of the deployed score."""
        scores = self._scores() if callable(self._scores) else self._scores
        y_pred = apply_threshold(scores, float(deployed.thresholds[deployed.best_of_rows()[0]]))
        return design_effects(self._labels, y_pred, groups)

    def on(self, rows: Integers) -> RefitRule:
        """Return the rule with only these rows (j,), each of which stands for all rows of its merged row."""
        rule = copy(self)
        rule.merged_row = self.merged_row[rows]
        return rule

    def refit(self, weights: Floats, of_all_rows: Floats | None = None) -> tuple[Floats, Floats, Floats]:
        """Refit the thresholds on replicates of the rows.

        Parameters
        ----------
        weights : float64 array (b, n)
            How often each row was drawn; after `on`, (b, j) of the rows that stand for others.
        of_all_rows : float64 array (b, n), optional
            The weights of all rows, where `weights` are of the rows of `on`.

        Returns
        -------
        float64 arrays (b,), (b, 2), (b, 2)
            The deployed threshold, the nested FPR and FNR on the drawn rows, and the FPR and FNR of that threshold on
            the unweighted rows.
        """
        merged = summed(self.merged_row, self._near[0].code.size, weights)
        of_all_rows = weights if of_all_rows is None else of_all_rows
        found = self._found(0, merged, of_all_rows)
        threshold, true, errors, drawn = found[:, 0], found[:, 1:3], found[:, 3:5], found[:, 5:]
        if self._splits:
            errors = np.zeros_like(errors)
        for j in range(len(self._splits)):
            errors += self._found(j + 1, merged, of_all_rows)[:, 3:5]
        return threshold, errors / drawn, true

    def _found(self, j: int, merged: Floats, of_all_rows: Floats) -> Floats:
        """Return the columns of `_at_best`, (b, 7), of score j (as in `_every_cut`), from all cuts where needed."""
        found, unknown = _at_best(self._near[j], merged)
        if unknown.any():
            found[unknown], _ = _at_best(self._every_cut(j), of_all_rows[unknown])
        return found

    def errors(self, weights: Floats, of_all_rows: Floats | None = None) -> Floats:
        """Return the errors of the nested estimate, (b, 2), in replicates with row weights as for `refit`."""
        _, nested, true = self.refit(weights, of_all_rows)
        return nested - true


class FixedRule:
    """A rule whose predictions are kept in bootstrap replicates: none of its thresholds is fitted.

    Parameters
    ----------
    y_pred, labels : int8 array (n,)
        0 or 1; the labels contain both classes.

    Attributes
    ----------
    merged_row : int8 array (n,)
        The merged row that each row belongs to: one for each label and prediction.
    """

    def __init__(self, y_pred: Labels, labels: Labels) -> None:
        self.merged_row: Labels = labels * 2 + y_pred
        self._rates = self._rates_of(np.bincount(self.merged_row, minlength=4)[None])

    def on(self, rows: Integers) -> FixedRule:
        """Return the rule with only these rows (j,), each of which stands for all rows of its merged row."""
        rule = copy(self)
        rule.merged_row = self.merged_row[rows]
        return rule

    def errors(self, weights: Floats, of_all_rows: Floats | None = None) -> Floats:
        """Return FPR and FNR, (b, 2), on rows with weights (b, n), less those on the unweighted rows."""
        return self._rates_of(summed(self.merged_row, 4, weights)) - self._rates

    def _rates_of(self, counts: NDArray[Any]) -> Floats:
        true_neg, false_pos, false_neg, true_pos = counts.T
        rates = false_pos / np.maximum(true_neg + false_pos, 1), false_neg / np.maximum(false_neg + true_pos, 1)
        return np.stack(rates, axis=1)


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


class _Together:
    """Several rules on the same rows. Rows that none of them tells apart are counted together, once for all rules."""

    def __init__(self, rules: Iterable[Refittable], n: int) -> None:
        self._row: Integers = np.zeros(n, np.int32)
        first: Integers = np.zeros(min(n, 1), np.int64)
        self._rules = list[Refittable]()
        for rule in rules:
            if not isinstance(rule, RefitRule | FixedRule):
                self._rules.append(rule)
                continue
            before = self._row
            self._row, first = _merged(before, rule.merged_row)
            of_first = before[first]
            self._rules = [
                each.on(of_first) if isinstance(each, RefitRule | FixedRule) else each for each in self._rules
            ]
            self._rules.append(rule.on(first))
        self._size = first.size if any(isinstance(each, RefitRule | FixedRule) for each in self._rules) else 0

    def errors(self, weights: Floats) -> list[Floats]:
        """Return the errors of each rule in replicates with row weights (b, n)."""
        merged = summed(self._row, self._size, weights) if self._size else weights
        return [
            rule.errors(merged, weights) if isinstance(rule, RefitRule | FixedRule) else rule.errors(weights)
            for rule in self._rules
        ]


def refit_errors(
    rules: Iterable[Refittable],
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
    rules : iterable of Refittable
        Of the same rows: each a `RefitRule` or `FixedRule`, or those of more than two classes (class_refits.py). Little
        memory is needed if each is made when it is taken.
    labels, groups, seed, replicates
        As in `refit_replicates`.

    Returns
    -------
    float64 array (rules, replicates, e)
        The errors, nested minus true, in FPR and in FNR; of more than two classes, in the measures of class_refits.py.
    """
    together = _Together(rules, labels.size)
    batches = _draws(labels, groups, seed, replicates)
    return np.concatenate([together.errors(batch) for batch in batches], axis=1)


def _draws(labels: Labels, groups: ArrayLike | None, seed: int, replicates: int) -> Iterator[Floats]:
    """Yield batches of row weights (b, n), `replicates` rows of weights in all."""
    weights_of = Resampler(labels, groups).weights_of(np.random.default_rng(seed_sequence(seed, "refit")))
    step = max(1, CELLS_AT_ONCE // labels.size)
    for start in range(0, replicates, step):
        drawn = [weights_of.draw() for _ in range(min(step, replicates - start))]
        yield np.stack(drawn) if len(drawn) > 1 else drawn[0][None]


def _at_best(cuts: Cuts, weights: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return what the best cuts of weighted rows (b, n) give, (b, 7), and where the best cut is unknown, (b,).

    The columns are the threshold, the FPR and FNR of it on the unweighted fitted rows, the weights of the evaluated
    rows that it predicts wrongly, by label, and the weights of the fitted rows by label. Where `near_best` has left out
    a cut that may be the best, they are undefined.
    """
    fitted, evaluated = cuts.counts(weights)
    cut = cuts.best(fitted)
    below = np.take_along_axis(np.cumsum(evaluated, axis=-1), cut[:, None, None], axis=-1)[..., 0]
    wrong = evaluated[:, 0].sum(axis=-1) - below[:, 0], below[:, 1]
    found = np.column_stack([cuts.thresholds[cut], *cuts.rates_of_rows(cut), *wrong, fitted.sum(axis=-1)])
    return found, cut < 0


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
