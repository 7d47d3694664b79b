"""Plans with the kernels of members/cpu: which there are, and that a wrong one is not chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ensemble.members.probe as probing
from ensemble.config import MemberConfig
from ensemble.members import cpu, plans
from ensemble.members.backbones import Backbone
from ensemble.members.cpu.convolutions import LoweredConv2d
from ensemble.members.cpu.fused import fuse
from ensemble.members.plans import Plan, possible_plans
from ensemble.members.probe import choose_plan, probe

CPU = torch.device("cpu")
NATIVE, LOWERED = Plan("fp32"), Plan("fp32", "lowered")
TRAIN = (NATIVE, LOWERED, Plan("bf16"), Plan("bf16", "lowered"))
PREDICT = tuple(Plan(p, c) for p in ("fp32", "bf16") for c in ("native", "lowered", "fused"))


def member(**values: Any) -> MemberConfig:
    base = {"arch": "resnet10t", "pretrained": False, "batch_size": 16, "precision": "fp32"}
    return MemberConfig.model_validate(base | values)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_plans_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "onednn_computes", lambda _: True)
    assert possible_plans("auto", "auto", CPU, 64, "train") == TRAIN
    assert possible_plans("auto", "auto", CPU, 64, "predict") == PREDICT, "a fused network cannot be trained"
    assert possible_plans("auto", "fused", CPU, 64, "predict") == PREDICT[2::3]
    assert possible_plans("auto", "lowered", CPU, 64, "train") == (LOWERED, Plan("bf16", "lowered"))
    assert choose_plan(member(convolutions="lowered"), CPU, 32, "train", 10**6, 1) == LOWERED, "no probe: no choice"


def test_a_head_alone_is_probed_with_lowered_convolutions() -> None:
    assert str(LOWERED) in probe(member(freeze=True), 32, (NATIVE, LOWERED), "train", 1).images_per_second


def broken(network: Any) -> None:
    """Lower a network wrongly."""
    for module in network.modules():
        if type(module) is torch.nn.Conv2d:
            module.__class__ = Broken


class Broken(LoweredConv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.01 * super().forward(x).roll(1, 0)


@pytest.mark.parametrize("phase", ["train", "predict"])
def test_a_lowered_plan_that_computes_something_else_is_not_chosen(monkeypatch: pytest.MonkeyPatch, phase: Any) -> None:
    monkeypatch.setattr(cpu, "lower", broken)
    monkeypatch.setattr(probing, "LEAST_SPEEDUP", 0.0)  # else it might only be too slow
    result = probe(member(), 32, TRAIN, phase, 1)
    assert set(result.images_per_second) == {"fp32 native", "bf16 native"}
    assert result.chosen.convolutions == "native"


@pytest.mark.parametrize("phase", ["train", "predict"])
@pytest.mark.parametrize(
    ("arch", "layer"), [("resnet18", "layer4.1.conv2"), ("convnext_nano", "stages.2.blocks.7.conv_dw")]
)
def test_a_wrong_layer_behind_a_small_gain_is_seen(
    monkeypatch: pytest.MonkeyPatch, arch: str, layer: str, phase: Any
) -> None:
    """The gain of a branch begins as 0 or 1e-6; before it was drawn, both passed in prediction."""
    monkeypatch.setattr(cpu, "lower", lambda network: broken(network.model.get_submodule(layer)))
    result = probe(member(arch=arch), 64, (NATIVE, LOWERED), phase, 1)
    assert list(result.images_per_second) == [str(NATIVE)]


def test_a_fused_plan_that_computes_something_else_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(network: Backbone, dtype: torch.dtype) -> Backbone:
        fused = fuse(network, dtype)
        assert isinstance(fused.model.fc, torch.nn.Linear)
        fused.model.fc.weight.data[0, ::2] *= 1.2
        return fused

    monkeypatch.setattr(cpu, "fuse", spoilt)
    monkeypatch.setattr(probing, "LEAST_SPEEDUP", 0.0)
    result = probe(member(), 32, PREDICT[:3], "predict", 1)
    assert set(result.images_per_second) == {"fp32 native", "fp32 lowered"}
