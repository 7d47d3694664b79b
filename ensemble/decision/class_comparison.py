"""The error rates of fixed predictions of several classes, and the comparison of two sets of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemble.config import seed_sequence
from ensemble.decision.bootstrap import Resampler, class_design_effects, design_effect
from ensemble.decision.class_intervals import (
    accuracy_interval,
    class_counting_intervals,
    precision_intervals,
    shapes_of_mean,
    shares_of_prior,
)
from ensemble.decision.class_refits import ACCURACY, MACRO_F1, MEAN_ERROR, measures
from ensemble.decision.comparison import FEW, Agreement, ClassRow, Difference, agreements, count_apart, paired_draws
from ensemble.decision.intervals import FEW_ERRORS, Interval, central
from ensemble.decision.rates import ClassRates, Floats, Labels, class_indices, class_rates

TABLES = 10_000
"""The number of draws of the confusion matrix behind the interval of macro F1. Its ends then have standard errors of
about 3 % of the standard deviation of macro F1."""


@dataclass(frozen=True)
class ClassMeasured:
    """The confusion matrix of fixed predictions of several classes, with 95 % intervals.

    The intervals of `errors` and `precisions` are those of each class (C,).
    """

    rates: ClassRates
    errors: tuple[Interval, ...]
    precisions: tuple[Interval, ...]
    mean_error: Interval
    macro_f1: Interval
    accuracy: Interval

    @classmethod
    def of_losses(cls, rates: ClassRates, losses: Sequence[Interval]) -> ClassMeasured:
        """Return rates with the intervals of their measures (2C + 3,), all of them losses; see class_refits.py."""
        classes = len(rates.confusion)
        return cls(
            rates=rates,
            errors=tuple(losses[:classes]),
            precisions=tuple(loss.complement for loss in losses[classes : 2 * classes]),
            mean_error=losses[MEAN_ERROR],
            macro_f1=losses[MACRO_F1].complement,
            accuracy=losses[ACCURACY].complement,
        )

    @property
    def recalls(self) -> tuple[Interval, ...]:
        """The intervals of the recall of each class (C,)."""
        return tuple(error.complement for error in self.errors)


@dataclass(frozen=True)
class ClassEvaluation:
    """The evaluation of fixed predictions of several classes against labels; see `comparison.Evaluation`."""

    measured: ClassMeasured
    classes: tuple[ClassRow, ...]  # one for each class, then "macro avg" and "weighted avg"

    @property
    def confusion(self) -> tuple[tuple[int, ...], ...]:
        """The counts [label][prediction]."""
        return self.measured.rates.confusion

    @property
    def accuracy(self) -> float:
        """The share of rows that are predicted correctly."""
        return self.measured.rates.accuracy

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes, 1 - mean error."""
        return 1 - self.measured.rates.mean_error


@dataclass(frozen=True)
class ClassComparison:
    """Two sets of predictions of several classes, A and B, on the same rows.

    Differences are B minus A. Of the error rates, a negative difference favours B; of macro F1 and of the accuracy, a
    positive one does.
    """

    a: ClassMeasured
    b: ClassMeasured
    errors: tuple[Difference, ...]  # of each class
    mean_error: Difference
    macro_f1: Difference
    accuracy: Difference
    agreement: tuple[Agreement, ...]  # among the rows of each class
    apart: int  # number of groups with a row on which A and B differ; without groups, the number of such rows

    def is_beyond_chance(self, difference: Difference) -> bool:
        """Return whether an interval excludes 0 and rests on at least `FEW` rows or groups with disagreement."""
        return self.apart >= FEW and not difference.interval.low <= 0 <= difference.interval.high

    @property
    def beyond_chance(self) -> bool:
        """Whether the difference in the mean error is beyond chance."""
        return self.is_beyond_chance(self.mean_error)


def measure_classes(
    labels: ArrayLike,
    y_pred: ArrayLike,
    classes: int,
    groups: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = 2000,
) -> ClassMeasured:
    """Return the error rates and precisions of fixed predictions, their mean error, macro F1 and accuracy.

    Without groups, the intervals count errors (see class_intervals.py). That of macro F1 has the quantiles of `TABLES`
    draws of the confusion matrix from a Dirichlet posterior, whose prior is that of the interval of the mean error: it
    is a, and a for the errors of each class together.

    With groups, the intervals are percentiles of a bootstrap that draws whole groups with replacement, within strata of
    groups with the same set of classes (`bootstrap.strata_of`); every class is in every replicate. An interval that
    rests on fewer than `FEW_ERRORS` errors of a class is widened to that of the counts, divided by design effects.

    Parameters
    ----------
    labels, y_pred : array (n,)
        Class indices, 0 to `classes` - 1; the labels contain every class.
    classes : int
        The number of classes C.
    groups : int64 array (n,), optional
        Rows of one group are drawn together; if None, every row is a group.
    seed : int
        The same seed gives the same intervals.
    replicates : int
        The number of bootstrap replicates.

    Raises
    ------
    DataError
        Shapes differ, a value is no class index, or a class is absent from the labels.

    Examples
    --------
    >>> measured = measure_classes([0] * 10 + [1] * 100 + [2] * 50, [0] * 10 + [1] * 100 + [2] * 50, 3)
    >>> measured.errors[0].low < 0.001, 0.1 < measured.errors[0].high < 0.25, measured.mean_error.high < 0.08
    (True, True, True)
    """
    rates = class_rates(labels, y_pred, classes)
    y_true, y_pred = np.asarray(labels, np.int8), np.asarray(y_pred, np.int8)
    if groups is None:
        return _counted(rates, _Effects.of(y_true, y_pred, None, classes), seed)
    losses = measures(_draw(y_true, [y_pred], classes, groups, seed, replicates)[0])
    bootstrapped = ClassMeasured.of_losses(rates, list(map(central, losses.T)))
    return class_widened(bootstrapped, y_true, y_pred, groups, seed)


def class_widened(
    measured: ClassMeasured, labels: Labels, y_pred: Labels, groups: ArrayLike | None = None, seed: int = 0
) -> ClassMeasured:
    """Return intervals of a bootstrap, each extended to cover that of the counts where errors are few.

    Errors of a class are few if there are fewer than `FEW_ERRORS`, divided by the design effect of the groups. The
    intervals of the mean error and of macro F1 are extended if any class has few errors.
    """
    rates, classes = measured.rates, len(measured.rates.confusion)
    effects = _Effects.of(labels, y_pred, groups, classes)
    counted, correct = _counted(rates, effects, seed), np.diag(rates.confusion)
    wrong, false = np.array(rates.counts) - correct, np.array(rates.predicted) - correct
    few_wrong, few_false = wrong / effects.labels < FEW_ERRORS, false / effects.predictions < FEW_ERRORS
    few, few_in_all = bool(few_wrong.any()), bool(wrong.sum() / effects.rows < FEW_ERRORS)
    return ClassMeasured(
        rates=rates,
        errors=tuple(map(_covering, measured.errors, counted.errors, few_wrong)),
        precisions=tuple(map(_covering, measured.precisions, counted.precisions, few_false)),
        mean_error=_covering(measured.mean_error, counted.mean_error, few),
        macro_f1=_covering(measured.macro_f1, counted.macro_f1, few),
        accuracy=_covering(measured.accuracy, counted.accuracy, few_in_all),
    )


def evaluate_classes(
    labels: ArrayLike,
    y_pred: ArrayLike,
    names: Sequence[str],
    groups: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = 2000,
) -> ClassEvaluation:
    """Evaluate fixed predictions of classes with these names: rates with intervals, and a classification report.

    The other parameters and the errors are those of `measure_classes`.

    Examples
    --------
    >>> evaluation = evaluate_classes([0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0], ("mask", "none", "wrong"))
    >>> evaluation.classes[0]
    ClassRow(name='mask', precision=0.5, recall=0.5, f1=0.5, support=2)
    """
    measured = measure_classes(labels, y_pred, len(names), groups, seed, replicates)
    rates = measured.rates
    columns = np.array([rates.precisions, rates.recalls, rates.f1_scores])
    macro, weighted = columns.mean(axis=1), np.average(columns, axis=1, weights=rates.counts)
    table = np.column_stack([columns, macro, weighted]).T.tolist()
    supports = zip((*names, "macro avg", "weighted avg"), (*rates.counts, rates.n, rates.n), strict=True)
    rows = zip(supports, table, strict=True)
    return ClassEvaluation(
        measured, tuple(ClassRow(name, precision, recall, f1, n) for (name, n), (precision, recall, f1) in rows)
    )


def compare_classes(
    labels: ArrayLike,
    y_pred_a: ArrayLike,
    y_pred_b: ArrayLike,
    classes: int,
    groups: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = 2000,
) -> ClassComparison:
    """Compare two sets of given predictions on the same rows, with paired intervals of the differences.

    Without groups, the differences in the error rates have the Dirichlet posterior of `compare_predictions`, and that
    in their mean has weaker priors (see class_intervals.py). The joint outcomes of both predictions of all classes are
    too many for a posterior, so the differences in macro F1 and in the accuracy come from a paired bootstrap, which
    draws rows with replacement within the classes. With groups, all intervals come from the paired bootstrap, which
    draws whole groups as `measure_classes` does.

    Nothing that was fitted on these rows may be compared in this way: see `compare_nested`.

    Parameters
    ----------
    labels, y_pred_a, y_pred_b : array (n,)
        Class indices, 0 to `classes` - 1; the labels contain every class.
    classes, groups, seed, replicates
        As in `measure_classes`.

    Raises
    ------
    DataError
        Shapes differ, a value is no class index, or a class is absent from the labels.

    Examples
    --------
    >>> labels, a = np.repeat([0, 1, 2], 50), np.repeat([0, 2, 2], 50)
    >>> compared = compare_classes(labels, a, labels, 3)
    >>> round(compared.mean_error.value, 4), compared.beyond_chance, compared.agreement[1].only_b
    (-0.3333, True, 50)
    """
    a, b = (measure_classes(labels, each, classes, groups, seed, replicates) for each in (y_pred_a, y_pred_b))
    y_true = class_indices("cannot compare the predictions", "labels", labels, classes)
    of_a, of_b = np.asarray(y_pred_a, np.int8), np.asarray(y_pred_b, np.int8)
    losses_a, losses_b = map(measures, _draw(y_true, [of_a, of_b], classes, groups, seed, replicates))
    agreement, apart = agreements(y_true, of_a, of_b, classes), count_apart(of_a, of_b, groups)
    losses = losses_b - losses_a
    errors, mean_error = losses[:, :classes], losses[:, MEAN_ERROR]
    if groups is None and apart:
        errors, mean_error = _posterior_differences(agreement, seed)
    values = np.array([(each.only_a - each.only_b) / each.n for each in agreement])
    return ClassComparison(
        a=a,
        b=b,
        errors=tuple(Difference(float(value), central(each)) for value, each in zip(values, errors.T, strict=True)),
        mean_error=Difference(float(values.mean()), central(mean_error)),
        macro_f1=Difference(b.rates.macro_f1 - a.rates.macro_f1, central(0.0 - losses[:, MACRO_F1])),
        accuracy=Difference(b.rates.accuracy - a.rates.accuracy, central(0.0 - losses[:, ACCURACY])),
        agreement=agreement,
        apart=apart,
    )


@dataclass(frozen=True, eq=False)
class _Effects:
    """Design effects of groups: of the rows of each class, of the rows predicted as each class, and of all rows."""

    labels: Floats  # (C,)
    predictions: Floats  # (C,)
    rows: float

    @classmethod
    def of(cls, y_true: Labels, y_pred: Labels, groups: ArrayLike | None, classes: int) -> _Effects:
        """Return those of groups (n,); all are 1 without groups."""
        if groups is None:
            return cls(np.ones(classes), np.ones(classes), 1.0)
        wrong, group_of = y_true != y_pred, np.unique(groups, return_inverse=True)[1]
        by_label = class_design_effects(y_true, y_pred, groups, classes)
        by_prediction = class_design_effects(y_pred, y_true, groups, classes)
        return cls(np.array(by_label), np.array(by_prediction), design_effect(wrong, group_of))


def _counted(rates: ClassRates, effects: _Effects, seed: int) -> ClassMeasured:
    """Return the rates with the intervals of the counts."""
    errors, mean_error = class_counting_intervals(rates, effects.labels.tolist())
    tables = posterior_tables(rates, effects.labels, np.random.default_rng(seed_sequence(seed, "macro-f1")))
    return ClassMeasured(
        rates=rates,
        errors=errors,
        precisions=precision_intervals(rates, effects.predictions.tolist()),
        mean_error=mean_error,
        macro_f1=central(1 - measures(tables * rates.n)[:, MACRO_F1]),
        accuracy=accuracy_interval(rates, effects.rows),
    )


def posterior_tables(rates: ClassRates, effects: Floats, rng: np.random.Generator) -> Floats:
    """Return draws of the shares of all rows by label and prediction from their posterior (`TABLES`, C, C).

    The prior adds a to the correct rows of a class, and a to its errors, in equal parts for the other classes. So the
    error rate of a class has the posterior Beta(errors + a, correct + a), and a is that of the interval of the mean
    error: Jeffreys' 1/2 for each of the C² cells would add C/2 rows to each class, most of them errors.

    Parameters
    ----------
    rates : ClassRates
    effects : float64 array (C,)
        The design effects of the classes, by which counts are divided.
    rng : Generator
    """
    classes = len(rates.confusion)
    wrong = (np.array(rates.counts) - np.diag(rates.confusion)) / effects
    priors = np.array(shapes_of_mean(rates, effects.tolist()))[:, 0] - wrong
    prior = np.where(np.eye(classes, dtype=bool), priors[:, None], priors[:, None] / (classes - 1))
    tables = rng.standard_gamma(np.array(rates.confusion) / effects[:, None] + prior, (TABLES, classes, classes))
    # A class keeps its share of the rows in expectation, whatever its design effect is.
    tables *= effects[:, None]
    return np.asarray(tables / tables.sum(axis=(1, 2), keepdims=True))


def _draw(
    y_true: Labels, y_pred: Sequence[Labels], classes: int, groups: ArrayLike | None, seed: int, replicates: int
) -> list[Floats]:
    """Return the confusion matrices (r, C, C) of predictions in the same bootstrap replicates."""
    joint = y_true.astype(np.int64)
    for each in y_pred:
        joint = joint * classes + each
    # Outcomes that do not occur are left out: with 18 classes and two predictions, there are 5,832.
    cells, outcome = np.unique(joint, return_inverse=True)
    rng = np.random.default_rng(seed_sequence(seed, "bootstrap" if len(y_pred) == 1 else "paired"))
    totals = Resampler(y_true, groups).draw_totals(outcome.reshape(-1), cells.size, rng, replicates).astype(np.float64)
    labels, tables = cells // classes ** len(y_pred), []
    for position in range(len(y_pred)):
        cell = labels * classes + cells // classes ** (len(y_pred) - 1 - position) % classes
        indicator = np.zeros((cells.size, classes**2))
        indicator[np.arange(cells.size), cell] = 1
        tables.append((totals @ indicator).reshape(-1, classes, classes))
    return tables


def _covering(interval: Interval, other: Interval, widen: bool) -> Interval:
    """Return the interval, extended to cover the other if `widen`."""
    if not widen:
        return interval
    return Interval(min(interval.low, other.low), max(interval.high, other.high))


def _posterior_differences(agreement: Sequence[Agreement], seed: int) -> tuple[Floats, Floats]:
    """Return draws of the differences in the error rates (r, C) and in their mean (r,) from the posterior."""
    rng = np.random.default_rng(seed_sequence(seed, "paired"))
    errors = np.stack([paired_draws(each, rng) for each in agreement], axis=1)
    priors = shares_of_prior(errors.var(axis=0))
    mean = sum(paired_draws(each, rng, prior) for each, prior in zip(agreement, priors, strict=True))
    return errors, np.asarray(mean / len(agreement))
