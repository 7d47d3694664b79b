"""Compare the printed estimates of the HTER with the truth, on a few hundred simulated data sets.

For each data set the script draws a world (tests/simulations/worlds.py), labelled rows with OOF logits from it, and
unlabelled images with the logits of all fold models. It runs the functions of `ensemble.decision` on them as the
commands do, and compares the estimates with the truth: the error rates on a large sample of the same world, labels as
given. `make simulate` runs the script and prints the tables of the README in this folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import time
from collections.abc import Iterator

import numpy as np
from worlds import World

from ensemble.decision.averaging import averaging_effect
from ensemble.decision.cross_fitting import OofLogits, cross_fit, stack
from ensemble.decision.rates import Floats, apply_threshold, error_rates
from ensemble.decision.refits import RefitRule, refit_interval, refit_replicates
from ensemble.decision.threshold import fit_threshold

WORLDS: dict[str, dict[str, float]] = {
    "even": {},
    "by-image": {"by_image": 0.7},
    "by-class": {"by_class": 1.6},
}
"""What the noise of a fold model depends on."""


def hter(labels: np.ndarray, y_pred: np.ndarray) -> float:
    return error_rates(labels, y_pred).hter


def simulate(
    seed: int,
    rows: int,
    images: int,
    kind: str = "even",
    folds: int = 5,
    replicates: int = 400,
    size: int = 200_000,
    members: int = 3,
) -> dict[str, float]:
    """Return what was said of one data set, and what is true of it.

    Parameters
    ----------
    seed : int
        Of the world and of all that is drawn from it.
    rows, images : int
        Labelled and unlabelled.
    kind : str
        A key of `WORLDS`.
    replicates : int
        Of the bootstrap.
    size : int
        Of the sample that stands for the population.
    members, folds : int
        Of the run.
    """
    rng = np.random.default_rng(seed)
    world = dataclasses.replace(World.draw(rng, members, folds), **WORLDS[kind])
    table, logits = world.out_of_fold(rng, rows)
    labels = table.labels
    hidden, new = world.sample(rng, images)
    truth, population = world.sample(rng, size)

    oof = OofLogits(table, tuple("abcde"[:members]), logits)
    rule = stack("nonnegative")
    deployed, nested = rule(oof.rows), cross_fit(oof.rows, rule)
    scores = deployed.score(logits)
    rates = error_rates(labels, nested.y_pred)
    refit = RefitRule(scores, labels, nested.splits)
    drawn = list(refit_replicates(refit, labels, seed=seed, replicates=replicates))
    interval = refit_interval((rates.fpr, rates.fnr), [replicate.errors for replicate in drawn])

    def stacked(of: np.ndarray) -> Floats:
        return np.stack([deployed.score(of[:, :, fold]) for fold in range(folds)], axis=1)

    singles, mean_of_new = stacked(population), stacked(new)
    mean = singles.mean(axis=1)
    single = float(np.mean([hter(truth, apply_threshold(column, deployed.threshold)) for column in singles.T]))
    effect = averaging_effect(scores, labels, mean_of_new, deployed.threshold, rates, drawn, seed=seed)
    assert effect is not None
    chosen, low, high = effect.chosen, effect.interval.low, effect.interval.high
    true = hter(truth, apply_threshold(mean, chosen.threshold))
    here = hter(hidden, apply_threshold(mean_of_new.mean(axis=1), chosen.threshold))
    found = {
        "apparent": hter(labels, deployed(logits)),
        "nested": rates.hter,
        "single": single,
        "half": (interval.high - interval.low) / 2,
        "held": interval.low <= single <= interval.high,
        "expected": chosen.rates.hter,
        "true": true,
        "expected half": (high - low) / 2,
        "expected held": low <= true <= high,
        "centre": (low + high) / 2,
        "here": here,
        "here half": (effect.new_set_interval.high - effect.new_set_interval.low) / 2,
        "here held": effect.new_set_interval.low <= here <= effect.new_set_interval.high,
    }
    least = hter(truth, apply_threshold(mean, fit_threshold(mean, truth)))
    for each in effect.candidates:
        found[f"regret {each.correction}"] = hter(truth, apply_threshold(mean, each.threshold)) - least
    found["regret probabilities"] = (
        hter(truth, apply_threshold(_sigmoid(singles), _sigmoid(deployed.threshold))) - least
    )
    part = rows // 10  # more labelled rows, which no fold trains on
    kept_labels, kept = world.sample(rng, part)
    found["regret part"] = (
        hter(truth, apply_threshold(mean, fit_threshold(stacked(kept).mean(axis=1), kept_labels))) - least
    )
    of_single = error_rates(truth, apply_threshold(singles[:, 0], deployed.threshold))
    of_mean = error_rates(truth, apply_threshold(mean, deployed.threshold))
    found["fpr moved"], found["fnr moved"] = of_mean.fpr - of_single.fpr, of_mean.fnr - of_single.fnr
    found["best moved"] = fit_threshold(mean, truth) - fit_threshold(singles[:, 0], truth)
    return {name: float(value) for name, value in found.items()}


def _sigmoid(x: Floats | float) -> Floats:
    probability = 1 / (1 + np.exp(-np.asarray(x)))
    return np.asarray(probability.mean(axis=1) if probability.ndim == 2 else probability)


Task = tuple[int, int, int, str, int]


def run(sets: int, rows: int, images: int, jobs: int, kind: str = "even", folds: int = 5) -> dict[str, Floats]:
    """Return an array (sets,) for each thing that was found."""
    started, found = time.monotonic(), []
    tasks = [(seed, rows, images, kind, folds) for seed in range(sets)]
    for done, result in enumerate(_map(tasks, jobs), 1):
        found.append(result)
        if done % 20 == 0:
            left = (time.monotonic() - started) / done * (sets - done)
            print(f"{done} of {sets} data sets of {rows} rows, {left / 60:.1f} min left", flush=True)
    return {name: np.array([each[name] for each in found]) for name in found[0]}


def _map(tasks: list[Task], jobs: int) -> Iterator[dict[str, float]]:
    if jobs == 1:
        yield from (simulate(*task) for task in tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_simulate, tasks)


def _simulate(task: Task) -> dict[str, float]:
    return simulate(*task)


def tables(found: dict[str, Floats], rows: int, images: int) -> str:
    """Return the tables of the README in this folder, as Markdown."""
    n = len(found["true"])

    def line(name: str, said: str, true: str, half: str, held: str) -> str:
        off = found[said] - found[true]
        share = f"{found[held].mean():.1%} ± {1.96 * np.sqrt(found[held].mean() * (1 - found[held].mean()) / n):.1%}"
        wide, error = found[half].mean(), 1.96 * off.std() / np.sqrt(n)
        return (
            f"| {name} | {found[said].mean():.4f} | {found[true].mean():.4f} | {off.mean():+.4f} ± {error:.4f} "
            f"| {wide:.4f} | {abs(off.mean()) / wide:.2f} | {share if held else ''} |"
        )

    apparent = found["apparent"] - found["single"]
    lines = [
        f"{n} data sets, {rows} labelled rows and {images} images each; ±: half-width of a 95 % interval "
        "for the simulation's own error.",
        "",
        "| estimate | mean | truth | estimate minus truth | half-width | bias in half-widths "
        "| interval contains the truth |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| apparent, of one fold model | {found['apparent'].mean():.4f} | {found['single'].mean():.4f} | "
        f"{apparent.mean():+.4f} ± {1.96 * apparent.std() / np.sqrt(n):.4f} | | "
        f"{abs(apparent.mean()) / found['half'].mean():.2f} | |",
        line("nested, of one fold model", "nested", "single", "half", "held"),
        line("expected, of the label file's rule", "expected", "true", "expected half", "expected held"),
        line("expected, if measured on the images", "expected", "here", "here half", "here held"),
        "",
        f"From one fold model to the mean, at the same threshold: FPR {found['fpr moved'].mean():+.4f}, FNR "
        f"{found['fnr moved'].mean():+.4f}; the best threshold moves by {found['best moved'].mean():+.3f} on average "
        f"(from {np.quantile(found['best moved'], 0.05):+.3f} to {np.quantile(found['best moved'], 0.95):+.3f}).",
        "",
        "| correction of the threshold | mean regret | 95 % of data sets have less than |",
        "| --- | ---: | ---: |",
    ]
    names = {
        "posterior": "best threshold by the model of the mean (posterior)",
        "none": "none",
        "probabilities": "mean of the fold models' probabilities, threshold kept",
        "part": f"threshold fitted on {rows // 10} more labelled rows that no fold trains on",
    }
    for name, message in names.items():
        regret = found[f"regret {name}"]
        lines.append(f"| {message} | {regret.mean():.5f} | {np.quantile(regret, 0.95):.4f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000])
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--worlds", choices=WORLDS, nargs="+", default=["even"], help="of the noise")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    for kind in arguments.worlds:
        for rows in arguments.rows:
            found = run(arguments.sets, rows, arguments.images, arguments.jobs, kind, arguments.folds)
            print(f"\nNoise {kind}, {arguments.folds} folds. {tables(found, rows, arguments.images)}\n", flush=True)


if __name__ == "__main__":
    main()
