"""Calls against labels: what they are worth, and whether other calls on the same rows are better beyond chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.intervals import Interval, central, draw_totals, kinds_of_group
from ensemble.decision.rates import Calls, ErrorRates, Floats, checked_calls, error_rates

FEW = 10
"""Fewer disagreements than this are too few for an interval that leaves out 0 to mean anything."""


@dataclass(frozen=True)
class Measured:
    """The error rates of fixed calls, and the 95 % interval of each."""

    rates: ErrorRates
    fpr: Interval
    fnr: Interval
    hter: Interval


@dataclass(frozen=True)
class ClassRow:
    """A line of the classification report, of a class or of a mean over both."""

    name: str  # "0", "1", "macro avg" or "weighted avg"
    precision: float  # 0 where nothing is called so
    recall: float
    f1: float
    support: int  # images


@dataclass(frozen=True)
class Evaluation:
    """Fixed calls measured against labels."""

    measured: Measured
    confusion: tuple[tuple[int, int], tuple[int, int]]  # images, by label, then by call
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
    """On how many rows which of two sets of calls is right."""

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
    """Two sets of calls, A and B, on the same rows."""

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


def measure_calls(
    labels: ArrayLike, called: ArrayLike, groups: ArrayLike | None = None, seed: int = 0, replicates: int = 2000
) -> Measured:
    """Return FPR, FNR and HTER of fixed calls, each with its class-stratified percentile-bootstrap interval.

    Whole groups are drawn, with replacement, within the strata "only label 0", "only label 1" and "both". Groups with
    the same counts of the four outcomes are alike, so a replicate is one multinomial draw over the kinds of group, not
    one over rows; with a row a group that is two binomial draws. An interval has no width where no call is wrong.

    Parameters
    ----------
    labels, called : array (n,)
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
    >>> measured = measure_calls([0] * 100 + [1] * 100, [1] * 20 + [0] * 80 + [1] * 100)
    >>> measured.fpr.low < 0.2 < measured.fpr.high, measured.fnr
    (True, Interval(low=0.0, high=0.0))
    """
    truth, calls = checked_calls("cannot measure the calls", labels, called)
    totals = _totals(truth.astype(np.int64) * 2 + calls, 4, groups, "bootstrap", seed, replicates)
    true_neg, false_pos, false_neg, true_pos = totals.T
    intervals = _intervals(false_pos / (true_neg + false_pos), false_neg / (false_neg + true_pos))
    return Measured(error_rates(truth, calls), *intervals)


def evaluate_calls(
    labels: ArrayLike, called: ArrayLike, groups: ArrayLike | None = None, seed: int = 0, replicates: int = 2000
) -> Evaluation:
    """Return all that is told of calls against labels: rates, confusion matrix, classification report.

    Parameters and errors are those of `measure_calls`.

    Examples
    --------
    >>> evaluation = evaluate_calls([0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0])
    >>> evaluation.confusion, evaluation.classes[0]
    (((1, 1), (1, 3)), ClassRow(name='0', precision=0.5, recall=0.5, f1=0.5, support=2))
    """
    from sklearn.metrics import classification_report

    truth, calls = checked_calls("cannot evaluate the calls", labels, called)
    report = classification_report(truth, calls, labels=[0, 1], output_dict=True, zero_division=0)
    (tn, fp), (fn, tp) = np.bincount(truth * 2 + calls, minlength=4).reshape(2, 2).tolist()
    return Evaluation(
        measured=measure_calls(truth, calls, groups, seed, replicates),
        confusion=((tn, fp), (fn, tp)),
        classes=tuple(
            ClassRow(name, row["precision"], row["recall"], row["f1-score"], int(row["support"]))
            for name, row in report.items()
            if name != "accuracy"
        ),
        accuracy=(tn + tp) / truth.size,
    )


def compare_calls(
    labels: ArrayLike,
    called_a: ArrayLike,
    called_b: ArrayLike,
    groups: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = 2000,
) -> Comparison:
    """Compare two sets of fixed calls on the same rows; the intervals of the differences are paired.

    A replicate draws rows (whole groups where there are groups) with both their calls, so what the two have in common
    falls out of the difference. A row has one of eight outcomes, label × call of A × call of B; the draw is that of
    `measure_calls`: by class, one multinomial over the kinds of group.

    Parameters
    ----------
    labels, called_a, called_b : array (n,)
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
        As `measure_calls`.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 8 and 13.

    Examples
    --------
    >>> labels = [0] * 100 + [1] * 100
    >>> a, b = [1] * 30 + [0] * 70 + [1] * 100, [1] * 10 + [0] * 90 + [1] * 100
    >>> compared = compare_calls(labels, a, b)
    >>> round(compared.hter.value, 4), compared.beyond_chance, compared.agreement[0]
    (-0.1, True, Agreement(only_a=0, only_b=20, both=70, neither=10))
    """
    truth, calls_a = checked_calls("cannot compare the calls of A", labels, called_a)
    calls_b = checked_calls("cannot compare the calls of B", truth, called_b)[1]
    a, b = (measure_calls(truth, calls, groups, seed, replicates) for calls in (calls_a, calls_b))
    fpr, fnr, hter = differences(truth, calls_a, calls_b, groups, seed, replicates)
    of_neg, of_pos = np.bincount(_outcomes(truth, calls_a, calls_b), minlength=8).reshape(2, 4).tolist()
    differ = calls_a != calls_b
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
    labels: Calls,
    called_a: Calls,
    called_b: Calls,
    groups: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = 2000,
) -> tuple[Difference, Difference, Difference]:
    """Return the differences in FPR, FNR and HTER alone, as `compare_calls` does; its calls are taken as they are."""
    totals = _totals(_outcomes(labels, called_a, called_b), 8, groups, "paired bootstrap", seed, replicates)
    neg, pos = totals[:, :4], totals[:, 4:]  # of a label, by the calls of A and B: 00, 01, 10, 11
    fpr, fnr, hter = _intervals((neg[:, 1] - neg[:, 2]) / neg.sum(axis=1), (pos[:, 2] - pos[:, 1]) / pos.sum(axis=1))
    a, b = error_rates(labels, called_a), error_rates(labels, called_b)
    return Difference(b.fpr - a.fpr, fpr), Difference(b.fnr - a.fnr, fnr), Difference(b.hter - a.hter, hter)


def _outcomes(labels: Calls, called_a: Calls, called_b: Calls) -> NDArray[np.int64]:
    return labels.astype(np.int64) * 4 + called_a * 2 + called_b


def _totals(
    outcome: NDArray[np.int64], outcomes: int, groups: ArrayLike | None, stream: str, seed: int, replicates: int
) -> NDArray[np.int64]:
    """Return how often each outcome occurs in the bootstrap replicates of a seed's stream, (replicates, outcomes)."""
    kinds, counts = kinds_of_group(outcome, outcomes, groups)
    return draw_totals(kinds, counts, np.random.default_rng(seed_sequence(seed, stream)), replicates)


def _intervals(fpr: Floats, fnr: Floats) -> tuple[Interval, Interval, Interval]:
    """Return the intervals of FPR, FNR and HTER, or of their differences, from replicates (r,) of the first two."""
    return central(2 * fpr), central(2 * fnr), central(fpr + fnr)
