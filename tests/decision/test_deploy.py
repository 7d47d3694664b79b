import numpy as np
import pytest

from ensemble.decision.decision import fit_decision
from ensemble.decision.deploy import deploy
from ensemble.decision.intervals import Interval


@pytest.fixture
def fitted(make_oof, monkeypatch):
    """A decision on 600 rows, and its OOF logits."""
    monkeypatch.setattr("ensemble.decision.assessment.REPLICATES", 20)
    monkeypatch.setattr("ensemble.decision.decision.bound_noise", lambda logits, labels, seed: None)
    oof = make_oof()
    return fit_decision(oof, ("identity",)), oof


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("combine", ["mean", "vote"])
def test_of_a_file_with_one_label_the_rates_are_known(fitted, label, combine):
    """Whatever its images show, no threshold has another FPR and FNR, so no other rates may be printed for it."""
    decision, oof = fitted
    logits = np.full((40, 3), 50.0 if label else -50.0)
    made = deploy(decision, oof, np.repeat(logits[..., None], 4, axis=2), logits, combine)
    expected = made.expectation
    assert set(made.y_pred.tolist()) == {label}
    assert (expected.rates.fpr, expected.rates.fnr, expected.rates.hter) == (label, 1 - label, 0.5)
    assert (expected.rates.n_neg, expected.rates.n_pos) == (decision.nested.n_neg, decision.nested.n_pos)
    assert expected.interval == expected.new_set_interval == Interval(0.5, 0.5)
    assert expected.implied_share is None


def test_a_single_image_has_the_rates_of_the_rule_and_no_hter_to_measure(fitted):
    decision, oof = fitted
    expected = deploy(decision, oof, np.full((1, 3, 4), 50.0), np.full((1, 3), 50.0)).expectation
    assert expected.rates == decision.nested and expected.new_set_interval is None


def test_of_a_file_with_both_labels_the_rates_are_those_of_the_rule(fitted):
    decision, oof = fitted
    logits = np.repeat([[50.0] * 3, [-50.0] * 3], 6, axis=0)
    expected = deploy(decision, oof, np.repeat(logits[..., None], 4, axis=2), logits).expectation
    assert (expected.rates, expected.interval) == (decision.nested, decision.interval)
    assert expected.implied_share is not None and expected.implied_share.low < expected.implied_share.high


def test_the_implied_share_is_that_of_the_class_mix_that_the_rates_are_for(fitted):
    decision, oof = fitted
    logits = np.repeat(oof.logits[..., None], 4, axis=2)

    def centre(rows, prior=None):
        expected = deploy(decision, oof, logits[rows], oof.logits[rows], prior=prior).expectation
        implied = expected.implied_share
        assert implied is not None
        return (implied.low + implied.high) / 2, expected.rates

    def share_of_0(rates, prior):
        return prior * (1 - rates.fpr) + (1 - prior) * rates.fnr

    zeros = np.flatnonzero(oof.labels == 0)
    for rows, prior, expected in ((slice(None), None, 0.25), (slice(None), 0.6, 0.6), (zeros, None, 1.0)):
        found, rates = centre(rows, prior)
        assert found == pytest.approx(share_of_0(rates, expected), abs=0.03)
