"""Compute convolutions as matrix products, which are fast on a CPU, if the library's own kernels are slow.

With small images the last maps of a network are a few pixels wide, and on these oneDNN's convolutions leave most of a
CPU unused. Without AVX-512, its weight gradients leave most of it unused on maps of any size. The following cases are
computed here; the library computes all others:

- 1 × 1 in bfloat16: a linear layer on the channels-last view.
- An output of at most `FEW` positions: one product for each position, of the window clipped to the image. No padding is
  multiplied, which at 2 × 2 pixels is 5/9 of the work of a 3 × 3 convolution.
- 3 × 3 in float32 on at least `WINOGRAD_CHANNELS` channels: Winograd's transforms (members/cpu/winograd.py).
- Windows that do not overlap, 1 × 1 included, in float32: the weight gradient is one product.
- Depthwise: the weight gradient comes from the products of all pairs of positions, one batched product over the images.
  In bfloat16, two gradients for which oneDNN falls back to a reference loop are computed in float32.

The results are the same sums in another order, or by Winograd's transforms. Sums over positions are accumulated in
float32.

Memory layout: maps (b, c, H, W) are channels last, so the view (b, H, W, c) is contiguous. A pixel's channels then lie
side by side, and rows of these views are the operands of the products without a copy.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import nn

from ensemble.members.cpu import winograd
from ensemble.members.small_cnns import ReplicatedConv2d

FEW = 4
"""The largest output, in positions, that is computed by one product for each position: maps of up to 2 × 2 pixels."""

SMALL_MAP = 64
"""The largest map, in positions, whose depthwise weight gradient comes from all pairs of positions, 64 × 64 of them."""

WINOGRAD_CHANNELS = 64
"""The numbers of input and output channels from which Winograd's transforms are faster. With fewer, the transforms take
longer than the products save."""

Pair: TypeAlias = tuple[int, int]


class LoweredConv2d(nn.Conv2d):
    """A `torch.nn.Conv2d` that chooses its kernel by the shape of its input. Parameters and state are the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, in, H, W) -> (b, out, H', W')."""
        padding = pair(self.padding)
        if self.padding_mode != "zeros":  # the borders are added here, so the convolution needs no padding
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
            y = _Dense.apply(x, weight, bias, stride, padding)
            return y  # the library has added the bias
        else:
            return nn.functional.conv2d(x, weight, bias, stride, padding)
        return y if bias is None else y + bias.view(1, -1, 1, 1)


def lower(network: nn.Module) -> None:
    """Turn the plain convolutions of a network into `LoweredConv2d`, in place.

    Other subclasses are not changed, because they may compute anything. Dilated convolutions, grouped ones that are not
    depthwise, and those with a padding given by name are not changed either.
    """
    for module in network.modules():
        if type(module) in (nn.Conv2d, ReplicatedConv2d) and module.dilation == (1, 1):
            depthwise = module.groups == module.in_channels == module.out_channels
            if not isinstance(module.padding, str) and (module.groups == 1 or depthwise):
                module.__class__ = LoweredConv2d


def pair(value: Any) -> Pair:
    """Return two numbers of a stride, padding or size as a tuple of int."""
    return int(value[0]), int(value[1])


def output_size(size: torch.Size, kernel: torch.Size, stride: Pair, padding: Pair) -> Pair:
    """Return height and width of a convolution's output."""
    height, width = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True))
    return height, width


def _as_autocast(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the operands in autocast's precision, as a library convolution has them; the map channels last."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return x.contiguous(memory_format=torch.channels_last), weight, bias


def suits_winograd(weight: torch.Tensor, stride: Pair, padding: Pair) -> bool:
    """Return whether a dense float32 convolution (out, in, kh, kw) is faster by members/cpu/winograd.py."""
    wide = min(weight.shape[:2]) >= WINOGRAD_CHANNELS
    return wide and weight.shape[2:] == (3, 3) and stride == (1, 1) and padding in ((0, 0), (1, 1))


# --- float32 ----------------------------------------------------------------------------------------------------------


class _Dense(torch.autograd.Function):
    """A dense convolution (out, in, kh, kw) in float32."""

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
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_y = grads[0].contiguous(memory_format=torch.channels_last)
        in_tiles = suits_winograd(weight, ctx.stride, ctx.padding)
        disjoint = ctx.padding == (0, 0) and all(s >= k for s, k in zip(ctx.stride, weight.shape[2:], strict=True))
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            if in_tiles:
                # The input's gradient is the full convolution of the output's gradient with the mirrored kernels.
                mirrored = winograd.transformed_kernel(weight.flip(2, 3).transpose(0, 1))
                grad_x = winograd.convolve(grad_y, mirrored, 2 - ctx.padding[0])
            else:
                grad_x = _library_gradient(ctx, grad_y, x, weight, 0)
        if ctx.needs_input_grad[1]:
            if in_tiles:
                grad_weight = winograd.weight_gradient(x, grad_y, ctx.padding[0])
            elif disjoint:
                grad_weight = _gradient_of_disjoint_windows(grad_y, x, weight.shape[2:], ctx.stride)
            else:
                grad_weight = _library_gradient(ctx, grad_y, x, weight, 1)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_y.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None


def _gradient_of_disjoint_windows(
    grad_y: torch.Tensor, x: torch.Tensor, kernel: torch.Size, stride: Pair
) -> torch.Tensor:
    """Return the weight gradient (out, in, kh, kw) for windows that share no pixel: grad_yᵀ · windows.

    The windows together are no larger than the image, so that they can be copied side by side.
    """
    out, channels, (high, wide) = grad_y.shape[1], x.shape[1], kernel
    x_windows = x.unfold(2, high, stride[0]).unfold(3, wide, stride[1])  # (b, in, H', W', kh, kw), a view
    patches = x_windows.permute(0, 2, 3, 4, 5, 1).reshape(
        -1, high * wide * channels
    )  # channels last: no copy for 1 × 1
    grad_weight = grad_y.permute(0, 2, 3, 1).reshape(-1, out).t() @ patches
    return grad_weight.view(out, high, wide, channels).permute(0, 3, 1, 2)


# --- few output positions ---------------------------------------------------------------------------------------------


def windows(size: Pair, kernel: Pair, stride: Pair, padding: Pair, out: Pair) -> list[tuple[Any, ...]]:
    """Return for every output position its index, and the slices of the image and of the kernel that overlap there.

    The index and slices are of (b, H, W, c) and (out, kh, kw, in). A window in the padding has empty slices.
    """

    def clipped(position: int, axis: int) -> tuple[slice, slice]:
        start = position * stride[axis] - padding[axis]
        low = min(max(start, 0), size[axis])
        high = max(low, min(start + kernel[axis], size[axis]))
        return slice(low, high), slice(low - start, high - start)

    at_positions = []
    for row, column in product(range(out[0]), range(out[1])):
        (rows, of_rows), (columns, of_columns) = clipped(row, 0), clipped(column, 1)
        every = slice(None)
        at_positions.append(((every, row, column), (every, rows, columns), (every, of_rows, of_columns)))
    return at_positions


class _Windows(torch.autograd.Function):
    """A dense convolution with few output positions, as one matrix product for each."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> torch.Tensor:
        images, kernels = x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)  # (b, H, W, in), (out, kh, kw, in)
        out = output_size(x.shape[2:], weight.shape[2:], stride, padding)
        ctx.windows = windows(pair(x.shape[2:]), pair(weight.shape[2:]), stride, padding, out)
        ctx.save_for_backward(x, weight)
        # The result must not be a view: autograd forbids the next layer to change a view of a custom function in place.
        y = torch.empty((len(x), len(weight), *out), dtype=x.dtype, memory_format=torch.channels_last)
        outputs = y.permute(0, 2, 3, 1)
        for at, of_image, of_kernel in ctx.windows:
            outputs[at] = images[of_image].flatten(1) @ kernels[of_kernel].flatten(1).t()
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        images, kernels, grad_outputs = (t.permute(0, 2, 3, 1) for t in (x, weight, grads[0]))
        # Windows overlap, so their gradients are summed. The sum is in float32, because bfloat16 would lose small
        # terms.
        grad_images = torch.zeros(images.shape, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        grad_kernels = torch.zeros(kernels.shape, dtype=torch.float32)
        for at, of_image, of_kernel in ctx.windows:
            grad_y = grad_outputs[at].contiguous()  # (b, out)
            window, kernel = images[of_image], kernels[of_kernel]
            if grad_images is not None:
                grad_images[of_image] += (grad_y @ kernel.flatten(1)).view(window.shape)
            grad_kernels[of_kernel] += (grad_y.t() @ window.flatten(1)).view(kernel.shape)
        grad_x = None if grad_images is None else grad_images.to(x.dtype).permute(0, 3, 1, 2)
        return grad_x, grad_kernels.to(weight.dtype).permute(0, 3, 1, 2), None, None


# --- depthwise --------------------------------------------------------------------------------------------------------


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution (c, 1, kh, kw) with the library's forward pass and gradients of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_y = grads[0].contiguous(memory_format=torch.channels_last)
        half, kernel = x.dtype == torch.bfloat16, max(weight.shape[2:])
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            # oneDNN has no bfloat16 kernel for the input's gradient with a stride, only a slow reference loop.
            grad_x = _library_gradient(ctx, grad_y, x, weight, 0, len(weight), half and ctx.stride != (1, 1))
        if ctx.needs_input_grad[1]:
            positions = x.shape[2] * x.shape[3]
            if positions <= SMALL_MAP and (kernel >= 5 or positions <= FEW):
                grad_weight = _gradient_from_pairs(grad_y, x, weight.shape[2:], ctx.stride, ctx.padding)
                grad_weight = grad_weight.to(weight.dtype)
            else:  # it has none for the weight gradient of kernels from 5 × 5 either
                grad_weight = _library_gradient(ctx, grad_y, x, weight, 1, len(weight), half and kernel >= 5)
        return grad_x, grad_weight, None, None


def _library_gradient(
    ctx: Any,
    grad_y: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    which: int,
    groups: int = 1,
    in_float: bool = False,
) -> torch.Tensor:
    """Return the library's gradient of the input (`which` = 0) or the weights (1), in float32 if `in_float`."""
    operands = [t.float() for t in (grad_y, x, weight)] if in_float else [grad_y, x, weight]
    mask = [which == 0, which == 1, False]
    gradient: torch.Tensor = torch.ops.aten.convolution_backward(
        *operands, None, ctx.stride, ctx.padding, [1, 1], False, [0, 0], groups, mask
    )[which]
    return gradient.to(x.dtype)


def _gradient_from_pairs(
    grad_y: torch.Tensor, x: torch.Tensor, kernel: torch.Size, stride: Pair, padding: Pair
) -> torch.Tensor:
    """Return the weight gradient (c, 1, kh, kw), float32, of a depthwise convolution.

    Σ_b grad_y[b, c, o] x[b, c, i], for every output position o and input position i, is one matrix product for each
    channel. The gradient of a weight is the sum over the pairs (o, i) that it connects. This also multiplies pairs that
    no weight connects, but on small maps one matrix product is still faster than the library's direct sums.
    """
    channels, out = x.shape[1], grad_y.shape[2] * grad_y.shape[3]
    grads = grad_y.permute(1, 2, 3, 0).reshape(channels, out, -1)  # (c, o, b)
    pairs = grads @ x.permute(1, 0, 2, 3).reshape(channels, len(x), -1)  # (c, o, i)
    connections = _connections(pair(x.shape[2:]), pair(grad_y.shape[2:]), pair(kernel), stride, padding)
    return (pairs.float().flatten(1) @ connections).view(channels, 1, *kernel)


@lru_cache(maxsize=64)
def _connections(size: Pair, out: Pair, kernel: Pair, stride: Pair, padding: Pair) -> torch.Tensor:
    """Return 1 where a weight connects a pair of positions and 0 elsewhere, float32 (out · in, kh · kw)."""

    def offset(axis: int) -> torch.Tensor:
        """Return (out, in, k) for one axis: the one-hot index in the kernel; all 0 if it is out of range."""
        at = torch.arange(size[axis])[None] - torch.arange(out[axis])[:, None] * stride[axis] + padding[axis]
        return torch.nn.functional.one_hot(at.clamp(-1, kernel[axis]) + 1, kernel[axis] + 2)[..., 1:-1].float()

    both = torch.einsum("oik,plm->opilkm", offset(0), offset(1))
    return both.reshape(out[0] * out[1] * size[0] * size[1], kernel[0] * kernel[1])
