"""What simulations show of few images and of few groups is said with the decision."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.data.folds import FoldTable
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import FEW_GROUPS, LEAST_IMAGES, fit_decision, small_set_notes


def labelled(zeros: int, ones: int) -> np.ndarray:
    return np.repeat([0, 1], [zeros, ones]).astype(np.int8)


@pytest.mark.parametrize(("n", "named"), [(LEAST_IMAGES - 2, True), (LEAST_IMAGES, False)])
def test_few_images_are_named(n: int, named: bool) -> None:
    notes = small_set_notes(labelled(n // 2, n // 2), None)
    assert [note.startswith(f"{n} labelled images are few") for note in notes] == [True] * named


@pytest.mark.parametrize(("groups", "named"), [(FEW_GROUPS - 1, True), (FEW_GROUPS, False)])
def test_few_groups_of_a_class_are_named(groups: int, named: bool) -> None:
    labels = labelled(5 * groups, 2000)
    notes = small_set_notes(labels, np.arange(labels.size) // 5)
    assert [note.startswith(f"label 0 has {groups} groups only") for note in notes] == [True] * named


def test_few_images_that_are_hardly_in_groups_pass_for_independent() -> None:
    """Two identical images make a group; the others are groups of their own, as many as images."""
    labels = labelled(40, 400)
    assert small_set_notes(labels, np.maximum(np.arange(labels.size), 1)) == ()


def test_the_decision_has_the_notes() -> None:
    rng, labels = np.random.default_rng(0), np.tile([0, 1], 60).astype(np.int8)
    table = FoldTable(np.arange(120).astype(str), labels, np.arange(120) // 2 % 3)
    oof = OofLogits(table, ("a", "b"), labels[:, None] * 2.0 + rng.normal(size=(120, 2)))
    assert fit_decision(oof, ("identity",)).notes == small_set_notes(labels, None) != ()
