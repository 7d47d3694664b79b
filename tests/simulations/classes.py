"""Does the interval of a decision among several classes hold? Coverage, bias and warnings, one line each.

Each line repeats the same steps on a few hundred data sets: OOF rows are drawn, the functions of `ensemble.decision`
fit and assess the stack as the commands do, and the nested loss and its interval are compared with the truth, which is
the loss of the deployed rule on a large sample of the same world.

    python tests/simulations/classes.py [--sets 300] [--jobs 2] [--only WORDS]
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from dataclasses import dataclass

import numpy as np

from ensemble.data.folds import FoldTable, assign_folds
from ensemble.decision import class_assessment
from ensemble.decision.assessment import Candidate
from ensemble.decision.class_assessment import assess_classes
from ensemble.decision.class_objective import ClassObjective
from ensemble.decision.cross_fitting import OofLogits, stack
from ensemble.decision.rates import class_rates

REPLICATES = 200
"""Bootstrap replicates of every interval, as many as the commands draw."""

POPULATION = 100_000
"""Images of the sample that stands for the population."""


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    name: str
    shares: tuple[float, ...]  # of the classes
    rows: int
    objective: str
    group: int = 1  # images in a group, which share class and half of the variance of their evidence
    members: int = 3
    folds: int = 5


THREE, WEAK = (0.4, 0.35, 0.25), (0.69, 0.3, 0.01)
EIGHTEEN = tuple(np.array([12, 12, 8, 8, *[5] * 10, *[1] * 4]) / 94)
EIGHTEEN_WEAK = tuple(np.array([*[8] * 12, 1, 1, 1, 1, 1, 1]) / 102)

LINES = tuple(
    Line(f"{name}{f', groups of {group}' if group > 1 else ''}, {objective}", shares, rows, objective, group)
    for objective in ("mean-class-error", "macro-f1")
    for name, shares, rows, group in (
        ("3 classes, 1000 rows", THREE, 1000, 1),
        ("3 classes, one of 1 %, 3000 rows", WEAK, 3000, 1),
        ("3 classes, 2100 rows", THREE, 2100, 7),
        ("3 classes, one of 1 %, 7000 rows", WEAK, 7000, 7),
        ("18 classes, 3000 rows", EIGHTEEN, 3000, 1),
        ("18 classes, six of 1 %, 4000 rows", EIGHTEEN_WEAK, 4000, 1),
        ("18 classes, 7000 rows", EIGHTEEN, 7000, 7),
        ("18 classes, six of 1 %, 7000 rows", EIGHTEEN_WEAK, 7000, 7),
    )
)


@dataclass(frozen=True)
class World:
    """Members whose logits are a shared evidence of each class, times a strength, plus noise and the log prior."""

    shares: np.ndarray  # (C,)
    means: np.ndarray  # (C, C), of the shared evidence [class of the image][logit]
    strengths: np.ndarray  # (m,)
    noise: np.ndarray  # (m,)
    group: int

    @classmethod
    def draw(cls, rng: np.random.Generator, line: Line) -> World:
        classes = len(line.shares)
        means = np.eye(classes) * rng.uniform(3.0, 4.5, classes)[:, None]
        likeness = rng.uniform(0, 1, (classes, classes)) * (rng.random((classes, classes)) < 3 / classes)
        return cls(
            np.array(line.shares),
            means + np.where(np.eye(classes) > 0, 0, likeness + likeness.T),
            np.resize([1.0, 0.8, 0.6], line.members) * rng.uniform(0.85, 1.15, line.members),
            rng.uniform(0.4, 1.0, line.members),
            line.group,
        )

    def sample(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return labels (n,) and logits (n, m, C) of one model each; groups are consecutive images."""
        classes, groups = self.shares.size, -(-n // self.group)
        group_of = np.arange(n) // self.group
        labels = rng.choice(classes, groups, p=self.shares)[group_of]
        common = rng.normal(size=(n, classes))
        if self.group > 1:
            common = np.sqrt(0.5) * rng.normal(size=(groups, classes))[group_of] + np.sqrt(0.5) * common
        evidence = self.means[labels] + common + np.log(self.shares)
        logits = evidence[:, None] * self.strengths[:, None]
        logits += self.noise[:, None] * rng.normal(size=(n, self.noise.size, classes))
        return labels.astype(np.int8), logits


def simulate(task: tuple[Line, int]) -> dict[str, float]:
    """Return what was printed of one data set, and what is true of it."""
    line, seed = task
    class_assessment.REPLICATES = REPLICATES
    rng = np.random.default_rng([seed, len(line.name), line.rows])
    world = World.draw(rng, line)
    classes = len(line.shares)
    labels, logits = world.sample(rng, line.rows)
    while np.bincount(labels[:: line.group], minlength=classes).min() < line.folds:  # too few to cross-fit
        labels, logits = world.sample(rng, line.rows)
    units = np.arange(line.rows) // line.group
    fold_of = assign_folds(labels, units, line.folds, seed).fold_of
    table = FoldTable(np.arange(line.rows).astype(str), labels, fold_of, units if line.group > 1 else None)
    oof = OofLogits(table, tuple(f"m{j}" for j in range(line.members)), logits)
    stacked = Candidate.of("stack", oof, stack("nonnegative"), ClassObjective(line.objective))  # type: ignore[arg-type]
    (first,) = assess_classes([stacked], oof.groups, seed)
    truth, population = world.sample(rng, POPULATION)
    rates = class_rates(truth, stacked.deployed(population), classes)
    true = first.objective.loss(rates)
    of_classes = [e.low <= value <= e.high for e, value in zip(first.errors, rates.errors, strict=True)]
    return {
        "printed": first.loss,
        "apparent": first.objective.loss(first.apparent),
        "true": true,
        "half": (first.interval.high - first.interval.low) / 2,
        "held": float(first.interval.low <= true <= first.interval.high),
        "classes held": float(np.mean(of_classes)),
        "few": float(bool(first.few)),
    }


def row(line: Line, results: list[dict[str, float]]) -> str:
    """Return the line of the table, as Markdown; after ± stands the half-width of a 95 % interval."""
    of = {name: np.array([each[name] for each in results]) for name in results[0]}

    def share(name: str) -> str:
        mean = of[name].mean()
        return f"{mean:.1%} ± {1.96 * of[name].std() / np.sqrt(len(results)):.1%}"

    off, optimism = of["printed"] - of["true"], of["apparent"] - of["true"]
    error = 1.96 / np.sqrt(len(results))
    cells = (f"{of['true'].mean():.4f}", f"{off.mean():+.4f} ± {error * off.std():.4f}",
             f"{optimism.mean():+.4f} ± {error * optimism.std():.4f}", f"{of['half'].mean():.4f}",
             share("held"), share("classes held"), share("few"))  # fmt: skip
    return f"| {line.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="lines whose name contains this")
    arguments = parser.parse_args()
    columns = (
        "world and objective",
        "true loss",
        "nested less true",
        "apparent less true",
        "half-width",
        "holds",
        "holds of a class",
        "warned",
    )
    print(f"| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}", flush=True)
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        for line in LINES:
            if arguments.only in line.name:
                started = time.monotonic()
                results = pool.map(simulate, [(line, seed) for seed in range(arguments.sets)], chunksize=1)
                print(row(line, results), f"<!-- {time.monotonic() - started:.0f} s -->", flush=True)


if __name__ == "__main__":
    main()
