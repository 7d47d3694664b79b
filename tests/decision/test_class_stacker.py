"""Stackers of several classes against those of two, and against the optimum of their likelihood."""

import numpy as np
import pytest
from scipy.optimize import minimize

from ensemble.decision.class_stacker import CLASS_STACKERS, ClassStacker, logistic, nonnegative_logistic
from ensemble.decision.stacker import STACKERS
from ensemble.errors import DataError

MEMBERS = ("a", "b", "c")


@pytest.fixture
def four_classes(rng):
    """Logits (600, 3, 4) of three members that share errors, and labels with shares 4 : 3 : 2 : 1."""
    y = np.repeat(np.arange(4), [240, 180, 120, 60]).astype(np.int8)
    x = 1.2 * np.eye(4)[y][:, None] * np.array([2.0, 1.0, 0.4])[:, None] + rng.normal(size=(600, 3, 4))
    return x + rng.normal(size=(600, 1, 4)), y


def cost(x, y, weights, biases):
    """The balanced penalised cost, with weights on standardised logits, row by row."""
    n, _, classes = x.shape
    z = x - x.mean(axis=2, keepdims=True)
    pairs = [(c, d) for c in range(classes) for d in range(classes) if c != d]
    scale = np.sqrt([np.mean([np.var(x[:, j, c] - x[:, j, d]) for c, d in pairs]) for j in range(x.shape[1])])
    total = 0.0
    for row, label in zip(z / scale[:, None], y, strict=True):
        scores = weights @ row + biases
        total -= n / (classes * (y == label).sum()) * (scores[label] - np.log(np.exp(scores).sum()))
    return total + weights @ weights / 2, scale


@pytest.mark.parametrize("kind", STACKERS)
@pytest.mark.parametrize("misled", [False, True])
def test_of_the_logits_0_and_z_it_is_the_stacker_of_two_classes(rng, kind, misled):
    y = (np.arange(400) % 4 > 0).astype(np.int8)
    z = rng.normal(size=(400, 3)) + np.outer(2.0 * y - 1, [1.0, 0.6, 0.2])
    if misled:
        z[:, 1] = 0.9 * z[:, 0] - 0.8 * (2.0 * y - 1) + 0.3 * z[:, 1]
    of_two = STACKERS[kind](z, y, MEMBERS)
    scores = np.stack([np.zeros_like(z), z], axis=2)
    stacker = CLASS_STACKERS[kind](scores, y, MEMBERS)
    np.testing.assert_allclose(stacker.weights, of_two.weights, atol=1e-5)
    np.testing.assert_allclose(stacker.biases, (0.0, of_two.bias), atol=1e-5)
    np.testing.assert_allclose(np.diff(stacker.apply(scores), axis=1)[:, 0], of_two.apply(z), atol=1e-5)


@pytest.mark.parametrize("fit", [logistic, nonnegative_logistic])
def test_it_is_the_optimum_of_the_balanced_penalised_likelihood(four_classes, rng, fit):
    x, y = four_classes
    stacker = fit(x, y, MEMBERS)
    shares = np.log(np.bincount(y) / y.size)
    _, scale = cost(x, y, np.zeros(3), np.zeros(4))
    least, _ = cost(x, y, np.array(stacker.weights) * scale, np.array(stacker.biases) - shares)
    for _ in range(20):
        weights = np.array(stacker.weights) + 0.05 * rng.normal(size=3)
        if fit is nonnegative_logistic:
            weights = np.maximum(weights, 0)
        biases = np.array(stacker.biases) + 0.05 * rng.normal(size=4)
        assert cost(x, y, weights * scale, biases - shares)[0] > least
    if fit is logistic:
        other = minimize(lambda t: cost(x, y, t[:3], t[3:])[0], np.zeros(7), method="BFGS", options={"gtol": 1e-3})
        assert least == pytest.approx(other.fun, abs=1e-4)


def test_where_a_weight_would_be_negative_it_is_zero_and_the_rest_is_the_fit_without_the_member(rng):
    y = (np.arange(900) % 3).astype(np.int8)
    misled = rng.normal(size=(900, 3))
    good = 2 * np.eye(3)[y] + misled + 0.5 * rng.normal(size=(900, 3))
    bad = 0.2 * np.eye(3)[y] + misled + 0.5 * rng.normal(size=(900, 3))
    x = np.stack([good, bad, np.eye(3)[y] + rng.normal(size=(900, 3))], axis=1)
    free, held = logistic(x, y, MEMBERS), nonnegative_logistic(x, y, MEMBERS)
    assert free.weights[1] < -0.3 and held.weights[1] == 0
    without = logistic(x[:, [0, 2]], y, ("a", "c"))
    np.testing.assert_allclose((*held.weights[::2], *held.biases), (*without.weights, *without.biases), atol=1e-5)


def test_its_softmax_is_the_probability_at_the_class_shares(rng):
    """Of Gaussian scores, the true posterior is a softmax with the weight 1.5 and the log shares as biases."""
    shares = np.array([0.5, 0.3, 0.2])
    y = rng.choice(3, 40_000, p=shares).astype(np.int8)
    x = 1.5 * np.eye(3)[y] + rng.normal(size=(40_000, 3))
    stacker = logistic(x[:, None], y, ("a",))
    assert stacker.weights[0] == pytest.approx(1.5, abs=0.05)
    np.testing.assert_allclose(stacker.biases, np.log(shares / shares[0]), atol=0.05)


def test_calibrated_is_the_mean_of_logistics_of_one_member_each(four_classes):
    x, y = four_classes
    alone = [logistic(x[:, [j]], y, (name,)).apply(x[:, [j]]) for j, name in enumerate(MEMBERS)]
    stacked = CLASS_STACKERS["calibrated"](x, y, MEMBERS).apply(x)
    np.testing.assert_allclose(stacked, np.mean(alone, axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", CLASS_STACKERS)
def test_scale_order_batch_and_row_constants_do_not_matter(four_classes, rng, kind):
    x, y = four_classes
    fit = CLASS_STACKERS[kind]
    stacker = fit(x, y, MEMBERS)
    assert stacker == fit(x, y, MEMBERS)
    one_by_one = np.concatenate([stacker.apply(row[None]) for row in x])
    np.testing.assert_array_equal(one_by_one, stacker.apply(x))
    turned = fit(x[:, ::-1], y, MEMBERS[::-1])
    np.testing.assert_allclose(turned.weights[::-1], stacker.weights, atol=1e-5)
    if kind != "mean":
        scaled = x * np.array([100.0, 1.0, 0.01])[:, None]
        np.testing.assert_allclose(fit(scaled, y, MEMBERS).apply(scaled), stacker.apply(x), atol=1e-3)
        moved = x + rng.normal(size=(600, 3, 1))  # the same for all classes of a row
        np.testing.assert_allclose(fit(moved, y, MEMBERS).weights, stacker.weights, atol=1e-5)


@pytest.mark.parametrize("kind", ["calibrated", "nonnegative", "logistic"])
def test_a_member_without_spread_weighs_nothing(four_classes, kind):
    x, y = four_classes
    x = np.insert(x, 1, [0.1, 7.3, 0.0, 1.0], axis=1)
    stacker = CLASS_STACKERS[kind](x, y, ("a", "flat", "b", "c"))
    assert stacker.weights[1] == 0 and np.isfinite(stacker.biases).all()


def test_separable_classes_get_finite_weights():
    y = np.array([0, 0, 1, 1, 2, 2])
    x = (9.0 * np.eye(3)[y] + np.arange(3))[:, None]
    for fit in CLASS_STACKERS.values():
        assert (fit(x, y, ("a",)).apply(x).argmax(axis=1) == y).all()


def test_what_is_unsound_is_refused():
    assert tuple(CLASS_STACKERS) == tuple(STACKERS)
    with pytest.raises(DataError, match="finite weight"):
        ClassStacker(("a", "b"), (1.0,), (0.0, 0.0, 0.0))
    with pytest.raises(DataError, match="finite biases"):
        ClassStacker(("a",), (1.0,), (0.0, float("inf"), 0.0))
    with pytest.raises(DataError, match=r"shape \(n, 1, 3\); got \(3, 3\)"):
        ClassStacker(("a",), (1.0,), (0.0, 0.0, 0.0)).apply(np.zeros((3, 3)))
    with pytest.raises(DataError, match="every class must be present; got 0 of label 1 in 2 images"):
        logistic(np.zeros((2, 1, 3)), [0, 2], ("a",))
    with pytest.raises(DataError, match="1 of 9 that are not"):
        logistic([[[np.nan, 0, 0]], [[0, 0, 0]], [[0, 0, 0]]], [0, 1, 2], ("a",))
    with pytest.raises(DataError, match="needs logits"):
        logistic(np.zeros((3, 3)), [0, 1, 2], ("a",))
