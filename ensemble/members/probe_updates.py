"""Whole updates in a probe on a GPU: how long they take, and whether a CUDA graph trains as separate launches do.

On a GPU the plans of a training differ in how kernels are launched, and the optimiser is a large part of the launches.
Therefore whole updates are timed there, not the gradients alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch

from ensemble.config import MemberConfig
from ensemble.errors import OUT_OF_DEVICE_MEMORY, first_line, is_out_of_device_memory
from ensemble.members.devices import synchronize
from ensemble.members.fold_job import FoldJob
from ensemble.members.graphed import CHECKED_UPDATES, FIRST_UPDATES
from ensemble.members.learner import begin
from ensemble.members.memory import release_cache, release_frames
from ensemble.members.plans import Plan
from ensemble.members.probe_timing import time_in_turn
from ensemble.members.processes import MappedPixels
from ensemble.progress import Bar

FIRST_STEPS = 3
"""Steps of a compiled network that are not timed: the first compiles it, the next ones record a GPU's graphs."""

BATCHES = 3
"""The number of different batches, which the updates take in turn."""

EPOCHS = 1000
"""The epochs of the schedule, so that no probe reaches its end, where the rate is 0."""

REPLAYED_UPDATES = 5
"""The compared updates after the graph is checked."""

MOST_UPDATES = 20
"""The updates within which a graph must be ready. It needs more than the usual number only where updates in fp16
overflow."""

APART = 0.1
"""The largest difference between the weights that are trained with a graph and without it, relative to their change, in
addition to `ROUNDING_FACTOR` times that of two trainings without a graph. An estimate, because no GPU was available."""

ROUNDING_FACTOR = 1.5
"""Multiple of the effect of rounding that is allowed in addition to `APART`."""

LARGEST_ROUNDING = 0.2
"""The largest difference of two trainings without a graph that is counted as rounding."""

LOSSES_APART = 0.02
"""The largest relative difference between the losses with a graph and without it."""


class Updates:
    """A network in training on random images; each step is one update.

    Parameters
    ----------
    config : MemberConfig
    image_size : int
        Side of the images in pixels.
    plan : Plan
    batch : int
        Images in a batch.
    device : torch.device
    classes : int

    Attributes
    ----------
    number : int
        That of the next update.
    """

    def __init__(
        self, config: MemberConfig, image_size: int, plan: Plan, batch: int, device: torch.device, classes: int = 2
    ) -> None:
        n, changed = BATCHES * batch, {"pretrained": False, "weights": None, "batch_size": batch, "epochs": EPOCHS}
        pixels = np.random.default_rng(0).integers(0, 256, (n, image_size, image_size, 3), np.uint8)
        rows = np.arange(n)
        labels = (rows % 8 > 0 if classes == 2 else rows % classes).astype(np.int8)
        ids = rows.astype(str)
        job = FoldJob(config.model_copy(update=changed), MappedPixels(pixels), labels, ids, rows, 0, 0, classes=classes)
        self.learner = begin(job, plan, device)
        self.learner.network.train()
        self._pixels = torch.from_numpy(pixels.reshape(BATCHES, batch, *pixels.shape[1:])).to(device)
        self._labels = torch.from_numpy(labels.astype(np.float32).reshape(BATCHES, batch)).to(device)
        self.number = 0

    def step(self) -> torch.Tensor:
        """Make the next update; return its loss, on the device."""
        torch.manual_seed(self.number)  # for dropout
        part = self.number % BATCHES
        loss = self.learner.update(self.number, self._pixels[part], self._labels[part])
        self.number += 1
        return loss

    @property
    def fault(self) -> str:
        """Why an update is not one replay of a checked graph; empty where it is, or where no graph is requested."""
        graph = self.learner.graphed
        if graph is None or graph.is_ready:
            return ""
        return graph.refusal or f"{self.number} updates did not suffice to check it"

    def weights(self) -> torch.Tensor:
        """Return the parameters in one vector, on the CPU."""
        return torch.cat([each.detach().flatten().float().cpu() for each in self.learner.network.parameters()])


def timed_updates(
    plans: Sequence[Plan],
    config: MemberConfig,
    image_size: int,
    batch: int,
    device: torch.device,
    classes: int,
    bar: Bar,
) -> tuple[dict[Plan, list[float]], dict[str, float], dict[str, str]]:
    """Time whole updates of each plan, one plan after the other, so that none holds memory that another needs.

    Parameters
    ----------
    plans : sequence of Plan
    config, image_size, batch, device, classes
        As in `Updates`.
    bar : Bar
        Advanced by one for each timed update.

    Returns
    -------
    seconds : dict
        By plan, those of its timed updates; without plans that failed.
    setup : dict
        By the text of a plan with a graph, the seconds until the graph was ready.
    failed : dict
        By the text of a plan with a graph or with a compiled network, why it is not to be used.

    Raises
    ------
    Exception
        The memory of the device does not suffice for updates without a graph.
    """
    seconds, setup, failed = dict[Plan, list[float]](), dict[str, float](), dict[str, str]()
    for plan in plans:
        release_cache(device)
        updates, took, fault = _ready_updates(config, image_size, plan, batch, device, classes)
        if updates is not None and not fault:
            seconds |= time_in_turn({plan: updates}, bar)
            fault = updates.fault  # a graph may also fail while it is timed
        del updates
        if plan.convolutions == "graphed":
            setup[str(plan)] = took
        if fault:
            failed[str(plan)] = fault
            seconds.pop(plan, None)
    return seconds, setup, failed


def _ready_updates(
    config: MemberConfig, image_size: int, plan: Plan, batch: int, device: torch.device, classes: int
) -> tuple[Updates | None, float, str]:
    """Return updates that are ready to be timed, the seconds that a graph took, and why the plan is not to be used."""
    given = config, image_size, plan, batch, device, classes
    if plan.convolutions == "graphed":
        return graphed_updates(*given)
    try:
        return warmed_up(Updates(*given)), 0.0, ""
    except Exception as error:  # a compiler may raise anything
        if plan.convolutions != "compiled" or is_out_of_device_memory(error):
            raise
        release_frames(error)
        return None, 0.0, first_line(error)


def graphed_updates(
    config: MemberConfig, image_size: int, plan: Plan, batch: int, device: torch.device, classes: int = 2
) -> tuple[Updates, float, str]:
    """Return updates by a graph that is ready, the seconds that this took, and why it is not to be used.

    The graph is first checked update by update, as in every training (`graphed.py`). Then a training with it is
    compared with two trainings without a graph, which begin with the same weights and take the same batches.

    Parameters
    ----------
    config, image_size, batch, device, classes
        As in `Updates`.
    plan : Plan
        Its updates are graphed.

    Returns
    -------
    Updates
    float
    str
        Empty if the graph may be used.

    Raises
    ------
    Exception
        The memory of the device does not suffice for updates without a graph.
    """
    given = batch, device, classes
    plain = [_trained(Updates(config, image_size, Plan(plan.precision), *given)) for _ in range(2)]
    updates, seconds, fault = Updates(config, image_size, plan, *given), 0.0, ""
    try:
        begun = updates.weights()
        started = time.perf_counter()
        losses, weights = _trained(updates)
        synchronize(device)
        seconds = time.perf_counter() - started
        fault = warmed_up(updates).fault or _difference((losses, weights), plain, begun)
    except Exception as error:  # CUDA may raise anything; what fails without a graph too has failed above
        fault = OUT_OF_DEVICE_MEMORY if is_out_of_device_memory(error) else first_line(error)
    return updates, seconds, fault


def warmed_up(updates: Updates) -> Updates:
    """Return updates after those that are not timed: the first ones compile a network, or capture and check a graph."""
    for number in range(MOST_UPDATES):
        if number >= FIRST_STEPS and not updates.fault:
            break
        updates.step()
    return updates


def _trained(updates: Updates) -> tuple[list[float], torch.Tensor]:
    """Make as many updates as a graph needs to be ready, and some more; return their losses and the weights."""
    losses = [updates.step() for _ in range(FIRST_UPDATES + 1 + CHECKED_UPDATES + REPLAYED_UPDATES)]
    return torch.stack(losses).tolist(), updates.weights()


def _difference(
    graphed: tuple[list[float], torch.Tensor], plain: list[tuple[list[float], torch.Tensor]], begun: torch.Tensor
) -> str:
    """Return how a training with a graph differs from trainings without it, beyond rounding; an empty text if not."""
    (losses, weights), (expected, reference), (_, again) = graphed, *plain
    for number, (one, other) in enumerate(zip(losses, expected, strict=True), 1):
        both = math.isfinite(one) or math.isfinite(other)
        if both and not abs(one - other) <= LOSSES_APART * max(abs(other), 0.05):
            return f"a graph of its updates trains otherwise (loss {one:.4g} instead of {other:.4g} in update {number})"
    change = max(float((reference - begun).norm()), 1e-30)
    apart, rounding = (float((each - reference).norm()) / change for each in (weights, again))
    if not apart <= APART + ROUNDING_FACTOR * min(rounding, LARGEST_ROUNDING):
        return f"a graph of its updates trains otherwise (weights differ by {apart:.2g} of their change)"
    return ""
