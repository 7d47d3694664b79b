"""The targets of a student: means, mixture, temperature; labels of other rows are not read."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from ensemble.decision.distillation import soft_targets


@pytest.fixture
def logits(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(2.0, 3.0, 200)


def test_means_on_the_training_rows_are_the_shares(logits: np.ndarray, rng: np.random.Generator) -> None:
    labels, training = (rng.random(200) < 0.12).astype(np.int8), np.arange(0, 200, 2)
    targets = soft_targets(logits, labels, training, teacher_weight=1.0)
    assert targets[training].mean() == pytest.approx(labels[training].mean(), abs=1e-6)
    shift = np.log(targets / (1 - targets.astype(float))) - logits
    assert np.ptp(shift) < 1e-3  # one constant for all rows


def test_a_constant_added_to_the_logits_changes_nothing(logits: np.ndarray) -> None:
    labels, training = np.tile([0, 1], 100).astype(np.int8), np.arange(150)
    first, second = (soft_targets(x, labels, training) for x in (logits, logits + 5.0))
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_training_rows_mix_the_label_and_others_do_not(logits: np.ndarray) -> None:
    labels, training = np.tile([0, 1], 100).astype(np.int8), np.arange(150)
    alone, mixed = (soft_targets(logits, labels, training, weight) for weight in (1.0, 0.25))
    np.testing.assert_allclose(mixed[:150], 0.25 * alone[:150] + 0.75 * labels[:150], atol=1e-6)
    np.testing.assert_array_equal(mixed[150:], alone[150:])
    changed = labels.copy()
    changed[150:] = 1 - changed[150:]
    np.testing.assert_array_equal(soft_targets(logits, changed, training, 0.25), mixed)


def test_a_high_temperature_softens(logits: np.ndarray) -> None:
    labels, training = np.tile([0, 1], 100).astype(np.int8), np.arange(200)
    hot = soft_targets(logits, labels, training, 1.0, temperature=1e6)
    np.testing.assert_allclose(hot, 0.5, atol=1e-4)


def test_two_classes_are_the_case_of_two_columns(logits: np.ndarray) -> None:
    labels, training = np.tile([0, 0, 1, 1], 50).astype(np.int8), np.arange(120)
    one = soft_targets(logits, labels, training)
    two = soft_targets(np.column_stack((np.zeros(200), logits)), labels, training)
    np.testing.assert_allclose(two[:, 1], one, atol=1e-7)
    np.testing.assert_allclose(two.sum(axis=1), 1, atol=1e-6)


def test_a_class_without_training_rows_keeps_its_scores(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(90, 3))
    labels, training = np.repeat([0, 1], 45).astype(np.int8), np.arange(90)
    targets = soft_targets(scores, labels, training, 1.0)
    assert np.isfinite(targets).all() and targets.shape == (90, 3)


def test_matched_logits_are_left_alone() -> None:
    z, labels = np.linspace(-3, 3, 100), np.tile([0, 1], 50).astype(np.int8)  # the mean probability is 1/2
    np.testing.assert_allclose(soft_targets(z, labels, np.arange(100), 1.0), expit(z), atol=1e-6)
