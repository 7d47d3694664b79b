from itertools import pairwise

import numpy as np
import pytest
from by_hand import best_by_trying_all, refitted_by_hand, weighted_rates
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from ensemble.data.folds import FoldTable
from ensemble.decision.bootstrap import Resampler
from ensemble.decision.comparison import measure_predictions
from ensemble.decision.cross_fitting import OofLogits, cross_fit, member_logit, of_score, stack
from ensemble.decision.cuts import Cuts
from ensemble.decision.objective import HTER, BoundedFnr, BoundedFpr, Objective, WeightedError
from ensemble.decision.rates import apply_threshold, error_rates
from ensemble.decision.refits import (
    CELLS_AT_ONCE,
    FixedRule,
    RefitRule,
    Replicate,
    refit_errors,
    refit_interval,
    refit_replicates,
)
from ensemble.decision.threshold import fit_threshold

OBJECTIVES = [Objective.parse(form) for form in ("hter", "cost:5,2", "fpr:0", "fpr:0.3", "fnr:0.1", "fnr:1")]
ids = {"ids": lambda objective: objective.text}
ALONE = of_score(member_logit(0))
"""The rule that fits a threshold to the first member."""


def pair(rates):
    return rates.fpr, rates.fnr


def prepared(oof, rule, objective=HTER):
    """Return a rule as bootstrap replicates need it."""
    scores, splits = rule(oof.rows, objective).score(oof.logits), cross_fit(oof.rows, rule, objective).splits
    return RefitRule(scores, oof.labels, splits, objective)


def pair_at(cuts, table, cut):
    fpr, fnr = cuts.rates(table)
    return fpr[cut], fnr[cut]


# --- the cuts ---------------------------------------------------------------------------------------------------------

weighted = st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1), st.integers(0, 3)), max_size=30).map(
    lambda rows: np.array([(0, 0, 1), (1, 1, 1), *rows])
)


def rows_drawn(x, y, weights):
    return np.repeat(x, weights), np.repeat(y, weights)


@settings(max_examples=400)
@given(weighted, st.sampled_from(OBJECTIVES))
def test_the_best_cut_of_weighted_rows_has_the_rates_of_the_best_cut_of_rows_drawn_so_often(drawn, objective):
    x, y, weights = drawn[:, 0].astype(float), drawn[:, 1].astype(np.int8), drawn[:, 2]
    cuts = Cuts(x, y, objective)
    table, scored = cuts.counts(weights.astype(float))
    np.testing.assert_array_equal(table, scored)
    best = cuts.best(table)
    rows, labels = rows_drawn(x, y, weights)
    reached = error_rates(labels, apply_threshold(rows, cuts.thresholds[best]))
    sought = error_rates(labels, apply_threshold(rows, fit_threshold(rows, labels, objective)))
    assert objective.loss_of(reached) == pytest.approx(objective.loss_of(sought), abs=1e-12)
    if not isinstance(objective, WeightedError):
        assert pair(reached) == pytest.approx(pair(sought), abs=1e-12)
    else:
        assert abs(reached.fpr - reached.fnr) == pytest.approx(abs(sought.fpr - sought.fnr), abs=1e-12)
    assert pair_at(cuts, table, best) == pytest.approx(pair(reached), abs=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES, **ids)
def test_so_it_is_of_many_rows_and_of_a_part_that_is_fitted_on(rng, objective):
    for _ in range(40):
        n = 300
        y = (rng.random(n) < 0.7).astype(np.int8)
        x = (rng.normal(size=n) + y).round(int(rng.integers(0, 3)))
        fitted, weights = rng.random(n) < 0.6, rng.poisson(1, n)
        cuts = Cuts(x, y, objective, fitted)
        fit, scored = cuts.counts(weights.astype(float))
        threshold = cuts.thresholds[cuts.best(fit)]
        rows, labels = rows_drawn(x[fitted], y[fitted], weights[fitted])
        reached = error_rates(labels, apply_threshold(rows, threshold))
        sought = error_rates(labels, apply_threshold(rows, fit_threshold(rows, labels, objective)))
        assert objective.loss_of(reached) == pytest.approx(objective.loss_of(sought), abs=1e-12)
        rows, labels = rows_drawn(x[~fitted], y[~fitted], weights[~fitted])
        for cut, at in enumerate(cuts.thresholds):  # scored on the others, at every cut
            rates = error_rates(labels, apply_threshold(rows, at))
            assert pair_at(cuts, scored, cut) == pytest.approx(pair(rates), abs=1e-12)


def test_of_rows_that_were_each_drawn_once_the_cut_is_that_of_the_rows(rng):
    for objective in OBJECTIVES:
        for _ in range(50):
            y = np.concatenate([[0, 1], rng.integers(0, 2, 60)]).astype(np.int8)
            x = rng.normal(size=62) + y
            cuts = Cuts(x, y, objective)
            threshold = cuts.thresholds[cuts.best(cuts.counts(np.ones(62))[0])]
            sought = fit_threshold(x, y, objective)
            if objective == HTER or "cost" in objective.text:  # rates may tie; there are wider gaps then
                assert objective.loss_of(error_rates(y, apply_threshold(x, threshold))) == pytest.approx(
                    objective.loss_of(error_rates(y, apply_threshold(x, sought))), abs=1e-12
                )
            else:
                assert threshold == sought


def test_where_rows_between_two_cuts_were_not_drawn_the_middle_one_is_taken():
    x, y = np.arange(6.0), np.array([0, 0, 1, 0, 1, 1], np.int8)
    cuts = Cuts(x, y)
    np.testing.assert_array_equal(cuts.thresholds, [-1.0, 1.5, 3.5, 6.0])
    table, _ = cuts.counts(np.array([1.0, 0, 0, 0, 0, 1]))
    assert cuts.best(table) == 1
    table, _ = cuts.counts(np.array([1.0, 1, 0, 1, 0, 1]))
    assert cuts.best(table) == 2


@pytest.mark.parametrize("objective", OBJECTIVES, **ids)
def test_a_class_of_which_nothing_was_drawn_has_no_errors(objective):
    cuts = Cuts(np.arange(4.0), np.array([0, 1, 0, 1], np.int8), objective)
    for weights, errors_of in (([0.0, 2, 0, 2], 1), ([2.0, 0, 2, 0], 0)):
        table, _ = cuts.counts(np.array(weights))
        y_pred = apply_threshold(np.arange(4.0), cuts.thresholds[cuts.best(table)])
        if isinstance(objective, WeightedError):
            assert (y_pred[errors_of::2] == errors_of).all()


def test_all_ends_are_there_and_thresholds_rise(rng):
    x, y = rng.integers(0, 5, 50).astype(float), rng.integers(0, 2, 50).astype(np.int8)
    thresholds = Cuts(x, y).thresholds
    assert thresholds[0] < x.min() and thresholds[-1] > x.max()
    assert all(below < above for below, above in pairwise(thresholds))


@pytest.mark.parametrize("objective", OBJECTIVES, **ids)
def test_a_batch_of_tables_has_the_best_cuts_of_each_table_alone(rng, objective):
    y = (rng.random(200) < 0.7).astype(np.int8)
    x = (rng.normal(size=200) + y).round(1)
    cuts, weights = Cuts(x, y, objective, rng.random(200) < 0.7), rng.poisson(1, (4, 5, 200)) * 1.0
    fit, scored = cuts.counts(weights)
    assert fit.shape == scored.shape == (4, 5, 2, cuts.thresholds.size + 1)
    best, rates = cuts.best(fit), cuts.rates(scored)
    assert best.shape == (4, 5) and len(np.unique(best)) > 1
    for at in np.ndindex(4, 5):
        alone, scored_alone = cuts.counts(weights[at])
        np.testing.assert_array_equal(fit[at], alone)
        np.testing.assert_array_equal(scored[at], scored_alone)
        assert cuts.best(alone) == best[at]
        np.testing.assert_array_equal([each[at] for each in rates], cuts.rates(scored_alone))


@pytest.mark.parametrize("objective", OBJECTIVES, **ids)
def test_near_the_best_the_best_is_found_or_it_is_said_that_it_may_not_be_there(rng, objective, monkeypatch):
    found = fewer = unknown = 0
    for n, room in ((60, 3.0), (3000, 3.0), (3000, 0.2)):  # with little room, the best cut is often left out
        monkeypatch.setattr("ensemble.decision.cuts._ROOM", room)
        y = (rng.random(n) < 0.7).astype(np.int8)
        x = (rng.normal(size=n) + 2 * y).round(2)
        cuts = Cuts(x, y, objective, rng.random(n) < 0.8)
        near = cuts.near_best()
        fewer += cuts.thresholds.size - near.thresholds.size
        assert set(near.thresholds) <= set(cuts.thresholds)
        weights = np.concatenate([rng.poisson(1, (40, n)), rng.poisson(rng.random((20, n)) * (x + 4))]) * 1.0
        (fit, scored), (fit_near, scored_near) = cuts.counts(weights), near.counts(weights)
        best, at = cuts.best(fit), near.best(fit_near)
        sure = at >= 0
        unknown += (~sure).sum()
        if room == 3.0:
            found += sure.sum()
        np.testing.assert_array_equal(near.thresholds[at[sure]], cuts.thresholds[best[sure]])
        for row in np.flatnonzero(sure):
            assert pair_at(near, scored_near[row], at[row]) == pair_at(cuts, scored[row], best[row])
        left_out = ~np.isin(cuts.thresholds[best], near.thresholds)
        assert (at[left_out] == -1).all()
    assert found >= 60 and fewer > 0
    assert unknown > 0 or objective.text in ("fpr:0", "fnr:1")  # these have the best cut where one rate is 0


def test_a_replicate_is_the_same_whether_few_cuts_are_looked_at_or_all(rng, monkeypatch):
    y = (rng.random(2000) < 0.8).astype(np.int8)
    logits = rng.normal(size=(2000, 2)) + 2 * y[:, None]
    oof = OofLogits(FoldTable(np.arange(2000), y, np.arange(2000) % 4), ("a", "b"), logits)
    drawn_with = []
    for room in (3.0, 0.0, 0.3, np.inf):  # with no room, many replicates must look at all; with a little, some must
        monkeypatch.setattr("ensemble.decision.cuts._ROOM", room)
        drawn = refit_replicates(prepared(oof, stack("logistic")), y, np.arange(2000) // 2, replicates=50)
        drawn_with.append([(each.threshold, each.nested, each.true) for each in drawn])
    assert drawn_with[0] == drawn_with[1] == drawn_with[2] == drawn_with[3]


# --- the draw ---------------------------------------------------------------------------------------------------------


def test_rows_are_drawn_with_replacement_and_stratified(rng):
    y = (np.arange(400) % 4 > 0).astype(np.int8)
    weights_of = Resampler(y).weights_of(rng)
    drawn = np.stack([weights_of.draw() for _ in range(500)])
    assert (drawn[:, y == 0].sum(axis=1) == 100).all() and (drawn[:, y == 1].sum(axis=1) == 300).all()
    assert (drawn == drawn.round()).all() and drawn.max() > 3
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.25)
    assert (drawn == 0).mean() == pytest.approx(np.exp(-1), abs=0.01)
    assert drawn.var(axis=0).mean() == pytest.approx(1, abs=0.05)


def test_groups_are_drawn_whole_within_their_strata(rng):
    y = np.repeat([0, 1, 0, 1], [40, 160, 30, 30]).astype(np.int8)
    groups = np.concatenate([np.arange(200) // 5, 40 + np.arange(30) % 6, 40 + np.arange(30) % 6])  # 8, 32, 6 of both
    order = rng.permutation(y.size)
    y, groups = y[order], groups[order] * 17 - 5
    names = np.unique(groups)
    has = np.array([[(y[groups == name] == label).any() for label in (0, 1)] for name in names])
    for _ in range(100):
        weights = Resampler(y, groups).weights_of(rng).draw()
        for name in names:
            assert np.ptp(weights[groups == name]) == 0
        each = np.array([weights[groups == name][0] for name in names])
        assert each[has[:, 0] & ~has[:, 1]].sum() == 8
        assert each[has[:, 1] & ~has[:, 0]].sum() == 32
        assert each[has.all(axis=1)].sum() == 6


# --- the replicates ---------------------------------------------------------------------------------------------------


def grouped(rng, n=240, k=4, size=3):
    """Return OOF logits of two members in groups of `size`, which never span two folds and may hold both labels."""
    groups = np.arange(n) // size
    labels = (rng.random(n) < 0.75).astype(np.int8)
    logits = rng.normal(size=(n, 2)) + np.repeat(rng.normal(size=(n // size, 2)), size, axis=0) / 2
    logits = (logits + np.outer(2.0 * labels - 1, (0.8, 0.5))).round(1)  # with ties
    return OofLogits(FoldTable(np.arange(n), labels, groups % k, groups), ("a", "b"), logits)


@pytest.mark.parametrize("objective", OBJECTIVES[:5], **ids)
@pytest.mark.parametrize("by_group", [False, True])
def test_a_replicate_is_what_fitting_the_rows_drawn_gives(rng, objective, by_group):
    """Row by row: each row as often as it was drawn, the threshold fitted with and without each fold."""
    oof = grouped(rng)
    rule = stack("mean")
    nested, scores, y = cross_fit(oof.rows, rule, objective), rule(oof.rows).score(oof.logits), oof.labels
    exact = same = 0
    refit = RefitRule(scores, y, nested.splits, objective)
    found = list(refit_replicates(refit, y, oof.groups if by_group else None, seed=3, replicates=30))
    for replicate in found:
        threshold, by_trying = refitted_by_hand(scores, y, nested.splits, replicate.weights, objective)
        assert replicate.threshold == threshold
        assert replicate.nested == pytest.approx(by_trying, abs=1e-12)
        times = replicate.weights.astype(int)
        drawn = np.repeat(np.arange(y.size), times)
        y_pred = np.empty(drawn.size, np.int8)
        for split in nested.splits:
            inside = split.inside[drawn]
            at = fit_threshold(split.scores[drawn][~inside], y[drawn][~inside], objective)
            y_pred[inside] = apply_threshold(split.scores[drawn][inside], at)
        by_hand = error_rates(y[drawn], y_pred)
        deployed = fit_threshold(scores[drawn], y[drawn], objective)
        fitted, sought = (
            error_rates(y[drawn], apply_threshold(scores[drawn], at)) for at in (replicate.threshold, deployed)
        )
        assert objective.loss_of(fitted) == pytest.approx(objective.loss_of(sought), abs=1e-12)
        assert replicate.true == pytest.approx(
            pair(error_rates(y, apply_threshold(scores, replicate.threshold))), abs=1e-12
        )
        expected = replicate.nested[0] - replicate.true[0], replicate.nested[1] - replicate.true[1]
        assert replicate.errors == expected
        exact += replicate.nested == pytest.approx(pair(by_hand), abs=1e-12)
        same += pair(by_hand) != pytest.approx(replicate.true, abs=1e-12)
    assert exact > 8  # the others fell on another of several equal cuts, which sees other rows outside
    assert same > 25  # and a replicate's two figures are not one
    near = np.mean([replicate.nested for replicate in found], axis=0)
    assert np.all(np.abs(near - pair(error_rates(y, nested.y_pred))) < 0.1)


def test_with_one_best_cut_each_replicate_is_exact(rng):
    """Distinct logits and costs that no two cuts share: nothing is left to how ties and gaps are settled."""
    n, k = 300, 3
    y = (np.arange(n) % 4 > 0).astype(np.int8)
    x = np.where(y == 1, 1.0, -1.0) * rng.uniform(1, 2, n)
    wrong = rng.choice(n, 30, replace=False)
    x[wrong] *= -1
    oof = OofLogits(FoldTable(np.arange(n), y, np.arange(n) // 4 % k), ("a",), x[:, None])
    for replicate in refit_replicates(prepared(oof, ALONE), y, replicates=30):
        assert -1 < replicate.threshold < 1
        weights, y_pred = replicate.weights, x > 0
        fpr, fnr = (weights[(y == label) & (y_pred != label)].sum() / weights[y == label].sum() for label in (0, 1))
        assert replicate.nested == pytest.approx((fpr, fnr))
        assert replicate.true == pytest.approx(pair(error_rates(y, y_pred)))


@pytest.mark.parametrize("objective", OBJECTIVES[:5:2], **ids)
def test_without_splits_the_estimate_is_the_apparent_one(rng, objective):
    oof = grouped(rng)
    scores, y = oof.logits.mean(axis=1), oof.labels
    optimism = []
    for replicate in refit_replicates(RefitRule(scores, y, (), objective), y, replicates=30):
        threshold = best_by_trying_all(scores, y, replicate.weights, objective)
        assert replicate.threshold == threshold
        assert replicate.nested == pytest.approx(weighted_rates(scores >= threshold, y, replicate.weights), abs=1e-12)
        assert replicate.true == pytest.approx(pair(error_rates(y, apply_threshold(scores, threshold))), abs=1e-12)
        optimism.append(-objective.loss(*replicate.errors))
    assert objective != HTER or np.mean(optimism) > 0


def test_the_rates_of_kept_predictions_are_those_of_the_rows_drawn(rng):
    y, y_pred = (rng.random((2, 300)) < [[0.7], [0.6]]).astype(np.int8)
    weights = np.stack([Resampler(y).weights_of(rng).draw() for _ in range(40)])
    errors = FixedRule(y_pred, y).errors(weights)
    assert errors.shape == (40, 2) and len(np.unique(errors[:, 0])) > 10
    for error, times in zip(errors, weights.astype(int), strict=True):
        rows = np.repeat(np.arange(300), times)
        of_drawn, of_all = error_rates(y[rows], y_pred[rows]), error_rates(y, y_pred)
        assert error == pytest.approx((of_drawn.fpr - of_all.fpr, of_drawn.fnr - of_all.fnr), abs=1e-12)
    np.testing.assert_array_equal(FixedRule(y, y).errors(weights), np.zeros((40, 2)))


@pytest.mark.parametrize("by_group", [False, True])
def test_rules_that_are_refitted_together_have_the_same_draws(rng, by_group):
    """Rule by rule, the errors are those of its own replicates with the same seed."""
    oof = grouped(rng)
    groups = oof.groups if by_group else None
    y_pred = apply_threshold(oof.logits[:, 1], 0.0)
    rules = [prepared(oof, stack("mean")), prepared(oof, ALONE, BoundedFpr(0.3)), FixedRule(y_pred, oof.labels)]
    together = refit_errors([*rules, rules[0]], oof.labels, groups, seed=7, replicates=40)
    assert together.shape == (4, 40, 2)
    np.testing.assert_array_equal(together[0], together[3])
    weights = None
    for errors, rule in zip(together, rules[:2], strict=False):
        drawn = list(refit_replicates(rule, oof.labels, groups, 7, 40))
        np.testing.assert_array_equal(errors, [each.errors for each in drawn])
        if weights is not None:
            np.testing.assert_array_equal(weights, [each.weights for each in drawn])
        weights = np.array([each.weights for each in drawn])
    np.testing.assert_array_equal(together[2], rules[2].errors(weights))
    other = refit_errors(rules[:1], oof.labels, groups, seed=8, replicates=40)
    assert (other[0] != together[0]).any()


@pytest.mark.parametrize("cells", [1, 7 * 240, CELLS_AT_ONCE])
def test_replicates_do_not_depend_on_how_many_are_computed_at_once(rng, monkeypatch, cells):
    oof = grouped(rng)
    rules = [prepared(oof, stack("mean")), FixedRule(1 - oof.labels, oof.labels), prepared(oof, ALONE)]
    expected = refit_errors(rules, oof.labels, seed=2, replicates=20)
    monkeypatch.setattr("ensemble.decision.refits.CELLS_AT_ONCE", cells)
    np.testing.assert_array_equal(refit_errors(rules, oof.labels, seed=2, replicates=20), expected)
    one_by_one = [each.errors for each in refit_replicates(rules[2], oof.labels, seed=2, replicates=20)]
    np.testing.assert_array_equal(one_by_one, expected[2])


def test_a_seed_fixes_the_replicates(rng):
    oof = grouped(rng)
    rule = prepared(oof, stack("mean"))

    def drawn(seed):
        found = refit_replicates(rule, oof.labels, oof.groups, seed=seed, replicates=5)
        return [(each.threshold, each.nested, each.true, each.weights.tolist()) for each in found]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len(drawn(1)) == 5


def test_a_fold_that_was_left_with_one_class_is_no_fault():
    """Two rows of label 0, one a fold: in half of the replicates one of them is drawn twice, the other never."""
    y, x = np.array([0, 1, 1, 0, 1, 1], np.int8), np.array([-1.0, 1.0, 2.0, 0.5, 0.0, 3.0])
    oof = OofLogits(FoldTable(np.arange(6), y, [0, 0, 0, 1, 1, 1]), ("a",), x[:, None])
    found = list(refit_replicates(prepared(oof, ALONE), y, replicates=100))
    assert np.isfinite([each.nested + each.true for each in found]).all()
    assert any((each.weights[[0, 3]] == [2, 0]).all() for each in found)


# --- the interval -----------------------------------------------------------------------------------------------------


def test_the_interval_is_the_estimate_less_the_spread_of_its_replicates_misses():
    errors = [(error, 0.0) for error in np.linspace(-0.1, 0.3, 401) ** 3]
    misses = np.array(errors).sum(axis=1) / 2
    low, high = np.quantile(misses - misses.mean(), [0.025, 0.975])
    interval = refit_interval((0.4, 0.6), errors)
    assert (interval.low, interval.high) == pytest.approx((0.5 - high, 0.5 - low))
    assert (
        interval.high - 0.5 < 0.5 - interval.low
    )  # by as much as the estimate may be too high, the truth may be lower
    moved = refit_interval((0.4, 0.6), [(error + 0.2, 0.1) for error, _ in errors])  # what all have in common is out
    assert (moved.low, moved.high) == pytest.approx((interval.low, interval.high))
    alone = refit_interval((0.4, 0.6), errors, BoundedFpr(1.0))  # the FNR, which no replicate missed
    assert (alone.low, alone.high) == (0.6, 0.6)
    assert refit_interval((0.001, 0.0), errors).low == 0
    difference = refit_interval((-0.001, 0.0), errors, within=(-1.0, 1.0))  # of two rules: it may be below 0
    assert (difference.low, difference.high) == pytest.approx((-0.0005 - high, -0.0005 - low))
    assert refit_interval((-0.999, -0.999), errors, within=(-1.0, 1.0)).low == -1
    assert Replicate(np.ones(2), 0.0, (0.2, 0.3), (0.1, 0.5)).errors == pytest.approx((0.1, -0.2))


def clear_cut(rng, n):
    """Return labels and logits (n,) that have one best cut, at 0: 20 % of label 0 and 5 % of label 1 lie beyond it."""
    y = (np.arange(n) % 4 > 0).astype(np.int8)
    wrong = rng.random(n) < np.where(y == 1, 0.05, 0.2)
    return y, rng.uniform(1, 2, n) * np.where((y == 1) != wrong, 1.0, -1.0)


def test_where_the_threshold_is_clear_it_is_the_closed_form(rng):
    n = 8000
    y, x = clear_cut(rng, n)
    oof = OofLogits(FoldTable(np.arange(n), y, np.arange(n) // 4 % 5), ("a",), x[:, None])
    nested = cross_fit(oof.rows, ALONE)
    rates = error_rates(y, nested.y_pred)
    assert abs(rates.fpr - 0.2) < 0.03 and abs(rates.fnr - 0.05) < 0.01
    (errors,) = refit_errors([prepared(oof, ALONE)], y)
    alone = {"fpr": BoundedFnr(1.0), "fnr": BoundedFpr(1.0)}
    for name, n_of in (("fpr", rates.n_neg), ("fnr", rates.n_pos)):
        interval = refit_interval(pair(rates), errors, alone[name])
        exact = binomtest(round(getattr(rates, name) * n_of), n_of).proportion_ci(0.95, "wilson")
        width = exact.high - exact.low
        assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high), abs=0.1 * width)
    interval, fixed = refit_interval(pair(rates), errors), measure_predictions(y, nested.y_pred).hter
    assert (interval.low, interval.high) == pytest.approx((fixed.low, fixed.high), abs=0.1 * (fixed.high - fixed.low))


def test_groups_widen_it(rng):
    n, size = 1600, 8
    y, x = clear_cut(rng, n // size)
    y, x, groups = (np.repeat(each, size) for each in (y, x, np.arange(n // size)))
    oof = OofLogits(FoldTable(np.arange(n), y, groups // 4 % 5, groups), ("a",), x[:, None])
    rule, widths = prepared(oof, ALONE), []
    rates = pair(error_rates(y, cross_fit(oof.rows, ALONE).y_pred))
    for of in (None, groups):
        interval = refit_interval(rates, refit_errors([rule], y, of, replicates=400)[0])
        widths.append(interval.high - interval.low)
    assert 2 < widths[1] / widths[0] < 3.2  # of 8 alike, 8 ** 0.5 where the threshold has no part in it


# --- coverage ---------------------------------------------------------------------------------------------------------


def test_the_interval_covers_the_deployed_rules_true_hter():
    """Two Gaussian classes, so that the HTER of any stack at any threshold is known in closed form.

    Beside it, three that are wrong, which the same sets refute: around the apparent HTER; around the nested HTER, but
    half as wide; and with the mean of the replicates' misses left in, which moves it down.
    """
    rng, separations, n = np.random.default_rng(11), np.array([0.7, 0.4, 0.3, 0.2]), 600
    sets, covered, below, above, uncentred, of_apparent, of_half = 160, 0, 0, 0, 0, 0, 0
    bias, flattery = [], []
    rule = stack("logistic")
    for trial in range(sets):
        y = (np.arange(n) % 6 > 0).astype(np.int8)
        x = rng.normal(size=(n, separations.size)) + np.outer(2.0 * y - 1, separations)
        oof = OofLogits(FoldTable(np.arange(n), y, np.arange(n) // 6 % 5), tuple("abcd"), x)
        deployed, nested = rule(oof.rows), cross_fit(oof.rows, rule)
        stacker = deployed.score.__self__
        centre, spread = np.dot(stacker.weights, separations), np.linalg.norm(stacker.weights)
        fpr = norm.sf((deployed.threshold + centre - stacker.bias) / spread)
        fnr = norm.cdf((deployed.threshold - centre - stacker.bias) / spread)
        true = (fpr + fnr) / 2

        rates, apparent = error_rates(y, nested.y_pred), error_rates(y, deployed(x))
        (errors,) = refit_errors([prepared(oof, rule)], y, seed=trial, replicates=200)
        interval = refit_interval(pair(rates), errors)
        covered += interval.low <= true <= interval.high
        below, above = below + (true < interval.low), above + (true > interval.high)
        uncentred += true > interval.high - np.mean(errors)
        naive = measure_predictions(y, deployed(x)).hter
        of_apparent += naive.low <= true <= naive.high
        of_half += abs(true - (interval.low + interval.high) / 2) <= (interval.high - interval.low) / 4
        bias.append((rates.hter - true) / (interval.high - interval.low) * 2)
        flattery.append(true - apparent.hter)
    assert 0.90 <= covered / sets <= 0.99
    assert max(below, above) / sets < 0.06 < uncentred / sets
    assert of_apparent / sets < 0.90 and of_half / sets < 0.85
    assert abs(np.mean(bias)) < 0.2
    assert np.mean(flattery) > 0.01
