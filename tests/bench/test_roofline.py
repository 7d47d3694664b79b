"""The roofline: operations of an image, and what the machine reaches."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from ensemble.bench import roofline
from ensemble.bench.roofline import flops_per_image, measure_ceilings


def test_a_multiply_add_is_two_operations_and_training_is_three_passes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 8 * 8, 7))
    forward = 2 * (5 * 8 * 8 * 3 * 9 + 5 * 8 * 8 * 7)
    assert flops_per_image(model, 8) == (forward, 3 * forward)


def test_of_resnet18_as_published_and_the_model_stays_as_it_was() -> None:
    model = timm.create_model("resnet18").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert flops_per_image(model, 224)[0] / 2 == pytest.approx(1.82e9, rel=0.01)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_ceilings_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in (("SIDE", 64), ("CHANNELS", 4), ("COPIED_BYTES", 2**16), ("REPEATS", 1)):
        monkeypatch.setattr(roofline, name, small)
    ceilings = measure_ceilings(threads=1, precisions=("fp32", "bf16"))
    assert list(ceilings.gflops) == ["fp32", "bf16"]
    assert min(*ceilings.gflops.values(), ceilings.copy_gb_per_s) > 0
    assert ceilings.threads == torch.get_num_threads() == 1
