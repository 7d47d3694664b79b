"""Train one member on the training rows of one fold.

`Learner.update` is the training step, `FoldTraining` runs the epochs and resumes, `train_and_predict` does everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

from ensemble.config import VIEWS
from ensemble.errors import TheraError, printable
from ensemble.members.backbones import Backbone, build
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import predict_logits
from ensemble.members.losses import class_weights, classification_loss
from ensemble.members.optimiser import learning_rates, parameter_groups
from ensemble.members.plans import Plan, prepare
from ensemble.members.processes import Progress
from ensemble.members.sampling import Batch, batches_of

FINITE_CHECK_INTERVAL = 50
"""Updates between two checks that the losses are finite. A check reads them from the device, which makes a GPU wait."""

Tensors = dict[str, torch.Tensor]
History = list[dict[str, Any]]


class Checkpoint(Protocol):
    """The store of a fold's state between epochs."""

    def load(self) -> tuple[Tensors, History] | None: ...

    def save(self, tensors: Tensors, history: Sequence[Mapping[str, Any]]) -> None: ...


@dataclass(frozen=True)
class FoldResult:
    """The result of training one fold's model.

    Attributes
    ----------
    weights : mapping
        The state dict as arrays.
    logits : float64 array (h, views)
        Of the held-out rows.
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


@dataclass(frozen=True)
class Watch:
    """A measurement on held-out rows after each epoch, for information only; it never affects training.

    Attributes
    ----------
    rows : int array (w,)
        Held-out rows.
    measure : callable
        (logits (w,), labels (w,)) -> float or None.
    """

    rows: np.ndarray
    measure: Callable[[np.ndarray, np.ndarray], float | None]

    def __call__(self, network: Backbone, job: FoldJob, plan: Plan, device: torch.device) -> float | None:
        logits = predict_logits(network, job.pixels, self.rows, VIEWS[:1], plan.precision, device, _Silent())
        return self.measure(logits[:, 0], job.labels[self.rows])


class _Silent:
    """A `Progress` that does nothing."""

    def advance(self, n: int = 1) -> None:
        pass

    def skip(self, n: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def say(self, line: str) -> None:
        pass


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
    """Return the logits (h, views) of a fold's held-out rows.

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
        One dictionary for each epoch: epoch, loss (mean), lr (at its last update), seconds; with a watch also hter,
        that of the EMA.

    Raises
    ------
    TheraError
        A loss is not finite. The message names the images of its batch.
    """
    training = FoldTraining(job, checkpoint, plan, device, watch)
    training.resume(bar)
    batches = batches_of(job, training.epoch, workers, device)
    while training.is_due(training.epoch):
        training.run_epoch(batches, bar)
    return training.average, training.history


class FoldTraining:
    """One fold's training, an epoch at a time.

    The number of epochs is fixed, and the exponential moving average (EMA) of the weights after the last epoch is the
    result: choosing an epoch would need additional labelled rows. Training resumes after the last epoch that
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
        network = build(start, job.pixels.shape[1], weights).to(memory_format=torch.channels_last).to(device)
        self._learner = Learner(job, prepare(network, plan), plan, device)
        if tensors is not None:
            self._learner.restore(tensors)

    @property
    def epoch(self) -> int:
        """The next epoch, counted from 0."""
        return len(self.history)

    @property
    def images_seen(self) -> int:
        return self.epoch * self.job.updates_per_epoch * self.job.batch_size

    @property
    def average(self) -> Backbone:
        """The EMA of the weights, in evaluation mode."""
        average: Backbone = self._learner.ema.module.eval()
        return average

    def resume(self, bar: Progress) -> None:
        """Count the epochs of an earlier start in the bar, and say where the training goes on."""
        bar.skip(self.images_seen)
        config = self.job.config
        if 0 < self.epoch < config.epochs:
            bar.say(f"member {config.name} fold {self.job.fold} goes on at epoch {self.epoch + 1} of {config.epochs}")

    def is_due(self, epoch: int) -> bool:
        """Return whether this epoch is the next one and the config has it."""
        return epoch == self.epoch < self.job.config.epochs

    def run_epoch(self, batches: Iterator[Batch], bar: Progress) -> None:
        """Train on the batches of the next epoch, and save the state."""
        job, epoch, started = self.job, self.epoch, time.monotonic()
        torch.manual_seed(job.random_seed("dropout", epoch))
        loss = self._learner.epoch(epoch, batches, bar)
        seconds = round(time.monotonic() - started, 2)
        entry: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "lr": self._learner.lr, "seconds": seconds}
        message = f"{job.config.name} fold {job.fold} epoch {epoch + 1}/{job.config.epochs} loss {loss:.3f}"
        if self._watch is not None:
            entry["hter"] = self._watch(self._learner.ema.module, job, self._plan, self._device)
            message += "" if entry["hter"] is None else f" HTER {entry['hter']:.3f}"
        self.history = [*self.history, entry]
        self._checkpoint.save(self._learner.state(), self.history)
        bar.note(message)


class Learner:
    """A network in training, with the average of its weights, its optimiser and its learning-rate schedule."""

    def __init__(self, job: FoldJob, network: Backbone, plan: Plan, device: torch.device) -> None:
        config, self.job, self.network, self.device = job.config, job, network, device
        self.precision = plan.dtype
        if config.freeze:
            network.freeze()
        self.class_weights = class_weights(config.loss, job.labels[job.rows])
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

    def epoch(self, epoch: int, loader: Iterator[Batch], bar: Progress) -> float:
        """Make the updates of one epoch, and return the mean loss."""
        self.network.train()
        finite: list[float] = []
        unchecked: list[tuple[torch.Tensor, np.ndarray]] = []
        for step in range(self.job.updates_per_epoch):
            pixels, labels, rows = next(loader)
            loss = self.update(epoch * self.job.updates_per_epoch + step, pixels, labels)
            unchecked.append((loss, rows))
            if len(unchecked) == FINITE_CHECK_INTERVAL or step + 1 == self.job.updates_per_epoch:
                finite += self._finite_losses(unchecked)
                unchecked = []
            bar.advance(len(rows))
        return round(float(np.mean(finite)), 6)

    def update(self, number: int, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Make one update with pixels (b, H, W, 3) uint8 and labels (b,); return the mean loss, on the device.

        Nothing is read back from the device, so that the next update is queued while a GPU computes this one.
        """
        self.schedule.step_update(number)
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.network(pixels.to(self.device, non_blocking=True), self.precision)  # (b,)
        labels = labels.to(self.device, non_blocking=True)
        loss = classification_loss(logits, labels, self.job.config, self.class_weights).mean()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)  # before clipping, which needs the true norm
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.job.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.network, step=number)
        return loss.detach()

    def _finite_losses(self, unchecked: list[tuple[torch.Tensor, np.ndarray]]) -> list[float]:
        """Return the finite losses; raise an error if the gradient scaler of fp16 does not explain the others.

        The gradient scaler skips an update that overflows and lowers its scale, so some losses in fp16 may be
        infinite, but not all of an interval.
        """
        losses = torch.stack([loss for loss, _ in unchecked]).cpu()
        finite = losses.isfinite()
        if not finite.any() or not (finite.all() or self.scaler.is_enabled()):
            rows = unchecked[int((~finite).nonzero()[0])][1]
            raise TheraError(
                f"training {self.job.config.name} fold {self.job.fold}",
                f"the loss is not finite on the batch of images {' '.join(map(printable, self.job.ids[rows]))}",
                "lower --lr, or use --precision fp32",
            )
        return losses[finite].tolist()

    def state(self) -> Tensors:
        """Return every tensor that the next epoch depends on, by name; random streams depend only on the epoch."""
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        tensors |= {f"ema.{key}": value for key, value in self.ema.module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        if self.scaler.is_enabled():
            scaler = self.scaler.state_dict()
            tensors["scaler"] = torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64)
        return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}

    def restore(self, tensors: Tensors) -> None:
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
