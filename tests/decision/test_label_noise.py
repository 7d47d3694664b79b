"""The upper bound on what labels that are wrong at random cause."""

import numpy as np
import pytest
from scipy.stats import beta

from ensemble.decision.cross_fitting import OofLogits, stack
from ensemble.decision.decision import _bound_noise
from ensemble.decision.label_issues import confident_joint
from ensemble.decision.label_noise import (
    CONFIDENT,
    LEAST_ROWS,
    LEVEL,
    TAILS,
    NoiseBound,
    bound_noise,
    class_noise,
    describe_class_noise,
    describe_noise,
    noise_in_short,
)
from ensemble.decision.objective import HTER
from ensemble.decision.rates import ErrorRates
from ensemble.errors import DataError


def drawn(rng, n=20_000, flips=(0.0, 0.0), separation=1.7):
    """Return two halves' scores, the true classes, and the labels with flips of 0s and 1s."""
    truth = (rng.random(n) > 0.12).astype(np.int8)
    shared = np.where(truth == 1, separation, -separation) + rng.normal(size=n)
    halves = [shared + 0.7 * rng.normal(size=n) for _ in range(2)]
    return *halves, truth, truth ^ (rng.random(n) < np.where(truth == 1, flips[1], flips[0])).astype(np.int8)


def floor_of(truth, labels):
    return (np.mean(truth[labels == 0] == 1) + np.mean(truth[labels == 1] == 0)) / 2


@pytest.mark.parametrize("flips", [(0.0, 0.0), (0.003, 0.003), (0.02, 0.02), (0.1, 0.02), (0.0, 0.03)])
def test_the_bound_is_above_planted_flips_and_not_far_above(rng, flips):
    for separation, above in ((1.2, 0.06), (1.7, 0.035)):  # members that separate less say less
        a, b, truth, labels = drawn(rng, flips=flips, separation=separation)
        bound, floor = bound_noise(a, b, labels), floor_of(truth, labels)
        assert bound.by_halves and floor <= bound.rates.hter <= floor + above


def test_a_single_member_is_bounded_too(rng):
    a, _, truth, labels = drawn(rng, flips=(0.02, 0.02))
    bound = bound_noise(a, None, labels)
    assert not bound.by_halves and floor_of(truth, labels) <= bound.rates.hter < 0.13


def test_labels_that_are_wrong_where_the_image_is_difficult_are_not_bounded(rng):
    a, b, truth, _ = drawn(rng)
    labels = np.where(np.abs(a + b) < 1.0, rng.integers(0, 2, truth.size), truth).astype(np.int8)
    assert bound_noise(a, b, labels).rates.hter < floor_of(truth, labels)


def test_the_bound_is_the_least_ratio_of_confidence_bounds(rng):
    a, b, _, y = drawn(rng, n=3000, flips=(0.03, 0.01))
    ratios = []
    for given, sign in ((0, 1), (1, -1)):
        same, other, best = y == given, y != given, 1.0
        for share in CONFIDENT:
            sure = sign * a >= np.quantile(sign * a[other], 1 - share)
            for tail in TAILS:
                both = sure & (sign * b >= np.quantile(sign * b[sure & other], 1 - tail))
                x, n, x_other, n_other = (both & same).sum(), same.sum(), (both & other).sum(), other.sum()
                most, least = beta.ppf(1 - LEVEL, x + 1, n - x), beta.ppf(LEVEL, x_other, n_other - x_other + 1)
                best = min(best, most / least)
        ratios.append(best)
    fpr, fnr = np.linalg.solve([[1, ratios[0]], [ratios[1], 1]], ratios)  # fpr = r0 (1 - fnr), fnr = r1 (1 - fpr)
    bound = bound_noise(a, b, y).rates
    assert (bound.fpr, bound.fnr) == pytest.approx((fpr, fnr)) and 2 * bound.hter == pytest.approx(fpr + fnr)


def test_too_few_rows_give_no_bound_and_faults_are_errors():
    scores = np.linspace(-3, 3, 2 * LEAST_ROWS)
    assert bound_noise(scores, None, scores > 0) is not None
    assert bound_noise(scores[:-1], None, scores[:-1] > 0) is None
    with pytest.raises(DataError, match="cannot bound the label noise"):
        bound_noise(scores, np.full(scores.size, np.nan), scores > 0)


def test_the_halves_of_a_decision_hold_the_good_and_the_bad_members_alike(make_oof, monkeypatch):
    halves = []
    monkeypatch.setattr("ensemble.decision.decision.bound_noise", lambda a, b, labels: halves.append((a, b)))
    oof = make_oof(2000, (0.2, 2.0, 1.0, 1.5, 0.5))
    _bound_noise(oof, stack("mean"), HTER)
    for half, columns in zip(halves[0], ((1, 4, 0), (3, 2)), strict=True):  # ranks 1, 4, 5 and 2, 3
        part = OofLogits(oof.table, tuple(str(j) for j in columns), oof.logits[:, columns])
        mean = part.logits.mean(axis=1)
        for fold in oof.folds:  # the scores less a threshold of each fold
            inside = oof.fold_of == fold
            assert np.ptp((half - mean)[inside]) < 1e-9
    _bound_noise(make_oof(400, (1.0,)), stack("mean"), HTER)
    assert halves[1][1] is None


def test_the_sentence_names_the_assumption():
    sentence = describe_noise(NoiseBound(ErrorRates(0.004, 0.002, 500, 500), by_halves=True), 0.072)
    assert "wrong at random cause at most 0.0030" in sentence and "one half of the members" in sentence
    assert "is not known" in describe_noise(None, 0.072)


# --- more than two classes --------------------------------------------------------------------------------------------


def test_of_several_classes_the_shares_are_those_of_planted_wrong_labels(rng):
    truth = rng.choice(4, 8000, p=[0.1, 0.2, 0.3, 0.4])
    labels = np.where(rng.random(8000) < 0.05, (truth + rng.integers(1, 4, 8000)) % 4, truth).astype(np.int8)
    logits = 6.0 * np.eye(4)[truth] + rng.normal(size=(8000, 4))
    noise = class_noise(confident_joint(logits, labels))
    planted = [np.mean(truth[labels == c] != c) for c in range(4)]
    assert noise.rates.errors == pytest.approx(planted, abs=0.02)
    assert noise.interval.low <= np.mean(planted) <= noise.interval.high
    sentence = describe_class_noise(noise, 0.12, tuple("abcd"))
    assert f"{noise.rates.mean_error:.4f}" in sentence and "most for label a" in sentence
    assert "if every confident prediction is right" in sentence and "no bound" in sentence and sentence.count(".") >= 1
    assert f"{noise.rates.mean_error:.3f}" in noise_in_short(noise)


def test_without_a_confident_row_of_a_class_nothing_is_known():
    joint = np.array([[5, 0, 0], [0, 0, 0], [0, 1, 4]])
    assert class_noise(joint) is None and "is not known" in describe_class_noise(None, 0.1)
