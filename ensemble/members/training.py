"""Train one member on the training rows of one fold.

`Learner.update` is the training step, `FoldTraining` runs the epochs and resumes, `train_and_predict` does everything.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

from ensemble.errors import ArtifactError, TheraError, printable, some
from ensemble.members.backbones import Backbone, build
from ensemble.members.data_workers import Batch
from ensemble.members.devices import copied, moved
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import predict_logits
from ensemble.members.losses import class_weights, classification_loss, soft_cross_entropy
from ensemble.members.optimiser import learning_rates, parameter_groups
from ensemble.members.plans import Plan, prepare
from ensemble.members.position import FINITE_CHECK_INTERVAL, Position
from ensemble.members.processes import Progress
from ensemble.members.sampling import batches_of, order
from ensemble.members.watch import Watch

Tensors = dict[str, torch.Tensor]
History = list[dict[str, Any]]


class Checkpoint(Protocol):
    """The store of a fold's state: after each epoch, and within an epoch every `save_every` seconds."""

    @property
    def save_every(self) -> float: ...

    def load(self) -> tuple[Tensors, History] | None: ...

    def save(self, tensors: Tensors, history: Sequence[Mapping[str, Any]], updates: int = 0) -> None: ...

    def write_not_finite(self, facts: Mapping[str, Any]) -> Path: ...


@dataclass(frozen=True)
class FoldResult:
    """The result of training one fold's model.

    Attributes
    ----------
    weights : mapping
        The state dict as arrays.
    logits : float64 array (h, views) or (h, views, C)
        Of the held-out rows: one logit for two classes, C for more.
    history : list of dict
        One dictionary for each epoch, as from `train_fold`.
    parameters : int
    seconds : float
        Of training and prediction together.
    warnings : tuple of str
        From the checkpoint.
    """

    weights: Mapping[str, np.ndarray]
    logits: np.ndarray
    history: History
    parameters: int
    seconds: float
    warnings: tuple[str, ...]


def train_and_predict(
    job: FoldJob,
    checkpoint: Checkpoint,
    plan: Plan,
    device: torch.device,
    workers: int,
    held_out: np.ndarray,
    views: Sequence[str],
    watch: Watch | None,
    bar: Progress,
) -> FoldResult:
    """Train one fold's model, and predict its held-out rows.

    Parameters
    ----------
    job : FoldJob
    checkpoint : Checkpoint
    plan : Plan
    device : torch.device
    workers : int
        Processes that augment.
    held_out : int array (h,)
    views : sequence of str
        Names from `config.VIEWS`.
    watch : Watch, optional
        Its value is recorded after each epoch; it never affects training.
    bar : Progress
        Advanced by one for each image that is trained on, and for each predicted image and view.

    Raises
    ------
    TheraError
        A loss or a logit is not finite.
    """
    started = time.monotonic()
    network, history = train_fold(job, checkpoint, plan, device, workers, bar, watch)
    logits = predict_held_out(job, network, plan, device, held_out, views, bar)
    return fold_result(network, history, logits, time.monotonic() - started, checkpoint)


def predict_held_out(
    job: FoldJob,
    network: Backbone,
    plan: Plan,
    device: torch.device,
    held_out: np.ndarray,
    views: Sequence[str],
    bar: Progress,
) -> np.ndarray:
    """Return the logits (h, views) or (h, views, C) of a fold's held-out rows.

    Raises
    ------
    TheraError
        A logit is not finite.
    """
    logits = predict_logits(network, job.pixels, held_out, views, plan.precision, device, bar)
    if not np.isfinite(logits).all():
        problem = f"{np.count_nonzero(~np.isfinite(logits))} OOF logits of fold {job.fold} are not finite"
        raise TheraError(f"member {job.config.name}", problem, "lower --lr, or use --precision fp32")
    return logits


def fold_result(
    network: Backbone, history: History, logits: np.ndarray, seconds: float, checkpoint: Checkpoint
) -> FoldResult:
    """Return the result of a trained network, with arrays that can be sent to another process."""
    weights = {key: value.cpu().contiguous().numpy() for key, value in network.state_dict().items()}
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return FoldResult(weights, logits, history, parameters, seconds, tuple(getattr(checkpoint, "warnings", ())))


def train_fold(
    job: FoldJob,
    checkpoint: Checkpoint,
    plan: Plan,
    device: torch.device,
    workers: int,
    bar: Progress,
    watch: Watch | None = None,
) -> tuple[Backbone, History]:
    """Train for all epochs of the config; return the weight average and the history.

    Parameters
    ----------
    job, checkpoint, plan, device, watch
        As in `FoldTraining`.
    workers : int
        Processes that augment. Their number does not change the batches.
    bar : Progress
        Advanced by one for each image.

    Returns
    -------
    Backbone
        The EMA of the weights, in evaluation mode, on `device`.
    list of dict
        One dictionary for each epoch: epoch, loss (mean), lr (at its last update), seconds; with a watch also its
        measurement of the EMA, by its name.

    Raises
    ------
    TheraError
        A loss is not finite. The message names images of its batch and the file that lists all of them.
    """
    training = FoldTraining(job, checkpoint, plan, device, watch)
    training.resume(bar)
    batches = batches_of(job, training.epoch, workers, device, training.update, bar)
    with contextlib.closing(batches):
        while training.is_due(training.epoch):
            training.run_epoch(batches, bar)
    return training.average, training.history


class FoldTraining:
    """One fold's training, an epoch at a time.

    The number of epochs is fixed, and the exponential moving average (EMA) of the weights after the last epoch is the
    result: choosing an epoch would need additional labelled rows. Training resumes after the last update that
    `checkpoint` holds; on a CPU a resumed training gives the same bytes.

    Parameters
    ----------
    job : FoldJob
    checkpoint : Checkpoint
    plan : Plan
        Its precision is that of the features. Parameters, loss and EMA are float32. fp16 uses a gradient scaler.
    device : torch.device
    watch : Watch, optional
    """

    def __init__(
        self, job: FoldJob, checkpoint: Checkpoint, plan: Plan, device: torch.device, watch: Watch | None = None
    ) -> None:
        self.job, self._checkpoint, self._plan, self._device, self._watch = job, checkpoint, plan, device, watch
        tensors, self.history = checkpoint.load() or (None, [])
        start = job.config if tensors is None else job.config.model_copy(update={"pretrained": False})
        torch.manual_seed(job.random_seed("weights"))
        weights = None
        if job.weights is not None:
            weights = {key: torch.from_numpy(value) for key, value in job.weights.items()}
        network = moved(build(start, job.pixels.shape[1], weights, classes=job.classes), device)
        self._learner = Learner(job, prepare(network, plan), plan, device)
        if tensors is not None:
            self._learner.restore(tensors)
        self._position = Position.of(_below(tensors or {}, "epoch."), self._learner.scaler.is_enabled())

    @property
    def epoch(self) -> int:
        """The next epoch, or the one that is not finished, counted from 0."""
        return len(self.history)

    @property
    def update(self) -> int:
        """The next update of the epoch, counted from 0."""
        return len(self._position.losses)

    @property
    def images_seen(self) -> int:
        return (self.epoch * self.job.updates_per_epoch + self.update) * self.job.batch_size

    @property
    def average(self) -> Backbone:
        """The EMA of the weights, in evaluation mode."""
        average: Backbone = self._learner.ema.module.eval()
        return average

    def resume(self, bar: Progress) -> None:
        """Count the updates of an earlier start in the bar, and say where the training goes on."""
        bar.skip(self.images_seen)
        job, epochs = self.job, self.job.config.epochs
        if self.images_seen and self.epoch < epochs:
            within = f", update {self.update + 1} of {job.updates_per_epoch}" if self.update else ""
            bar.say(f"member {job.config.name} fold {job.fold} goes on at epoch {self.epoch + 1} of {epochs}{within}")

    def is_due(self, epoch: int) -> bool:
        """Return whether this epoch is the next one and the config has it."""
        return epoch == self.epoch < self.job.config.epochs

    def run_epoch(self, batches: Iterator[Batch], bar: Progress) -> None:
        """Train on the remaining batches of an epoch, and save the state every `save_every` seconds and at the end."""
        job, epoch = self.job, self.epoch
        torch.manual_seed(job.random_seed("dropout", epoch))
        self._position.restore_random(self._device)
        loss, seconds = self._run_updates(batches, bar)
        self._check_average()
        self._position = Position.of({}, self._learner.scaler.is_enabled())
        entry: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "lr": self._learner.lr, "seconds": seconds}
        message = f"{job.config.name} fold {job.fold} epoch {epoch + 1}/{job.config.epochs} loss {loss:.3f}"
        if self._watch is not None:
            measured = entry[self._watch.name] = self._watch(self._learner.ema.module, job, self._plan, self._device)
            message += "" if measured is None else f" {self._watch.title} {measured:.3f}"
        self.history = [*self.history, entry]
        self._checkpoint.save(self._learner.state(), self.history)
        bar.note(message)

    def _run_updates(self, batches: Iterator[Batch], bar: Progress) -> tuple[float, float]:
        """Make the remaining updates of an epoch; return its mean loss and its seconds."""
        job, losses, spent = self.job, self._position.losses, self._position.seconds
        started = saved = time.monotonic()
        self._learner.network.train()
        while self.update < job.updates_per_epoch:
            pixels, labels, rows = next(batches)
            number = self.epoch * job.updates_per_epoch + self.update
            losses.append(self._learner.update(number, pixels, labels, job.weights_of(rows)))
            last = self.update == job.updates_per_epoch
            is_due = not last and time.monotonic() - saved >= self._checkpoint.save_every
            if last or is_due or self.update % FINITE_CHECK_INTERVAL == 0:
                self._check(losses.read())
            if is_due:
                position = self._position.tensors(spent + time.monotonic() - started, self._device)
                tensors = {f"epoch.{key}": value for key, value in position.items()}
                self._checkpoint.save(self._learner.state() | tensors, self.history, self.update)
                saved = time.monotonic()
            bar.advance(len(rows))
        if losses.mean is None:
            self._check(0)
        return round(losses.mean or 0.0, 6), round(spent + time.monotonic() - started, 2)

    def _check_average(self) -> None:
        """Raise an error if the average of the weights is not finite, which losses in fp16 need not show."""
        if self._learner.scaler.is_enabled() and not self._learner.average_is_finite:
            where = f"training {self.job.config.name} fold {self.job.fold}"
            problem = f"the average of the weights is not finite after epoch {self.epoch + 1}"
            raise TheraError(where, problem, "lower --lr, or use --precision bf16 or fp32")

    def _check(self, fault: int | None) -> None:
        """Raise an error if an update of this epoch has a loss that is not finite, and write which batch it was."""
        if fault is None:
            return
        job, values = self.job, self._position.losses.values
        rows = order(job, self.epoch)[fault]
        facts = {
            "member": job.config.name,
            "fold": job.fold,
            "part": job.part,
            "seed": job.seed,
            "epoch": self.epoch + 1,
            "update": fault + 1,
            "updates_per_epoch": job.updates_per_epoch,
            "learning_rate": self._learner.lr_of(self.epoch * job.updates_per_epoch + fault),
            "plan": str(self._plan),
            "loss": str(values[fault]),
            "losses_before": [str(value) for value in values[max(0, fault - 10) : fault]],
            "ids": job.ids[rows].tolist(),
            "labels": job.labels[rows].tolist(),
        }
        path = self._checkpoint.write_not_finite(facts)
        where = f"training {job.config.name} fold {job.fold}"
        images = f"a batch of {len(rows)} images ({some(job.ids[rows].tolist())}), all listed in {printable(path)}"
        problem = f"the loss is not finite ({values[fault]}) in epoch {self.epoch + 1}, update {fault + 1}, on {images}"
        raise TheraError(where, problem, "lower --lr, or use --precision fp32")


class Learner:
    """A network in training, with the average of its weights, its optimiser and its learning-rate schedule."""

    def __init__(self, job: FoldJob, network: Backbone, plan: Plan, device: torch.device) -> None:
        config, self.job, self.network, self.device = job.config, job, network, device
        self.precision = plan.dtype
        if config.freeze:
            network.freeze()
        self.class_weights = class_weights(config.loss, job.labels[job.rows], job.classes)
        self.ema = ModelEmaV3(network, decay=config.ema_decay, use_warmup=True)
        self.optimizer = create_optimizer_v2(
            parameter_groups(network, config), "adamw", lr=config.lr, fused=device.type == "cuda"
        )
        self.schedule = learning_rates(self.optimizer, job)
        self.scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "fp16")

    @property
    def lr(self) -> float:
        """The current learning rate of the last layer."""
        return float(self.optimizer.param_groups[0]["lr"])

    def lr_of(self, update: int) -> float:
        """Return the learning rate of the last layer in an update, counted over all epochs."""
        self.schedule.step_update(update)
        return self.lr

    def update(
        self, number: int, pixels: torch.Tensor, labels: torch.Tensor, weights: np.ndarray | None = None
    ) -> torch.Tensor:
        """Make one update; return the mean loss, on the device.

        Pixels are uint8 (b, H, W, 3), and labels are (b,), or targets (b,) or (b, C). With `weights` (b,), it is the
        mean of weight times loss. Nothing is read back, so that a GPU never waits.
        """
        self.schedule.step_update(number)
        self.optimizer.zero_grad(set_to_none=True)
        before = self._buffers() if self.scaler.is_enabled() else {}
        logits = self.network(copied(pixels, self.device), self.precision)  # (b,) or (b, C)
        labels = copied(labels, self.device)
        losses = self._losses(logits, labels)
        loss = (losses if weights is None else losses * torch.from_numpy(weights).to(self.device)).mean()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._restore_buffers(before, loss)
        self.scaler.unscale_(self.optimizer)  # before clipping, which needs the true norm
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.job.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.network, step=number)
        return loss.detach()

    @property
    def average_is_finite(self) -> bool:
        """Whether every parameter and every floating-point buffer of the average is finite."""
        values = [each for each in self.ema.module.state_dict().values() if each.is_floating_point()]
        return bool(torch.stack([torch.isfinite(each).all() for each in values]).all())

    def _buffers(self) -> Tensors:
        """Return copies of the floating-point buffers, such as the statistics of batch norm."""
        return {key: each.clone() for key, each in self.network.named_buffers() if each.is_floating_point()}

    def _restore_buffers(self, before: Tensors, loss: torch.Tensor) -> None:
        """Give the buffers their values from before if a loss is not finite, without reading it from the device.

        In fp16 an activation can overflow. The gradient scaler skips the update then; batch norm would keep infinite
        statistics, and the average of the weights with it.
        """
        finite, buffers = torch.isfinite(loss.detach()), dict(self.network.named_buffers())
        for key, value in before.items():
            buffers[key].copy_(torch.where(finite, buffers[key], value))

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each image (b,), by its label, or by its targets where the job has them."""
        if self.job.targets is not None:
            return soft_cross_entropy(logits, labels)
        return classification_loss(logits, labels, self.job.config, self.class_weights)

    def state(self) -> Tensors:
        """Return every tensor that the next update depends on, by name, except random streams."""
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        tensors |= {f"ema.{key}": value for key, value in self.ema.module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        if self.scaler.is_enabled():
            scaler = self.scaler.state_dict()
            tensors["scaler"] = torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64)
        if self.job.classes > 2:  # states of two classes do not say so
            tensors["classes"] = torch.tensor(self.job.classes)
        return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}

    def restore(self, tensors: Tensors) -> None:
        """Go on from a state; it is an `ArtifactError` if the training has another number of classes."""
        classes = int(tensors["classes"]) if "classes" in tensors else 2
        if classes != self.job.classes:
            problem = f"was begun with {classes} classes, not {self.job.classes}"
            remedy = "give the data that it was begun with, or train under another name"
            raise ArtifactError(f"training {self.job.config.name} fold {self.job.fold}", problem, remedy)
        self.network.load_state_dict(_below(tensors, "network."))
        self.ema.module.load_state_dict(_below(tensors, "ema."))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        slots: dict[int, Tensors] = {}
        for key, value in _below(tensors, "optimizer.").items():
            index, slot = key.split(".")
            if value.shape == (like := parameters[int(index)]).shape:  # fused AdamW needs the parameter's strides
                value = torch.empty_like(like, device="cpu").copy_(value)
            slots.setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if self.scaler.is_enabled():
            scale, growth = tensors["scaler"].tolist()
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": scale, "_growth_tracker": int(growth)})


def _below(tensors: Tensors, prefix: str) -> Tensors:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
