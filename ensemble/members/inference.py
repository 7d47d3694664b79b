"""Pixels -> logits, one column a view."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ensemble.config import MemberConfig
from ensemble.errors import ConfigError
from ensemble.machine import available_cores
from ensemble.members.augment import view
from ensemble.members.backbones import Backbone, build
from ensemble.members.plans import REFERENCE, Plan, is_followed, possible_plans, prepare
from ensemble.members.precision import PRECISIONS
from ensemble.members.probe import deviation, probe
from ensemble.members.processes import Progress

BATCH = 256

Models: TypeAlias = tuple[MemberConfig, int, Plan, torch.device]
"""What `FoldModels` is made of."""

COMPARED, TOLERANCE = 64, 0.1
"""Images on which a faster plan is held against float32, and how far its logits may lie from it: the root mean square
of the differences, relative to that of the logits about their mean. A correct bfloat16 stays well below it."""


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; ``auto`` is the first CUDA device where there is one, else the CPU.

    Raises
    ------
    ConfigError
        It is none of auto, cpu, cuda, cuda:N, or there is no such CUDA device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch("cpu|cuda(:[0-9]+)?", name):
        raise ConfigError("--device", f"must be auto, cpu, cuda or cuda:N; got {name}")
    device = torch.device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError("--device", f"{name} is asked for and torch sees {count} CUDA devices", "use --device cpu")
    return device


def default_workers(device: torch.device) -> int:
    """Return how many data workers pay: none where the CPU itself trains, else one a core, 8 at most."""
    return 0 if device.type == "cpu" else min(8, max(1, len(available_cores()) - 1))


class FoldModels:
    """The fold models of one member, one at a time on the device.

    Parameters
    ----------
    config : MemberConfig
    image_size : int
        Side in pixels.
    plan : Plan
    device : torch.device
    """

    def __init__(self, config: MemberConfig, image_size: int, plan: Plan, device: torch.device) -> None:
        self._plan, self._device = plan, device
        network = build(config.model_copy(update={"pretrained": False, "weights": None}), image_size)
        self._network = network.to(memory_format=torch.channels_last).to(device).eval()

    def predict(
        self,
        weights: Mapping[str, torch.Tensor],
        pixels: np.ndarray,
        rows: np.ndarray,
        views: Sequence[str],
        bar: Progress,
    ) -> tuple[np.ndarray, Plan]:
        """Return the logits (r, views) of a state dict, and how they were computed.

        That is the plan, unless its logits of `COMPARED` images of the set are further than `TOLERANCE` from those in
        float32 with the library's convolutions: then it is the latter.
        """
        self._network.load_state_dict(weights)
        self._network.eval()  # some keep what follows from their weights, until they are told so again
        network, plan = self._network, self._plan
        if plan != REFERENCE:
            exact = self._network
            network = prepare(copy.deepcopy(exact) if plan.convolutions == "lowered" else exact, plan)
            plan = plan if is_followed(network, plan) else Plan(plan.precision)
            some = np.unique(np.linspace(0, len(pixels) - 1, COMPARED).astype(int))  # the same, whatever the rows
            batch = torch.from_numpy(pixels[some]).to(self._device)
            with torch.inference_mode():
                if not deviation(network(batch, plan.dtype), exact(batch)) <= TOLERANCE:  # NaN is no agreement
                    network, plan = exact, REFERENCE
        return predict_logits(network, pixels, rows, views, plan.precision, self._device, bar), plan


def cost_per_image(models: Models, threads: int) -> float:
    """Return what an image costs under one view, to compare members by: seconds as probed on a CPU, elsewhere FLOP."""
    config, image_size, plan, device = models
    if device.type == "cpu":
        plans = possible_plans("auto", "auto", device, config.input_size or image_size, "predict")
        speeds = probe(config, image_size, plans, "predict", threads)
        return 1 / speeds.images_per_second.get(str(plan), 1.0)
    network = build(config.model_copy(update={"pretrained": False, "weights": None}), image_size).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros((1, image_size, image_size, 3), dtype=torch.uint8))
    return float(counter.get_total_flops())


@torch.inference_mode()
def predict_logits(
    network: Backbone,
    pixels: np.ndarray,
    rows: np.ndarray,
    views: Sequence[str],
    precision: str,
    device: torch.device,
    bar: Progress,
) -> np.ndarray:
    """Return the logits of some images under each view.

    Parameters
    ----------
    network : Backbone
        On `device`; it is put into evaluation mode.
    pixels : uint8 array (n, H, W, 3)
        May be a memory map: a batch at a time is read.
    rows : int array (r,)
        Which images.
    views : sequence of str
        Of `config.VIEWS`.
    precision : {"fp32", "bf16", "fp16"}
    bar : Progress
        Advanced by the images times the views.

    Returns
    -------
    float64 array (r, views)
    """
    network.eval()
    logits = torch.empty((len(rows), len(views)), device=device)  # read back once: a GPU does not wait in between
    for start in range(0, len(rows), BATCH):
        batch = torch.from_numpy(pixels[rows[start : start + BATCH]]).to(device, non_blocking=True)
        for column, name in enumerate(views):
            logits[start : start + BATCH, column] = network(view(batch, name), PRECISIONS[precision])
            bar.advance(len(batch))
    return logits.double().cpu().numpy()
