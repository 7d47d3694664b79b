"""How many folds fit side by side into the memory of a GPU, by a measurement of one update of each network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ensemble.config import VIEWS, AugmentConfig
from ensemble.errors import OutOfDeviceMemory
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import BATCH, predict_logits
from ensemble.members.learner import begin
from ensemble.members.memory import memory_errors, release_cache, release_frames
from ensemble.members.plans import Plan
from ensemble.members.resident import resident_bytes
from ensemble.members.sampling import order
from ensemble.members.watch import Silent

USABLE = 0.9
"""The share of a device's free memory that is planned for. The rest is left for what the allocator cannot use because
its blocks have other sizes, and for what libraries allocate by themselves; both are estimates."""


@dataclass(frozen=True)
class TrainingMemory:
    """The bytes of device memory of a training.

    Attributes
    ----------
    kept : int
        Between two updates: weights, their average, gradients and the moments of the optimiser.
    passing : int
        In addition during an update or a prediction, mostly activations. Folds that are trained in turn share it.
    """

    kept: int
    passing: int


def group_sizes(jobs: Sequence[tuple[FoldJob, Plan]], device: torch.device, room: float) -> list[int] | None:
    """Return how many of the jobs to train side by side: so many first, so many next, and so on.

    Their images stay on the device, too. An update and a prediction of each network are computed to measure what they
    need; on a CPU, where all fit, nothing is measured.

    Parameters
    ----------
    jobs : sequence of (FoldJob, Plan)
    device : torch.device
    room : float
        The bytes that they may use together.

    Returns
    -------
    list of int or None
        None if the images do not fit beside one network, or on MPS; then each fold is trained alone, with its own
        batches.
    """
    if device.type == "mps":  # torch does not measure the peak of its memory
        return None
    if math.isinf(room):
        return [len(jobs)]
    measured: dict[tuple[str, Plan], TrainingMemory] = {}
    needs = []
    for job, plan in jobs:
        key = job.config.model_copy(update={"name": None}).model_dump_json(), plan
        if key not in measured:
            try:
                measured[key] = measure(job, plan, device)
            except OutOfDeviceMemory as error:
                release_frames(error)
                return None
        needs.append(measured[key])
    alike: dict[AugmentConfig, list[FoldJob]] = {}
    for job, _ in jobs:
        alike.setdefault(job.config.augmentation, []).append(job)
    images = sum(resident_bytes(of_augmentation) for of_augmentation in alike.values())
    left = USABLE * room - images - max(need.passing for need in needs)
    if max(need.kept for need in needs) > left:
        return None
    sizes, used = [0], 0
    for need in needs:
        if used + need.kept > left:
            sizes, used = [*sizes, 0], 0
        sizes[-1] += 1
        used += need.kept
    return sizes


MOST_UPDATES = 20
"""The updates after which a graph is taken as it is. One is ready after seven, unless updates in fp16 overflow."""


def measure(job: FoldJob, plan: Plan, device: torch.device) -> TrainingMemory:
    """Return the memory of a training on a GPU, from one update on a batch of the job and one batch of prediction.

    Where updates are a CUDA graph, there are as many as it needs to be captured, checked and replayed. The memory of
    its activations stays reserved, for the graphs of all folds together, beside that of a prediction.

    Raises
    ------
    OutOfDeviceMemory
        The device has too little memory for it.
    """
    release_cache(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with memory_errors(job):
        learner, rows = begin(job, plan, device, pretrained=False), order(job, 0)[0]
        learner.network.train()
        batch = torch.from_numpy(job.pixels[rows]), torch.from_numpy(job.learned[rows].astype(np.float32))
        for number in range(MOST_UPDATES):
            settled = learner.graphed is None or learner.graphed.is_ready or bool(learner.graphed.refusal)
            learner.update(number, *batch, job.weights_of(rows))
            if settled:
                break
        kept = torch.cuda.memory_allocated(device) - before
        average, views = learner.ema.module.eval(), VIEWS[:1]
        predict_logits(average, job.pixels, job.rows[:BATCH], views, plan.precision, device, Silent())
        peak, of_graph = torch.cuda.max_memory_allocated(device) - before, 0
        if learner.graphed is not None and learner.graphed.is_ready:
            release_cache(device)
            of_graph = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return TrainingMemory(kept, peak - kept + of_graph)


def free_bytes(device: torch.device) -> float:
    """Return the free bytes of a device, including those that torch has cached; infinity if it is no CUDA device."""
    if device.type != "cuda":
        return math.inf
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + cached)
