"""What to change so that a machine is used better, by what was measured on it."""

from __future__ import annotations

import time

import numpy as np

from ensemble.config import MemberConfig
from ensemble.members.augment import Augmentation
from ensemble.members.plans import Plan, Probe, speed

SLOWER = 0.8
"""Share of the probe's best plan below which a plan is told to be a bad choice."""

BATCHES = (32, 64, 128, 256)
MOST_PIXELS = 256 * 128**2
"""Of a batch, so that none is tried that takes gigabytes."""

FASTER = 1.1
"""How many times the speed of the batch that is set another one must reach to be told of."""

AUGMENTED = 256
"""Images by which augmentation is measured."""


def on_plans(arch: str, plan: Plan, probed: Probe) -> str:
    """Say what the plans were measured to be worth."""
    speeds = probed.images_per_second
    if not speeds:
        return f"{arch}: only {plan} computes soundly here."
    best = speeds.get(str(plan), max(speeds.values()))
    slow = [name for name, value in speeds.items() if value < SLOWER * best]
    warned = f"; do not force {', '.join(slow)}" if slow else ""
    return (
        f"{arch}, one core, images/s by plan: {_told(speeds)}. "
        f"--precision auto --convolutions auto takes {plan}{warned}."
    )


def on_batches(config: MemberConfig, size: int, plan: Plan) -> str:
    """Measure training on one core in batches of several sizes, and say which is faster than the one that is set.

    Parameters
    ----------
    size : int
        Side of the images in pixels.
    """
    own = config.batch_size
    batches = [batch for batch in BATCHES if batch * size**2 <= MOST_PIXELS]
    speeds = {batch: speed(config, size, plan, "train", batch, 1) for batch in sorted({*batches, own})}
    best = max(speeds, key=lambda batch: speeds[batch])
    advice = f"--batch-size {own} is as fast as any"
    if speeds[best] >= FASTER * speeds[own]:
        advice = f"--batch-size {best} is {speeds[best] / speeds[own]:.2f} times as fast as {own}, and another training"
    return f"{config.name}, one core, images/s by batch: {_told(speeds)}. {advice}."


def on_augmentation(config: MemberConfig, pixels: np.ndarray, images_per_second: float) -> str:
    """Measure augmentation, and say what it takes.

    Parameters
    ----------
    pixels : uint8 array (n, H, W, 3)
    images_per_second : float
        Of training, by core, augmentation included.
    """
    augmentation = Augmentation(config.augmentation, seed=0)
    augmentation(pixels[0], 0, 0)
    started = time.perf_counter()
    for row in range(AUGMENTED):
        augmentation(pixels[row % len(pixels)], 0, row)
    rate = AUGMENTED / (time.perf_counter() - started)
    return (
        f"{config.name}: augmentation makes {rate:.0f} images/s on a core, {100 * images_per_second / rate:.0f} % of "
        "training's time; data workers would share the cores of their network: --workers 0."
    )


def _told(speeds: dict[str, float] | dict[int, float]) -> str:
    return ", ".join(f"{name} {value:.0f}" for name, value in speeds.items())
