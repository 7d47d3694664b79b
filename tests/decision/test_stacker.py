from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from ensemble.decision.rates import call, error_rates
from ensemble.decision.stacker import (
    Stacker,
    cross_fit,
    fit_stacker,
    fixed,
    majority_vote,
    mean_logit,
    member_logit,
    own_threshold,
    stack,
    vote_share,
)
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ArtifactError, DataError

RULES = {
    "stack": stack(("m0", "m1", "m2")),
    "member": own_threshold(member_logit(1)),
    "mean": own_threshold(mean_logit),
    "vote": majority_vote,
    "at half": fixed(member_logit(0), 0.0),
}


def test_it_is_the_optimum_of_the_balanced_penalised_likelihood(make_oof):
    oof = make_oof(200)
    x, y = oof.logits, oof.labels.astype(float)
    z = (x - x.mean(0)) / x.std(0)
    weight = np.where(y == 1, y.size / (2 * y.sum()), y.size / (2 * (1 - y).sum()))

    def cost(beta):
        margin = (2 * y - 1) * (z @ beta[:3] + beta[3])
        return weight @ np.logaddexp(0, -margin) + beta[:3] @ beta[:3] / 2

    best = minimize(cost, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x
    stacker = fit_stacker(x, oof.labels, oof.members)
    np.testing.assert_allclose(stacker.weights, best[:3] / x.std(0), rtol=1e-4)
    np.testing.assert_allclose(stacker.apply(x), z @ best[:3] + best[3] + np.log(3), rtol=1e-4, atol=1e-4)


def test_it_recovers_the_true_log_odds(make_oof):
    stacker = fit_stacker(make_oof(40_000).logits, (np.arange(40_000) % 4 > 0).astype(int), ("a", "b", "c"))
    np.testing.assert_allclose(stacker.weights, [2.0, 1.2, 0.4], atol=0.1)
    assert stacker.bias == pytest.approx(np.log(3), abs=0.1)


def test_the_scale_of_a_member_does_not_matter(make_oof):
    oof = make_oof()
    plain = fit_stacker(oof.logits, oof.labels, oof.members)
    scaled = oof.logits * [100.0, 1.0, 0.01] + [0.0, 50.0, -3.0]
    other = fit_stacker(scaled, oof.labels, oof.members)
    np.testing.assert_allclose(other.apply(scaled), plain.apply(oof.logits), rtol=1e-7, atol=1e-7)


def test_it_is_deterministic_and_a_row_does_not_depend_on_its_batch(make_oof):
    oof = make_oof(1000)
    stacker = fit_stacker(oof.logits, oof.labels, oof.members)
    assert stacker == fit_stacker(oof.logits, oof.labels, oof.members)
    one_by_one = np.concatenate([stacker.apply(row[None]) for row in oof.logits])
    np.testing.assert_array_equal(one_by_one, stacker.apply(oof.logits))


def test_a_stacker_is_sound():
    with pytest.raises(DataError, match="finite weight"):
        Stacker(("a", "b"), (1.0,), 0.0)
    with pytest.raises(DataError, match="finite weight"):
        Stacker(("a",), (float("nan"),), 0.0)
    with pytest.raises(DataError, match=r"shape \(n, 1\); got \(3, 2\)"):
        Stacker(("a",), (1.0,), 0.0).apply(np.zeros((3, 2)))


@pytest.mark.parametrize("name", RULES)
def test_a_fold_is_called_by_a_rule_that_never_saw_it(make_oof, name):
    oof, rule = make_oof(), RULES[name]
    honest = cross_fit(oof, rule)
    for fold in oof.folds:
        inside = oof.fold_of == fold
        labels, logits = oof.labels.copy(), oof.logits.copy()
        labels[inside] = 1 - labels[inside]
        changed = cross_fit(replace(oof, labels=labels), rule)
        np.testing.assert_array_equal(changed.called[inside], honest.called[inside])
        np.testing.assert_array_equal(changed.scores[inside], honest.scores[inside])
        logits[inside] += 100.0
        moved = cross_fit(replace(oof, logits=logits), rule).folds
        assert moved[oof.folds.index(fold)].threshold == honest.folds[oof.folds.index(fold)].threshold
    if name != "at half":  # the test above can fail: the other folds did notice
        assert (cross_fit(replace(oof, labels=1 - oof.labels), rule).called != honest.called).any()


def test_cross_fit_by_hand(make_oof):
    oof = make_oof()
    nested = cross_fit(oof, RULES["member"])
    for row in nested.folds:
        inside = oof.fold_of == row.fold
        threshold = fit_threshold(oof.logits[~inside, 1], oof.labels[~inside])
        assert row.threshold == threshold
        np.testing.assert_array_equal(nested.called[inside], call(oof.logits[inside, 1], threshold))
        assert row.rates == error_rates(oof.labels[inside], nested.called[inside])


def test_half_of_an_even_number_of_votes_is_a_one():
    vote = fixed(vote_share([0.0, 0.0]), 0.5)(np.empty((0, 2)), np.empty(0, np.int8))
    np.testing.assert_array_equal(vote(np.array([[1.0, -1.0], [-1.0, -1.0], [0.0, 1.0]])), np.array([1, 0, 1]))


def test_oof_arrays_are_read_only_copies(make_oof):
    oof = make_oof(16)
    source = np.zeros((16, 3))
    copied = replace(oof, logits=source)
    source[:] = 1
    assert not copied.logits.any()
    assert oof.labels.dtype == oof.fold_of.dtype == np.int8
    for array in (copied.ids, copied.labels, copied.fold_of, copied.logits):
        assert not array.flags.writeable


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ids": np.zeros(16)}, "16 ids must be distinct"),
        ({"ids": np.arange(15)}, r"ids must have shape \(16,\); got \(15,\)"),
        ({"members": ("a", "b")}, r"logits must have shape \(16, 2\); got \(16, 3\)"),
        ({"members": ("a", "a", "b")}, "members must be distinct"),
        ({"fold_of": np.zeros(16)}, r"at least two folds are needed; got \(0,\)"),
        ({"fold_of": np.arange(16) % 4}, "fold 0: HTER needs both classes; got 0 of label 1 in 4 images"),
        ({"labels": np.full(16, 2)}, "labels must be 0 or 1; got 2 at row 0"),
        ({"groups": np.zeros(16)}, "group 0 must lie in one fold"),
        ({"groups": np.zeros(3)}, r"groups must have shape \(16,\)"),
    ],
)
def test_oof_logits_that_cannot_be_are_refused(make_oof, change, says):
    with pytest.raises(DataError, match=says):
        replace(make_oof(16), **change)


def test_a_missing_logit_names_member_and_fold(make_oof):
    oof = make_oof(16)
    logits = oof.logits.copy()
    logits[5, 1] = np.nan
    with pytest.raises(ArtifactError, match=r"member m1: .* got 1 in fold 1 .* run: thera train-member --arch m1"):
        replace(oof, logits=logits)
