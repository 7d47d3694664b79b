"""Measure with a few updates how fast the folds of a member train on this machine, to plan a time budget."""

from __future__ import annotations

import time

import numpy as np
import torch

from ensemble.bench.throughput import QuietBar, TrainingOnCpu, TrainingOnGpu, classes_of
from ensemble.config import MemberConfig
from ensemble.members.devices import synchronize
from ensemble.members.inference import default_workers
from ensemble.members.memory import release_cache
from ensemble.members.parallel import Resources
from ensemble.members.plans import Plan
from ensemble.members.probe import choose_plan
from ensemble.members.processes import PROCESS_PAYS, MappedPixels, at_once, shares
from ensemble.progress import progress

UPDATES = 4
"""The number of updates of each fold in a round; they take about a second on a CPU core."""

ROUNDS = 3
"""The number of timed rounds; the median is used. An earlier round starts the processes and builds the networks."""

ROWS_ON_GPU = 4096
"""The number of images that the folds on a GPU share in a round; there a round is an epoch."""


def training_speed(
    config: MemberConfig, pixels: np.ndarray, labels: np.ndarray, folds: int, resources: Resources
) -> tuple[Plan, float, float]:
    """Measure the training of a member's folds, in parallel as `thera train-member` trains them.

    Parameters
    ----------
    config : MemberConfig
    pixels : uint8 array (n, H, W, 3)
    labels : int8 array (n,)
    folds : int
    resources : Resources

    Returns
    -------
    Plan
        The plan that the probe chooses.
    float
        Seconds in which all folds together train on a row each.
    float
        Seconds before the first update.
    """
    device, mapped = resources.device, MappedPixels(pixels)
    # Pretrained weights do not change the speed, and loading them may need a download.
    config = config.model_copy(update={"pretrained": False})
    batches = config.epochs * max(1, len(labels) * (folds - 1) // folds // config.batch_size)
    side_by_side = at_once(folds, max(batches, PROCESS_PAYS), device, resources.jobs, mapped.copied_bytes)
    cores = len(shares(folds, side_by_side)[0])
    plan = choose_plan(config, device, pixels.shape[1], "train", batches, cores, classes_of(labels))
    if device.type != "cpu":
        workers = resources.workers or default_workers(device)
        n = min(ROWS_ON_GPU, len(labels))
        seconds, start, images = _timed(TrainingOnGpu(config, plan, mapped, labels[:n], folds, workers, device), device)
        release_cache(device)
        on_one_gpu = -(-folds // max(1, len(resources.gpus)))
        return plan, seconds / images * on_one_gpu, start
    full, last = divmod(folds, side_by_side)
    per_row, start, rows = 0.0, 0.0, UPDATES * min(config.batch_size, len(labels))
    for group, times in {side_by_side: full, last: 1}.items():  # the last folds have larger shares of the cores
        if group:
            seconds, first, _ = _timed(TrainingOnCpu(config, plan, mapped, labels, rows * group, group), device)
            per_row, start = per_row + times * seconds / rows, start + first
    return plan, per_row, start


def _timed(work: TrainingOnCpu | TrainingOnGpu, device: torch.device) -> tuple[float, float, int]:
    """Return the median seconds of a round, how much longer the first one took, and the images of a round."""
    seconds: list[float] = []
    with progress(ROUNDS + 1, "measure training", "rounds") as bar:
        try:
            for _ in range(ROUNDS + 1):
                started = time.perf_counter()
                images = work.run(QuietBar(bar))
                synchronize(device)
                seconds.append(time.perf_counter() - started)
                bar.advance()
        finally:
            work.close()
    steady = float(np.median(seconds[1:]))
    return steady, max(0.0, seconds[0] - steady), images
