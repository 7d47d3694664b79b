from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.resnet import ResNet

from ensemble.config import MemberConfig
from ensemble.errors import ArtifactError, ConfigError
from ensemble.members.backbones import build, check
from ensemble.members.optimiser import parameter_groups
from ensemble.members.safe_convolutions import SampledConv2d

THREE = ("resnet18", "mobilenetv2", "convnext_nano")


def config(arch: str, **values: Any) -> MemberConfig:
    return MemberConfig.model_validate({"arch": arch, "pretrained": False} | values)


def pixels(size: int, n: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=torch.manual_seed(0))


@pytest.mark.parametrize("arch", THREE)
def test_one_logit_in_float32_whatever_the_precision(arch: str) -> None:
    network = build(config(arch), 64).eval()
    for precision in (torch.float32, torch.bfloat16):
        with torch.inference_mode():
            logits = network(pixels(64, 8), precision)
        assert logits.shape == (8,) and logits.dtype == torch.float32
        assert not torch.equal(logits, logits.bfloat16().float()), "the logit was rounded to half precision"


@pytest.mark.parametrize("arch", THREE)
def test_first_logits_are_near_chance(arch: str) -> None:
    """timm draws MobileNet's head for a thousand classes; with one, its first logits had a spread of 6."""
    torch.manual_seed(0)
    network = build(config(arch), 64).train()
    assert network(pixels(64, 32)).std() < 1


@pytest.mark.parametrize(
    ("arch", "at_standard"), [("resnet18", 16), ("mobilenetv2", 32), ("convnext_nano", 16), ("regnetx_002", 32)]
)
def test_half_stride_stem_doubles_the_first_map_and_keeps_every_shape(arch: str, at_standard: int) -> None:
    sides = {}
    for stem in ("standard", "half-stride"):
        network = build(config(arch, stem=stem), 64)
        first = {"resnet18": "layer1", "mobilenetv2": "blocks", "convnext_nano": "stages", "regnetx_002": "s1"}[arch]
        network.model.get_submodule(first).register_forward_pre_hook(
            lambda _, inputs, stem=stem: sides.update({stem: inputs[0].shape[-1]})
        )
        network.eval()(pixels(64))
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        sides.setdefault("shapes", shapes)  # type: ignore[arg-type]
        assert sides["shapes"] == shapes
    assert (sides["standard"], sides["half-stride"]) == (at_standard, 2 * at_standard)


@pytest.mark.parametrize(
    ("arch", "layer"),
    [
        ("mobileone_s0", "stem.conv_scale.conv"),
        ("repvgg_a0", "stem.conv_1x1.conv"),
        ("gernet_s", "stages.0.0.shortcut.conv"),
    ],
)
def test_gradients_where_onednn_has_none_to_be_trusted(arch: str, layer: str) -> None:
    """Training these segfaulted: a strided 1 x 1 of 3 channels; of the 13 in gernet_s, with AVX-512 only."""
    torch.manual_seed(0)
    network = build(config(arch), 64).eval()  # norms as they are drawn, not of a batch
    sampled = [name for name, module in network.model.named_modules() if isinstance(module, SampledConv2d)]
    assert sampled == [layer]
    x = torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)

    def gradient(model: Any, x: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        model(x).sum().backward()
        found: torch.Tensor = model.get_submodule(layer).weight.grad.double()
        return found

    exact = gradient(copy.deepcopy(network.model).double(), x.double())
    for _ in range(3):
        assert (gradient(network.model, x) - exact).abs().max() < 1e-3 * exact.abs().max()


def test_input_is_resampled_and_normalised() -> None:
    network = build(config("resnet18", input_size=32), 64).eval()
    seen = []
    network.model.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    grey = torch.full((1, 64, 64, 3), 128, dtype=torch.uint8)
    network(grey)
    assert seen[0].shape == (1, 3, 32, 32)
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_a_network_without_a_half_stride_stem_is_refused(arch: str) -> None:
    with pytest.raises(ConfigError, match="no half-stride stem"):
        build(config(arch, stem="half-stride"), 64)


def test_an_unknown_architecture_is_refused_with_similar_names() -> None:
    with pytest.raises(ConfigError, match=r"resnet19: is not known to timm; did you mean .*resnet"):
        build(config("resnet19"), 64)


@pytest.mark.parametrize("classes", [1, 1000])
def test_weights_from_a_file_with_any_head(tmp_path: Path, classes: int) -> None:
    torch.manual_seed(1)
    given = timm.create_model("resnet18", num_classes=classes).state_dict()
    save_file(given, tmp_path / "w.safetensors")
    loaded = load_file(tmp_path / "w.safetensors")
    own = build(config("resnet18", pretrained=True, weights=tmp_path / "w.safetensors"), 64, loaded).model.state_dict()
    same = {key for key in own if torch.equal(own[key], given[key]) and own[key].shape == given[key].shape}
    assert set(own) - same == (set() if classes == 1 else {"fc.weight", "fc.bias"})


def test_weights_of_another_architecture_are_refused() -> None:
    given = timm.create_model("resnet34").state_dict()
    given.pop("layer1.0.conv1.weight")
    with pytest.raises(ArtifactError, match=r"layer1\.0\.conv1\.weight"):
        build(config("resnet18"), 64, given)


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_a_network_that_cannot_take_the_images_is_refused(arch: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot take images of 64 pixels \(.*give --input-size 224, or"):
        check(config(arch), 64)
    check(config("vit_tiny_patch16_224", input_size=224), 64)


HEADS = {
    "dla46_c": 64,  # a convolution
    "levit_128s": 224,  # two, each with a norm before it
    "crossvit_9_240": 240,  # one for each of two sizes
    "efficientvit_m0": 64,  # a linear layer after a norm
    "sequencer2d_s": 64,  # a head that pools the map itself
}
"""Architectures whose last layer cannot be applied to their features, and a size that they take."""


def perturb(model: torch.nn.Module) -> None:
    """Change weights and statistics, so that no norm and no layer of the network is the identity."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            shifted = name.endswith(("bias", "running_mean")) or not tensor.any()
            tensor.add_(0.1 * torch.rand_like(tensor)) if shifted else tensor.mul_(0.8 + 0.4 * torch.rand_like(tensor))


@pytest.mark.parametrize("arch", HEADS)
def test_a_network_with_any_head_gives_the_logit_that_timm_gives(arch: str) -> None:
    member = config(arch, input_size=HEADS[arch])
    check(member, 64)
    network = build(member, HEADS[arch]).eval()
    perturb(network.model)
    images = pixels(HEADS[arch])
    with torch.inference_mode():
        x = (images.permute(0, 3, 1, 2).float() - network.mean) / network.std
        torch.testing.assert_close(network(images), network.model(x).squeeze(1), rtol=1e-3, atol=1e-4)
        logits = network(images, torch.bfloat16)
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float()), "rounded to half"


@pytest.mark.parametrize("arch", ["dla46_c", "deit_tiny_distilled_patch16_224"])
def test_all_last_layers_are_trained_where_the_rest_is_frozen(arch: str) -> None:
    network = build(config(arch, input_size=224), 64)
    network.freeze()
    trained = {name for name, parameter in network.model.named_parameters() if parameter.requires_grad}
    heads = ("fc",) if arch == "dla46_c" else ("head", "head_dist")
    assert trained == {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}
    groups = parameter_groups(network, config(arch, backbone_lr_factor=0.1))
    of_heads = [parameter for group in groups if group["lr_scale"] == 1 for parameter in group["params"]]
    assert len(of_heads) == len(trained)


def test_a_network_that_gives_no_logit_at_any_size_is_not_refused_for_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResNet, "forward_head", lambda self, x, pre_logits=False: x.mean(1))
    with pytest.raises(ConfigError, match=r"resnet10t: does not give one logit .*; take another architecture$"):
        check(config("resnet10t"), 64)


@pytest.mark.parametrize(
    ("arch", "parameters"), [("small_cnn", 824_929), ("simple_cnn", 1_142_785), ("lenet", 703_609)]
)
def test_small_cnns_are_known_to_timm_and_have_one_size_at_any_image_size(arch: str, parameters: int) -> None:
    assert timm.is_model(arch)
    for size in (32, 64, 96):
        network = build(config(arch), size).eval()
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters
        assert network(pixels(size)).shape == (2,)


def test_the_small_cnn_is_as_large_as_the_published_files() -> None:
    """Each of the five public fold files is 3.3 MB: parameters and batch-norm statistics in float32."""
    size = sum(
        tensor.numel() * tensor.element_size() for tensor in build(config("small_cnn"), 64).state_dict().values()
    )
    assert 3.25e6 < size < 3.35e6


def test_small_cnns_do_nothing_between_map_and_hidden_part_at_64_pixels() -> None:
    for arch in ("small_cnn", "simple_cnn", "lenet"):
        model = build(config(arch), 64).eval().model
        features = model.forward_features(torch.randn(2, 3, 64, 64))
        assert torch.equal(model.pool(features), features)


def test_the_small_cnn_replicates_edges_and_drops() -> None:
    layers = build(config("small_cnn", drop_rate=0.4), 64).model.features
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [16, 32, 32, 64, 64, 128, 128]
    assert {layer.padding_mode for layer in convolutions} == {"replicate"}
    assert [layer.p for layer in layers if isinstance(layer, torch.nn.Dropout)] == [0.4] * 7


def test_no_pretrained_weights_exist() -> None:
    with pytest.raises(ConfigError, match=r"small_cnn: has no pretrained weights; .*--no-pretrained"):
        build(config("small_cnn", pretrained=True), 64)


def test_dropout_and_stochastic_depth_reach_the_model() -> None:
    model = build(config("resnet18", drop_rate=0.3, drop_path_rate=0.2), 64).model
    assert model.drop_rate == 0.3
    assert model.layer4[1].drop_path.drop_prob == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="lenet: knows no drop_path_rate"):
        build(config("lenet", drop_path_rate=0.2), 64)
