"""To read the fold table and the OOF logits of a run takes a bounded number of bytes a row."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ensemble.commands.fit_stacker import averaged_oof
from ensemble.config import VIEWS
from ensemble.data.folds import FoldTable
from ensemble.runs import files
from ensemble.runs.member import MemberIdentity
from ensemble.runs.run import Run, RunFacts

FOLDS, MEMBERS = 5, ("a", "b", "c")

MOST = 160
"""Bytes a row of three members, five folds and two views. Ids of eight characters and the rest of the fold table take
34, and the logits 48; one member and one of its folds are in memory twice while they are read."""


def write_run(folder: Path, n: int) -> Run:
    logits = np.random.default_rng(0).normal(size=(n, len(VIEWS)))
    table = FoldTable(np.array([f"{row:08d}" for row in range(n)]), np.arange(n) % 2, np.arange(n) // 2 % FOLDS)
    run = Run(folder)
    run.begin(RunFacts(0, FOLDS, n, (8, 8), None, "f", "images", "labels"))
    run.write_folds(table)
    for name in MEMBERS:
        run.member(name).begin({"arch": name}, MemberIdentity("f", 0, "fp32"))
        for fold in range(FOLDS):
            inside = table.fold_of == fold
            run.member(name).finish_fold(fold, {}, table.ids[inside], logits[inside], VIEWS)
    return run


def peak(run: Run) -> int:
    tracemalloc.start()
    try:
        averaged_oof(run, MEMBERS, VIEWS)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_reading_takes_a_bounded_number_of_bytes_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK", 2**10)  # several blocks a file, as of many rows
    few, many = (write_run(tmp_path / str(n), n) for n in (5_000, 30_000))
    peak(few)  # what is imported and cached on the first call is no memory of rows
    assert 34 + 48 < (peak(many) - peak(few)) / 25_000 < MOST
