"""Compute convolutions correctly whose gradients oneDNN computes wrongly on a CPU."""

from __future__ import annotations

import torch
from torch import nn

UNSAFE_CHANNELS = 16
"""The number of input channels from which the weight gradients of strided 1 × 1 convolutions are correct. With fewer,
oneDNN 3.13 accesses memory beyond its workspace: below 16 with AVX-512, below 8 without
(github.com/uxlfoundation/oneDNN/issues/6035)."""


class SampledConv2d(nn.Conv2d):
    """A strided 1 × 1 convolution, computed without a stride on the pixels that it uses.

    The result is the same. In training on a CPU with channels last, oneDNN's own weight gradient of such a layer with
    few input channels is wrong, does not return, or kills the process (github.com/uxlfoundation/oneDNN/issues/6035).
    The stems of RepVGG, MobileOne and FastViT have such layers.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, in, H, W) -> (b, out, H', W')."""
        rows, columns = self.stride
        return nn.functional.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


def sample_strided(network: nn.Module) -> None:
    """Change the convolutions whose gradients oneDNN computes wrongly into `SampledConv2d`, in place."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.padding in ((0, 0), "valid"):
            strided = module.stride != (1, 1) and module.groups == 1
            if strided and module.in_channels < UNSAFE_CHANNELS:
                module.__class__ = SampledConv2d
