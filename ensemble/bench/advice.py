"""Advise what to change so that the machine is used better, with one sentence for each further measurement."""

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
"""A plan is called slower if its speed is below this share of the chosen plan's speed."""

BATCHES = (32, 64, 128, 256)
"""Batch sizes that are compared with that of the config: powers of two around the default of 128."""

MAX_BATCH_PIXELS = 256 * 128**2
"""Largest batch that is tried, in pixels: a larger one may need gigabytes of memory."""

FASTER = 1.1
"""The ratio of speeds from which another batch size is advised. A smaller ratio is within the measurement's noise."""

AUGMENTED_IMAGES = 256
"""The number of images that are augmented to measure augmentation; they take about 40 ms on a core."""


def on_plans(arch: str, plan: Plan, probed: Probe, where: str = "one core") -> str:
    """Return a sentence that says how fast each plan is, which one is chosen, and which ones are slower."""
    speeds = probed.images_per_second
    if not speeds:
        return f"{arch}: only {plan} passes the parity check here."
    best = speeds.get(str(plan), max(speeds.values()))
    slow = [name for name, value in speeds.items() if value < SLOWER * best]
    warning = f"; do not force {', '.join(slow)}" if slow else ""
    return (
        f"{arch}, {where}, images/s by plan: {_listed(speeds)}. "
        f"--precision auto --convolutions auto takes {plan}{warning}."
    )


def on_batches(config: MemberConfig, size: int, plan: Plan, device: torch.device = CPU, where: str = "one core") -> str:
    """Measure training with several batch sizes, on one core or a GPU, and return whether another size is faster.

    Parameters
    ----------
    config : MemberConfig
    size : int
        Side of the images in pixels.
    plan : Plan
    device : torch.device
    where : str
        The device in words.
    """
    present = config.batch_size
    batches = [batch for batch in BATCHES if batch * size**2 <= MAX_BATCH_PIXELS]
    speeds = {batch: speed(config, size, plan, "train", batch, 1, device) for batch in sorted({*batches, present})}
    best = max(speeds, key=lambda batch: speeds[batch])
    advice = f"--batch-size {present} is as fast as any"
    if speeds[best] >= FASTER * speeds[present]:
        ratio = f"{speeds[best] / speeds[present]:.2f} times as fast as {present}"
        advice = f"--batch-size {best} is {ratio}, and changes the training"
    return f"{config.name}, {where}, images/s by batch: {_listed(speeds)}. {advice}."


def on_augmentation(config: MemberConfig, pixels: np.ndarray, images_per_second: float) -> str:
    """Measure augmentation, and return its share of the time of training on a CPU.

    Parameters
    ----------
    config : MemberConfig
    pixels : uint8 array (n, H, W, 3)
    images_per_second : float
        Speed of training on one core, including augmentation.
    """
    rate = _augmented_per_second(config, pixels)
    return (
        f"{config.name}: augmentation makes {rate:.0f} images/s on a core, {100 * images_per_second / rate:.0f} % of "
        "the time of training; data workers would share the cores of their network: --workers 0."
    )


def on_feeding(config: MemberConfig, pixels: np.ndarray, images_per_second: float, workers: int, folds: int) -> str:
    """Measure augmentation, and return whether the data workers keep a GPU busy.

    Parameters
    ----------
    config : MemberConfig
    pixels : uint8 array (n, H, W, 3)
    images_per_second : float
        Speed of training, all folds together.
    workers : int
        Processes that augment.
    folds : int
        Folds that share the augmented images; all of them but one train on each image.
    """
    rate = _augmented_per_second(config, pixels)
    shared = max(1, folds - 1)
    needed = math.ceil(images_per_second / rate / shared)
    enough = f"{max(1, workers)} are enough" if needed <= max(1, workers) else f"--workers {needed} would be enough"
    return (
        f"{config.name}: augmentation makes {rate:.0f} images/s on a core, and {folds} folds use each of them "
        f"{shared} times: {images_per_second:.0f} images/s of training need {needed} data workers, {enough}."
    )


def on_compiling(config: MemberConfig, size: int, plan: Plan, images_per_second: float) -> str:
    """Measure a compiled network on one core, and return whether compiling saves time.

    Parameters
    ----------
    config : MemberConfig
    size : int
        Side of the images in pixels.
    plan : Plan
        The plan that is used without compiling.
    images_per_second : float
        Speed of that plan on one core.
    """
    compiled = Plan(plan.precision, "compiled")
    probed = probe(config, size, (compiled,), "train", 1)
    compiled_speed = probed.images_per_second.get(str(compiled))
    if compiled_speed is None:
        reason = probed.failed.get(str(compiled), "it fails the parity check")
        return f"{config.name}: --convolutions compiled does not work here: {reason}."
    setup = probed.setup_seconds[str(compiled)]
    advice = "do not use it"
    if compiled_speed > images_per_second:
        # Compiling saves 1 / images_per_second - 1 / compiled_speed seconds an image, and costs `setup` seconds once.
        worth_from = setup / (1 / images_per_second - 1 / compiled_speed)
        advice = f"it saves time from {worth_from:.0f} images on, all epochs counted"
    return (
        f"{config.name}, one core: --convolutions compiled makes {compiled_speed:.0f} images/s, "
        f"{compiled_speed / images_per_second:.2f} times {plan}, after {setup:.0f} s of compiling: {advice}."
    )


def _augmented_per_second(config: MemberConfig, pixels: np.ndarray) -> float:
    """Return how many images a core augments in a second."""
    augmentation = Augmentation(config.augmentation, seed=0)
    augmentation(pixels[0], 0, 0)  # the first image takes longer
    started = time.perf_counter()
    for row in range(AUGMENTED_IMAGES):
        augmentation(pixels[row % len(pixels)], 0, row)
    return AUGMENTED_IMAGES / (time.perf_counter() - started)


def _listed(speeds: dict[str, float] | dict[int, float]) -> str:
    return ", ".join(f"{name} {value:.0f}" for name, value in speeds.items())
