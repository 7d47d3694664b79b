"""Convolutions as the matrix products that a CPU is good at, where the library's own kernels are slow.

With small images the last maps of a network are a few pixels wide, and there oneDNN's convolutions leave most of a CPU
unused; without AVX-512 its gradients of weights do so on any map. These cases are computed otherwise; all others stay
as they are:

- 1 × 1 in bfloat16: a linear layer on the channels-last view.
- An output of at most `FEW` positions: one product a position, of the window clipped to the image, so that nothing is
  multiplied with padding (at 2 × 2 pixels that is 5/9 of a 3 × 3 convolution).
- 3 × 3 in float32 on at least `WINOGRAD_CHANNELS` channels: by Winograd's transforms (members/cpu/winograd.py).
- Windows that do not overlap, 1 × 1 among them, in float32: the gradient of the weights is one product.
- Depthwise: the gradient of the weights from the products of every pair of positions, one batched product over the
  images; and in bfloat16 the two gradients for which oneDNN falls back to a reference loop are taken in float32.

The results are the same sums, in another order or by way of Winograd's transforms. Sums over positions are accumulated
in float32.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import nn

from ensemble.members.cpu import winograd

FEW = 4
"""Positions of an output that are computed one by one."""

SMALL_MAP = 64
"""Positions of a map up to which a depthwise weight gradient is taken from all pairs of positions."""

WINOGRAD_CHANNELS = 64
"""In and out: with fewer, transforming an image takes longer than multiplying it."""

Pair: TypeAlias = tuple[int, int]


class LoweredConv2d(nn.Conv2d):
    """A `torch.nn.Conv2d` that chooses its way by the shape of what comes in. Parameters and state are the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, in, H, W) -> (b, out, H', W')."""
        padding = pair(self.padding)
        if self.padding_mode != "zeros":
            x, padding = nn.functional.pad(x, self._reversed_padding_repeated_twice, self.padding_mode), (0, 0)
        x, weight, bias = _as_autocast(x, self.weight, self.bias)
        stride = pair(self.stride)
        height, width = output_size(x.shape[2:], weight.shape[2:], stride, padding)
        if self.groups > 1:
            y: torch.Tensor = _Depthwise.apply(x, weight, stride, padding)
        elif x.dtype == torch.bfloat16 and self.kernel_size == stride == (1, 1) and padding == (0, 0):
            return nn.functional.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        elif height * width <= FEW and self.kernel_size != (1, 1):
            y = _Windows.apply(x, weight, stride, padding)
        elif x.dtype == torch.float32:
            of_layer: torch.Tensor = _Dense.apply(x, weight, bias, stride, padding)
            return of_layer
        else:
            return nn.functional.conv2d(x, weight, bias, stride, padding)
        return y if bias is None else y + bias.view(1, -1, 1, 1)


def lower(network: nn.Module) -> None:
    """Turn the plain convolutions of a network into `LoweredConv2d`, in place; subclasses and dilated ones stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.dilation == (1, 1):
            depthwise = module.groups == module.in_channels == module.out_channels
            if not isinstance(module.padding, str) and (module.groups == 1 or depthwise):
                module.__class__ = LoweredConv2d


def pair(value: Any) -> Pair:
    return int(value[0]), int(value[1])


def output_size(size: torch.Size, kernel: torch.Size, stride: Pair, padding: Pair) -> Pair:
    height, width = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True))
    return height, width


def _as_autocast(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the operands in autocast's precision, as it would bring them to it for a convolution."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return x.contiguous(memory_format=torch.channels_last), weight, bias


def suits_winograd(weight: torch.Tensor, stride: Pair, padding: Pair) -> bool:
    """Return whether a dense float32 convolution (out, in, kh, kw) takes less time by members/cpu/winograd.py."""
    wide = min(weight.shape[:2]) >= WINOGRAD_CHANNELS
    return wide and weight.shape[2:] == (3, 3) and stride == (1, 1) and padding in ((0, 0), (1, 1))


# --- float32 ----------------------------------------------------------------------------------------------------------


class _Dense(torch.autograd.Function):
    """A convolution (out, in, kh, kw) of all channels, in float32."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: Pair, padding: Pair
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        if not suits_winograd(weight, stride, padding):
            return torch.conv2d(x, weight, bias, stride, padding)
        y = winograd.convolve(x, winograd.transformed_kernel(weight), padding[0])
        return y if bias is None else y.add_(bias.view(1, -1, 1, 1))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        slope = gradients[0].contiguous(memory_format=torch.channels_last)
        in_tiles = suits_winograd(weight, ctx.stride, ctx.padding)
        apart = ctx.padding == (0, 0) and all(s >= k for s, k in zip(ctx.stride, weight.shape[2:], strict=True))
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            if in_tiles:
                mirrored = winograd.transformed_kernel(weight.flip(2, 3).transpose(0, 1))
                of_x = winograd.convolve(slope, mirrored, 2 - ctx.padding[0])
            else:
                of_x = _library_gradient(ctx, slope, x, weight, 0)
        if ctx.needs_input_grad[1]:
            if in_tiles:
                of_weight = winograd.weight_gradient(x, slope, ctx.padding[0])
            elif apart:
                of_weight = _gradient_of_windows_apart(slope, x, weight.shape[2:], ctx.stride)
            else:
                of_weight = _library_gradient(ctx, slope, x, weight, 1)
        if ctx.needs_input_grad[2]:
            of_bias = slope.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def _gradient_of_windows_apart(slope: torch.Tensor, x: torch.Tensor, kernel: torch.Size, stride: Pair) -> torch.Tensor:
    """Return the gradient (out, in, kh, kw) of weights whose windows share no pixel: slopeᵀ · windows."""
    out, channels, (high, wide) = slope.shape[1], x.shape[1], kernel
    apart = x.unfold(2, high, stride[0]).unfold(3, wide, stride[1])  # (b, in, H', W', kh, kw), a view
    patches = apart.permute(0, 2, 3, 4, 5, 1).reshape(-1, high * wide * channels)
    found = slope.permute(0, 2, 3, 1).reshape(-1, out).t() @ patches
    return found.view(out, high, wide, channels).permute(0, 3, 1, 2)


# --- few output positions ---------------------------------------------------------------------------------------------


def windows(size: Pair, kernel: Pair, stride: Pair, padding: Pair, out: Pair) -> list[tuple[Any, ...]]:
    """Return for every output position its index, and the slices of the image and of the kernel that meet there."""

    def clipped(position: int, axis: int) -> tuple[slice, slice]:
        start = position * stride[axis] - padding[axis]
        low = min(max(start, 0), size[axis])
        high = max(low, min(start + kernel[axis], size[axis]))
        return slice(low, high), slice(low - start, high - start)

    found = []
    for row, column in product(range(out[0]), range(out[1])):
        (rows, of_rows), (columns, of_columns) = clipped(row, 0), clipped(column, 1)
        every = slice(None)
        found.append(((every, row, column), (every, rows, columns), (every, of_rows, of_columns)))
    return found


class _Windows(torch.autograd.Function):
    """A convolution, one matrix product an output position."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> torch.Tensor:
        images, kernels = x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)  # (b, H, W, in), (out, kh, kw, in)
        out = output_size(x.shape[2:], weight.shape[2:], stride, padding)
        ctx.windows = windows(pair(x.shape[2:]), pair(weight.shape[2:]), stride, padding, out)
        ctx.save_for_backward(x, weight)
        size = len(x), len(weight), *out
        y = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)  # no view: others may change it
        outputs = y.permute(0, 2, 3, 1)
        for at, of_image, of_kernel in ctx.windows:
            outputs[at] = images[of_image].flatten(1) @ kernels[of_kernel].flatten(1).t()
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        images, kernels, slopes = (t.permute(0, 2, 3, 1) for t in (x, weight, gradients[0]))
        of_images = torch.zeros(images.shape, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        of_kernels = torch.zeros(kernels.shape, dtype=torch.float32)
        for at, of_image, of_kernel in ctx.windows:
            slope = slopes[at].contiguous()  # (b, out)
            window, kernel = images[of_image], kernels[of_kernel]
            if of_images is not None:
                of_images[of_image] += (slope @ kernel.flatten(1)).view(window.shape)
            of_kernels[of_kernel] += (slope.t() @ window.flatten(1)).view(kernel.shape)
        back = None if of_images is None else of_images.to(x.dtype).permute(0, 3, 1, 2)
        return back, of_kernels.to(weight.dtype).permute(0, 3, 1, 2), None, None


# --- depthwise --------------------------------------------------------------------------------------------------------


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution (c, 1, kh, kw) with gradients of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        slope = gradients[0].contiguous(memory_format=torch.channels_last)
        half, kernel = x.dtype == torch.bfloat16, max(weight.shape[2:])
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _library_gradient(ctx, slope, x, weight, 0, len(weight), half and ctx.stride != (1, 1))
        if ctx.needs_input_grad[1]:
            positions = x.shape[2] * x.shape[3]
            if positions <= SMALL_MAP and (kernel >= 5 or positions <= FEW):
                of_weight = _gradient_from_pairs(slope, x, weight.shape[2:], ctx.stride, ctx.padding).to(weight.dtype)
            else:
                of_weight = _library_gradient(ctx, slope, x, weight, 1, len(weight), half and kernel >= 5)
        return of_x, of_weight, None, None


def _library_gradient(
    ctx: Any,
    slope: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    which: int,
    groups: int = 1,
    in_float: bool = False,
) -> torch.Tensor:
    """Return oneDNN's gradient of the input (0) or the weights (1)."""
    operands = [t.float() for t in (slope, x, weight)] if in_float else [slope, x, weight]
    mask = [which == 0, which == 1, False]
    found: torch.Tensor = torch.ops.aten.convolution_backward(
        *operands, None, ctx.stride, ctx.padding, [1, 1], False, [0, 0], groups, mask
    )[which]
    return found.to(x.dtype)


def _gradient_from_pairs(
    slope: torch.Tensor, x: torch.Tensor, kernel: torch.Size, stride: Pair, padding: Pair
) -> torch.Tensor:
    """Return the gradient (c, 1, kh, kw), float32, of depthwise weights.

    Σ_b slope[b, c, o] x[b, c, i] for every output position o and input position i is one batched matrix product; each
    weight's gradient is the sum over the pairs that it connects.
    """
    channels, out = x.shape[1], slope.shape[2] * slope.shape[3]
    pairs = slope.permute(1, 2, 3, 0).reshape(channels, out, -1) @ x.permute(1, 0, 2, 3).reshape(channels, len(x), -1)
    connects = _connections(pair(x.shape[2:]), pair(slope.shape[2:]), pair(kernel), stride, padding)
    return (pairs.float().flatten(1) @ connects).view(channels, 1, *kernel)


@lru_cache(maxsize=64)
def _connections(size: Pair, out: Pair, kernel: Pair, stride: Pair, padding: Pair) -> torch.Tensor:
    """Return which weight (kh · kw) connects which pair of positions (out · in): 0 or 1, (out · in, kh · kw)."""

    def offset(axis: int) -> torch.Tensor:  # (out, in) of one axis: the index in the kernel, where it is in range
        at = torch.arange(size[axis])[None] - torch.arange(out[axis])[:, None] * stride[axis] + padding[axis]
        return torch.nn.functional.one_hot(at.clamp(-1, kernel[axis]) + 1, kernel[axis] + 2)[..., 1:-1].float()

    both = torch.einsum("oik,plm->opilkm", offset(0), offset(1))
    return both.reshape(out[0] * out[1] * size[0] * size[1], kernel[0] * kernel[1])
