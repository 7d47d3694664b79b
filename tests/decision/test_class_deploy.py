"""Labels of more than two classes for new images, and the check of their shares."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import softmax as reference_softmax

from ensemble.data.folds import FoldTable
from ensemble.decision.class_deploy import class_deploy, plurality_of_folds, share_out
from ensemble.decision.class_intervals import class_new_set_interval
from ensemble.decision.class_objective import ClassObjective
from ensemble.decision.class_stacker import ClassStacker
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import fit_decision
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import apply_offsets, class_rates
from ensemble.decision.shift import check_class_shares
from ensemble.decision.votes import plurality
from ensemble.errors import ConfigError

OFFSETS = (0.0, 0.5, -0.3)
MEMBER_OFFSETS = ((0.0, 0.0, 0.0), (0.0, 1.0, 0.0))
STACKER = ClassStacker(("a", "b"), (1.0, 0.5), (0.0, 0.2, 0.1))


def drawn(rng, labels, separation=2.0):
    """Return logits (n, 2, 3) of two members."""
    return rng.normal(size=(labels.size, 2, 3)) + separation * np.eye(3)[labels][:, None, :]


@pytest.fixture
def fitted(rng):
    """A stand-in for a decision, and the OOF logits that it rests on: half of the rows are of class 0."""
    labels = np.array([0, 1, 0, 2, 0, 1] * 200, np.int8)
    fold_of = (np.arange(labels.size) // 6 % 4).astype(np.int8)
    oof = OofLogits(FoldTable(np.arange(labels.size).astype(str), labels, fold_of), ("a", "b"), drawn(rng, labels))
    nested = class_rates(labels, apply_offsets(STACKER.apply(oof.logits), OFFSETS), 3)
    stacked = SimpleNamespace(
        offsets=OFFSETS,
        nested=nested,
        mean_error=Interval(0.1, 0.2),
        macro_f1=Interval(0.7, 0.8),
        accuracy=Interval(0.75, 0.85),
        design_effects=(1.0, 2.0, 1.0),
    )

    def votes(logits):
        winner = apply_offsets(plurality(MEMBER_OFFSETS)(np.asarray(logits)), np.zeros(3))
        return apply_offsets(logits, MEMBER_OFFSETS), winner

    return SimpleNamespace(stacker=STACKER, objective=ClassObjective("macro-f1"), stacked=stacked, votes=votes), oof


def folds_of(rng, logits, k=3):
    """Return logits (n, m, k, C) of fold models whose mean is `logits`."""
    noise = rng.normal(size=(*logits.shape[:2], k, logits.shape[2]))
    return logits[:, :, None] + noise - noise.mean(axis=2, keepdims=True)


def test_the_label_is_the_class_of_the_greatest_stacked_logit_plus_offset(fitted, rng):
    decision, oof = fitted
    logits = drawn(rng, rng.integers(0, 3, 50))
    made = class_deploy(decision, oof, folds_of(rng, logits), logits)
    for row, label, stacked, p in zip(logits, made.y_pred, made.stacked_logits, made.probabilities, strict=True):
        expected = row[0] + 0.5 * row[1] + [0.0, 0.2, 0.1]
        assert stacked == pytest.approx(expected) and p == pytest.approx(reference_softmax(expected))
        assert label == np.argmax(expected + OFFSETS)
    assert made.member_votes[:, 1].tolist() == np.argmax(logits[:, 1] + [0, 1.0, 0], axis=1).tolist()
    same = made.member_votes[:, 0] == made.member_votes[:, 1]
    assert (made.plurality[same] == made.member_votes[same, 0]).all()
    assert made.fold_votes.shape == (50, 0) and made.offsets == OFFSETS


def test_a_tie_goes_to_the_higher_class(fitted):
    decision, oof = fitted
    logits = np.zeros((1, 2, 3))
    logits[0, 0] = [0.7, 0.0, 0.9]  # stacked plus offset: 0.7 for all three
    made = class_deploy(decision, oof, logits[:, :, None], logits)
    assert made.stacked_logits[0] + OFFSETS == pytest.approx([0.7] * 3)
    assert made.y_pred[0] == apply_offsets(made.stacked_logits, OFFSETS)[0]


def test_the_vote_is_the_plurality_of_the_fold_models_and_the_mean_decides_ties(rng):
    stacker = ClassStacker(("a",), (1.0,), (0.0, 0.0, 0.0))
    for k in (1, 3, 4):
        folds = rng.normal(size=(200, 1, k, 3))
        y_pred, votes = plurality_of_folds(stacker, OFFSETS, folds)
        for image, label, of_image in zip(folds[:, 0], y_pred, votes, strict=True):
            assert of_image.tolist() == [int(np.argmax(each + OFFSETS)) for each in image]
            counts = np.bincount(of_image, minlength=3)
            tied = np.flatnonzero(counts == counts.max())
            mean = image.mean(axis=0) + OFFSETS
            assert label == max(tied, key=lambda c: mean[c])


def test_the_vote_is_what_is_deployed_if_asked_for(fitted, rng):
    decision, oof = fitted
    logits = drawn(rng, rng.integers(0, 3, 80), 0.5)
    folds = folds_of(rng, logits)
    made = class_deploy(decision, oof, folds, logits, combine="vote")
    y_pred, votes = plurality_of_folds(STACKER, OFFSETS, folds)
    assert np.array_equal(made.y_pred, y_pred) and np.array_equal(made.fold_votes, votes)
    assert not np.array_equal(y_pred, class_deploy(decision, oof, folds, logits).y_pred)


def test_the_rates_are_the_nested_ones_of_a_single_fold_model(fitted, rng):
    decision, oof = fitted
    logits = drawn(rng, rng.integers(0, 3, 60))
    expected = class_deploy(decision, oof, folds_of(rng, logits), logits).expectation
    stacked = decision.stacked
    assert expected.rates == stacked.nested and not expected.averaging_measured and expected.correction == "none"
    assert (expected.mean_error, expected.accuracy) == (stacked.mean_error, stacked.accuracy)
    assert (expected.interval.low, expected.interval.high) == pytest.approx((0.2, 0.3))
    assert expected.new_set_interval == class_new_set_interval(stacked.nested, (30, 20, 10), stacked.design_effects)
    few = class_deploy(decision, oof, folds_of(rng, logits[:2]), logits[:2]).expectation
    assert few.new_set_interval is None


def test_of_a_file_with_one_class_the_rates_are_known(fitted, rng):
    decision, oof = fitted
    logits = np.zeros((40, 2, 3))
    logits[:, :, 1] = 50
    expected = class_deploy(decision, oof, folds_of(rng, logits), logits).expectation
    assert expected.rates.errors == (1.0, 0.0, 1.0) and expected.rates.counts == decision.stacked.nested.counts
    assert expected.mean_error == expected.new_set_interval == Interval(2 / 3, 2 / 3)
    assert expected.accuracy == Interval(1 / 3, 1 / 3)
    one = class_deploy(decision, oof, folds_of(rng, logits[:1]), logits[:1]).expectation
    assert one.rates == decision.stacked.nested  # a single image has one class by chance


@pytest.mark.parametrize(("option", "value"), [("correction", "quantile"), ("prior", 0.2)])
def test_what_is_for_two_classes_alone_is_refused(fitted, option, value):
    decision, oof = fitted
    logits = np.zeros((4, 2, 3))
    with pytest.raises(ConfigError, match="for two classes alone") as refused:
        class_deploy(decision, oof, logits[:, :, None], logits, **{option: value})
    assert "\n" not in str(refused.value) and f"--{option}" in str(refused.value)


@pytest.mark.parametrize(("n", "counts"), [(10, (1, 1, 98)), (3, (5, 5, 5)), (7, (1, 2, 4)), (11, (1, 1, 1, 1, 60))])
def test_images_are_shared_out_in_proportion_and_none_is_lost(n, counts):
    numbers = share_out(n, counts)
    assert sum(numbers) == n and min(numbers) >= 1
    assert all(number <= max(1, np.ceil(n * c / sum(counts))) for number, c in zip(numbers, counts, strict=True))


# --- the check of shares ----------------------------------------------------------------------------------------------


def test_a_shift_of_the_class_mix_is_seen_and_the_new_images_alone_are_checked(fitted, rng):
    decision, oof = fitted
    alike = drawn(rng, rng.choice(3, 600, p=[0.5, 1 / 3, 1 / 6]))
    other = drawn(rng, rng.choice(3, 600, p=[0.3, 1 / 3, 11 / 30]))
    assert not class_deploy(decision, oof, folds_of(rng, alike), alike).share_check.shifted
    both = np.concatenate([alike, other])
    folds = folds_of(rng, both)
    check = class_deploy(decision, oof, folds, both).share_check
    assert check.shifted and "SHIFT" in check.message(1200) and "as none" in check.message(1200, ("a", "b", "none"))
    is_new = np.arange(1200) < 600
    assert not class_deploy(decision, oof, folds, both, is_new=is_new).share_check.shifted
    assert class_deploy(decision, oof, folds, both, is_new=~is_new).share_check.shifted


@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.01,) * 10 + (0.1125,) * 8])
@pytest.mark.parametrize("size", [1, 7])
def test_without_a_shift_one_check_in_a_hundred_gives_an_alarm(rng, shares, size):
    """Also if the rows of a group have one class; the images come in such groups too."""
    classes, alarms = len(shares), 0
    for _ in range(300):
        oof, new = (np.repeat(rng.choice(classes, n, p=shares), size) for n in (200, 120))
        fold_pred = np.repeat(new[:, None], 3, axis=1)
        alarms += check_class_shares(oof, fold_pred, classes, np.arange(oof.size) // size).shifted
    assert alarms <= 10


def test_few_images_are_too_few_and_none_are_no_shift(rng):
    oof = rng.integers(0, 3, 900)
    check = check_class_shares(oof, np.empty((0, 4), np.int8), 3)
    assert not check.shifted and check.new_shares == check.oof_shares and "no new image" in check.message(0)
    check = check_class_shares(oof, rng.integers(0, 3, (5, 4)), 3)
    assert check.is_too_small(5) and "5 images are too few" in check.message(5) and not check.is_too_small(500)
    assert check.explains_one_label(0, 3) and not check.explains_one_label(0, 10)


def test_a_decision_that_is_fitted_deploys_as_it_predicts(fitted, rng, monkeypatch):
    monkeypatch.setattr("ensemble.decision.class_assessment.REPLICATES", 20)
    _, oof = fitted
    decision = fit_decision(oof, ("identity",), objective=ClassObjective("macro-f1"))
    logits = drawn(rng, rng.choice(3, 90, p=[0.5, 1 / 3, 1 / 6]))
    made = class_deploy(decision, oof, folds_of(rng, logits), logits)
    assert np.array_equal(made.y_pred, decision.predict(logits))
    assert made.expectation.rates == decision.nested and made.expectation.interval == decision.interval
    assert np.array_equal(made.plurality, decision.votes(logits)[1]) and not made.share_check.shifted
