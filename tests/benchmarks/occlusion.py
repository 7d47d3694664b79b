"""Measure which parts of an image determine its label.

    python tests/benchmarks/occlusion.py RUN MEMBER

The run must have its weights. For each label, the script takes the images that their fold model (the one that was not
trained on them) predicts most confidently as this label. It covers one square of 8 × 8 pixels after the other with the
same square of the mean image, and prints the mean change of the logit for each square. If covering a square moves the
logit towards the other label, this square shows what determines the label.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ensemble.commands.fit_stacker import averaged_oof
from ensemble.config import VIEWS, MemberConfig
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.members.inference import FoldModels, NetworkSpec, choose_device
from ensemble.members.plans import REFERENCE
from ensemble.progress import progress, say
from ensemble.runs.run import Run

SQUARE = 8
"""Side of the squares that are covered, in pixels: a 64 × 64 image has 8 × 8 of them."""


def main(folder: Path, name: str, images: int) -> None:
    run = Run(folder)
    facts, table, member = run.read(), run.read_folds(), run.member(name)
    dataset = load_dataset(open_source(Path(facts.images), Path(facts.labels)), run.pixels, facts.resize, say=say)
    logits = averaged_oof(run, (name,), VIEWS).logits[:, 0]
    config = MemberConfig.model_validate(member.read().current_config | {"pretrained": False, "weights": None})
    models = FoldModels(NetworkSpec(config, dataset.size[0], REFERENCE, choose_device("cpu")))
    side = dataset.size[0] // SQUARE
    middle = np.asarray(dataset.pixels[:: max(1, len(dataset) // 2000)]).mean(axis=0).round().astype(np.uint8)
    moved = {0: np.zeros((side, side)), 1: np.zeros((side, side))}
    share = images // table.k
    with progress(2 * table.k * share * (side * side + 1), name, "images") as bar:
        for fold in range(table.k):
            weights = member.read_weights(fold)
            for label, sign in ((0, 1.0), (1, -1.0)):
                rows = np.flatnonzero((table.fold_of == fold) & (table.labels == label))
                rows = rows[np.argsort(sign * logits[rows], kind="stable")[:share]]
                pixels = np.asarray(dataset.pixels[np.sort(rows)])
                every = [pixels]
                for row, column in np.ndindex(side, side):
                    square = np.s_[:, row * SQUARE : (row + 1) * SQUARE, column * SQUARE : (column + 1) * SQUARE]
                    covered = pixels.copy()
                    covered[square] = middle[square[1:]]
                    every.append(covered)
                together = np.concatenate(every)
                logits_of_all, _ = models.predict(weights, together, np.arange(len(together)), VIEWS[:1], bar)
                by_square = logits_of_all[:, 0].reshape(len(every), len(rows))
                moved[label] += (by_square[1:] - by_square[0]).mean(axis=1).reshape(side, side) / table.k
    for label, grid in moved.items():
        print(f"\nlabel {label}, {table.k * share} images, mean change of the logit where a square is covered:")
        print("\n".join(" ".join(f"{value:+6.2f}" for value in line) for line in grid))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("member")
    options.add_argument("--images", type=int, default=600, help="of each label")
    given = options.parse_args()
    main(given.run, given.member, given.images)
