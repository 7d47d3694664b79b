"""The memory of a decision grows by a bounded number of bytes a row."""

import tracemalloc

import numpy as np
import pytest

from ensemble.data.folds import FoldTable
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import fit_decision

MOST = {2: 220, 3: 240}
"""Bytes a row beyond the logits and the fold table, of three members and five folds, by the number of classes. At so
few rows, most rows are near a threshold and are stored for every rule; of many rows, fewer are."""


def drawn(n, classes):
    rng = np.random.default_rng(0)
    labels = rng.choice(classes, n, p=(0.15, 0.85) if classes == 2 else None).astype(np.int8)
    if classes == 2:
        logits = rng.normal(size=(n, 3)) + np.outer(2.0 * labels - 1, (1.0, 0.9, 0.6))
    else:
        logits = rng.normal(size=(n, 3, classes)) + np.eye(classes)[labels][:, None] * np.array([[1.5], [1.2], [0.8]])
    return OofLogits(FoldTable(np.arange(n), labels, np.arange(n) % 5), tuple("abc"), logits)


def peak(oof):
    tracemalloc.start()
    try:
        fit_decision(oof, ("image",))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_decision_takes_a_bounded_number_of_bytes_a_row(monkeypatch, classes):
    monkeypatch.setattr("ensemble.decision.assessment.REPLICATES", 4)
    monkeypatch.setattr("ensemble.decision.class_assessment.REPLICATES", 2)
    monkeypatch.setattr("ensemble.decision.class_intervals.CELLS", 2000)  # a grid that does not grow with the rows
    monkeypatch.setattr("ensemble.decision.refits.CELLS_AT_ONCE", 1)  # one replicate a batch, as of many rows
    fit_decision(drawn(2000, classes), ("image",))  # what is imported and cached first is no memory of rows
    few, many = (peak(drawn(n, classes)) for n in (5000, 15_000))
    assert 24 < (many - few) / 10_000 < MOST[classes]
