"""How long does `thera fit-stacker` take, and where does the time go?

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/fit_stacker.py

Makes a run of 100,000 rows, 3 members, 5 folds and 2 views in a temporary folder, and gives the whole command several
times, each in a process of its own (its start and imports included). Its parts are then timed here, each as often: by
the clock on the wall, and by what the processor has spent on them, which others at work do not lengthen so much.
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

from ensemble.commands.fit_stacker import all_oof_logits, averaged_oof, fit_stacker
from ensemble.config import VIEWS, DecisionConfig
from ensemble.data.folds import FoldTable
from ensemble.decision.assessment import REPLICATES
from ensemble.decision.cross_fitting import cross_fit, stack
from ensemble.decision.decision import fit_decision
from ensemble.decision.label_noise import estimate_floor
from ensemble.decision.refits import refit_replicates
from ensemble.runs.run import Run

FOLDS, MEMBERS = 5, {"a": 1.0, "b": 0.9, "c": 0.6}
"""Each member, and how far its mean logit of either label lies from 0, in standard deviations."""


def write_run(folder: Path, n: int) -> Run:
    """Write what training leaves of a run, but for the weights.

    5 % of the labels are flipped; every hundredth image and another are of one group.
    """
    rng = np.random.default_rng(0)
    truth = (rng.random(n) < 0.88).astype(np.int8)
    labels = np.where(rng.random(n) < 0.05, 1 - truth, truth).astype(np.int8)
    groups = np.arange(n)
    groups[50::100] = groups[45:-5:100]  # of one fold
    ids = np.array([f"{i:06d}" for i in range(n)])
    table = FoldTable(ids, labels, (np.arange(n) % FOLDS).astype(np.int8), groups)
    run = Run(folder)
    run.begin({"seed": 0}, {})
    run.write_folds(table)
    shared = rng.normal(size=(n, 1))
    for name, strength in MEMBERS.items():
        member = run.member(name)
        member.begin({}, {})
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
    rows, rule = oof.rows, stack("auto")
    scores, nested = rule(rows).score(rows.logits), cross_fit(rows, rule)
    yield "the whole command", lambda: command(run.folder)
    yield "its work, plain and tta", lambda: fit_stacker(run.folder, DecisionConfig(), lambda _: None)
    yield "  files read", lambda: all_oof_logits(run, run.read_folds(), tuple(MEMBERS))
    yield "  a decision", lambda: fit_decision(replace(oof), VIEWS)  # rows keep what is fitted on them
    yield "    stacker chosen, with and without each fold", lambda: cross_fit(replace(rows), rule)
    yield (
        f"    bootstrap, {REPLICATES} replicates",
        lambda: [each.errors for each in refit_replicates(scores, rows.labels, nested.splits, replicates=REPLICATES)],
    )
    yield "    floor", lambda: estimate_floor(nested.scores, rows.labels)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the time that passed, and that which this process and its children spent."""
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
            told = (f"{np.median(each):.2f} ({each.min():.2f}..{each.max():.2f})" for each in took)
            print(f"| {name} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
