"""The error rates of fixed predictions, and the comparison of two sets of predictions on the same rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.bootstrap import Resampler
from ensemble.decision.intervals import Interval, central
from ensemble.decision.rates import ErrorRates, Floats, Labels, check_predictions, error_rates

FEW = 10
"""The number of rows or groups with disagreement below which no difference is reported as beyond chance: the bootstrap
interval is unreliable with so few."""


@dataclass(frozen=True)
class Measured:
    """The error rates of fixed predictions, with the 95 % intervals of FPR, FNR and HTER."""

    rates: ErrorRates
    fpr: Interval
    fnr: Interval
    hter: Interval


@dataclass(frozen=True)
class ClassRow:
    """A row of the classification report: one class, or a mean over both classes."""

    name: str  # "0", "1", "macro avg" or "weighted avg"
    precision: float  # 0 where no row is predicted as this class
    recall: float
    f1: float
    support: int  # number of rows


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of fixed predictions against labels."""

    measured: Measured
    confusion: tuple[tuple[int, int], tuple[int, int]]  # counts [label][prediction]
    classes: tuple[ClassRow, ...]
    accuracy: float

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the two classes, 1 - HTER."""
        return 1 - self.measured.rates.hter


@dataclass(frozen=True)
class Difference:
    """An error rate of B minus that of A, negative where B is better, with its 95 % interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Agreement:
    """The numbers of rows that only A, only B, both or neither predict correctly."""

    only_a: int
    only_b: int
    both: int
    neither: int

    @property
    def p_value(self) -> float:
        """The two-sided p-value of the exact McNemar test, which assumes independent rows.

        Under the null hypothesis of equal error rates, each row that only A or only B predicts correctly falls to
        either with probability 1/2 (McNemar 1947). Without such rows the p-value is 1.

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
    agreement: tuple[Agreement, Agreement]  # among the rows of label 0, and among those of label 1
    apart: int  # number of groups with a row on which A and B differ; without groups, the number of such rows

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval of the difference in HTER excludes 0 and rests on at least `FEW` disagreements."""
        return self.apart >= FEW and not self.hter.interval.low <= 0 <= self.hter.interval.high


def measure_predictions(
    labels: ArrayLike, y_pred: ArrayLike, groups: ArrayLike | None = None, seed: int = 0, replicates: int = 2000
) -> Measured:
    """Return FPR, FNR and HTER of fixed predictions, each with its class-stratified percentile-bootstrap interval.

    Whole groups are drawn with replacement within three strata: the groups with only label 0, with only label 1, and
    with both. Groups with the same counts of the four outcomes are interchangeable, so a replicate is one multinomial
    draw over the kinds of group, not a draw of rows. Without groups that is two binomial draws. The interval of a rate
    has zero width if no row of that label is predicted wrongly.

    Parameters
    ----------
    labels, y_pred : array (n,)
        0 or 1; the labels contain both classes.
    groups : int64 array (n,), optional
        Rows of one group are drawn together; if None, every row is a group.
    seed : int
        The same seed gives the same intervals.
    replicates : int
        The number of bootstrap replicates.

    Raises
    ------
    DataError
        Shapes differ, a value is neither 0 nor 1, or a class is absent from the labels.

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
    """Evaluate fixed predictions: error rates with intervals, confusion matrix and classification report.

    The parameters and errors are those of `measure_predictions`.

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
    """Compare two sets of fixed predictions on the same rows, with paired bootstrap intervals of the differences.

    A replicate draws rows (whole groups where there are groups) with both of their predictions, so the variation that A
    and B have in common cancels in the difference. A row has one of eight outcomes, label × prediction of A ×
    prediction of B; replicates are drawn as in `measure_predictions`.

    Parameters
    ----------
    labels, y_pred_a, y_pred_b : array (n,)
        0 or 1; the labels contain both classes.
    groups : int64 array (n,), optional
        Rows of one group are drawn together; if None, every row is a group.
    seed : int
        The same seed gives the same intervals.
    replicates : int
        The number of bootstrap replicates.

    Returns
    -------
    Comparison
        Differences are B minus A; a negative difference favours B.

    Raises
    ------
    DataError
        Shapes differ, a value is neither 0 nor 1, or a class is absent from the labels.

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
    """Return the differences in FPR, FNR and HTER, as `compare_predictions` does, without checking the arrays."""
    totals = _totals(_outcomes(labels, y_pred_a, y_pred_b), 8, groups, "paired bootstrap", seed, replicates)
    neg, pos = totals[:, :4], totals[:, 4:]  # one label each; columns are the predictions of A and B: 00, 01, 10, 11
    fpr, fnr, hter = _intervals((neg[:, 1] - neg[:, 2]) / neg.sum(axis=1), (pos[:, 2] - pos[:, 1]) / pos.sum(axis=1))
    a, b = error_rates(labels, y_pred_a), error_rates(labels, y_pred_b)
    return Difference(b.fpr - a.fpr, fpr), Difference(b.fnr - a.fnr, fnr), Difference(b.hter - a.hter, hter)


def _outcomes(labels: Labels, y_pred_a: Labels, y_pred_b: Labels) -> NDArray[np.int64]:
    """Return the outcome of each row (n,), in 0 to 7: the bits are label, prediction of A, prediction of B."""
    return labels.astype(np.int64) * 4 + y_pred_a * 2 + y_pred_b


def _totals(
    outcome: NDArray[np.int64], outcomes: int, groups: ArrayLike | None, stream: str, seed: int, replicates: int
) -> NDArray[np.int64]:
    """Return how often each outcome occurs in each replicate, (replicates, outcomes), from a named random stream."""
    rng = np.random.default_rng(seed_sequence(seed, stream))
    return Resampler((outcome >= outcomes // 2).astype(np.int8), groups).draw_totals(outcome, outcomes, rng, replicates)


def _intervals(fpr: Floats, fnr: Floats) -> tuple[Interval, Interval, Interval]:
    """Return the intervals of FPR, FNR and HTER, or of differences in them, from replicates (r,) of FPR and FNR."""
    return central(fpr), central(fnr), central((fpr + fnr) / 2)
