"""Compare input sizes and stems of each backbone, from scratch, at equal training time.

    python tests/benchmarks/input_sizes.py DATA [--seconds 40] [arch:size:stem:precision ...]

DATA is the exercise's folder. The script first measures the speed of each variant. The variant is then trained for one
epoch (one warm-up and cosine cycle) over as many of 70,000 rows as fit into the seconds. The HTER is that of the best
threshold on the other 10,000 rows, with both views: use it to choose variants, not to estimate their error. The script
prints one line of JSON for each variant.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ensemble.config import VIEWS, MemberConfig
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.decision.rates import apply_threshold, error_rates
from ensemble.decision.threshold import fit_threshold
from ensemble.members.devices import choose_device
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import predict_logits
from ensemble.members.plans import Plan
from ensemble.members.processes import MappedPixels
from ensemble.members.training import train_fold
from ensemble.progress import progress

VARIANTS = [
    f"{arch}:{variant}:{precision}"
    for arch, precision in (("resnet18", "bf16"), ("mobilenetv2", "fp32"), ("convnext_nano", "fp32"))
    for variant in ("64:standard", "64:half-stride", "32:half-stride")
]


class Nowhere:
    """A checkpoint that stores nothing."""

    save_every = float("inf")

    def load(self) -> None:
        return None

    def save(self, *_: object) -> None:
        pass

    save_state = write_history = save


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("variants", nargs="*", default=VARIANTS)
    parser.add_argument("--seconds", type=float, default=40)
    arguments = parser.parse_args()
    device = choose_device()
    with tempfile.TemporaryDirectory() as store:
        source = open_source(arguments.data / "train_img", arguments.data / "label_train.txt")
        dataset = load_dataset(source, Path(store))
        assert dataset.labels is not None
        order = np.random.default_rng(0).permutation(len(dataset))
        held_out, rest = np.sort(order[:10_000]), order[10_000:]
        mapped = MappedPixels(dataset.pixels)

        def job(config: MemberConfig, rows: np.ndarray) -> FoldJob:
            return FoldJob(config, mapped, dataset.labels, dataset.ids, rows, fold=0, seed=0)

        for variant in arguments.variants:
            arch, size, stem, precision = variant.split(":")
            config = MemberConfig(
                arch=arch,
                pretrained=False,
                input_size=int(size),
                stem=stem,
                epochs=1,
                warmup_epochs=0.1,
                lr=1e-3 if arch == "convnext_nano" else 2e-3,
                augment="light",
            )
            with progress(1, variant) as bar:
                for n in (3 * 128, 12 * 128):  # the first one is a warm-up
                    started = time.monotonic()
                    train_fold(job(config, rest[:n]), Nowhere(), Plan(precision), device, 0, bar)
                speed = n / (time.monotonic() - started)
                rows = rest[: int(speed * arguments.seconds)]
                started = time.monotonic()
                network = train_fold(job(config, rows), Nowhere(), Plan(precision), device, 0, bar).average
                spent = time.monotonic() - started
                logits = predict_logits(network, dataset.pixels, held_out, VIEWS, precision, device, bar).mean(axis=1)
            labels = dataset.labels[held_out]
            rates = error_rates(labels, apply_threshold(logits, fit_threshold(logits, labels)))
            facts = {"variant": variant, "images": len(rows), "seconds": round(spent), "hter": round(rates.hter, 4)}
            print(json.dumps(facts | {"threads": torch.get_num_threads()}), flush=True)


if __name__ == "__main__":
    main()
