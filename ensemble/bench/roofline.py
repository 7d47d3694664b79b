"""What the machine can do at most, measured; and how much work an image is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SIDE = 1024
"""Of the square matrices."""

CHANNELS = 64
"""Of the convolution, in and out."""

COPIED_BYTES = 2**27
"""Per copy: many times the last-level cache."""

BEST_OF = 50
"""Short tries, and many: the best falls between two turns of whatever else runs on the machine."""


@dataclass(frozen=True)
class Ceilings:
    """The best of several tries, a multiply-add counting as two operations, with `threads` threads of torch.

    Parameters
    ----------
    bf16_gflops, fp32_gflops : float
        10^9 operations per second of the better of a matrix product and a 3 × 3 convolution, channels last: on some
        CPUs MKL, which multiplies fp32 matrices, is slower than oneDNN, which convolves.
    copy_gb_per_s : float
        10^9 bytes per second, read and written ones both counted.
    threads : int
    """

    bf16_gflops: float
    fp32_gflops: float
    copy_gb_per_s: float
    threads: int


@torch.inference_mode()
def measure_ceilings(threads: int) -> Ceilings:
    """Measure this machine's CPU; some seconds."""
    torch.set_num_threads(threads)
    bf16, fp32 = (max(_matmul(dtype), _convolution(dtype)) / 1e9 for dtype in (torch.bfloat16, torch.float32))
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8)
    target = torch.zeros_like(source)
    copied = 2 * COPIED_BYTES / _least_seconds(lambda: target.copy_(source)) / 1e9
    return Ceilings(bf16, fp32, copied, threads)


def flops_per_image(model: nn.Module, size: int) -> tuple[int, int]:
    """Return the operations of one image: (forward, training step); a multiply-add is two.

    Matrix products and convolutions are counted, as `torch.utils.flop_counter` does; training is three times the
    forward pass.

    Parameters
    ----------
    model : torch.nn.Module
        A timm model, for images (b, 3, H, W) float32.
    size : int
        H and W.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size))
    model.train(was_training)
    forward = int(counter.get_total_flops())
    return forward, 3 * forward


def _matmul(dtype: torch.dtype) -> float:
    """Operations per second."""
    a, b = torch.rand(2, SIDE, SIDE).to(dtype)
    out = torch.empty_like(a)
    return 2 * SIDE**3 / _least_seconds(lambda: torch.mm(a, b, out=out))


def _convolution(dtype: torch.dtype) -> float:
    """Operations per second; unpadded, since a border of zeros is skipped and would be counted."""
    x = torch.rand(32, CHANNELS, 18, 18).to(dtype=dtype, memory_format=torch.channels_last)
    kernel = torch.rand(CHANNELS, CHANNELS, 3, 3).to(dtype=dtype, memory_format=torch.channels_last)
    outputs = nn.functional.conv2d(x, kernel).numel()
    return 2 * outputs * CHANNELS * 9 / _least_seconds(lambda: nn.functional.conv2d(x, kernel))


def _least_seconds(work: Callable[[], object]) -> float:
    took = []
    for _ in range(1 + BEST_OF):  # the first warms up
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return min(took)
