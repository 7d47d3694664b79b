"""The plan of a network's computation: precision and kind of convolutions, and what of them a device can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from ensemble.members.backbones import Backbone
from ensemble.members.precision import PRECISIONS, onednn_computes

try:
    from ensemble.members.cpu import prepare as prepare_on_cpu

    CPU_KINDS: tuple[str, ...] = ("lowered", "fused")
except ModuleNotFoundError as error:
    if error.name != "ensemble.members.cpu":
        raise
    CPU_KINDS = ()

Phase: TypeAlias = Literal["train", "predict"]


@dataclass(frozen=True)
class Plan:
    """How a network is computed.

    Attributes
    ----------
    precision : {"fp32", "bf16", "fp16"}
    convolutions : {"native", "lowered", "fused", "compiled"}
        The library's; as matrix products; with norms and activations fused, for prediction alone (both in
        `members/cpu`); or the whole network by torch.compile, for training alone.
    """

    precision: str
    convolutions: str = "native"

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    def __str__(self) -> str:
        return f"{self.precision} {self.convolutions}"


REFERENCE = Plan("fp32")
"""The plan that every other one is compared with: float32 by the library's convolutions."""

KINDS: dict[Phase, tuple[str, ...]] = {
    "train": ("native", *(kind for kind in CPU_KINDS if kind != "fused")),
    "predict": ("native", *CPU_KINDS),
}
"""Kinds of convolutions that a probe compares on a CPU. Compiling must be requested: it takes 30 s first."""

KINDS_ON_GPU: dict[Phase, tuple[str, ...]] = {"train": ("native", "compiled"), "predict": ("native",)}


def possible_plans(
    precision: str, convolutions: str, device: torch.device, input_size: int, phase: Phase, emulated: bool = False
) -> tuple[Plan, ...]:
    """Return the plans that a device can compute and that the user's choice leaves, the plainest first.

    ``auto`` leaves the choice: on a GPU, bf16 from compute capability 8.0 and fp16 below it, compiled or not by what a
    probe finds faster; on a CPU, whatever a probe finds fastest. What a device only emulates is replaced: fp16 on a
    CPU by fp32, bf16 there too where oneDNN has no layers for it (without AVX-512 resnet18 took 13 times as long),
    and below compute capability 8.0 by fp16. On a CPU, bf16 needs an input of more than 16 pixels: below, the last
    stages see one pixel, and there the gradient of a strided 3 × 3 convolution in bf16 is read from memory that nobody
    wrote (torch 2.15 with oneDNN).

    `emulated` counts bf16 among what a CPU can do that only emulates it: for work that was begun on another.
    """
    if device.type != "cpu":
        if precision != "fp32":
            capable = torch.cuda.get_device_capability(device) >= (8, 0)
            precision = "fp16" if not capable or precision == "fp16" else "bf16"
        known = KINDS_ON_GPU[phase]
        chosen = known if convolutions == "auto" else (convolutions,) if convolutions in known else ("native",)
        return tuple(Plan(precision, kind) for kind in chosen)
    half = input_size > 16 and (emulated or onednn_computes(torch.bfloat16))
    choices = {"auto": ("fp32", "bf16") if half else ("fp32",), "bf16": ("bf16",) if half else ("fp32",)}
    available = convolutions not in ("lowered", "fused") or convolutions in CPU_KINDS
    kinds = KINDS[phase] if convolutions == "auto" else (convolutions if available else "native",)
    return tuple(Plan(each, kind) for each in choices.get(precision, ("fp32",)) for kind in kinds)


def prepare(network: Backbone, plan: Plan) -> Backbone:
    """Return the network as the plan computes it: itself, changed in place, or a fused copy."""
    if plan.convolutions in CPU_KINDS:
        return prepare_on_cpu(network, plan.convolutions, plan.dtype)
    network.compiled = plan.convolutions == "compiled"
    return network


def is_followed(network: Backbone, plan: Plan) -> bool:
    """Return whether a prepared network is what the plan says; one that cannot be fused is computed as native."""
    return plan.convolutions != "fused" or network.convolutions == "fused"
