"""Draws docs/picture.png from the demo: heads with their labels, and out-of-fold logits with the fitted threshold.

    thera demo
    python docs/picture.py checkpoints/demo docs/picture.png

It shows generated images only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import cv2
import matplotlib.pyplot as plt
import numpy as np

import ensemble

COLOURS = {0: "#d95f02", 1: "#1b7fa8"}
"""Colours of the two labels; they differ in brightness too."""


def draw(run: Path, out: Path) -> None:
    """Draw six images of each label on the left and the stacked logits of all rows on the right."""
    fitted = ensemble.TheraClassifier.from_run(run)
    table = fitted.oof_
    labels, logits = table["label"].to_numpy(), table["stacked_logit"].to_numpy()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(1.15, 1), layout="constrained")
    rows = []
    for label in (0, 1):
        names = np.array(sorted((run / "data" / "train_img").iterdir(), key=lambda path: int(path.stem)))
        heads = [cv2.imread(str(path))[..., ::-1] for path in names[labels == label][:6]]
        rows.append(
            np.concatenate([cv2.copyMakeBorder(h, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255,) * 3) for h in heads], 1)
        )
    left.imshow(np.concatenate(rows, 0))
    left.set_title("Images and labels", fontsize=10)
    left.set_yticks([36, 108], ["label 0", "label 1"])
    left.set_xticks([])
    left.spines[:].set_visible(False)
    left.tick_params(length=0)
    bins = np.linspace(*np.quantile(logits, [0.001, 0.999]), 50)
    for label in (0, 1):
        right.hist(logits[labels == label], bins, density=True, alpha=0.6, color=COLOURS[label], label=f"label {label}")
    right.axvline(fitted.threshold_, color="black", linewidth=1, label="threshold")
    right.set_title(f"Out-of-fold logits: nested HTER {fitted.expected_hter_:.4f}", fontsize=10)
    right.set_xlabel("stacked logit")
    right.set_ylabel("density within label")
    right.legend(frameon=False, fontsize=8)
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
