"""Measure the time that `thera predict --cascade` saves, and the labels that it changes.

    python tests/benchmarks/cascaded.py RUN IMAGES

The run must have its weights. The script labels the images with and without a cascade, in turn. Each time the whole
command runs in a new process, in a copy of the run without earlier logits. The script prints how long each took, how
many labels differ from those of exact mode, and how many differ if both use the threshold of exact mode.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensemble.prediction_results import PredictionFacts
from ensemble.runs.predictions import read_facts, read_table


@dataclass(frozen=True)
class Labelled:
    """How long a command took, and the labels (n,) and stacked logits (n,) that it wrote."""

    seconds: float
    labels: np.ndarray
    scores: np.ndarray
    facts: PredictionFacts


def label(run: Path, images: Path, options: Sequence[str]) -> Labelled:
    """Label the images by a copy of the run."""
    thera = Path(sys.executable).with_name("thera")
    with tempfile.TemporaryDirectory(dir=run.parent, prefix=".cascade-") as name:
        folder = Path(name)
        shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("predictions"), copy_function=os.link)
        command = [thera, "predict", "--run", folder / "run", "--images", images, "--out", folder / "labels.txt"]
        started = time.perf_counter()
        subprocess.run([*command, "--tta", *options], check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - started
        (written,) = (folder / "run/predictions").iterdir()
        facts = read_facts(written, PredictionFacts)
        table = read_table(written, facts.files)
        labels, scores = table["label"].to_numpy(np.int8), table["stacked_logit"].to_numpy(np.float64)
        return Labelled(took, labels, scores, facts)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("images", type=Path)
    options.add_argument("--probability", default="0.999")
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    ways = {"exact": (), "cascade": ("--cascade", given.probability)}
    results: dict[str, list[Labelled]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, flags in ways.items():
            results[name].append(label(given.run, given.images, flags))
            print(f"{name}: {results[name][-1].seconds:.0f} s", flush=True)
    exact, cascade = results["exact"][-1], results["cascade"][-1]
    ratios = [a.seconds / b.seconds for a, b in zip(results["exact"], results["cascade"], strict=True)]
    differ = np.count_nonzero(exact.labels != cascade.labels)
    threshold = exact.facts.threshold
    at_one = np.count_nonzero((exact.scores >= threshold) != (cascade.scores >= threshold))
    assert cascade.facts.cascade is not None
    print(f"times as fast: {np.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    print(f"logits evaluated: {100 * cascade.facts.cascade.evaluated_share:.0f} %")
    print(f"labels that differ, of {len(exact.labels)}: {differ}; at one threshold: {at_one}")


if __name__ == "__main__":
    main()
