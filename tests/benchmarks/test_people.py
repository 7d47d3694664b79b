"""The benchmark of drawn people joins the targets in the order of the joined class, and fits offsets elsewhere."""

from __future__ import annotations

import numpy as np
from people import joined, with_offsets

from ensemble.data.folds import FoldTable
from ensemble.data.synthetic_people import joined_label


def log_probabilities(rng: np.random.Generator, n: int, classes: int) -> np.ndarray:
    return np.log(rng.dirichlet(np.ones(classes), n))


def test_the_joined_class_of_independent_targets_is_that_of_their_classes() -> None:
    rng = np.random.default_rng(0)
    mask, gender, age = (log_probabilities(rng, 50, classes) for classes in (3, 2, 3))
    scores = joined(mask, gender, age)
    assert np.array_equal(scores.argmax(1), joined_label(mask.argmax(1), gender.argmax(1), age.argmax(1)))
    assert np.allclose(np.logaddexp.reduce(scores, axis=1), 0)


def test_the_labels_of_a_fold_do_not_change_its_predictions() -> None:
    rng = np.random.default_rng(0)
    scores, labels = log_probabilities(rng, 240, 3), rng.integers(0, 3, 240).astype(np.int8)
    fold_of, ids = (np.arange(240) % 3).astype(np.int8), np.arange(240).astype(str)
    y_pred = with_offsets(scores, FoldTable(ids, labels, fold_of))
    inside = fold_of == 1
    other = np.where(inside, (labels + 1) % 3, labels).astype(np.int8)
    changed = with_offsets(scores, FoldTable(ids, other, fold_of))
    assert np.array_equal(y_pred[inside], changed[inside])
    assert not np.array_equal(y_pred, changed)
