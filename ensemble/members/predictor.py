"""Compute the logits of fold models on one set of images, several models or parts of the images in parallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ensemble.config import MemberConfig
from ensemble.errors import TheraError
from ensemble.machine import available_cores
from ensemble.members.inference import BATCH, FoldModels, NetworkSpec, cost_per_image
from ensemble.members.parallel import Resources
from ensemble.members.plans import Plan, possible_plans
from ensemble.members.probe import PROBE_PAYS, choose_plan
from ensemble.members.processes import MappedPixels, Progress
from ensemble.progress import Bar
from ensemble.runs.files import Tensors


@dataclass(frozen=True)
class FoldModel:
    """A trained fold model of a member.

    Attributes
    ----------
    name : str
        The member's name, for messages.
    fold : int
    spec : NetworkSpec
        From `Predictor.spec`.
    read_weights : callable
        Returns the state dict. It is called in the process that computes the model, so it must be picklable.
    """

    name: str
    fold: int
    spec: NetworkSpec
    read_weights: Callable[[], Tensors]


class Predictor:
    """Computes fold models on the images of one set; its processes end with the `with` block.

    Parameters
    ----------
    pixels : uint8 array (n, H, W, 3)
    passes : int
        How often each image will be computed, over all models and views. If the work is small, it is done in the
        calling process.
    resources : Resources
    precision, convolutions : str
        As in `config.PredictOptions`; they limit the plans.

    Examples
    --------
    ::

        with Predictor(pixels, passes, resources) as predictor:
            spec = predictor.spec(config, Plan("fp32"), folds=3)
            models = [FoldModel("resnet18", fold, spec, partial(read, fold)) for fold in range(3)]
            for index, logits, plan in predictor.predict(models, ("identity", "hflip"), bar):
                ...
    """

    def __init__(
        self, pixels: np.ndarray, passes: int, resources: Resources, precision: str = "auto", convolutions: str = "auto"
    ) -> None:
        self._pixels, self._resources = MappedPixels(pixels), resources
        self.requested = {"precision": precision, "convolutions": convolutions}
        batches = passes * len(pixels) // BATCH // len(available_cores())
        self._pool = resources.pool()
        self._slots = self._pool.slots(batches, resources.device, resources.jobs, self._pixels.copied_bytes)

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @property
    def threads(self) -> int:
        """The number of threads that compute one model."""
        return len(self._slots[0])

    def spec(self, config: Mapping[str, Any], as_trained: Plan, folds: int, classes: int = 2) -> NetworkSpec:
        """Return the spec of a member's fold models; if there is enough work, a probe chooses the plan.

        Parameters
        ----------
        config : mapping
            The fields of the member's `MemberConfig`, as it was trained.
        as_trained : Plan
            The plan of its training, which is used if there is too little work for a probe.
        folds : int
            How many fold models the member has.
        classes : int
            The number of classes that it was trained for.
        """
        device, (n, size) = self._resources.device, self._pixels.array.shape[:2]
        work = (config, as_trained, n * folds, self.threads, device, size, classes, self.requested)
        spec: NetworkSpec = self._pool.call(choose_spec, *work)
        return spec

    def cost_per_image(self, spec: NetworkSpec) -> float:
        """Return the cost of an image under one view, as `inference.cost_per_image`."""
        cost: float = self._pool.call(cost_per_image, spec, self.threads)
        return cost

    def predict(
        self, models: Sequence[FoldModel], views: Sequence[str], bar: Bar, rows: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray, Plan]]:
        """Yield for each fold model its index in `models`, its logits, and the plan that computed them.

        The logits are (r, views) for two classes and (r, views, C) for more.

        Parameters
        ----------
        models : sequence of FoldModel
        views : sequence of str
            Names from `config.VIEWS`.
        bar : Bar
            Advanced by one for each image and view.
        rows : int array (r,), optional
            The images to compute; all by default.

        Raises
        ------
        TheraError
            A logit is not finite.
        """
        rows = np.arange(len(self._pixels.array)) if rows is None else rows
        parts = whole_batches(rows, len(self._slots), self._pool.least_batches)
        calls = [(model, self._pixels, part, views) for model in models for part in parts]
        cores = [self._slots[index % len(self._slots)] for index in range(len(calls))]
        pending: dict[int, dict[int, np.ndarray]] = {}  # the parts of a model finish in any order
        for call, (logits, plan) in self._pool.run(predict_part, calls, cores, bar):
            index, part = divmod(call, len(parts))
            pending.setdefault(index, {})[part] = logits
            if len(pending[index]) == len(parts):
                of_parts = pending.pop(index)
                whole = np.concatenate([of_parts[i] for i in range(len(parts))])
                _check_finite(whole, models[index], plan)
                yield index, whole, plan


def choose_spec(
    config: Mapping[str, Any],
    as_trained: Plan,
    images: int,
    threads: int,
    device: torch.device,
    size: int,
    classes: int,
    requested: Mapping[str, str],
) -> NetworkSpec:
    """Return the spec of a member's fold models; if there is enough work, a probe chooses the plan.

    Parameters
    ----------
    config, as_trained, classes
        As in `Predictor.spec`.
    images : int
        The images that all fold models together will compute.
    threads : int
        The threads that compute one model.
    device : torch.device
    size : int
        Side of the images in pixels.
    requested : mapping
        The precision and the convolutions, as in `config.PredictOptions`.
    """
    member = MemberConfig.model_validate({**config, "pretrained": False, "weights": None})
    # The config is not validated again: "fused" exists only for prediction, and the config of a training rejects it.
    member = member.model_copy(update=dict(requested))
    possible = possible_plans(member.precision, member.convolutions, device, member.input_size or size, "predict")
    batches = images // BATCH
    if batches < PROBE_PAYS and as_trained in possible:
        return NetworkSpec(member, size, as_trained, device, classes)
    plan = choose_plan(member, device, size, "predict", batches, threads, classes)
    return NetworkSpec(member, size, plan, device, classes)


def whole_batches(rows: np.ndarray, parts: int, least: int = 1) -> list[np.ndarray]:
    """Split rows (r,) into at most so many parts of whole batches, so that no logit depends on the number of parts.

    Parameters
    ----------
    rows : int array (r,)
    parts : int
    least : int
        The least batches of a part, where there are as many.

    Examples
    --------
    >>> [len(part) for part in whole_batches(np.arange(1000), 3)]
    [256, 256, 488]
    >>> [len(part) for part in whole_batches(np.arange(1000), 3, 2)]
    [512, 488]
    """
    batches = -(-len(rows) // BATCH)
    n = max(1, min(parts, batches // least))
    return [rows[i * batches // n * BATCH : (i + 1) * batches // n * BATCH] for i in range(n)] if batches else []


def predict_part(
    model: FoldModel, pixels: MappedPixels, rows: np.ndarray, views: Sequence[str], bar: Progress
) -> tuple[np.ndarray, Plan]:
    """Return a fold model's logits on some images, and the plan used; it can run in a worker process."""
    return FoldModels(model.spec).predict(model.read_weights(), pixels.array, rows, views, bar)


def _check_finite(logits: np.ndarray, model: FoldModel, plan: Plan) -> None:
    if not np.isfinite(logits).all():
        problem = f"{np.count_nonzero(~np.isfinite(logits))} logits of fold {model.fold} are not finite in {plan}"
        raise TheraError(f"member {model.name}", problem, "use --precision fp32")
