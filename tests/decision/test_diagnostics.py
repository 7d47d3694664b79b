"""What a report shows row by row: nested predictions, exact error curves, calibration with counted intervals."""

from __future__ import annotations

import numpy as np
import pytest
from class_results import class_fitted, class_fitted_rows
from results import fitted, fitted_rows

from ensemble.decision.diagnostics import diagnose, error_curve, reliability, tradeoff_curve
from ensemble.decision.rates import class_rates, error_rates


def test_the_predictions_are_the_nested_ones_of_the_decision() -> None:
    decision, oof = fitted(), fitted_rows()
    found = diagnose(decision, oof)
    assert found.logits is not None
    assert error_rates(oof.labels, found.y_pred) == decision.nested
    assert np.array_equal(found.y_pred, found.logits.nested >= decision.threshold)
    apparent = (found.logits.apparent >= decision.threshold).astype(np.int8)
    assert error_rates(oof.labels, apparent) == decision.apparent
    assert not np.array_equal(apparent, found.y_pred)  # otherwise the two could be confused unseen


def test_contradiction_has_the_sign_of_the_error() -> None:
    found = diagnose(fitted(), fitted_rows())
    assert (found.contradiction[found.wrong] >= 0).all() and (found.contradiction[~found.wrong] <= 0).all()
    assert found.against.min() == 0 and found.against.max() == found.members == 2
    assert found.doubtful is not None and found.wrong[found.doubtful.rows].mean() > 0.5


def test_the_probability_of_a_row_is_fitted_without_its_fold() -> None:
    """Other labels in a fold change the fits of the other folds alone."""
    oof = fitted_rows()
    labels = oof.labels.copy()
    inside = oof.fold_of == 1
    labels[inside] = np.roll(labels[inside], 1)
    from dataclasses import replace

    changed = replace(oof, table=replace(oof.table, labels=labels))
    before, after = (diagnose(fitted(), each).logits for each in (oof, changed))
    assert before is not None and after is not None
    assert np.array_equal(before.probabilities[inside], after.probabilities[inside])
    assert not np.array_equal(before.probabilities[~inside], after.probabilities[~inside])


def test_several_classes_are_the_nested_ones_too() -> None:
    decision, oof = class_fitted(), class_fitted_rows()
    found = diagnose(decision, oof)
    assert found.logits is None
    assert class_rates(oof.labels, found.y_pred, 3) == decision.nested
    assert (found.contradiction[found.wrong] >= 0).all() and (found.contradiction[~found.wrong] <= 0).all()
    assert ((found.given_probability >= 0) & (found.given_probability <= 1)).all()


@pytest.mark.parametrize("seed", range(5))
def test_curves_are_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.integers(-4, 5, 60).astype(float), rng.integers(0, 2, 60)  # many ties
    labels[:2] = 0, 1
    thresholds = np.append(np.arange(-5, 6, 0.5), np.inf)
    for curve in (error_curve(logits, labels, thresholds), tradeoff_curve(logits, labels, 20)):
        for cut, fpr, fnr in zip(curve.thresholds, curve.fpr, curve.fnr, strict=True):
            rates = error_rates(labels, (logits >= cut).astype(np.int8))
            assert (fpr, fnr) == pytest.approx((rates.fpr, rates.fnr), abs=1e-15)
    assert (curve.fpr[0], curve.fnr[0], curve.fpr[-1], curve.fnr[-1]) == (1, 0, 0, 1)


def test_the_bins_are_counted_by_hand() -> None:
    rng = np.random.default_rng(1)
    p = np.append(rng.random(500), [0.0, 1.0])
    labels = (rng.random(502) < p).astype(np.int8)
    bins = reliability(p, labels)
    assert sum(each.rows for each in bins) == 502
    for each in bins:
        inside = (p >= each.low) & ((p < each.high) | (each.high == 1))
        assert (each.rows, each.share) == (inside.sum(), labels[inside].mean())
        assert each.interval.low <= each.share <= each.interval.high
        assert each.interval.low < each.interval.high  # also where no row, or every row, has label 1


def test_groups_widen_the_intervals_of_the_bins() -> None:
    p, labels = np.full(200, 0.55), np.repeat(np.arange(100) % 2, 2)
    (alone,), (grouped,) = reliability(p, labels), reliability(p, labels, np.arange(200) // 2)
    assert grouped.share == alone.share == 0.5
    width = (grouped.interval.high - grouped.interval.low) / (alone.interval.high - alone.interval.low)
    assert width == pytest.approx(np.sqrt(2), rel=0.02)
