"""Predictions against labels: their error rates, and whether two sets of predictions differ beyond chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.bootstrap import Resampler
from ensemble.decision.intervals import Interval, central
from ensemble.decision.rates import ErrorRates, Floats, Labels, check_predictions, error_rates

FEW = 10
"""Fewer disagreements than this are too few for an interval that leaves out 0 to mean anything."""


@dataclass(frozen=True)
class Measured:
    """The error rates of fixed predictions, and the 95 % interval of each."""

    rates: ErrorRates
    fpr: Interval
    fnr: Interval
    hter: Interval


@dataclass(frozen=True)
class ClassRow:
    """A line of the classification report, of a class or of a mean over both."""

    name: str  # "0", "1", "macro avg" or "weighted avg"
    precision: float  # 0 where nothing is predicted so
    recall: float
    f1: float
    support: int  # images


@dataclass(frozen=True)
class Evaluation:
    """Fixed predictions measured against labels."""

    measured: Measured
    confusion: tuple[tuple[int, int], tuple[int, int]]  # images, by label, then by prediction
    classes: tuple[ClassRow, ...]
    accuracy: float

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the two classes, 1 - HTER."""
        return 1 - self.measured.rates.hter


@dataclass(frozen=True)
class Difference:
    """A rate of B minus that of A, below 0 where B is better, and its 95 % interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Agreement:
    """On how many rows which of two sets of predictions is right."""

    only_a: int
    only_b: int
    both: int
    neither: int

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the exact McNemar test; it takes rows as independent.

        The rows on which just one is right fall to either side with probability 1/2 if both are as good (McNemar 1947).

        >>> Agreement(only_a=1, only_b=7, both=90, neither=2).p_value
        0.0703125
        """
        from scipy.stats import binomtest

        differ = self.only_a + self.only_b
        return float(binomtest(self.only_a, differ).pvalue) if differ else 1.0


@dataclass(frozen=True)
class Comparison:
    """Two sets of predictions, A and B, on the same rows."""

    a: Measured
    b: Measured
    fpr: Difference
    fnr: Difference
    hter: Difference
    agreement: tuple[Agreement, Agreement]  # on the rows of label 0, and of label 1
    apart: int  # groups (rows, where there are no groups) that hold a row on which A and B differ

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval of the HTER's difference leaves out 0, and enough disagreements stand behind it."""
        return self.apart >= FEW and not self.hter.interval.low <= 0 <= self.hter.interval.high


def measure_predictions(
    labels: ArrayLike, y_pred: ArrayLike, groups: ArrayLike | None = None, seed: int = 0, replicates: int = 2000
) -> Measured:
    """Return FPR, FNR and HTER of fixed predictions, each with its class-stratified percentile-bootstrap interval.

    Whole groups are drawn, with replacement, within the strata "only label 0", "only label 1" and "both". Groups with
    the same counts of the four outcomes are alike, so a replicate is one multinomial draw over the kinds of group, not
    one over rows; with a row a group that is two binomial draws. An interval has no width where no prediction is wrong.

    Parameters
    ----------
    labels, y_pred : array (n,)
        0 or 1; both classes among the labels.
    groups : int64 array (n,), optional
        Rows of one value stand or fall together; every row by itself if None.
    seed : int
        The same seed gives the same intervals.
    replicates : int
        Bootstrap draws.

    Raises
    ------
    DataError
        As `error_rates`, or the groups' shape differs.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 8 and 13.

    Examples
    --------
    >>> measured = measure_predictions([0] * 100 + [1] * 100, [1] * 20 + [0] * 80 + [1] * 100)
    >>> measured.fpr.low < 0.2 < measured.fpr.high, measured.fnr
    (True, Interval(low=0.0, high=0.0))
    """
    y_true, y_pred = check_predictions("cannot measure the predictions", labels, y_pred)
    totals = _totals(y_true.astype(np.int64) * 2 + y_pred, 4, groups, "bootstrap", seed, replicates)
    true_neg, false_pos, false_neg, true_pos = totals.T
    intervals = _intervals(false_pos / (true_neg + false_pos), false_neg / (false_neg + true_pos))
    return Measured(error_rates(y_true, y_pred), *intervals)


def evaluate_predictions(
    labels: ArrayLike, y_pred: ArrayLike, groups: ArrayLike | None = None, seed: int = 0, replicates: int = 2000
) -> Evaluation:
    """Return all that is told of predictions against labels: rates, confusion matrix, classification report.

    Parameters and errors are those of `measure_predictions`.

    Examples
    --------
    >>> evaluation = evaluate_predictions([0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0])
    >>> evaluation.confusion, evaluation.classes[0]
    (((1, 1), (1, 3)), ClassRow(name='0', precision=0.5, recall=0.5, f1=0.5, support=2))
    """
    from sklearn.metrics import classification_report

    y_true, y_pred = check_predictions("cannot evaluate the predictions", labels, y_pred)
    report = classification_report(y_true, y_pred, labels=[0, 1], output_dict=True, zero_division=0)
    (tn, fp), (fn, tp) = np.bincount(y_true * 2 + y_pred, minlength=4).reshape(2, 2).tolist()
    return Evaluation(
        measured=measure_predictions(y_true, y_pred, groups, seed, replicates),
        confusion=((tn, fp), (fn, tp)),
        classes=tuple(
            ClassRow(name, row["precision"], row["recall"], row["f1-score"], int(row["support"]))
            for name, row in report.items()
            if name != "accuracy"
        ),
        accuracy=(tn + tp) / y_true.size,
    )


def compare_predictions(
    labels: ArrayLike,
    y_pred_a: ArrayLike,
    y_pred_b: ArrayLike,
    groups: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = 2000,
) -> Comparison:
    """Compare two sets of fixed predictions on the same rows; the intervals of the differences are paired.

    A replicate draws rows (whole groups where there are groups) with both their predictions, so what the two have in
    common cancels in the difference. A row has one of eight outcomes, label × prediction of A × prediction of B, and is
    drawn as in `measure_predictions`.

    Parameters
    ----------
    labels, y_pred_a, y_pred_b : array (n,)
        0 or 1; both classes among the labels.
    groups : int64 array (n,), optional
        Rows of one value stand or fall together; every row by itself if None.
    seed : int
        The same seed gives the same intervals.
    replicates : int
        Bootstrap draws.

    Returns
    -------
    Comparison
        Differences are B minus A: a negative one says that B errs less.

    Raises
    ------
    DataError
        As `measure_predictions`.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 8 and 13.

    Examples
    --------
    >>> labels = [0] * 100 + [1] * 100
    >>> a, b = [1] * 30 + [0] * 70 + [1] * 100, [1] * 10 + [0] * 90 + [1] * 100
    >>> compared = compare_predictions(labels, a, b)
    >>> round(compared.hter.value, 4), compared.beyond_chance, compared.agreement[0]
    (-0.1, True, Agreement(only_a=0, only_b=20, both=70, neither=10))
    """
    y_true, y_pred_a = check_predictions("cannot compare the predictions of A", labels, y_pred_a)
    y_pred_b = check_predictions("cannot compare the predictions of B", y_true, y_pred_b)[1]
    a, b = (measure_predictions(y_true, y_pred, groups, seed, replicates) for y_pred in (y_pred_a, y_pred_b))
    fpr, fnr, hter = differences(y_true, y_pred_a, y_pred_b, groups, seed, replicates)
    of_neg, of_pos = np.bincount(_outcomes(y_true, y_pred_a, y_pred_b), minlength=8).reshape(2, 4).tolist()
    differ = y_pred_a != y_pred_b
    return Comparison(
        a=a,
        b=b,
        fpr=fpr,
        fnr=fnr,
        hter=hter,
        agreement=(
            Agreement(only_a=of_neg[1], only_b=of_neg[2], both=of_neg[0], neither=of_neg[3]),
            Agreement(only_a=of_pos[2], only_b=of_pos[1], both=of_pos[3], neither=of_pos[0]),
        ),
        apart=int(np.count_nonzero(differ)) if groups is None else np.unique(np.asarray(groups)[differ]).size,
    )


def differences(
    labels: Labels,
    y_pred_a: Labels,
    y_pred_b: Labels,
    groups: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = 2000,
) -> tuple[Difference, Difference, Difference]:
    """Return the differences in FPR, FNR and HTER alone, as `compare_predictions` does, without its checks."""
    totals = _totals(_outcomes(labels, y_pred_a, y_pred_b), 8, groups, "paired bootstrap", seed, replicates)
    neg, pos = totals[:, :4], totals[:, 4:]  # of a label, by the predictions of A and B: 00, 01, 10, 11
    fpr, fnr, hter = _intervals((neg[:, 1] - neg[:, 2]) / neg.sum(axis=1), (pos[:, 2] - pos[:, 1]) / pos.sum(axis=1))
    a, b = error_rates(labels, y_pred_a), error_rates(labels, y_pred_b)
    return Difference(b.fpr - a.fpr, fpr), Difference(b.fnr - a.fnr, fnr), Difference(b.hter - a.hter, hter)


def _outcomes(labels: Labels, y_pred_a: Labels, y_pred_b: Labels) -> NDArray[np.int64]:
    return labels.astype(np.int64) * 4 + y_pred_a * 2 + y_pred_b


def _totals(
    outcome: NDArray[np.int64], outcomes: int, groups: ArrayLike | None, stream: str, seed: int, replicates: int
) -> NDArray[np.int64]:
    """Return how often each outcome occurs in the bootstrap replicates of a seed's stream, (replicates, outcomes)."""
    rng = np.random.default_rng(seed_sequence(seed, stream))
    return Resampler((outcome >= outcomes // 2).astype(np.int8), groups).draw_totals(outcome, outcomes, rng, replicates)


def _intervals(fpr: Floats, fnr: Floats) -> tuple[Interval, Interval, Interval]:
    """Return the intervals of FPR, FNR and HTER, or of their differences, from replicates (r,) of the first two."""
    return central(fpr), central(fnr), central((fpr + fnr) / 2)
