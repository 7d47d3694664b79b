"""Compare thera with scikit-learn on scikit-learn's digits: ten classes, 1,797 images of 8 × 8 pixels, the same folds.

    python tests/benchmarks/digits.py

The script writes the digits, enlarged to 32 × 32 pixels, into a folder for each class, and trains two networks with
`thera run`. The baselines, a support-vector machine with RBF kernel and a multinomial logistic regression on the raw
pixels, are cross-validated on the folds of the run's folds.csv. It prints accuracy and macro F1 with intervals, and
paired differences with McNemar's exact test, as Markdown. What is finished is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from paired import Paired, score
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from ensemble.commands.fit_stacker import averaged_oof, read_decisions
from ensemble.decision.comparison import Agreement
from ensemble.decision.cross_fitting import cross_fit, stack
from ensemble.reports.table import Table
from ensemble.runs.run import Run

ENLARGED = 4
"""A pixel of the digits becomes a square of this side."""

BASELINES: Mapping[str, Any] = {
    "SVC, RBF": SVC(C=10.0, gamma="scale"),
    "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
}
"""Baselines with common settings; none was chosen on these rows."""

CONFIG = """\
run: {run}
folds: {folds}
data: {{images: {images}, classes: 10}}
members:
  - {{arch: small_cnn, epochs: {epochs}, batch_size: 64, loss: bce, augment: {augment}}}
  - {{arch: resnet18, pretrained: false, epochs: {epochs}, batch_size: 64, loss: bce, augment: {augment}}}
decision: {{objective: accuracy}}
"""
"""The mirror image of a digit is none, so that images are not flipped, and plain prediction counts."""

AUGMENT = "{shift: 0.06, rotate: 8, scale: 0.1}"


def write_digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write the digits as PNG files in a folder for each class; return pixels (n, 64) and labels (n,)."""
    digits = load_digits()
    for row, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{row:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.round(image * (255 / 16)).astype(np.uint8)
        if not path.exists():
            cv2.imwrite(str(path), np.kron(pixels, np.ones((ENLARGED, ENLARGED), np.uint8)))
    return digits.data, digits.target


def read_folds(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of the data set and the fold of each row of folds.csv, (n,)."""
    with (run / "folds.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    return np.array([int(Path(line["id"]).stem) for line in lines]), np.array([int(line["fold"]) for line in lines])


def cross_validated(model: Any, x: np.ndarray, y: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """Return the prediction of each row (n,) by the model that is fitted on the other folds."""
    y_pred = np.empty_like(y)
    for fold in np.unique(fold_of):
        inside = fold_of == fold
        y_pred[inside] = clone(model).fit(x[~inside], y[~inside]).predict(x[inside])
    return y_pred


def main(folds: int, epochs: int, out: Path) -> None:
    started = time.monotonic()
    data, target = write_digits(out / "images")
    config = out / "digits.yaml"
    run = out / "run"
    config.write_text(CONFIG.format(run=run, folds=folds, images=out / "images", epochs=epochs, augment=AUGMENT))
    subprocess.run([sys.executable, "-m", "thera", "run", str(config)], check=True)
    trained = time.monotonic() - started
    rows, fold_of = read_folds(run)
    x, y = data[rows], target[rows]
    names = [member.name for member in Run(run).members()]
    logits = Run(run).oof_logits(names)[:, :, 0]  # (n, m, 10), of the image as it is
    plain = read_decisions(Run(run)).plain
    oof = averaged_oof(Run(run), plain.stacker.members, plain.views)
    predictions = {"thera, the stack": cross_fit(oof.rows, stack(plain.kind), plain.objective).y_pred}
    predictions |= {f"thera, {name}": logits[:, j].argmax(1) for j, name in enumerate(names)}
    predictions |= {name: cross_validated(model, x, y, fold_of) for name, model in BASELINES.items()}
    paired = Paired(y)
    accuracy = {name: paired.accuracy(y_pred) for name, y_pred in predictions.items()}
    (first, reference), *_ = predictions.items()
    cells = []
    for name, y_pred in predictions.items():
        of_all = name, str(np.count_nonzero(y_pred != y)), *score(accuracy[name]).cells()
        f1 = score(paired.macro_f1(y_pred)).cells()
        if name == first:
            cells.append((*of_all, *f1, "", "", ""))
            continue
        right, right_first = y_pred == y, reference == y
        counts = (np.count_nonzero(each) for each in (right_first & ~right, right & ~right_first))
        agreement = Agreement(*map(int, counts), both=int(np.count_nonzero(right & right_first)), neither=0)
        difference = score(accuracy[name] - accuracy[first]).cells(signed=True)
        cells.append((*of_all, *f1, *difference, f"{agreement.p_value:.3g}"))
    columns = ("predictions", "errors", "accuracy", "95 % interval", "macro F1", "95 % interval")
    columns += (f"minus that of {first}", "95 % interval, paired", "p, McNemar")
    notes = (
        f"{len(y)} images, {folds} folds, the same for all; {epochs} epochs; thera took {trained:.0f} s. Each image is "
        "predicted by models of the other folds, from the image as it is. The stack is nested: stacker and offsets are "
        "fitted on the other folds too; a member alone predicts the class with its greatest logit. Differences are of "
        "accuracy.",
    )
    print(Table("scikit-learn's digits", columns, tuple(cells), notes).markdown())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/digits"))
    given = parser.parse_args()
    main(given.folds, given.epochs, given.out)
