"""Train one member on the training rows of one fold.

`learner.Learner` makes the updates, `FoldTraining` runs the epochs and resumes, `train_and_predict` does everything.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ensemble.errors import Stopped, TheraError, is_out_of_device_memory, printable, some
from ensemble.members.backbones import Backbone
from ensemble.members.data_workers import Batch
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import predict_logits
from ensemble.members.learner import Tensors, begin, below
from ensemble.members.memory import LEAST_MICRO_BATCH, memory_errors, release_cache, release_frames
from ensemble.members.plans import Plan
from ensemble.members.position import FINITE_CHECK_INTERVAL, Position
from ensemble.members.processes import Progress
from ensemble.members.sampling import batches_of, order
from ensemble.members.saving import Checkpoint, History, saves_on
from ensemble.members.watch import Watch


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
    micro_batches : int
        The parts that a batch was computed in; see `learner.Learner`.
    """

    weights: Mapping[str, np.ndarray]
    logits: np.ndarray
    history: History
    parameters: int
    seconds: float
    warnings: tuple[str, ...]
    micro_batches: int = 1


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
    OutOfDeviceMemory
        The memory of the GPU does not suffice, and smaller micro-batches are not possible.
    """
    started = time.monotonic()
    with memory_errors(job):
        training = train_fold(job, checkpoint, plan, device, workers, bar, watch)
    logits = predict_held_out(job, training.average, plan, device, held_out, views, bar)
    return fold_result(training, logits, time.monotonic() - started, checkpoint)


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
    OutOfDeviceMemory
    """
    with memory_errors(job):
        logits = predict_logits(network, job.pixels, held_out, views, plan.precision, device, bar)
    if not np.isfinite(logits).all():
        problem = f"{np.count_nonzero(~np.isfinite(logits))} OOF logits of fold {job.fold} are not finite"
        raise TheraError(f"member {job.config.name}", problem, "lower --lr, or use --precision fp32")
    return logits


def fold_result(training: FoldTraining, logits: np.ndarray, seconds: float, checkpoint: Checkpoint) -> FoldResult:
    """Return the result of a finished training, with arrays that can be sent to another process."""
    network = training.average
    weights = {key: value.cpu().contiguous().numpy() for key, value in network.state_dict().items()}
    parameters = sum(parameter.numel() for parameter in network.parameters())
    warnings = tuple(getattr(checkpoint, "warnings", ()))
    return FoldResult(weights, logits, training.history, parameters, seconds, warnings, training.micro_batches)


def train_fold(
    job: FoldJob,
    checkpoint: Checkpoint,
    plan: Plan,
    device: torch.device,
    workers: int,
    bar: Progress,
    watch: Watch | None = None,
) -> FoldTraining:
    """Train for all epochs of the config; return the training, which has the weight average and the history.

    Parameters
    ----------
    job, checkpoint, plan, device, watch
        As in `FoldTraining`.
    workers : int
        Processes that augment. Their number does not change the batches.
    bar : Progress
        Advanced by one for each image.

    Raises
    ------
    TheraError
        A loss is not finite. The message names images of its batch and the file that lists all of them.
    """
    with FoldTraining(job, checkpoint, plan, device, watch) as training:
        training.resume(bar)
        while training.is_due(training.epoch):  # a second time only if the training begins again with micro-batches
            batches = batches_of(job, training.epoch, workers, device, training.update, bar)
            with contextlib.closing(batches):
                while training.is_due(training.epoch) and training.run_epoch(batches, bar):
                    pass
    return training


@contextlib.contextmanager
def algorithms_timed(device: torch.device) -> Iterator[None]:
    """Let cuDNN time its algorithms for each shape on a CUDA device and use the fastest, as batches have few shapes.

    The choice depends on the timing, so another run may have other bytes. On a GPU no bytes are promised; whoever needs
    them calls `torch.use_deterministic_algorithms(True)` in Python, and then nothing is timed.
    """
    before = torch.backends.cudnn.benchmark
    if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class FoldTraining:
    """One fold's training, an epoch at a time.

    The number of epochs is fixed, and the exponential moving average (EMA) of the weights after the last epoch is the
    result: choosing an epoch would need additional labelled rows. Training resumes after the last update that
    `checkpoint` holds; on a CPU a resumed training gives the same bytes.

    If the memory of a GPU does not suffice in the first epoch, the training begins again with twice as many
    micro-batches, that is, each half as large. The batch of an update stays the same, and so does its gradient except
    for batch norm, whose statistics then come from a micro-batch, and for the draws of dropout. The number of
    micro-batches is part of the state, so that a resumed training uses the same. A compiled network is not compiled
    then, because CUDA graphs do not add up gradients, and updates are not launched as a graph.

    A graph of updates is no part of the state: a training goes on with one or without it.

    The `with` block of a training ends when everything is on disk. A signal that ends the block lets the state be saved
    first, so that no update is lost.

    Parameters
    ----------
    job : FoldJob
    checkpoint : Checkpoint
    plan : Plan
        Its precision is that of the features. Parameters, loss and EMA are float32. fp16 uses a gradient scaler.
    device : torch.device
    watch : Watch, optional

    Attributes
    ----------
    history : list of dict
        One dictionary for each epoch: epoch, loss (mean), lr (at its last update), seconds; with a watch also its
        measurement of the EMA, by its name.
    micro_batches : int
        The parts that a batch is computed in.
    """

    def __init__(
        self, job: FoldJob, checkpoint: Checkpoint, plan: Plan, device: torch.device, watch: Watch | None = None
    ) -> None:
        self.job, self._checkpoint, self._plan, self._device, self._watch = job, checkpoint, plan, device, watch
        self._saves, self._started = saves_on(device, checkpoint), 0.0
        self._is_whole = True  # False where an update, or the end of an epoch, has begun or failed
        tensors, self.history = checkpoint.load() or (None, [])
        self._begin(tensors or {}, int(tensors["micro_batches"]) if tensors and "micro_batches" in tensors else 1)
        self._saved = self.epoch, self.update  # the position that is on disk, or is being written

    def __enter__(self) -> FoldTraining:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        unsaved = self._is_whole and (self.epoch, self.update) != self._saved
        if unsaved and isinstance(error, Stopped):
            if self.update:
                self._save_update()
            else:
                self._save_epoch(last=True)
        self._saves.finish()

    def _begin(self, tensors: Tensors, micro_batches: int) -> None:
        """Build the network and its optimiser, and go on from a state; without tensors, from the beginning."""
        self.micro_batches = micro_batches
        self._learner = begin(self.job, self._plan, self._device, micro_batches, pretrained=not tensors)
        if tensors:
            self._learner.restore(tensors)
        self._position = Position.of(below(tensors, "epoch."), self._learner.scaler.is_enabled())

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
            if self.update == job.updates_per_epoch:
                within = ", after its last update"
            bar.say(f"member {job.config.name} fold {job.fold} goes on at epoch {self.epoch + 1} of {epochs}{within}")

    def is_due(self, epoch: int) -> bool:
        """Return whether this epoch is the next one and the config has it."""
        return epoch == self.epoch < self.job.config.epochs

    def run_epoch(self, batches: Iterator[Batch], bar: Progress) -> bool:
        """Train on the remaining batches of an epoch, and save the state every `save_every` seconds and at the end.

        Returns
        -------
        bool
            False if the training begins again with smaller micro-batches; the batches of its first epoch are then
            needed again, from the first one on.

        Raises
        ------
        TheraError
            A loss is not finite.
        OutOfDeviceMemory
            The memory of the GPU does not suffice, and this is not the first epoch, or no smaller micro-batches are
            possible.
        """
        with memory_errors(self.job):
            torch.manual_seed(self.job.random_seed("dropout", self.epoch))
            self._position.restore_random(self._device)
            try:
                with algorithms_timed(self._device):
                    loss, seconds = self._run_updates(batches, bar)
            except Exception as error:
                smallest = self.job.batch_size // (2 * self.micro_batches)
                if self.epoch or smallest < LEAST_MICRO_BATCH or not is_out_of_device_memory(error):
                    raise
                release_frames(error)
            else:
                self._finish_epoch(loss, seconds, bar)
                return True
            self._begin_smaller(bar)
            return False

    def _begin_smaller(self, bar: Progress) -> None:
        """Begin again with twice as many micro-batches."""
        job, parts = self.job, 2 * self.micro_batches
        self._saves.finish()
        bar.skip(-self.images_seen)
        del self._learner
        release_cache(self._device)
        self._begin({}, parts)
        self._saved, self._is_whole = (0, 0), True
        bar.say(
            f"note: member {job.config.name} fold {job.fold}: out of device memory; it begins again with {parts} "
            f"micro-batches of {-(-job.batch_size // parts)} images in each update of {job.batch_size}; batch norm "
            "takes its statistics from a micro-batch"
        )

    def _finish_epoch(self, loss: float, seconds: float, bar: Progress) -> None:
        """Measure the average after an epoch, and save the state."""
        job, epoch, self._is_whole = self.job, self.epoch, False
        self._check_average()
        self._position = Position.of({}, self._learner.scaler.is_enabled())
        rate = self._learner.lr_of(
            (epoch + 1) * job.updates_per_epoch - 1
        )  # of the last update, before a resumption too
        entry: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "lr": rate, "seconds": seconds}
        message = f"{job.config.name} fold {job.fold} epoch {epoch + 1}/{job.config.epochs} loss {loss:.3f}"
        if self._watch is not None:
            measured = entry[self._watch.name] = self._watch(self._learner.ema.module, job, self._plan, self._device)
            message += "" if measured is None else f" {self._watch.title} {measured:.3f}"
        self.history, self._is_whole = [*self.history, entry], True
        self._save_epoch(last=self.epoch == job.config.epochs)
        bar.note(message)

    def _save_epoch(self, last: bool) -> None:
        saved = self._saves.save_epoch(self._snapshot, self.history, last)
        self._saved = (self.epoch, 0) if saved else self._saved

    def _save_update(self) -> None:
        """Save the state within an epoch."""
        self._check(self._position.losses.read())
        position = self._position.tensors(self._seconds, self._device)
        tensors = {f"epoch.{key}": value for key, value in position.items()}
        self._saves.save(lambda: self._snapshot() | tensors, self.history, self.update)
        self._saved = self.epoch, self.update

    def _snapshot(self) -> Tensors:
        return self._learner.state(copy=self._saves.in_background)

    @property
    def _seconds(self) -> float:
        """The seconds of this epoch so far, over all starts."""
        return self._position.seconds + time.monotonic() - self._started

    def _run_updates(self, batches: Iterator[Batch], bar: Progress) -> tuple[float, float]:
        """Make the remaining updates of an epoch; return its mean loss and its seconds."""
        job, losses = self.job, self._position.losses
        self._started = time.monotonic()
        self._saves.begin_epoch()
        self._learner.network.train()
        while self.update < job.updates_per_epoch:
            pixels, labels, rows = next(batches)
            number = self.epoch * job.updates_per_epoch + self.update
            self._is_whole = False
            losses.append(self._learner.update(number, pixels, labels, job.weights_of(rows)))
            if self._learner.graphed is not None and (news := self._learner.graphed.news()):
                kind = "warning" if self._learner.graphed.was_trusted else "note"
                bar.say(f"{kind}: member {job.config.name} fold {job.fold}: {news}")
            last = self.update == job.updates_per_epoch
            if last or self.update % FINITE_CHECK_INTERVAL == 0:
                self._check(losses.read())
            if not last and self._saves.is_due():
                self._save_update()
            self._is_whole = True
            bar.advance(len(rows))
        if losses.mean is None:
            self._check(0)
        return round(losses.mean or 0.0, 6), round(self._seconds, 2)

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
        self._is_whole = False
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
