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
