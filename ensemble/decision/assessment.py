"""What a rule is worth on OOF rows: apparent, nested, and how far chance can move it."""

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
from ensemble.decision.intervals import Interval, counting_intervals, new_set_interval
from ensemble.decision.objective import HTER, BoundedFnr, BoundedFpr, Objective
from ensemble.decision.rates import ErrorRates, Labels, auc, error_rates
from ensemble.decision.refits import Replicate, refit_interval, refit_replicates

REPLICATES = 1000
"""Of the bootstrap that fits the threshold anew."""

FEW_ERRORS = 30
"""With fewer of a class, a bootstrap promises too much: it cannot draw an error that has not been seen. The interval
then reaches as far as that of the counting alone does (Jeffreys)."""


@dataclass(frozen=True)
class Assessment:
    """A rule measured on OOF rows. A member's report is the assessment of its logit at its own threshold."""

    name: str
    threshold: float  # of the rule's score, fitted on all rows: the one to deploy
    apparent: ErrorRates  # fitted on all rows and scored on the same
    nested: ErrorRates  # every fold scored by the rule fitted without it, pooled: the honest figure
    fpr: Interval  # 95 %, as are the next two
    fnr: Interval
    interval: Interval  # of the HTER
    refitted: bool  # whether the intervals refit the threshold; if not, they are at the nested predictions
    auc: float  # of the nested scores, pooled
    folds: tuple[FoldRow, ...]
    difference: Difference | None = None  # its HTER less the stack's, on the same rows

    @property
    def optimism(self) -> float:
        """Nested less apparent HTER: what the apparent figure flatters itself by; 0 where nothing is fitted."""
        return self.nested.hter - self.apparent.hter

    def new_set_interval(self, n: int) -> Interval | None:
        """Return where the HTER measured on `n` new images falls 95 % of the time, at the class share of these rows.

        None for a single image: its HTER does not exist.
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
    """Measure a rule on OOF rows: fitted on all of them (apparent), and cross-fitted (nested).

    Parameters
    ----------
    name : str
        What the rule is called in the tables.
    oof : OofLogits
        The rows.
    rule : Rule
        Fitted k + 1 times.
    objective : Objective
        What its thresholds are best for.
    seed : int
        Of the bootstrap.
    refit : bool
        Whether the threshold is fitted anew in each replicate; else the predictions are kept.
    stacked : int8 array (n,), optional
        The nested predictions of the stack, to compare with.
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
    """Return what `assess` returns, of a rule that is fitted already: on all rows, and cross-fitted."""
    rates = error_rates(oof.labels, nested.y_pred)
    if refit:
        pair = rates.fpr, rates.fnr
        errors = [replicate.errors for replicate in replicates_of(oof, deployed, nested, objective, seed, REPLICATES)]
        fpr, fnr, hter = (refit_interval(pair, errors, what) for what in (_FPR_ALONE, _FNR_ALONE, HTER))
        if min(round(rates.fpr * rates.n_neg), round(rates.fnr * rates.n_pos)) < FEW_ERRORS:
            counted = counting_intervals(rates)
            fpr, fnr, hter = (_both(*pair) for pair in zip((fpr, fnr, hter), counted, strict=True))
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


def _both(a: Interval, b: Interval) -> Interval:
    return Interval(min(a.low, b.low), max(a.high, b.high))


_FPR_ALONE, _FNR_ALONE = BoundedFnr(1.0), BoundedFpr(1.0)
"""Objectives whose loss is one of the two rates."""


def replicates_of(
    oof: OofLogits, deployed: FittedRule, nested: CrossFit, objective: Objective, seed: int, replicates: int
) -> Iterable[Replicate]:
    """Return bootstrap worlds of a fitted rule (decision/refits.py)."""
    scores = deployed.score(oof.logits)
    return refit_replicates(scores, oof.labels, nested.splits, oof.groups, objective, seed, replicates)


def member_report(name: str, table: FoldTable, logits: ArrayLike, seed: int = 0) -> Assessment:
    """Assess one member by its OOF logits (n,) at its own threshold; needs no stacker.

    Raises
    ------
    ArtifactError, DataError
        As `OofLogits`.

    Examples
    --------
    >>> table = FoldTable(np.arange(4), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    >>> report = member_report("a", table, [-1.0, 2.0, -2.0, 5.0])
    >>> report.threshold, report.nested.hter, report.auc
    (0.5, 0.0, 1.0)
    """
    oof = OofLogits(table, (name,), np.asarray(logits, np.float64)[:, None])
    return assess(name, oof, of_score(member_logit(0)), seed=seed, refit=True)
