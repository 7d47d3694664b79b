"""The replicated borders of `small_cnn`: the same values everywhere, and channels last kept on a CUDA device."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from ensemble.members.small_cnns import ReplicatedConv2d, replicate_border

LAST = torch.channels_last


def maps(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((2, 8, 5, 7), generator=generator).to(dtype).contiguous(memory_format=LAST).requires_grad_()


def test_borders_are_replicated_as_torch_does_it_with_the_same_gradient() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x, widths = maps(dtype), (1, 2, 3, 0)
        padded, expected = replicate_border(x, widths), nn.functional.pad(x, widths, mode="replicate")
        assert torch.equal(padded, expected)
        weights = torch.rand(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        (of_padded,), (of_expected,) = (torch.autograd.grad((y * weights).sum(), x) for y in (padded, expected))
        torch.testing.assert_close(of_padded, of_expected)
        assert padded.is_contiguous(memory_format=LAST) and of_padded.is_contiguous(memory_format=LAST)


def test_every_map_of_the_network_stays_channels_last_on_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("small_cnn", num_classes=1).eval().to(memory_format=LAST)
    lost: list[str] = []

    def check(name: str, x: torch.Tensor) -> None:
        if not x.is_contiguous(memory_format=LAST):
            lost.append(name)

    for name, layer in model.features.named_children():
        layer.register_forward_hook(lambda _, before, after, name=name: check(name, after))
    convolve, widths = nn.functional.conv2d, []

    def conv2d(x: torch.Tensor, *others: object) -> torch.Tensor:
        widths.append(x.shape[-1])
        check(f"padded to {x.shape[-1]}", x)
        return convolve(x, *others)  # type: ignore[arg-type]

    with FakeTensorMode(allow_non_fake_inputs=True):
        on_card = {key: torch.empty(value.shape, device="cuda") for key, value in model.state_dict().items()}
        on_card = {key: value.to(memory_format=LAST) if value.ndim == 4 else value for key, value in on_card.items()}
        x = torch.empty((2, 3, 64, 64), device="cuda").to(memory_format=LAST)
        before = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
        monkeypatch.setattr(nn.functional, "conv2d", conv2d)
        logits = functional_call(model, on_card, (x,))
    assert logits.device.type == "cuda" and widths == [66, 34, 34, 18, 18, 10, 10] and lost == []
    assert not before.is_contiguous(memory_format=LAST)  # what torch's own padding does there


def test_on_a_cpu_a_training_step_has_the_bytes_of_plain_convolutions() -> None:
    results = []
    for plain in (False, True):
        torch.manual_seed(3)
        model = timm.create_model("small_cnn", num_classes=1).to(memory_format=LAST)
        for module in model.modules():
            if plain and isinstance(module, ReplicatedConv2d):
                module.__class__ = nn.Conv2d
        x = torch.randn((4, 3, 64, 64)).contiguous(memory_format=LAST)
        model(x).square().mean().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
