"""Offsets of the classes against the exact threshold, against brute force, and against repeated rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.decision.class_objective import DESCRIPTIONS, ClassObjective
from ensemble.decision.class_offsets import OffsetRefit, class_objective, fit_cut, fit_offsets
from ensemble.decision.objective import HTER, Objective
from ensemble.decision.rates import apply_cut, apply_offsets, apply_threshold, class_rates
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ConfigError, DataError

OBJECTIVES = [ClassObjective(kind) for kind in DESCRIPTIONS]
of_kind = {"ids": lambda objective: objective.kind}

few = st.integers(-5, 5).map(float)
close = st.integers(0, 6).map(lambda steps: float(np.float64(1.0) + steps * np.spacing(1.0)))
plain = st.floats(-1e6, 1e6)


def two_classes(logit):
    row = st.tuples(logit, st.integers(0, 1))
    return st.tuples(logit, logit, st.lists(row, max_size=30)).map(
        lambda drawn: (
            np.array([drawn[0], drawn[1], *(x for x, _ in drawn[2])]),
            np.array([0, 1, *(y for _, y in drawn[2])], np.int8),
        )
    )


three_classes = st.tuples(
    st.lists(st.tuples(st.tuples(*[st.integers(-3, 3)] * 3), st.integers(0, 2)), max_size=5),
    st.tuples(*[st.tuples(*[st.integers(-3, 3)] * 3)] * 3),
).map(
    lambda drawn: (
        np.array([*drawn[1], *(x for x, _ in drawn[0])], np.float64),
        np.array([0, 1, 2, *(y for _, y in drawn[0])], np.int8),
    )
)


def reached(objective, x, y, offsets):
    return objective.loss(class_rates(y, apply_offsets(x, offsets), x.shape[1]))


def least_of_one_offset(objective, x, y, offsets, c):
    """Return the lowest loss at any offset of class c, with each of them tried on all rows."""
    others = np.delete(x + np.array(offsets), c, axis=1).max(axis=1)
    values = np.unique(others - x[:, c])
    cuts = [values[0] - 1, *(values[1:] + values[:-1]) / 2, values[-1] + 1]
    return min(reached(objective, x, y, [*offsets[:c], cut, *offsets[c + 1 :]]) for cut in cuts)


def least_of_all(objective, x, y):
    """Return the lowest loss in any cell of the plane of two offsets, for whole scores from -3 to 3 of three classes.

    Predictions change on lines at whole numbers alone: an offset, or the difference of the two. The fractions 1/3 and
    2/3 of both offsets reach every cell between the lines.
    """
    whole = np.arange(-7, 8)
    values = np.concatenate((whole + 1 / 3, whole + 2 / 3))
    return min(reached(objective, x, y, (0.0, first, second)) for first in values for second in values)


# --- two classes ------------------------------------------------------------------------------------------------------


@settings(max_examples=500)
@given(st.one_of(two_classes(few), two_classes(close), two_classes(plain)))
def test_of_two_classes_the_offset_is_minus_the_exact_threshold(drawn):
    z, y = drawn
    first, second = fit_offsets(np.stack([np.zeros(z.size), z], axis=1), y)
    assert (first, -second) == (0.0, fit_threshold(z, y))
    scores = np.stack([np.zeros(z.size), z], axis=1)
    np.testing.assert_array_equal(apply_offsets(scores, (first, second)), apply_threshold(z, fit_threshold(z, y)))


def test_a_cut_is_a_threshold_or_offsets(rng):
    z, y = rng.normal(size=30), np.arange(30) % 2
    assert fit_cut(z, y, HTER) == fit_threshold(z, y)
    scores, y = rng.normal(size=(30, 3)), np.arange(30) % 3
    offsets = fit_cut(scores, y, HTER)
    assert offsets == fit_offsets(scores, y)
    np.testing.assert_array_equal(apply_cut(scores, offsets), apply_offsets(scores, offsets))
    np.testing.assert_array_equal(apply_cut(z, 0.5), apply_threshold(z, 0.5))
    with pytest.raises(TypeError, match="of two classes"):
        fit_cut(z, np.arange(30) % 2, ClassObjective("accuracy"))


def test_an_objective_of_two_classes_alone_is_refused():
    assert class_objective(HTER) == ClassObjective()
    assert class_objective(ClassObjective("macro-f1")).kind == "macro-f1"
    with pytest.raises(ConfigError, match="cost:3,1 is for two classes alone"):
        class_objective(Objective.parse("cost:3,1"))


# --- more classes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES, **of_kind)
@settings(max_examples=150, deadline=None)
@given(three_classes)
def test_no_single_offset_can_improve_the_loss(objective, drawn):
    x, y = drawn
    offsets = fit_offsets(x, y, objective)
    loss = reached(objective, x, y, offsets)
    assert offsets[0] == 0
    assert loss <= reached(objective, x, y, np.zeros(3)) + 1e-12
    for c in range(3):
        assert loss <= least_of_one_offset(objective, x, y, list(offsets), c) + 1e-12


@pytest.mark.parametrize("objective", OBJECTIVES, **of_kind)
def test_most_coordinate_wise_optima_of_few_rows_are_global(rng, objective):
    best, trials = 0, 25
    for _ in range(trials):
        y = np.concatenate([[0, 1, 2], rng.integers(0, 3, 5)]).astype(np.int8)
        x = rng.integers(-3, 4, (8, 3)).astype(float)
        loss, least = reached(objective, x, y, fit_offsets(x, y, objective)), least_of_all(objective, x, y)
        assert loss >= least - 1e-12  # the brute force can fail
        best += loss <= least + 1e-12
    assert best >= 0.6 * trials, best


@pytest.mark.parametrize("objective", OBJECTIVES, **of_kind)
def test_the_offsets_of_many_rows_are_as_good_as_another_search(rng, objective):
    from scipy.optimize import differential_evolution

    y = np.repeat(np.arange(4), [200, 100, 40, 20]).astype(np.int8)
    x = rng.normal(size=(360, 4)) + 1.5 * np.eye(4)[y] + np.log(np.bincount(y))
    loss = reached(objective, x, y, fit_offsets(x, y, objective))
    other = differential_evolution(
        lambda o: reached(objective, x, y, (0.0, *o)), [(-6, 6)] * 3, seed=1, maxiter=60, polish=False
    )
    assert loss <= other.fun + 0.02  # the optimum is coordinate-wise
    assert loss < reached(objective, x, y, np.zeros(4))


@pytest.mark.parametrize("objective", OBJECTIVES, **of_kind)
def test_weights_are_repeated_rows(rng, objective):
    for _ in range(20):
        y = (np.arange(60) % 4).astype(np.int8)
        x = (rng.normal(size=(60, 4)) + np.eye(4)[y]).round(1)
        weights = np.concatenate([np.ones(4, np.int64), rng.poisson(1, 56)])
        start = fit_offsets(x, y, objective)
        repeated = fit_offsets(np.repeat(x, weights, axis=0), np.repeat(y, weights), objective, start)
        assert fit_offsets(x, y, objective, start, weights) == repeated


@pytest.mark.parametrize("objective", OBJECTIVES, **of_kind)
def test_a_refit_near_the_offsets_brings_most_of_what_all_cuts_bring(rng, objective):
    y = np.repeat(np.arange(5), [300, 120, 100, 60, 20]).astype(np.int8)
    x = rng.normal(size=(600, 5)) + 2 * np.eye(5)[y]
    offsets = fit_offsets(x, y, objective)
    refit, gains = OffsetRefit(x, y, objective, offsets), []
    for _ in range(40):
        weights = np.bincount(rng.integers(0, 600, 600), minlength=600).astype(float)
        near, everywhere = refit.refit(x, y, weights), fit_offsets(x, y, objective, offsets, weights)
        rows = np.repeat(np.arange(600), weights.astype(int))
        losses = [reached(objective, x[rows], y[rows], each) for each in (near, everywhere, offsets)]
        gains.append((losses[2] - losses[0], losses[2] - losses[1]))
        assert losses[0] <= losses[2] + 1e-12
    of_near, of_all = np.mean(gains, axis=0)
    assert of_near >= 0.75 * of_all > 0


def test_a_class_that_was_not_drawn_has_no_errors(rng):
    y = (np.arange(30) % 3).astype(np.int8)
    x = rng.normal(size=(30, 3))
    weights = (y != 2) * 1.0
    for objective in OBJECTIVES:
        offsets = fit_offsets(x, y, objective, (0.0, 0.0, 0.0), weights)
        drawn = np.bincount(apply_offsets(x, offsets)[y != 2], minlength=3)
        assert np.isfinite(offsets).all() and drawn[2] <= (apply_offsets(x, np.zeros(3))[y != 2] == 2).sum()


def test_among_equal_cuts_the_middle_of_the_widest_gap_is_taken():
    x = np.array([[0.0, -4.0, -9.0], [0.0, -3.0, -9.0], [0.0, 3.0, -9.0], [0.0, 4.0, -9.0], [0.0, -9.0, 7.0]])
    assert fit_offsets(x, [0, 0, 1, 1, 2]) == (0.0, 0.0, 1.0)  # class 2: midway between -9 and 7


def test_ties_go_to_the_higher_class():
    np.testing.assert_array_equal(apply_offsets(np.zeros((1, 3)), (0.0, 0.0, 0.0)), [2])
    np.testing.assert_array_equal(apply_offsets(np.zeros((1, 3)), (0.0, 0.0, -1.0)), [1])


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(DataError, match="every class must be present; got 0 of label 1 in 3 images"):
        fit_offsets(np.zeros((3, 3)), [0, 2, 2])
    with pytest.raises(DataError, match="1 of 9 that are not"):
        fit_offsets([[np.nan, 0, 0], [0, 0, 0], [0, 0, 0]], [0, 1, 2])
    with pytest.raises(DataError, match="for 2 labels"):
        fit_offsets(np.zeros((3, 2)), [0, 1])
