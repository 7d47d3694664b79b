"""Compute the logits of networks on images: pixels in, an array of logits with one column for each view out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ensemble.config import MemberConfig
from ensemble.data.mapped import read_rows
from ensemble.machine import available_cores, available_memory
from ensemble.members.augment import view
from ensemble.members.backbones import Backbone, build
from ensemble.members.devices import copied, moved
from ensemble.members.plans import REFERENCE, Plan, is_followed, possible_plans, prepare
from ensemble.members.precision import PRECISIONS
from ensemble.members.probe import deviation, probe
from ensemble.members.processes import MEMORY_OF_A_JOB, MEMORY_OF_A_WORKER, Progress

BATCH = 256
"""Images in a batch of prediction."""

COMPARED = 64
"""The number of images on which the plan of a fold model is compared with float32 before it is used."""

TOLERANCE = 0.1
"""The largest difference of a plan's logits from float32: root mean square, relative to the standard deviation of the
logits. A correct bfloat16 stays well below it (at most 0.0113 on the record)."""


@dataclass(frozen=True)
class NetworkSpec:
    """The architecture, plan and device by which the fold models of a member are computed.

    Attributes
    ----------
    config : MemberConfig
    image_size : int
        Side of the images in pixels.
    plan : Plan
    device : torch.device
    classes : int
        The number of classes that the fold models were trained for.
    """

    config: MemberConfig
    image_size: int
    plan: Plan
    device: torch.device
    classes: int = 2


def default_workers(device: torch.device, processes: int = 1) -> int:
    """Return the default number of data workers of each process that trains on a GPU; 0 on a CPU.

    It is the number of the process's cores minus 1, from 1 to 8. There are fewer, or none, if the memory does not
    suffice for a network and so many workers in each process.
    """
    fits = max(0, (available_memory() // processes - MEMORY_OF_A_JOB) // MEMORY_OF_A_WORKER)
    return 0 if device.type == "cpu" else min(8, max(1, len(available_cores()) // processes - 1), fits)


class FoldModels:
    """The fold models of one member: one network on `device`, which loads the weights of each fold model in turn."""

    def __init__(self, spec: NetworkSpec) -> None:
        self._plan, self.device = spec.plan, spec.device
        self._network = moved(_untrained(spec), spec.device).eval()

    def network(self, weights: Mapping[str, torch.Tensor]) -> Backbone:
        """Return the network with these weights (a state dict), in evaluation mode; the next call changes it."""
        self._network.load_state_dict(weights)
        return self._network.eval()  # some networks cache values derived from their weights, and clear them here

    def predict(
        self,
        weights: Mapping[str, torch.Tensor],
        pixels: np.ndarray,
        rows: np.ndarray,
        views: Sequence[str],
        bar: Progress,
    ) -> tuple[np.ndarray, Plan]:
        """Return the logits of the fold model with these weights, as `predict_logits`, and the plan that computed them.

        The requested plan is first compared with the reference plan (float32, the library's convolutions) on `COMPARED`
        images of the set. If their logits differ by more than `TOLERANCE`, the reference plan computes all images.

        Parameters
        ----------
        weights : mapping
            The state dict.
        pixels : uint8 array (n, H, W, 3)
        rows : int array (r,)
        views : sequence of str
            Names from `config.VIEWS`.
        bar : Progress
            Advanced by one for each image and view.
        """
        network, plan = self.network(weights), self._plan
        if plan != REFERENCE:
            exact = self._network
            network = prepare(copy.deepcopy(exact) if plan.convolutions == "lowered" else exact, plan)
            plan = plan if is_followed(network, plan) else Plan(plan.precision)
            # The images do not depend on `rows`, so that all parts of a set choose the same plan.
            some = np.unique(np.linspace(0, len(pixels) - 1, COMPARED).astype(int))
            batch = torch.from_numpy(pixels[some]).to(self.device)
            with torch.inference_mode():
                if not deviation(network(batch, plan.dtype), exact(batch)) <= TOLERANCE:  # also true for NaN
                    network, plan = exact, REFERENCE
        return predict_logits(network, pixels, rows, views, plan.precision, self.device, bar), plan


def cost_per_image(spec: NetworkSpec, threads: int) -> float:
    """Return the cost of an image under one view, for comparing members: probed seconds on a CPU, FLOP on a GPU."""
    if spec.device.type == "cpu":
        plans = possible_plans("auto", "auto", spec.device, spec.config.input_size or spec.image_size, "predict")
        speeds = probe(spec.config, spec.image_size, plans, "predict", threads, spec.device, spec.classes)
        return 1 / speeds.images_per_second.get(str(spec.plan), 1.0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _untrained(spec).eval()(torch.zeros((1, spec.image_size, spec.image_size, 3), dtype=torch.uint8))
    return float(counter.get_total_flops())


def _untrained(spec: NetworkSpec) -> Backbone:
    config = spec.config.model_copy(update={"pretrained": False, "weights": None})
    return build(config, spec.image_size, classes=spec.classes)


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
        On `device`. It is set to evaluation mode.
    pixels : uint8 array (n, H, W, 3)
        It may be a memory map: one batch at a time is read.
    rows : int array (r,)
        The images to predict.
    views : sequence of str
        Names from `config.VIEWS`.
    precision : {"fp32", "bf16", "fp16"}
    bar : Progress
        Advanced by one for each image and view.

    Returns
    -------
    float64 array (r, views) or (r, views, C)
        One logit for two classes, C logits for more.
    """
    network.eval()
    # copied to the host once, at the end, so that a GPU never waits
    logits = torch.empty((len(rows), len(views), *network.logit_shape), device=device)
    for start in range(0, len(rows), BATCH):
        batch = copied(torch.from_numpy(read_rows(pixels, rows[start : start + BATCH])), device)
        for column, name in enumerate(views):
            logits[start : start + BATCH, column] = network(view(batch, name), PRECISIONS[precision])
            bar.advance(len(batch))
    return logits.cpu().numpy().astype(np.float64)  # on the host, because MPS has no float64
