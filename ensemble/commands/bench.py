"""`thera bench`: how well this machine is used by training, prediction, loading and deciding, and what to change."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ensemble.config import SHORT_NAMES, VIEWS
from ensemble.progress import Say, progress, silent
from ensemble.results import BenchResult, DecisionTime, LoadingSpeed, MachineSpeed, NetworkSpeed, Spread

if TYPE_CHECKING:
    import torch

    from ensemble.bench.images import BenchImages

SUBJECTS = ("train", "predict", "decide", "load")

DECISION_ROWS = 100_000
"""Rows that the decision is timed on: about those of the largest runs."""


def bench(
    subjects: Sequence[str] = SUBJECTS,
    arch: Sequence[str] = tuple(SHORT_NAMES),
    images: Path | None = None,
    labels: Path | None = None,
    limit: int = 2048,
    rounds: int = 5,
    device: str = "auto",
    say: Say = silent,
) -> BenchResult:
    """Measure how fast this machine trains, predicts, decides and loads, and find what would be faster.

    Parameters
    ----------
    subjects : sequence of str
        Of `SUBJECTS`.
    arch : sequence of str
        Architectures to train and predict.
    images, labels : Path, optional
        A folder of image files and their labels; generated images by default.
    limit : int
        Images that are used.
    rounds : int
        Repetitions of each measurement.
    device : str
        auto, cpu, cuda or cuda:N.
    say : callable
        Receives notes, a line each.

    Raises
    ------
    ConfigError
        There is no such device, or labels are given without images.
    DataError
        The images or labels cannot be used.
    """
    decision = _time_decision(rounds, DECISION_ROWS) if "decide" in subjects else None
    if not set(subjects) & {"train", "predict", "load"}:
        return BenchResult(rounds=rounds, decision=decision)
    from ensemble.bench.images import open_images
    from ensemble.members.inference import choose_device

    torch_device = choose_device(device)
    with open_images(images, labels, limit) as opened:
        measure = partial(_speed, images=opened, rounds=rounds, device=torch_device)
        return BenchResult(
            rounds=rounds,
            images=len(opened.paths),
            size=opened.size,
            machine=_machine(torch_device),
            training=tuple(measure(name, phase="train") for name in arch) if "train" in subjects else (),
            prediction=tuple(measure(name, phase="predict") for name in arch) if "predict" in subjects else (),
            loading=_time_loading(opened, rounds) if "load" in subjects else None,
            decision=decision,
        )


# --- networks ---------------------------------------------------------------------------------------------------------


def _speed(arch: str, phase: str, images: BenchImages, rounds: int, device: torch.device) -> NetworkSpeed:
    """Measure the training or the prediction of one architecture."""
    from ensemble.bench.images import member_of
    from ensemble.bench.throughput import FOLD_MODELS, Prediction, TrainingOnCpu, TrainingOnGpu, choose, training_of
    from ensemble.machine import available_cores

    config = member_of(arch)
    chosen = choose(config, images.size, "train" if phase == "train" else "predict", device)
    passes = 1 if phase == "train" else FOLD_MODELS * len(VIEWS)
    work: TrainingOnCpu | TrainingOnGpu | Prediction
    if phase == "train":
        work = training_of(config, chosen.plan, images.mapped, images.labels, device)
    else:
        at_once = len(available_cores()) if device.type == "cpu" else 1
        weights = [_random_weights(arch, images)] * FOLD_MODELS
        work = Prediction(config, weights, chosen.plan, images.mapped, at_once, device)
    try:
        busy, per_second = _turns(work.run, f"{phase} {arch}", rounds, device)
    finally:
        work.close()
    spread = Spread.of(per_second)
    return NetworkSpeed(
        arch=arch,
        plan=str(chosen.plan),
        images_per_second=spread,
        roofline_share=spread.median * chosen.roofline_share * passes,
        busy_share=busy if phase == "train" else None,
        advice=tuple(_advice(arch, phase, images, device, spread.median)),
    )


def _turns(run: Callable[..., int], what: str, rounds: int, device: torch.device) -> tuple[float | None, np.ndarray]:
    """Return the share of time that a GPU is busy (None on a CPU), and the images per second of each round."""
    from ensemble.bench.clock import take_turns
    from ensemble.bench.roofline import busy_share
    from ensemble.bench.throughput import QuietBar

    with progress(rounds + 1, what, "turns") as bar:

        def turn() -> int:
            images = run(QuietBar(bar))
            bar.advance()
            return images

        match = take_turns({"thera": turn}, rounds)
        busy = busy_share(lambda: run(QuietBar(bar)), device) if device.type == "cuda" else None
    return busy, match.speeds["thera"]


def _random_weights(arch: str, images: BenchImages) -> Path:
    from ensemble.bench.images import member_of
    from ensemble.members.backbones import build

    path = images.folder / f"{arch}.npz"
    state = build(member_of(arch), images.size).state_dict()
    np.savez(path, **{name: value.numpy() for name, value in state.items()})
    return path


def _advice(arch: str, phase: str, images: BenchImages, device: torch.device, per_second: float) -> list[str]:
    """Return what to change, by further measurements."""
    from ensemble.bench import advice
    from ensemble.bench.images import member_of
    from ensemble.bench.throughput import FOLDS, choose
    from ensemble.machine import available_cores
    from ensemble.members.inference import default_workers

    config, size = member_of(arch), images.size
    chosen = choose(config, size, "train" if phase == "train" else "predict", device)
    where = "one core" if device.type == "cpu" else _machine(device).name
    on_plans = advice.on_plans(config.name, chosen.plan, chosen.probed, where)
    if phase == "predict":
        return [on_plans]
    pixels = images.mapped.array
    if device.type != "cpu":
        return [
            on_plans,
            advice.on_batches(config, size, chosen.plan, device, where),
            advice.on_feeding(config, pixels, per_second, default_workers(device), FOLDS),
        ]
    per_core = per_second / len(available_cores())
    native = chosen.probed.images_per_second.get(str(chosen.plan), per_core)
    return [
        on_plans,
        advice.on_batches(config, size, chosen.plan),
        advice.on_augmentation(config, pixels, per_core),
        advice.on_compiling(config, size, chosen.plan, native),
    ]


def _machine(device: torch.device) -> MachineSpeed:
    import torch

    from ensemble.bench.throughput import machine_ceilings

    ceilings = machine_ceilings(device)
    name = "" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return MachineSpeed(name, ceilings.threads, ceilings.gflops, ceilings.copy_gb_per_s)


# --- loading and deciding ---------------------------------------------------------------------------------------------


def _time_loading(images: BenchImages, rounds: int) -> LoadingSpeed:
    """Measure the first epoch, which hashes and decodes every file, and later ones, which gather from the store."""
    from ensemble.bench.clock import take_turns
    from ensemble.bench.images import member_of
    from ensemble.bench.throughput import one_epoch
    from ensemble.data.store import load_dataset

    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=images.folder) as fresh:
        load_dataset(images.source, Path(fresh))
    first = len(images.source) / (time.perf_counter() - started)
    batch, seeds = member_of("resnet18").batch_size, iter(range(10**6))
    match = take_turns({"thera": lambda: one_epoch(images.mapped.array, batch, next(seeds))}, rounds)
    return LoadingSpeed(first, Spread.of(match.speeds["thera"]))


def _time_decision(rounds: int, n: int) -> DecisionTime:
    """Time what is fitted on the OOF logits of three members in five folds."""
    from ensemble.data.folds import FoldTable
    from ensemble.decision.cross_fitting import OofLogits
    from ensemble.decision.decision import fit_decision
    from ensemble.decision.threshold import fit_threshold

    rng = np.random.default_rng(0)
    labels = (rng.random(n) < 0.88).astype(np.int8)
    signal = 2.0 * labels[:, None] - 1 + rng.normal(size=(n, 1))
    logits = signal + rng.normal(size=(n, 3)) * (0.5, 0.7, 1.0)
    table = FoldTable(np.arange(n).astype(str), labels, (np.arange(n) % 5).astype(np.int8))
    seconds = []
    with progress(rounds + 2, "decide", "turns") as bar:
        for _ in range(rounds + 1):
            started = time.perf_counter()
            fit_threshold(logits[:, 0], labels)
            seconds.append(time.perf_counter() - started)
            bar.advance()
        bar.note("a decision with its intervals")
        started = time.perf_counter()
        fit_decision(OofLogits(table, ("a", "b", "c"), logits), VIEWS, seed=0)
        whole = time.perf_counter() - started
        bar.advance()
    return DecisionTime(n, Spread.of(np.array(seconds[1:])), whole)
