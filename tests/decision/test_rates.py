import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from ensemble.decision.rates import (
    ErrorRates,
    auc,
    bootstrap_interval,
    call,
    error_rates,
    new_set_interval,
)
from ensemble.errors import DataError

rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=40).map(
    lambda extra: np.array([(0, 1), (1, 1), *extra])
)
scored = st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), max_size=40).map(
    lambda extra: np.array([(0, 1), (1, 0), *extra])
)


@given(rows)
def test_hter_is_one_minus_balanced_accuracy(table):
    labels, called = table.T
    assert error_rates(labels, called).hter == pytest.approx(1 - balanced_accuracy_score(labels, called))


@given(scored, st.randoms(use_true_random=False))
def test_rates_and_auc_ignore_the_order_of_rows(table, random):
    order = random.sample(range(len(table)), len(table))
    (labels, logits), (labels_too, logits_too) = table.T, table[order].T
    assert error_rates(labels, call(logits, 1)) == error_rates(labels_too, call(logits_too, 1))
    assert auc(logits, labels) == auc(logits_too, labels_too)


@given(scored)
def test_auc_equals_scikit_learn(table):
    labels, logits = table.T
    assert auc(logits, labels) == pytest.approx(roc_auc_score(labels, logits))


def test_a_tie_is_a_one():
    np.testing.assert_array_equal(call([-0.1, 0.0, 0.1], 0.0), np.array([0, 1, 1], np.int8))


@pytest.mark.parametrize(
    ("labels", "called", "says"),
    [
        ([1] * 240, [1] * 240, "HTER needs both classes; got 0 of label 0 in 240 images"),
        ([0, 0], [1, 0], "got 0 of label 1 in 2 images"),
        ([0, 1], [1, 0, 1], r"one shape; got \(2,\) and \(3,\)"),
        ([0, 2], [1, 0], "labels must be 0 or 1; got 2 at row 1"),
        ([0, 1], [np.nan, 0], "calls must be 0 or 1; got nan at row 0"),
        (["0", "1"], [1, 0], "labels must be 0 or 1"),
        ([], [], "HTER needs both classes"),
    ],
)
def test_what_cannot_be_rated_is_refused(labels, called, says):
    with pytest.raises(DataError, match=says):
        error_rates(labels, called)


@pytest.mark.parametrize("logits", [[np.nan, 0.0], [np.inf, 0.0], [[0.0], [1.0]], [0.0]])
def test_logits_that_are_not_finite_or_of_another_shape_are_refused(logits):
    with pytest.raises(DataError, match="cannot compute the AUC: "):
        auc(logits, [0, 1])


def closed_form(rates: ErrorRates) -> tuple[float, float]:
    variance = rates.fpr * (1 - rates.fpr) / rates.n_neg + rates.fnr * (1 - rates.fnr) / rates.n_pos
    half = 1.959964 * variance**0.5 / 2
    return rates.hter - half, rates.hter + half


def independent_rows(rng, n=4000):
    labels = (rng.random(n) < 0.88).astype(np.int8)
    return labels, labels ^ (rng.random(n) < np.where(labels, 0.1, 0.2))


def test_the_bootstrap_agrees_with_the_closed_form(rng):
    labels, called = independent_rows(rng)
    low, high = closed_form(error_rates(labels, called))
    for groups in (None, np.arange(labels.size)):
        interval = bootstrap_interval(labels, called, groups, replicates=8000)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.04 * (high - low))


def test_the_new_set_interval_agrees_with_the_closed_form(rng):
    rates = ErrorRates(0.2, 0.1, 480, 3520)
    interval = new_set_interval(rates, 480, 3520)
    low, high = closed_form(rates)
    assert interval.high - interval.low == pytest.approx(2**0.5 * (high - low), rel=0.04)


def test_duplicated_rows_widen_the_interval_only_if_they_are_one_group(rng):
    labels, called = independent_rows(rng, 1000)
    once = bootstrap_interval(labels, called, replicates=8000)
    labels, called, groups = (np.repeat(column, 4) for column in (labels, called, np.arange(1000)))
    blind, aware = (bootstrap_interval(labels, called, which, replicates=8000) for which in (None, groups))
    assert aware.high - aware.low == pytest.approx(once.high - once.low, rel=0.05)
    assert blind.high - blind.low == pytest.approx((once.high - once.low) / 2, rel=0.06)


def test_groups_of_both_classes_never_leave_a_replicate_without_one(rng):
    labels, called = np.array([0, 1, 0, 1, 0, 1, 1]), np.array([0, 1, 1, 1, 0, 0, 1])
    interval = bootstrap_interval(labels, called, [5, 5, 7, 7, 9, 9, 2])
    assert 0 <= interval.low < interval.high <= 1


def test_a_seed_fixes_the_interval(rng):
    labels, called = independent_rows(rng)
    assert bootstrap_interval(labels, called, seed=3) == bootstrap_interval(labels, called, seed=3)
    assert bootstrap_interval(labels, called, seed=3) != bootstrap_interval(labels, called, seed=4)


def test_the_new_set_interval_covers_the_hter_that_is_measured(rng):
    fpr, fnr, n_neg, n_pos, new_neg, new_pos = 0.15, 0.06, 300, 2200, 75, 550
    inside = 0
    for trial in range(600):
        old = ErrorRates(rng.binomial(n_neg, fpr) / n_neg, rng.binomial(n_pos, fnr) / n_pos, n_neg, n_pos)
        measured = (rng.binomial(new_neg, fpr) / new_neg + rng.binomial(new_pos, fnr) / new_pos) / 2
        interval = new_set_interval(old, new_neg, new_pos, seed=trial, replicates=2000)
        inside += interval.low <= measured <= interval.high
    assert 0.925 < inside / 600 < 0.975


def test_no_error_seen_is_no_promise_of_none():
    interval = new_set_interval(ErrorRates(0.0, 0.0, 20, 20), 1000, 1000)
    assert interval.high > 0.03


def test_a_new_set_needs_both_classes():
    with pytest.raises(DataError, match="got 0 of label 0 and 5 of label 1"):
        new_set_interval(ErrorRates(0.1, 0.1, 10, 10), 0, 5)


def test_rates_need_no_scikit_learn():
    check = "import sys, ensemble.decision.rates; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
