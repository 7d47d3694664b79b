"""The paired scores equal scikit-learn's, and their intervals those of rows that are drawn one by one."""

from __future__ import annotations

import numpy as np
import pytest
from paired import REPLICATES, Paired, score
from sklearn.metrics import accuracy_score, f1_score


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, predictions and groups of 60 people, seven rows each, of four classes."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 7)
    labels = np.repeat(rng.choice(2, 60), 7) * 2 + np.tile([0, 0, 0, 0, 0, 1, 1], 60)
    wrong = np.repeat(rng.random(60) < 0.2, 7)
    return labels, np.where(wrong, rng.integers(0, 4, len(labels)), labels), groups


def test_the_scores_of_the_data_are_those_of_scikit_learn(data: tuple[np.ndarray, ...]) -> None:
    labels, y_pred, groups = data
    scored = Paired(labels, groups)
    assert scored.macro_f1(y_pred)[0] == pytest.approx(f1_score(labels, y_pred, average="macro"))
    assert scored.accuracy(y_pred)[0] == pytest.approx(accuracy_score(labels, y_pred))


def test_a_replicate_draws_whole_groups_within_their_stratum(data: tuple[np.ndarray, ...]) -> None:
    labels, y_pred, groups = data
    scored = Paired(labels, groups)
    for replicate in (1, 17):
        drawn = np.repeat(np.arange(len(labels)), scored.weights[replicate].astype(int)[groups])
        assert np.array_equal(np.bincount(labels[drawn]), np.bincount(labels))  # classes keep their sizes
        f1 = f1_score(labels[drawn], y_pred[drawn], average="macro")
        assert scored.macro_f1(y_pred)[replicate] == pytest.approx(f1)


def test_groups_widen_the_interval(data: tuple[np.ndarray, ...]) -> None:
    """The errors of a person come together, so that intervals of single rows are too narrow."""
    labels, y_pred, groups = data
    by_group, by_row = (score(Paired(labels, each).accuracy(y_pred)) for each in (groups, None))
    assert by_group.value == by_row.value
    assert by_group.high - by_group.low > 1.5 * (by_row.high - by_row.low)


def test_equal_predictions_differ_by_nothing(data: tuple[np.ndarray, ...]) -> None:
    labels, y_pred, groups = data
    scored = Paired(labels, groups)
    difference = score(scored.macro_f1(y_pred) - scored.macro_f1(y_pred.copy()))
    assert difference.cells(signed=True) == ("+0.0000", "+0.0000 to +0.0000")
    assert len(scored.weights) == 1 + REPLICATES
