"""Measure the limits of the machine, and count the operations that a network needs for an image."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ensemble.members.devices import synchronize
from ensemble.members.precision import PRECISIONS

CPU = torch.device("cpu")

SIDE, SIDE_ON_GPU = 1024, 8192
"""The sides of the square matrices that are multiplied on a CPU and on a GPU. They are so large that every core or
multiprocessor is busy."""

CHANNELS = 64
"""The numbers of input and output channels of the convolution, as in the first stage of a resnet18."""

COPIED_BYTES = 2**27
"""The number of bytes of a copy. It is many times the last-level cache, so that the memory is measured."""

REPEATS = 50
"""The number of repetitions; the fastest one is used. Each is short, so that at least one is not interrupted by other
work."""


@dataclass(frozen=True)
class Ceilings:
    """The largest rates that a GPU, or a CPU with a given number of torch threads, reaches.

    Attributes
    ----------
    gflops : dict of str to float
        10^9 operations per second by precision; a multiply-add is two operations. It is the faster of a matrix product
        and a 3 × 3 convolution, channels last, because on some CPUs MKL, which multiplies fp32 matrices, is slower
        than oneDNN, which convolves.
    copy_gb_per_s : float
        10^9 bytes per second; bytes that are read and bytes that are written both count.
    threads : int
    """

    gflops: dict[str, float]
    copy_gb_per_s: float
    threads: int


@torch.inference_mode()
def measure_ceilings(threads: int, precisions: Sequence[str] = ("fp32",), device: torch.device = CPU) -> Ceilings:
    """Measure the limits of a device with this many torch threads; this takes some seconds."""
    torch.set_num_threads(threads)
    dtypes = {name: PRECISIONS[name] for name in precisions}
    gflops = {name: max(_matmul(each, device), _convolution(each, device)) / 1e9 for name, each in dtypes.items()}
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    copy_gb_per_s = 2 * COPIED_BYTES / _least_seconds(lambda: target.copy_(source), device) / 1e9
    return Ceilings(gflops, copy_gb_per_s, threads)


def flops_per_image(model: nn.Module, size: int) -> tuple[int, int]:
    """Return the operations of one image: (forward pass, training step); a multiply-add is two operations.

    Matrix products and convolutions are counted, by `torch.utils.flop_counter`. A training step is three times the
    forward pass, because each layer's two gradients take as many operations as its output.

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


def _matmul(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of a product of two square matrices."""
    side = SIDE if device.type == "cpu" else SIDE_ON_GPU
    a, b = torch.rand(2, side, side, device=device).to(dtype)
    out = torch.empty_like(a)
    return 2 * side**3 / _least_seconds(lambda: torch.mm(a, b, out=out), device)


def _convolution(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of a convolution without padding, because kernels skip a border of zeros."""
    x = torch.rand(32, CHANNELS, 18, 18, device=device).to(dtype=dtype, memory_format=torch.channels_last)
    kernel = torch.rand(CHANNELS, CHANNELS, 3, 3, device=device).to(dtype=dtype, memory_format=torch.channels_last)
    outputs = nn.functional.conv2d(x, kernel).numel()
    return 2 * outputs * CHANNELS * 9 / _least_seconds(lambda: nn.functional.conv2d(x, kernel), device)


def _least_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of the work."""
    seconds = []
    for _ in range(1 + REPEATS):  # the first one is a warm-up
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def busy_share(work: Callable[[], object], device: torch.device) -> float:
    """Return the share of the time in which a GPU computes something while the work runs."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        started = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    ranges = [(each.time_range.start, each.time_range.end) for each in profiled.events() if _is_on_gpu(each)]
    return covered(ranges) / 1e6 / seconds


def _is_on_gpu(event: Any) -> bool:
    return bool(event.device_type.name == "CUDA")


def covered(ranges: Sequence[tuple[float, float]]) -> float:
    """Return the length of the union of ranges (start, end).

    Examples
    --------
    >>> covered([(5, 6), (0, 2), (1, 3), (1, 2)])
    4.0
    """
    total, reached = 0.0, -math.inf
    for start, end in sorted(ranges):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
