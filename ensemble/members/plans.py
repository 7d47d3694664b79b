"""Plans: the precision and the kind of convolutions by which a network is computed, and which a device supports.

This is the only file that imports from `members/cpu`. Without that folder, networks are computed by the library's
convolutions or compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from ensemble.members.backbones import Backbone
from ensemble.members.precision import PRECISIONS, fp16_is_finite, onednn_computes

try:
    from ensemble.members.cpu import prepare as prepare_on_cpu

    CPU_KINDS: tuple[str, ...] = ("lowered", "fused")
except ModuleNotFoundError as error:
    if error.name != "ensemble.members.cpu":
        raise
    CPU_KINDS = ()

Phase: TypeAlias = Literal["train", "predict"]
"""The use of a network; each has its own plans."""


@dataclass(frozen=True)
class Plan:
    """The precision and the kind of convolutions by which a network is computed.

    Attributes
    ----------
    precision : {"fp32", "bf16", "fp16"}
    convolutions : {"native", "lowered", "fused", "compiled", "graphed"}
        native: the library's convolutions. lowered: convolutions as matrix products. fused: convolutions with norms and
        activations fused into them, for prediction only. compiled: the whole network by torch.compile, for training
        only. graphed: the library's convolutions, and each update of a training is one CUDA graph.
    """

    precision: str
    convolutions: str = "native"

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    def __str__(self) -> str:
        return f"{self.precision} {self.convolutions}"


REFERENCE = Plan("fp32")
"""The plan that all others are compared with: float32 with the library's convolutions."""

KINDS: dict[Phase, tuple[str, ...]] = {
    "train": ("native", *(kind for kind in CPU_KINDS if kind != "fused")),
    "predict": ("native", *CPU_KINDS),
}
"""The kinds of convolutions that a probe compares on a CPU. It does not compare compiling, which takes some 30 s."""

KINDS_ON_GPU: dict[Phase, tuple[str, ...]] = {"train": ("native", "compiled", "graphed"), "predict": ("native",)}
"""The kinds of convolutions that a probe compares on a GPU."""


def possible_plans(
    precision: str, convolutions: str, device: torch.device, input_size: int, phase: Phase, emulated: bool = False
) -> tuple[Plan, ...]:
    """Return the plans that a device can compute and that the request allows, the simplest one first.

    On a GPU, ``auto`` is bf16 from compute capability 8.0 and fp16 below it, as it is, compiled or graphed; on a CPU it
    is fp32 and bf16 with all kinds of convolutions. A probe chooses among several plans. Formats that a device only
    emulates are replaced: on a CPU fp16 by fp32, and bf16 by fp32 if oneDNN has no layers for it (without AVX-512
    resnet18 took 13 times as long); on a GPU below compute capability 8.0 bf16 by fp16, and fp16 by fp32 where a small
    network in fp16 is not finite (GTX 16xx).

    On MPS (Apple's GPU) the only plan is float32 with the library's convolutions; nothing else was tried there.

    On a CPU, bf16 needs an input of more than 16 pixels. With less, the last stages have maps of one pixel, and there
    the gradient of a strided 3 × 3 convolution in bf16 is read from uninitialised memory (torch 2.15 with oneDNN).

    Parameters
    ----------
    precision, convolutions : str
        The request, as in `MemberConfig` and `PredictOptions`.
    device : torch.device
    input_size : int
        Side of the network's input in pixels.
    phase : {"train", "predict"}
    emulated : bool
        Whether to allow formats that the device only emulates, to continue a training that was begun on another one.
    """
    if device.type == "mps":
        return (REFERENCE,)
    if device.type == "cuda":
        if precision != "fp32" and not (precision == "bf16" and emulated):
            capable = torch.cuda.get_device_capability(device) >= (8, 0)
            precision = "fp16" if not capable or precision == "fp16" else "bf16"
            if not capable and not fp16_is_finite(device):
                precision = "fp32"
        kinds = KINDS_ON_GPU[phase]
        if convolutions != "auto":
            kinds = (convolutions if convolutions in kinds else "native",)
        return tuple(Plan(precision, kind) for kind in kinds)
    half = input_size > 16 and (emulated or onednn_computes(torch.bfloat16))
    precisions = {"auto": ("fp32", "bf16"), "bf16": ("bf16",)}.get(precision, ("fp32",)) if half else ("fp32",)
    if precision == "fp16" and emulated:
        precisions = ("fp16",)
    kinds = KINDS[phase]
    if convolutions != "auto":
        kinds = (convolutions if convolutions in ("compiled", *CPU_KINDS) else "native",)
    return tuple(Plan(each, kind) for each in precisions for kind in kinds)


def continued(begun: Plan, device: torch.device, input_size: int) -> tuple[Plan, str] | None:
    """Return the plan by which a device goes on with a training, and what is to be said of it; None if it cannot.

    The precision stays. The kind of convolutions may change between a CPU and a GPU: it changes rounding alone.

    Parameters
    ----------
    begun : Plan
        That of the training so far.
    device : torch.device
    input_size : int
        Side of the network's input in pixels.
    """
    for plan in dict.fromkeys((begun, Plan(begun.precision))):
        limits = plan.precision, plan.convolutions, device, input_size
        if plan not in possible_plans(*limits, "train", emulated=True):
            continue
        if plan not in possible_plans(*limits, "train"):
            this = "this CPU" if device.type == "cpu" else "this GPU"
            return plan, f"goes on in {begun.precision} as it was begun, which {this} only emulates"
        if plan != begun:
            return plan, f"goes on with {plan.convolutions} convolutions; it was begun with {begun.convolutions} ones"
        return plan, ""
    return None


def prepare(network: Backbone, plan: Plan) -> Backbone:
    """Return a network that follows the plan: the given network, changed in place, or a fused copy of it."""
    if plan.convolutions in CPU_KINDS:
        return prepare_on_cpu(network, plan.convolutions, plan.dtype)
    network.compiled = plan.convolutions == "compiled"
    return network


def is_followed(network: Backbone, plan: Plan) -> bool:
    """Return whether a prepared network follows the plan; one that cannot be fused is computed as native."""
    return plan.convolutions != "fused" or network.convolutions == "fused"
