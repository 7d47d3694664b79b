"""Offsets between fold models: found where they cost errors, subtracted on OOF rows and on new images alike."""

from dataclasses import replace

import numpy as np
import pytest

from ensemble.data.folds import FoldTable
from ensemble.decision.cross_fitting import OofLogits, cross_fit, member_logit, of_score
from ensemble.decision.decision import fit_decision
from ensemble.decision.deploy import check_new_share, deploy
from ensemble.decision.fold_offsets import aligned, find_fold_offsets, offsets_of
from ensemble.decision.rates import error_rates


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("ensemble.decision.assessment.REPLICATES", 40)
    monkeypatch.setattr("ensemble.decision.deploy.REPLICATES", 12)


def with_offset(oof, fold, offset, member=0):
    logits = oof.logits.copy()
    logits[oof.fold_of == fold, member] += offset
    return OofLogits(oof.table, oof.members, logits)


def nested_hter(oof):
    return error_rates(oof.labels, cross_fit(oof.rows, of_score(member_logit(0))).y_pred).hter


def test_a_planted_offset_is_found_and_its_member_is_as_good_as_before(make_oof):
    for n, offset in ((400, 3.0), (4000, -1.5)):
        oof = make_oof(n, (1.5, 1.0))
        moved = with_offset(oof, 2, offset)
        (found,) = find_fold_offsets(moved)
        assert found.member == "m0" and sum(found.offsets) == pytest.approx(0, abs=1e-9)
        assert found.offsets[2] == pytest.approx(offset * 3 / 4, abs=0.3)  # less its share of the mean of four folds
        assert nested_hter(moved) > nested_hter(oof) + 0.02
        assert nested_hter(aligned(moved, (found,))) == pytest.approx(nested_hter(oof), abs=0.02)
        np.testing.assert_array_equal(aligned(moved, (found,)).logits[:, 1], oof.logits[:, 1])


def test_the_location_is_that_of_the_classes_not_of_their_mix(make_oof):
    """Folds of groups may have other shares of the classes; that alone is no offset."""
    oof = make_oof(4000, (1.5,), k=2)
    rng = np.random.default_rng(5)
    fold_of = (rng.random(4000) < np.where(oof.labels == 0, 0.8, 0.4)).astype(np.int8)
    assert find_fold_offsets(OofLogits(replace(oof.table, fold_of=fold_of), oof.members, oof.logits)) == ()


def test_fold_models_that_lie_alike_have_no_offset(make_oof):
    assert sum(len(find_fold_offsets(make_oof(400, (1.0, 0.5)))) for _ in range(50)) <= 1


def test_an_offset_that_costs_nothing_is_left(make_oof):
    oof = make_oof(20_000, (1.5,))
    slight = with_offset(oof, 1, 0.12)  # beyond chance with so many rows, and without an effect on the errors
    assert find_fold_offsets(slight) == ()
    far_apart = make_oof(400, (9.0,))
    assert find_fold_offsets(with_offset(far_apart, 1, 3.0)) == ()


def test_separable_folds_at_different_heights_are_put_on_one_scale():
    """Each fold has an AUC of 1, but no threshold serves both: the nested HTER is 0.5."""
    labels, fold_of = np.arange(60) % 5 > 0, np.arange(60) // 5 % 2
    logits = 0.1 * (2.0 * labels - 1) + fold_of + 0.001 * np.arange(60)
    oof = OofLogits(FoldTable(np.arange(60), labels.astype(np.int8), fold_of), ("a",), logits[:, None])
    assert nested_hter(oof) == 0.5
    assert nested_hter(aligned(oof, find_fold_offsets(oof))) == 0


def test_prediction_subtracts_the_offsets_that_the_decision_was_fitted_without(make_oof, quick):
    rng = np.random.default_rng(3)
    oof = make_oof(1200, (1.5, 1.0))
    labels = (np.arange(1500) % 4 > 0).astype(np.int8)
    new = rng.normal(size=(1500, 2, 4)) + np.outer(2.0 * labels - 1, (1.5, 1.0))[:, :, None]
    moved_oof, moved = with_offset(oof, 0, 2.5), new.copy()
    moved[:, 0, 0] += 2.5
    plain, decision = fit_decision(oof, (), seed=1), fit_decision(moved_oof, (), seed=1)
    assert plain.offsets == () and [each.member for each in decision.offsets] == ["m0"]
    assert any("differ by an offset" in note for note in decision.notes)
    assert decision.nested.hter == pytest.approx(plain.nested.hter, abs=0.01)
    np.testing.assert_allclose(
        decision.aligned_folds(moved), moved - offsets_of(decision.stacker.members, decision.offsets, 4)
    )
    one, other = (
        deploy(of, rows, images, images.mean(axis=2), seed=2)
        for of, rows, images in ((plain, oof, new), (decision, moved_oof, moved))
    )
    assert not check_new_share(decision, moved_oof, moved).shifted
    assert other.expectation.averaging_measured
    assert other.expectation.rates.hter == pytest.approx(one.expectation.rates.hter, abs=0.01)
    assert np.mean(one.y_pred != other.y_pred) < 0.02
    assert error_rates(labels, other.y_pred).hter == pytest.approx(other.expectation.rates.hter, abs=0.03)


def test_a_stack_that_is_worse_over_the_folds_than_over_random_parts_is_named(make_oof, quick):
    oof = make_oof(2000, (1.5,))
    assert fit_decision(oof, ()).notes == ()
    logits = np.where((oof.fold_of == 1)[:, None], np.exp(oof.logits), oof.logits)  # another shape, not an offset alone
    notes = fit_decision(OofLogits(oof.table, oof.members, logits), ()).notes
    assert any(note.startswith("the fold models differ") or "differ by an offset" in note for note in notes)
