"""The error rates of fixed predictions, and the comparison of two sets of predictions on the same rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemble.config import seed_sequence
from ensemble.decision.bootstrap import Resampler, design_effects
from ensemble.decision.intervals import Interval, central, counting_intervals, widened
from ensemble.decision.rates import ErrorRates, Floats, Labels, check_predictions, error_rates

DRAWS = 100_000
"""The number of draws from the posterior of a paired difference. An end of the interval then has a standard error below
1 % of the standard deviation of the difference."""

FEW = 10
"""The number of rows or groups with disagreement below which no difference is reported as beyond chance: intervals are
unreliable with so few."""


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

    def __neg__(self) -> Difference:
        """Return A minus B; of shares that are 1 minus an error rate, this is B minus A."""
        return Difference(0.0 - self.value, Interval(0.0 - self.interval.high, 0.0 - self.interval.low))


@dataclass(frozen=True)
class Agreement:
    """The numbers of rows that only A, only B, both or neither predict correctly."""

    only_a: int
    only_b: int
    both: int
    neither: int

    @property
    def n(self) -> int:
        """The number of rows."""
        return self.only_a + self.only_b + self.both + self.neither

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
    """Return FPR, FNR and HTER of fixed predictions, each with its 95 % interval.

    Without groups, the intervals count errors (Jeffreys, `counting_intervals`): they hold for few errors and for none.
    With groups, they are percentiles of a bootstrap that draws whole groups with replacement, within three strata: the
    groups with only label 0, with only label 1, and with both. Groups with the same counts of the four outcomes are
    interchangeable, so a replicate is one multinomial draw over the kinds of group. Where a class has fewer than
    `FEW_ERRORS` errors, the interval is widened to that of the counts (`intervals.widened`).

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
    >>> measured = measure_predictions([0] * 10 + [1] * 100, [0] * 10 + [1] * 100)
    >>> measured.fpr.low < 0.001, 0.1 < measured.fpr.high < 0.25
    (True, True)
    """
    y_true, y_pred = check_predictions("cannot measure the predictions", labels, y_pred)
    rates = error_rates(y_true, y_pred)
    if groups is None:
        return Measured(rates, *counting_intervals(rates))
    rng = np.random.default_rng(seed_sequence(seed, "bootstrap"))
    totals = Resampler(y_true, groups).draw_totals(y_true.astype(np.int64) * 2 + y_pred, 4, rng, replicates)
    true_neg, false_pos, false_neg, true_pos = totals.T
    drawn = false_pos / (true_neg + false_pos), false_neg / (false_neg + true_pos)
    intervals = central(drawn[0]), central(drawn[1]), central((drawn[0] + drawn[1]) / 2)
    return Measured(rates, *widened(intervals, rates, design_effects(y_true, y_pred, groups)))


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


def compare_predictions(labels: ArrayLike, y_pred_a: ArrayLike, y_pred_b: ArrayLike, seed: int = 0) -> Comparison:
    """Compare two sets of given predictions on the same rows, with paired intervals of the differences.

    A row of a label is predicted correctly by both, by only one, or by neither. The shares of these four outcomes have
    a Dirichlet posterior under the Jeffreys prior, independent for the two labels; the intervals are quantiles of
    `DRAWS` draws from it. They hold for few rows on which the two differ (Agresti and Min 2005, Simple improved
    confidence intervals for comparing matched proportions).

    Nothing that was fitted on these rows may be compared in this way: see `compare_nested`.

    Parameters
    ----------
    labels, y_pred_a, y_pred_b : array (n,)
        0 or 1; the labels contain both classes. Rows are assumed to be independent.
    seed : int
        The same seed gives the same intervals.

    Returns
    -------
    Comparison
        Differences are B minus A; a negative difference favours B.

    Raises
    ------
    DataError
        Shapes differ, a value is neither 0 nor 1, or a class is absent from the labels.

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
    a, b = (measure_predictions(y_true, y_pred) for y_pred in (y_pred_a, y_pred_b))
    return comparison_of(a, b, paired_differences(y_true, y_pred_a, y_pred_b, seed), y_true, y_pred_a, y_pred_b)


def comparison_of(
    a: Measured,
    b: Measured,
    differences: tuple[Difference, Difference, Difference],
    y_true: Labels,
    y_pred_a: Labels,
    y_pred_b: Labels,
    groups: ArrayLike | None = None,
) -> Comparison:
    """Return the comparison with these rates and differences in FPR, FNR and HTER, and its counts of agreement."""
    of_neg, of_pos = agreements(y_true, y_pred_a, y_pred_b)
    return Comparison(
        a,
        b,
        *differences,
        agreement=(of_neg, of_pos),
        apart=count_apart(y_pred_a, y_pred_b, groups),
    )


def count_apart(y_pred_a: Labels, y_pred_b: Labels, groups: ArrayLike | None) -> int:
    """Return the number of groups with a row on which A and B differ; without groups, the number of such rows."""
    differ = y_pred_a != y_pred_b
    return int(np.count_nonzero(differ)) if groups is None else np.unique(np.asarray(groups)[differ]).size


def agreements(y_true: Labels, y_pred_a: Labels, y_pred_b: Labels, classes: int = 2) -> tuple[Agreement, ...]:
    """Return how many rows of each class A and B predict correctly (C,)."""
    outcome = y_true.astype(np.int64) * 4 + (y_pred_a == y_true) * 2 + (y_pred_b == y_true)
    counts = np.bincount(outcome, minlength=4 * classes).reshape(classes, 4).tolist()
    return tuple(Agreement(only_a, only_b, both, neither) for neither, only_b, only_a, both in counts)


def paired_differences(
    y_true: Labels, y_pred_a: Labels, y_pred_b: Labels, seed: int = 0
) -> tuple[Difference, Difference, Difference]:
    """Return the differences in FPR, FNR and HTER of given predictions, B minus A, as `compare_predictions` does.

    If A and B predict the same for all rows, the differences are 0 with intervals of zero width.
    """
    rng = np.random.default_rng(seed_sequence(seed, "paired"))
    of_labels, same = agreements(y_true, y_pred_a, y_pred_b), np.array_equal(y_pred_a, y_pred_b)
    values = [(each.only_a - each.only_b) / each.n for each in of_labels]
    drawn = [np.zeros(1) if same else paired_draws(each, rng) for each in of_labels]
    fpr, fnr = (Difference(value, central(each)) for value, each in zip(values, drawn, strict=True))
    return fpr, fnr, Difference(sum(values) / 2, central((drawn[0] + drawn[1]) / 2))


def paired_draws(agreement: Agreement, rng: np.random.Generator, prior: float = 0.5) -> Floats:
    """Return draws (`DRAWS`,) of the error rate of B minus that of A on the rows of a label, from its posterior.

    Parameters
    ----------
    agreement : Agreement
        Of the rows of the label.
    rng : Generator
    prior : float
        The count that the prior adds to each of the four outcomes; 1/2 is the Jeffreys prior.
    """
    # The two outcomes without a difference are drawn as one.
    alike = agreement.both + agreement.neither + 2 * prior
    shares = rng.dirichlet([agreement.only_b + prior, agreement.only_a + prior, alike], DRAWS)
    return np.asarray(shares[:, 1] - shares[:, 0])
