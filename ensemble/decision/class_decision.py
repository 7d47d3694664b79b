"""The deployed decision among more than two classes: a stacker and offsets, with the assessment of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemble.decision.assessment import CandidateSet, deviation_note, repeated_losses
from ensemble.decision.class_assessment import FEW_CLASS_GROUPS, FEW_IMAGES, ClassAssessment, assess_classes
from ensemble.decision.class_objective import ClassObjective
from ensemble.decision.class_stacker import CLASS_STACKERS, ClassStacker
from ensemble.decision.cross_fitting import (
    CrossFit,
    OofLogits,
    Rule,
    member_logit,
    of_score,
    plurality_vote,
    stack,
)
from ensemble.decision.intervals import Interval
from ensemble.decision.label_issues import CALIBRATION_FOLDS, confident_joint
from ensemble.decision.label_noise import ClassNoise, class_noise
from ensemble.decision.rates import ClassRates, Labels, apply_offsets, class_rates
from ensemble.decision.votes import plurality
from ensemble.errors import printable

SHOWN = 5
"""The number of classes that a note names."""


@dataclass(frozen=True)
class ClassDecision:
    """A stacker and class offsets, which turn member logits into class indices, and their assessment.

    `members` has an assessment of every member, `stacker.members` the names of those in the stack.
    """

    kind: str  # of the stacker, a key of `CLASS_STACKERS`
    stacker: ClassStacker
    objective: ClassObjective
    views: tuple[str, ...]  # the views over which member logits are averaged, both here and in prediction
    stacked: ClassAssessment  # of the stack
    members: tuple[ClassAssessment, ...]  # each at the offsets that are fitted to its logits alone
    baselines: tuple[ClassAssessment, ...]  # members at their greatest logit, and the plurality vote
    stackers: tuple[ClassAssessment, ...]  # every kind of stacker, the simplest first; empty for a single member
    repeated: tuple[float, ...]  # nested loss over each of the requested other partitions of the rows
    noise: ClassNoise | None = None  # of the labels; None where it is not known
    notes: tuple[str, ...] = ()  # what the user should know about the members and the classes, one sentence each

    def __post_init__(self) -> None:
        if missing := set(self.stacker.members) - {member.name for member in self.members}:
            raise ValueError(f"members of the stack are not assessed: {sorted(missing)}")

    @property
    def classes(self) -> int:
        """The number of classes C."""
        return len(self.offsets)

    @property
    def offsets(self) -> tuple[float, ...]:
        """The offsets of the stacked logits (C,), fitted on all rows."""
        return self.stacked.offsets

    @property
    def apparent(self) -> ClassRates:
        """The apparent rates of the stack."""
        return self.stacked.apparent

    @property
    def nested(self) -> ClassRates:
        """The nested rates of the stack."""
        return self.stacked.nested

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the stack's loss under the objective."""
        return self.stacked.interval

    @property
    def optimism(self) -> float:
        """The nested minus the apparent loss of the stack."""
        return self.stacked.optimism

    @property
    def member_offsets(self) -> tuple[tuple[float, ...], ...]:
        """The offsets at which `stacker.members` vote, in that order, (m, C)."""
        offsets = {member.name: member.offsets for member in self.members}
        return tuple(offsets[name] for name in self.stacker.members)

    def predict(self, logits: ArrayLike) -> Labels:
        """Return the predicted classes (n,) of member logits (n, m, C)."""
        return apply_offsets(self.stacker.apply(logits), self.offsets)

    def votes(self, logits: ArrayLike) -> tuple[Labels, Labels]:
        """Return the members' votes (n, m) on logits (n, m, C), and the class with most of them (n,)."""
        x = np.asarray(logits, np.float64)
        score = plurality(self.member_offsets)
        return apply_offsets(x, self.member_offsets), apply_offsets(score(x), np.zeros(self.classes))


def fit_kept_members(
    oof: OofLogits,
    kept: OofLogits,
    views: Iterable[str],
    seed: int,
    objective: ClassObjective,
    stacker: str,
    repeats: int,
    notes: tuple[str, ...],
    classes: Sequence[str] | None = None,
) -> ClassDecision:
    """Fit a stacker and offsets on all OOF rows, and assess them, the members and the baselines.

    Parameters
    ----------
    oof, kept : OofLogits
        Of all members, and of those in the stack.
    views, seed, objective, stacker, repeats, classes
        As in `decision.fit_decision`.
    notes : tuple of str
        On the members, for `ClassDecision.notes`.
    """
    rule, kind = stack(stacker), stacker if len(kept.members) > 1 else "mean"
    rules = CandidateSet.of(oof, kept, rule, CLASS_STACKERS, _baselines(kept), objective, seed)
    assessed = rules.assessed(assess_classes, oof.groups, seed)
    stacked, parted = assessed.stacked, assessed.parted

    def loss(nested: CrossFit) -> float:
        return objective.loss(class_rates(nested.labels, nested.y_pred, kept.classes))

    fitted = kept.rows.any_stacker(kind)
    assert isinstance(fitted, ClassStacker)
    return ClassDecision(
        kind=kind,
        stacker=fitted,
        objective=objective,
        views=tuple(views),
        stacked=stacked,
        members=assessed.members,
        baselines=assessed.baselines,
        stackers=assessed.stackers,
        repeated=repeated_losses(kept, rule, objective, loss, repeats, seed),
        noise=_noise(rules.stacked.nested, kept.classes, seed),
        notes=notes
        + deviation_note(objective.measure, stacked.loss, parted.loss, parted.difference, objective.is_error)
        + _few_note(stacked, classes)
        + _few_groups_note(oof.labels, oof.groups, stacked.few, classes),
    )


def _baselines(oof: OofLogits) -> list[tuple[str, Rule]]:
    """Return the baselines by name: each member at its greatest logit, and the plurality vote."""
    zeros = (0.0,) * oof.classes
    at_argmax = [(f"{name} without offsets", of_score(member_logit(j), zeros)) for j, name in enumerate(oof.members)]
    return at_argmax if len(at_argmax) == 1 else [*at_argmax, ("plurality vote", plurality_vote(oof.classes))]


def _noise(nested: CrossFit, classes: int, seed: int) -> ClassNoise | None:
    """Return what confident learning says of the labels, by the nested scores; None where a class has too few rows."""
    if np.bincount(nested.labels, minlength=classes).min() < CALIBRATION_FOLDS:
        return None
    return class_noise(confident_joint(nested.margins, nested.labels, seed))


def _few_note(stacked: ClassAssessment, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Return a sentence that names the classes with few images, if there are any."""
    if not stacked.few:
        return ()
    counts = _counted([(c, stacked.nested.counts[c]) for c in stacked.few], classes)
    return (
        f"some classes have fewer than {FEW_IMAGES} images: {counts}. The intervals of their rates, of the class error "
        "and of the macro F1 do not hold; collect more images of them",
    )


def _few_groups_note(
    labels: Labels, groups: ArrayLike | None, few: Sequence[int], classes: Sequence[str] | None
) -> tuple[str, ...]:
    """Return a sentence that names the classes with few groups, except those with few images, if there are any."""
    if groups is None:
        return ()
    of_row = np.asarray(groups)
    numbers = [(int(c), np.unique(of_row[labels == c]).size) for c in np.unique(labels) if c not in few]
    counts = _counted([(c, n) for c, n in numbers if n < FEW_CLASS_GROUPS], classes)
    if not counts:
        return ()
    return (
        f"some classes are in fewer than {FEW_CLASS_GROUPS} groups: {counts}. The intervals of their rates, of the "
        "class error and of the macro F1 are too narrow; collect images of more groups",
    )


def _counted(numbers: Sequence[tuple[int, int]], classes: Sequence[str] | None) -> str:
    """Return the names of the classes with their numbers, the smallest first; of many classes, the first ones."""
    ordered = sorted(numbers, key=lambda each: each[1])
    shown = ", ".join(f"{printable(classes[c]) if classes else c} ({n})" for c, n in ordered[:SHOWN])
    return shown + (f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else "")
