"""Measure the speed of training, prediction and loading, and the time of a decision, for `thera bench`."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch

from ensemble.bench import advice
from ensemble.bench.clock import images_per_second
from ensemble.bench.images import BenchImages, member_config
from ensemble.bench.roofline import Ceilings, busy_share, flops_per_image, measure_ceilings
from ensemble.bench.throughput import (
    FOLD_MODELS,
    FOLDS,
    Prediction,
    QuietBar,
    TrainingOnCpu,
    TrainingOnGpu,
    gather_epoch,
    prediction_on,
    training_on,
)
from ensemble.bench_results import DecisionTime, LoadingSpeed, MachineSpeed, NetworkSpeed, Spread
from ensemble.config import VIEWS, MemberConfig
from ensemble.data.folds import FoldTable
from ensemble.data.store import load_dataset
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import fit_decision
from ensemble.decision.threshold import fit_threshold
from ensemble.machine import available_cores
from ensemble.members.backbones import build
from ensemble.members.inference import default_workers
from ensemble.members.plans import Phase, Plan, possible_plans
from ensemble.members.probe import Probe, probe
from ensemble.progress import progress

LONG_WORK = 10**6
"""The number of images for which a plan is chosen. It is so large that the fastest plan is chosen, even if it takes
long to compile."""

DECISION_ROWS = 100_000
"""The number of rows of the decision that is timed; the exercise has about as many."""


# --- the machine and the plan -----------------------------------------------------------------------------------------


@functools.cache
def _ceilings(device: torch.device) -> Ceilings:
    """Measure the limits of all cores together, or of a GPU; the result is cached."""
    return measure_ceilings(len(available_cores()), tuple(dict.fromkeys(("fp32", *precisions(device)))), device)


def precisions(device: torch.device, size: int = 64) -> tuple[str, ...]:
    """Return the precisions in which a device computes images of this size at full speed."""
    return tuple(plan.precision for plan in possible_plans("auto", "native", device, size, "train"))


def machine_speed(device: torch.device) -> MachineSpeed:
    """Return the limits of the device."""
    ceilings = _ceilings(device)
    name = "" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return MachineSpeed(name, ceilings.threads, ceilings.gflops, ceilings.copy_gb_per_s)


def choose_plan(config: MemberConfig, size: int, phase: Phase, device: torch.device) -> tuple[Plan, Probe]:
    """Return the plan that `thera` chooses for long work, and the probe behind the choice.

    Parameters
    ----------
    config : MemberConfig
    size : int
        Side of the images in pixels.
    phase : {"train", "predict"}
    device : torch.device
    """
    probed = probe(config, size, possible_plans("auto", "auto", device, size, phase), phase, 1, device)
    return probed.for_work(LONG_WORK), probed


# --- networks ---------------------------------------------------------------------------------------------------------


def training_speed(arch: str, images: BenchImages, rounds: int, device: torch.device) -> NetworkSpeed:
    """Measure the training of one architecture, with as many folds in parallel as `thera` trains on this machine."""
    config = member_config(arch)
    plan, probed = choose_plan(config, images.size, "train", device)
    work = training_on(device, config, plan, images.mapped, images.labels)
    speeds, busy = _measured(work, f"train {arch}", rounds, device, profiled=device.type == "cuda")
    _, flops = flops_per_image(timm.create_model(config.timm_name, num_classes=1), images.size)
    sentences = _training_advice(config, plan, probed, images, device, speeds.median)
    share = speeds.median * flops / _peak(plan, device)
    return NetworkSpeed(arch, str(plan), speeds, share, busy, tuple(sentences))


def prediction_speed(arch: str, images: BenchImages, rounds: int, device: torch.device) -> NetworkSpeed:
    """Measure the prediction of one architecture: `FOLD_MODELS` fold models, with all views."""
    config = member_config(arch)
    plan, probed = choose_plan(config, images.size, "predict", device)
    weights = [write_random_weights(arch, images)] * FOLD_MODELS
    work = prediction_on(device, config, weights, plan, images.mapped)
    speeds, _ = _measured(work, f"predict {arch}", rounds, device)
    flops, _ = flops_per_image(timm.create_model(config.timm_name, num_classes=1), images.size)
    sentence = advice.on_plans(config.name, plan, probed, _where(device))
    share = speeds.median * FOLD_MODELS * len(VIEWS) * flops / _peak(plan, device)
    return NetworkSpeed(arch, str(plan), speeds, share, None, (sentence,))


def write_random_weights(arch: str, images: BenchImages) -> Path:
    """Write random weights, which every measurement of prediction uses, and return the .npz file."""
    path = images.folder / f"{arch}.npz"
    state = build(member_config(arch), images.size).state_dict()
    np.savez(path, **{name: value.numpy() for name, value in state.items()})
    return path


def _measured(
    work: TrainingOnCpu | TrainingOnGpu | Prediction,
    what: str,
    rounds: int,
    device: torch.device,
    profiled: bool = False,
) -> tuple[Spread, float | None]:
    """Return the images per second, and the share of the time in which a GPU is busy, if it is profiled."""
    with progress(rounds + 1, what, "rounds") as bar:

        def one_round() -> int:
            images = work.run(QuietBar(bar))
            bar.advance()
            return images

        try:
            speeds = images_per_second(one_round, rounds)
            busy = busy_share(lambda: work.run(QuietBar(bar)), device) if profiled else None
        finally:
            work.close()
    return Spread.of(speeds), busy


def _peak(plan: Plan, device: torch.device) -> float:
    """Return the largest number of operations per second that the device reaches in the plan's precision."""
    return 1e9 * _ceilings(device).gflops[plan.precision]


def _where(device: torch.device) -> str:
    return "one core" if device.type == "cpu" else torch.cuda.get_device_name(device)


def _training_advice(
    config: MemberConfig, plan: Plan, probed: Probe, images: BenchImages, device: torch.device, speed: float
) -> Iterator[str]:
    """Make further measurements, and yield advice; `speed` is in images per second, of all folds together."""
    size, pixels = images.size, images.mapped.array
    yield advice.on_plans(config.name, plan, probed, _where(device))
    yield advice.on_batches(config, size, plan, device, _where(device))
    if device.type != "cpu":
        yield advice.on_feeding(config, pixels, speed, default_workers(device), FOLDS)
        return
    per_core = speed / len(available_cores())
    yield advice.on_augmentation(config, pixels, per_core)
    yield advice.on_compiling(config, size, plan, probed.images_per_second.get(str(plan), per_core))


# --- loading and deciding ---------------------------------------------------------------------------------------------


def loading_speed(images: BenchImages, rounds: int) -> LoadingSpeed:
    """Measure the first epoch, which hashes and decodes every file, and later epochs, which gather from the store."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=images.folder) as empty:
        load_dataset(images.source, Path(empty))
    first = len(images.source) / (time.perf_counter() - started)
    batch, seeds = member_config("resnet18").batch_size, iter(range(rounds + 1))
    later = images_per_second(lambda: gather_epoch(images.mapped.array, batch, next(seeds)), rounds)
    return LoadingSpeed(first, Spread.of(later))


def decision_time(rounds: int) -> DecisionTime:
    """Time the exact threshold of one member, and a complete decision of three members in five folds."""
    n, rng = DECISION_ROWS, np.random.default_rng(0)
    labels = (rng.random(n) < 0.88).astype(np.int8)
    signal = 2.0 * labels[:, None] - 1 + rng.normal(size=(n, 1))
    logits = signal + rng.normal(size=(n, 3)) * (0.5, 0.7, 1.0)
    table = FoldTable(np.arange(n).astype(str), labels, (np.arange(n) % 5).astype(np.int8))
    seconds = []
    with progress(rounds + 2, "decide", "rounds") as bar:
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
    return DecisionTime(n, Spread.of(np.array(seconds[1:])), whole)  # the first round is a warm-up
