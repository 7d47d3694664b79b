"""Train several folds on one device, an epoch of each in turn, so that they share the images that are augmented."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ensemble.members.fold_job import FoldJob
from ensemble.members.plans import Plan
from ensemble.members.processes import Progress
from ensemble.members.resident import ResidentEpochs, resident_bytes
from ensemble.members.training import (
    Checkpoint,
    FoldResult,
    FoldTraining,
    Watch,
    fold_result,
    predict_held_out,
    train_and_predict,
)

OF_IMAGES, OF_NETWORKS = 0.4, 0.3
"""Shares of the device's free memory that images, and networks with what trains them, may take; the rest is for what
a step computes."""

GROWS = 2.5
"""A network and its average come first; gradients and the two moments of its optimiser with the first step."""


@dataclass(frozen=True)
class Task:
    """What `train_and_predict` is told of a fold."""

    job: FoldJob
    checkpoint: Checkpoint
    plan: Plan
    held_out: np.ndarray
    views: Sequence[str]
    watch: Watch | None


def train_together(tasks: Sequence[Task], device: torch.device, workers: int, bar: Progress) -> list[FoldResult]:
    """Do for each task what `train_and_predict` does, on a CPU to the same bytes.

    Where the images do not fit into the device's memory whole, the tasks are done one after the other; where not all
    networks do, in groups.

    Parameters
    ----------
    tasks : sequence of Task
        Of one seed and the same images.
    workers : int
        Processes that augment, for all tasks together.
    bar : Progress
        Advanced by one an image trained on, and one an image and view predicted.

    Raises
    ------
    TheraError
        As `train_and_predict`.
    """
    room = _free(device)
    held = {task.job.config.augmentation: resident_bytes(task.job) for task in tasks}
    if len(tasks) == 1 or sum(held.values()) > OF_IMAGES * room:
        return [
            train_and_predict(
                task.job, task.checkpoint, task.plan, device, workers, task.held_out, task.views, task.watch, bar
            )
            for task in tasks
        ]
    results: list[FoldResult] = []
    while len(results) < len(tasks):
        results += _group(tasks[len(results) :], OF_NETWORKS * room, device, workers, bar)
    return results


def _group(tasks: Sequence[Task], room: float, device: torch.device, workers: int, bar: Progress) -> list[FoldResult]:
    """Train as many of the first tasks as there is room for, one at least, and return what they give."""
    before, trainings = _allocated(device), []
    for task in tasks:
        trainings.append(FoldTraining(task.job, task.checkpoint, task.plan, device, task.watch))
        bar.skip(trainings[-1].images_seen)
        if GROWS * (_allocated(device) - before) > room:
            break
    unfinished = [training for training in trainings if training.epoch < training.job.config.epochs]
    seconds = dict.fromkeys(map(id, trainings), 0.0)
    images = {}
    for wanted in {training.job.config.augmentation for training in unfinished}:
        alike = [training for training in unfinished if training.job.config.augmentation == wanted]
        images[wanted] = ResidentEpochs(
            [training.job for training in alike], [training.epoch for training in alike], workers, device
        )
    for epoch in range(max((training.job.config.epochs for training in unfinished), default=0)):
        for training in unfinished:
            if training.is_due(epoch):
                started = time.monotonic()
                training.run_epoch(images[training.job.config.augmentation].batches(training.job, epoch), bar)
                seconds[id(training)] += time.monotonic() - started
    images.clear()
    results = []
    for task, training in zip(tasks, trainings, strict=False):
        started, network = time.monotonic(), training.average
        logits = predict_held_out(task.job, network, task.plan, device, task.held_out, task.views, bar)
        spent = seconds[id(training)] + time.monotonic() - started
        results.append(fold_result(network, training.history, logits, spent, task.checkpoint))
    return results


def _free(device: torch.device) -> float:
    """Return the bytes that are free on a device; of a CPU's memory, all that one can ask for."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")


def _allocated(device: torch.device) -> int:
    """Return the bytes that tensors have on a device; nothing is counted on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
