"""Fuse networks for prediction on a CPU: norms, layer scales and activations become part of the layers before them.

Without fusion, each of them reads and writes a whole map in memory. In a fused network, batch norms and layer scales
are multiplied into the weights, and oneDNN computes an activation while a convolution or a linear layer writes its
result. Weights are cast once, and those of linear layers are laid out for oneDNN once. As in
members/cpu/convolutions.py, 1 × 1 convolutions in bfloat16 and convolutions with few output positions are matrix
products; in float32 so are 1 × 1 convolutions on small maps, and wide 3 × 3 ones use Winograd's transforms.

Order of the passes (`_traced`): layer scales first, as tracing would record them as multiplications; then dropout and
identities are removed, so that a norm follows its convolution directly; then each layer is packed with what follows.
"""

from __future__ import annotations

import copy
from typing import Any, TypeAlias, TypeGuard

import torch
from timm.layers import BatchNormAct2d, activations
from timm.models.convnext import ConvNeXtBlock
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ensemble.members.backbones import Backbone
from ensemble.members.cpu import winograd
from ensemble.members.cpu.convolutions import FEW, output_size, pair, suits_winograd, windows
from ensemble.members.precision import onednn_computes
from ensemble.members.safe_convolutions import SampledConv2d
from ensemble.members.small_cnns import ReplicatedConv2d

Activation: TypeAlias = tuple[str, list[float], str]
"""An activation in oneDNN's terms: name, parameters, algorithm."""

NONE: Activation = ("none", [], "")
"""No activation, in oneDNN's terms."""

ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: ("relu", [], ""),
    nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
    nn.SiLU: ("swish", [], ""),
    nn.Hardswish: ("hardswish", [], ""),
    activations.GELU: ("gelu", [], "none"),
}
"""Activations that oneDNN can apply to the result of a layer."""

FUNCTIONS = {
    "none": nn.Identity(),
    "relu": torch.relu_,
    "hardtanh": nn.functional.hardtanh_,
    "swish": nn.functional.silu,
    "hardswish": nn.functional.hardswish,
    "gelu": nn.functional.gelu,
}
"""The same activations as functions of torch, by oneDNN's names, for layers that are computed without oneDNN. They may
change their argument in place, because it is the result of the layer and nothing else uses it."""

PRODUCT_MAP = 16
"""The largest map, in positions, on which a 1 × 1 convolution in float32 is faster as a plain matrix product."""

NORMS = (nn.BatchNorm2d, BatchNormAct2d)
"""Norms that can be fused into the convolution before them."""

IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d)
"""Layers that do nothing in evaluation mode."""


def fuse(network: Backbone, dtype: torch.dtype) -> Backbone:
    """Return a `FusedBackbone` with a copy of this network's weights that computes the same in evaluation mode.

    Parameters
    ----------
    network : Backbone
        On the CPU. The network itself is returned if `torch.fx` cannot trace it, because its code branches on its
        input, or if this machine's oneDNN cannot compute it in `dtype`.
    dtype : torch.dtype
        The format of the inputs and outputs of convolutions and linear layers: the precision of prediction.
    """
    if not onednn_computes(dtype):
        return network
    try:
        fused = _traced(copy.deepcopy(network).eval(), dtype)
        with torch.inference_mode():
            fused(torch.zeros((2, network.input_size, network.input_size, 3), dtype=torch.uint8), dtype)
    except Exception:  # a network's code may raise anything on a traced value, and oneDNN may lack a kernel
        return network
    return fused


def _traced(copied: Backbone, dtype: torch.dtype) -> FusedBackbone:
    """Trace a network and fuse its layers; the docstring of this file explains the order of the passes."""
    for module in copied.modules():
        _fuse_layer_scale(module)
    tracer = _Tracer()
    graph = tracer.trace(_Features(copied))
    features = fx.GraphModule(tracer.root, graph)
    for node in list(graph.nodes):
        if isinstance(_module_of(features, node), IDLE):
            _skip(node)
    for node in list(graph.nodes):
        _pack(features, node, dtype)
    features.delete_all_unused_submodules()
    features.recompile()
    return FusedBackbone(copied, features)


class FusedBackbone(Backbone):
    """A backbone whose features are computed by a traced graph of fused layers."""

    def __init__(self, network: Backbone, graph: fx.GraphModule) -> None:
        super().__init__(network.model, network.input_size, network.classes)
        self.graph, self.convolutions = graph, "fused"

    def features(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.graph(x)
        return result


class _Features(nn.Module):
    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.features(x)


class _Tracer(fx.Tracer):
    """A tracer that records modules without children, and batch norms with their activation, as single nodes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or not list(m.children())


# --- layers -----------------------------------------------------------------------------------------------------------


class PackedLinear(nn.Module):
    """A linear layer with its activation. Its weights are brought into oneDNN's layout once, not in each call.

    Parameters
    ----------
    weight : tensor (out, in)
    bias : float32 tensor (out,), optional
    activation : Activation
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> None:
        super().__init__()
        self._dtype, self._bias, self._activation = weight.dtype, bias, activation
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self._dtype), self._weight, self._bias, *self._activation
        )
        return result


class PackedConv2d(nn.Module):
    """A convolution with its activation, which uses the fastest kernel for its shape.

    Parameters
    ----------
    layer : torch.nn.Conv2d
        Its stride, padding, dilation and groups are used.
    weight : tensor (out, in / groups, kh, kw)
    bias : float32 tensor (out,), optional
    activation : Activation
    """

    def __init__(
        self, layer: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation
    ) -> None:
        super().__init__()
        self._dtype, self._kernel, self._bias, self._activation = weight.dtype, weight.shape[2:], bias, activation
        self._mode, self._borders = layer.padding_mode, layer._reversed_padding_repeated_twice
        self._padding = pair(layer.padding) if self._mode == "zeros" else (0, 0)
        self._stride, self._dilation, self._groups = pair(layer.stride), pair(layer.dilation), layer.groups
        dense = self._groups == 1 and self._dilation == (1, 1)
        pointwise = dense and layer.kernel_size == self._stride == (1, 1) and layer.padding == (0, 0)
        inside = all(border < side for border, side in zip(self._padding, self._kernel, strict=True))
        # `inside`: no window lies completely in the padding, so every output position has a product.
        self._few = FEW if dense and inside and not pointwise else 0
        in_float = dense and weight.dtype == torch.float32
        self._as_product = PRODUCT_MAP if in_float and pointwise else 0
        self._in_tiles = in_float and suits_winograd(weight, self._stride, self._padding)
        self._of_tiles: torch.Tensor | None = None
        self._windows: dict[torch.Size, list[tuple[Any, Any, PackedLinear]]] = {}
        as_linear = pointwise and weight.dtype == torch.bfloat16
        self._layer = PackedLinear(weight[:, :, 0, 0], bias, activation) if as_linear else None
        self._weight = weight[:0] if as_linear else weight  # `PackedLinear` holds its own copy of the weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, in, H, W) -> (b, out, H', W'), channels last."""
        x = x.to(self._dtype)
        if self._mode != "zeros":
            with torch.autocast("cpu", enabled=False):  # autocast would pad in float32
                x = nn.functional.pad(x, self._borders, self._mode)
        x = x.contiguous(memory_format=torch.channels_last)
        result: torch.Tensor
        height, width = output_size(x.shape[2:], self._kernel, self._stride, self._padding)
        if self._layer is not None:
            # x is channels last, so the permuted view (b, H, W, in) is contiguous: no copy is made.
            result = self._layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        elif height * width <= self._few:
            result = self._in_windows(x, height, width)
        elif self._in_tiles:
            if self._of_tiles is None:  # only when needed: the transformed kernel has four times the size
                self._of_tiles = winograd.transformed_kernel(self._weight)
            sums = winograd.convolve(x, self._of_tiles, self._padding[0])
            result = self._activated(sums if self._bias is None else sums.add_(self._bias.view(1, -1, 1, 1)))
        elif height * width <= self._as_product:
            products = nn.functional.linear(x.permute(0, 2, 3, 1), self._weight[:, :, 0, 0], self._bias)
            result = self._activated(products).permute(0, 3, 1, 2)
        else:
            how = self._padding, self._stride, self._dilation, self._groups, *self._activation
            result = torch.ops.mkldnn._convolution_pointwise(x, self._weight, self._bias, *how)
        return result

    def _activated(self, y: torch.Tensor) -> torch.Tensor:
        name, parameters, algorithm = self._activation
        apply: Any = FUNCTIONS[name]
        result: torch.Tensor = apply(y, *parameters, **({"approximate": algorithm} if algorithm else {}))
        return result

    def _in_windows(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return the convolution as one product for each output position: its window, clipped to the image.

        The layers are cached by the size of the image, because the clipped windows depend on it.
        """
        if x.shape[2:] not in self._windows:
            kernels = self._weight.permute(0, 2, 3, 1)
            at_positions = windows(
                pair(x.shape[2:]), pair(self._weight.shape[2:]), self._stride, self._padding, (height, width)
            )
            self._windows[x.shape[2:]] = [
                (at, of_image, PackedLinear(kernels[of_kernel].flatten(1), self._bias, self._activation))
                for at, of_image, of_kernel in at_positions
            ]
        images = x.permute(0, 2, 3, 1)
        y = x.new_empty(len(x), height, width, len(self._weight))
        for at, of_image, layer in self._windows[x.shape[2:]]:
            y[at] = layer(images[of_image].flatten(1))
        return y.permute(0, 3, 1, 2)


# --- passes over the graph --------------------------------------------------------------------------------------------


def _module_of(features: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    """Return the module that a node runs, or None if it runs a function."""
    return features.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _skip(node: fx.Node) -> None:
    """Remove a node from the graph; its users get its input."""
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)


def _pack(features: fx.GraphModule, node: fx.Node, dtype: torch.dtype) -> None:
    """Replace a convolution or linear layer, and the norm and activation after it, by a packed layer.

    A norm or an activation is fused only if it is the only user of the layer's result; otherwise another node still
    needs the result without it.
    """
    layer = _module_of(features, node)
    if _is_shared(node) or not isinstance(layer, (nn.Conv2d, nn.Linear)) or not _is_plain(layer):
        return
    weight, bias = layer.weight.detach().float(), None if layer.bias is None else layer.bias.detach().float()
    after = _only_user(node)
    norm = _module_of(features, after)
    if after and isinstance(layer, nn.Conv2d) and _is_fusable(norm) and not _is_shared(after):
        weight, bias = _with_norm(weight, bias, norm)
        activation = getattr(norm, "act", nn.Identity())
        features.set_submodule(str(after.target), activation)
        if isinstance(activation, IDLE):
            _skip(after)  # the node after it is then the only user of this layer, and may be its activation
    after = _only_user(node)
    activation_after = _activation(_module_of(features, after))
    if after and activation_after:
        _skip(after)
    of_layer = weight.to(dtype), bias, activation_after or NONE
    packed = PackedConv2d(layer, *of_layer) if isinstance(layer, nn.Conv2d) else PackedLinear(*of_layer)
    features.set_submodule(str(node.target), packed)


def _is_shared(node: fx.Node) -> bool:
    """Return whether other nodes run the same module or read one of its parameters; then it must not be changed."""
    target = str(node.target)
    of_modules = [str(other.target) for other in node.graph.nodes if other.op in ("call_module", "get_attr")]
    return sum(each == target or each.startswith(f"{target}.") for each in of_modules) > 1


def _is_fusable(module: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    return type(module) in NORMS and getattr(module, "running_var", None) is not None


def _activation(module: nn.Module | None) -> Activation | None:
    return None if module is None else ACTIVATIONS.get(type(module))


def _is_plain(layer: nn.Conv2d | nn.Linear) -> bool:
    """Return whether a layer computes what its class says; a subclass may compute anything."""
    plain = type(layer) in (nn.Conv2d, SampledConv2d, ReplicatedConv2d, nn.Linear)
    return plain and not (isinstance(layer, nn.Conv2d) and isinstance(layer.padding, str))


def _with_norm(
    weight: torch.Tensor, bias: torch.Tensor | None, norm: nn.BatchNorm2d
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights and bias of a convolution with the norm after it: w · γ / σ and (b - μ) · γ / σ + β.

    They are computed in float64, because rounding the scale to float32 would add the same error to every weight of a
    channel.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    scale = torch.rsqrt(variance.double() + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -mean.double() * scale if bias is None else (bias.double() - mean) * scale
    shift = shift if norm.bias is None else shift + norm.bias.detach().double()
    return (weight.double() * scale.view(-1, 1, 1, 1)).float(), shift.float()


def _fuse_layer_scale(module: nn.Module) -> None:
    """Multiply the layer scale of a ConvNeXt block into the weights and bias of its last layer."""
    if not isinstance(module, ConvNeXtBlock) or module.gamma is None:
        return
    last, scale = module.mlp.fc2, module.gamma.detach()
    with torch.no_grad():
        last.weight.mul_(scale.view(-1, *[1] * (last.weight.ndim - 1)))
        if last.bias is not None:
            last.bias.mul_(scale)
    module.gamma = None
