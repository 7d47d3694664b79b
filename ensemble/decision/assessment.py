"""The assessment of a rule on OOF rows: its apparent and nested error rates, and their 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemble.data.folds import FoldTable
from ensemble.decision.comparison import Difference, differences, measure_predictions
from ensemble.decision.cross_fitting import (
    CrossFit,
    FittedRule,
    FoldRow,
    OofLogits,
    Rule,
    cross_fit,
    member_logit,
    of_score,
)
from ensemble.decision.intervals import Interval, chance_interval, counting_intervals, new_set_interval
from ensemble.decision.objective import HTER, BoundedFnr, BoundedFpr, Objective
from ensemble.decision.rates import ErrorRates, Labels, auc, error_rates
from ensemble.decision.refits import Replicate, refit_interval, refit_replicates

REPLICATES = 1000
"""The number of replicates of the bootstrap that refits the threshold. The 2.5 % quantile then rests on 25 of them."""

FEW_ERRORS = 30
"""The number of errors on either class below which the bootstrap interval is too narrow, since the bootstrap cannot
draw an error that was not observed. The interval is then widened to cover that of the counts alone (Jeffreys)."""


@dataclass(frozen=True)
class Assessment:
    """The error rates of a rule on OOF rows, with intervals.

    A member's report is the assessment of the rule that applies a fitted threshold to the member's logit.
    """

    name: str  # in the tables
    threshold: float  # of the rule's score, fitted on all rows; the threshold that is deployed
    apparent: ErrorRates  # fitted and evaluated on the same rows, hence optimistic
    nested: ErrorRates  # each fold evaluated with the rule fitted on the others, pooled; without that optimism
    fpr: Interval  # 95 % interval of the nested FPR
    fnr: Interval  # 95 % interval of the nested FNR
    interval: Interval  # 95 % interval of the nested HTER
    refitted: bool  # whether the bootstrap refits the threshold; otherwise the nested predictions are kept fixed
    auc: float  # of the nested scores, pooled over the folds
    folds: tuple[FoldRow, ...]  # the nested estimate fold by fold
    difference: Difference | None = None  # the rule's nested HTER minus the stack's, on the same rows

    @property
    def optimism(self) -> float:
        """Nested minus apparent HTER, the optimism of the apparent HTER; 0 where nothing is fitted."""
        return self.nested.hter - self.apparent.hter

    @property
    def chance_interval(self) -> Interval:
        """The 95 % interval by which the AUC is compared with chance; see `intervals.chance_interval`."""
        return chance_interval(self.auc, self.nested.n_neg, self.nested.n_pos)

    @property
    def beats_chance(self) -> bool:
        """Whether the AUC is above that of a random order of the rows, 0.5, beyond chance."""
        return self.chance_interval.low > 0.5

    def new_set_interval(self, n: int) -> Interval | None:
        """Return the 95 % prediction interval of the HTER on `n` new images with the class shares of these rows.

        Return None if `n` is below 2: HTER needs an image of each label.
        """
        if n < 2:
            return None
        n_neg = min(max(round(n * self.nested.n_neg / self.nested.n), 1), n - 1)
        return new_set_interval(self.nested, n_neg, n - n_neg)


def assess(
    name: str,
    oof: OofLogits,
    rule: Rule,
    objective: Objective = HTER,
    seed: int = 0,
    refit: bool = False,
    stacked: Labels | None = None,
) -> Assessment:
    """Assess a rule on OOF rows: fitted on all of them (apparent), and cross-fitted (nested).

    Parameters
    ----------
    name : str
        The name of the rule in the tables.
    oof : OofLogits
        The rows.
    rule : Rule
        It is fitted k + 1 times: on all rows, and without each of the k folds.
    objective : Objective
        What the thresholds minimise.
    seed : int
        The seed of the bootstrap.
    refit : bool
        Whether the threshold is refitted in each replicate; otherwise the nested predictions are kept fixed.
    stacked : int8 array (n,), optional
        The nested predictions of the stack, for `Assessment.difference`.
    """
    rows = oof.rows
    return assess_fitted(
        name, oof, rule(rows, objective), cross_fit(rows, rule, objective), objective, seed, refit, stacked
    )


def assess_fitted(
    name: str,
    oof: OofLogits,
    deployed: FittedRule,
    nested: CrossFit,
    objective: Objective,
    seed: int,
    refit: bool,
    stacked: Labels | None = None,
) -> Assessment:
    """Assess, as `assess` does, a rule that is already fitted on all rows (`deployed`) and cross-fitted (`nested`)."""
    rates = error_rates(oof.labels, nested.y_pred)
    if refit:
        pair = rates.fpr, rates.fnr
        errors = [replicate.errors for replicate in replicates_of(oof, deployed, nested, objective, seed, REPLICATES)]
        fpr, fnr, hter = (refit_interval(pair, errors, loss) for loss in (_FPR_ALONE, _FNR_ALONE, HTER))
        if min(round(rates.fpr * rates.n_neg), round(rates.fnr * rates.n_pos)) < FEW_ERRORS:
            counted = counting_intervals(rates)
            fpr, fnr, hter = (_hull(*pair) for pair in zip((fpr, fnr, hter), counted, strict=True))
    else:
        measured = measure_predictions(oof.labels, nested.y_pred, oof.groups, seed)
        fpr, fnr, hter = measured.fpr, measured.fnr, measured.hter
    return Assessment(
        name=name,
        threshold=float(deployed.threshold),
        apparent=error_rates(oof.labels, deployed(oof.logits)),
        nested=rates,
        fpr=fpr,
        fnr=fnr,
        interval=hter,
        refitted=refit,
        auc=auc(nested.scores, oof.labels),
        folds=nested.folds,
        difference=None if stacked is None else differences(oof.labels, stacked, nested.y_pred, oof.groups, seed)[2],
    )


def _hull(a: Interval, b: Interval) -> Interval:
    """Return the smallest interval that contains both."""
    return Interval(min(a.low, b.low), max(a.high, b.high))


_FPR_ALONE, _FNR_ALONE = BoundedFnr(1.0), BoundedFpr(1.0)
"""Two objectives whose losses are the FPR and the FNR: the bound of 1 on the other rate always holds."""


def replicates_of(
    oof: OofLogits, deployed: FittedRule, nested: CrossFit, objective: Objective, seed: int, replicates: int
) -> Iterable[Replicate]:
    """Return the bootstrap replicates of a fitted rule, each with refitted thresholds (see decision/refits.py)."""
    scores = deployed.score(oof.logits)
    return refit_replicates(scores, oof.labels, nested.splits, oof.groups, objective, seed, replicates)


def member_report(name: str, table: FoldTable, logits: ArrayLike, seed: int = 0) -> Assessment:
    """Assess one member on its own: the rule is a threshold that is fitted to its OOF logits.

    Parameters
    ----------
    name : str
        The member's name.
    table : FoldTable
        The labels and folds of the n rows.
    logits : float64 array (n,)
        The member's OOF logits, finite.
    seed : int
        The seed of the bootstrap.

    Raises
    ------
    ArtifactError, DataError
        The table or the logits do not meet the conditions of `OofLogits`.

    Examples
    --------
    >>> table = FoldTable(np.arange(4), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    >>> report = member_report("a", table, [-1.0, 2.0, -2.0, 5.0])
    >>> report.threshold, report.nested.hter, report.auc
    (0.5, 0.0, 1.0)
    """
    oof = OofLogits(table, (name,), np.asarray(logits, np.float64)[:, None])
    return assess(name, oof, of_score(member_logit(0)), seed=seed, refit=True)
