"""What a rule is worth, apparent and nested, and the decision that is deployed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemble.decision.intervals import Interval, bootstrap_interval, new_set_interval
from ensemble.decision.rates import (
    Calls,
    ErrorRates,
    Floats,
    auc,
    error_rates,
)
from ensemble.decision.stacker import (
    FoldRow,
    OofLogits,
    Rule,
    Stacker,
    cross_fit,
    fit_stacker,
    fixed,
    majority_vote,
    mean_logit,
    member_logit,
    own_threshold,
    stack,
    vote_share,
)
from ensemble.errors import ArtifactError, DataError

SCHEMA = 1


@dataclass(frozen=True)
class Assessment:
    """A rule measured on OOF rows. A member's report is the assessment of its logit at its own threshold."""

    name: str
    threshold: float  # of the rule's score, fitted on all rows: the one to deploy
    apparent: ErrorRates  # fitted on all rows and scored on the same
    nested: ErrorRates  # every fold scored by the rule fitted without it, pooled: the honest figure
    interval: Interval  # 95 %, of the nested HTER: the sampling of the images, at the nested calls
    auc: float  # of the nested scores, pooled
    folds: tuple[FoldRow, ...]

    @property
    def optimism(self) -> float:
        """Nested less apparent HTER: what the apparent figure flatters itself by; 0 where nothing is fitted."""
        return self.nested.hter - self.apparent.hter

    def new_set_interval(self, n: int, seed: int = 0) -> Interval | None:
        """Return where the HTER measured on `n` new images falls 95 % of the time, at the class share of these rows.

        None for a single image: its HTER does not exist.
        """
        if n < 2:
            return None
        n_neg = min(max(round(n * self.nested.n_neg / self.nested.n), 1), n - 1)
        return new_set_interval(self.nested, n_neg, n - n_neg, seed)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Assessment:
        """Read what `to_json` wrote, every float to the last bit.

        Raises
        ------
        ArtifactError
            It is not an assessment.
        """
        try:
            return cls(
                **stored
                | {
                    "apparent": ErrorRates(**stored["apparent"]),
                    "nested": ErrorRates(**stored["nested"]),
                    "interval": Interval(**stored["interval"]),
                    "folds": tuple(FoldRow(**row | {"rates": ErrorRates(**row["rates"])}) for row in stored["folds"]),
                }
            )
        except (TypeError, KeyError) as error:
            raise ArtifactError("assessment", f"fields are missing or unknown ({error})") from error


@dataclass(frozen=True)
class Decision:
    """All that turns member logits into labels, and what it is worth.

    `members` holds every member that was given, `stacker.members` those that are in the stack.
    """

    stacker: Stacker
    views: tuple[str, ...]  # the views that the member logits, here and at prediction, are averaged over
    stacked: Assessment
    members: tuple[Assessment, ...]  # each at its own threshold
    baselines: tuple[Assessment, ...]
    notes: tuple[str, ...] = ()

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
    def comparisons(self) -> tuple[Assessment, ...]:
        """The stack, each member, the baselines: all on the same rows."""
        return (self.stacked, *self.members, *self.baselines)

    @property
    def member_thresholds(self) -> tuple[float, ...]:
        """The own thresholds of `stacker.members`, in that order: what they vote at."""
        own = {member.name: member.threshold for member in self.members}
        return tuple(own[name] for name in self.stacker.members)

    def votes(self, logits: ArrayLike) -> tuple[Calls, Calls]:
        """Return each member's vote (n, m) on logits (n, m), and their majority (n,), where half is a 1."""
        x = np.asarray(logits, np.float64)
        votes: Calls = np.asarray(x >= np.asarray(self.member_thresholds), np.int8)
        return votes, np.asarray(vote_share(self.member_thresholds)(x) >= 0.5, np.int8)

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists, numbers and strings; `from_json` gets back an equal `Decision`."""
        return {"schema": SCHEMA} | asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Decision:
        """Read what `to_json` wrote, every float to the last bit.

        Raises
        ------
        ArtifactError
            It is of another schema, or not a decision.
        """
        if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
            found = stored.get("schema") if isinstance(stored, dict) else type(stored).__name__
            raise ArtifactError("decision", f"schema must be {SCHEMA}; got {found}", "run: thera fit-stacker")
        try:
            stacker = stored["stacker"]
            decision = cls(
                stacker=Stacker(tuple(stacker["members"]), tuple(stacker["weights"]), stacker["bias"]),
                views=tuple(stored["views"]),
                stacked=Assessment.from_json(stored["stacked"]),
                members=tuple(map(Assessment.from_json, stored["members"])),
                baselines=tuple(map(Assessment.from_json, stored["baselines"])),
                notes=tuple(stored["notes"]),
            )
            decision.member_thresholds  # noqa: B018  every member of the stack must be there
        except (TypeError, KeyError, DataError) as error:
            raise ArtifactError("decision", f"is damaged ({error})", "run: thera fit-stacker") from error
        return decision


def assess(name: str, oof: OofLogits, rule: Rule, seed: int = 0) -> Assessment:
    """Measure a rule on OOF rows: fitted on all of them (apparent), and cross-fitted (nested).

    Parameters
    ----------
    name : str
        What the rule is called in the tables.
    oof : OofLogits
        The rows.
    rule : Rule
        Fitted k + 1 times.
    seed : int
        Of the bootstrap.
    """
    deployed, nested = rule(oof.logits, oof.labels), cross_fit(oof, rule)
    return Assessment(
        name=name,
        threshold=float(deployed.threshold),
        apparent=error_rates(oof.labels, deployed(oof.logits)),
        nested=error_rates(oof.labels, nested.called),
        interval=bootstrap_interval(oof.labels, nested.called, oof.groups, seed),
        auc=auc(nested.scores, oof.labels),
        folds=nested.folds,
    )


def member_report(
    name: str,
    ids: ArrayLike,
    logits: ArrayLike,
    labels: ArrayLike,
    fold_of: ArrayLike,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Assessment:
    """Assess one member by its OOF logits (n,) at its own threshold; needs no stacker.

    Raises
    ------
    ArtifactError, DataError
        As `OofLogits`.

    Examples
    --------
    >>> report = member_report("a", range(4), [-1.0, 2.0, -2.0, 5.0], [0, 1, 0, 1], [0, 0, 1, 1])
    >>> report.threshold, report.nested.hter, report.auc
    (0.5, 0.0, 1.0)
    """
    column = np.asarray(logits, np.float64)[:, None]
    oof = OofLogits(
        np.asarray(ids),
        np.asarray(labels),
        np.asarray(fold_of),
        (name,),
        column,
        None if groups is None else np.asarray(groups),
    )
    return assess(name, oof, own_threshold(member_logit(0)), seed)


def fit_decision(oof: OofLogits, views: Iterable[str], seed: int = 0) -> Decision:
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
        Of the bootstrap.

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
    return Decision(
        stacker=fit_stacker(kept.logits, kept.labels, kept.members),
        views=tuple(views),
        stacked=assess("stack", kept, stack(kept.members), seed),
        members=tuple(assess(name, oof, own_threshold(member_logit(j)), seed) for j, name in enumerate(oof.members)),
        baselines=tuple(assess(name, kept, rule, seed) for name, rule in _baselines(kept.members)),
        notes=tuple(
            f"member {name} gives one same logit to all images of fold{'s' * (len(folds) > 1)} "
            f"{', '.join(map(str, folds))}; it is {'kept out of' if folds == oof.folds else 'still in'} the stack"
            for name, folds in zip(oof.members, dead, strict=True)
            if folds
        ),
    )


def _constant_folds(oof: OofLogits, column: Floats) -> tuple[int, ...]:
    return tuple(fold for fold in oof.folds if np.ptp(column[oof.fold_of == fold]) == 0)


def _baselines(members: tuple[str, ...]) -> list[tuple[str, Rule]]:
    at_half: list[tuple[str, Rule]] = [
        (f"{name} at 0.5", fixed(member_logit(j), 0.0)) for j, name in enumerate(members)
    ]
    if len(members) == 1:  # its mean and its vote are itself
        return at_half
    return [
        *at_half,
        ("mean of logits", own_threshold(mean_logit)),
        ("majority vote", majority_vote),
        ("majority vote at 0.5", fixed(vote_share(np.zeros(len(members))), 0.5)),
    ]
