"""Faster layers for a CPU. They are optional: without this folder everything runs, but slower. Use them by `prepare`.

convolutions.py  convolutions as matrix products, for shapes on which oneDNN's own kernels are slow ("lowered")
winograd.py      wide 3 × 3 convolutions in float32 by Winograd's transforms
fused.py         batch norms, layer scales and activations fused into the layers, for prediction ("fused")
"""

from __future__ import annotations

import torch

from ensemble.members.backbones import Backbone
from ensemble.members.cpu.convolutions import lower
from ensemble.members.cpu.fused import fuse


def prepare(network: Backbone, kind: str, dtype: torch.dtype) -> Backbone:
    """Return a network with other layers that computes the same result, up to rounding.

    Parameters
    ----------
    network : Backbone
        On the CPU.
    kind : {"lowered", "fused"}
        lowered: the network itself, changed in place, for training and prediction. fused: a copy, only for prediction,
        or the network itself if it cannot be fused.
    dtype : torch.dtype
        The precision in which a fused network will be computed.
    """
    if kind == "fused":
        return fuse(network, dtype)
    lower(network)
    network.convolutions = "lowered"
    return network
