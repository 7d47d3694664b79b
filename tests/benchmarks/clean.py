"""Measure how well wrong labels are found, and whether mending them helps: python tests/benchmarks/clean.py

For each seed, heads are drawn whose true classes are known (`data/synthetic.py`), and 5 % of the training labels are
flipped. A `small_cnn` is trained on the labels as given, `thera clean` finds doubtful labels by its out-of-fold logits,
and the same network is trained again with an overlay that drops, flips or weighs them. Printed are

- precision: the share of the doubtful labels that are wrong, and recall: the share of the wrong labels that are
  doubtful; of all labels, and of those of each class;
- for each way, the HTER of the label file of fresh images against their true classes, and the difference to training
  without cleaning, paired over the seeds, with its 95 % interval (Student's t).

The threshold of each way is fitted on the labels as given of the training images, as thera does. It takes about six
minutes a seed on one core that other work shares; no seed is begun that would not end within `--minutes`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ensemble.clean_config import CleanConfig
from ensemble.commands.clean import clean
from ensemble.commands.fit_stacker import fit_stacker
from ensemble.commands.predict import predict
from ensemble.commands.train import train_members
from ensemble.config import ComputeConfig, DataConfig, DecisionConfig, MemberConfig, PredictConfig
from ensemble.data.overlay import read_overlay
from ensemble.data.synthetic import write_demo
from ensemble.decision.rates import error_rates
from ensemble.runs.run import Run

WAYS = ("none", "drop", "flip", "weight")


def labels_of(path: Path) -> np.ndarray:
    return np.loadtxt(path, np.int8)


def of_seed(seed: int, folder: Path, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Return the counts of the search, and the HTER on fresh images by way."""
    write_demo(folder, options.images, options.fresh, seed, size=options.size, flip=options.flip)
    data, run = DataConfig(images=folder / "train_img", labels=folder / "label_train.txt"), folder.parent / "run"
    compute = ComputeConfig(device="cpu", jobs=1)
    base = MemberConfig(
        arch="small_cnn", name="none", epochs=options.epochs, batch_size=32, augment="light", ema_decay=0.98
    )

    def train(*members: MemberConfig) -> None:
        train_members(run, members, data, options.folds, seed, compute)

    train(base)
    overlays = {}
    for way in WAYS[1:]:
        clean(run, CleanConfig(auto=way, review=False))
        overlays[way] = folder.parent / f"{way}.csv"
        (run / "label_issues" / "overlay.csv").rename(overlays[way])
    given, true = labels_of(folder / "label_train.txt"), labels_of(folder / "truth_train.txt")
    doubtful = np.zeros(given.size, bool)
    doubtful[read_overlay(overlays["drop"], Run(run).read_folds().ids, given).rows("drop")] = True
    wrong, counts = given != true, dict[str, float]()
    for name, rows in {"all": given >= 0, "0": given == 0, "1": given == 1}.items():
        hits = int((doubtful & wrong & rows).sum())
        counts |= {f"precision {name}": hits / max(1, int((doubtful & rows).sum()))}
        counts |= {f"recall {name}": hits / max(1, int((wrong & rows).sum()))}
    train(*(base.model_copy(update={"name": way, "overlay": overlays[way]}) for way in WAYS[1:]))
    truth, hters = labels_of(folder / "truth_val.txt"), {}
    for way in WAYS:
        fit_stacker(run, DecisionConfig(members=(way,)))
        out = folder.parent / f"{way}.txt"
        predict(run, PredictConfig(images=(folder / "val_img",), out=out), compute)
        hters[way] = error_rates(truth, labels_of(out)).hter
    return counts, hters


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of some values and the 95 % interval of their expectation by Student's t."""
    from scipy.stats import t

    half = float(t.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
    return float(values.mean()), float(values.mean()) - half, float(values.mean()) + half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("images", 3000), ("fresh", 2000), ("size", 32), ("epochs", 8), ("folds", 2), ("seeds", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--flip", type=float, default=0.05)
    parser.add_argument("--minutes", type=float, default=23, help="begin no seed after this time")
    options = parser.parse_args()
    started, counts, hters = time.monotonic(), [], []
    for seed in range(options.seeds):
        if counts and (time.monotonic() - started) * (len(counts) + 1) / len(counts) > 60 * options.minutes:
            break
        with tempfile.TemporaryDirectory() as folder:
            of_counts, of_hters = of_seed(seed, Path(folder) / "data", options)
        counts.append(of_counts)
        hters.append(of_hters)
        print(f"seed {seed}:", {k: round(v, 4) for k, v in (of_counts | of_hters).items()}, flush=True)
    if len(counts) < 2:
        sys.exit("an interval takes two seeds: give more --minutes")
    print(f"\n{len(counts)} seeds\n\n| | mean | 95 % |\n| --- | ---: | ---: |")
    for name in counts[0]:
        mean, low, high = interval(np.array([each[name] for each in counts]))
        print(f"| {name} | {mean:.3f} | {max(0.0, low):.3f} to {min(1.0, high):.3f} |")
    print("\n| way | HTER on true classes | less that without cleaning | 95 %, paired |\n| --- | ---: | ---: | ---: |")
    for way in WAYS:
        mean = float(np.mean([each[way] for each in hters]))
        if way == "none":
            print(f"| {way} | {mean:.4f} | | |")
            continue
        difference, low, high = interval(np.array([each[way] - each["none"] for each in hters]))
        print(f"| {way} | {mean:.4f} | {difference:+.4f} | {low:+.4f} to {high:+.4f} |")


if __name__ == "__main__":
    main()
