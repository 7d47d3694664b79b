from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.decision.rates import call, error_rates
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import DataError

few = st.integers(-5, 5).map(float)
close = st.integers(0, 6).map(lambda steps: float(np.float64(1.0) + steps * np.spacing(1.0)))
tiny = st.integers(-3, 6).map(lambda steps: steps * 5e-324)
huge = st.sampled_from([-1.7e308, -1e308, 0.0, 1e308, 1.7e308])
any_float = st.floats(allow_nan=False, allow_infinity=False)


def sets(logit):
    row = st.tuples(logit, st.integers(0, 1))
    return st.tuples(logit, logit, st.lists(row, max_size=30)).map(
        lambda drawn: (
            np.array([drawn[0], drawn[1], *(x for x, _ in drawn[2])]),
            np.array([0, 1, *(y for _, y in drawn[2])], np.int8),
        )
    )


any_set = st.one_of(sets(few), sets(close), sets(huge), sets(any_float))


def brute_force(x, y):
    """Return the key of the best cut and the logits beside it, by the letter of the rule, rates in exact fractions."""
    n_neg, n_pos = int((y == 0).sum()), int((y == 1).sum())
    values = sorted(set(x.tolist()))
    lowest = [-np.inf, *values]
    best = None
    for below, above in zip(lowest, [*values, np.inf], strict=True):
        fpr = Fraction(int(((x >= above) & (y == 0)).sum()), n_neg)
        fnr = Fraction(int(((x < above) & (y == 1)).sum()), n_pos)
        gap = above / 2 - below / 2  # compared in float64, like the rule; halves, for the huge ones
        key = (fpr + fnr, abs(fpr - fnr), -gap)
        if best is None or key < best[0]:
            best = (key, below, above)
    return best


@settings(max_examples=600)
@given(any_set)
def test_it_is_the_cut_that_brute_force_finds(drawn):
    x, y = drawn
    _, below, above = brute_force(x, y)
    threshold = fit_threshold(x, y)
    assert np.isfinite(threshold)
    np.testing.assert_array_equal(call(x, threshold), x >= above)
    if np.isfinite(below) and np.isfinite(above):
        assert below < threshold <= above


@given(sets(tiny))
def test_subnormal_logits_are_separated_too(drawn):
    x, y = drawn
    (twice_hter, difference, _), _, _ = brute_force(x, y)
    found = error_rates(y, call(x, fit_threshold(x, y)))
    assert found.fpr + found.fnr == pytest.approx(float(twice_hter))
    assert abs(found.fpr - found.fnr) == pytest.approx(float(difference))


@given(sets(few))
def test_thresholds_are_midpoints(drawn):
    x, y = drawn
    _, below, above = brute_force(x, y)
    assert fit_threshold(x, y) == ((below + above) / 2 if np.isfinite(below) else x.min() - 1)


@given(any_set, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(drawn, random):
    x, y = drawn
    order = random.sample(range(x.size), x.size)
    assert fit_threshold(x[order], y[order]) == fit_threshold(x, y)


@given(sets(few))
def test_swapping_labels_and_signs_swaps_the_rates(drawn):
    x, y = drawn
    before, after = (error_rates(b, call(a, fit_threshold(a, b))) for a, b in ((x, y), (-x, 1 - y)))
    assert before.hter == pytest.approx(after.hter)
    assert abs(before.fpr - before.fnr) == pytest.approx(abs(after.fpr - after.fnr))
    cut = fit_threshold(x, y)  # never on a logit here: the midpoint of two integers, or one below
    if cut not in x:
        mirrored = error_rates(1 - y, call(-x, -cut))
        assert (mirrored.fpr, mirrored.fnr) == (before.fnr, before.fpr)


@given(sets(few), st.sampled_from([0.25, 1.0, 8.0]), st.integers(-100, 100))
def test_an_increasing_affine_map_changes_no_call(drawn, scale, shift):
    x, y = drawn
    mapped = x * scale + shift
    np.testing.assert_array_equal(call(mapped, fit_threshold(mapped, y)), call(x, fit_threshold(x, y)))


def test_ties_go_to_the_widest_then_the_lowest_cut():
    assert fit_threshold([0.0, 1.0, 2.0, 3.0], [0, 1, 0, 1]) == 0.5  # ties with 2.5 in all but height
    assert fit_threshold([0.0, 1.0, 2.0, 5.0], [0, 1, 0, 1]) == 3.5
    assert fit_threshold([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0, 1, 1, 0, 0, 1]) == 0.5


def test_the_smaller_difference_beats_the_wider_gap():
    x, y = [0.0, 1.0, 100.0, 101.0, 102.0, 103.0, 104.0, 105.0], [0, 0, 1, 0, 1, 1, 1, 0]
    assert fit_threshold(x, y) == 101.5  # FPR = FNR = 1/4; FPR 1/2, FNR 0 at 50.5 has the same HTER and a wider gap


def test_no_information_calls_everything_one():
    assert fit_threshold([2.0, 2.0, 2.0], [0, 1, 1]) == 1.0


def test_adjacent_floats_are_told_apart():
    below, above = 1.0, np.nextafter(1.0, 2.0)
    assert fit_threshold([below, above], [0, 1]) == above


def test_bad_input_is_refused():
    with pytest.raises(
        DataError, match="cannot fit a threshold: HTER needs both classes; got 0 of label 0 in 240 images"
    ):
        fit_threshold(np.zeros(240), np.ones(240))
    with pytest.raises(DataError, match="1 of 2 that are not"):
        fit_threshold([np.nan, 1.0], [0, 1])
