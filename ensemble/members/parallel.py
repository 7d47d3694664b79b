"""Train and predict folds in parallel: on the cores of a CPU, on one GPU, or in one or more processes on each GPU.

On a CPU each fold is trained in its own process, which is pinned to its share of the cores (`train_tasks`). On a GPU
one process trains all folds, an epoch of each in turn, so that they share the augmented images (`train_together`). On
several GPUs one process on each trains a part of the folds. With `--jobs` so many processes do, on the GPUs in turn.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ensemble.config import AugmentConfig, ComputeConfig
from ensemble.errors import OutOfDeviceMemory, Stopped, TheraError
from ensemble.members.budget import free_bytes, group_sizes
from ensemble.members.devices import choose_devices
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import default_workers
from ensemble.members.memory import memory_errors, release_frames
from ensemble.members.plans import Plan
from ensemble.members.processes import Pool, Progress, Workers, at_once, shares
from ensemble.members.resident import ResidentEpochs
from ensemble.members.saving import Checkpoint
from ensemble.members.training import (
    FoldResult,
    FoldTraining,
    fold_result,
    predict_held_out,
    train_and_predict,
)
from ensemble.members.watch import Watch
from ensemble.progress import Bar, Say, silent


@dataclass(frozen=True)
class Resources:
    """The devices, and the numbers of processes, that a computation may use.

    Attributes
    ----------
    device : torch.device
        What a process computes on. Of several GPUs, it is the current device of the process ("cuda", without index).
    workers : int
        Processes that augment images in advance, for each process that trains on a GPU; 0 to augment in the training
        process.
    jobs : int or None
        Networks that are computed in parallel; None for the default, which depends on the device and the work.
    save_every : float
        Seconds within an epoch after which the state of a training is saved.
    gpus : tuple of torch.device
        The CUDA devices, with their indices, that processes of this machine are distributed to; else empty.
    pool : callable
        Returns the pool that computes; it is used as a context. By default, the processes of this machine.
    shares_a_gpu : bool
        Whether all folds on a GPU are one job that shares the augmented images, or each fold is a job of its own.
    """

    device: torch.device
    workers: int
    jobs: int | None
    save_every: float = math.inf
    gpus: tuple[torch.device, ...] = ()
    pool: Callable[[], Pool] = Workers
    shares_a_gpu: bool = True

    @classmethod
    def of(cls, compute: ComputeConfig, say: Say = silent) -> Resources:
        """Return the resources that a config names, on this machine; `say` is as in `choose_devices`.

        Raises
        ------
        ConfigError
            There is no such device.
        """
        devices = choose_devices(compute.device, say)
        device = devices[0] if len(devices) == 1 else torch.device("cuda")
        workers = default_workers(device, len(devices)) if compute.workers is None else compute.workers
        gpus = devices if device.type == "cuda" else ()
        return cls(device, workers, compute.jobs, compute.save_every, gpus, functools.partial(Workers, gpus))

    @property
    def processes_on_gpus(self) -> int:
        """The number of processes that train on GPUs, where there are enough folds."""
        return self.jobs or max(1, len(self.gpus))


@dataclass(frozen=True)
class Task:
    """One fold to train and predict: the arguments of `train_and_predict` except the device."""

    job: FoldJob
    checkpoint: Checkpoint
    plan: Plan
    held_out: np.ndarray
    views: Sequence[str]
    watch: Watch | None


def train_together(
    tasks: Sequence[Task], device: torch.device, workers: int, share: float, bar: Progress
) -> list[FoldResult | TheraError]:
    """Train and predict each task as `train_and_predict` does; on a CPU the results have the same bytes.

    If the images of an epoch do not fit into the device's memory beside a network, the folds are trained one after the
    other, each with its own augmented images. If not all networks fit, as many as fit are trained together, then the
    next ones. What a network needs is measured; see `budget.group_sizes`.

    Parameters
    ----------
    tasks : sequence of Task
        They have the same seed and the same images.
    device : torch.device
    workers : int
        Processes that augment. They are divided among the different augmentations; each has at least one.
    share : float
        The share of the device's free memory that these tasks may use.
    bar : Progress
        Advanced by one for each image that is trained on, and for each predicted image and view.

    Returns
    -------
    list of FoldResult or TheraError
        The result of each task. One that fails has its error here and does not stop the others. One that exhausts the
        memory of the GPU is first tried again alone, from its last saved state on, when the others are finished.

    Raises
    ------
    TheraError
        As `train_and_predict`, if there is only one task. Exhausted memory of a GPU is returned in any case.
    """
    if len(tasks) == 1:
        try:
            return [_alone(tasks[0], device, workers, bar)]
        except OutOfDeviceMemory as error:  # returned, so that folds in other processes go on
            return [_noted(error, bar)]
    sizes = group_sizes([(task.job, task.plan) for task in tasks], device, share * free_bytes(device))
    if sizes is None:
        return [_attempted(task, device, workers, bar) for task in tasks]
    results: list[FoldResult | TheraError] = []
    for end in np.cumsum(sizes):
        while len(results) < end:
            results += _group(tasks[len(results) : end], device, workers, bar)
    for index, (task, result) in enumerate(zip(tasks, results, strict=True)):
        if isinstance(result, OutOfDeviceMemory):
            bar.say(f"note: member {task.job.config.name} fold {task.job.fold} is tried again alone")
            results[index] = _attempted(task, device, workers, bar)
    return results


def _attempted(task: Task, device: torch.device, workers: int, bar: Progress) -> FoldResult | TheraError:
    """Train a task alone, from its last saved state on; an error is returned."""
    try:
        return _alone(task, device, workers, bar)
    except TheraError as error:
        return _noted(error, bar)


def _alone(task: Task, device: torch.device, workers: int, bar: Progress) -> FoldResult:
    arguments = (task.job, task.checkpoint, task.plan, device, workers, task.held_out, task.views, task.watch)
    return train_and_predict(*arguments, bar)


def _noted(error: TheraError, bar: Progress) -> TheraError:
    """Return an error that stops one task; a signal stops them all.

    The traceback would keep the images of an epoch in memory, by the variables of its frames, while the others train.
    """
    if isinstance(error, Stopped):
        raise error
    bar.note(f"failed: {error}")
    release_frames(error)
    return error


def _group(tasks: Sequence[Task], device: torch.device, workers: int, bar: Progress) -> list[FoldResult | TheraError]:
    """Train tasks side by side, or the first ones if the memory does not suffice for the next network."""
    trainings: list[FoldTraining] = []
    for task in tasks:
        try:
            with memory_errors(task.job):
                training = FoldTraining(task.job, task.checkpoint, task.plan, device, task.watch)
        except OutOfDeviceMemory as error:
            if not trainings:
                return [_noted(error, bar)]
            break
        trainings.append(training)
        training.resume(bar)
    failed: dict[int, TheraError] = {}
    seconds = _train(trainings, failed, device, workers, bar)
    results: list[FoldResult | TheraError] = []
    for index, (task, training) in enumerate(zip(tasks, trainings, strict=False)):
        if index in failed:
            results.append(failed[index])
            continue
        started, network = time.monotonic(), training.average
        try:
            logits = predict_held_out(task.job, network, task.plan, device, task.held_out, task.views, bar)
            results.append(fold_result(training, logits, seconds[index] + time.monotonic() - started, task.checkpoint))
        except TheraError as error:
            results.append(_noted(error, bar))
    return results


def _train(
    trainings: Sequence[FoldTraining], failed: dict[int, TheraError], device: torch.device, workers: int, bar: Progress
) -> list[float]:
    """Train all epochs of each training, and return its seconds; an error is put into `failed` by its index."""
    seconds = [0.0] * len(trainings)
    alike: dict[AugmentConfig, list[FoldTraining]] = {}
    for training in trainings:
        if training.epoch < training.job.config.epochs:
            alike.setdefault(training.job.config.augmentation, []).append(training)
    share = max(1, workers // len(alike)) if workers and alike else 0
    images: dict[AugmentConfig, ResidentEpochs] = {}
    for augmentation, group in alike.items():
        first_epochs = [each.epoch for each in group]
        images[augmentation] = ResidentEpochs([each.job for each in group], first_epochs, share, device, bar)
    with contextlib.ExitStack() as opened:
        for resident in images.values():
            opened.callback(resident.close)
        for training in trainings:
            opened.enter_context(training)
        _train_epochs(trainings, images, seconds, failed, bar)
    return seconds


def _train_epochs(
    trainings: Sequence[FoldTraining],
    images: Mapping[AugmentConfig, ResidentEpochs],
    seconds: list[float],
    failed: dict[int, TheraError],
    bar: Progress,
) -> None:
    """Train the remaining epochs, an epoch of each training in turn, and add up the seconds of each."""
    last = max((each.job.config.epochs for each in trainings), default=0)
    for epoch in range(last):
        due = [index for index, each in enumerate(trainings) if each.is_due(epoch) and index not in failed]
        for augmentation in dict.fromkeys(trainings[index].job.config.augmentation for index in due):
            alike = [index for index in due if trainings[index].job.config.augmentation == augmentation]
            try:
                with memory_errors(trainings[alike[0]].job):
                    images[augmentation].start(epoch, bar)
            except OutOfDeviceMemory as error:
                failed |= dict.fromkeys(alike, _noted(error, bar))
        for index in due:
            started, training = time.monotonic(), trainings[index]
            resident = images[training.job.config.augmentation]
            # The loop has a second pass only if the training begins again with micro-batches.
            try:
                while index not in failed and training.is_due(epoch):
                    training.run_epoch(resident.batches(training.job, epoch, training.update), bar)
            except TheraError as error:
                failed[index] = _noted(error, bar)
            seconds[index] += time.monotonic() - started
    for index, failure in failed.items():
        if isinstance(failure, OutOfDeviceMemory):
            bar.skip(-trainings[index].images_seen)  # they are counted again when it is tried alone


def train_tasks(
    tasks: Sequence[Task], cores: Sequence[list[int]], resources: Resources, bar: Bar
) -> Iterator[tuple[int, FoldResult]]:
    """Train tasks in parallel on a CPU's cores or together on a GPU; yield (index, result) as each finishes.

    Parameters
    ----------
    tasks : sequence of Task
    cores : sequence of lists of int
        The cores of each task, from `cores_of_jobs`.
    resources : Resources
    bar : Bar

    Raises
    ------
    TheraError
        The error of a task. If tasks are trained together, it is raised once the others have been yielded.
    """
    groups = _groups(cores, resources)
    of_one_gpu = -(-len(groups) // max(1, len(resources.gpus))) if resources.shares_a_gpu else resources.jobs or 1
    share = 1 / of_one_gpu if groups else 1.0  # of the memory of one device
    calls = [([tasks[index] for index in group], resources.device, resources.workers, share) for group, _ in groups]
    failed = []
    with resources.pool() as pool:
        for group, results in pool.run(train_together, calls, [of_group for _, of_group in groups], bar):
            for index, result in zip(groups[group][0], results, strict=True):
                if isinstance(result, TheraError):
                    failed.append(result)
                else:
                    yield index, result
    if failed:
        raise failed[0]


def _groups(cores: Sequence[list[int]], resources: Resources) -> list[tuple[list[int], list[int]]]:
    """Return the groups of tasks that one process trains, as (indices, cores).

    On a CPU each task is a group with its own cores. There is one group for each GPU, or one for each of `--jobs`,
    unless each fold is a job of its own.
    """
    if resources.device.type == "cpu" or not resources.shares_a_gpu:
        return [([index], of_task) for index, of_task in enumerate(cores)]
    n = at_once(len(cores), 0, resources.device, resources.processes_on_gpus)
    return [(list(range(first, len(cores), n)), of_group) for first, of_group in enumerate(shares(n, n)) if cores]


def cores_of_jobs(jobs: Sequence[FoldJob], resources: Resources) -> list[list[int]]:
    """Return the cores of each job: all cores if the jobs are on average too short for separate processes."""
    batches = sum(job.images // job.batch_size for job in jobs) // len(jobs)
    copied_bytes = jobs[0].mapped.copied_bytes  # all jobs have the same images
    requested = resources.jobs if resources.device.type == "cpu" else resources.processes_on_gpus
    return resources.pool().cores(len(jobs), batches, resources.device, requested, copied_bytes)
