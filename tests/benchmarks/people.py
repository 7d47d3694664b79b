"""Measure one model of 18 classes against three joined models, with and without flips and oversampling.

    python tests/benchmarks/people.py

The script draws people (seven images each: mask, gender and age, 18 joined classes) and trains a network for the joined
class and one for each target, with the plain and with the balanced sampler. The images of a person stay in one fold.
Every image is labelled out of fold. It prints the macro F1 of the joined class with intervals grouped by person, and
paired differences, as Markdown. Macro F1 is measured at the greatest logit, and with class offsets that are fitted for
it on the other folds. What is finished is not trained again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from paired import Paired, score

from ensemble.data.folds import FoldTable
from ensemble.data.synthetic_people import CLASSES, TARGETS, draw_people
from ensemble.decision.class_objective import ClassObjective
from ensemble.decision.class_offsets import fit_offsets
from ensemble.decision.rates import apply_offsets
from ensemble.reports.table import Table
from ensemble.runs.run import Run

MODELS = {"label": CLASSES, **{target: len(names) for target, names in TARGETS.items()}}
"""The column of labels that each run learns, and its number of classes."""

SAMPLERS = ("plain", "balanced")

ONE, THREE = "one of 18 classes", "three, joined"


def train(out: Path, column: str, sampler: str, given: argparse.Namespace) -> None:
    """Train a member, by the command line."""
    arguments = ["--run", out / column, "--images", out / "people" / "people.csv", "--label-column", column]
    arguments += [] if MODELS[column] == 2 else ["--classes", MODELS[column]]
    arguments += ["--arch", given.arch, "--name", sampler, "--sampler", sampler, "--pretrained", "no"]
    arguments += ["--loss", "weighted-focal", "--folds", given.folds, "--epochs", given.epochs, "--batch-size", 64]
    subprocess.run([sys.executable, "-m", "thera", "train-member", *map(str, arguments)], check=True)


def log_probabilities(run: Run, member: str, tta: bool, table: FoldTable) -> np.ndarray:
    """Return the logarithms of the probabilities of a member's OOF logits, (n, C), in the order of `table`."""
    logits = run.oof_logits([member])[:, 0]  # (n, views) of two classes, (n, views, C) of more
    mean = logits.mean(1) if tta else logits[:, 0]
    scores = np.column_stack([np.zeros(len(mean)), mean]) if mean.ndim == 1 else mean
    row_of = {name: row for row, name in enumerate(run.read_folds().ids.tolist())}
    scores = scores[[row_of[name] for name in table.ids.tolist()]]
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def joined(mask: np.ndarray, gender: np.ndarray, age: np.ndarray) -> np.ndarray:
    """Return the logarithms of the probabilities of the joined classes, (n, 18), of independent targets."""
    of_all = mask[:, :, None, None] + gender[:, None, :, None] + age[:, None, None, :]
    return of_all.reshape(len(mask), CLASSES)


def with_offsets(scores: np.ndarray, table: FoldTable) -> np.ndarray:
    """Return the classes (n,) at offsets that are fitted for macro F1 on the folds of other rows."""
    y_pred = np.empty(len(scores), np.int8)
    for fold in range(table.k):
        inside = table.fold_of == fold
        offsets = fit_offsets(scores[~inside], table.labels[~inside], ClassObjective("macro-f1"))
        y_pred[inside] = apply_offsets(scores[inside], offsets)
    return y_pred


def main(given: argparse.Namespace) -> None:
    started, facts = time.monotonic(), draw_people(given.out / "people", given.people, given.seed, given.size)
    for sampler in SAMPLERS:
        for column in MODELS:
            train(given.out, column, sampler, given)
    trained = time.monotonic() - started
    table = Run(given.out / "label").read_folds()
    paired = Paired(table.labels, table.groups)
    f1: dict[tuple[str, str, bool], np.ndarray] = {}
    rows = []
    for sampler in SAMPLERS:
        for tta in (False, True):
            of = {c: log_probabilities(Run(given.out / c), sampler, tta, table) for c in MODELS}
            for model, scores in ((ONE, of["label"]), (THREE, joined(of["mask"], of["gender"], of["age"]))):
                greatest, fitted = scores.argmax(1), with_offsets(scores, table)
                f1[model, sampler, tta] = paired.macro_f1(fitted)
                at_greatest = paired.macro_f1(greatest)[0], paired.accuracy(greatest)[0]
                cells = *(f"{value:.4f}" for value in at_greatest), *score(f1[model, sampler, tta]).cells()
                rows.append((model, sampler, "2" if tta else "1", *cells))
    best = facts.bayes["label"]
    rows.append(("best of any rule (Bayes)", "", "", "", f"{1 - best.error:.4f}", f"{best.macro_f1:.4f}", ""))
    title = f"{given.people} drawn people, {facts.images} images of {given.size} pixels, {given.folds} folds"
    columns = (
        "model",
        "sampler",
        "views",
        "macro F1, greatest logit",
        "accuracy",
        "macro F1, offsets",
        "95 % interval",
    )
    notes = (
        f"{given.arch} from scratch, {given.epochs} epochs, weighted focal loss; training took {trained:.0f} s. "
        "Offsets are fitted on the other folds. Bayes: the greatest accuracy and the greatest macro F1 have different "
        "rules.",
    )
    print(Table(title, columns, tuple(rows), notes).markdown())
    pairs = [(f"three joined models instead of one, {s}, 2 views", (ONE, s, True), (THREE, s, True)) for s in SAMPLERS]
    for model in (ONE, THREE):
        pairs.append(
            (f"2 views instead of 1, {model}, balanced", (model, "balanced", False), (model, "balanced", True))
        )
        pairs.append(
            (f"balanced instead of plain, {model}, 2 views", (model, "plain", True), (model, "balanced", True))
        )
    differences = tuple((name, *score(f1[b] - f1[a]).cells(signed=True)) for name, a, b in pairs)
    note = (
        "The intervals draw people with replacement, the same for both sides. The predictions are fixed: neither the "
        "training nor the fitting of offsets is drawn anew."
    )
    print(
        Table(
            "Paired differences of macro F1", ("change", "difference", "95 % interval"), differences, (note,)
        ).markdown()
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arch", default="small_cnn")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/people-benchmark"))
    main(parser.parse_args())
