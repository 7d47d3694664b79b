"""The logistic stacker, the rules that it is measured against, and the cross-fitting that measures them all alike.

A rule is whatever turns member logits and labels into a score and a threshold:

    rule(logits (n, m), labels (n,)) -> FittedRule
    fitted(logits (n, m)) -> calls (n,)       1 iff fitted.score(logits) >= fitted.threshold

The stack, one member, the mean of logits and the majority vote are rules, so one `cross_fit` serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.decision.rates import Calls, ErrorRates, Floats, auc, call, checked, error_rates, zero_or_one
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ArtifactError, DataError


@dataclass(frozen=True, eq=False)
class OofLogits:
    """Out-of-fold logits: each cell predicted exactly once, by a model that never saw that image.

    Parameters
    ----------
    ids : array (n,)
        Distinct.
    labels : int8 array (n,)
        0 or 1, both in every fold.
    fold_of : int8 array (n,)
        At least two folds.
    members : tuple of m str
        Distinct, in the order of the columns.
    logits : float64 array (n, m)
        Log-odds of label 1, finite.
    groups : int64 array (n,), optional
        Rows of one group are in one fold.

    Raises
    ------
    ArtifactError
        A member's logit is not finite; names member and fold.
    DataError
        Any other of the above does not hold.

    Notes
    -----
    The arrays are kept as read-only copies.
    """

    ids: NDArray[Any]
    labels: Calls
    fold_of: Calls
    members: tuple[str, ...]
    logits: Floats
    groups: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        labels, m = zero_or_one("OOF logits", "labels", self.labels), len(self.members)
        arrays: dict[str, NDArray[Any]] = {
            "ids": np.array(self.ids),
            "labels": labels,
            "fold_of": np.array(self.fold_of, np.int8),
            "logits": np.array(self.logits, np.float64),
        }
        if self.groups is not None:
            arrays["groups"] = np.array(self.groups, np.int64)
        for name, array in arrays.items():
            expected = (labels.size, m) if name == "logits" else (labels.size,)
            if array.shape != expected:
                raise DataError("OOF logits", f"{name} must have shape {expected}; got {array.shape}")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        self._check()

    def _check(self) -> None:
        if not self.members or len(set(self.members)) < len(self.members):
            raise DataError("OOF logits", f"members must be distinct and at least one; got {self.members}")
        if len(set(self.ids.tolist())) < self.ids.size:
            raise DataError("OOF logits", f"{self.ids.size} ids must be distinct")
        if len(self.folds) < 2:
            raise DataError("OOF logits", f"at least two folds are needed; got {self.folds}")
        for fold in self.folds:
            inside = self.fold_of == fold
            for name, logits in zip(self.members, self.logits.T, strict=True):
                if lost := int(np.count_nonzero(~np.isfinite(logits[inside]))):
                    raise ArtifactError(
                        f"member {name}",
                        f"OOF logits must be finite; got {lost} in fold {fold} that are not",
                        f"run: thera train-member --arch {name}",
                    )
            checked(f"fold {fold}", self.logits[inside], self.labels[inside], ndim=2)
        if self.groups is not None:
            _, first, group_of = np.unique(self.groups, return_index=True, return_inverse=True)
            split = self.fold_of != self.fold_of[first][group_of]
            if split.any():
                raise DataError("OOF logits", f"group {self.groups[split][0]} must lie in one fold; it is split")

    @property
    def folds(self) -> tuple[int, ...]:
        return tuple(np.unique(self.fold_of).tolist())


@dataclass(frozen=True)
class Stacker:
    """A linear combination of member logits: log-odds of label 1 at the class share of the rows that it was fitted on.

    >>> Stacker(("a", "b"), (1.0, 0.5), -1.0).apply([[2.0, 4.0], [0.0, 0.0]])
    array([ 3., -1.])
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]  # (m,), one a member
    bias: float

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.members) or not np.isfinite((*self.weights, self.bias)).all():
            raise DataError(
                "stacker",
                f"needs a finite weight for each of {self.members} and a finite bias; got {self.weights}, {self.bias}",
            )

    def apply(self, logits: ArrayLike) -> Floats:
        """Return the stacked logit (n,) of member logits (n, m).

        Summed member by member, so that a row's value does not depend on the batch that it came in.

        Raises
        ------
        DataError
            The shape is not (n, m).
        """
        x = np.asarray(logits, np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.members):
            raise DataError("stacker", f"needs logits of shape (n, {len(self.members)}); got {x.shape}")
        stacked = np.full(len(x), self.bias)
        for weight, column in zip(self.weights, x.T, strict=True):
            stacked += weight * column
        return stacked


def fit_stacker(logits: ArrayLike, labels: ArrayLike, members: tuple[str, ...]) -> Stacker:
    """Return the L2-regularised logistic regression of the labels on the member logits.

    - The classes weigh the same in the likelihood, as they do in HTER. Where the members' logits are not quite linear
      in the true log-odds, the fit is then best where the HTER cut lies. log(n_pos / n_neg) is put back into the bias
      afterwards, so that the stacked logit keeps its meaning: log-odds at the class share of these rows.
    - The inputs are standardised first, so that the penalty (C = 1) presses on every member alike, whatever the scale
      of its logits (focal loss changes it at will); the scaling is folded back into weights and bias.
    - A column without spread gets the weight 0.

    Deterministic: second-order solver, no random numbers.

    Parameters
    ----------
    logits : float64 array (n, m)
        Log-odds of label 1, finite.
    labels : int8 array (n,)
        0 or 1, both present.
    members : tuple of m str
        Names of the columns.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.

    Examples
    --------
    >>> stacker = fit_stacker([[-1.0, 7.0], [0.5, 7.0], [-0.5, 7.0], [1.0, 7.0]], [0, 0, 1, 1], ("a", "b"))
    >>> stacker.weights[0] > 0, stacker.weights[1]
    (True, 0.0)
    """
    from sklearn.linear_model import LogisticRegression

    x, y = checked("cannot fit the stacker", logits, labels, ndim=2)
    spread = np.ptp(x, axis=0) > 0
    centre, scale = x.mean(axis=0), np.where(spread, x.std(axis=0), 1.0)
    model = LogisticRegression(C=1.0, class_weight="balanced", solver="newton-cholesky", tol=1e-8)
    model.fit((x - centre) / scale * spread, y)
    weights: Floats = np.where(spread, model.coef_[0] / scale, 0.0)
    n_pos = int(np.count_nonzero(y))
    bias = float(model.intercept_[0]) - float(weights @ centre) + float(np.log(n_pos / (y.size - n_pos)))
    return Stacker(tuple(members), tuple(weights.tolist()), bias)


Score: TypeAlias = Callable[[Floats], Floats]


@dataclass(frozen=True)
class FittedRule:
    """A score of member logits, (n, m) -> (n,), and the threshold at which it is called 1."""

    score: Score
    threshold: float

    def __call__(self, logits: Floats) -> Calls:
        return call(self.score(logits), self.threshold)


Rule: TypeAlias = Callable[[Floats, Calls], FittedRule]


def member_logit(column: int) -> Score:
    """Return the score that is one member's logit."""
    return lambda logits: logits[:, column]


def mean_logit(logits: Floats) -> Floats:
    """Return the unweighted mean over the members, (n, m) -> (n,)."""
    return np.asarray(logits.mean(axis=1))


def vote_share(thresholds: ArrayLike) -> Score:
    """Return the score that is the share of members whose logit reaches their own threshold (m,).

    Called at 1/2 it is the majority vote; half of an even number of votes is a 1, by the one tie rule.

    >>> vote_share([0.0, 1.0])(np.array([[0.5, 0.5], [-1.0, 0.0]]))
    array([0.5, 0. ])
    """
    cuts = np.asarray(thresholds, np.float64)
    return lambda logits: np.asarray((logits >= cuts).mean(axis=1))


def own_threshold(score: Score) -> Rule:
    """Return the rule that fits nothing but the threshold of `score`."""
    return lambda logits, labels: FittedRule(score, fit_threshold(score(logits), labels))


def fixed(score: Score, threshold: float) -> Rule:
    """Return the rule that fits nothing at all."""
    return lambda logits, labels: FittedRule(score, threshold)


def majority_vote(logits: Floats, labels: Calls) -> FittedRule:
    """Fit the majority vote of the members at their own thresholds, the method of the public solutions."""
    return FittedRule(vote_share([fit_threshold(column, labels) for column in logits.T]), 0.5)


def stack(members: tuple[str, ...]) -> Rule:
    """Return the rule that fits a stacker and the threshold of its logit."""

    def rule(logits: Floats, labels: Calls) -> FittedRule:
        return own_threshold(fit_stacker(logits, labels, members).apply)(logits, labels)

    return rule


@dataclass(frozen=True)
class FoldRow:
    """What a rule reached on one fold, fitted on all the others."""

    fold: int
    threshold: float  # of the rule's score, fitted without this fold
    rates: ErrorRates
    auc: float


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Nested calls and scores (n,): each row's come from a rule that was fitted without the row's fold."""

    called: Calls
    scores: Floats
    folds: tuple[FoldRow, ...]


def cross_fit(oof: OofLogits, rule: Rule) -> CrossFit:
    """Refit `rule` without each fold in turn and apply it to that fold.

    Examples
    --------
    >>> oof = OofLogits(range(4), [0, 1, 0, 1], [0, 0, 1, 1], ("a",), [[-1.0], [2.0], [-2.0], [5.0]])
    >>> nested = cross_fit(oof, own_threshold(member_logit(0)))
    >>> nested.called, [row.threshold for row in nested.folds]
    (array([0, 1, 0, 1], dtype=int8), [1.5, 0.5])
    """
    called, scores = np.empty(oof.labels.size, np.int8), np.empty(oof.labels.size)
    rows = []
    for fold in oof.folds:
        inside = oof.fold_of == fold
        fitted = rule(oof.logits[~inside], oof.labels[~inside])
        scores[inside] = fitted.score(oof.logits[inside])
        called[inside] = call(scores[inside], fitted.threshold)
        truth = oof.labels[inside]
        rates = error_rates(truth, called[inside])
        rows.append(FoldRow(fold, float(fitted.threshold), rates, auc(scores[inside], truth)))
    return CrossFit(called, scores, tuple(rows))
