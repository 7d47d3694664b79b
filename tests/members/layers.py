"""A convolution in a test: its inputs, its output and gradients, and what they are compared with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

Results = dict[str, torch.Tensor]


def run(layer: nn.Conv2d, x: torch.Tensor, dtype: torch.dtype | None = None) -> Results:
    """Return the output and the gradients of a layer, for a loss whose gradient differs from position to position."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        y = layer(x)
    grad_y = torch.linspace(-1, 1, y.numel(), dtype=x.dtype).sin().view(y.shape)
    (y.to(x.dtype) * grad_y).sum().backward()
    results = {"output": y.detach().to(x.dtype), "input": x.grad, "weight": layer.weight.grad}
    return results | ({} if layer.bias is None else {"bias": layer.bias.grad})


def assert_close(layer: nn.Conv2d, results: Results, x: torch.Tensor, tolerance: float = 2e-5) -> None:
    """Compare with float64, which oneDNN does not compute: some of its gradients in float32 are wrong."""
    expected = run(copy.deepcopy(layer).double(), x.double())
    assert expected.keys() == results.keys()
    for name, value in expected.items():
        assert results[name].shape == value.shape and results[name].dtype == x.dtype, name
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(
            results[name].double(), value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def images(size: tuple[int, int, int, int], dtype: torch.dtype = torch.float32, channels_last: bool = True) -> Any:
    x = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def layer(*given: Any, **options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(*given, **options)


class SubclassedConv2d(nn.Conv2d):
    """A subclass, which may compute anything."""
