"""The decision that is deployed: stacker, threshold, and all that is known of what they are worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from ensemble.config import seed_sequence
from ensemble.decision.assessment import Assessment, assess, assess_fitted, replicates_of
from ensemble.decision.cross_fitting import (
    MAJORITY_VOTE,
    CrossFit,
    FittedRule,
    OofLogits,
    Rows,
    Rule,
    cross_fit,
    fit_stack,
    member_logit,
    of_score,
    stack,
    vote_share,
)
from ensemble.decision.intervals import Interval
from ensemble.decision.label_noise import Floor, estimate_floor
from ensemble.decision.objective import HTER, Objective, WeightedError
from ensemble.decision.rates import ErrorRates, Floats, Labels, error_rates
from ensemble.decision.refits import Replicate
from ensemble.decision.stacker import STACKERS, Stacker
from ensemble.decision.threshold import fit_threshold, fit_thresholds
from ensemble.errors import DataError

COSTS = tuple(WeightedError(cost, 10 - cost) for cost in range(1, 10))
"""The weights of the expected-performance curve: what an FPR costs, out of ten."""


@dataclass(frozen=True)
class CostRow:
    """A point of the expected-performance curve: the threshold for a cost, and the nested rates at it."""

    cost_fpr: int  # out of ten; an FNR costs the rest
    threshold: float  # fitted on all rows
    rates: ErrorRates

    @property
    def loss(self) -> float:
        """Weighted error, in [0, 1]."""
        return WeightedError(self.cost_fpr, 10 - self.cost_fpr).loss_of(self.rates)


@dataclass(frozen=True)
class Decision:
    """All that turns member logits into labels, and what it is worth.

    `members` holds every member that was given, `stacker.members` those that are in the stack.
    """

    kind: str  # of the stacker, a key of `STACKERS`
    chosen: str  # "auto", or the kind that was asked for
    stacker: Stacker
    objective: Objective
    views: tuple[str, ...]  # the views that the member logits, here and at prediction, are averaged over
    stacked: Assessment
    members: tuple[Assessment, ...]  # each at its own threshold
    baselines: tuple[Assessment, ...]
    stackers: tuple[Assessment, ...]  # every kind of stacker, the simplest first; none where one member is alone
    curve: tuple[CostRow, ...]  # of the stacked logit
    repeated: tuple[float, ...]  # nested HTER over other partitions of the rows, if asked for
    floor: Floor | None  # None where there are too few rows
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if missing := set(self.stacker.members) - {member.name for member in self.members}:
            raise ValueError(f"members of the stack are not assessed: {sorted(missing)}")

    @property
    def threshold(self) -> float:
        """Of the stacked logit."""
        return self.stacked.threshold

    @property
    def apparent(self) -> ErrorRates:
        return self.stacked.apparent

    @property
    def nested(self) -> ErrorRates:
        return self.stacked.nested

    @property
    def interval(self) -> Interval:
        return self.stacked.interval

    @property
    def optimism(self) -> float:
        return self.stacked.optimism

    @property
    def member_thresholds(self) -> tuple[float, ...]:
        """The own thresholds of `stacker.members`, in that order: what they vote at."""
        own = {member.name: member.threshold for member in self.members}
        return tuple(own[name] for name in self.stacker.members)

    def votes(self, logits: ArrayLike) -> tuple[Labels, Labels]:
        """Return each member's vote (n, m) on logits (n, m), and their majority (n,), where half is a 1."""
        x = np.asarray(logits, np.float64)
        votes: Labels = np.asarray(x >= np.asarray(self.member_thresholds), np.int8)
        return votes, np.asarray(vote_share(self.member_thresholds)(x) >= 0.5, np.int8)


def fit_decision(
    oof: OofLogits,
    views: Iterable[str],
    seed: int = 0,
    objective: Objective = HTER,
    stacker: str = "auto",
    repeats: int = 0,
) -> Decision:
    """Fit stacker and threshold on all OOF rows, and measure them beside the members and the baselines.

    A member that gives one same logit throughout every fold says nothing and is kept out of the stack and of the
    baselines; one that does so in some folds only stays in. `Decision.notes` names both.

    Parameters
    ----------
    oof : OofLogits
        Taken with `views`.
    views : iterable of str
        Kept in the decision, so that prediction can hold itself to them.
    seed : int
        Of the bootstrap, and of the partitions of `repeats`.
    objective : Objective
        What the thresholds are best for.
    stacker : str
        A key of `STACKERS`, or "auto" for the simplest that is within one standard error of the best; the nested
        estimate then makes that choice anew without each fold.
    repeats : int
        How many other partitions of the rows the nested estimate is repeated over; groups stay together.

    Raises
    ------
    DataError
        Every member is constant.
    """
    dead = [_constant_folds(oof, column) for column in oof.logits.T]
    alive = [j for j, folds in enumerate(dead) if folds != oof.folds]
    if not alive:
        raise DataError(
            "cannot fit the stacker", f"a member must vary; all of {oof.members} are constant in every fold"
        )
    kept = replace(oof, members=tuple(oof.members[j] for j in alive), logits=oof.logits[:, alive])
    rows, rule = kept.rows, stack(stacker)
    kind, fitted = fit_stack(stacker, rows, objective)
    scores = fitted.apply(rows.logits)
    deployed = FittedRule(fitted.apply, fit_threshold(scores, rows.labels, objective))
    nested = cross_fit(rows, rule, objective)

    def beside(name: str, of: OofLogits, other: Rule) -> Assessment:
        return assess(name, of, other, objective, seed, stacked=nested.y_pred)

    return Decision(
        kind=kind,
        chosen=stacker,
        stacker=fitted,
        objective=objective,
        views=tuple(views),
        stacked=assess_fitted("stack", kept, deployed, nested, objective, seed, refit=True),
        members=tuple(beside(name, oof, of_score(member_logit(j))) for j, name in enumerate(oof.members)),
        baselines=tuple(beside(name, kept, other) for name, other in _baselines(kept.members)),
        stackers=tuple(beside(name, kept, stack(name)) for name in STACKERS) if len(kept.members) > 1 else (),
        curve=_performance_curve(scores, rows.labels, nested),
        repeated=_repeated(kept, rule, objective, repeats, seed),
        floor=estimate_floor(nested.scores, rows.labels, seed),
        notes=tuple(
            f"member {name} gives one same logit to all images of fold{'s' * (len(folds) > 1)} "
            f"{', '.join(map(str, folds))}; it is {'kept out of' if folds == oof.folds else 'still in'} the stack"
            for name, folds in zip(oof.members, dead, strict=True)
            if folds
        ),
    )


def _performance_curve(scores: Floats, labels: Labels, nested: CrossFit) -> tuple[CostRow, ...]:
    """Return the nested rates at the thresholds for `COSTS` (Bengio, Mariéthoz and Keller 2005)."""
    own = fit_thresholds(scores, labels, COSTS)
    y_pred = np.empty((len(COSTS), labels.size), np.int8)
    for split in nested.splits:
        thresholds = fit_thresholds(split.scores[~split.inside], labels[~split.inside], COSTS)
        y_pred[:, split.inside] = split.scores[split.inside] >= np.array(thresholds)[:, None]
    return tuple(
        CostRow(objective.cost_fpr, threshold, error_rates(labels, y_pred))
        for objective, threshold, y_pred in zip(COSTS, own, y_pred, strict=True)
    )


def _repeated(oof: OofLogits, rule: Rule, objective: Objective, repeats: int, seed: int) -> tuple[float, ...]:
    from ensemble.data.folds import assign_folds

    units = np.arange(oof.labels.size) if oof.groups is None else oof.groups
    k, found = len(oof.folds), []
    for repeat in range(repeats):
        parts = assign_folds(
            oof.labels, units, k, int(seed_sequence(seed, "parts", repeat).generate_state(1)[0])
        ).fold_of
        y_pred = cross_fit(Rows(oof.logits, oof.labels, parts, oof.members), rule, objective).y_pred
        found.append(error_rates(oof.labels, y_pred).hter)
    return tuple(found)


def _constant_folds(oof: OofLogits, column: Floats) -> tuple[int, ...]:
    return tuple(fold for fold in oof.folds if np.ptp(column[oof.fold_of == fold]) == 0)


def _baselines(members: Sequence[str]) -> list[tuple[str, Rule]]:
    at_half = [(f"{name} at 0.5", of_score(member_logit(j), 0.0)) for j, name in enumerate(members)]
    if len(members) == 1:  # its vote is itself
        return at_half
    return [
        *at_half,
        ("majority vote", MAJORITY_VOTE),
        ("majority vote at 0.5", of_score(vote_share(np.zeros(len(members))), 0.5)),
    ]


def stack_replicates(decision: Decision, oof: OofLogits, seed: int, replicates: int) -> Iterable[Replicate]:
    """Return bootstrap worlds of a decision's stack on the rows of its members."""
    nested = cross_fit(oof.rows, stack(decision.chosen), decision.objective)
    deployed = FittedRule(decision.stacker.apply, decision.threshold)
    return replicates_of(oof, deployed, nested, decision.objective, seed, replicates)
