"""A network in training: the update of its weights, their average, and the state that a resumed training needs."""

from __future__ import annotations

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

from ensemble.errors import ArtifactError
from ensemble.members.backbones import Backbone, build
from ensemble.members.devices import copied, moved
from ensemble.members.fold_job import FoldJob
from ensemble.members.graphed import Batch, GraphedUpdates
from ensemble.members.losses import class_weights, classification_loss, soft_cross_entropy
from ensemble.members.optimiser import learning_rates, parameter_groups
from ensemble.members.plans import Plan, prepare

Tensors = dict[str, torch.Tensor]


def begin(job: FoldJob, plan: Plan, device: torch.device, micro_batches: int = 1, pretrained: bool = True) -> Learner:
    """Return a learner before its first update; the job's seed draws the parameters that are not loaded.

    With several micro-batches the network is not compiled, because CUDA graphs do not add up gradients, and its updates
    are no graph, which would need more memory. Without `pretrained`, no weights of the model hub are loaded.
    """
    config = job.config if pretrained else job.config.model_copy(update={"pretrained": False})
    torch.manual_seed(job.random_seed("weights"))
    weights = None
    if job.weights is not None:
        weights = {key: torch.from_numpy(value) for key, value in job.weights.items()}
    network = moved(build(config, job.pixels.shape[1], weights, classes=job.classes, address=job.address), device)
    if micro_batches > 1 and plan.convolutions in ("compiled", "graphed"):
        plan = Plan(plan.precision)
    return Learner(job, prepare(network, plan), plan, device, micro_batches)


class Learner:
    """A network in training, with the average of its weights, its optimiser and its learning-rate schedule.

    Parameters
    ----------
    job : FoldJob
    network : Backbone
        On `device`, prepared by `plans.prepare`.
    plan : Plan
    device : torch.device
    micro_batches : int
        The parts of a batch that are computed one after the other, so that less memory is needed. Their gradients are
        added up, so that the batch of an update stays the same. Two things differ from a whole batch: batch norm takes
        its statistics from each part, and dropout draws its random numbers part by part.
    """

    def __init__(
        self, job: FoldJob, network: Backbone, plan: Plan, device: torch.device, micro_batches: int = 1
    ) -> None:
        config, self.job, self.network, self.device = job.config, job, network, device
        self.micro_batches = micro_batches
        self.precision = plan.dtype
        if config.freeze:
            network.freeze()
        self.class_weights = class_weights(config.loss, job.labels[job.rows], job.classes)
        self.ema = ModelEmaV3(network, decay=config.ema_decay, use_warmup=True)
        graphed = plan.convolutions == "graphed"
        fused = graphed or device.type == "cuda"
        self.optimizer = create_optimizer_v2(
            parameter_groups(network, config), "adamw", lr=config.lr, fused=fused, capturable=graphed
        )
        self.graphed = GraphedUpdates() if graphed else None
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
        batch = self._on_device(pixels, labels, weights)
        if self.graphed is not None:
            return self.graphed.update(self, number, batch)
        loss = self.apply(batch)
        self.ema.update(self.network, step=number)
        return loss

    def apply(self, batch: Batch) -> torch.Tensor:
        """Change the weights by the gradient of the mean loss of a batch; return this loss.

        It is an update except for the rates and the average. It reads nothing back, so that it can be captured as a
        CUDA graph.
        """
        self.optimizer.zero_grad(set_to_none=True)
        before = self._buffers() if self.scaler.is_enabled() else {}
        loss = self._add_gradients(batch)
        self._restore_buffers(before, loss)
        self.scaler.unscale_(self.optimizer)  # before clipping, which needs the true norm
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.job.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def _on_device(self, pixels: torch.Tensor, labels: torch.Tensor, weights: np.ndarray | None) -> Batch:
        of_rows = None if weights is None else torch.from_numpy(weights).to(self.device)
        return copied(pixels, self.device), copied(labels, self.device), of_rows

    def _add_gradients(self, batch: Batch) -> torch.Tensor:
        """Compute the gradients of the mean loss of a batch, one micro-batch after the other; return this loss."""
        pixels, labels, of_rows = batch
        of_parts = []
        for rows in np.array_split(np.arange(len(labels)), self.micro_batches):
            part = slice(int(rows[0]), int(rows[-1]) + 1)  # a view of the batch, not a copy
            losses = self._losses(self.network(pixels[part], self.precision), labels[part])  # logits (b,) or (b, C)
            loss = (losses if of_rows is None else losses * of_rows[part]).mean()
            if self.micro_batches > 1:
                loss = loss * (len(rows) / len(labels))
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            of_parts.append(loss.detach())
        return of_parts[0] if self.micro_batches == 1 else torch.stack(of_parts).sum()

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
        finite, buffers = torch.isfinite(loss), dict(self.network.named_buffers())
        for key, value in before.items():
            buffers[key].copy_(torch.where(finite, buffers[key], value))

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each image (b,), by its label, or by its targets where the job has them."""
        if self.job.targets is not None:
            return soft_cross_entropy(logits, labels)
        return classification_loss(logits, labels, self.job.config, self.class_weights)

    def state(self, copy: bool = False) -> Tensors:
        """Return every tensor that the next update depends on, by name, except random streams.

        They are on the CPU. With `copy`, no later update changes them there either.
        """
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        tensors |= {f"ema.{key}": value for key, value in self.ema.module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        if self.scaler.is_enabled():
            scaler = self.scaler.state_dict()
            tensors["scaler"] = torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64)
        if self.micro_batches > 1:  # states of whole batches do not say so
            tensors["micro_batches"] = torch.tensor(self.micro_batches)
        if self.job.classes > 2:  # states of two classes do not say so
            tensors["classes"] = torch.tensor(self.job.classes)
        return {key: value.detach().to("cpu", copy=copy).contiguous() for key, value in tensors.items()}

    def restore(self, tensors: Tensors) -> None:
        """Go on from a state; it is an `ArtifactError` if the training has another number of classes."""
        if self.graphed is not None:
            self.graphed = GraphedUpdates()  # a graph has the addresses of the optimiser's former state
        classes = int(tensors["classes"]) if "classes" in tensors else 2
        if classes != self.job.classes:
            problem = f"was begun with {classes} classes, not {self.job.classes}"
            remedy = "give the data that it was begun with, or train under another name"
            raise ArtifactError(f"training {self.job.config.name} fold {self.job.fold}", problem, remedy)
        self.network.load_state_dict(below(tensors, "network."))
        self.ema.module.load_state_dict(below(tensors, "ema."))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        slots: dict[int, Tensors] = {}
        for key, value in below(tensors, "optimizer.").items():
            index, slot = key.split(".")
            if value.shape == (like := parameters[int(index)]).shape:  # fused AdamW needs the parameter's strides
                value = torch.empty_like(like, device="cpu").copy_(value)
            slots.setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if self.scaler.is_enabled():
            scale, growth = tensors["scaler"].tolist()
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": scale, "_growth_tracker": int(growth)})


def below(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
