"""Find convolutions that the library computes wrongly on this CPU.

    python tests/benchmarks/gradients.py --minutes 10 --seed 0

The script draws convolutions of the shapes that networks have (float32, channels last). It computes output and
gradients with torch in float32, and compares them with float64, which oneDNN does not compute. Each convolution runs in
its own process, because the library may write outside its memory. The script prints the convolutions that are wrong,
end the process, or do not return within 40 seconds, and the number of convolutions drawn.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from collections.abc import Sequence
from typing import Any

import torch

REPEATS = 6


def draw(rng: random.Random) -> tuple[Any, ...]:
    """Return in, out, kernel, stride, padding, dilation and groups, the side of the map and the batch."""
    few, many = [1, 2, 3, 4, 6, 8, 12, 16], [24, 32, 48, 64, 80, 96, 128]
    channels, out = rng.choice(few + many), rng.choice(few + many)
    kernel = (rng.choice([1, 1, 2, 3, 3, 4, 5, 7]),) * 2
    if rng.random() < 0.2:
        kernel = kernel[0], rng.choice([1, 2, 3, 5])
    stride = (rng.choice([1, 1, 2, 2, 3, 4]),) * 2
    if rng.random() < 0.15:
        stride = stride[0], rng.choice([1, 2, 3])
    padding = tuple(rng.choice([0, side // 2, side // 2]) for side in kernel)
    groups, kind = 1, rng.random()
    if kind < 0.2:
        out, groups = channels, channels
    elif kind < 0.3 and channels % 2 == out % 2 == 0:
        groups = 2
    dilation, side = rng.choice([1, 1, 1, 1, 2]), rng.choice([4, 7, 8, 14, 16, 28, 32, 33, 56, 64])
    return channels, out, kernel, stride, padding, dilation, groups, side, rng.choice([1, 2, 5, 16, 32])


def computed(x: torch.Tensor, weight: torch.Tensor, slope: torch.Tensor, rest: Sequence[Any]) -> list[torch.Tensor]:
    """Return output and gradients; without autograd, which a forked process would have to set up first."""
    stride, padding, dilation, groups = rest
    y = torch.conv2d(x, weight, None, *rest)
    of_layer = None, stride, padding, [dilation] * 2, False, [0, 0], groups, [True, True, False]
    return [y, *torch.ops.aten.convolution_backward(slope, x, weight, *of_layer)[:2]]


def wrong(shape: tuple[Any, ...], seed: int) -> list[str]:
    """Return which of output and gradients are wrong."""
    channels, out, kernel, *rest, side, batch = shape
    torch.manual_seed(seed)
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(out, channels // rest[-1], *kernel)
    try:
        size = torch.conv2d(x.double(), weight.double(), None, *rest).shape
    except RuntimeError:  # the kernel is larger than the map
        return []
    slope = torch.randn(size).contiguous(memory_format=torch.channels_last)
    exact = computed(x.double(), weight.double(), slope.double(), rest)
    found = set()
    for repeat in range(REPEATS):
        for count in (16, 64, 256, 1024, 4096, 16384, 65536, 262144):  # memory that is not zero, to be given out next
            torch.full((count,), float(repeat + 1))
        for name, one, other in zip(
            ("output", "input", "weight"), computed(x, weight, slope, rest), exact, strict=True
        ):
            if not (one - other).abs().max() <= 1e-3 * other.abs().max() + 1e-5:
                found.add(name)
    return sorted(found)


def main(minutes: float, seed: int) -> None:
    end, drawn = time.monotonic() + 60 * minutes, 0
    rng = random.Random(seed)
    while time.monotonic() < end:
        shape, drawn = draw(rng), drawn + 1
        process = os.fork()  # before any convolution, so no thread is lost
        if not process:
            signal.alarm(40)
            found = wrong(shape, seed)
            if found:
                print(*shape, "wrong:", *found, flush=True)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        if status:
            print(*shape, "died of", signal.Signals(status & 127).name, flush=True)
    print(f"{drawn} convolutions of {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(given.minutes, given.seed)
