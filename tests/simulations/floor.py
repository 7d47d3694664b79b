"""Measure the bias of the two estimates of the floor, on simulated logits whose true classes are known.

    python tests/simulations/floor.py [data sets a world, 100]

The script prints a Markdown table; 100 data sets take about ten minutes on one core. A world defines the distribution
of the logits of the true classes and the label noise; the share of true class 0 is 12 %. `floor` is the HTER of an
oracle that knows the true class, and `reached` that of the best threshold. `covers` is the share of intervals that
contain the floor, and `holds` the share of ceilings above it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from ensemble.decision.label_noise import estimate_floor
from ensemble.decision.rates import apply_threshold, error_rates
from ensemble.decision.threshold import fit_threshold

MINORITY = 0.12


@dataclass(frozen=True)
class World:
    """The distributions from which logits and labels are drawn."""

    name: str
    kind: str  # normal: of unit spread; learned: of the noisy labels; skewed; tailed: Student t, 5 degrees; hard
    apart: float  # true classes, in spreads
    flip_0: float  # P(given = 1 | true = 0)
    flip_1: float  # P(given = 0 | true = 1); in a hard world of the images at the boundary, falling off from there
    n: int = 20_000


WORLDS = (
    World("strong model, no noise", "normal", 5, 0, 0),
    World("strong model, 5 % flips", "normal", 5, 0.05, 0.05),
    World("strong model, 5 % flips, n = 5,000", "normal", 5, 0.05, 0.05, 5_000),
    World("strong model, 2 % and 10 % flips", "normal", 5, 0.02, 0.10),
    World("moderate model, no noise", "normal", 3, 0, 0),
    World("moderate model, 0.5 % flips", "normal", 3, 0.005, 0.005),
    World("moderate model, 3 % flips", "normal", 3, 0.03, 0.03),
    World("moderate model, 3 % flips, n = 5,000", "normal", 3, 0.03, 0.03, 5_000),
    World("moderate model, 3 % flips, n = 50,000", "normal", 3, 0.03, 0.03, 50_000),
    World("moderate model, 10 % and 1 % flips", "normal", 3, 0.10, 0.01),
    World("weak model, no noise", "normal", 1.5, 0, 0),
    World("weak model, 3 % flips", "normal", 1.5, 0.03, 0.03),
    World("skewed logits, no noise", "skewed", 0, 0, 0),
    World("skewed logits, 3 % flips", "skewed", 0, 0.03, 0.03),
    World("heavy tails, no noise", "tailed", 4.5, 0, 0),
    World("heavy tails, 3 % flips", "tailed", 4.5, 0.03, 0.03),
    World("strong model of the noisy labels, 5 % flips (the demo)", "learned", 5, 0.05, 0.05),
    World("moderate model of the noisy labels, 3 % flips", "learned", 3, 0.03, 0.03),
    World("moderate model, flips on hard images only", "hard", 3, 0.1, 0.1),
)


def draw(world: World, rng: np.random.Generator, n: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits, labels as given and true classes, each (n,)."""
    n = world.n if n is None else n
    truth = rng.random(n) > MINORITY
    noise = rng.normal(size=n)
    evidence = world.apart * (noise + (truth - 0.5) * world.apart) + logit(1 - MINORITY)  # true log-odds
    flips = np.where(truth, world.flip_1, world.flip_0)
    if world.kind == "skewed":
        logits = 1.6 * (np.where(truth, rng.gamma(4, 0.9, n) - 1, 0.7 - rng.gamma(2, 1, n)) + 0.4 * noise)
    elif world.kind == "tailed":
        logits = (truth - 0.5) * world.apart + rng.standard_t(5, n)
    elif world.kind == "learned":  # log-odds of the label as given, learned with some error
        share = world.flip_0 + (1 - world.flip_0 - world.flip_1) * expit(evidence)
        logits = logit(np.clip(share, 0.001, 0.9995)) + 0.4 * rng.normal(size=n)
    else:
        logits = 0.6 * evidence
        if world.kind == "hard":
            flips = flips * np.exp(-((evidence / 3) ** 2))
    labels = truth ^ (rng.random(n) < flips)
    return logits, labels.astype(np.int8), truth.astype(np.int8)


def floor_of(world: World, n: int = 2_000_000) -> float:
    """Return the HTER of the oracle, measured on n rows."""
    _, labels, truth = draw(world, np.random.default_rng(0), n)
    return error_rates(labels, truth).hter


def measure(world: World, trials: int) -> str:
    truth, rows = floor_of(world), []
    for seed in range(trials):
        logits, labels, _ = draw(world, np.random.default_rng(seed + 1))
        floor = estimate_floor(logits, labels, seed)
        row = [error_rates(labels, apply_threshold(logits, fit_threshold(logits, labels))).hter]
        for estimate in (floor.confident, floor.mixture):
            low, high = estimate.interval.low, estimate.interval.high
            row += [estimate.hter - truth, low <= truth <= high, high - low]
        rows.append([*row, floor.ceiling.hter, floor.ceiling.hter >= truth, floor.misfit])
    mean = np.mean(rows, axis=0)
    spread = np.std(rows, axis=0)
    shown = [f"{truth:.4f}", f"{mean[0]:.4f}"]
    for at in (1, 4):
        shown += [f"{mean[at]:+.4f}", f"{spread[at]:.4f}", f"{mean[at + 2]:.3f}", f"{mean[at + 1]:.0%}"]
    shown += [f"{mean[7]:.4f}", f"{mean[8]:.0%}", f"{mean[9]:.1f}"]
    return f"| {world.name} | {' | '.join(shown)} |"


def main(trials: int) -> None:
    columns = ["bias", "spread", "width", "covers"]
    heads = ["world", "floor", "reached", *(f"confident: {c}" for c in columns), *(f"mixture: {c}" for c in columns)]
    heads += ["ceiling", "holds", "misfit"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for world in WORLDS:
        print(measure(world, trials), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
