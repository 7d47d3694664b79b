"""The assessment of a rule among more than two classes: its apparent and nested rates, and their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemble.decision.assessment import Candidate
from ensemble.decision.bootstrap import class_design_effects
from ensemble.decision.class_comparison import ClassComparison, ClassMeasured, class_widened
from ensemble.decision.class_objective import MEAN_CLASS_ERROR, ClassObjective
from ensemble.decision.class_offsets import class_objective
from ensemble.decision.class_refits import ACCURACY, MACRO_F1, MEAN_ERROR, PLACES, measures
from ensemble.decision.comparison import Difference, agreements, count_apart
from ensemble.decision.cross_fitting import ClassFoldRow, OofLogits, member_logit, of_score
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ClassRates, Floats, class_offsets, class_rates
from ensemble.decision.refits import Refittable, centred_interval, refit_errors

REPLICATES = 200
"""The number of replicates of the bootstrap that refits the offsets. They are fewer than for a threshold, because each
takes as many sweeps as there are classes; the 2.5 % quantile rests on five of them."""

FEW_IMAGES = 30
"""The number of images of a class below which the intervals are said not to hold for it."""

FEW_CLASS_GROUPS = 15
"""The number of groups with a class below which the intervals are said to be too narrow for it. In simulations of fixed
predictions, in groups of seven images, the interval of its error rate contains the truth 91 to 93 times in 100 with 3
to 8 groups, and 96 times with 15."""


@dataclass(frozen=True)
class ClassAssessment:
    """The rates of a rule among C > 2 classes on OOF rows, with 95 % intervals of the nested ones."""

    name: str  # in the tables
    objective: ClassObjective  # what the offsets minimise
    offsets: tuple[float, ...]  # (C,), of the rule's scores, fitted on all rows; the offsets that are deployed
    apparent: ClassRates  # fitted and evaluated on the same rows, hence optimistic
    nested: ClassRates  # each fold evaluated with the rule fitted on the others, pooled; without that optimism
    errors: tuple[Interval, ...]  # (C,), of the error rate of each class, 1 - recall
    precisions: tuple[Interval, ...]  # (C,)
    mean_error: Interval  # of the mean of the class error rates
    macro_f1: Interval
    accuracy: Interval
    refitted: bool  # whether the bootstrap refits the offsets; otherwise the nested predictions are kept fixed
    folds: tuple[ClassFoldRow, ...]  # the nested estimate fold by fold
    design_effects: tuple[float, ...]  # (C,), of groups on the class error rates, see bootstrap.design_effects
    difference: Difference | None = None  # of the objective's loss to that of the stack, on the same rows
    macro_f1_difference: Difference | None = None  # the rule's nested macro F1 minus that of the stack

    @property
    def loss(self) -> float:
        """The nested loss under the objective: mean class error, 1 - macro F1, or 1 - accuracy."""
        return self.objective.loss(self.nested)

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the loss."""
        return self.objective.loss_interval(self)

    @property
    def optimism(self) -> float:
        """The nested minus the apparent loss, the optimism of the apparent one; 0 where nothing is fitted."""
        return self.loss - self.objective.loss(self.apparent)

    @property
    def beats_chance(self) -> bool:
        """Whether the mean class error is below that of predictions without regard to the image, 1 - 1/C."""
        return self.mean_error.high < 1 - 1 / len(self.offsets)

    @property
    def few(self) -> tuple[int, ...]:
        """The classes with fewer than `FEW_IMAGES` images; intervals do not hold for them."""
        return tuple(c for c, n in enumerate(self.nested.counts) if n < FEW_IMAGES)


def assess_classes(
    candidates: Sequence[Candidate], groups: ArrayLike | None = None, seed: int = 0
) -> list[ClassAssessment]:
    """Assess rules among more than two classes on the same OOF rows, as `assessment.assess` does for two.

    Parameters
    ----------
    candidates : sequence of Candidate
        The others are compared with the first one.
    groups : int64 array (n,), optional
        Rows of one group are drawn together; if None, every row is a group.
    seed : int
        The seed of the bootstrap.
    """
    errors = _errors(candidates, groups, seed)
    reference = _nested_rates(candidates[0])
    assessments = []
    for j, candidate in enumerate(candidates):
        labels, y_pred = candidate.nested.labels, candidate.nested.y_pred
        measured = _measured(candidate, errors[j], groups)
        rates = measured.rates
        objective = class_objective(candidate.objective)
        differences = loss_differences(reference, rates, errors[j] - errors[0])
        loss, f1 = differences[PLACES[objective.kind]], differences[MACRO_F1]
        assessments.append(
            ClassAssessment(
                name=candidate.name,
                objective=objective,
                offsets=class_offsets(candidate.deployed.threshold),
                apparent=class_rates(labels, candidate.deployed(candidate.logits), len(rates.confusion)),
                nested=rates,
                errors=measured.errors,
                precisions=measured.precisions,
                mean_error=measured.mean_error,
                macro_f1=measured.macro_f1,
                accuracy=measured.accuracy,
                refitted=candidate.fitted,
                folds=candidate.nested.class_folds,
                design_effects=class_design_effects(labels, y_pred, groups, len(rates.confusion)),
                difference=loss if j else None,
                macro_f1_difference=-f1 if j else None,
            )
        )
    return assessments


def compare_class_nested(a: Candidate, b: Candidate, groups: ArrayLike | None = None, seed: int = 0) -> ClassComparison:
    """Compare two rules by their nested predictions on the same rows, with intervals that refit the offsets of both.

    The parameters are those of `assessment.compare_nested`.
    """
    errors, classes, labels = _errors((a, b), groups, seed), a.logits.shape[2], a.nested.labels
    of_a, of_b = _measured(a, errors[0], groups), _measured(b, errors[1], groups)
    differences = loss_differences(of_a.rates, of_b.rates, errors[1] - errors[0])
    return ClassComparison(
        a=of_a,
        b=of_b,
        errors=differences[:classes],
        mean_error=differences[MEAN_ERROR],
        macro_f1=-differences[MACRO_F1],
        accuracy=-differences[ACCURACY],
        agreement=agreements(labels, a.nested.y_pred, b.nested.y_pred, classes),
        apart=count_apart(a.nested.y_pred, b.nested.y_pred, groups),
    )


def member_class_report(oof: OofLogits, seed: int = 0) -> ClassAssessment:
    """Assess a single member among more than two classes, at the offsets that are fitted to its OOF logits.

    Parameters
    ----------
    oof : OofLogits
        Of one member.
    seed : int
        The seed of the bootstrap.
    """
    candidate = Candidate.of(oof.members[0], oof, of_score(member_logit(0)), MEAN_CLASS_ERROR)
    return assess_classes([candidate], oof.groups, seed)[0]


def loss_differences(a: ClassRates, b: ClassRates, errors: Floats) -> tuple[Difference, ...]:
    """Return the differences of the measures of two rules, B minus A, with their 95 % intervals (2C + 3,).

    Parameters
    ----------
    a, b : ClassRates
        On the same rows.
    errors : float64 array (r, 2C + 3)
        The errors of B less those of A in the same bootstrap replicates.
    """
    values = _measures_of(b) - _measures_of(a)
    return tuple(
        Difference(value, centred_interval(value, column, within=(-1.0, 1.0)))
        for value, column in zip(values.tolist(), errors.T, strict=True)
    )


def _measured(candidate: Candidate, errors: Floats, groups: ArrayLike | None) -> ClassMeasured:
    """Return the nested rates of a rule with the intervals of the bootstrap, widened where errors are few.

    Parameters
    ----------
    candidate : Candidate
    errors : float64 array (r, 2C + 3)
        The errors of the measures in bootstrap replicates.
    groups : int64 array (n,), optional
    """
    rates, nested = _nested_rates(candidate), candidate.nested
    pairs = zip(_measures_of(rates).tolist(), errors.T, strict=True)
    bootstrapped = ClassMeasured.of_losses(rates, [centred_interval(value, column) for value, column in pairs])
    return class_widened(bootstrapped, nested.labels, nested.y_pred, groups)


def _errors(candidates: Sequence[Candidate], groups: ArrayLike | None, seed: int) -> Floats:
    """Return the errors of the measures of each candidate in the same replicates, (candidates, replicates, 2C + 3).

    Candidates whose scores are the same, such as two kinds of stacker that agree, are refitted once.
    """
    distinct: list[Candidate] = []
    of_candidate = []
    for candidate in candidates:
        same = [j for j, other in enumerate(distinct) if _same(candidate, other)]
        of_candidate.append(same[0] if same else len(distinct))
        distinct += [] if same else [candidate]
    rules: list[Refittable] = [each.for_refits() for each in distinct]
    return refit_errors(rules, candidates[0].nested.labels, groups, seed, REPLICATES)[of_candidate]


def _same(a: Candidate, b: Candidate) -> bool:
    """Return whether two candidates have the same scores and cuts, on all rows and without each fold."""
    if (a.fitted, a.objective, a.deployed.threshold) != (b.fitted, b.objective, b.deployed.threshold):
        return False
    return np.array_equal(a.deployed.score(a.logits), b.deployed.score(b.logits)) and all(
        one.threshold == other.threshold
        and np.array_equal(one.inside, other.inside)
        and np.array_equal(one.scores, other.scores)
        for one, other in zip(a.nested.splits, b.nested.splits, strict=True)
    )


def _nested_rates(candidate: Candidate) -> ClassRates:
    return class_rates(candidate.nested.labels, candidate.nested.y_pred, candidate.logits.shape[2])


def _measures_of(rates: ClassRates) -> Floats:
    return measures(np.array(rates.confusion, np.float64))
