import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, betabinom, mannwhitneyu

from ensemble.decision.bootstrap import kinds_of_group
from ensemble.decision.comparison import measure_predictions
from ensemble.decision.intervals import beta_mean_interval, chance_interval, counting_intervals, new_set_interval
from ensemble.decision.rates import ErrorRates, auc, error_rates
from ensemble.errors import DataError


def closed_form(rates: ErrorRates) -> tuple[float, float]:
    variance = rates.fpr * (1 - rates.fpr) / rates.n_neg + rates.fnr * (1 - rates.fnr) / rates.n_pos
    half = 1.959964 * variance**0.5 / 2
    return rates.hter - half, rates.hter + half


def independent_rows(rng, n=4000):
    labels = (rng.random(n) < 0.88).astype(np.int8)
    return labels, labels ^ (rng.random(n) < np.where(labels, 0.1, 0.2))


def test_the_bootstrap_agrees_with_the_closed_form(rng):
    labels, y_pred = independent_rows(rng)
    low, high = closed_form(error_rates(labels, y_pred))
    for groups in (None, np.arange(labels.size)):
        interval = measure_predictions(labels, y_pred, groups, replicates=8000).hter
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.04 * (high - low))


def test_the_new_set_interval_agrees_with_the_closed_form(rng):
    rates = ErrorRates(0.2, 0.1, 480, 3520)
    interval = new_set_interval(rates, 480, 3520)
    low, high = closed_form(rates)
    assert interval.high - interval.low == pytest.approx(2**0.5 * (high - low), rel=0.04)


def test_duplicated_rows_widen_the_interval_only_if_they_are_one_group(rng):
    labels, y_pred = independent_rows(rng, 1000)
    once = measure_predictions(labels, y_pred, replicates=8000).hter
    labels, y_pred, groups = (np.repeat(column, 4) for column in (labels, y_pred, np.arange(1000)))
    blind, aware = (measure_predictions(labels, y_pred, which, replicates=8000).hter for which in (None, groups))
    assert aware.high - aware.low == pytest.approx(once.high - once.low, rel=0.05)
    assert blind.high - blind.low == pytest.approx((once.high - once.low) / 2, rel=0.06)


def test_groups_of_both_classes_never_leave_a_replicate_without_one(rng):
    labels, y_pred = np.array([0, 1, 0, 1, 0, 1, 1]), np.array([0, 1, 1, 1, 0, 0, 1])
    interval = measure_predictions(labels, y_pred, [5, 5, 7, 7, 9, 9, 2]).hter
    assert 0 <= interval.low < interval.high <= 1


@pytest.mark.parametrize("largest", [3, 90], ids=["small groups", "large groups"])
def test_kinds_of_group_are_counted(rng, largest):
    size = rng.integers(1, largest + 1, 200)
    groups, outcome = np.repeat(rng.permutation(200), size), rng.integers(0, 8, size.sum())
    outcome[: size[0]] = 7  # of large groups, one whose counts are too many to be the digits of one number
    table = np.array([np.bincount(outcome[groups == group], minlength=8) for group in range(200)])
    expected, counted = np.unique(table, axis=0, return_counts=True)
    far = np.array([-(2**63), 2**63 - 1])[groups % 2] // 2 + groups  # numbers with much between them
    for named in (groups, groups * 3 - 100, groups * 1000, far):
        kinds, counts = kinds_of_group(outcome, 8, named)
        np.testing.assert_array_equal(kinds, expected)
        np.testing.assert_array_equal(counts, counted)


def test_a_seed_fixes_the_interval(rng):
    labels, y_pred = independent_rows(rng)
    assert measure_predictions(labels, y_pred, seed=3).hter == measure_predictions(labels, y_pred, seed=3).hter
    assert measure_predictions(labels, y_pred, seed=3).hter != measure_predictions(labels, y_pred, seed=4).hter


def test_the_new_set_interval_covers_the_hter_that_is_measured(rng):
    fpr, fnr, n_neg, n_pos, new_neg, new_pos = 0.15, 0.06, 300, 2200, 75, 550
    inside = 0
    for _ in range(600):
        old = ErrorRates(rng.binomial(n_neg, fpr) / n_neg, rng.binomial(n_pos, fnr) / n_pos, n_neg, n_pos)
        measured = (rng.binomial(new_neg, fpr) / new_neg + rng.binomial(new_pos, fnr) / new_pos) / 2
        interval = new_set_interval(old, new_neg, new_pos)
        inside += interval.low <= measured <= interval.high
    assert 0.925 < inside / 600 < 0.975


def test_no_error_seen_is_no_promise_of_none():
    interval = new_set_interval(ErrorRates(0.0, 0.0, 20, 20), 1000, 1000)
    assert interval.high > 0.03


@pytest.mark.parametrize("rates", [ErrorRates(0.2, 0.1, 4_000, 30_000), ErrorRates(0.05, 0.3, 20_000, 3_000)])
def test_of_large_counts_the_counting_intervals_are_those_of_the_binomial_closed_form(rates):
    fpr, fnr, hter = counting_intervals(rates)
    for interval, rate, n in ((fpr, rates.fpr, rates.n_neg), (fnr, rates.fnr, rates.n_pos)):
        half = 1.959964 * (rate * (1 - rate) / n) ** 0.5
        assert (interval.low, interval.high) == pytest.approx((rate - half, rate + half), abs=0.05 * half)
    low, high = closed_form(rates)
    assert (hter.low, hter.high) == pytest.approx((low, high), abs=0.025 * (high - low))


def test_of_small_counts_the_counting_intervals_are_those_of_jeffreys():
    fpr, fnr, hter = counting_intervals(ErrorRates(0.0, 0.1, 30, 210))
    for interval, wrong, n in ((fpr, 0, 30), (fnr, 21, 210)):
        expected = beta.ppf([0.025, 0.975], wrong + 0.5, n - wrong + 0.5)
        assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-9)
    assert (fpr.low + fnr.low) / 2 < hter.low < 0.05 < hter.high < (fpr.high + fnr.high) / 2


SHAPES = [((0.5, 10.5), (0.5, 3.5)), ((30.5, 970.5), (5.5, 200.5)), ((0.5, 0.5), (2.0, 2.0)), ((530.5, 9152.5), (7, 9))]


@pytest.mark.parametrize(("first", "second"), SHAPES)
def test_the_mean_of_two_betas_has_the_quantiles_of_an_independent_quadrature(first, second):
    def at_most(total):  # integrates over the other variable, adaptively
        value, _ = quad(lambda u: beta.cdf(total - beta.ppf(u, *second), *first), 0, 1, limit=500, epsabs=1e-9)
        return value

    interval = beta_mean_interval(first, second)
    assert at_most(2 * interval.low) == pytest.approx(0.025, abs=1e-5)
    assert at_most(2 * interval.high) == pytest.approx(0.975, abs=1e-5)


@pytest.mark.parametrize(("n_neg", "n_pos"), [(1, 1), (3, 5), (12, 40)])
@pytest.mark.parametrize("rates", [ErrorRates(0.0, 0.0, 4, 6), ErrorRates(0.25, 0.1, 20, 30)])
def test_the_new_set_interval_is_that_of_enumerating_all_counts(rates, n_neg, n_pos):
    shapes = [
        (round(rate * n) + 0.5, n - round(rate * n) + 0.5)
        for rate, n in ((rates.fpr, rates.n_neg), (rates.fnr, rates.n_pos))
    ]
    hters, chances = [], []
    for false_pos in range(n_neg + 1):
        for false_neg in range(n_pos + 1):
            hters.append((false_pos / n_neg + false_neg / n_pos) / 2)
            chances.append(betabinom.pmf(false_pos, n_neg, *shapes[0]) * betabinom.pmf(false_neg, n_pos, *shapes[1]))
    order = np.argsort(hters)
    below = np.cumsum(np.array(chances)[order])
    expected = [np.array(hters)[order][np.searchsorted(below, level - 1e-12)] for level in (0.025, 0.975)]
    interval = new_set_interval(rates, n_neg, n_pos)
    assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-8)


def test_a_new_set_needs_both_classes():
    with pytest.raises(DataError, match="got 0 of label 0 and 5 of label 1"):
        new_set_interval(ErrorRates(0.1, 0.1, 10, 10), 0, 5)


# --- an AUC and chance ------------------------------------------------------------------------------------------------


def test_an_auc_is_compared_with_chance_as_mann_and_whitney_do(rng):
    """The interval excludes 0.5 exactly where the test rejects: in 5 % of the cases without a difference."""
    excluded = []
    for _ in range(1000):
        labels, logits = (np.arange(60) % 3 > 0).astype(np.int8), rng.normal(size=60)
        interval = chance_interval(auc(logits, labels), 20, 40)
        test = mannwhitneyu(logits[labels == 1], logits[labels == 0], method="asymptotic", use_continuity=False)
        assert (interval.low > 0.5 or interval.high < 0.5) == (test.pvalue < 0.05)
        excluded.append(test.pvalue < 0.05)
    assert 0.03 < np.mean(excluded) < 0.07


def test_a_perfect_order_of_four_images_may_be_chance():
    few = chance_interval(1.0, 2, 2)
    assert few.low < 0.5 and few.high == 1.0
    assert chance_interval(1.0, 5, 5).low > 0.5
    assert chance_interval(0.0, 5, 5).low == 0.0
