"""3 × 3 convolutions as matrix products with fewer multiplications: Winograd's F(4 × 4, 3 × 3).

An image is cut into tiles of 6 × 6 that overlap by two; a tile and a kernel are transformed to 6 × 6 numbers each, and
where these are multiplied one by one and summed over the channels, transforming back gives 4 × 4 outputs: 36
multiplications instead of 144 (Lavin and Gray, 2016, arXiv 1509.09308; the points 0, ±1, ±2, ∞). In float32 the results
lie within some 1e-6 of the direct sums. Where the output's sides are no multiples of 4, the last tiles reach beyond it.

The stride is 1; the image has `padding` pixels of zeros about it.
"""

from __future__ import annotations

import math
from functools import cache

import torch

TILE, WINDOW = 4, 6
"""Side in pixels of what a tile gives, and of what it sees."""

MOST_BYTES = 2**23
"""Of the transformed tiles that are held at once: they stay near a core, and of larger blocks glibc keeps none."""

_OF_IMAGE = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_OF_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OF_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def transformed_kernel(weight: torch.Tensor) -> torch.Tensor:
    """weight (out, in, 3, 3) float32 -> (36, in, out)."""
    out, channels = weight.shape[:2]
    return _both(_matrix("kernel"), weight.permute(2, 3, 1, 0)).view(-1, channels, out)


def convolve(x: torch.Tensor, kernel: torch.Tensor, padding: int = 1) -> torch.Tensor:
    """Return the convolution of images with a transformed kernel.

    Parameters
    ----------
    x : float32 tensor (b, in, H, W), channels last
    kernel : float32 tensor (36, in, out)
    padding : int

    Returns
    -------
    float32 tensor (b, out, H + 2 padding - 2, W + 2 padding - 2), channels last
    """
    images, channels, height, width = x.shape
    height, width, out = height + 2 * padding - 2, width + 2 * padding - 2, kernel.shape[2]
    rows, columns = _tiles(height), _tiles(width)
    whole = torch.empty(
        (images, out, rows * TILE, columns * TILE), dtype=x.dtype, memory_format=torch.channels_last
    )  # no view: what follows may change it in place
    tiles = whole.permute(0, 2, 3, 1).view(images, rows, TILE, columns, TILE, out)
    at_once = _at_once(len(x), rows * columns, max(channels, out))
    for some, found in zip(torch.split(x, at_once), torch.split(tiles, at_once), strict=True):
        products = torch.bmm(_transformed_image(some, padding, rows, columns), kernel)
        outputs = _both(_matrix("output"), products.view(WINDOW, WINDOW, -1))
        found.copy_(outputs.view(TILE, TILE, len(some), rows, columns, out).permute(2, 3, 0, 4, 1, 5))
    if whole.shape[2:] == (height, width):
        return whole
    return whole[:, :, :height, :width].clone(memory_format=torch.channels_last)


def weight_gradient(x: torch.Tensor, slope: torch.Tensor, padding: int = 1) -> torch.Tensor:
    """Return the gradient of a convolution's weights.

    Parameters
    ----------
    x : float32 tensor (b, in, H, W), channels last
    slope : float32 tensor (b, out, H + 2 padding - 2, W + 2 padding - 2), channels last
        The gradient of what the convolution gave.
    padding : int

    Returns
    -------
    float32 tensor (out, in, 3, 3)
    """
    channels, out = x.shape[1], slope.shape[1]
    rows, columns = _tiles(slope.shape[2]), _tiles(slope.shape[3])
    at_once = _at_once(len(x), rows * columns, max(channels, out))
    products = x.new_zeros(WINDOW * WINDOW, channels, out)
    for some, slopes in zip(torch.split(x, at_once), torch.split(slope, at_once), strict=True):
        of_tiles = _framed(slopes, 0, rows * TILE, columns * TILE).view(len(some), rows, TILE, columns, TILE, out)
        of_windows = _both(_matrix("output").t(), of_tiles.permute(2, 4, 0, 1, 3, 5)).view(WINDOW * WINDOW, -1, out)
        products.baddbmm_(_transformed_image(some, padding, rows, columns).transpose(1, 2), of_windows)
    of_kernel = _both(_matrix("kernel").t(), products.view(WINDOW, WINDOW, -1))
    return of_kernel.view(3, 3, channels, out).permute(3, 2, 0, 1)


def _transformed_image(x: torch.Tensor, padding: int, rows: int, columns: int) -> torch.Tensor:
    """x (b, c, H, W) -> (36, b · rows · columns, c), of so many tiles."""
    framed = _framed(x, padding, rows * TILE + 2, columns * TILE + 2)
    windows = framed.unfold(1, WINDOW, TILE).unfold(2, WINDOW, TILE)  # (b, rows, columns, c, 6, 6)
    return _both(_matrix("image"), windows.permute(4, 5, 0, 1, 2, 3)).view(WINDOW * WINDOW, -1, x.shape[1])


def _tiles(side: int) -> int:
    return -(-side // TILE)


def _at_once(images: int, tiles: int, channels: int) -> int:
    """Return how many images of so many tiles are computed at once, in parts of much the same size."""
    parts = math.ceil(images * 4 * WINDOW * WINDOW * tiles * channels / MOST_BYTES)
    return math.ceil(images / max(1, parts))


def _framed(x: torch.Tensor, before: int, height: int, width: int) -> torch.Tensor:
    """x (b, c, H, W) -> (b, height, width, c), contiguous: zeros `before` and behind the image."""
    pixels = x.permute(0, 2, 3, 1)
    if pixels.shape[1:3] == (height, width):
        return pixels.contiguous()
    framed = x.new_zeros(len(x), height, width, x.shape[1])
    framed[:, before : before + x.shape[2], before : before + x.shape[3]] = pixels
    return framed


def _both(matrix: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Apply a matrix (m, n) to the first two axes: values (n, n, ...) -> (m, m, the rest flattened)."""
    m, n = matrix.shape
    first = matrix @ values.reshape(n, -1)
    return torch.matmul(matrix, first.view(m, n, -1))


@cache
def _matrix(of: str) -> torch.Tensor:
    return torch.tensor({"image": _OF_IMAGE, "kernel": _OF_KERNEL, "output": _OF_OUTPUT}[of], dtype=torch.float32)
