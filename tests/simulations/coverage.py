"""Does the promise hold at any size? Coverage, bias and false alarms in many worlds, one line each.

Each line repeats the same steps on a few hundred data sets of a world (tests/simulations/worlds.py): OOF rows are
drawn, the functions of `ensemble.decision` fit, assess and deploy as the commands do, and what they print is compared
with the truth, which is a large sample of the same world. The lines `record` draw rows from the OOF rows of the
committed record in place of a world; all of its 80,000 rows are the truth.

    python tests/simulations/coverage.py [--sets 300] [--jobs 2] [--only WORDS]
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from worlds import World

from ensemble.commands.fit_stacker import averaged_oof
from ensemble.data.folds import FoldTable
from ensemble.decision import assessment
from ensemble.decision.assessment import Candidate, assess, compare_nested
from ensemble.decision.averaging import averaging_effect
from ensemble.decision.cross_fitting import OofLogits, member_logit, of_score, stack
from ensemble.decision.fold_offsets import aligned, find_fold_offsets, offsets_of
from ensemble.decision.rates import apply_threshold, error_rates
from ensemble.decision.refits import RefitRule, refit_replicates
from ensemble.runs.run import Run

REPLICATES = 300
"""Bootstrap replicates of every interval, fewer than the commands draw; this widens nothing on average."""

POPULATION = 50_000
"""Images of the sample that stands for the population."""

RULE = stack("nonnegative")


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    name: str
    rows: int
    folds: int = 5
    members: int = 3
    images: int = 2000
    grouped: bool = True  # whether groups are in the fold table
    equal: bool = False  # whether the first two members are equally good; then they are compared
    world: dict[str, Any] = field(default_factory=dict)


LINES = (
    *(Line(f"{rows} rows, {share:.0%} zeros", rows, world={"share": share}) for rows in (150, 500, 2000, 10_000)
      for share in (0.5, 0.12, 0.02) if rows * share >= 10),
    Line("500 rows, 1 member", 500, members=1),
    Line("2000 rows, 8 members", 2000, members=8),
    Line("500 rows, 2 folds", 500, folds=2),
    Line("2000 rows, 3 folds", 2000, folds=3),
    Line("500 rows in known groups of 5", 500, world={"group": 5}),
    Line("2000 rows in known groups of 5", 2000, world={"group": 5}),
    Line("2000 rows in unknown groups of 5", 2000, grouped=False, world={"group": 5}),
    Line("500 rows, a fold model off by 1 sd", 500, members=1, world={"deviation": 1.0}),
    Line("2000 rows, a fold model off by 1 sd", 2000, members=1, world={"deviation": 1.0}),
    Line("2000 rows, off by 1/2 sd", 2000, members=1, world={"deviation": 0.5}),
    Line("2000 rows, 3 members, one off by 1 sd", 2000, world={"deviation": 1.0}),
    Line("2000 rows, heavy tails", 2000, world={"heavy_tails": True}),
    Line("2000 rows, whole logits", 2000, world={"rounded": True}),
    Line("2000 rows, a member twice", 2000, world={"repeated": True}),
    Line("2000 rows, a constant member", 2000, world={"constant": True}),
    *(Line(f"compare: {rows} rows, {share:.0%} zeros", rows, members=2, equal=True, world={"share": share})
      for rows, share in ((150, 0.5), (500, 0.12), (500, 0.02), (2000, 0.12), (10_000, 0.12))),
    *(Line(f"record: {rows} rows", rows, folds=3) for rows in (500, 2000, 10_000)),
)  # fmt: skip


def simulate(line: Line, seed: int) -> dict[str, float]:
    """Return what was printed of one data set, and what is true of it."""
    assessment.REPLICATES = REPLICATES
    rng = np.random.default_rng([seed, len(line.name)])
    if line.name.startswith("record"):
        return _record(line, rng, seed)
    world = dataclasses.replace(World.draw(rng, line.members, line.folds), **line.world)
    if line.equal:
        both = {name: np.repeat(getattr(world, name)[:1], 2) for name in ("strengths", "own", "noise")}
        world = dataclasses.replace(world, offsets=world.offsets * 0, **both)
    table, logits = world.out_of_fold(rng, line.rows, line.grouped)
    oof = OofLogits(table, tuple(f"m{j}" for j in range(line.members)), logits)
    if line.equal:
        a, b = (Candidate.of("", oof, of_score(member_logit(j))) for j in (0, 1))
        compared = compare_nested(a, b, oof.groups, seed).hter.interval
        return {"alarm": float(not compared.low <= 0 <= compared.high)}
    offsets = find_fold_offsets(oof)
    oof = aligned(oof, offsets)
    of_folds = offsets_of(oof.members, offsets, line.folds)
    stacked = Candidate.of("stack", oof, RULE)
    first = assess([stacked], oof.groups, seed)[0]
    truth, population = world.sample(rng, POPULATION)

    def scores(of: np.ndarray) -> np.ndarray:
        return np.stack([stacked.deployed.score(of[:, :, fold] - of_folds[:, fold]) for fold in range(line.folds)], 1)

    singles = scores(population)
    of_single = float(np.mean([_hter(truth, column, first.threshold) for column in singles.T]))
    result = {
        "printed": first.nested.hter,
        "true": of_single,
        "held": first.interval.low <= of_single <= first.interval.high,
        "warned": float(bool(offsets)),
    }
    hidden, new = world.sample(rng, line.images)
    refit = RefitRule(stacked.deployed.score(oof.logits), oof.labels, stacked.nested.splits)
    effect = averaging_effect(
        stacked.deployed.score(oof.logits),
        oof.labels,
        scores(new),
        first.threshold,
        first.nested,
        refit_replicates(refit, oof.labels, oof.groups, seed, 100),
        seed=seed,
        effects=first.design_effects,
    )
    if effect is not None and len(set(hidden)) == 2:
        mean, at = singles.mean(axis=1), effect.chosen.threshold
        of_mean, here = _hter(truth, mean, at), _hter(hidden, scores(new).mean(axis=1), at)
        result["expected"], result["expected true"] = effect.chosen.rates.hter, of_mean
        result["expected held"] = effect.interval.low <= of_mean <= effect.interval.high
        result["here held"] = effect.new_set_interval.low <= here <= effect.new_set_interval.high
    return {name: float(value) for name, value in result.items()}


def _record(line: Line, rng: np.random.Generator, seed: int) -> dict[str, float]:
    run = Run(Path("checkpoints/therapanacea"))
    if "oof" not in _kept:
        _kept["oof"] = averaged_oof(run, tuple(member.name for member in run.members()), ("identity", "hflip"))
    whole = _kept["oof"]
    rows = np.sort(rng.choice(whole.labels.size, line.rows, replace=False))
    table = FoldTable(whole.table.ids[rows], whole.labels[rows], whole.fold_of[rows])
    stacked = Candidate.of("stack", OofLogits(table, whole.members, whole.logits[rows]), RULE)
    first = assess([stacked], None, seed)[0]
    true = _hter(whole.labels, stacked.deployed.score(whole.logits), first.threshold)
    return {
        "printed": first.nested.hter,
        "true": true,
        "held": float(first.interval.low <= true <= first.interval.high),
    }


_kept: dict[str, OofLogits] = {}


def _hter(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    return error_rates(labels, apply_threshold(scores, threshold)).hter


def _simulate(task: tuple[Line, int]) -> dict[str, float]:
    return simulate(*task)


def row(line: Line, found: list[dict[str, float]]) -> str:
    """Return the line of the table, as Markdown; after ± stands the half-width of a 95 % interval."""

    def share(name: str) -> str:
        values = np.array([each[name] for each in found if name in each])
        return (
            f"{values.mean():.1%} ± {1.96 * np.sqrt(values.mean() * (1 - values.mean()) / values.size):.1%}"
            if values.size
            else ""
        )

    def bias(printed: str, true: str) -> str:
        off = np.array([each[printed] - each[true] for each in found if printed in each])
        return f"{off.mean():+.4f} ± {1.96 * off.std() / np.sqrt(off.size):.4f}" if off.size else ""

    cells = (bias("printed", "true"), share("held"), bias("expected", "expected true"), share("expected held"),
             share("here held"), share("alarm"), share("warned"))  # fmt: skip
    return f"| {line.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the first data set; the others follow")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="lines whose name contains this")
    parser.add_argument("--first", type=int, default=0, help="go on from this line, the first being 0")
    arguments = parser.parse_args()
    columns = (
        "world",
        "nested less true",
        "holds",
        "expected less true",
        "holds",
        "here holds",
        "false alarms",
        "warned",
    )
    print(f"| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}", flush=True)
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        for line in LINES[arguments.first :]:
            if arguments.only in line.name:
                started = time.monotonic()
                found = pool.map(_simulate, [(line, arguments.seed + j) for j in range(arguments.sets)], chunksize=5)
                print(row(line, found), f"<!-- {time.monotonic() - started:.0f} s -->", flush=True)


if __name__ == "__main__":
    main()
