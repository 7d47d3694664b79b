"""Compare the HTER after equal epochs in thera's training loop and in the peers' loops.

    data="--images train_img --labels label_train.txt"
    taskset -c 0 python tests/benchmarks/peers/equal_epochs.py OUT $data --seeds 0 2
    taskset -c 1 python tests/benchmarks/peers/equal_epochs.py OUT $data --seeds 1 3
    python tests/benchmarks/peers/equal_epochs.py OUT

The script trains each architecture for three epochs on each half of the first 20,000 rows, on one core, in four ways:
in the plain loop; in thera's loop by the same recipe (focal loss, flips and shifts); in the loop of timm's train.py at
its best flags; and in thera's loop by timm's recipe (cross-entropy, labels smoothed by 0.1, flips, zooms and shifts
about as far as timm's crops). thera uses the plan that `--precision auto` chooses. All have batches of 128 and the same
learning rates (`RATE`, a short warm-up, a cosine to 0). Each loop averages its weights and clips its gradients as it
always does, but timm's weight average is not used, because it stays close to its start in so few updates.

A training's HTER is measured on the rows of the other half, with the views identity and hflip, and with the threshold
fitted on every second row for the others and vice versa. OUT keeps the logits of every training, so that the command
continues where it was stopped. `--ways "thera, unclipped"` and the like train variants of thera's loop that leave out
what the plain loop does not do. Without --seeds the tables are printed: mean HTERs, the differences paired by half and
seed, and Student's 95 % interval over the trainings.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import timm_best
from peers import LIGHT, Files, Loop, plain_loop, timm_loop
from scipy import stats
from torch import nn

from ensemble.config import SHORT_NAMES, VIEWS, MemberConfig
from ensemble.data.folds import FoldTable, assign_folds
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.decision.assessment import member_report
from ensemble.members.backbones import Backbone
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import predict_logits
from ensemble.members.probe import choose_plan
from ensemble.members.processes import MappedPixels
from ensemble.members.training import train_and_predict
from ensemble.progress import progress

ROWS, FOLDS, EPOCHS, BATCH, RATE = 20_000, 2, 3, 128, 2e-3
WARMUP = 0.3
"""Epochs of warm-up: a member's default for three epochs."""

PAIRS = {"thera": "plain loop", "thera, timm's recipe": "timm, best flags"}
"""A way of thera, and the peer that it is compared with."""

WAYS = tuple(way for pair in PAIRS.items() for way in pair)
THERA: dict[str, dict[str, Any]] = {
    "thera": {},
    "thera, timm's recipe": {
        "loss": "bce",
        "label_smoothing": 0.1,
        "augment": {"flip": True, "scale": 0.06, "shift": 0.03},
    },
    "thera, unclipped": {"clip_norm": 1e9},
    "thera, no average": {"ema_decay": 0.0},
    "thera, neither": {"clip_norm": 1e9, "ema_decay": 0.0},
    "thera, fp32": {"precision": "fp32"},
}
"""What each way changes of the member's config. The last four train by the plain loop's recipe and leave out parts of
thera's loop that the plain loop does not have."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Faces:
    """The images, decoded and as files, in halves."""

    mapped: MappedPixels
    paths: Sequence[str]
    ids: np.ndarray
    labels: np.ndarray
    fold_of: np.ndarray


class _NoCheckpoint:
    """A checkpoint that stores nothing."""

    def load(self) -> None:
        return None

    def save(self, *_: object) -> None:
        pass

    save_state = write_history = save


class _TwoLogits(nn.Module):
    """A model with one logit per class, presented as a model with one logit: their difference."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.pretrained_cfg = model, model.pretrained_cfg

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.model.forward_features(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        return torch.as_tensor(self.model.forward_head(x, pre_logits=pre_logits))

    def get_classifier(self) -> nn.Module:
        both = self.model.get_classifier()
        head = nn.Linear(both.in_features, 1)
        with torch.no_grad():
            head.weight.copy_(both.weight[1:] - both.weight[:1])
            head.bias.copy_(both.bias[1:] - both.bias[:1])
        return head


def by_thera(faces: Faces, arch: str, fold: int, seed: int, bar: Any, recipe: dict[str, Any]) -> np.ndarray:
    """Train and predict as `thera train-member` does."""
    config = MemberConfig.model_validate(
        {"arch": arch, "pretrained": False, "epochs": EPOCHS, "augment": "light", "lr": RATE, **recipe}
    )
    rows, held_out = (np.flatnonzero(side) for side in (faces.fold_of != fold, faces.fold_of == fold))
    job = FoldJob(config, faces.mapped, faces.labels, faces.ids, rows, fold, seed)
    assert (config.batch_size, config.warmup) == (BATCH, WARMUP)
    plan = choose_plan(config, CPU, job.pixels.shape[1], "train", job.images // BATCH, 1)
    return train_and_predict(job, _NoCheckpoint(), plan, CPU, 0, held_out, VIEWS, None, bar).logits


def by_peer(
    faces: Faces, arch: str, fold: int, seed: int, bar: Any, make: Callable[[str, Files, int], Loop]
) -> np.ndarray:
    """Train in a peer's loop, and predict in fp32."""
    rows, held_out = (np.flatnonzero(side) for side in (faces.fold_of != fold, faces.fold_of == fold))
    size = faces.mapped.array.shape[1]
    loop = make(SHORT_NAMES.get(arch, arch), Files([faces.paths[row] for row in rows], faces.labels[rows], size), seed)
    updates = len(rows) // BATCH
    for update in range(EPOCHS * updates):
        warm = min(1.0, 0.01 + 0.99 * update / round(WARMUP * updates))
        rate = 0.5 * RATE * (1 + math.cos(math.pi * update / (EPOCHS * updates)))
        for group in loop.optimizer.param_groups:
            group["lr"] = RATE * warm if warm < 1 else rate
        bar.advance(loop.run(BATCH))
        assert math.isfinite(loop.loss)
    loop.close()
    model: Any = loop.model if loop.model.num_classes == 1 else _TwoLogits(loop.model)
    network = Backbone(model, size).to(memory_format=torch.channels_last)
    return predict_logits(network, faces.mapped.array, held_out, VIEWS, "fp32", CPU, bar)


def _timm(arch: str, files: Files, seed: int, bar: Any) -> Loop:
    amp = torch.bfloat16 if timm_best(arch, files, 1, bar) == "bf16" else None
    return timm_loop(
        arch, files, workers=0, threads=1, seed=seed, amp_dtype=amp, channels_last=True, augmentation=LIGHT
    )


def train(
    out: Path,
    images: Path,
    labels: Path,
    archs: Sequence[str],
    ways: Sequence[str],
    seeds: Sequence[int],
    folds: Sequence[int],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=out) as store:
        source = open_source(images, labels)
        dataset = load_dataset(source, Path(store))
        assert dataset.labels is not None
        given_labels = dataset.labels[:ROWS]
        fold_of = assign_folds(given_labels, np.arange(ROWS), FOLDS, 0).fold_of
        paths = [str(images / name) for name in source.names[:ROWS]]
        faces = Faces(MappedPixels(dataset.pixels), paths, dataset.ids[:ROWS], given_labels, fold_of)
        for seed in seeds:
            for arch in archs:
                for way in ways:
                    for fold in folds:
                        _train_once(out, faces, arch, way, fold, seed)


def _train_once(out: Path, faces: Faces, arch: str, way: str, fold: int, seed: int) -> None:
    kept = out / f"{arch}, {way}, fold {fold}, seed {seed}.npz"
    if kept.exists():
        return
    steps = EPOCHS * np.count_nonzero(faces.fold_of != fold) + len(VIEWS) * np.count_nonzero(faces.fold_of == fold)
    with progress(steps, kept.stem) as bar:
        makers = {
            "plain loop": lambda arch, files, seed: plain_loop(arch, files, workers=0, threads=1, seed=seed),
            "timm, best flags": partial(_timm, bar=bar),
        }
        started = time.perf_counter()
        if way in makers:
            logits = by_peer(faces, arch, fold, seed, bar, makers[way])
        else:
            logits = by_thera(faces, arch, fold, seed, bar, THERA[way])
    inside = faces.fold_of == fold
    held = {"ids": faces.ids[inside], "labels": faces.labels[inside], "logits": logits}
    temporary = kept.with_name(f".{os.getpid()}.npz")
    np.savez(temporary, seconds=time.perf_counter() - started, **held)
    temporary.replace(kept)


def show(out: Path) -> None:
    heads = [f"{way} | {peer} | difference | trainings" for way, peer in PAIRS.items()]
    print("| | " + " | ".join(heads) + " |")
    print("| --- |" + 4 * len(PAIRS) * " ---: |")
    for arch in SHORT_NAMES:
        cells = []
        for pair in PAIRS.items():
            thera, peer = (_hters(out, arch, way) for way in pair)
            both = sorted(thera.keys() & peer.keys())
            a, b = (np.array([each[training] for training in both]) for each in (thera, peer))
            cells += [f"{a.mean():.4f}", f"{b.mean():.4f}", _difference(a - b)] if both else ["", "", ""]
            cells.append(str(len(both)))
        print(f"| {arch} | " + " | ".join(cells) + " |")
    print("\n| | | HTER | less thera's | trainings |\n| --- | --- | ---: | ---: | ---: |")
    for arch in SHORT_NAMES:
        whole = _hters(out, arch, "thera")
        for way in (way for way in THERA if way not in WAYS):
            changed = _hters(out, arch, way)
            both = sorted(whole.keys() & changed.keys())
            if both:
                a, b = (np.array([each[training] for training in both]) for each in (changed, whole))
                print(f"| {arch} | {way} | {a.mean():.4f} | {_difference(a - b)} | {len(both)} |")


def _hters(out: Path, arch: str, way: str) -> dict[tuple[int, int], float]:
    """Return the HTER of each half and seed, the threshold cross-fitted on the held-out rows in two parts."""
    hters = {}
    for fold in range(FOLDS):
        for file in out.glob(f"{arch}, {way}, fold {fold}, seed *.npz"):
            with np.load(file) as kept:
                ids, labels, logits = kept["ids"], kept["labels"], kept["logits"].mean(axis=1)
            halves = FoldTable(ids, labels, (np.arange(len(ids)) % 2).astype(np.int8))
            report = member_report(arch, halves, logits)
            hters[fold, int(file.stem.rpartition(" ")[2])] = report.nested.hter
    return hters


def _difference(differences: np.ndarray) -> str:
    """Return the mean of paired differences with its 95 % interval; one difference has none."""
    n, mean = len(differences), differences.mean()
    if n < 2:
        return f"{mean:+.4f}"
    half = stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / math.sqrt(n)
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path)
    options.add_argument("--images", type=Path)
    options.add_argument("--labels", type=Path)
    options.add_argument("--archs", nargs="+", default=list(SHORT_NAMES))
    options.add_argument("--ways", nargs="+", default=WAYS, choices=list({*WAYS, *THERA}))
    options.add_argument("--seeds", nargs="+", type=int, default=[])
    options.add_argument("--folds", nargs="+", type=int, default=list(range(FOLDS)), help="Of 0 and 1.")
    given = options.parse_args()
    if given.seeds:
        train(given.out, given.images, given.labels, given.archs, given.ways, given.seeds, given.folds)
    show(given.out)
