from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from tiny import through_json

from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ErrorRates, apply_threshold, error_rates
from ensemble.decision.shift import ALARM, ALARM_ERRORS, ShareCheck, at_prior, check_share, implied_share


def images(rng, n, share=0.2, k=3):
    """Return labels (n,) and the logits of k fold models (n, k), which see one evidence through noises of their own."""
    labels = (rng.random(n) >= share).astype(np.int8)
    evidence = rng.normal(size=n) * 0.8 + 1.2 * (2.0 * labels - 1)
    return labels, evidence[:, None] + 0.6 * rng.normal(size=(n, k))


def checked(rng, n=2000, n_new=8000, share=0.2, moved=0.0, threshold=-0.3):
    """Return the check of new images, at `share` of label 0 and with logits moved, against OOF rows at 0.2."""
    labels, logits = images(rng, n, k=1)
    rates = error_rates(labels, apply_threshold(logits[:, 0], threshold))
    return check_share(logits[:, 0], images(rng, n_new, share)[1] + moved, threshold, rates)


# --- the check --------------------------------------------------------------------------------------------------------


def test_without_a_shift_it_alarms_as_seldom_as_it_says(rng):
    for n_new in (500, 8000):
        p_values = np.array([checked(rng, n_new=n_new).p_value for _ in range(500)])
        assert (p_values < ALARM).mean() <= 0.024  # 1 % and three of its standard errors
        assert (0.02 if n_new > 2000 else 0) <= (p_values < 0.05).mean() <= 0.08
        assert 0.4 < p_values.mean() < 0.7


def test_a_few_new_images_are_no_alarm(rng):
    """One image has no spread to read a standard error off, and yet its share is 0 or 1."""
    for n_new in (1, 2, 5):
        assert np.mean([checked(rng, 500, n_new).shifted for _ in range(200)]) <= 0.03


def test_a_shift_of_the_mix_is_seen_and_its_prior_is_found(rng):
    for share in (0.1, 0.3, 0.5, 0.8):
        checks = [checked(rng, share=share) for _ in range(100)]
        assert np.mean([check.shifted for check in checks]) > 0.95
        off = np.array([check.prior - share for check in checks])
        errors = np.array([check.prior_error for check in checks])
        assert abs(off.mean()) < 3 * off.std() / len(off) ** 0.5
        assert off.std() == pytest.approx(errors.mean(), rel=0.3)
        assert 0.87 <= (abs(off) < 1.96 * errors).mean() <= 1


def test_a_shift_of_the_images_is_seen_too(rng):
    assert np.mean([checked(rng, moved=-0.4).shifted for _ in range(50)]) > 0.9


def test_the_figures_by_hand():
    oof = np.repeat([-1.0, 1.0], [100, 300])
    new = np.array([[-1.0, 1.0]] * 200 + [[-1.0, -1.0]] * 100 + [[1.0, 1.0]] * 700)
    rates = ErrorRates(0.1, 0.05, 80, 320)
    check = check_share(oof, new, 0.0, rates)
    votes = np.repeat([0.5, 1.0, 0.0], [200, 100, 700])
    assert (check.oof_share, check.new_share) == (0.25, 0.2)
    assert check.error == pytest.approx((0.25 * 0.75 / 400 + votes.var() / 1000) ** 0.5)
    p_value = max(2 * norm.sf(0.05 / check.error), binomtest(200, 1000, 0.25).pvalue)
    assert check.p_value == pytest.approx(p_value)
    assert check.prior == pytest.approx((0.2 - 0.05) / 0.85)
    p = check.prior
    variance = votes.var() / 1000 + p**2 * 0.09 / 80 + (1 - p) ** 2 * 0.0475 / 320
    assert check.prior_error == pytest.approx(variance**0.5 / 0.85)


def test_a_tie_with_the_threshold_is_a_one():
    check = check_share(np.zeros(10), np.zeros((10, 2)), 0.0, ErrorRates(0.1, 0.1, 5, 5))
    assert check.oof_share == check.new_share == 0
    assert check.p_value == 1 and not check.shifted


def test_where_nothing_varies_a_difference_is_sure():
    check = check_share(np.full(50, 1.0), np.full((20, 2), -1.0), 0.0, ErrorRates(0.1, 0.1, 25, 25))
    assert (check.oof_share, check.new_share, check.error, check.p_value) == (0, 1, 0, 0)


def test_groups_widen_its_error(rng):
    labels, logits = images(rng, 400, k=1)
    rates = error_rates(labels, apply_threshold(logits[:, 0], 0.0))
    alike, groups = np.repeat(logits[:, 0], 5), np.repeat(np.arange(400), 5) * 3 + 1
    new = images(rng, 100_000)[1]
    single = check_share(alike, new, 0.0, rates, np.arange(2000)).error
    assert single == pytest.approx(check_share(alike, new, 0.0, rates).error)
    order = rng.permutation(2000)
    whole = check_share(alike[order], new, 0.0, rates, groups[order]).error
    assert whole / single == pytest.approx(5**0.5, rel=0.03)
    assert whole == pytest.approx(check_share(logits[:, 0], new, 0.0, rates).error, rel=0.01)


def test_the_votes_of_one_image_are_one_observation(rng):
    oof, one = rng.normal(size=20_000), rng.normal(size=(200, 1))
    rates = ErrorRates(0.1, 0.1, 1, 1)
    a, b = (check_share(oof, np.repeat(one, k, axis=1), 0.2, rates) for k in (1, 5))
    assert (a.new_share, a.error) == pytest.approx((b.new_share, b.error))


def test_a_prior_stays_a_share():
    for threshold, prior in ((-9.0, 0.0), (9.0, 1.0)):
        check = check_share(
            np.linspace(-1, 1, 50), np.linspace(-1, 1, 50)[:, None], threshold, ErrorRates(0.1, 0.2, 9, 9)
        )
        assert check.prior == prior
    useless = check_share(np.zeros(50), np.zeros((50, 1)), 0.0, ErrorRates(0.5, 0.5, 9, 9))
    assert 0 <= useless.prior <= 1 and np.isfinite(useless.prior_error)


def test_it_says_what_it_saw(rng):
    calm, shifted = checked(rng), checked(rng, share=0.5)
    for check in (calm, shifted):
        shares = f"{check.new_share:.4f} of the new images as 0, and {check.oof_share:.4f} of the training images"
        assert f"predict {shares}, at one threshold (p = {check.p_value:.2g})" in check.message(2000)
    assert calm.message(2000).startswith("Share check: ") and calm.message(2000).endswith("no sign of a shift.")
    assert shifted.message(2000).startswith("SHIFT: ")
    low, high = (shifted.prior + side * 1.96 * shifted.prior_error for side in (-1, 1))
    assert f"label 0 is {low:.3f} to {high:.3f} of the new images (give it as --prior" in shifted.message(2000)
    assert low < 0.5 < high
    assert shifted.shifted and through_json(shifted) == shifted


def test_the_alarm_in_standard_errors_is_its_level():
    assert 2 * norm.sf(ALARM_ERRORS) == pytest.approx(ALARM, abs=1e-7)


def test_a_set_that_is_too_small_to_check_is_said_to_be_so():
    check = ShareCheck(oof_share=0.2, new_share=0.0, error=0.01, p_value=0.1, prior=0.1, prior_error=0.1)
    assert check.least_visible(26) == pytest.approx(2.5758 * 0.4 / np.sqrt(26), abs=1e-4)
    assert check.message(26) == (
        "Share check: 26 images are too few to check for a shift: only a change of the share of 0 by at least 0.20 is "
        "seen."
    )
    assert check.message(27).endswith("no sign of a shift.")
    assert check.message(1) == "Share check: 1 image is too few to check for a shift."
    assert replace(check, p_value=1e-9).message(5).startswith("SHIFT: "), "a shift that is seen is reported"


def test_the_least_visible_change_is_what_the_check_sees(rng):
    """A change of the share by `least_visible` is an alarm about every second time, half of it hardly ever."""

    def alarms(change: float, images: int = 200) -> float:
        rates, oof = ErrorRates(0.0, 0.0, 2000, 8000), np.repeat([-1.0, 1.0], [20_000, 80_000])
        new = [np.where(rng.random((images, 1)) < 0.2 + change, -1.0, 1.0) for _ in range(400)]
        return float(np.mean([check_share(oof, each, 0.0, rates).shifted for each in new]))

    seen = ShareCheck(0.2, 0.2, 0.0, 1.0, 0.2, 0.0).least_visible(200)
    assert 0.35 < alarms(seen) < 0.65
    assert alarms(seen / 2) < 0.15 and alarms(2 * seen) > 0.9


# --- the share that rates imply ---------------------------------------------------------------------------------------


def test_the_share_that_rates_imply_holds_in_99_of_100_files(rng):
    """Rates, prior and images are all drawn; a threshold that is off moves FPR and FNR against each other."""
    rates, prior, prior_error, images = ErrorRates(0.2, 0.3, 2000, 8000), 0.2, 0.01, 500
    fpr, fnr = (Interval(x - 1.96 * 0.02, x + 1.96 * 0.02) for x in (0.2, 0.3))
    implied = implied_share(rates, fpr, fnr, prior, prior_error, images)
    off, priors = 0.02 * rng.normal(size=40_000), rng.normal(prior, prior_error, size=40_000)
    shares = rng.binomial(images, priors * (1 - (0.2 - off)) + (1 - priors) * (0.3 + off)) / images
    assert np.mean((shares >= implied.low) & (shares <= implied.high)) == pytest.approx(0.99, abs=0.003)


def test_the_share_that_rates_imply_is_a_share():
    wide = Interval(0.0, 1.0)
    assert implied_share(ErrorRates(0.0, 0.0, 9, 9), wide, wide, 0.0, 0.0, 4).low == 0.0
    assert implied_share(ErrorRates(0.0, 0.0, 9, 9), wide, wide, 1.0, 0.0, 4).high == 1.0


# --- another prior ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_zero", [1, 120, 500, 999])
def test_at_a_prior_it_is_what_counting_gives(n_zero):
    """A thousand images of which n_zero are of label 0, each called right or wrong in exact proportion."""
    rates = ErrorRates(0.25, 0.125, 40, 160)
    n_one = 1000 - n_zero
    labels = np.repeat([0, 0, 1, 1], [3 * n_zero, n_zero, 7 * n_one, n_one])  # weights: of label 0 in 4, of 1 in 8
    y_pred = np.repeat([0, 1, 1, 0], [3 * n_zero, n_zero, 7 * n_one, n_one])
    weight = np.where(labels == 0, 1 / 4, 1 / 8)
    there = at_prior(rates, n_zero / 1000)
    assert there.prior == n_zero / 1000
    assert there.share_called_0 == pytest.approx(weight[y_pred == 0].sum() / 1000)
    assert there.error_rate == pytest.approx(weight[y_pred != labels].sum() / 1000)
    for label, precision in ((0, there.precision_of_0), (1, there.precision_of_1)):
        of = y_pred == label
        assert precision == pytest.approx(weight[of & (labels == label)].sum() / weight[of].sum())


def test_at_the_prior_of_the_rows_nothing_is_added_to_the_logit():
    rates = ErrorRates(0.1, 0.2, 120, 880)
    assert at_prior(rates, 0.12).logit_shift == pytest.approx(0, abs=1e-12)
    assert at_prior(rates, 0.5).logit_shift == pytest.approx(-np.log(880 / 120))
    shifts = [at_prior(rates, prior).logit_shift for prior in (0.01, 0.12, 0.5, 0.9)]
    assert shifts == sorted(shifts, reverse=True)  # more of label 0, lower log-odds of 1


def test_a_logit_that_is_moved_is_calibrated_there(rng):
    def sample(share, n=400_000):
        labels = (rng.random(n) >= share).astype(np.int8)
        return labels, rng.normal(size=n) + (2.0 * labels - 1)

    log_odds = np.log(0.8 / 0.2)  # at a share of 0.2, 2 x + log(0.8 / 0.2) is the log-odds
    shift = at_prior(ErrorRates(0.1, 0.1, 200, 800), 0.6).logit_shift
    labels, x = sample(0.6)
    probability = 1 / (1 + np.exp(-(2 * x + log_odds + shift)))
    for low in np.arange(0, 1, 0.2):
        inside = (probability >= low) & (probability < low + 0.2)
        assert labels[inside].mean() == pytest.approx(probability[inside].mean(), abs=0.01)


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_a_prior_of_all_or_nothing_is_finite(prior):
    there = at_prior(ErrorRates(0.0, 0.0, 10, 90), prior)
    assert np.isfinite(list(vars(there).values())).all()
    assert there.error_rate == 0 and there.share_called_0 == prior


def test_a_few_images_of_one_label_are_no_constant_answer() -> None:
    check = ShareCheck(oof_share=0.12, new_share=0.0, error=0.1, p_value=0.5, prior=0.1, prior_error=0.1)
    assert check.explains_one_label(1, 3) and check.explains_one_label(1, 36)  # 0.88 ** 36 = 0.01004
    assert not check.explains_one_label(1, 37)
    assert check.explains_one_label(0, 2) and not check.explains_one_label(0, 3)  # 0.12 ** 2 = 0.0144
