"""Lowered convolutions are convolutions: the same outputs, the same gradients, the same state."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layers import SubclassedConv2d, assert_close, images, layer, run
from torch import nn

from ensemble.members.cpu import convolutions
from ensemble.members.cpu.convolutions import LoweredConv2d, lower, output_size, pair
from ensemble.members.probe import deviation


def lowered(layer: nn.Conv2d) -> nn.Conv2d:
    """Return a copy, lowered; its parameters are the original's."""
    one = type(layer)(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        groups=layer.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
        dtype=layer.weight.dtype,
    )
    one.load_state_dict(layer.state_dict())
    lower(one)
    assert type(one) is LoweredConv2d
    return one


SHAPES = [
    # (in, out, kernel, stride, padding, groups), the side of the map
    *(((5, 7, 3, stride, 1, 1), side) for stride in (1, 2) for side in (1, 2, 3, 4)),
    *(((4, 6, 1, stride, 0, 1), side) for stride in (1, 2) for side in (1, 4, 9)),
    *(((6, 6, 7, stride, 3, 6), side) for stride in (1, 2) for side in (2, 3, 4, 8, 16)),
    *(((6, 6, 3, stride, 1, 6), side) for stride in (1, 2) for side in (1, 2, 4, 9)),
    ((3, 8, 4, 4, 0, 1), 8),
    ((3, 8, 2, 2, 0, 1), 4),
    ((4, 4, 5, 2, 2, 4), 8),
    ((1, 3, 3, 1, 1, 1), 2),
    *(((2, 3, 2, stride, 3, 1), side) for stride, side in ((5, 2), (4, 3))),  # windows that see padding alone
    ((3, 8, 2, 2, 0, 1), 7),  # windows side by side that leave a border out
    *(((3, 8, 2, stride, 0, 1), 8) for stride in (3, 4)),  # windows that leave pixels between them out
    *(((64, 70, 3, 1, padding, 1), side) for padding in (0, 1) for side in (5, 8, 14)),
    ((64, 64, 3, 1, (1, 0), 1), 6),
    ((64, 64, 3, 2, 1, 1), 8),
]


@pytest.mark.parametrize(("given", "side"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_shapes_of_networks(given: tuple[int, ...], side: int, dtype: torch.dtype) -> None:
    """Outputs in float64 to its own precision; gradients are accumulated in float32, whatever the operands."""
    own = layer(*given[:5], groups=given[5], dtype=dtype)
    x = images((4, given[0], side, side), dtype)
    assert_close(own, run(lowered(own), x), x)
    if dtype == torch.float64:
        torch.testing.assert_close(lowered(own)(x), own(x), rtol=0, atol=1e-12)


@settings(max_examples=100)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    """Kernels that are not square, strides and paddings that differ by axis, with bias and without, any layout."""

    def two(low: int, high: int) -> tuple[int, int]:
        side = st.integers(low, high)
        return data.draw(st.tuples(side, side))

    kernel, stride, padding, size = two(1, 4), two(1, 4), two(0, 4), two(1, 6)
    height, width = output_size(torch.Size(size), torch.Size(kernel), pair(stride), pair(padding))
    assume(height > 0 and width > 0)
    depthwise, channels = data.draw(st.booleans()), data.draw(st.integers(1, 4))
    out = channels if depthwise else data.draw(st.integers(1, 4))
    groups, bias = channels if depthwise else 1, data.draw(st.booleans())
    own = layer(channels, out, kernel, stride, padding, groups=groups, bias=bias)
    x = images((data.draw(st.integers(1, 3)), channels, *size), channels_last=data.draw(st.booleans()))
    assert_close(own, run(lowered(own), x), x)


@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular"])
@pytest.mark.parametrize("bias", [False, True])
def test_borders_that_are_no_zeros(mode: str, bias: bool) -> None:
    for channels, stride, groups in ((4, 1, 1), (4, 2, 1), (64, 1, 1), (4, 1, 4)):
        own = layer(channels, channels, 3, stride, (2, 1), padding_mode=mode, bias=bias, groups=groups)
        x = images((3, channels, 5, 7))
        assert_close(own, run(lowered(own), x), x)
        own = layer(channels, channels, (5, 3), stride, (2, 0), padding_mode=mode, bias=bias, groups=groups)
        x = images((3, channels, 9, 6))
        assert_close(own, run(lowered(own), x), x)


@pytest.mark.parametrize(("channels", "side"), [(64, 8), (64, 5), (8, 2), (8, 8)])
@pytest.mark.parametrize("groups", [1, 8])
def test_what_follows_may_change_the_result_in_place(channels: int, side: int, groups: int) -> None:
    """As in networks without norms, VGGs among them."""
    own = layer(channels, channels, 3, padding=1, bias=False, groups=channels if groups > 1 else 1)
    found = {}
    for name, network in (("library", own), ("lowered", lowered(own))):
        x = images((2, channels, side, side)).requires_grad_()
        torch.relu_(network(x)).square().sum().backward()
        found[name] = x.grad
    torch.testing.assert_close(found["lowered"], found["library"], rtol=1e-4, atol=1e-4)


def test_wide_layers_and_windows_apart_are_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32: the library is not calls for the gradient of their weights."""
    calls, library = [], convolutions._library_gradient
    monkeypatch.setattr(convolutions, "_library_gradient", lambda *given: calls.append(given[4]) or library(*given))
    run(lowered(layer(64, 64, 3, 1, 1)), images((2, 64, 8, 8)))
    assert not calls
    for own in (layer(8, 8, 1), layer(8, 8, 1, 2), layer(8, 8, 2, 2)):
        run(lowered(own), images((2, 8, 8, 8)))
    assert calls == [0, 0, 0]
    run(lowered(layer(63, 64, 3, 1, 1)), images((2, 63, 8, 8)))
    assert calls == [0, 0, 0, 0, 1]


HALF = [
    ((16, 24, 1, 1, 0, 1), 4),
    ((16, 24, 1, 2, 0, 1), 4),
    ((16, 24, 3, 1, 1, 1), 2),
    ((16, 24, 3, 2, 1, 1), 4),
    ((16, 24, 3, 1, 1, 1), 8),
    ((32, 32, 7, 1, 3, 32), 8),
    ((32, 32, 7, 1, 3, 32), 16),
    ((32, 32, 3, 1, 1, 32), 2),
    ((32, 32, 3, 2, 1, 32), 8),
    ((32, 32, 5, 2, 2, 32), 8),
]


@pytest.mark.parametrize(("given", "side"), HALF, ids=str)
def test_bfloat16_is_as_near_to_float32_as_the_library(given: tuple[int, ...], side: int) -> None:
    own = layer(*given[:5], groups=given[5])
    x = images((32, given[0], side, side))
    exact, theirs, ours = run(own, x), run(own, x, torch.bfloat16), run(lowered(own), x, torch.bfloat16)
    for name, value in exact.items():
        assert 0 < deviation(ours[name], value) <= 1.5 * deviation(theirs[name], value) + 1e-4, name


def test_the_output_of_autocast_is_bfloat16() -> None:
    for shape, side in HALF:
        own = layer(*shape[:5], groups=shape[5])
        with torch.autocast("cpu", torch.bfloat16):
            assert lowered(own)(images((2, shape[0], side, side))).dtype == torch.bfloat16


def test_an_input_that_needs_no_gradient_has_none() -> None:
    for shape in ((5, 7, 3, 1, 1, 1), (6, 6, 7, 1, 3, 6)):
        own = lowered(layer(*shape[:5], groups=shape[5]))
        x = images((4, shape[0], 2, 2))
        own(x).sum().backward()
        assert x.grad is None and own.weight.grad is not None


def test_only_plain_convolutions_are_lowered() -> None:
    kept: dict[str, nn.Module] = {
        "grouped": layer(8, 8, 3, groups=2),
        "widening depthwise": layer(4, 8, 3, groups=4),
        "dilated": layer(4, 4, 3, dilation=2),
        "subclassed": SubclassedConv2d(4, 4, 3),
        "padded by name": layer(4, 4, 3, padding="same"),
        "transposed": nn.ConvTranspose2d(4, 4, 3),
        "of a line": nn.Conv1d(4, 4, 3),
        "linear": nn.Linear(4, 4),
    }
    changed = {"plain": layer(4, 8, 3), "pointwise": layer(4, 8, 1), "depthwise": layer(4, 4, 3, groups=4)}
    network = nn.ModuleDict(kept | changed)
    types = {name: type(module) for name, module in kept.items()}
    before = {key: value.clone() for key, value in network.state_dict().items()}
    parameters = list(network.parameters())
    lower(network)
    assert {name: type(network[name]) for name in kept} == types
    assert {type(network[name]) for name in changed} == {LoweredConv2d}
    after = network.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
    plain = nn.ModuleDict({"plain": layer(4, 8, 3)})
    plain.load_state_dict({key: value for key, value in after.items() if key.startswith("plain.")})


@pytest.mark.parametrize("arch", ["resnet18", "mobilenetv2_100", "convnext_nano"])
def test_a_whole_network_computes_the_same(arch: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(arch, num_classes=1).to(memory_format=torch.channels_last)
    x = images((4, 3, 64, 64))

    def computed() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)  # of dropout
        network.train().zero_grad()
        logits = network(x)
        logits.square().mean().backward()
        return logits.detach(), torch.cat([parameter.grad.flatten() for parameter in network.parameters()])

    expected = computed()
    assert not any(isinstance(module, LoweredConv2d) for module in network.modules())
    lower(network)
    assert sum(isinstance(module, LoweredConv2d) for module in network.modules()) > 10
    found = computed()
    for one, other in zip(expected, found, strict=True):
        assert deviation(other, one) < 1e-4
