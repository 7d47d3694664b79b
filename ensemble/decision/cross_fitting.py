"""Rules, from member logits to predictions, and the cross-fitting that measures them all alike.

A rule fits a score of the member logits, and then the threshold of that score:

    rule.fit(rows) -> score            score(logits (n, m)) -> (n,)
    rule(rows, objective) -> FittedRule, called on logits (n, m): 1 iff score >= threshold

The stack, one member, the mean of logits and the majority vote are rules, so one `cross_fit` serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.data.folds import FoldTable
from ensemble.decision.objective import HTER, Objective
from ensemble.decision.rates import (
    ErrorRates,
    Floats,
    Labels,
    apply_threshold,
    auc,
    check_logits,
    error_rates,
)
from ensemble.decision.stacker import STACKERS, Stacker
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ArtifactError, DataError


@dataclass(frozen=True, eq=False)
class OofLogits:
    """Out-of-fold logits: each cell predicted exactly once, by a model that never saw that image.

    Parameters
    ----------
    table : FoldTable
        Ids, labels, folds and groups of the n images; at least two folds, both labels in each.
    members : tuple of m str
        Distinct, in the order of the columns.
    logits : float64 array (n, m)
        Log-odds of label 1, finite.

    Raises
    ------
    ArtifactError
        A member's logit is not finite; names member and fold.
    DataError
        Any other of the above does not hold.

    Notes
    -----
    The logits are kept as a read-only view; the table is shared, not copied.
    """

    table: FoldTable
    members: tuple[str, ...]
    logits: Floats

    def __post_init__(self) -> None:
        logits = np.asarray(self.logits, np.float64).view()
        expected = (self.labels.size, len(self.members))
        if logits.shape != expected:
            raise DataError("OOF logits", f"logits must have shape {expected}; got {logits.shape}")
        logits.flags.writeable = False
        object.__setattr__(self, "logits", logits)
        if not self.members or len(set(self.members)) < len(self.members):
            raise DataError("OOF logits", f"members must be distinct and at least one; got {self.members}")
        if len(self.folds) < 2:
            raise DataError("OOF logits", f"at least two folds are needed; got {self.folds}")
        for fold in self.folds:
            inside = self.fold_of == fold
            for name, of_member in zip(self.members, logits.T, strict=True):
                if lost := int(np.count_nonzero(~np.isfinite(of_member[inside]))):
                    raise ArtifactError(
                        f"member {name}",
                        f"OOF logits must be finite; got {lost} in fold {fold} that are not",
                        f"run: thera train-member --arch {name}",
                    )
            check_logits(f"fold {fold}", logits[inside], self.labels[inside], ndim=2)

    @property
    def labels(self) -> Labels:
        return self.table.labels

    @property
    def fold_of(self) -> Labels:
        return self.table.fold_of

    @property
    def groups(self) -> NDArray[np.int64] | None:
        return self.table.groups

    @cached_property
    def folds(self) -> tuple[int, ...]:
        return tuple(np.unique(self.fold_of).tolist())

    @cached_property
    def rows(self) -> Rows:
        return Rows(self.logits, self.labels, self.fold_of, self.members)


@dataclass(frozen=True, eq=False)
class Rows:
    """What a rule is fitted on: logits (n, m), labels (n,), the folds that the rows come from (n,), the members' names.

    Nothing is checked: `OofLogits` has done so. What is fitted on rows is kept with them, and so are the parts of them
    that lack some folds: without folds 1 and 2 they are the same part as without folds 2 and 1.
    """

    logits: Floats
    labels: Labels
    fold_of: Labels
    members: tuple[str, ...]
    fitted: dict[tuple[Rule, Objective], FittedRule] = field(default_factory=dict, init=False, repr=False)
    _stackers: dict[str, Stacker] = field(default_factory=dict, init=False, repr=False)
    _parts: dict[tuple[int, ...], Rows] = field(default_factory=dict, init=False, repr=False)  # by the folds in them

    @cached_property
    def folds(self) -> tuple[int, ...]:
        return tuple(np.unique(self.fold_of).tolist())

    def where(self, chosen: NDArray[np.bool_]) -> Rows:
        return Rows(self.logits[chosen], self.labels[chosen], self.fold_of[chosen], self.members)

    def without(self, fold: int) -> Rows:
        """Return the rows of the other folds."""
        others = tuple(other for other in self.folds if other != fold)
        if others not in self._parts:
            part = self.where(self.fold_of != fold)
            object.__setattr__(part, "_parts", self._parts)
            self._parts[others] = part
        return self._parts[others]

    def stacker(self, kind: str) -> Stacker:
        """Return the stacker of this kind, a key of `STACKERS`, that is fitted on these rows."""
        if kind not in self._stackers:
            free = self.stacker("logistic") if kind == "nonnegative" else None
            if free is None or min(free.weights) < 0:
                self._stackers[kind] = STACKERS[kind](self.logits, self.labels, self.members)
            else:
                self._stackers[kind] = free
        return self._stackers[kind]


INNER_FOLDS = 5
"""That a stacker is chosen on, at most."""

Score: TypeAlias = Callable[[Floats], Floats]


@dataclass(frozen=True)
class FittedRule:
    """A score of member logits, (n, m) -> (n,), and the threshold at which it is predicted as 1."""

    score: Score
    threshold: float

    def __call__(self, logits: Floats) -> Labels:
        return apply_threshold(self.score(logits), self.threshold)


@dataclass(frozen=True)
class Rule:
    """How a score is fitted; its threshold is fitted too, unless it is given."""

    fit: Callable[[Rows, Objective], Score]
    threshold: float | None = None

    def __call__(self, rows: Rows, objective: Objective = HTER) -> FittedRule:
        if (self, objective) not in rows.fitted:
            score, threshold = self.fit(rows, objective), self.threshold
            if threshold is None:
                threshold = fit_threshold(score(rows.logits), rows.labels, objective)
            rows.fitted[self, objective] = FittedRule(score, threshold)
        return rows.fitted[self, objective]


def member_logit(column: int) -> Score:
    """Return the score that is one member's logit."""
    return lambda logits: logits[:, column]


def vote_share(thresholds: ArrayLike) -> Score:
    """Return the score that is the share of members whose logit reaches their own threshold (m,).

    Called at 1/2 it is the majority vote; half of an even number of votes is a 1, by the one tie rule.

    >>> vote_share([0.0, 1.0])(np.array([[0.5, 0.5], [-1.0, 0.0]]))
    array([0.5, 0. ])
    """
    cuts = np.asarray(thresholds, np.float64)
    return lambda logits: np.asarray((logits >= cuts).mean(axis=1))


def of_score(score: Score, threshold: float | None = None) -> Rule:
    """Return the rule that fits nothing but the threshold of `score`, or nothing at all where that is given."""
    return Rule(lambda rows, objective: score, threshold)


def _fit_votes(rows: Rows, objective: Objective) -> Score:
    return vote_share([fit_threshold(column, rows.labels, objective) for column in rows.logits.T])


MAJORITY_VOTE = Rule(_fit_votes, 0.5)
"""The majority vote of the members at their own thresholds, the method of the public solutions."""


@cache
def stack(kind: str) -> Rule:
    """Return the rule that fits a stacker of `kind`, or, for "auto", of the simplest good kind.

    >>> rows = Rows(np.array([[-1.0, 1.0], [3.0, 5.0]]), np.array([0, 1]), np.array([0, 1]), ("a", "b"))
    >>> fitted = stack("mean")(rows)
    >>> fitted.threshold
    2.0
    """
    return Rule(partial(_fit_stack, kind))


def _fit_stack(kind: str, rows: Rows, objective: Objective) -> Score:
    return fit_stack(kind, rows, objective)[1].apply


def fit_stack(kind: str, rows: Rows, objective: Objective = HTER) -> tuple[str, Stacker]:
    """Return the kind that was fitted, which for "auto" is `simplest_stacker`, and the stacker."""
    if kind == "auto":
        kind = simplest_stacker(rows, objective)
    return kind, rows.stacker(kind)


def simplest_stacker(rows: Rows, objective: Objective = HTER) -> str:
    """Return the simplest kind of stacker whose nested loss is within one standard error of the least.

    Every kind is cross-fitted over the folds of `rows`, joined to at most `INNER_FOLDS`. The standard error is that of
    the paired difference to the best kind: of the rows that the two predict differently (the one-standard-error rule of
    Breiman, Friedman, Olshen and Stone 1984, Classification and Regression Trees, section 3.4.3). Of rows from one fold
    alone, even and odd rows of each class stand for two folds. One member has nothing to be stacked with: "mean", which
    is the member itself; "mean" too where a class has one row alone, which cannot be halved.

    Parameters
    ----------
    rows : Rows
        What the choice is made on, and nothing else: in a nested estimate it is made anew without each fold.
    objective : Objective
        Whose loss is compared; where a rate is held, the HTER.
    """
    if len(rows.members) == 1 or np.bincount(rows.labels).min() == 1:
        return "mean"
    if len(rows.folds) == 1:
        rows = replace(rows, fold_of=_halves(rows.labels))
    elif len(rows.folds) > INNER_FOLDS:
        joined = np.unique(rows.fold_of, return_inverse=True)[1] % INNER_FOLDS
        rows = replace(rows, fold_of=joined.astype(np.int8))
    nested = {kind: cross_fit(rows, stack(kind), objective).y_pred for kind in STACKERS}
    compared = objective.comparable
    losses = {kind: compared.loss_of(error_rates(rows.labels, y_pred)) for kind, y_pred in nested.items()}
    best = min(losses, key=losses.__getitem__)  # of equals, the simplest
    for kind, y_pred in nested.items():
        if losses[kind] - losses[best] <= _paired_error(rows.labels, y_pred, nested[best], compared):
            return kind
    raise AssertionError("the best is within no distance of itself")


def _halves(labels: Labels) -> Labels:
    half = np.empty(labels.size, np.int8)
    for label in (0, 1):
        of_label = labels == label
        half[of_label] = np.arange(np.count_nonzero(of_label)) % 2
    return half


def _paired_error(labels: Labels, a: Labels, b: Labels, objective: Objective) -> float:
    """Return the standard error of the difference in loss between two sets of predictions on the same rows."""
    difference = a.astype(np.int64) - b
    variances = [float(difference[labels == label].var() / np.count_nonzero(labels == label)) for label in (0, 1)]
    weights = objective.loss(1, 0), objective.loss(0, 1)
    return float(np.sqrt(sum(weight**2 * variance for weight, variance in zip(weights, variances, strict=True))))


@dataclass(frozen=True)
class FoldRow:
    """What a rule reached on one fold, fitted on all the others."""

    fold: int
    threshold: float  # of the rule's score, fitted without this fold
    rates: ErrorRates
    auc: float


@dataclass(frozen=True, eq=False)
class Split:
    """A rule fitted without one fold: where the fold's rows are (n,), and the rule's scores of all rows (n,)."""

    fold: int
    inside: NDArray[np.bool_]
    scores: Floats
    threshold: float


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Nested predictions and scores (n,): each row's come from a rule that was fitted without the row's fold."""

    labels: Labels
    y_pred: Labels
    scores: Floats
    splits: tuple[Split, ...]

    @cached_property
    def folds(self) -> tuple[FoldRow, ...]:
        rows = []
        for split in self.splits:
            y_true, scores = self.labels[split.inside], self.scores[split.inside]
            rates = error_rates(y_true, self.y_pred[split.inside])
            rows.append(FoldRow(split.fold, split.threshold, rates, auc(scores, y_true)))
        return tuple(rows)


def cross_fit(rows: Rows, rule: Rule, objective: Objective = HTER) -> CrossFit:
    """Refit `rule` without each fold in turn and apply it to that fold.

    Examples
    --------
    >>> table = FoldTable(np.array(list("abcd")), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    >>> oof = OofLogits(table, ("a",), np.array([[-1.0], [2.0], [-2.0], [5.0]]))
    >>> nested = cross_fit(oof.rows, of_score(member_logit(0)))
    >>> nested.y_pred, [row.threshold for row in nested.folds]
    (array([0, 1, 0, 1], dtype=int8), [1.5, 0.5])
    """
    y_pred, scores = np.empty(rows.labels.size, np.int8), np.empty(rows.labels.size)
    splits = []
    for fold in rows.folds:
        inside = rows.fold_of == fold
        fitted = rule(rows.without(fold), objective)
        split = Split(fold, inside, fitted.score(rows.logits), float(fitted.threshold))
        scores[inside] = split.scores[inside]
        y_pred[inside] = apply_threshold(scores[inside], split.threshold)
        splits.append(split)
    return CrossFit(rows.labels, y_pred, scores, tuple(splits))
