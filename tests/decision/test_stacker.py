import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from ensemble.decision.stacker import (
    STACKERS,
    Stacker,
    logistic,
    mean_of_calibrated,
    mean_of_logits,
    nonnegative_logistic,
)
from ensemble.errors import DataError

FITTED = {name: fit for name, fit in STACKERS.items() if name != "mean"}


def likelihood(x, y):
    """Return the standardised logits, and the balanced penalised cost and its gradient in (weights, bias)."""
    z = (x - x.mean(0)) / x.std(0)
    weight = np.where(y == 1, y.size / (2 * y.sum()), y.size / (2 * (1 - y).sum()))

    def cost(beta):
        margin = (2 * y - 1) * (z @ beta[:-1] + beta[-1])
        return weight @ np.logaddexp(0, -margin) + beta[:-1] @ beta[:-1] / 2

    def gradient(beta):
        pull = weight * (1 / (1 + np.exp(-(z @ beta[:-1] + beta[-1]))) - y)
        return np.append(z.T @ pull + beta[:-1], pull.sum())

    return z, cost, gradient


def standardised(stacker, x, y):
    """Return (weights, bias) as the likelihood has them, of a stacker as it is deployed."""
    weights = np.array(stacker.weights)
    prior = np.log(y.sum() / (1 - y).sum())
    return np.append(weights * x.std(0), stacker.bias - prior + weights @ x.mean(0))


def with_a_misled_member(rng, n=2000):
    """Return logits (n, 3) and labels (n,): the second member is mostly what misleads the first, and of use below 0."""
    y = (np.arange(n) % 4 > 0).astype(np.int8)
    misled = rng.normal(size=n)
    good = 2.0 * y - 1 + misled + 0.5 * rng.normal(size=n)
    bad = 0.2 * (2.0 * y - 1) + misled + 0.5 * rng.normal(size=n)
    return np.stack([good, bad, y - 0.5 + rng.normal(size=n)], axis=1), y


# --- logistic ---------------------------------------------------------------------------------------------------------


def test_it_is_the_optimum_of_the_balanced_penalised_likelihood(make_oof):
    oof = make_oof(200)
    x, y = oof.logits, oof.labels.astype(float)
    z, cost, gradient = likelihood(x, y)
    best = minimize(cost, np.zeros(4), jac=gradient, method="BFGS", options={"gtol": 1e-6}).x
    stacker = logistic(x, oof.labels, oof.members)
    np.testing.assert_allclose(stacker.weights, best[:3] / x.std(0), rtol=1e-4)
    np.testing.assert_allclose(stacker.apply(x), z @ best[:3] + best[3] + np.log(3), rtol=1e-4, atol=1e-4)


def test_it_is_scikit_learn_on_standardised_logits(make_oof):
    oof = make_oof(400)
    z = (oof.logits - oof.logits.mean(0)) / oof.logits.std(0)
    model = LogisticRegression(class_weight="balanced", tol=1e-10).fit(z, oof.labels)
    stacked = logistic(oof.logits, oof.labels, oof.members).apply(oof.logits)
    np.testing.assert_allclose(stacked, model.decision_function(z) + np.log(3), atol=1e-4)


def test_it_recovers_the_true_log_odds(make_oof):
    oof = make_oof(40_000)
    for fit in (logistic, nonnegative_logistic):
        stacker = fit(oof.logits, oof.labels, oof.members)
        np.testing.assert_allclose(stacker.weights, [2.0, 1.2, 0.4], atol=0.1)
        assert stacker.bias == pytest.approx(np.log(3), abs=0.1)


# --- nonnegative ------------------------------------------------------------------------------------------------------


def test_where_no_weight_is_negative_it_is_the_free_fit(make_oof):
    oof = make_oof()
    free = logistic(oof.logits, oof.labels, oof.members)
    assert min(free.weights) > 0
    assert nonnegative_logistic(oof.logits, oof.labels, oof.members) == free


def test_where_a_weight_would_be_negative_it_is_the_best_of_those_that_are_not(rng):
    x, y = with_a_misled_member(rng)
    members = ("good", "bad", "other")
    free, held = (fit(x, y, members) for fit in (logistic, nonnegative_logistic))
    assert free.weights[1] < -0.5
    assert held.weights[1] == 0
    assert held.weights[0] > 0 < held.weights[2]

    _, cost, gradient = likelihood(x, y.astype(float))  # the conditions of Karush, Kuhn and Tucker
    beta = standardised(held, x, y.astype(float))
    slope = gradient(beta) / y.size
    np.testing.assert_allclose(slope[[0, 2, 3]], 0, atol=1e-6)
    assert slope[1] > 1e-3

    bounds = [(0, None)] * 3 + [(None, None)]  # another solver, from elsewhere
    other = minimize(cost, [0.5, 0.5, 0.5, 0.0], jac=gradient, method="trust-constr", bounds=bounds)
    assert cost(beta) <= other.fun + 1e-6
    np.testing.assert_allclose(beta, other.x, atol=1e-2)
    without = logistic(x[:, [0, 2]], y, ("good", "other"))  # a weight of 0 is a member left out
    np.testing.assert_allclose((*held.weights[::2], held.bias), (*without.weights, without.bias), rtol=1e-4, atol=1e-5)


def test_a_member_that_is_against_the_label_is_left_out_not_turned_round(make_oof):
    oof = make_oof()
    turned = oof.logits * [1.0, -1.0, 1.0]
    assert logistic(turned, oof.labels, oof.members).weights[1] < 0
    assert nonnegative_logistic(turned, oof.labels, oof.members).weights[1] == 0
    nothing = nonnegative_logistic(-oof.logits, oof.labels, oof.members)
    assert nothing.weights == (0.0, 0.0, 0.0)
    assert nothing.bias == pytest.approx(np.log(3), abs=1e-5)  # the class share, and no more


# --- mean and calibrated ----------------------------------------------------------------------------------------------


def test_calibrated_is_the_mean_of_logistics_of_one_member_each(make_oof):
    oof = make_oof()
    own = [
        logistic(oof.logits[:, [j]], oof.labels, (name,)).apply(oof.logits[:, [j]])
        for j, name in enumerate(oof.members)
    ]
    stacked = mean_of_calibrated(oof.logits, oof.labels, oof.members).apply(oof.logits)
    np.testing.assert_allclose(stacked, np.mean(own, axis=0), rtol=1e-12, atol=1e-12)


def test_calibrated_brings_a_member_to_log_odds_and_hears_a_weak_one_less(make_oof):
    oof = make_oof(40_000)
    stacker = mean_of_calibrated(oof.logits * [10.0, 1.0, 0.1], oof.labels, oof.members)
    np.testing.assert_allclose(np.array(stacker.weights) * 3 * [10.0, 1.0, 0.1], [2.0, 1.2, 0.4], atol=0.1)


def test_the_mean_is_the_mean(make_oof):
    oof = make_oof()
    stacker = mean_of_logits(oof.logits, oof.labels, oof.members)
    assert stacker.bias == 0
    np.testing.assert_allclose(stacker.apply(oof.logits), oof.logits.mean(axis=1), rtol=1e-12, atol=1e-12)


# --- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITTED.values(), ids=FITTED)
def test_the_scale_of_a_member_does_not_matter(make_oof, rng, fit):
    for x, y in ((make_oof().logits, make_oof().labels), with_a_misled_member(rng)):
        members = ("a", "b", "c")
        plain = fit(x, y, members)
        scaled = x * [100.0, 1.0, 0.01] + [0.0, 50.0, -3.0]
        other = fit(scaled, y, members)
        tolerance = 1e-4 if fit is nonnegative_logistic else 1e-7
        np.testing.assert_allclose(other.apply(scaled), plain.apply(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("fit", STACKERS.values(), ids=STACKERS)
def test_the_order_of_members_does_not_matter(make_oof, fit):
    oof = make_oof()
    plain = fit(oof.logits, oof.labels, oof.members)
    turned = fit(oof.logits[:, ::-1], oof.labels, oof.members[::-1])
    np.testing.assert_allclose(turned.weights[::-1], plain.weights, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("fit", STACKERS.values(), ids=STACKERS)
def test_it_is_deterministic_and_a_row_does_not_depend_on_its_batch(make_oof, fit):
    oof = make_oof(1000)
    stacker = fit(oof.logits, oof.labels, oof.members)
    assert stacker == fit(oof.logits, oof.labels, oof.members)
    one_by_one = np.concatenate([stacker.apply(row[None]) for row in oof.logits])
    np.testing.assert_array_equal(one_by_one, stacker.apply(oof.logits))


@pytest.mark.parametrize("fit", STACKERS.values(), ids=STACKERS)
def test_the_stack_of_a_mean_of_fold_models_is_the_mean_of_their_stacks(make_oof, rng, fit):
    oof = make_oof()
    stacker = fit(oof.logits, oof.labels, oof.members)
    fold_models = rng.normal(scale=3.0, size=(5, 50, 3))
    each = np.stack([stacker.apply(logits) for logits in fold_models])
    np.testing.assert_allclose(stacker.apply(fold_models.mean(axis=0)), each.mean(axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fit", FITTED.values(), ids=FITTED)
def test_a_column_without_spread_weighs_nothing(make_oof, rng, fit):
    for x, y in ((make_oof().logits, make_oof().labels), with_a_misled_member(rng)):
        flat = np.insert(x, 1, 7.3, axis=1)
        stacker = fit(flat, y, ("a", "flat", "b", "c"))
        assert stacker.weights[1] == 0
        if fit is not mean_of_calibrated:  # there, it still takes its share of the mean
            without = fit(x, y, ("a", "b", "c"))
            np.testing.assert_allclose(stacker.apply(flat), without.apply(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fit", FITTED.values(), ids=FITTED)
def test_what_cannot_be_fitted_is_refused(fit):
    with pytest.raises(
        DataError, match="cannot fit the stacker: HTER needs both classes; got 0 of label 0 in 3 images"
    ):
        fit(np.zeros((3, 1)), [1, 1, 1], ("a",))
    with pytest.raises(DataError, match="1 of 2 that are not"):
        fit([[np.nan], [0.0]], [0, 1], ("a",))
    with pytest.raises(DataError, match="needs 2-dimensional logits"):
        fit([0.0, 1.0], [0, 1], ("a",))


def test_separable_members_get_finite_weights():
    x, y = np.array([[-2.0, -1.0], [-1.0, -2.0], [1.0, 2.0], [2.0, 1.0]]), [0, 0, 1, 1]
    for fit in STACKERS.values():
        stacked = fit(x, y, ("a", "b")).apply(x)
        assert stacked[:2].max() < stacked[2:].min()


def test_the_kinds_are_named_from_the_simplest_to_the_freest():
    assert tuple(STACKERS) == ("mean", "calibrated", "nonnegative", "logistic")


def test_a_stacker_is_sound():
    with pytest.raises(DataError, match="finite weight"):
        Stacker(("a", "b"), (1.0,), 0.0)
    with pytest.raises(DataError, match="finite weight"):
        Stacker(("a",), (float("nan"),), 0.0)
    with pytest.raises(DataError, match="finite bias"):
        Stacker(("a",), (1.0,), float("inf"))
    with pytest.raises(DataError, match=r"shape \(n, 1\); got \(3, 2\)"):
        Stacker(("a",), (1.0,), 0.0).apply(np.zeros((3, 2)))
