"""What a report shows of a decision row by row: nested logits, error curves, calibration, and doubtful labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.data.folds import FoldTable
from ensemble.decision.bootstrap import design_effect
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.class_objective import MEAN_CLASS_ERROR
from ensemble.decision.cross_fitting import CrossFit, OofLogits, cross_fit, member_logit, of_score, stack
from ensemble.decision.decision import Decision
from ensemble.decision.intervals import Interval, beta_interval, jeffreys
from ensemble.decision.label_issues import CALIBRATION_FOLDS, LabelIssues, rank_issues
from ensemble.decision.objective import HTER
from ensemble.decision.rates import Floats, Labels

PROBABILITY_BINS = 10
"""The number of equally wide bins of the predicted probability for which the calibration is shown."""


@dataclass(frozen=True, eq=False)
class TwoClassLogits:
    """The stacked logits of two classes.

    Attributes
    ----------
    nested : float64 array (n,)
        Each from a stacker that was fitted without the row's fold. The threshold of that fit is moved to the deployed
        threshold, which puts the folds on one scale.
    apparent : float64 array (n,)
        From the deployed stacker, which was fitted on all rows.
    probabilities : float64 array (n,)
        The logistic function of the nested logits before they were moved: the probability of label 1.
    threshold : float
        The deployed threshold.
    """

    nested: Floats
    apparent: Floats
    probabilities: Floats
    threshold: float


@dataclass(frozen=True, eq=False)
class Diagnostics:
    """A decision on its OOF rows. Everything is nested: the fit that predicts a row has not seen the row's fold.

    Attributes
    ----------
    table : FoldTable
        Ids, labels, folds and groups of the n rows.
    y_pred : int8 array (n,)
    contradiction : float64 array (n,)
        In logits: by how much another class than the given label is ahead. It is at least 0 where the prediction is
        wrong, and at most 0 where it is right.
    given_probability : float64 array (n,)
        The probability of the given label.
    against : int64 array (n,)
        The number of members that contradict the given label, each by itself.
    members : int
        The number of members of the stack.
    doubtful : LabelIssues or None
        The labels that confident learning takes for wrong; None where a class has too few rows for it.
    logits : TwoClassLogits or None
        None of more than two classes.
    """

    table: FoldTable
    y_pred: Labels
    contradiction: Floats
    given_probability: Floats
    against: NDArray[np.int64]
    members: int
    doubtful: LabelIssues | None
    logits: TwoClassLogits | None

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Whether the prediction of each row differs from its given label (n,)."""
        return np.asarray(self.y_pred != self.table.labels)


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """FPR and FNR at some thresholds, each array float64 (t,)."""

    thresholds: Floats
    fpr: Floats
    fnr: Floats

    @property
    def hter(self) -> Floats:
        """The HTER at each threshold (t,)."""
        return (self.fpr + self.fnr) / 2


@dataclass(frozen=True)
class ProbabilityBin:
    """The rows whose predicted probability of label 1 lies in [low, high), in the last bin also at 1.

    `share` is that of the rows of label 1 among them, with its 95 % interval from counts.
    """

    low: float
    high: float
    rows: int
    predicted: float  # the mean of the predicted probabilities
    share: float
    interval: Interval


def diagnose(decision: Decision | ClassDecision, oof: OofLogits, seed: int = 0) -> Diagnostics:
    """Return what the nested fits of a decision say of each OOF row.

    Parameters
    ----------
    decision : Decision or ClassDecision
    oof : OofLogits
        Of the members of its stack, averaged over its views. Offsets between fold models are subtracted here.
    seed : int
        The seed of the calibration that doubtful labels need.
    """
    if isinstance(decision, Decision):
        return _diagnose_two(decision, decision.aligned(oof), seed)
    return _diagnose_many(decision, oof, seed)


def margins_for_issues(oof: OofLogits, kind: str) -> Floats:
    """Return the nested logits of a kind of stacker by which labels are doubted, (n,) or (n, C).

    They are less the thresholds of the least HTER, or plus the offsets of the least mean class error, whatever the
    decision minimises: these put the folds on one scale.
    """
    objective = HTER if oof.classes == 2 else MEAN_CLASS_ERROR
    return cross_fit(oof.rows, stack(kind), objective).margins


def _diagnose_two(decision: Decision, oof: OofLogits, seed: int) -> Diagnostics:
    from scipy.special import expit

    rows, labels = oof.rows, oof.labels
    nested = cross_fit(rows, stack(decision.kind), decision.objective)
    members = [cross_fit(rows, of_score(member_logit(j)), decision.objective) for j in range(len(oof.members))]
    sign = 1 - 2 * labels.astype(np.float64)
    probabilities = np.asarray(expit(nested.scores), np.float64)
    logits = TwoClassLogits(
        nested=nested.margins + decision.threshold,
        apparent=decision.stacker.apply(oof.logits),
        probabilities=probabilities,
        threshold=decision.threshold,
    )
    against = np.asarray(sum((each.y_pred != labels).astype(np.int64) for each in members), np.int64)
    given = np.where(labels == 1, probabilities, 1 - probabilities)
    return _diagnostics(oof, nested, nested.margins * sign, given, against, decision.kind, seed, logits)


def _diagnose_many(decision: ClassDecision, oof: OofLogits, seed: int) -> Diagnostics:
    from scipy.special import softmax

    labels, every = oof.labels.astype(np.int64), np.arange(oof.labels.size)
    nested = cross_fit(oof.rows, stack(decision.kind), decision.objective)
    margins = nested.margins
    others = margins.copy()
    others[every, labels] = -np.inf
    against = np.asarray((oof.logits.argmax(axis=2) != labels[:, None]).sum(axis=1), np.int64)
    given = np.asarray(softmax(nested.scores, axis=1), np.float64)[every, labels]
    contradiction = others.max(axis=1) - margins[every, labels]
    return _diagnostics(oof, nested, contradiction, given, against, decision.kind, seed, None)


def _diagnostics(
    oof: OofLogits,
    nested: CrossFit,
    contradiction: Floats,
    given_probability: Floats,
    against: NDArray[np.int64],
    kind: str,
    seed: int,
    logits: TwoClassLogits | None,
) -> Diagnostics:
    enough = np.bincount(oof.labels, minlength=oof.classes).min() >= CALIBRATION_FOLDS
    return Diagnostics(
        table=oof.table,
        y_pred=nested.y_pred,
        contradiction=contradiction,
        given_probability=given_probability,
        against=against,
        members=len(oof.members),
        doubtful=rank_issues(margins_for_issues(oof, kind), oof.labels, seed) if enough else None,
        logits=logits,
    )


def error_curve(logits: ArrayLike, labels: ArrayLike, thresholds: ArrayLike) -> ErrorCurve:
    """Return FPR and FNR at these thresholds, exactly: an image is predicted as 1 iff its logit is >= the threshold.

    Parameters
    ----------
    logits : float64 array (n,)
    labels : int8 array (n,)
        0 or 1, both present.
    thresholds : float64 array (t,)

    Examples
    --------
    >>> curve = error_curve([-1.0, 0.5, 0.0, 2.0], [0, 0, 1, 1], [-2.0, 0.25, 3.0])
    >>> curve.fpr.tolist(), curve.fnr.tolist()
    ([1.0, 0.5, 0.0], [0.0, 0.5, 1.0])
    """
    x, y, cuts = np.asarray(logits, np.float64), np.asarray(labels), np.asarray(thresholds, np.float64)
    below = [np.searchsorted(np.sort(x[y == label]), cuts) / np.count_nonzero(y == label) for label in (0, 1)]
    return ErrorCurve(cuts, 1 - below[0], below[1])


def tradeoff_curve(logits: ArrayLike, labels: ArrayLike, points: int = 400) -> ErrorCurve:
    """Return FPR and FNR at about `points` thresholds that resolve both rates equally finely.

    Half of the thresholds are quantiles of the logits of label 0, and half of those of label 1. The curve begins where
    all images are predicted as 1, and ends where none is.
    """
    x, y = np.asarray(logits, np.float64), np.asarray(labels)
    grid = np.linspace(0, 1, points // 2)
    cuts = [np.quantile(x[y == label], grid, method="inverted_cdf") for label in (0, 1)]
    return error_curve(x, y, np.append(np.unique(np.concatenate(cuts)), np.inf))


def reliability(
    probabilities: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None, bins: int = PROBABILITY_BINS
) -> tuple[ProbabilityBin, ...]:
    """Return the share of label 1 in each bin of the predicted probability; bins without rows are left out.

    The intervals are Jeffreys intervals of the counts; where rows come in groups, counts are divided by the design
    effect of the groups.

    Parameters
    ----------
    probabilities : float64 array (n,)
        Of label 1, within [0, 1].
    labels : int8 array (n,)
        0 or 1.
    groups : int64 array (n,), optional
    bins : int

    Examples
    --------
    >>> low, high = reliability([0.1, 0.3, 0.8, 0.9], [0, 1, 1, 1], bins=2)
    >>> (low.rows, low.predicted, low.share), (high.rows, high.share)
    ((2, 0.2, 0.5), (2, 1.0))
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    group_of = None if groups is None else np.unique(groups, return_inverse=True)[1]
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    filled = []
    for number in np.unique(place).tolist():
        inside = place == number
        rows, share = int(inside.sum()), float(y[inside].mean())
        effect = 1.0 if group_of is None else design_effect(y[inside] == 1, group_of[inside])
        interval = beta_interval(jeffreys(share, rows, effect))
        filled.append(
            ProbabilityBin(number / bins, (number + 1) / bins, rows, float(p[inside].mean()), share, interval)
        )
    return tuple(filled)
