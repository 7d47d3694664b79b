"""The logits of many fold models on one set of images, several computed side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemble.config import MemberConfig
from ensemble.errors import TheraError
from ensemble.machine import available_cores
from ensemble.members.inference import BATCH, FoldModels, Models
from ensemble.members.parallel import Resources
from ensemble.members.plans import Plan, possible_plans
from ensemble.members.probe import PROBE_PAYS, choose_plan
from ensemble.members.processes import MappedPixels, Progress, Workers, at_once, shares
from ensemble.progress import Bar
from ensemble.runs.files import Tensors


@dataclass(frozen=True)
class FoldModel:
    """A trained fold model of a member.

    Attributes
    ----------
    name : str
        Of the member, for messages.
    fold : int
    models : tuple
        What `FoldModels` is made of, see `Predictor.models`.
    read_weights : callable
        Returns the state dict. It is called in whatever process computes the model, so it can be pickled.
    """

    name: str
    fold: int
    models: Models
    read_weights: Callable[[], Tensors]


class Predictor:
    """Computes fold models on the images of one set; its processes live as long as the `with` block.

    Parameters
    ----------
    pixels : uint8 array (n, H, W, 3)
    passes : int
        How often each image will be computed, over all models and views: with little work, one process does it.
    resources : Resources
    precision, convolutions : str
        As in `config.PredictOptions`; they limit how the networks are computed.
    """

    def __init__(
        self, pixels: np.ndarray, passes: int, resources: Resources, precision: str = "auto", convolutions: str = "auto"
    ) -> None:
        self._pixels, self._resources = MappedPixels(pixels), resources
        self.forced = {"precision": precision, "convolutions": convolutions}
        cores = len(available_cores())
        batches = passes * len(pixels) // BATCH // cores
        self._side_by_side = at_once(cores, batches, resources.device, resources.jobs)
        self._cores = shares(self._side_by_side, self._side_by_side)
        self._workers = Workers()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    @property
    def threads(self) -> int:
        """Threads that compute one model."""
        return len(self._cores[0])

    def models(self, config: Mapping[str, Any], as_trained: Plan, folds: int) -> Models:
        """Return what `FoldModels` is made of: a member's config, the images' size, the plan and the device.

        Parameters
        ----------
        config : mapping
            Of `MemberConfig`, as it was trained.
        as_trained : Plan
            Used where the work is too little for a probe.
        folds : int
            How many fold models the member has.
        """
        device, size, n = self._resources.device, self._pixels.array.shape[1], len(self._pixels.array)
        member = MemberConfig.model_validate({**config, "pretrained": False, "weights": None, **self.forced})
        possible = possible_plans(
            self.forced["precision"], self.forced["convolutions"], device, member.input_size or size, "predict"
        )
        batches = n * folds // BATCH
        if batches < PROBE_PAYS and as_trained in possible:
            return member, size, as_trained, device
        return member, size, choose_plan(member, device, size, "predict", batches, self.threads), device

    def predict(
        self, models: Sequence[FoldModel], views: Sequence[str], bar: Bar, rows: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray, Plan]]:
        """Yield for each fold model its place in `models`, its logits (r, views), and the plan it was computed by.

        Parameters
        ----------
        models : sequence of FoldModel
        views : sequence of str
        bar : Bar
            Advanced by one an image and view.
        rows : int array (r,), optional
            The images to compute; all by default.

        Raises
        ------
        TheraError
            A logit is not finite.
        """
        n = len(self._pixels.array)
        every = np.arange(n) if rows is None else rows
        parts = [part for part in np.array_split(every, self._side_by_side) if part.size]
        calls = [(model, self._pixels, part, views) for model in models for part in parts]
        cores = [cores for _ in models for cores in self._cores[: len(parts)]]
        pending: dict[int, dict[int, np.ndarray]] = {}
        for call, (logits, plan) in self._workers.run(predict_part, calls, cores, bar):
            index, part = divmod(call, len(parts))
            pending.setdefault(index, {})[part] = logits
            if len(pending[index]) == len(parts):
                whole = np.concatenate([pending[index][i] for i in range(len(parts))])
                del pending[index]
                _check_finite(whole, models[index], plan)
                yield index, whole, plan


def predict_part(
    model: FoldModel, pixels: MappedPixels, rows: np.ndarray, views: Sequence[str], bar: Progress
) -> tuple[np.ndarray, Plan]:
    """Return the logits (r, views) of a fold model on some images, and how they were computed; in any process."""
    return FoldModels(*model.models).predict(model.read_weights(), pixels.array, rows, views, bar)


def _check_finite(logits: np.ndarray, model: FoldModel, plan: Plan) -> None:
    if not np.isfinite(logits).all():
        problem = f"{np.count_nonzero(~np.isfinite(logits))} logits of fold {model.fold} are not finite in {plan}"
        raise TheraError(f"member {model.name}", problem, "use --precision fp32")
