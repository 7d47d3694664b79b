"""Train several folds on one device, an epoch of each in turn, so that they share the images that are augmented."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ensemble.config import AugmentConfig, ComputeConfig
from ensemble.errors import TheraError
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import choose_device, default_workers
from ensemble.members.plans import Plan
from ensemble.members.processes import Progress, Workers, at_once, shares
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
from ensemble.progress import Bar

OF_IMAGES, OF_NETWORKS = 0.4, 0.3
"""Shares of the device's free memory that images, and networks with what trains them, may take; the rest is for what
a step computes."""

GROWS = 2.5
"""A network and its average come first; gradients and the two moments of its optimiser with the first step."""


@dataclass(frozen=True)
class Resources:
    """The device to compute on, its data workers, and how many networks are computed at once (None: as many as pay)."""

    device: torch.device
    workers: int
    jobs: int | None

    @classmethod
    def of(cls, compute: ComputeConfig) -> Resources:
        """Return the resources that a config means on this machine.

        Raises
        ------
        ConfigError
            There is no such device.
        """
        device = choose_device(compute.device)
        return cls(device, default_workers(device) if compute.workers is None else compute.workers, compute.jobs)


@dataclass(frozen=True)
class Task:
    """What `train_and_predict` is told of a fold."""

    job: FoldJob
    checkpoint: Checkpoint
    plan: Plan
    held_out: np.ndarray
    views: Sequence[str]
    watch: Watch | None


def train_together(
    tasks: Sequence[Task], device: torch.device, workers: int, share: float, bar: Progress
) -> list[FoldResult | TheraError]:
    """Do for each task what `train_and_predict` does, on a CPU to the same bytes.

    Where the images do not fit into the device's memory whole, each fold augments its own, one after the other. Where
    not all networks do, as many are trained together as do, then the next ones.

    Parameters
    ----------
    tasks : sequence of Task
        Of one seed and the same images.
    workers : int
        Processes that augment; each augmentation has a share of them, one at least.
    share : float
        Of the device's free memory, that is for these tasks.
    bar : Progress
        Advanced by one an image trained on, and one an image and view predicted.

    Returns
    -------
    list
        What each task gives; of several, the error of one that failed, which does not stop the others.

    Raises
    ------
    TheraError
        As `train_and_predict`, where the task is the only one.
    """
    room = share * _free(device)
    if len(tasks) == 1:
        return [_alone(tasks[0], device, workers, bar)]
    alike: dict[AugmentConfig, list[FoldJob]] = {}
    for task in tasks:
        alike.setdefault(task.job.config.augmentation, []).append(task.job)
    results: list[FoldResult | TheraError] = []
    if sum(resident_bytes(jobs) for jobs in alike.values()) > OF_IMAGES * room:
        for task in tasks:
            try:
                results.append(_alone(task, device, workers, bar))
            except TheraError as error:
                results.append(_noted(error, bar))
        return results
    while len(results) < len(tasks):
        results += _group(tasks[len(results) :], OF_NETWORKS * room, device, workers, bar)
    return results


def _alone(task: Task, device: torch.device, workers: int, bar: Progress) -> FoldResult:
    given = (task.job, task.checkpoint, task.plan, device, workers, task.held_out, task.views, task.watch)
    return train_and_predict(*given, bar)


def _noted(error: TheraError, bar: Progress) -> TheraError:
    bar.note(f"failed: {error}")
    return error


def _group(
    tasks: Sequence[Task], room: float, device: torch.device, workers: int, bar: Progress
) -> list[FoldResult | TheraError]:
    """Train as many of the first tasks as there is room for, and what one more takes; return what they give."""
    before, trainings = _allocated(device), []
    for task in tasks:
        trainings.append(FoldTraining(task.job, task.checkpoint, task.plan, device, task.watch))
        bar.skip(trainings[-1].images_seen)
        if GROWS * (_allocated(device) - before) > room:
            break
    failed: dict[int, TheraError] = {}
    seconds = _train(trainings, failed, device, workers, bar)
    results: list[FoldResult | TheraError] = []
    for index, (task, training) in enumerate(zip(tasks, trainings, strict=False)):
        started, network = time.monotonic(), training.average
        try:
            if index in failed:
                raise failed[index]
            logits = predict_held_out(task.job, network, task.plan, device, task.held_out, task.views, bar)
            spent = seconds[index] + time.monotonic() - started
            results.append(fold_result(network, training.history, logits, spent, task.checkpoint))
        except TheraError as error:
            results.append(_noted(error, bar))
    return results


def _train(
    trainings: Sequence[FoldTraining], failed: dict[int, TheraError], device: torch.device, workers: int, bar: Progress
) -> list[float]:
    """Train to the end of every budget, and return the seconds of each; one that fails is put into `failed`."""
    seconds = [0.0] * len(trainings)
    alike: dict[AugmentConfig, list[FoldTraining]] = {}
    for training in trainings:
        if training.epoch < training.job.config.epochs:
            alike.setdefault(training.job.config.augmentation, []).append(training)
    each = max(1, workers // len(alike)) if workers and alike else 0
    images = {
        wanted: ResidentEpochs([one.job for one in own], [one.epoch for one in own], each, device)
        for wanted, own in alike.items()
    }
    for epoch in range(max((one.job.config.epochs for own in alike.values() for one in own), default=0)):
        due = [index for index, one in enumerate(trainings) if one.is_due(epoch) and index not in failed]
        for wanted in dict.fromkeys(trainings[index].job.config.augmentation for index in due):
            images[wanted].come_to(epoch, bar)
        for index in due:
            started, training = time.monotonic(), trainings[index]
            try:
                training.run_epoch(images[training.job.config.augmentation].batches(training.job, epoch), bar)
            except TheraError as error:
                failed[index] = _noted(error, bar)
            seconds[index] += time.monotonic() - started
    return seconds


def _free(device: torch.device) -> float:
    """Return the bytes that are free on a device, or kept by torch for later; nothing limits a CPU here."""
    if device.type != "cuda":
        return math.inf
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + kept)


def _allocated(device: torch.device) -> int:
    """Return the bytes that tensors have on a device; nothing is counted on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def train_tasks(
    tasks: Sequence[Task], cores: Sequence[list[int]], resources: Resources, bar: Bar
) -> Iterator[tuple[int, FoldResult]]:
    """Yield the index and the result of each task as they come: side by side on a CPU's cores, together on a GPU.

    Raises
    ------
    TheraError
        That of a task; where they are trained together, once the others have been yielded.
    """

    groups = _groups(cores, resources)
    share = 1 / len(groups) if groups else 1.0
    calls = [([tasks[index] for index in group], resources.device, resources.workers, share) for group, _ in groups]
    failed = []
    with Workers() as processes:
        for which, results in processes.run(train_together, calls, [own for _, own in groups], bar):
            for index, result in zip(groups[which][0], results, strict=True):
                if isinstance(result, TheraError):
                    failed.append(result)
                else:
                    yield index, result
    if failed:
        raise failed[0]


def _groups(cores: Sequence[list[int]], resources: Resources) -> list[tuple[list[int], list[int]]]:
    """Return which tasks a process trains in turn, and its cores: on a CPU each task by itself, with its own.

    On a GPU one process trains all, or each of `--jobs` processes a share of them.
    """

    if resources.device.type == "cpu":
        return [([index], own) for index, own in enumerate(cores)]
    n = at_once(len(cores), 0, resources.device, resources.jobs)
    return [(list(range(first, len(cores), n)), own) for first, own in enumerate(shares(n, n)) if cores]


def cores_of_jobs(jobs: Sequence[FoldJob], resources: Resources) -> list[list[int]]:
    """Return the cores of each job; where they are mostly too short for a process of their own, all for each."""

    batches = sum(job.images // job.batch_size for job in jobs) // len(jobs)
    return shares(len(jobs), at_once(len(jobs), batches, resources.device, resources.jobs))
