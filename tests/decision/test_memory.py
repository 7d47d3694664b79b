"""The memory of a decision grows by a bounded number of bytes a row."""

import tracemalloc

import numpy as np

from ensemble.data.folds import FoldTable
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import fit_decision

MOST = 260
"""Bytes a row beyond the logits and the fold table, of three members and five folds. At so few rows, most rows are near
a threshold and are stored for every rule; of many rows, fewer are."""


def peak(n):
    rng = np.random.default_rng(0)
    labels = (rng.random(n) < 0.85).astype(np.int8)
    logits = rng.normal(size=(n, 3)) + np.outer(2.0 * labels - 1, (1.0, 0.9, 0.6))
    oof = OofLogits(FoldTable(np.arange(n), labels, np.arange(n) % 5), tuple("abc"), logits)
    tracemalloc.start()
    try:
        fit_decision(oof, ("image",))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_decision_takes_a_bounded_number_of_bytes_a_row(monkeypatch):
    monkeypatch.setattr("ensemble.decision.assessment.REPLICATES", 4)
    monkeypatch.setattr("ensemble.decision.refits.CELLS_AT_ONCE", 1)  # one replicate a batch, as of many rows
    peak(2000)  # what is imported and cached on the first call is no memory of rows
    few, many = peak(40_000), peak(80_000)
    assert 24 < (many - few) / 40_000 < MOST
