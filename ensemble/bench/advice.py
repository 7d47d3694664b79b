"""What to change so that a machine is used better, by what was measured on it."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from ensemble.config import MemberConfig
from ensemble.members.augment import Augmentation
from ensemble.members.plans import Plan
from ensemble.members.probe import Probe, probe, speed

CPU = torch.device("cpu")

SLOWER = 0.8
"""Share of the probe's best plan below which a plan is reported as a bad choice."""

BATCHES = (32, 64, 128, 256)
MOST_PIXELS = 256 * 128**2
"""Of a batch, so that none is tried that takes gigabytes."""

FASTER = 1.1
"""How many times the speed of the batch that is set another batch must reach to be advised."""

AUGMENTED = 256
"""Images by which augmentation is measured."""


def on_plans(arch: str, plan: Plan, probed: Probe, where: str = "one core") -> str:
    """Say what the plans were measured to be worth."""
    speeds = probed.images_per_second
    if not speeds:
        return f"{arch}: only {plan} computes soundly here."
    best = speeds.get(str(plan), max(speeds.values()))
    slow = [name for name, value in speeds.items() if value < SLOWER * best]
    warned = f"; do not force {', '.join(slow)}" if slow else ""
    return (
        f"{arch}, {where}, images/s by plan: {_listed(speeds)}. "
        f"--precision auto --convolutions auto takes {plan}{warned}."
    )


def on_batches(config: MemberConfig, size: int, plan: Plan, device: torch.device = CPU, where: str = "one core") -> str:
    """Measure training on one core or a GPU in batches of several sizes, and say which one is faster than that set.

    Parameters
    ----------
    size : int
        Side of the images in pixels.
    """
    present = config.batch_size
    batches = [batch for batch in BATCHES if batch * size**2 <= MOST_PIXELS]
    speeds = {batch: speed(config, size, plan, "train", batch, 1, device) for batch in sorted({*batches, present})}
    best = max(speeds, key=lambda batch: speeds[batch])
    advice = f"--batch-size {present} is as fast as any"
    if speeds[best] >= FASTER * speeds[present]:
        times = f"{speeds[best] / speeds[present]:.2f} times as fast as {present}"
        advice = f"--batch-size {best} is {times}, and another training"
    return f"{config.name}, {where}, images/s by batch: {_listed(speeds)}. {advice}."


def on_augmentation(config: MemberConfig, pixels: np.ndarray, images_per_second: float) -> str:
    """Measure augmentation, and say what it takes.

    Parameters
    ----------
    pixels : uint8 array (n, H, W, 3)
    images_per_second : float
        Of training, by core, augmentation included.
    """
    rate = _augmented_per_second(config, pixels)
    return (
        f"{config.name}: augmentation makes {rate:.0f} images/s on a core, {100 * images_per_second / rate:.0f} % of "
        "training's time; data workers would share the cores of their network: --workers 0."
    )


def on_feeding(config: MemberConfig, pixels: np.ndarray, images_per_second: float, workers: int, folds: int) -> str:
    """Measure augmentation, and say whether so many workers keep a GPU busy whose folds share what they make.

    Parameters
    ----------
    pixels : uint8 array (n, H, W, 3)
    images_per_second : float
        Of training, of all folds together.
    """
    rate = _augmented_per_second(config, pixels)
    shared = max(1, folds - 1)
    needed = math.ceil(images_per_second / rate / shared)
    enough = f"{max(1, workers)} are enough" if needed <= max(1, workers) else f"--workers {needed} would be enough"
    return (
        f"{config.name}: augmentation makes {rate:.0f} images/s on a core, and {folds} folds take each of them "
        f"{shared} times: {images_per_second:.0f} images/s of training need {needed} data workers, {enough}."
    )


def on_compiling(config: MemberConfig, size: int, plan: Plan, images_per_second: float) -> str:
    """Measure a compiled network on one core, unless it was before, and say whether compiling pays.

    Parameters
    ----------
    size : int
        Side of the images in pixels.
    images_per_second : float
        On one core, by the plan.
    """
    compiled = Plan(plan.precision, "compiled")
    found = probe(config, size, (compiled,), "train", 1)
    speed_compiled = found.images_per_second.get(str(compiled))
    if speed_compiled is None:
        reason = found.failed.get(str(compiled), "computes something else than the library")
        return f"{config.name}: --convolutions compiled cannot be had here: {reason}."
    times = f"{speed_compiled:.0f} images/s, {speed_compiled / images_per_second:.2f}"
    sentence = f"{config.name}, one core: --convolutions compiled makes {times}"
    first = found.setup_seconds[str(compiled)]
    advice = "leave it"
    if speed_compiled > images_per_second:
        advice = (
            f"it pays from {first / (1 / images_per_second - 1 / speed_compiled):.0f} images on, all epochs counted"
        )
    return f"{sentence} times {plan}, after {first:.0f} s of compiling: {advice}."


def _augmented_per_second(config: MemberConfig, pixels: np.ndarray) -> float:
    """Return how many images a core augments in a second."""
    augmentation = Augmentation(config.augmentation, seed=0)
    augmentation(pixels[0], 0, 0)
    started = time.perf_counter()
    for row in range(AUGMENTED):
        augmentation(pixels[row % len(pixels)], 0, row)
    return AUGMENTED / (time.perf_counter() - started)


def _listed(speeds: dict[str, float] | dict[int, float]) -> str:
    return ", ".join(f"{name} {value:.0f}" for name, value in speeds.items())
