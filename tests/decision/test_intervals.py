import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, betabinom, binom, mannwhitneyu

from ensemble.decision.bootstrap import design_effects, kinds_of_group
from ensemble.decision.comparison import measure_predictions
from ensemble.decision.intervals import (
    FEW_ERRORS,
    Interval,
    beta_mean_interval,
    chance_interval,
    counting_intervals,
    measured_interval,
    new_set_interval,
    widened,
)
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


def test_a_seed_fixes_the_interval_of_groups_and_rows_need_none(rng):
    labels, y_pred = independent_rows(rng)
    groups = np.arange(labels.size) // 2

    def hter(seed, of):
        return measure_predictions(labels, y_pred, of, seed=seed).hter

    assert hter(3, groups) == hter(3, groups) != hter(4, groups)
    assert hter(3, None) == hter(4, None) == counting_intervals(error_rates(labels, y_pred))[2]


def test_without_groups_the_intervals_are_those_of_the_counts():
    labels, y_pred = np.repeat([0, 1], [10, 400]), np.repeat([0, 1], [10, 400])
    measured = measure_predictions(labels, y_pred)
    assert measured.fpr.low == pytest.approx(0, abs=1e-4)
    assert measured.fpr.high == pytest.approx(beta.ppf(0.975, 0.5, 10.5)) and measured.fpr.high > 0.1
    assert measured.fnr.high == pytest.approx(beta.ppf(0.975, 0.5, 400.5)) and measured.fnr.high < 0.01
    assert (measured.fpr, measured.fnr, measured.hter) == counting_intervals(measured.rates)
    assert measured.hter.high > 0.05


def test_groups_without_an_error_count_as_one_row_each():
    labels, y_pred = np.repeat([0, 1], [40, 400]), np.repeat([0, 1], [40, 400])
    once, grouped = (measure_predictions(labels[::4], y_pred[::4]), measure_predictions(labels, y_pred, G_OF_4[:440]))
    for name in ("fpr", "fnr", "hter"):
        one, other = getattr(once, name), getattr(grouped, name)
        assert other.low == 0 and other.high == pytest.approx(one.high, abs=1e-8)
    assert grouped.fpr.high > 3 * measure_predictions(labels, y_pred).fpr.high


G_OF_4 = np.arange(2000) // 4
"""Groups of 4 rows each."""


# --- groups as rows ---------------------------------------------------------------------------------------------------


def rows_in_groups(rng, groups=300, like=0.7):
    """Return labels, predictions and groups of 1 to 5 rows of one label, whose errors mostly coincide."""
    size = rng.integers(1, 6, groups)
    group_of = np.repeat(np.arange(groups), size)
    labels = (np.arange(groups) % 3 > 0).astype(np.int8)[group_of]
    shared, alone = rng.random(groups)[group_of], rng.random(group_of.size)
    draw = np.where(rng.random(group_of.size) < like, shared, alone)
    order = rng.permutation(group_of.size)
    return labels[order], (labels ^ (draw < np.where(labels, 0.3, 0.2)))[order], group_of[order] * 7 - 50


def test_a_design_effect_is_the_ratio_of_the_variances_of_drawing_groups_and_rows(rng):
    labels, y_pred, groups = rows_in_groups(rng)
    effects = design_effects(labels, y_pred, groups)
    assert min(effects) > 1.5
    for label, effect in zip((0, 1), effects, strict=True):
        wrong, of = y_pred[labels == label] != label, groups[labels == label]
        errors, sizes = np.array([(wrong[of == group].sum(), (of == group).sum()) for group in np.unique(of)]).T
        by_group = rng.integers(0, sizes.size, (6000, sizes.size))
        drawn = errors[by_group].sum(axis=1) / sizes[by_group].sum(axis=1)
        by_row = wrong[rng.integers(0, wrong.size, (6000, wrong.size))].mean(axis=1)
        assert effect == pytest.approx(drawn.var() / by_row.var(), rel=0.12)


def test_a_design_effect_of_rows_that_are_all_right_or_all_wrong_is_that_of_equal_rows(rng):
    labels, _, groups = rows_in_groups(rng)
    sizes = [np.unique(groups[labels == label], return_counts=True)[1] for label in (0, 1)]
    expected = [(each**2).sum() / each.sum() for each in sizes]  # a group's mean size, as a row sees it
    for y_pred in (labels, 1 - labels):
        assert design_effects(labels, y_pred, groups) == pytest.approx(expected)
    assert min(expected) > 3
    one_wrong = labels.copy()
    one_wrong[np.flatnonzero(labels == 0)[0]] = 1
    of_0, of_1 = design_effects(labels, one_wrong, groups)
    assert of_0 < 1.5 and of_1 == pytest.approx(expected[1])


def test_a_design_effect_is_1_without_groups_of_several_rows_or_where_errors_spread():
    labels, y_pred = np.repeat([0, 1], 8), np.tile([0, 1], 8)  # each pair has one error
    assert design_effects(labels, y_pred, None) == (1.0, 1.0)
    assert design_effects(labels, y_pred, np.arange(16)) == (1.0, 1.0)
    assert design_effects(labels, y_pred, np.arange(16) // 2) == (1.0, 1.0)
    assert design_effects(labels, y_pred, np.tile([0, 1], 8)) == (4.0, 4.0)  # groups span both labels


def test_counts_are_divided_by_the_design_effect():
    rates, effects = ErrorRates(0.2, 0.1, 40, 400), (4.0, 2.0)
    fpr, fnr, hter = counting_intervals(rates, effects)
    assert (fpr.low, fpr.high) == pytest.approx(beta.ppf([0.025, 0.975], 2.5, 8.5))
    assert (fnr.low, fnr.high) == pytest.approx(beta.ppf([0.025, 0.975], 20.5, 180.5))
    assert hter == beta_mean_interval((2.5, 8.5), (20.5, 180.5))
    alike = new_set_interval(ErrorRates(0.2, 0.1, 10, 200), 10, 200)
    assert new_set_interval(rates, 40, 400, effects) == alike != new_set_interval(rates, 40, 400)
    assert new_set_interval(rates, 1, 1, effects) == new_set_interval(ErrorRates(0.2, 0.1, 10, 200), 1, 1)


def test_intervals_are_widened_where_a_class_has_few_errors():
    narrow, wide = (Interval(0.2, 0.2001),) * 3, (Interval(0.0, 1.0),) * 3
    few, many = ErrorRates((FEW_ERRORS - 1) / 100, 0.2, 100, 1000), ErrorRates(FEW_ERRORS / 100, 0.2, 100, 1000)
    counted = counting_intervals(few)
    hull = tuple(Interval(min(0.2, each.low), max(0.2001, each.high)) for each in counted)
    assert widened(narrow, few) == hull != counted
    assert hull[0].high > 0.3 and hull[2].high - hull[2].low > 0.05
    assert widened(wide, few) == wide and widened(narrow, many) == narrow
    swapped = ErrorRates(few.fnr, few.fpr, few.n_pos, few.n_neg)
    assert widened(narrow, swapped)[1] == hull[0]
    effects = (1.01, 1.0)  # of as many errors, fewer count
    of_effects = counting_intervals(many, effects)[0]
    assert widened(narrow, many, effects)[0] == Interval(min(0.2, of_effects.low), of_effects.high)


# --- new sets and counts ----------------------------------------------------------------------------------------------


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


def test_the_interval_of_what_is_measured_sums_the_binomials_exactly():
    """Against the sum over all counts of errors, for one pair of rates and for several."""
    n_neg, n_pos = 7, 11
    for rates in (np.array([[0.3, 0.1]]), np.array([[0.3, 0.1], [0.0, 0.4], [0.5, 0.5]])):
        values, mass = [], []
        for fpr, fnr in rates:
            for a in range(n_neg + 1):
                for b in range(n_pos + 1):
                    values.append((a / n_neg + b / n_pos) / 2)
                    mass.append(binom.pmf(a, n_neg, fpr) * binom.pmf(b, n_pos, fnr) / len(rates))
        order = np.argsort(values)
        cumulative = np.cumsum(np.array(mass)[order])
        ends = [np.array(values)[order][np.searchsorted(cumulative, level)] for level in (0.025, 0.975)]
        interval = measured_interval(rates, n_neg, n_pos)
        assert (interval.low, interval.high) == pytest.approx(ends, abs=1e-8)


def test_groups_widen_what_is_measured():
    rates = np.array([[0.2, 0.1]])
    alone, grouped = measured_interval(rates, 400, 400), measured_interval(rates, 400, 400, (4.0, 4.0))
    assert grouped == measured_interval(rates, 100, 100)
    assert grouped.high - grouped.low > 1.8 * (alone.high - alone.low)
