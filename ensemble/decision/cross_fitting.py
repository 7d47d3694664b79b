"""Rules, which turn member logits into predictions, and their nested cross-fitting.

A rule first fits a score, which is a function of the member logits, and then the threshold of that score:

    rule.fit(rows, objective) -> score          score(logits (n, m)) -> float64 (n,)
    rule(rows, objective) -> fitted rule        fitted(logits (n, m)) -> int8 (n,), 1 iff score >= threshold

Of more than two classes, logits have one more axis of length C, a score is float64 (n, C), and the offsets of the
classes take the place of the threshold.

The stack, a single member, the mean of logits and the majority vote are all rules, so `cross_fit` evaluates each of
them in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.config import seed_sequence
from ensemble.data.folds import FoldTable
from ensemble.decision.class_objective import ClassObjective
from ensemble.decision.class_offsets import fit_cut
from ensemble.decision.class_stacker import CLASS_STACKERS, ClassStacker
from ensemble.decision.objective import HTER, Objective
from ensemble.decision.rates import (
    ClassRates,
    Cut,
    ErrorRates,
    Floats,
    Labels,
    apply_cut,
    auc,
    check_logits,
    class_offsets,
    class_rates,
    error_rates,
    one_threshold,
)
from ensemble.decision.stacker import STACKERS, Stacker
from ensemble.decision.votes import Score, plurality, vote_share
from ensemble.errors import ArtifactError, DataError


@dataclass(frozen=True, eq=False)
class OofLogits:
    """Out-of-fold logits: every logit comes from a model that was trained without the image's fold.

    Parameters
    ----------
    table : FoldTable
        Ids, labels, folds and groups of the n images. There are at least two folds, and each has all classes.
    members : tuple of m str
        Distinct names, in the order of the columns.
    logits : float64 array (n, m)
        Log-odds of label 1, finite. Of C > 2 classes, (n, m, C): the logit of each class.

    Raises
    ------
    ArtifactError
        A logit is not finite; the message names the member and the fold.
    DataError
        Another of these conditions does not hold.

    Notes
    -----
    The logits are stored as a read-only view, and the table is not copied.
    """

    table: FoldTable
    members: tuple[str, ...]
    logits: Floats

    def __post_init__(self) -> None:
        logits = np.asarray(self.logits, np.float64).view()
        expected: tuple[int, ...] = (self.labels.size, len(self.members))
        expected += (self.classes,) if self.classes > 2 else ()
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
            for name, column in zip(self.members, np.moveaxis(logits, 1, 0), strict=True):
                if not_finite := int(np.count_nonzero(~np.isfinite(column[inside]))):
                    raise ArtifactError(
                        f"member {name}",
                        f"OOF logits must be finite; got {not_finite} in fold {fold} that are not",
                        f"run: thera train-member --arch {name}",
                    )
            check_logits(f"fold {fold}", logits[inside], self.labels[inside], ndim=2, classes=self.classes)

    @property
    def labels(self) -> Labels:
        """The labels (n,), 0 or 1, or 0 to C - 1."""
        return self.table.labels

    @property
    def classes(self) -> int:
        """The number of classes C."""
        return self.table.classes

    @property
    def fold_of(self) -> Labels:
        """The fold of each row (n,)."""
        return self.table.fold_of

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """The group of each row (n,), or None where the images have no groups."""
        return self.table.groups

    @cached_property
    def folds(self) -> tuple[int, ...]:
        """The distinct folds in ascending order."""
        return tuple(np.unique(self.fold_of).tolist())

    @cached_property
    def rows(self) -> Rows:
        """All rows, for a rule to be fitted on."""
        return Rows(self.logits, self.labels, self.fold_of, self.members)

    def of_members(self, columns: Sequence[int]) -> OofLogits:
        """Return the logits of some of the members, in this order."""
        return OofLogits(self.table, tuple(self.members[j] for j in columns), self.logits[:, columns])

    def constant_folds(self, column: int) -> tuple[int, ...]:
        """Return the folds within which a member gives the same logits to all images."""
        logits = self.logits[:, column]
        return tuple(fold for fold in self.folds if not np.ptp(logits[self.fold_of == fold], axis=0).any())

    def in_random_parts(self, seed: int, repeat: int = 0) -> OofLogits:
        """Return the rows with random parts in place of their folds; groups stay together."""
        from ensemble.data.folds import assign_folds

        units = np.arange(self.labels.size) if self.groups is None else self.groups
        fold_seed = int(seed_sequence(seed, "parts", repeat).generate_state(1)[0])
        fold_of = assign_folds(self.labels, units, len(self.folds), fold_seed).fold_of
        return replace(self, table=replace(self.table, fold_of=fold_of))


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that a rule is fitted on; `OofLogits` has checked the arrays.

    Rules and stackers that are fitted on these rows are cached with them. Subsets without some folds are cached too and
    shared between all subsets: leaving out fold 1 and then fold 2 gives the same object as the other order, so nothing
    is fitted on the same rows again. A subset stores no rows: they are selected from all rows each time.
    """

    all_logits: Floats  # (n, m) or (n, m, C)
    all_labels: Labels  # (n,)
    all_folds_of: Labels  # (n,), the fold that each row comes from
    members: tuple[str, ...]  # m names
    left_out: frozenset[int] = frozenset()  # the folds whose rows do not belong to the subset
    fitted: dict[tuple[Rule, Objective | ClassObjective], FittedRule] = field(
        default_factory=dict, init=False, repr=False
    )
    _stackers: dict[str, Stacker | ClassStacker] = field(default_factory=dict, init=False, repr=False)
    _subsets: dict[frozenset[int], Rows] = field(default_factory=dict, init=False, repr=False)  # keyed by `left_out`

    @property
    def logits(self) -> Floats:
        """The logits of these rows, (n, m) or (n, m, C)."""
        return self._selected(self.all_logits)

    @property
    def labels(self) -> Labels:
        """The labels of these rows (n,)."""
        return self._selected(self.all_labels)

    @property
    def fold_of(self) -> Labels:
        """The fold that each of these rows comes from (n,)."""
        return self._selected(self.all_folds_of)

    @cached_property
    def folds(self) -> tuple[int, ...]:
        """The distinct folds in ascending order."""
        return tuple(fold for fold in np.unique(self.all_folds_of).tolist() if fold not in self.left_out)

    def where(self, chosen: NDArray[np.bool_]) -> Rows:
        """Return the rows where `chosen` (n,) is true."""
        return Rows(self.logits[chosen], self.labels[chosen], self.fold_of[chosen], self.members)

    def without(self, fold: int) -> Rows:
        """Return the rows of the other folds."""
        left_out = self.left_out | {fold}
        if left_out not in self._subsets:
            subset = replace(self, left_out=left_out)
            object.__setattr__(subset, "_subsets", self._subsets)
            self._subsets[left_out] = subset
        return self._subsets[left_out]

    def _selected(self, of_all: NDArray[Any]) -> NDArray[Any]:
        if not self.left_out:
            return of_all
        return of_all[~np.isin(self.all_folds_of, list(self.left_out))]

    def stacker(self, kind: str) -> Stacker:
        """Return the stacker that is fitted on these rows; `kind` is a key of `STACKERS`.

        A single member needs no stacker: its logit is taken as it is.
        """
        fitted = self.any_stacker(kind)
        assert isinstance(fitted, Stacker), "more than two classes have a ClassStacker"
        return fitted

    def any_stacker(self, kind: str) -> Stacker | ClassStacker:
        """Return the stacker as `stacker` does, of more than two classes too."""
        kind = kind if len(self.members) > 1 else "mean"
        if kind not in self._stackers:
            # A logistic fit without negative weights is the nonnegative fit as well, so it is not fitted again.
            logistic = self.any_stacker("logistic") if kind == "nonnegative" else None
            if logistic is None or min(logistic.weights) < 0:
                fit = CLASS_STACKERS[kind] if self.all_logits.ndim > 2 else STACKERS[kind]
                self._stackers[kind] = fit(self.logits, self.labels, self.members)
            else:
                self._stackers[kind] = logistic
        return self._stackers[kind]


@dataclass(frozen=True)
class FittedRule:
    """A score and its threshold, or offsets. Called on member logits (n, m), it returns int8 predictions (n,)."""

    score: Score
    threshold: Cut

    def __call__(self, logits: Floats) -> Labels:
        return apply_cut(self.score(logits), self.threshold)


@dataclass(frozen=True)
class Rule:
    """Fits a score and then, unless `threshold` is given, its threshold or offsets.

    `rule(rows, objective)` returns the fitted rule and caches it in `rows.fitted`.
    """

    fit: Callable[[Rows, Objective | ClassObjective], Score]
    threshold: Cut | None = None

    def __call__(self, rows: Rows, objective: Objective | ClassObjective = HTER) -> FittedRule:
        if (self, objective) not in rows.fitted:
            score, threshold = self.fit(rows, objective), self.threshold
            if threshold is None:
                threshold = fit_cut(score(rows.logits), rows.labels, objective)
            rows.fitted[self, objective] = FittedRule(score, threshold)
        return rows.fitted[self, objective]


def member_logit(column: int) -> Score:
    """Return the score that is one member's logit, or its logits (n, C)."""
    return lambda logits: logits[:, column]


def of_score(score: Score, threshold: Cut | None = None) -> Rule:
    """Return the rule that fits only the threshold of `score`, or nothing if `threshold` is given."""
    return Rule(lambda rows, objective: score, threshold)


def _fit_votes(rows: Rows, objective: Objective | ClassObjective) -> Score:
    labels = rows.labels
    cuts = [fit_cut(logits, labels, objective) for logits in np.moveaxis(rows.logits, 1, 0)]
    return vote_share(cuts) if rows.all_logits.ndim == 2 else plurality(cuts)


MAJORITY_VOTE = Rule(_fit_votes, 0.5)
"""The majority vote of the members, each at the threshold that is fitted to its logit alone. It is the baseline that
published solutions of this task use."""


@cache
def plurality_vote(classes: int) -> Rule:
    """Return the vote of the members among C classes, each at the offsets that are fitted to its logits alone."""
    return Rule(_fit_votes, (0.0,) * classes)


@cache
def stack(kind: str) -> Rule:
    """Return the rule that fits a stacker; with a single member, the score is that member's logit.

    Parameters
    ----------
    kind : str
        A key of `STACKERS`.

    Examples
    --------
    >>> rows = Rows(np.array([[-1.0, 1.0], [3.0, 5.0]]), np.array([0, 1]), np.array([0, 1]), ("a", "b"))
    >>> fitted = stack("mean")(rows)
    >>> fitted.threshold
    2.0
    """
    return Rule(partial(_fit_stack, kind))


def _fit_stack(kind: str, rows: Rows, objective: Objective | ClassObjective) -> Score:
    return rows.any_stacker(kind).apply


@dataclass(frozen=True)
class FoldRow:
    """The performance on one fold of a rule that was fitted on the other folds."""

    fold: int
    threshold: float  # of the rule's score, fitted without this fold
    rates: ErrorRates  # on this fold
    auc: float  # on this fold


@dataclass(frozen=True)
class ClassFoldRow:
    """The performance on one fold of a rule among more than two classes that was fitted on the other folds."""

    fold: int
    offsets: tuple[float, ...]  # (C,), of the rule's scores, fitted without this fold
    rates: ClassRates  # on this fold


@dataclass(frozen=True, eq=False)
class Split:
    """A rule that was fitted without one fold. Its scores are not stored but computed each time, to save memory."""

    fold: int
    fold_of: Labels  # (n,)
    logits: Floats  # (n, m) or (n, m, C), of all rows
    fitted: FittedRule  # without the fold

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Which rows are in the fold (n,)."""
        return np.asarray(self.fold_of == self.fold)

    @property
    def scores(self) -> Floats:
        """The scores of all rows, (n,) or (n, C)."""
        return self.fitted.score(self.logits)

    @property
    def threshold(self) -> Cut:
        """The threshold that was fitted without the fold; offsets of the classes if the scores are (n, C)."""
        return self.fitted.threshold


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Nested predictions and scores: those of each row come from a rule that was fitted without the row's fold."""

    labels: Labels  # (n,)
    y_pred: Labels  # (n,)
    splits: tuple[Split, ...]  # one for each fold

    @property
    def scores(self) -> Floats:
        """The nested scores, (n,) or (n, C); those of different folds may have different scales."""
        logits = self.splits[0].logits
        scores = np.empty((len(logits), *logits.shape[2:]))
        for split in self.splits:
            inside = split.inside
            scores[inside] = split.scores[inside]
        return scores

    @property
    def margins(self) -> Floats:
        """The scores less the threshold of their fold's rule (n,), which puts the folds on one scale.

        Of more than two classes, they are the scores plus the offsets of their fold's rule (n, C).
        """
        margins = self.scores
        for split in self.splits:
            margins[split.inside] -= -np.asarray(split.threshold) if margins.ndim > 1 else split.threshold
        return margins

    @property
    def auc(self) -> float:
        """The AUC of the scores: the mean over the folds, each with the weight of its number of pairs of rows."""
        pairs = [row.rates.n_neg * row.rates.n_pos for row in self.folds]
        return sum(n * row.auc for n, row in zip(pairs, self.folds, strict=True)) / sum(pairs)

    @cached_property
    def folds(self) -> tuple[FoldRow, ...]:
        """The performance on each fold."""
        rows = []
        for split in self.splits:
            inside = split.inside
            y_true, scores = self.labels[inside], split.scores[inside]
            rates = error_rates(y_true, self.y_pred[inside])
            rows.append(FoldRow(split.fold, one_threshold(split.threshold), rates, auc(scores, y_true)))
        return tuple(rows)

    @cached_property
    def class_folds(self) -> tuple[ClassFoldRow, ...]:
        """The performance on each fold, among more than two classes."""
        rows = []
        for split in self.splits:
            y_true, y_pred = self.labels[split.inside], self.y_pred[split.inside]
            rates = class_rates(y_true, y_pred, split.logits.shape[2])
            rows.append(ClassFoldRow(split.fold, class_offsets(split.threshold), rates))
        return tuple(rows)


def cross_fit(rows: Rows, rule: Rule, objective: Objective | ClassObjective = HTER) -> CrossFit:
    """Fit `rule` without each fold in turn, and apply it to that fold.

    Parameters
    ----------
    rows : Rows
    rule : Rule
        Everything that it fits, the choice of a stacker included, is fitted without the fold.
    objective : Objective or ClassObjective
        What its thresholds, or offsets, minimise.

    Examples
    --------
    >>> table = FoldTable(np.array(list("abcd")), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    >>> oof = OofLogits(table, ("a",), np.array([[-1.0], [2.0], [-2.0], [5.0]]))
    >>> nested = cross_fit(oof.rows, of_score(member_logit(0)))
    >>> nested.y_pred, [row.threshold for row in nested.folds]
    (array([0, 1, 0, 1], dtype=int8), [1.5, 0.5])
    """
    labels, fold_of, logits = rows.labels, rows.fold_of, rows.logits
    y_pred, splits = np.empty(labels.size, np.int8), []
    for fold in rows.folds:
        split = Split(fold, fold_of, logits, rule(rows.without(fold), objective))
        inside = split.inside
        y_pred[inside] = apply_cut(split.scores[inside], split.threshold)
        splits.append(split)
    return CrossFit(labels, y_pred, tuple(splits))
