"""Convolutions whose gradients a library computes wrong on a CPU, computed in a way that is right."""

from __future__ import annotations

import torch
from torch import nn

UNSAFE_CHANNELS = 16
"""Input channels below which oneDNN 3.13 reads the weight gradient of strided 1 × 1 convolutions beyond its workspace;
8 where there is no AVX-512 (github.com/uxlfoundation/oneDNN/issues/6035)."""


class SampledConv2d(nn.Conv2d):
    """A 1 × 1 convolution with a stride, as one without on the pixels that it sees.

    In training on a CPU with channels last, oneDNN writes past its workspace for such layers of few channels: the
    gradient is wrong, or the process hangs or dies (github.com/uxlfoundation/oneDNN/issues/6035). Stems of RepVGG,
    MobileOne and FastViT have one.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, in, H, W) -> (b, out, H', W')."""
        rows, columns = self.stride
        return nn.functional.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


def sample_strided(network: nn.Module) -> None:
    """Turn the convolutions for which oneDNN's gradients cannot be trusted into `SampledConv2d`, in place."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.padding in ((0, 0), "valid"):
            strided = module.stride != (1, 1) and module.groups == 1
            if strided and module.in_channels < UNSAFE_CHANNELS:
                module.__class__ = SampledConv2d
