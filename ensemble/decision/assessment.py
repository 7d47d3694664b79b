"""The assessment of a rule on OOF rows: its apparent and nested error rates, and their 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.data.folds import FoldTable
from ensemble.decision.bootstrap import design_effects
from ensemble.decision.class_objective import ClassObjective
from ensemble.decision.class_offsets import class_objective
from ensemble.decision.class_refits import ClassFixedRule, ClassRefitRule
from ensemble.decision.comparison import Comparison, Difference, Measured, comparison_of
from ensemble.decision.cross_fitting import (
    CrossFit,
    FittedRule,
    FoldRow,
    OofLogits,
    Rule,
    cross_fit,
    member_logit,
    of_score,
    stack,
)
from ensemble.decision.fold_offsets import aligned, find_fold_offsets
from ensemble.decision.intervals import Interval, chance_interval, new_set_interval, widened
from ensemble.decision.objective import HTER, BoundedFnr, BoundedFpr, Objective
from ensemble.decision.rates import ErrorRates, Floats, class_offsets, error_rates, one_threshold
from ensemble.decision.refits import FixedRule, RefitRule, Refittable, refit_errors, refit_interval

REPLICATES = 1000
"""The number of replicates of the bootstrap that refits the threshold. The 2.5 % quantile then rests on 25 of them."""


LEAST_DEVIATION = 0.1
"""The share of the nested loss by which it must exceed that over random parts, so that a difference beyond chance is
reported."""


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
    auc: float  # of the nested scores: the mean over the folds, whose scores may have different scales
    folds: tuple[FoldRow, ...]  # the nested estimate fold by fold
    design_effects: tuple[float, float] = (1.0, 1.0)  # of groups on the FPR and the FNR, see bootstrap.design_effects
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

        The new images are assumed to come in groups like these rows.

        Return None if `n` is below 2: HTER needs an image of each label.
        """
        if n < 2:
            return None
        n_neg = min(max(round(n * self.nested.n_neg / self.nested.n), 1), n - 1)
        return new_set_interval(self.nested, n_neg, n - n_neg, self.design_effects)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A rule on OOF rows, fitted on all of them and cross-fitted, to be assessed."""

    name: str  # in the tables
    logits: Floats  # (n, m) or (n, m, C), what the rule is applied to
    deployed: FittedRule
    nested: CrossFit
    fitted: bool  # whether the rule fits the threshold, or the offsets, of its score
    objective: Objective | ClassObjective  # what the thresholds, or offsets, minimise

    @classmethod
    def of(cls, name: str, oof: OofLogits, rule: Rule, objective: Objective | ClassObjective = HTER) -> Candidate:
        """Fit a rule k + 1 times: on all rows, and without each of the k folds."""
        nested = cross_fit(oof.rows, rule, objective)
        return cls(name, oof.logits, rule(oof.rows, objective), nested, rule.threshold is None, objective)

    def reordered(self, order: NDArray[np.int64]) -> Candidate:
        """Return the same rule on the rows in another order (n,)."""
        nested, logits = self.nested, self.logits[order]
        fold_of = nested.splits[0].fold_of[order]
        splits = (replace(each, fold_of=fold_of, logits=logits) for each in nested.splits)
        return replace(self, logits=logits, nested=CrossFit(nested.labels[order], nested.y_pred[order], tuple(splits)))

    def is_same(self, other: Candidate) -> bool:
        """Return whether the other is known to have the same scores and cuts, on all rows and without each fold.

        Two kinds of stacker that agree are the same stacker; see `Rows.any_stacker`.
        """
        return (
            (self.fitted, self.objective, self.deployed) == (other.fitted, other.objective, other.deployed)
            and self.logits is other.logits
            and self.nested.splits[0].fold_of is other.nested.splits[0].fold_of
            and [each.fitted for each in self.nested.splits] == [each.fitted for each in other.nested.splits]
        )

    def for_refits(self, groups: ArrayLike | None = None) -> Refittable:
        """Return the rule as bootstrap replicates of the rows, or of groups (n,), need it.

        The predictions of a vote are kept. The groups change no result, only how fast it is computed (`RefitRule`).
        """
        nested = self.nested

        def scores() -> Floats:
            return self.deployed.score(self.logits)

        if self.logits.ndim > 2:
            if not self.fitted:
                return ClassFixedRule(nested.y_pred, nested.labels, self.logits.shape[2])
            offsets, objective = class_offsets(self.deployed.threshold), class_objective(self.objective)
            return ClassRefitRule(scores, nested.labels, offsets, nested.splits, objective)
        if not self.fitted:
            return FixedRule(nested.y_pred, nested.labels)
        assert not isinstance(self.objective, ClassObjective), "fit_cut refuses it"
        return RefitRule(scores, nested.labels, nested.splits, self.objective, groups)


Assessed = TypeVar("Assessed")
"""An `Assessment`, or a `class_assessment.ClassAssessment`."""


@dataclass(frozen=True)
class AssessedSet(Generic[Assessed]):
    """The assessments of a `CandidateSet`, by the same names."""

    stacked: Assessed
    members: tuple[Assessed, ...]
    baselines: tuple[Assessed, ...]
    stackers: tuple[Assessed, ...]
    parted: Assessed


@dataclass(frozen=True, eq=False)
class CandidateSet:
    """The rules that are assessed with a decision, of two classes and of more."""

    stacked: Candidate
    members: tuple[Candidate, ...]  # each with the cut that is fitted to its logits alone
    baselines: tuple[Candidate, ...]
    stackers: tuple[Candidate, ...]  # every kind of stacker; empty for a single member
    parted: Candidate  # the stack, cross-fitted over random parts of the rows instead of the folds

    @classmethod
    def of(
        cls,
        oof: OofLogits,
        kept: OofLogits,
        rule: Rule,
        stackers: Iterable[str],
        baselines: Sequence[tuple[str, Rule]],
        objective: Objective | ClassObjective,
        seed: int,
    ) -> CandidateSet:
        """Fit all of them.

        Parameters
        ----------
        oof, kept : OofLogits
            Of all members, and of those in the stack.
        rule : Rule
            Of the deployed stack.
        stackers : iterable of str
            Every kind of stacker, the simplest first.
        baselines : sequence of (str, Rule)
            By their names in the tables.
        objective : Objective or ClassObjective
        seed : int
            The seed of the random parts.
        """
        return cls(
            stacked=Candidate.of("stack", kept, rule, objective),
            members=tuple(
                Candidate.of(name, oof, of_score(member_logit(j)), objective) for j, name in enumerate(oof.members)
            ),
            baselines=tuple(Candidate.of(name, kept, other, objective) for name, other in baselines),
            stackers=tuple(
                Candidate.of(name, kept, stack(name), objective) for name in stackers if len(kept.members) > 1
            ),
            parted=Candidate.of("stack", kept.in_random_parts(seed), rule, objective),
        )

    def assessed(
        self,
        assess: Callable[[Sequence[Candidate], ArrayLike | None, int], list[Assessed]],
        groups: ArrayLike | None,
        seed: int,
    ) -> AssessedSet[Assessed]:
        """Return the assessments by `assess` or `class_assessment.assess_classes`, all compared with the stack."""
        parts = [(self.stacked,), self.members, self.baselines, self.stackers, (self.parted,)]
        each = iter(assess([candidate for part in parts for candidate in part], groups, seed))
        (stacked,), members, baselines, stackers, (parted,) = (tuple(next(each) for _ in part) for part in parts)
        return AssessedSet(stacked, members, baselines, stackers, parted)


def repeated_losses(
    oof: OofLogits,
    rule: Rule,
    objective: Objective | ClassObjective,
    loss: Callable[[CrossFit], float],
    repeats: int,
    seed: int,
) -> tuple[float, ...]:
    """Return the nested loss of a rule over other random partitions of the rows into as many folds, (repeats,)."""
    parts = (oof.in_random_parts(seed, repeat).rows for repeat in range(repeats))
    return tuple(loss(cross_fit(rows, rule, objective)) for rows in parts)


def assess(candidates: Sequence[Candidate], groups: ArrayLike | None = None, seed: int = 0) -> list[Assessment]:
    """Assess rules on the same OOF rows: fitted on all of them (apparent), and cross-fitted (nested).

    All rules have the same bootstrap replicates of the rows, in which their thresholds are refitted. So the interval of
    a difference between two rules includes that their thresholds are fitted, and what they have in common cancels.

    Parameters
    ----------
    candidates : sequence of Candidate
        The others are compared with the first one.
    groups : int64 array (n,), optional
        Rows of one group are drawn together; if None, every row is a group.
    seed : int
        The seed of the bootstrap.
    """
    labels, (distinct, which) = candidates[0].nested.labels, _distinct(candidates)
    errors = refit_errors((each.for_refits(groups) for each in distinct), labels, groups, seed, REPLICATES)[which]
    reference = error_rates(labels, candidates[0].nested.y_pred)
    assessments = []
    for j, candidate in enumerate(candidates):
        rates = error_rates(labels, candidate.nested.y_pred)
        fpr, fnr, hter = nested_intervals(candidate.nested, errors[j], groups)
        assessments.append(
            Assessment(
                name=candidate.name,
                threshold=one_threshold(candidate.deployed.threshold),
                apparent=error_rates(labels, candidate.deployed(candidate.logits)),
                nested=rates,
                fpr=fpr,
                fnr=fnr,
                interval=hter,
                refitted=candidate.fitted,
                auc=candidate.nested.auc,
                folds=candidate.nested.folds,
                design_effects=design_effects(labels, candidate.nested.y_pred, groups),
                difference=refit_differences(reference, rates, errors[j] - errors[0])[2] if j else None,
            )
        )
    return assessments


def _distinct(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[int]]:
    """Return the candidates without repetitions, and for each candidate which of these it is."""
    distinct, which = list[Candidate](), list[int]()
    for candidate in candidates:
        same = [j for j, other in enumerate(distinct) if candidate.is_same(other)]
        which.append(same[0] if same else len(distinct))
        distinct += [] if same else [candidate]
    return distinct, which


def compare_nested(a: Candidate, b: Candidate, groups: ArrayLike | None = None, seed: int = 0) -> Comparison:
    """Compare two rules by their nested predictions on the same rows, with intervals as in `assess`.

    Parameters
    ----------
    a, b : Candidate
        On the same rows in the same order; their folds and objectives may differ.
    groups : int64 array (n,), optional
        Rows of one group are drawn together; if None, every row is a group.
    seed : int
        The seed of the bootstrap.

    Returns
    -------
    Comparison
        Differences are B minus A; a negative difference favours B.
    """
    y_true = a.nested.labels
    errors = refit_errors((each.for_refits(groups) for each in (a, b)), y_true, groups, seed, REPLICATES)
    of_a, of_b = (
        Measured(error_rates(y_true, each.nested.y_pred), *nested_intervals(each.nested, of_one, groups))
        for each, of_one in zip((a, b), errors, strict=True)
    )
    differences = refit_differences(of_a.rates, of_b.rates, errors[1] - errors[0])
    return comparison_of(of_a, of_b, differences, y_true, a.nested.y_pred, b.nested.y_pred, groups)


def nested_intervals(nested: CrossFit, errors: Floats, groups: ArrayLike | None) -> tuple[Interval, Interval, Interval]:
    """Return the 95 % intervals of the nested FPR, FNR and HTER.

    Parameters
    ----------
    nested : CrossFit
    errors : float64 array (r, 2)
        The errors of its estimates in bootstrap replicates.
    groups : int64 array (n,), optional
    """
    rates = error_rates(nested.labels, nested.y_pred)
    fpr, fnr, hter = (refit_interval((rates.fpr, rates.fnr), errors, loss) for loss in (_FPR_ALONE, _FNR_ALONE, HTER))
    return widened((fpr, fnr, hter), rates, design_effects(nested.labels, nested.y_pred, groups))


def refit_differences(a: ErrorRates, b: ErrorRates, errors: Floats) -> tuple[Difference, Difference, Difference]:
    """Return the differences in FPR, FNR and HTER of two rules, B minus A, with their 95 % intervals.

    Parameters
    ----------
    a, b : ErrorRates
        On the same rows.
    errors : float64 array (r, 2)
        The errors of B less those of A in the same bootstrap replicates.
    """
    values = b.fpr - a.fpr, b.fnr - a.fnr
    fpr, fnr, hter = (
        Difference(loss.loss(*values), refit_interval(values, errors, loss, within=(-1.0, 1.0)))
        for loss in (_FPR_ALONE, _FNR_ALONE, HTER)
    )
    return fpr, fnr, hter


def deviation_note(
    measure: str, over_folds: float, over_parts: float, difference: Difference | None, is_error: bool = True
) -> tuple[str, ...]:
    """Return a sentence if the stack is worse over the folds than over random parts, beyond chance and by much.

    Parameters
    ----------
    measure : str
        The name of the measure, such as "HTER".
    over_folds, over_parts : float
        The nested loss over the folds and over random parts of the same rows.
    difference : Difference
        The second minus the first.
    is_error : bool
        Whether the measure is the loss; otherwise it is 1 minus the loss.
    """
    assert difference is not None
    if difference.interval.high >= 0 or -difference.value < LEAST_DEVIATION * over_folds:
        return ()
    if not is_error:
        over_folds, over_parts = 1 - over_folds, 1 - over_parts
    return (
        f"the fold models differ: the nested {measure} is {over_folds:.4f} over the folds and "
        f"{over_parts:.4f} over random parts of the same rows. A fold model deviates (see the fold tables "
        f"of the members), and the nested and expected figures are too {'high' if is_error else 'low'}; train longer",
    )


_FPR_ALONE, _FNR_ALONE = BoundedFnr(1.0), BoundedFpr(1.0)
"""Two objectives whose losses are the FPR and the FNR: the bound of 1 on the other rate always holds."""


def member_report(name: str, table: FoldTable, logits: ArrayLike, seed: int = 0) -> Assessment:
    """Assess one member on its own: the rule is a threshold that is fitted to its OOF logits.

    Offsets between its fold models are subtracted (see fold_offsets.py).

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
    oof = aligned(oof, find_fold_offsets(oof))
    return assess([Candidate.of(name, oof, of_score(member_logit(0)))], oof.groups, seed=seed)[0]
