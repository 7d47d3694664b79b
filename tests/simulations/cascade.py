"""Check on simulated data sets that a cascade changes no more labels than it guarantees.

For each data set the script draws OOF rows, fits the stacker, the threshold and the cascade on them, and counts the
labels that change on new rows: those of single fold models, for which the bound holds, and those of the mean of the
fold models, which prediction uses.

    python tests/simulations/cascade.py 60        6 minutes on one core
"""

from __future__ import annotations

import sys

import numpy as np

from ensemble.decision.cascade import Cascade, fit_cascade
from ensemble.decision.stacker import Stacker, logistic
from ensemble.decision.threshold import fit_threshold

WORLDS = ("even", "one-sided", "growing", "heavy-tailed", "useless member")
COST = (1.0, 0.5, 3.0)
MEMBERS, FOLDS, VIEWS = ("a", "b", "c"), 5, 2


def draw(world: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of every fold model (n, m, v, k) and labels (n,)."""
    labels = (rng.random(n) > 0.12).astype(np.int8)
    evidence = 1.5 * (2 * labels - 1) + rng.normal(size=n)
    spread = {"one-sided": np.where(evidence > 0, 1.6, 0.3), "growing": np.exp(evidence / 2)}.get(world, np.ones(n))
    member = rng.normal(size=(n, 3, 1, 1)) * np.array([0.5, 0.7, 0.4])[:, None, None]
    fold = 0.4 * rng.normal(size=(n, 3, 1, FOLDS))
    size = (n, 3, VIEWS, FOLDS)
    view = 0.25 * (rng.standard_t(3, size) if world == "heavy-tailed" else rng.normal(size=size))
    logits = evidence[:, None, None, None] + spread[:, None, None, None] * (member + fold + view)
    if world == "useless member":
        logits[:, 1] = rng.normal(size=(n, VIEWS, FOLDS))
    scale, offset = np.linspace(0.9, 1.1, FOLDS), np.linspace(-0.2, 0.2, FOLDS)  # no two fold models are alike
    return scale * logits + offset, labels


def of_one_fold(logits: np.ndarray) -> np.ndarray:
    """Return the logits (n, m, v) that row i has of fold model i mod k."""
    rows = np.arange(len(logits))
    return logits[rows, :, :, rows % FOLDS]


def labelled(cascade: Cascade, logits: np.ndarray, stacker: Stacker, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels (n,) that a cascade gives, and the stages (n,) at which it stops, as prediction walks it."""
    labels, stopped = np.full(len(logits), -1), np.full(len(logits), -1)
    known = np.full(logits.shape, np.nan)
    for stage, (member, view) in enumerate(cascade.order):
        alive = np.flatnonzero(stopped < 0)
        known[alive, member, view] = logits[alive, member, view]
        predicted = stacker.apply(cascade.impute(stage, known[alive]).mean(axis=2))
        stops = cascade.stops(stage, predicted, threshold)
        labels[alive[stops]], stopped[alive[stops]] = (predicted >= threshold)[stops], stage
    return labels, stopped


def simulate(world: str, seed: int, rows: int, probability: float, new: int = 50_000) -> tuple[float, float, float]:
    """Return the share of labels that change on single fold models and on their mean, and the cost share."""
    rng = np.random.default_rng([seed, WORLDS.index(world)])
    every, labels = draw(world, rows, rng)
    oof = of_one_fold(every)
    stacker = logistic(oof.mean(axis=2), labels, MEMBERS)
    threshold = fit_threshold(stacker.apply(oof.mean(axis=2)), labels)
    cascade = fit_cascade(oof, stacker, threshold, COST, probability, seed=seed)
    unseen = draw(world, new, rng)[0]
    changed = []
    for logits in (of_one_fold(unseen), unseen.mean(axis=3)):
        exact = stacker.apply(logits.mean(axis=2)) >= threshold
        changed.append(float(np.mean(labelled(cascade, logits, stacker, threshold)[0] != exact)))
    return changed[0], changed[1], cascade.cost_share


def main(trials: int) -> None:
    print("| world | rows | probability | changed | of the mean | over | of the mean over | cost share |")
    print("|" + " --- |" * 8)
    for world in WORLDS:
        for rows, probability in ((1_500, 0.99), (20_000, 0.999)):
            found = np.array([simulate(world, seed, rows, probability) for seed in range(trials)])
            single, mean, cost = found.mean(axis=0)
            over, mean_over = (found[:, :2] > 1 - probability).mean(axis=0)
            shown = f"{single:.5f} | {mean:.5f} | {over:.1%} | {mean_over:.1%} | {cost:.3f}"
            print(f"| {world} | {rows:,} | {probability} | {shown} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
