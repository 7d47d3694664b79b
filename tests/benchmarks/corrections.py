"""Measure the effect of averaging the fold models, and of each correction, on real images with known labels.

    python tests/benchmarks/corrections.py split .data/therapanacea    # writes learn.csv, rest.csv, rest.txt there
    thera train-member --arch resnet18 --no-pretrained --epochs 3 --warmup-epochs 0.3 --augment light \\
        --precision bf16 --folds 3 --images .data/therapanacea/learn.csv --run checkpoints/held
    thera fit-stacker --run checkpoints/held
    thera predict --tta --run checkpoints/held --images .data/therapanacea/rest.csv --out rest_predicted.txt
    python tests/benchmarks/corrections.py count checkpoints/held rest .data/therapanacea/rest.txt

The run has never seen the labels of the set, so rates, best thresholds and regrets (the HTER at the chosen threshold
minus the lowest HTER of any threshold) are measured, not estimated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ensemble.commands import fit_stacker as fit_stacker_command
from ensemble.config import VIEWS
from ensemble.data.labels import parse_labels
from ensemble.decision.averaging import MeanModel, corrected_threshold
from ensemble.decision.rates import ErrorRates, apply_threshold, error_rates
from ensemble.decision.threshold import fit_threshold
from ensemble.predict_config import CORRECTIONS
from ensemble.runs.run import Run

LEARN = 60_000


def stacked_logits(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return the run's OOF labels (n,) and stacked logits (n,), those of the set (n_new, k), and the threshold."""
    run = Run(folder)
    decision, table = fit_stacker_command.read_decisions(run).tta, run.read_folds()
    members, apply = decision.stacker.members, decision.stacker.apply
    oof = run.oof_logits(members, table).mean(axis=2)

    def of_fold(member: str, fold: int) -> np.ndarray:
        path = run.folder / "predictions" / name / "logits" / member / f"fold-{fold}.csv"
        return np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(1, 1 + len(VIEWS))).mean(axis=1)

    new = [apply(np.stack([of_fold(member, fold) for member in members], axis=1)) for fold in range(table.k)]
    return table.labels, apply(oof), np.stack(new, axis=1), decision.threshold


def split(data: str) -> None:
    """Write manifests of the first 60,000 labelled images and of the rest, and the labels of the rest."""
    folder = Path(data)
    labels = parse_labels((folder / "label_train.txt").read_bytes(), data).tolist()
    lines = [f"train_img/{row:06d}.jpg,{label}\n" for row, label in enumerate(labels, 1)]
    for name, of in (("learn.csv", lines[:LEARN]), ("rest.csv", lines[LEARN:])):
        (folder / name).write_text("path,label\n" + "".join(of))
    (folder / "rest.txt").write_text("".join(f"{label}\n" for label in labels[LEARN:]))


def count(folder: str, name: str, truth: str) -> None:
    labels, oof, singles, threshold = stacked_logits(Path(folder), name)
    hidden = parse_labels(Path(truth).read_bytes(), truth)
    mean = singles.mean(axis=1)
    best = fit_threshold(mean, hidden)
    least = error_rates(hidden, apply_threshold(mean, best)).hter

    def row(rule: str, at: float, rates: ErrorRates) -> None:
        print(
            f"| {rule} | {at:+.4f} | {rates.fpr:.4f} | {rates.fnr:.4f} | {rates.hter:.4f} | {rates.hter - least:.5f} |"
        )

    print(f"{labels.size} OOF rows, {hidden.size} labelled images that no model saw, {singles.shape[1]} fold models.\n")
    print("| | threshold | FPR | FNR | HTER | regret |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    single_rates = [error_rates(hidden, apply_threshold(column, threshold)) for column in singles.T]
    single = ErrorRates(
        *np.mean([(each.fpr, each.fnr) for each in single_rates], axis=0), single_rates[0].n_neg, single_rates[0].n_pos
    )
    row("one fold model (their mean rates)", threshold, single)
    row("mean, best threshold on these very labels", best, error_rates(hidden, apply_threshold(mean, best)))
    fit = MeanModel(oof, labels, singles).fit(np.ones(labels.size), np.ones(len(singles)))
    for correction in CORRECTIONS:
        moved = corrected_threshold(correction, threshold, fit)
        row(f"mean, {correction}", moved, error_rates(hidden, apply_threshold(mean, moved)))
    probability = (1 / (1 + np.exp(-singles))).mean(axis=1)
    kept = 1 / (1 + np.exp(-threshold))
    row("mean of probabilities, threshold kept", threshold, error_rates(hidden, apply_threshold(probability, kept)))
    rng, part, lost, crossed = np.random.default_rng(0), hidden.size // 10, [], []
    for _ in range(50):
        chosen = np.zeros(hidden.size, bool)
        chosen[rng.choice(hidden.size, part, replace=False)] = True
        refitted = fit_threshold(mean[chosen], hidden[chosen])
        rest = [error_rates(hidden[~chosen], apply_threshold(mean[~chosen], at)).hter for at in (refitted, best)]
        lost.append(rest[0] - rest[1])
        y_pred, fold_of = np.empty(hidden.size, np.int8), rng.permutation(hidden.size) % 10
        for fold in range(10):
            inside = fold_of == fold
            y_pred[inside] = apply_threshold(mean[inside], fit_threshold(mean[~inside], hidden[~inside]))
        crossed.append(error_rates(hidden, y_pred).hter)
    print(f"\nThreshold fitted on {part} of these labels: mean regret {np.mean(lost):.5f} over 50 draws.")
    print(
        f"The least HTER is fitted on the labels that it is scored on; cross-fitted over ten parts of them it is "
        f"{np.mean(crossed):.4f} (mean of 50 partitions)."
    )


if __name__ == "__main__":
    {"split": split, "count": count}[sys.argv[1]](*sys.argv[2:])
