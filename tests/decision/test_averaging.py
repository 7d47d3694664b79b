from __future__ import annotations

import numpy as np
import pytest

from ensemble.decision.averaging import LEAST_IMAGES, foresee_averaging
from ensemble.decision.intervals import new_set_interval
from ensemble.decision.rates import call, error_rates
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import DataError


def draw(rng: np.random.Generator, n: int, k: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) with 12 % of class 0 and 3 % flipped, and k logits each (n, k): skewed signals, independent noise."""
    truth = rng.random(n) > 0.12
    signal = np.where(truth, rng.gamma(4, 0.9, n) - 1, 0.7 - rng.gamma(2, 1, n))
    labels = truth ^ (rng.random(n) < 0.03)
    return labels.astype(np.int8), signal[:, None] + noise * rng.normal(size=(n, k))


@pytest.mark.parametrize("noise", [0.3, 0.6, 1.0])
def test_simulated_label_files_score_what_was_foreseen(noise: float) -> None:
    """Known truth, 24 times: nearly unbiased, and the interval holds; the nested figure alone does not."""
    errors, nested_errors, held, nested_held = [], [], 0, 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        labels, oof = draw(rng, 20_000, 1, noise)
        hidden, new = draw(rng, 6_000, 3, noise)
        threshold = fit_threshold(oof[:, 0], labels)
        nested = error_rates(labels, call(oof[:, 0], threshold))
        foreseen = foresee_averaging(oof[:, 0], labels, new, threshold, nested, seed, replicates=60)
        assert foreseen is not None
        measured = error_rates(hidden, call(new.mean(axis=1), threshold)).hter
        errors.append(foreseen.rates.hter - measured)
        nested_errors.append(nested.hter - measured)
        held += foreseen.interval.low <= measured <= foreseen.interval.high
        alone = new_set_interval(nested, int((hidden == 0).sum()), int((hidden == 1).sum()))
        nested_held += alone.low <= measured <= alone.high
    assert abs(np.mean(errors)) < 0.005
    assert abs(np.mean(errors)) < abs(np.mean(nested_errors))
    assert held >= 20
    assert noise == 0.3 or nested_held < 20


def test_equal_fold_models_gain_nothing() -> None:
    rng = np.random.default_rng(0)
    labels, oof = draw(rng, 20_000, 1, 0.5)
    _, new = draw(rng, 20_000, 1, 0.5)
    nested = error_rates(labels, call(oof[:, 0], 1.0))
    foreseen = foresee_averaging(oof[:, 0], labels, np.repeat(new, 3, axis=1), 1.0, nested, replicates=20)
    assert foreseen is not None
    assert foreseen.rates.hter == pytest.approx(nested.hter, abs=0.004)
    assert (foreseen.rates.n_neg, foreseen.rates.n_pos) == (nested.n_neg, nested.n_pos)


def test_same_seed_same_interval_and_order_of_models_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    labels, oof = draw(rng, 4_000, 1, 0.5)
    _, new = draw(rng, 2_000, 3, 0.5)
    nested = error_rates(labels, call(oof[:, 0], 1.0))

    def foresee(fold_logits: np.ndarray, seed: int) -> object:
        return foresee_averaging(oof[:, 0], labels, fold_logits, 1.0, nested, seed, replicates=20)

    assert foresee(new, 0) == foresee(new, 0) != foresee(new, 1)
    assert foresee(new[:, ::-1], 0) == foresee(new, 0)


def test_too_few_images_and_bad_logits() -> None:
    rng = np.random.default_rng(2)
    labels, oof = draw(rng, 500, 1, 0.5)
    nested = error_rates(labels, call(oof[:, 0], 1.0))
    assert foresee_averaging(oof[:, 0], labels, np.zeros((LEAST_IMAGES - 1, 3)), 1.0, nested) is None
    with pytest.raises(DataError, match=r"needs finite logits \(n, k\)"):
        foresee_averaging(oof[:, 0], labels, np.full((LEAST_IMAGES, 3), np.nan), 1.0, nested)


def test_few_rows_of_a_class_and_far_thresholds() -> None:
    rng = np.random.default_rng(3)
    labels, oof = draw(rng, 600, 1, 0.5)
    labels = np.where(np.cumsum(labels == 0) > 3, 1, labels)
    _, new = draw(rng, 2_000, 3, 0.5)
    for threshold, expected in ((-99.0, (1.0, 0.0)), (99.0, (0.0, 1.0)), (1.0, None)):
        nested = error_rates(labels, call(oof[:, 0], threshold))
        foreseen = foresee_averaging(oof[:, 0], labels, new, threshold, nested, replicates=40)
        assert foreseen is not None and 0 <= foreseen.interval.low <= foreseen.interval.high <= 1
        assert expected is None or (foreseen.rates.fpr, foreseen.rates.fnr) == expected
