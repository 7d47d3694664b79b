"""Name the number formats of networks, and check which of them a device computes correctly."""

from __future__ import annotations

import functools

import torch
from torch import nn

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The precisions by the names that options and plans use."""


def onednn_computes(dtype: torch.dtype) -> bool:
    """Return whether oneDNN has layers in this format on this CPU; bfloat16 needs AVX-512 or a similar extension."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def fp16_is_finite(device: torch.device) -> bool:
    """Return whether a small network in fp16 has finite logits and gradients on a device.

    On GeForce GTX 16xx cards convolutions in fp16 give NaN (github.com/pytorch/pytorch/issues/77955). The network has
    full and depthwise convolutions of a few shapes; nothing is known of other shapes.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1)),
        )
        images = torch.randn(8, 3, 64, 64)
    network = network.to(memory_format=torch.channels_last).to(device)
    with torch.autocast(device.type, torch.float16):
        logits = network(images.to(device))
    logits.float().sum().backward()
    values = [logits, *(each.grad for each in network.parameters() if each.grad is not None)]
    return all(bool(torch.isfinite(each).all()) for each in values)
