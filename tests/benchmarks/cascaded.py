"""What does `thera predict --cascade` save, and what does it change?

    python tests/benchmarks/cascaded.py RUN IMAGES

Takes a run whose weights are there, and labels the images with and without a cascade, in turn, each time by the whole
command in a process of its own, in copies of the run that know no earlier logits. Prints how long each took, how many
labels differ from exact mode's in all, and how many at one threshold: exact mode's.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Labelled:
    """What a command took and found."""

    seconds: float
    labels: np.ndarray
    scores: np.ndarray
    told: dict[str, Any]


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
        (place,) = (folder / "run/predictions").iterdir()
        with open(place / "predictions.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        found = np.array([(int(row["label"]), float(row["stacked_logit"])) for row in rows])
        return Labelled(took, found[:, 0], found[:, 1], json.loads((place / "predictions.json").read_text()))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("images", type=Path)
    options.add_argument("--probability", default="0.999")
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    ways = {"exact": (), "cascade": ("--cascade", given.probability)}
    found: dict[str, list[Labelled]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, flags in ways.items():
            found[name].append(label(given.run, given.images, flags))
            print(f"{name}: {found[name][-1].seconds:.0f} s", flush=True)
    exact, cascade = found["exact"][-1], found["cascade"][-1]
    ratios = [one.seconds / other.seconds for one, other in zip(found["exact"], found["cascade"], strict=True)]
    differ = np.count_nonzero(exact.labels != cascade.labels)
    at_one = np.count_nonzero((exact.scores >= exact.told["threshold"]) != (cascade.scores >= exact.told["threshold"]))
    print(f"times as fast: {np.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    print(f"logits evaluated: {100 * cascade.told['cascade']['evaluated_share']:.0f} %")
    print(f"labels that differ, of {len(exact.labels)}: {differ}; at one threshold: {at_one}")


if __name__ == "__main__":
    main()
