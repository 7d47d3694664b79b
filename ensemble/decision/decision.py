"""The deployed decision: a stacker and a threshold, with the assessment of them, of the members and of baselines."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import ArrayLike

from ensemble.decision.assessment import (
    Assessment,
    Candidate,
    CandidateSet,
    assess,
    deviation_note,
    repeated_losses,
)
from ensemble.decision.class_decision import ClassDecision, fit_kept_members
from ensemble.decision.class_objective import ClassObjective
from ensemble.decision.class_offsets import class_objective
from ensemble.decision.cross_fitting import (
    MAJORITY_VOTE,
    CrossFit,
    OofLogits,
    Rule,
    cross_fit,
    member_logit,
    of_score,
    stack,
)
from ensemble.decision.fold_offsets import FoldOffset, aligned, find_fold_offsets, offsets_of
from ensemble.decision.intervals import Interval
from ensemble.decision.label_noise import NoiseBound, bound_noise
from ensemble.decision.objective import HTER, Objective, WeightedError
from ensemble.decision.rates import ErrorRates, Floats, Labels, auc, error_rates
from ensemble.decision.refits import RefitRule, Replicate, refit_replicates
from ensemble.decision.stacker import STACKERS, Stacker
from ensemble.decision.threshold import fit_thresholds
from ensemble.decision.votes import vote_share
from ensemble.errors import DataError

COSTS = tuple(WeightedError(cost, 10 - cost) for cost in range(1, 10))
"""The objectives of the expected-performance curve. The cost of an FPR runs from 1 to 9, and that of an FNR is the rest
of 10."""

LEAST_IMAGES = 300
"""The number of labelled images below which the expected HTER of a label file is said to be too high. In simulations it
is with 150 images and is not with 500 (tests/simulations/README.md)."""

FEW_GROUPS = 60
"""The number of groups of a class below which intervals are said to be too narrow. In simulations
those of the nested HTER are with 12 groups, and those of the expected HTER with 48."""


@dataclass(frozen=True)
class CostRow:
    """A point of the expected-performance curve: the threshold for one cost, and the nested error rates."""

    cost_fpr: int  # 1 to 9; the cost of an FNR is 10 - cost_fpr
    threshold: float  # fitted on all rows
    rates: ErrorRates  # nested: each fold at the threshold that was fitted on the others

    @property
    def loss(self) -> float:
        """The weighted error, in [0, 1]."""
        return WeightedError(self.cost_fpr, 10 - self.cost_fpr).loss_of(self.rates)


@dataclass(frozen=True)
class Decision:
    """A stacker and a threshold, which turn member logits into labels, and their assessment.

    `members` has an assessment of every member, `stacker.members` the names of those in the stack.
    """

    kind: str  # of the stacker, a key of `STACKERS`
    stacker: Stacker
    objective: Objective
    views: tuple[str, ...]  # the views over which member logits are averaged, both here and in prediction
    stacked: Assessment  # of the stack
    members: tuple[Assessment, ...]  # each at the threshold that is fitted to its logit alone
    baselines: tuple[Assessment, ...]  # members at probability 0.5, and majority votes
    stackers: tuple[Assessment, ...]  # every kind of stacker, the simplest first; empty for a single member
    curve: tuple[CostRow, ...]  # the expected-performance curve of the stack
    repeated: tuple[float, ...]  # nested HTER over each of the requested other partitions of the rows
    noise: NoiseBound | None = None  # of the labels; None where there are too few rows, and in files of former versions
    notes: tuple[str, ...] = ()  # what the user should know about the members, one sentence each
    offsets: tuple[FoldOffset, ...] = ()  # of the members whose fold models differ; subtracted from their logits

    def __post_init__(self) -> None:
        if missing := set(self.stacker.members) - {member.name for member in self.members}:
            raise ValueError(f"members of the stack are not assessed: {sorted(missing)}")

    @property
    def threshold(self) -> float:
        """The threshold of the stacked logit, fitted on all rows."""
        return self.stacked.threshold

    @property
    def apparent(self) -> ErrorRates:
        """The apparent error rates of the stack."""
        return self.stacked.apparent

    @property
    def nested(self) -> ErrorRates:
        """The nested error rates of the stack."""
        return self.stacked.nested

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the stack's HTER."""
        return self.stacked.interval

    @property
    def optimism(self) -> float:
        """The nested minus the apparent HTER of the stack."""
        return self.stacked.optimism

    @property
    def member_thresholds(self) -> tuple[float, ...]:
        """The thresholds at which `stacker.members` vote, in that order."""
        thresholds = {member.name: member.threshold for member in self.members}
        return tuple(thresholds[name] for name in self.stacker.members)

    def aligned(self, oof: OofLogits) -> OofLogits:
        """Return OOF logits less the offsets of their fold models, as the decision was fitted on them."""
        return aligned(oof, self.offsets)

    def aligned_folds(self, fold_logits: Floats) -> Floats:
        """Return the logits (n, m, k) of the stack's members and fold models less the offsets of the fold models."""
        if not self.offsets:
            return fold_logits
        return fold_logits - offsets_of(self.stacker.members, self.offsets, fold_logits.shape[2])

    def votes(self, logits: ArrayLike) -> tuple[Labels, Labels]:
        """Return the members' votes (n, m) on logits (n, m), and their majority (n,); an even split is a 1."""
        x = np.asarray(logits, np.float64)
        votes: Labels = np.asarray(x >= np.asarray(self.member_thresholds), np.int8)
        return votes, np.asarray(vote_share(self.member_thresholds)(x) >= 0.5, np.int8)


@overload
def fit_decision(
    oof: OofLogits,
    views: Iterable[str],
    seed: int = ...,
    objective: Objective = ...,
    stacker: str = ...,
    repeats: int = ...,
    forced: Collection[str] = ...,
    classes: Sequence[str] | None = ...,
) -> Decision: ...


@overload
def fit_decision(
    oof: OofLogits,
    views: Iterable[str],
    seed: int = ...,
    *,
    objective: ClassObjective,
    stacker: str = ...,
    repeats: int = ...,
    forced: Collection[str] = ...,
    classes: Sequence[str] | None = ...,
) -> ClassDecision: ...


def fit_decision(
    oof: OofLogits,
    views: Iterable[str],
    seed: int = 0,
    objective: Objective | ClassObjective = HTER,
    stacker: str = "nonnegative",
    repeats: int = 0,
    forced: Collection[str] = (),
    classes: Sequence[str] | None = None,
) -> Decision | ClassDecision:
    """Fit a stacker and a threshold on all OOF rows, and assess them, the members and the baselines.

    Of more than two classes, the offsets of the classes take the place of the threshold, and the result is a
    `ClassDecision`; the objective HTER then means the mean of the class error rates.

    A member whose logits are constant within every fold carries no information and is left out of the stack and of the
    baselines, unless it is forced. A member whose logits are constant in only some folds stays in. Offsets between the
    fold models of a member are subtracted (see fold_offsets.py). `Decision.notes` names all three, and a stack that is
    much worse over the folds than over random parts of the rows.

    Parameters
    ----------
    oof : OofLogits
        Averaged over `views`, as the fold models gave them.
    views : iterable of str
        They are stored in the decision, so that prediction can average over the same views.
    seed : int
        The seed of the bootstrap and of the partitions for `repeats`.
    objective : Objective or ClassObjective
        What the thresholds, or offsets, minimise.
    stacker : str
        A key of `STACKERS`; without effect if there is a single member.
    repeats : int
        The number of other partitions into folds over which the nested estimate is repeated; groups stay together.
    forced : collection of str
        Members that stay in although they are constant. At least one member must vary all the same.
    classes : sequence of C str, optional
        The names of more than two classes, for the notes; by default their indices.

    Raises
    ------
    DataError
        Every member is constant.
    ConfigError
        There are more than two classes, and the objective is for two classes alone.
    """
    offsets = find_fold_offsets(oof)
    oof = aligned(oof, offsets)
    constant = [oof.constant_folds(j) for j in range(len(oof.members))]
    if all(folds == oof.folds for folds in constant):
        raise DataError(
            "cannot fit the stacker", f"a member must vary; all of {oof.members} are constant in every fold"
        )
    pairs = zip(oof.members, constant, strict=True)
    usable = [j for j, (name, folds) in enumerate(pairs) if folds != oof.folds or name in forced]
    kept = oof.of_members(usable)
    notes = tuple(
        f"member {name} gives the same logit to all images of fold{'s' * (len(folds) > 1)} "
        f"{', '.join(map(str, folds))}; it is "
        + ("still in the stack" if j in usable else f"left out of the stack unless --force-members {name} is given")
        for j, (name, folds) in enumerate(zip(oof.members, constant, strict=True))
        if folds
    )
    if oof.classes > 2:
        return fit_kept_members(oof, kept, views, seed, class_objective(objective), stacker, repeats, notes, classes)
    assert not isinstance(objective, ClassObjective), "two classes have an objective of two classes"
    rule, kind = stack(stacker), stacker if len(kept.members) > 1 else "mean"
    rules = CandidateSet.of(oof, kept, rule, STACKERS, _baselines(kept.members), objective, seed)
    assessed = rules.assessed(assess, oof.groups, seed)
    stacked, parted = assessed.stacked, assessed.parted
    return Decision(
        kind=kind,
        stacker=kept.rows.stacker(kind),
        objective=objective,
        views=tuple(views),
        stacked=stacked,
        members=assessed.members,
        baselines=assessed.baselines,
        stackers=assessed.stackers,
        curve=_performance_curve(rules.stacked, kept),
        repeated=repeated_losses(kept, rule, objective, _hter, repeats, seed),
        noise=_bound_noise(kept, rule, objective),
        notes=notes
        + small_set_notes(oof.labels, oof.groups)
        + tuple(offset.message for offset in offsets)
        + deviation_note("HTER", stacked.nested.hter, parted.nested.hter, parted.difference),
        offsets=offsets,
    )


def small_set_notes(labels: Labels, groups: ArrayLike | None) -> tuple[str, ...]:
    """Return what simulations show of so few images, or of so few groups of a class; both are of two classes.

    Parameters
    ----------
    labels : int8 array (n,)
    groups : int64 array (n,), optional

    Examples
    --------
    >>> small_set_notes(np.repeat([0, 1], [20, 480]), None)
    ()
    >>> small_set_notes(np.repeat([0, 1], [20, 480]), np.arange(500) // 5)[0][:32]
    'label 0 has 4 groups only: too f'
    """
    notes = []
    if labels.size < LEAST_IMAGES:
        notes.append(
            f"{labels.size} labelled images are few: the expected HTER of a label file is too high, by 0.014 on "
            "average in simulations with 150 images"
        )
    for label in (0, 1) if groups is not None else ():
        of_label = np.asarray(groups)[labels == label]
        count = np.unique(of_label).size
        if count < FEW_GROUPS and 2 * count <= of_label.size:  # a few identical images make no data of groups
            notes.append(
                f"label {label} has {count} groups only: too few for the intervals, which in simulations with 12 to 48 "
                "groups contain the true HTER 89 to 95 times in 100"
            )
    return tuple(notes)


def _hter(nested: CrossFit) -> float:
    return error_rates(nested.labels, nested.y_pred).hter


def _bound_noise(oof: OofLogits, rule: Rule, objective: Objective) -> NoiseBound | None:
    """Bound the noise of the labels by two halves of the members that are about equally good."""
    order = np.argsort([-auc(logits, oof.labels) for logits in oof.logits.T], kind="stable")
    halves = [order[np.isin(np.arange(order.size) % 4, places)] for places in ((0, 3), (1, 2))]
    of_halves = [oof.of_members(half.tolist()).rows for half in halves if half.size]
    margins = [cross_fit(rows, rule, objective).margins for rows in of_halves]
    return bound_noise(margins[0], margins[1] if len(margins) > 1 else None, oof.labels)


def _performance_curve(stacked: Candidate, oof: OofLogits) -> tuple[CostRow, ...]:
    """Return the nested error rates for each of `COSTS` (Bengio, Mariéthoz and Keller 2005, The expected performance
    curve), with the thresholds that are fitted on all rows."""
    nested, labels = stacked.nested, oof.labels
    on_all_rows = fit_thresholds(stacked.deployed.score(oof.logits), labels, COSTS)
    y_pred = np.empty((len(COSTS), labels.size), np.int8)
    for split in nested.splits:
        thresholds = fit_thresholds(split.scores[~split.inside], labels[~split.inside], COSTS)
        y_pred[:, split.inside] = split.scores[split.inside] >= np.array(thresholds)[:, None]
    return tuple(
        CostRow(objective.cost_fpr, threshold, error_rates(labels, y_pred))
        for objective, threshold, y_pred in zip(COSTS, on_all_rows, y_pred, strict=True)
    )


def _baselines(members: Sequence[str]) -> list[tuple[str, Rule]]:
    """Return the baselines by name: each member at probability 0.5, and the majority votes."""
    at_half = [(f"{name} at 0.5", of_score(member_logit(j), 0.0)) for j, name in enumerate(members)]
    if len(members) == 1:  # the majority vote of a single member is that member
        return at_half
    return [
        *at_half,
        ("majority vote", MAJORITY_VOTE),
        ("majority vote at 0.5", of_score(vote_share(np.zeros(len(members))), 0.5)),
    ]


def stack_replicates(decision: Decision, oof: OofLogits, seed: int, replicates: int) -> Iterable[Replicate]:
    """Return the bootstrap replicates of a decision's stack, with refitted thresholds, on its members' OOF rows.

    Offsets between fold models have been subtracted from the rows (`Decision.aligned`).
    """
    nested = cross_fit(oof.rows, stack(decision.kind), decision.objective)
    scores = decision.stacker.apply(oof.logits)
    rule = RefitRule(scores, oof.labels, nested.splits, decision.objective, oof.groups)
    return refit_replicates(rule, oof.labels, oof.groups, seed, replicates)
