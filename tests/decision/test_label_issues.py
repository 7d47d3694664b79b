from __future__ import annotations

import numpy as np
import pytest

from ensemble.decision.label_issues import calibrated, confident_joint, find_issues
from ensemble.errors import DataError


def world(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits, labels with a share of each class flipped, and which are flipped."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) > 0.25).astype(np.int8)
    wrong = rng.random(n) < share
    return 6.0 * truth - 3 + rng.normal(size=n), np.where(wrong, 1 - truth, truth).astype(np.int8), wrong


def test_flipped_labels_are_found() -> None:
    logits, labels, wrong = world(3000, 0.06, 0)
    found = find_issues(logits, labels)
    assert found[wrong].mean() > 0.9 and found[~wrong].mean() < 0.01


def test_clean_labels_are_left_alone() -> None:
    logits, labels, _ = world(3000, 0.0, 1)
    assert find_issues(logits, labels).mean() < 0.005


def test_no_more_than_the_joint_counts_and_those_that_are_contradicted_most() -> None:
    """cleanlab scales the joint to the labels; of each class it names that many, by the margin."""
    logits, labels, _ = world(2000, 0.1, 2)
    found, one = find_issues(logits, labels, 3), calibrated(logits, labels, 3)
    joint = confident_joint(logits, labels, 3)
    for label in (0, 1):
        own = labels == label
        expected = joint[label, 1 - label] / joint[label].sum() * own.sum()
        assert abs(np.count_nonzero(found & own) - expected) <= 0.2 * expected + 2
        other = one if label == 0 else 1 - one
        assert other[found & own].min() >= np.quantile(other[own & ~found], 0.99)


def test_any_rising_function_finds_the_same() -> None:
    logits, labels, _ = world(1000, 0.05, 4)
    assert np.array_equal(find_issues(logits, labels), find_issues(np.sinh(logits), labels))


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 1]])
def test_faulty_input_is_refused(labels: list[int]) -> None:
    with pytest.raises(DataError):
        find_issues([0.0, 1.0, 2.0], labels)


# --- more than two classes --------------------------------------------------------------------------------------------


def class_world(
    n: int, share: float, seed: int, classes: int = 4, separation: float = 5.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits (n, C), labels of which a share is replaced by another class, and which are replaced."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    wrong = rng.random(n) < share
    labels = np.where(wrong, (truth + rng.integers(1, classes, n)) % classes, truth)
    return separation * np.eye(classes)[truth] + rng.normal(size=(n, classes)), labels.astype(np.int8), wrong


def test_replaced_labels_of_several_classes_are_found_and_clean_ones_left_alone() -> None:
    logits, labels, wrong = class_world(4000, 0.06, 0)
    found = find_issues(logits, labels)
    assert found[wrong].mean() > 0.9 and found[~wrong].mean() < 0.01
    logits, labels, _ = class_world(4000, 0.0, 1)
    assert find_issues(logits, labels).mean() < 0.005


def test_the_joint_of_several_classes_counts_what_eq_1_says() -> None:
    """Northcutt et al. 2021, eq. 1: by the class-wise mean thresholds, from the calibrated probabilities."""
    logits, labels, _ = class_world(1500, 0.1, 2, separation=2.0)
    p, expected = calibrated(logits, labels, 7), np.zeros((4, 4), int)
    thresholds = np.array([p[labels == c, c].mean() for c in range(4)])
    for row, label in zip(p, labels, strict=True):
        above = np.flatnonzero(row >= thresholds)
        if above.size:
            expected[label, above[np.argmax(row[above])]] += 1
    assert np.array_equal(confident_joint(logits, labels, 7), expected)
    assert 0 < expected.sum() < 1500


def test_probabilities_of_several_classes_are_calibrated_whatever_the_scale_and_the_biases() -> None:
    rng = np.random.default_rng(3)
    logits = 1.5 * rng.normal(size=(8000, 3)) + [0.0, 1.0, -1.0]
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random(8000)[:, None] > true.cumsum(axis=1)).sum(axis=1).clip(max=2).astype(np.int8)
    for given in (logits, 20 * logits - [0.0, 30.0, 5.0], 0.01 * logits + rng.normal(size=(8000, 1))):
        p = calibrated(given, labels)
        assert p.sum(axis=1) == pytest.approx(1)
        assert np.abs(p - true).mean() < 0.02


def test_a_calibration_uses_the_rows_of_the_other_folds_alone() -> None:
    """Logits that are changed move the probabilities of the rows of other folds, and not those in the same fold."""
    logits, labels, _ = class_world(60, 0.0, 4, 3, 1.0)
    once = calibrated(logits, labels)
    logits[0] += [9.0, 0.0, 0.0]
    same = np.isclose(once, calibrated(logits, labels), atol=1e-12).all(axis=1)
    assert not same[0] and 8 <= same.sum() <= 14


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [0, 1, 2, 3], [0, 1, 2]])
def test_faulty_labels_of_several_classes_are_refused(labels: list[int]) -> None:
    with pytest.raises(DataError):
        find_issues(np.zeros((4, 3)), labels)
