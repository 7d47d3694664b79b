"""Intervals of the error rates of several classes and of their mean."""

import itertools

import numpy as np
import pytest
from scipy.stats import beta, betabinom

from ensemble.decision.class_intervals import (
    accuracy_interval,
    class_counting_intervals,
    class_new_set_interval,
    mean_interval,
    precision_intervals,
    shapes_of_mean,
)
from ensemble.decision.intervals import counting_intervals, new_set_interval
from ensemble.decision.rates import ClassRates, ErrorRates
from ensemble.errors import DataError

OF_TWO = [((90, 10), (5, 395)), ((20, 0), (0, 7)), ((3, 1), (0, 4000))]


def of_errors(counts, errors):
    """Return rates with these counts of rows and of errors; the errors fall to the next class."""
    confusion = np.diag(np.subtract(counts, errors))
    confusion[np.arange(len(counts)), (np.arange(len(counts)) + 1) % len(counts)] += errors
    return ClassRates(tuple(map(tuple, confusion.tolist())))


def as_errors(confusion):
    rates = ClassRates(confusion)
    return rates, ErrorRates(*rates.errors, *rates.counts)


@pytest.mark.parametrize("confusion", OF_TWO)
@pytest.mark.parametrize("effects", [(1.0, 1.0), (4.0, 1.5)])
def test_for_two_classes_the_intervals_are_those_of_fpr_fnr_and_hter(confusion, effects):
    rates, of_two = as_errors(confusion)
    errors, mean = class_counting_intervals(rates, effects)
    assert (*errors, mean) == counting_intervals(of_two, effects)
    assert class_new_set_interval(rates, (17, 40), effects) == new_set_interval(of_two, 17, 40, effects)


SHAPES = [
    ((10.5, 90.5), (5.5, 95.5), (0.5, 50.5)),
    ((0.5, 0.5), (0.3, 2.0), (2.0, 0.4)),
    ((0.06, 10.06), (0.06, 30.06), (0.5, 8000.5), (3.5, 2.5)),
    tuple((0.5 + k, 30.0 + 20 * k) for k in range(18)),
]


@pytest.mark.parametrize("shapes", SHAPES)
def test_the_mean_of_betas_has_the_quantiles_of_draws(rng, shapes):
    drawn = sum(rng.beta(*shape, 1_000_000) for shape in shapes) / len(shapes)
    interval = mean_interval(shapes)
    for level, end in ((0.025, interval.low), (0.975, interval.high)):
        assert (drawn <= end).mean() == pytest.approx(level, abs=6e-4)  # 4 standard errors of a million draws


@pytest.mark.parametrize("shapes", SHAPES)
def test_a_finer_grid_gives_the_same(monkeypatch, shapes):
    once = mean_interval(shapes)
    monkeypatch.setattr("ensemble.decision.class_intervals.CELLS", 2**19)
    finer = mean_interval(shapes)
    assert (once.low, once.high) == pytest.approx((finer.low, finer.high), abs=1e-6)


def test_the_grid_agrees_with_the_exact_quadrature_of_two(monkeypatch):
    """A third variable that is almost constant at 0 leaves the sum of the other two as it is."""
    first, second = (10.5, 90.5), (0.5, 50.5)
    exact, grid = mean_interval((first, second)), mean_interval((first, second, (1.0, 1e12)))
    assert (1.5 * grid.low, 1.5 * grid.high) == pytest.approx((exact.low, exact.high), abs=1e-6)


def test_the_interval_of_each_class_is_that_of_jeffreys():
    rates = of_errors((40, 10, 200), (4, 0, 60))
    errors, _ = class_counting_intervals(rates, (2.0, 1.0, 4.0))
    shapes = ((2.5, 18.5), (0.5, 10.5), (15.5, 35.5))
    for interval, shape in zip(errors, shapes, strict=True):
        assert (interval.low, interval.high) == pytest.approx(beta.ppf([0.025, 0.975], *shape))


def test_the_priors_of_the_mean_share_one_error():
    priors = np.array(shapes_of_mean(of_errors((30,) * 18, (0,) * 18)))[:, 0]
    assert priors == pytest.approx(np.full(18, 1 / 18))
    priors = np.array(shapes_of_mean(of_errors((10, *(10_000,) * 17), (0,) * 18)))[:, 0]
    assert priors == pytest.approx([0.5] + [1 / 18] * 17)  # the variance of the mean is that of the small class


@pytest.mark.parametrize(
    ("counts", "shares"),
    [((30,) * 18, (0.05,) * 18), ((7,) * 18, (0.1,) * 18), ((10, *(300,) * 17), (0.2, *(0.01,) * 17))],
)
def test_the_interval_of_the_mean_of_18_classes_covers_the_truth(rng, monkeypatch, counts, shares):
    """The sum of Jeffreys posteriors covers it in 34 to 94 % of these cases."""
    monkeypatch.setattr("ensemble.decision.class_intervals.CELLS", 2**12)
    inside = 0
    for _ in range(400):
        mean = class_counting_intervals(of_errors(counts, rng.binomial(counts, shares)))[1]
        inside += mean.low <= np.mean(shares) <= mean.high
    assert inside / 400 > 0.89


def test_precision_and_accuracy_are_counted():
    rates = ClassRates(((8, 2, 0), (1, 9, 0), (0, 5, 0)))
    expected = [beta.ppf([0.025, 0.975], a, b) for a, b in ((8.5, 1.5), (9.5, 7.5), (0.5, 0.5))]
    for interval, ends in zip(precision_intervals(rates), expected, strict=True):
        assert (interval.low, interval.high) == pytest.approx(ends)
    accuracy = accuracy_interval(rates, 2.0)
    assert (accuracy.low, accuracy.high) == pytest.approx(beta.ppf([0.025, 0.975], 9.0, 4.5))
    assert precision_intervals(rates, (2.0, 1.0, 1.0))[0].low == pytest.approx(beta.ppf(0.025, 4.5, 1.0))


@pytest.mark.parametrize("counts_new", [(1, 1, 1), (3, 5, 2), (4, 4, 12)])
@pytest.mark.parametrize("rates", [of_errors((9, 20, 5), (0, 0, 0)), of_errors((20, 30, 10), (5, 3, 4))])
def test_the_new_set_interval_is_that_of_enumerating_all_counts(rates, counts_new):
    shapes = shapes_of_mean(rates)
    means, chances = [], []
    for errors in itertools.product(*(range(n + 1) for n in counts_new)):
        means.append(sum(e / n for e, n in zip(errors, counts_new, strict=True)) / 3)
        each = zip(errors, counts_new, shapes, strict=True)
        chances.append(np.prod([betabinom.pmf(e, n, *shape) for e, n, shape in each]))
    order = np.argsort(means)
    below = np.cumsum(np.array(chances)[order])
    expected = [np.array(means)[order][np.searchsorted(below, level - 1e-9)] for level in (0.025, 0.975)]
    interval = class_new_set_interval(rates, counts_new)
    assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-8)


def test_of_many_different_counts_the_new_set_interval_has_the_quantiles_of_draws(rng):
    counts, errors = np.arange(18) * 7 + 43, np.arange(18) % 6
    rates = of_errors(counts, errors)
    p = rng.beta(*np.array(shapes_of_mean(rates)).T, size=(300_000, 18))
    drawn = (rng.binomial(counts, p) / counts).mean(axis=1)
    interval = class_new_set_interval(rates, tuple(counts.tolist()))
    for level, end in ((0.025, interval.low), (0.975, interval.high)):
        assert (drawn <= end).mean() == pytest.approx(level, abs=2e-3)


def test_a_new_set_needs_every_class():
    with pytest.raises(DataError, match="got 0 of label 1"):
        class_new_set_interval(of_errors((5, 5, 5), (1, 1, 1)), (3, 0, 2))
