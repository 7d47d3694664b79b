"""Measure how long `thera fit-stacker` and its parts take.

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/fit_stacker.py

The script makes a run of 100,000 rows, 3 members, 5 folds and 2 views in a temporary folder. It runs the whole command
several times, each time in a new process (including start and imports). It then times the parts of the command in this
process, equally often. It prints wall time and processor time; other work on the machine lengthens the second one less.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ensemble.commands.fit_stacker import averaged_oof, fit_stacker
from ensemble.config import VIEWS, DecisionConfig
from ensemble.data.folds import FoldTable
from ensemble.decision.assessment import REPLICATES
from ensemble.decision.cross_fitting import cross_fit, stack
from ensemble.decision.decision import fit_decision
from ensemble.decision.label_noise import bound_noise
from ensemble.decision.refits import RefitRule, refit_errors
from ensemble.runs.member import MemberIdentity
from ensemble.runs.run import Run, RunFacts

FOLDS, MEMBERS = 5, {"a": 1.0, "b": 0.9, "c": 0.6}
"""The members, and the distance of the mean logit of each label from 0, in standard deviations."""


def write_run(folder: Path, n: int) -> Run:
    """Write the files that training leaves in a run, without weights.

    5 % of the labels are flipped; every hundredth image forms a group with another one.
    """
    rng = np.random.default_rng(0)
    truth = (rng.random(n) < 0.88).astype(np.int8)
    labels = np.where(rng.random(n) < 0.05, 1 - truth, truth).astype(np.int8)
    groups = np.arange(n)
    groups[50::100] = groups[45:-5:100]  # a group stays in one fold
    ids = np.array([f"{i:06d}" for i in range(n)])
    table = FoldTable(ids, labels, (np.arange(n) % FOLDS).astype(np.int8), groups)
    run = Run(folder)
    run.begin(RunFacts(0, FOLDS, n, (64, 64), None, "f", "images", "labels"))
    run.write_folds(table)
    shared = rng.normal(size=(n, 1))
    for name, strength in MEMBERS.items():
        member = run.member(name)
        member.begin({"arch": name}, MemberIdentity("f", 0, "fp32"))
        logits = (2.0 * truth[:, None] - 1) * strength + 0.5 * shared + rng.normal(size=(n, 1))
        logits = logits + 0.2 * rng.normal(size=(n, len(VIEWS)))
        for fold in range(FOLDS):
            inside = table.fold_of == fold
            member.finish_fold(fold, {}, table.ids[inside], logits[inside], VIEWS)
    return run


def command(folder: Path) -> None:
    thera = Path(sys.executable).with_name("thera")
    subprocess.run([thera, "fit-stacker", "--run", folder], check=True, stdout=subprocess.DEVNULL)


def parts(run: Run) -> Iterator[tuple[str, Callable[[], object]]]:
    oof = averaged_oof(run, tuple(MEMBERS), VIEWS)
    rows, rule = oof.rows, stack("nonnegative")
    nested = cross_fit(rows, rule)
    refit = RefitRule(rule(rows).score(rows.logits), rows.labels, nested.splits)
    yield "the whole command", lambda: command(run.folder)
    yield "its work, plain and tta", lambda: fit_stacker(run.folder, DecisionConfig())
    yield "  files read", lambda: run.oof_logits(tuple(MEMBERS))
    yield "  a decision", lambda: fit_decision(replace(oof), VIEWS)  # a copy, because rows cache what is fitted on them
    yield "    stacker fitted, with and without each fold", lambda: cross_fit(replace(rows), rule)
    yield (
        f"    bootstrap of the stack, {REPLICATES} replicates",
        lambda: refit_errors([refit], rows.labels, replicates=REPLICATES),
    )
    yield "    label noise", lambda: bound_noise(nested.margins, None, rows.labels)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall time, and the processor time of this process and its children."""
    started, spent = time.perf_counter(), sum(os.times()[:4])
    work()
    return time.perf_counter() - started, sum(os.times()[:4]) - spent


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--repeats", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder), given.rows)
        print(
            f"| {given.rows} rows, {len(MEMBERS)} members, {FOLDS} folds | wall s (min..max) | processor s (min..max) |"
        )
        print("| --- | ---: | ---: |")
        for name, work in parts(run):
            took = np.array([seconds(work) for _ in range(given.repeats)]).T
            cells = (f"{np.median(each):.2f} ({each.min():.2f}..{each.max():.2f})" for each in took)
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
