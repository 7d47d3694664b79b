"""Run training, prediction and loading as repeatable work, with the code of the commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble.config import VIEWS, MemberConfig
from ensemble.machine import available_cores
from ensemble.members.backbones import build
from ensemble.members.data_workers import Batch
from ensemble.members.devices import moved
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import default_workers, predict_logits
from ensemble.members.learner import Learner
from ensemble.members.plans import Plan, prepare
from ensemble.members.processes import MappedPixels, Workers, shares
from ensemble.members.resident import ResidentEpochs
from ensemble.members.sampling import batches_of
from ensemble.progress import Bar

CPU = torch.device("cpu")

FOLDS = 5
"""The number of folds, which is thera's default; as many are trained in parallel as there are cores."""

FOLD_MODELS = 3
"""The number of fold models that predict each image, as in the record in checkpoints/therapanacea."""

EPOCHS = 1000
"""The number of epochs in the schedule. It is larger than the number of rounds, so that no training ends."""

_networks: dict[Any, Any] = {}
"""Networks that this process keeps from round to round, so that only the first round builds them."""


class TrainingOnCpu:
    """The training of `thera train-member` on a CPU: folds in parallel, each in a process pinned to its cores.

    Parameters
    ----------
    config : MemberConfig
    plan : Plan
    mapped : MappedPixels
        uint8 array (n, H, W, 3).
    labels : int8 array (n,)
    images : int
        The number of images in a round, of all folds together.
    at_once : int
        The number of folds in parallel.
    """

    def __init__(
        self, config: MemberConfig, plan: Plan, mapped: MappedPixels, labels: np.ndarray, images: int, at_once: int
    ) -> None:
        self._cores, self._processes = shares(at_once, at_once), Workers()
        config = config.model_copy(update={"epochs": EPOCHS})
        rows = np.resize(np.arange(len(labels)), images // at_once)
        ids, classes = np.arange(len(labels)).astype(str), classes_of(labels)
        self._jobs = [
            (FoldJob(config, mapped, labels, ids, rows, fold, 0, classes=classes), plan) for fold in range(at_once)
        ]

    def run(self, bar: Any) -> int:
        """Train one more epoch of each fold, and return the number of images."""
        return sum(images for _, images in self._processes.run(train_epoch, self._jobs, self._cores, bar))

    def close(self) -> None:
        self._processes.close()


class TrainingOnGpu:
    """The training of `thera train-member` on a GPU: all folds in this process, one epoch of each in turn.

    Parameters
    ----------
    config : MemberConfig
    plan : Plan
    mapped : MappedPixels
        uint8 array (n, H, W, 3).
    labels : int8 array (n,)
    folds : int
        Folds that share the augmented images. Each trains on all images except those of its own fold.
    workers : int
        Processes that augment.
    device : torch.device
    """

    def __init__(
        self,
        config: MemberConfig,
        plan: Plan,
        mapped: MappedPixels,
        labels: np.ndarray,
        folds: int,
        workers: int,
        device: torch.device,
    ) -> None:
        config, every = config.model_copy(update={"epochs": EPOCHS}), np.arange(len(labels))
        self._jobs = [
            FoldJob(
                config,
                mapped,
                labels,
                every.astype(str),
                every[every % folds != fold],
                fold,
                0,
                classes=classes_of(labels),
            )
            for fold in range(folds)
        ]
        self._images, self._epoch = ResidentEpochs(self._jobs, [0] * folds, workers, device), -1
        self._learners = []
        for job in self._jobs:
            torch.manual_seed(job.fold)
            network = moved(build(config, job.pixels.shape[1], classes=job.classes), device)
            self._learners.append(Learner(job, prepare(network, plan), plan, device))

    def run(self, bar: Any) -> int:
        """Train each fold for one more epoch, and return the number of images."""
        self._epoch += 1
        self._images.start(self._epoch, bar)
        for job, learner in zip(self._jobs, self._learners, strict=True):
            _train_epoch(learner, self._epoch, self._images.batches(job, self._epoch), bar)
        return sum(job.updates_per_epoch * job.batch_size for job in self._jobs)

    def close(self) -> None:
        self._learners.clear()
        del self._images


def classes_of(labels: np.ndarray) -> int:
    """Return the number of classes among labels (n,), at least 2."""
    return max(2, int(labels.max(initial=0)) + 1)


def train_epoch(job: FoldJob, plan: Plan, bar: Any) -> int:
    """Train the next epoch of a fold, in a process that keeps its network; return the number of images."""
    key = (job.config.name, job.fold, plan, len(available_cores()))
    if key not in _networks:
        torch.manual_seed(0)
        network = moved(build(job.config, job.pixels.shape[1], classes=job.classes), CPU)
        _networks.clear()
        _networks[key] = (
            Learner(job, prepare(network, plan), plan, CPU),
            batches_of(job, 0, 0, CPU),
            iter(range(EPOCHS)),
        )
    learner, loader, epochs = _networks[key]
    _train_epoch(learner, next(epochs), loader, bar)
    return job.updates_per_epoch * job.batch_size


def _train_epoch(learner: Learner, epoch: int, batches: Iterator[Batch], bar: Any) -> None:
    """Make the updates of an epoch as training does: the losses are read from the device after the last one."""
    losses, updates = [], learner.job.updates_per_epoch
    learner.network.train()
    for update in range(updates):
        pixels, labels, rows = next(batches)
        losses.append(learner.update(epoch * updates + update, pixels, labels))
        bar.advance(len(rows))
    torch.stack(losses).cpu()


class Prediction:
    """The prediction of `thera predict`: several parts of the images in parallel, each part in a process.

    Parameters
    ----------
    config : MemberConfig
    weights : sequence of Path
        An .npz file for each fold model. A process reads it in the first round, and not again.
    plan : Plan
    mapped : MappedPixels
        uint8 array (n, H, W, 3).
    at_once : int
        The number of parts in parallel.
    device : torch.device
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
        self._parts = [(config, list(weights), plan, mapped, part, device) for part in parts]
        self.logits = np.empty((0, len(weights), len(VIEWS)))
        """float64 array (n, fold models, views): the logits of the last round."""

    def run(self, bar: Any) -> int:
        """Predict all images under all views with each fold model, and return the number of images."""
        parts = dict(self._processes.run(predict_part, self._parts, self._cores, bar))
        self.logits = np.concatenate([parts[part] for part in range(len(parts))])
        return len(self.logits)

    def close(self) -> None:
        self._processes.close()


def predict_part(
    config: MemberConfig,
    weights: Sequence[Path],
    plan: Plan,
    mapped: MappedPixels,
    rows: np.ndarray,
    device: torch.device,
    bar: Any,
) -> np.ndarray:
    """Return the logits (r, fold models, views) of the images in `rows`; the process keeps the networks."""
    key = (config.name, plan, len(weights))
    if key not in _networks:
        _networks.clear()
        networks = []
        for path in weights:
            network = moved(build(config, mapped.array.shape[1]), device)
            with np.load(path) as state:
                network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
            networks.append(prepare(network, plan))
        _networks[key] = networks
    logits = [predict_logits(each, mapped.array, rows, VIEWS, plan.precision, device, bar) for each in _networks[key]]
    return np.stack(logits, axis=1)


def training_on(
    device: torch.device, config: MemberConfig, plan: Plan, mapped: MappedPixels, labels: np.ndarray
) -> TrainingOnCpu | TrainingOnGpu:
    """Return the training as `thera train-member` does it on a device, with `FOLDS` folds."""
    if device.type == "cpu":
        return TrainingOnCpu(config, plan, mapped, labels, len(labels), min(FOLDS, len(available_cores())))
    return TrainingOnGpu(config, plan, mapped, labels, FOLDS, default_workers(device), device)


def prediction_on(
    device: torch.device, config: MemberConfig, weights: Sequence[Path], plan: Plan, mapped: MappedPixels
) -> Prediction:
    """Return the prediction as `thera predict` does it: on a CPU one part for each core, on a GPU one part."""
    return Prediction(config, weights, plan, mapped, len(available_cores()) if device.type == "cpu" else 1, device)


def gather_epoch(pixels: np.ndarray, batch: int, seed: int) -> int:
    """Gather all images in shuffled batches, as training does, and return the number of images."""
    order = np.random.default_rng(seed).permutation(len(pixels))
    for start in range(0, len(order), batch):
        torch.from_numpy(pixels[order[start : start + batch]])
    return len(order)


class QuietBar:
    """A progress bar inside the work of a round. It counts nothing, but lets the outer bar handle signals."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def advance(self, n: int = 1) -> None:
        self._bar.advance(0)

    def skip(self, n: int) -> None: ...

    def note(self, text: str) -> None: ...
