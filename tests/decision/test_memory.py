"""The memory of a decision grows by a bounded number of bytes a row."""

import tracemalloc

import numpy as np
import pytest

from ensemble.data.folds import FoldTable
from ensemble.decision.assessment import Candidate
from ensemble.decision.cross_fitting import OofLogits, member_logit, of_score
from ensemble.decision.cuts import Cuts
from ensemble.decision.decision import fit_decision
from ensemble.decision.refits import refit_errors

MOST = {2: 220, 3: 240}
"""Bytes a row beyond the logits and the fold table, of three members and five folds, by the number of classes. At so
few rows, most rows are near a threshold and are stored for every rule; of many rows, fewer are."""

MOST_OF_REFITS = 170
"""Bytes a row of the refits of three rules, of rows in few groups."""


def drawn(n, classes, groups=None):
    """Return logits; with groups, those of a group have a part in common."""
    rng = np.random.default_rng(0)
    labels = rng.choice(classes, n, p=(0.15, 0.85) if classes == 2 else None).astype(np.int8)
    group_of = None if groups is None else np.arange(n) % groups
    if classes == 2:
        logits = rng.normal(size=(n, 3)) + np.outer(2.0 * labels - 1, (1.0, 0.9, 0.6))
    else:
        logits = rng.normal(size=(n, 3, classes)) + np.eye(classes)[labels][:, None] * np.array([[1.5], [1.2], [0.8]])
    if groups is not None:
        logits += rng.normal(size=(groups, *[1] * (logits.ndim - 1)))[group_of]
    return OofLogits(FoldTable(np.arange(n), labels, np.arange(n) % 5, group_of), tuple("abc"), logits)


def peak(work):
    tracemalloc.start()
    try:
        work()
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
    rows = (drawn(n, classes) for n in (5000, 15_000))
    few, many = (peak(lambda oof=oof: fit_decision(oof, ("image",))) for oof in rows)
    assert 24 < (many - few) / 10_000 < MOST[classes]


@pytest.mark.parametrize("room", [3.0, 0.0])
def test_refits_of_groups_take_a_bounded_number_of_bytes_a_row(monkeypatch, room):
    """Also where no cut is near the best one, so that most replicates need all cuts."""
    monkeypatch.setattr("ensemble.decision.cuts._ROOM", room)
    monkeypatch.setattr("ensemble.decision.refits.CELLS_AT_ONCE", 1)
    searched = []

    def refit(oof):
        rules = (Candidate.of("", oof, of_score(member_logit(j))).for_refits(oof.groups) for j in range(3))
        refit_errors(rules, oof.labels, oof.groups, replicates=8)

    def best(cuts, table, search=Cuts.best):
        cut = search(cuts, table)
        searched.extend(cut.tolist())
        return cut

    monkeypatch.setattr(Cuts, "best", best)
    refit(drawn(2000, 2, groups=50))
    searched.clear()
    few, many = (peak(lambda oof=oof: refit(oof)) for oof in (drawn(n, 2, groups=50) for n in (10_000, 30_000)))
    assert 24 < (many - few) / 20_000 < MOST_OF_REFITS
    unknown = searched.count(-1) / len(searched)
    assert unknown > 0.3 if room == 0 else unknown < 0.05
