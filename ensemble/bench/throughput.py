"""The product's own training, prediction and loading, a fixed piece of work a turn; and the plan that it is done by."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from ensemble.bench.roofline import Ceilings, flops_per_image, measure_ceilings
from ensemble.config import VIEWS, MemberConfig
from ensemble.machine import available_cores
from ensemble.members.backbones import build
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import default_workers, predict_logits
from ensemble.members.plans import Phase, Plan, possible_plans, prepare
from ensemble.members.probe import Probe, probe
from ensemble.members.processes import MappedPixels, Workers, shares
from ensemble.members.resident import ResidentEpochs
from ensemble.members.sampling import batches_of
from ensemble.members.training import Learner
from ensemble.progress import Bar

CPU = torch.device("cpu")

_warm: dict[Any, Any] = {}
"""Networks that this process keeps between two turns, so that only the first turn builds them."""


class TrainingOnCpu:
    """The training loop of `thera train-member`: one fold job a share of the cores, each in a pinned process.

    Parameters
    ----------
    config : MemberConfig
    plan : Plan
    mapped : MappedPixels
        uint8 array (n, H, W, 3).
    labels : int8 array (n,)
    images : int
        That all jobs together train on in a turn.
    at_once : int
        Jobs side by side.
    """

    def __init__(
        self, config: MemberConfig, plan: Plan, mapped: MappedPixels, labels: np.ndarray, images: int, at_once: int
    ) -> None:
        self._cores, self._processes = shares(at_once, at_once), Workers()
        share, config = images // at_once, config.model_copy(update={"epochs": 1000})
        rows = np.resize(np.arange(len(labels)), share)
        ids = np.arange(len(labels)).astype(str)
        self._calls = [(FoldJob(config, mapped, labels, ids, rows, fold, 0), plan) for fold in range(at_once)]

    def run(self, bar: Any) -> int:
        """Train on the images of a turn, in one more epoch of each job; return how many there were."""
        return sum(images for _, images in self._processes.run(train_turn, self._calls, self._cores, bar))

    def close(self) -> None:
        self._processes.close()


class TrainingOnGpu:
    """The training loop of `thera train-member` on a GPU: all folds in this process, an epoch of each in turn.

    Parameters
    ----------
    jobs : int
        Folds that share what is augmented; each sees all images but its own share in a turn.
    workers : int
        That augment.
    """

    def __init__(
        self,
        config: MemberConfig,
        plan: Plan,
        mapped: MappedPixels,
        labels: np.ndarray,
        jobs: int,
        workers: int,
        device: torch.device,
    ) -> None:
        config, every = config.model_copy(update={"epochs": 1000}), np.arange(len(labels))
        self._jobs = [
            FoldJob(config, mapped, labels, every.astype(str), every[every % jobs != fold], fold, 0)
            for fold in range(jobs)
        ]
        self._images, self._epoch = ResidentEpochs(self._jobs, [0] * jobs, workers, device), -1
        self._learners = []
        for job in self._jobs:
            torch.manual_seed(job.fold)
            network = build(config, job.pixels.shape[1]).to(memory_format=torch.channels_last).to(device)
            self._learners.append(Learner(job, prepare(network, plan), plan, device))

    def run(self, bar: Any) -> int:
        """Train each fold for one more epoch; return how many images that were."""
        self._epoch += 1
        self._images.start(self._epoch, bar)
        for job, learner in zip(self._jobs, self._learners, strict=True):
            learner.epoch(self._epoch, self._images.batches(job, self._epoch), bar)
        return sum(job.updates_per_epoch * job.batch_size for job in self._jobs)

    def close(self) -> None:
        self._learners.clear()
        del self._images


def train_turn(job: FoldJob, plan: Plan, bar: Any) -> int:
    """Make an epoch of a job that goes on from turn to turn; return its images."""
    key = (job.config.name, job.fold, plan, len(available_cores()))
    if key not in _warm:
        torch.manual_seed(0)
        network = build(job.config, job.pixels.shape[1]).to(memory_format=torch.channels_last)
        _warm.clear()
        _warm[key] = Learner(job, prepare(network, plan), plan, CPU), batches_of(job, 0, 0, CPU), iter(range(1000))
    learner, loader, epochs = _warm[key]
    learner.epoch(next(epochs), loader, bar)
    return job.updates_per_epoch * job.batch_size


class Prediction:
    """The prediction of `thera predict`: the images in as many parts as are computed at once, each in a process.

    Parameters
    ----------
    config : MemberConfig
    weights : sequence of Path
        An .npz a fold model: read when a process is cold, as by `thera predict`, and not again.
    plan : Plan
    mapped : MappedPixels
    at_once : int
    """

    def __init__(
        self,
        config: MemberConfig,
        weights: Sequence[Path],
        plan: Plan,
        mapped: MappedPixels,
        at_once: int,
        device: torch.device = CPU,
    ) -> None:
        self._cores, self._processes = shares(at_once, at_once), Workers()
        parts = np.array_split(np.arange(len(mapped.array)), at_once)
        self._calls = [(config, list(weights), plan, mapped, part, device) for part in parts]
        self.logits = np.empty((0, len(weights), len(VIEWS)))
        """float64 array (n, fold models, views) of the last turn."""

    def run(self, bar: Any) -> int:
        """Predict all images under all views with each fold model; return how many images there are."""
        parts = dict(self._processes.run(predict_turn, self._calls, self._cores, bar))
        self.logits = np.concatenate([parts[part] for part in range(len(parts))])
        return len(self.logits)

    def close(self) -> None:
        self._processes.close()


def predict_turn(
    config: MemberConfig,
    weights: Sequence[Path],
    plan: Plan,
    mapped: MappedPixels,
    rows: np.ndarray,
    device: torch.device,
    bar: Any,
) -> np.ndarray:
    """Return the logits (r, fold models, views) of some images."""
    key = (config.name, plan, len(weights))
    if key not in _warm:
        _warm.clear()
        networks = []
        for path in weights:
            network = build(config, mapped.array.shape[1]).to(memory_format=torch.channels_last)
            with np.load(path) as state:
                network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
            networks.append(prepare(network.to(device), plan))
        _warm[key] = networks
    of_models = [predict_logits(each, mapped.array, rows, VIEWS, plan.precision, device, bar) for each in _warm[key]]
    return np.stack(of_models, axis=1)


def one_epoch(pixels: np.ndarray, batch: int, seed: int) -> int:
    """Gather all images, a shuffled batch at a time, as training does; return how many there are."""
    order = np.random.default_rng(seed).permutation(len(pixels))
    for start in range(0, len(order), batch):
        torch.from_numpy(pixels[order[start : start + batch]])
    return len(order)


# --- the plan ---------------------------------------------------------------------------------------------------------

FOLDS = 5
"""Folds that are trained side by side, on as many cores."""

FOLD_MODELS = 3
"""Fold models that predict each image."""

LONG = 10**6
"""Images of a training in which a plan's set-up time pays: the plan is that of a long one."""


@dataclass(frozen=True)
class ChosenPlan:
    """The plan of a network on this machine.

    Attributes
    ----------
    plan : Plan
    probed : Probe
    roofline_share : float
        Share of what the machine can do at most that one image per second takes.
    """

    plan: Plan
    probed: Probe
    roofline_share: float


def choose(config: MemberConfig, size: int, phase: Phase, device: torch.device) -> ChosenPlan:
    """Return the plan for images of some size in pixels, as `thera` chooses it."""
    plans = possible_plans("auto", "auto", device, size, phase)
    probed = probe(config, size, plans, phase, 1, device)
    plan = probed.for_work(LONG)
    forward, training = flops_per_image(timm.create_model(config.timm_name, num_classes=1), size)
    ceiling = 1e9 * machine_ceilings(device).gflops[plan.precision]
    return ChosenPlan(plan, probed, (forward if phase == "predict" else training) / ceiling)


@functools.cache
def machine_ceilings(device: torch.device) -> Ceilings:
    """Return what all cores together, or a GPU, can do at most; measured once a process."""
    return measure_ceilings(len(available_cores()), tuple(dict.fromkeys(("fp32", *precisions(device)))), device)


def precisions(device: torch.device, size: int = 64) -> tuple[str, ...]:
    """Return the precisions in which a device computes images of this size at full speed."""
    return tuple(plan.precision for plan in possible_plans("auto", "native", device, size, "train"))


def training_of(
    config: MemberConfig, plan: Plan, mapped: MappedPixels, labels: np.ndarray, device: torch.device
) -> TrainingOnCpu | TrainingOnGpu:
    """Return the training loop as a device has it: a process a core, or all folds in one process."""
    if device.type == "cpu":
        return TrainingOnCpu(config, plan, mapped, labels, len(labels), min(FOLDS, len(available_cores())))
    return TrainingOnGpu(config, plan, mapped, labels, FOLDS, default_workers(device), device)


class QuietBar:
    """A bar that lets signals through to the one it hides, and counts nothing."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def advance(self, n: int = 1) -> None:
        self._bar.advance(0)

    def skip(self, n: int) -> None: ...

    def note(self, text: str) -> None: ...
