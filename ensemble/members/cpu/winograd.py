"""Compute 3 × 3 convolutions as matrix products with fewer multiplications: Winograd's F(4 × 4, 3 × 3).

An image is cut into windows of 6 × 6 pixels that overlap by two. A window and a kernel are each transformed to 6 × 6
numbers. The numbers of both are multiplied element by element and summed over the channels. The sums are transformed
back to a tile of 4 × 4 outputs. This takes 36 multiplications for each pair of channels instead of 144 (Lavin and Gray,
2016, arXiv 1509.09308; the points are 0, ±1, ±2, ∞). In float32 the results differ from the direct sums by some 1e-6.
If the sides of the output are not multiples of 4, the last tiles reach beyond the output and are cut.

Memory layout: the 36 positions come first and the channels last, (36, tiles, channels). The sum over the channels is
then one matrix product for each position, and one batched product for all 36.

The stride is always 1, and the image is padded with `padding` pixels of zeros on each side.
"""

from __future__ import annotations

import math
from functools import cache

import torch

TILE, WINDOW = 4, 6
"""Sides in pixels of a tile of outputs and of the window of inputs that it depends on."""

MOST_BYTES = 2**23
"""The largest number of bytes of transformed windows at a time. So many fit into a core's cache, and glibc keeps memory
blocks of this size for the next part, while it would return larger blocks to the system."""

# The matrices Bᵀ, G and Aᵀ of Lavin and Gray. For a kernel g and a window d, the tile is Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A.
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
    """weight (out, in, 3, 3) float32 -> transformed (36, in, out)."""
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
    # The result must not be a view: autograd forbids the next layer to change a view of a custom function in place.
    size = images, out, rows * TILE, columns * TILE
    whole = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    # A view of the result by tiles: writing a part of it writes the pixels of `whole`, without another copy.
    tiles = whole.permute(0, 2, 3, 1).view(images, rows, TILE, columns, TILE, out)
    at_once = _images_at_once(len(x), rows * columns, max(channels, out))
    for part, of_part in zip(torch.split(x, at_once), torch.split(tiles, at_once), strict=True):
        products = torch.bmm(_transformed_image(part, padding, rows, columns), kernel)
        outputs = _both(_matrix("output"), products.view(WINDOW, WINDOW, -1))
        of_part.copy_(outputs.view(TILE, TILE, len(part), rows, columns, out).permute(2, 3, 0, 4, 1, 5))
    if whole.shape[2:] == (height, width):
        return whole
    return whole[:, :, :height, :width].clone(memory_format=torch.channels_last)


def weight_gradient(x: torch.Tensor, grad_y: torch.Tensor, padding: int = 1) -> torch.Tensor:
    """Return the gradient of a convolution's weights.

    The transforms are linear, so the gradient uses their transposes: Gᵀ [Σ (A grad_y Aᵀ) ⊙ (Bᵀ d B)] G, where the sum
    is over tiles and images. The sum is taken before the last transform, which is then needed only once.

    Parameters
    ----------
    x : float32 tensor (b, in, H, W), channels last
    grad_y : float32 tensor (b, out, H + 2 padding - 2, W + 2 padding - 2), channels last
        The gradient of the convolution's output.
    padding : int

    Returns
    -------
    float32 tensor (out, in, 3, 3)
    """
    channels, out = x.shape[1], grad_y.shape[1]
    rows, columns = _tiles(grad_y.shape[2]), _tiles(grad_y.shape[3])
    at_once = _images_at_once(len(x), rows * columns, max(channels, out))
    products = x.new_zeros(WINDOW * WINDOW, channels, out)
    for part, grads in zip(torch.split(x, at_once), torch.split(grad_y, at_once), strict=True):
        tiles = _framed(grads, 0, rows * TILE, columns * TILE).view(len(part), rows, TILE, columns, TILE, out)
        grad_windows = _both(_matrix("output").t(), tiles.permute(2, 4, 0, 1, 3, 5)).view(WINDOW * WINDOW, -1, out)
        products.baddbmm_(_transformed_image(part, padding, rows, columns).transpose(1, 2), grad_windows)
    grad_weight = _both(_matrix("kernel").t(), products.view(WINDOW, WINDOW, -1))
    return grad_weight.view(3, 3, channels, out).permute(3, 2, 0, 1)


def _transformed_image(x: torch.Tensor, padding: int, rows: int, columns: int) -> torch.Tensor:
    """x (b, c, H, W) -> transformed windows (36, b · rows · columns, c)."""
    framed = _framed(x, padding, rows * TILE + 2, columns * TILE + 2)
    windows = framed.unfold(1, WINDOW, TILE).unfold(2, WINDOW, TILE)  # (b, rows, columns, c, 6, 6)
    return _both(_matrix("image"), windows.permute(4, 5, 0, 1, 2, 3)).view(WINDOW * WINDOW, -1, x.shape[1])


def _tiles(side: int) -> int:
    """Return how many tiles cover a side, rounded up."""
    return -(-side // TILE)


def _images_at_once(images: int, tiles: int, channels: int) -> int:
    """Return how many images to transform at a time, so that parts stay below `MOST_BYTES` and have similar sizes."""
    parts = math.ceil(images * 4 * WINDOW * WINDOW * tiles * channels / MOST_BYTES)
    return math.ceil(images / max(1, parts))


def _framed(x: torch.Tensor, before: int, height: int, width: int) -> torch.Tensor:
    """x (b, c, H, W) -> (b, height, width, c), contiguous, with `before` zeros before the image and zeros after it."""
    pixels = x.permute(0, 2, 3, 1)
    if pixels.shape[1:3] == (height, width):
        return pixels.contiguous()
    framed = x.new_zeros(len(x), height, width, x.shape[1])
    framed[:, before : before + x.shape[2], before : before + x.shape[3]] = pixels
    return framed


def _both(matrix: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return M values Mᵀ over the first two axes: matrix (m, n), values (n, n, ...) -> (m, m, rest flattened)."""
    m, n = matrix.shape
    first = matrix @ values.reshape(n, -1)
    return torch.matmul(matrix, first.view(m, n, -1))


@cache
def _matrix(of: str) -> torch.Tensor:
    return torch.tensor({"image": _OF_IMAGE, "kernel": _OF_KERNEL, "output": _OF_OUTPUT}[of], dtype=torch.float32)
