"""A fused network computes the same as the network that it was made from, by other layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.layers.activations import GELU
from timm.models.convnext import ConvNeXt
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ensemble.config import MemberConfig
from ensemble.members.backbones import Backbone, build
from ensemble.members.cpu import convolutions
from ensemble.members.cpu.fused import ACTIVATIONS, FusedBackbone, PackedConv2d, PackedLinear, fuse
from ensemble.members.plans import REFERENCE, Plan, prepare
from ensemble.members.precision import onednn_computes
from ensemble.members.probe import deviation

ARCHS = [
    "resnet18",
    "mobilenetv2",
    "convnext_nano",
    "regnetx_002",
    "efficientnet_b0",  # squeeze and excitation, SiLU
    "mobilenetv3_large_100",  # hard swish
    "tf_efficientnet_b0",  # convolutions that pad as they run
    "densenet121",  # norms before convolutions
    "small_cnn",  # borders replicated
    "simple_cnn",
    "lenet",
    "edgenext_xx_small",  # reads a layer's parameters
]

COLOURS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}


def pixels(images: int, size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def lived_in(network: Backbone) -> Backbone:
    """Give the norms statistics, weights and biases as training does, and layer scales a size."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.2, 0.8)
        network.train()
        for _ in range(3):
            network(pixels(8, network.input_size))
    return network.eval()


def of(arch: str) -> Backbone:
    torch.manual_seed(0)
    given = {"arch": arch, "pretrained": False, "drop_path_rate": 0.1 if arch == "convnext_nano" else None}
    return lived_in(build(MemberConfig.model_validate(given), 64).to(memory_format=torch.channels_last))


@pytest.mark.parametrize("arch", ARCHS)
def test_it_computes_the_same(arch: str) -> None:
    network = of(arch)
    before = copy.deepcopy(network.state_dict())
    fused, half = fuse(network, torch.float32), fuse(network, torch.bfloat16)
    assert isinstance(fused, FusedBackbone)
    with torch.inference_mode():
        for images in (9, 1):
            batch = pixels(images, network.input_size)
            exact = network(batch)
            torch.testing.assert_close(fused(batch), exact, rtol=1e-3, atol=1e-3 * float(exact.std(unbiased=False) + 1))
        batch = pixels(32, network.input_size)
        reference = network(batch)
        assert deviation(fused(batch), reference) < 1e-3
        if onednn_computes(torch.bfloat16):
            assert isinstance(half, FusedBackbone)
            library = deviation(network(batch, torch.bfloat16), reference)
            assert 0 < deviation(half(batch, torch.bfloat16), reference) < 1e-3 + 1.5 * library
        else:
            assert half is network
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "the network itself is as it was"


@pytest.mark.parametrize(
    ("arch", "norms", "activations"), [("resnet18", 0, 8), ("mobilenetv2", 0, 0), ("small_cnn", 0, 0)]
)
def test_norms_and_activations_are_gone(arch: str, norms: int, activations: int) -> None:
    fused = fuse(of(arch), torch.float32)
    assert isinstance(fused, FusedBackbone)
    layers_run = [fused.graph.get_submodule(str(n.target)) for n in fused.graph.graph.nodes if n.op == "call_module"]
    assert sum(isinstance(each, _BatchNorm) for each in layers_run) == norms
    assert sum(type(each) in ACTIVATIONS for each in layers_run) == activations, "after an addition they stay"
    assert not any(type(each) in (nn.Conv2d, nn.Linear, nn.Dropout) for each in layers_run)


class _Model(nn.Module):
    """As little of a timm model as a backbone needs."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.pretrained_cfg = COLOURS
        self.body, self.head = body, nn.Linear(channels, 1)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return y

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        assert pre_logits
        return x.mean(dim=(2, 3))

    def get_classifier(self) -> nn.Module:
        return self.head


def assert_same(body: nn.Module, channels: int, size: int, kind: type[Backbone] = FusedBackbone) -> Any:
    network = lived_in(Backbone(_Model(body, channels), size))
    fused = fuse(network, torch.float32)
    assert type(fused) is kind
    with torch.inference_mode():
        batch = pixels(5, size)
        torch.testing.assert_close(fused(batch), network(batch), rtol=1e-4, atol=1e-4)
    return fused


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 3]),
    bias=st.booleans(),
    mode=st.sampled_from(["zeros", "replicate", "reflect"]),
    norm=st.booleans(),
    activation=st.sampled_from([None, nn.Tanh, *ACTIVATIONS]),
    size=st.integers(1, 12),
    wide=st.booleans(),
)
def test_any_convolution_with_what_follows(
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    bias: bool,
    mode: Any,
    norm: bool,
    activation: type[nn.Module] | None,
    size: int,
    wide: bool,
) -> None:
    assume(size + 2 * padding >= dilation * (kernel - 1) + 1 and (mode != "reflect" or padding < size))
    layers: list[nn.Module] = [
        nn.Conv2d(3, 6, kernel, stride, padding, dilation, groups=groups, bias=bias, padding_mode=mode)
    ]
    layers += [nn.BatchNorm2d(6)] if norm else []
    layers += [activation()] if activation else []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(convolutions, "WINOGRAD_CHANNELS", 1 if wide else 64)
        fused = assert_same(nn.Sequential(*layers, nn.Dropout(0.5)), 6, size)
    layers_run = [node.target for node in fused.graph.graph.nodes if node.op == "call_module"]
    assert len(layers_run) == (2 if activation is nn.Tanh else 1), "oneDNN's are computed with it, any other after it"


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("channels", "kernel", "size"), [(64, 3, 8), (8, 1, 4), (8, 1, 5)])
def test_products_with_every_activation(
    activation: type[nn.Module], channels: int, kernel: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two that oneDNN has no part in, and beyond `PRODUCT_MAP` the one that it has."""
    library, calls = torch.ops.mkldnn._convolution_pointwise, []
    monkeypatch.setattr(
        torch.ops.mkldnn, "_convolution_pointwise", lambda *given: calls.append(given) or library(*given)
    )
    first = nn.Conv2d(3, channels, 1, bias=False)
    body = nn.Sequential(first, nn.Conv2d(channels, 64, kernel, padding=kernel // 2), nn.BatchNorm2d(64), activation())
    assert_same(body, 64, size)
    assert {given[1].shape[2] for given in calls if given[1].shape[1] == channels} == ({1} if size == 5 else set())


@pytest.mark.parametrize("conv_mlp", [False, True])
def test_layer_scales_of_convnexts(conv_mlp: bool) -> None:
    model = ConvNeXt(num_classes=1, depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), conv_mlp=conv_mlp, ls_init_value=0.5)
    model.pretrained_cfg = COLOURS
    network = lived_in(Backbone(model, 64))
    fused = fuse(network, torch.float32)
    assert isinstance(fused, FusedBackbone)
    assert not any("gamma" in str(node.target) for node in fused.graph.graph.nodes)
    with torch.inference_mode():
        torch.testing.assert_close(fused(pixels(5)), network(pixels(5)), rtol=1e-4, atol=1e-5)


def test_a_result_with_two_users_stays() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return torch.cat([x, self.act(self.norm(x))], dim=1)

    assert_same(Both(), 8, 8)


def test_a_layer_that_is_used_twice_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.second(self.conv(self.first(self.conv(x))))
            return y

    fused = assert_same(Twice(), 3, 8)
    assert not any(isinstance(each, PackedConv2d) for each in fused.modules())


def test_a_norm_that_is_used_twice_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.norm(self.second(self.norm(self.first(x))))
            return y

    assert_same(Twice(), 3, 8)


def test_a_layer_whose_parameters_are_read_stays() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.other(self.conv(x)) + self.conv.weight.mean()
            return y

    fused = assert_same(Reading(), 4, 8)
    assert sum(isinstance(each, PackedConv2d) for each in fused.modules()) == 1


def test_a_network_that_fails_when_fused_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(PackedConv2d, "forward", refuse)
    network = of("small_cnn")
    assert fuse(network, torch.float32) is network


def test_a_layer_of_another_kind_stays() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    fused = assert_same(nn.Sequential(Doubled(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), 4, 8)
    assert not any(isinstance(each, (PackedConv2d, PackedLinear)) for each in fused.modules())


def test_a_norm_without_statistics_stays() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    fused = assert_same(body, 4, 8)
    assert any(isinstance(each, nn.BatchNorm2d) for each in fused.graph.modules())


def test_a_network_that_branches_on_its_input_is_left_as_it_is() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return x if x.sum() > 0 else -x

    assert_same(Looking(), 4, 8, Backbone)


def test_without_onednn_nothing_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = of("small_cnn")
    assert fuse(network, torch.float16) is network
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert fuse(network, torch.float32) is network


def test_gelu_is_timms_own() -> None:
    model = timm.create_model("convnext_atto")
    assert any(type(module) is GELU for module in model.modules())


def test_a_fused_plan_fuses() -> None:
    network = of("small_cnn")
    assert isinstance(prepare(network, Plan("fp32", "fused")), FusedBackbone)
    assert prepare(network, REFERENCE) is network
