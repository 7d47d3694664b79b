"""The plans by which a device can compute a network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ensemble.members import plans, precision
from ensemble.members.plans import KINDS, Plan, possible_plans

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NATIVE, COMPILED = Plan("fp32"), Plan("fp32", "compiled")
TRAIN, PREDICT = (tuple(Plan(p, c) for p in ("fp32", "bf16") for c in KINDS[phase]) for phase in ("train", "predict"))
"""All plans of a CPU; without members/cpu there are native convolutions alone."""

FP32 = TRAIN[: len(KINDS["train"])]


@pytest.fixture
def has_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that this CPU has bfloat16."""
    monkeypatch.setattr(plans, "onednn_computes", lambda _: True)


def precisions(name: str, device: torch.device, input_size: int) -> list[str]:
    return [plan.precision for plan in possible_plans(name, "native", device, input_size, "train")]


def test_precisions_by_device_and_capability(has_bf16: None, monkeypatch: pytest.MonkeyPatch) -> None:
    by_request = [precisions(name, CPU, 64) for name in ("auto", "fp16", "bf16", "fp32")]
    assert by_request == [["fp32", "bf16"], ["fp32"], ["bf16"], ["fp32"]]
    assert precisions("bf16", CPU, 16) == precisions("auto", CPU, 16) == ["fp32"]
    assert precisions("bf16", CPU, 17) == ["bf16"]
    monkeypatch.setattr(plans, "fp16_is_finite", lambda _: True)
    for capability, expected in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, value=capability: value)
        assert precisions("auto", CUDA, 64) == precisions("bf16", CUDA, 16) == [expected]
        assert precisions("fp16", CUDA, 64) == ["fp16"]
        assert precisions("fp32", CUDA, 64) == ["fp32"]
        for requested in ("auto", "native", "lowered", "fused"):
            assert possible_plans("auto", requested, CUDA, 64, "predict") == (Plan(expected),), (
                "the GPU's own convolutions"
            )
        assert possible_plans("auto", "lowered", CUDA, 64, "train") == (Plan(expected),)
        compiled, graphed = Plan(expected, "compiled"), Plan(expected, "graphed")
        assert possible_plans("auto", "auto", CUDA, 64, "train") == (Plan(expected), compiled, graphed)
        assert possible_plans("auto", "compiled", CUDA, 64, "train") == (compiled,)
        assert possible_plans("auto", "graphed", CUDA, 64, "train") == (graphed,)
        assert possible_plans("auto", "graphed", CUDA, 64, "predict") == (Plan(expected),)


def test_fp16_that_is_not_finite_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GTX 1660. A training that was begun in fp16 does not go on there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(plans, "fp16_is_finite", lambda _: False)
    assert [precisions(name, CUDA, 64) for name in ("auto", "fp16", "bf16", "fp32")] == [["fp32"]] * 4
    assert plans.continued(Plan("fp16"), CUDA, 64) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert precisions("fp16", CUDA, 64) == ["fp16"], "what is known of GTX 16xx cards is not looked for elsewhere"


def test_a_small_network_says_whether_fp16_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this CPU it is; the random numbers stay. Where a convolution gives NaN, or a gradient, it is not."""
    before = torch.get_rng_state()
    precision.fp16_is_finite.cache_clear()
    assert precision.fp16_is_finite(CPU) and torch.equal(torch.get_rng_state(), before)
    convolve = torch.nn.Conv2d.forward

    def nan(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return convolve(self, x) * float("nan")

    def nan_gradient(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        result = convolve(self, x)
        result.register_hook(lambda gradient: gradient * float("nan"))
        return result

    for wrong in (nan, nan_gradient):
        precision.fp16_is_finite.cache_clear()
        monkeypatch.setattr(torch.nn.Conv2d, "forward", wrong)
        assert not precision.fp16_is_finite(CPU)
    precision.fp16_is_finite.cache_clear()


def test_a_cpu_that_would_emulate_bfloat16_has_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take many times as long, also for a config that was written elsewhere."""
    monkeypatch.setattr(plans, "onednn_computes", lambda dtype: dtype == torch.float32)
    assert [precisions(name, CPU, 64) for name in ("auto", "bf16")] == [["fp32"]] * 2
    assert possible_plans("auto", "auto", CPU, 64, "train") == FP32
    assert possible_plans("auto", "auto", CPU, 64, "train", emulated=True) == TRAIN, "for what was begun elsewhere"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert precisions("bf16", CUDA, 64) == ["bf16"]


@pytest.mark.parametrize(
    ("begun", "capability", "expected", "says"),
    [
        (Plan("fp16"), (8, 0), Plan("fp16"), ""),  # begun on a T4, and it goes on on an A100
        (Plan("fp16", "compiled"), (8, 0), Plan("fp16", "compiled"), ""),
        (Plan("bf16"), (7, 5), Plan("bf16"), "goes on in bf16 as it was begun, which this GPU only emulates"),
        (Plan("fp16"), None, Plan("fp16"), "goes on in fp16 as it was begun, which this CPU only emulates"),
        (
            Plan("bf16", "lowered"),
            (8, 0),
            Plan("bf16"),
            "goes on with native convolutions; it was begun with lowered ones",
        ),
        (Plan("fp32", "compiled"), None, Plan("fp32", "compiled"), ""),
        (Plan("bf16", "graphed"), (8, 0), Plan("bf16", "graphed"), ""),
        (
            Plan("fp32", "graphed"),
            None,
            Plan("fp32"),
            "goes on with native convolutions; it was begun with graphed ones",
        ),
    ],
)
def test_a_training_goes_on_on_another_device(
    has_bf16: None,
    monkeypatch: pytest.MonkeyPatch,
    begun: Plan,
    capability: tuple[int, int] | None,
    expected: Plan,
    says: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(plans, "fp16_is_finite", lambda _: True)
    assert plans.continued(begun, CUDA if capability else CPU, 64) == (expected, says)


def test_bfloat16_of_small_inputs_does_not_go_on_on_a_cpu(has_bf16: None) -> None:
    assert plans.continued(Plan("bf16"), CPU, 16) is None


def test_the_request_limits_the_plans(has_bf16: None) -> None:
    assert possible_plans("auto", "auto", CPU, 64, "train") == TRAIN
    assert possible_plans("auto", "auto", CPU, 64, "predict") == PREDICT
    assert possible_plans("fp32", "auto", CPU, 64, "train") == FP32
    assert possible_plans("bf16", "native", CPU, 64, "predict") == (Plan("bf16"),)
    assert possible_plans("auto", "auto", CPU, 16, "train") == FP32
    assert possible_plans("fp32", "compiled", CPU, 64, "train") == (COMPILED,)


def test_a_plan_prints_its_parts() -> None:
    every = [Plan(precision, kind) for precision in ("fp32", "bf16") for kind in ("native", "lowered")]
    assert [str(plan) for plan in every] == ["fp32 native", "fp32 lowered", "bf16 native", "bf16 lowered"]
    assert [plan.dtype for plan in every] == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert replace(NATIVE, convolutions="lowered") == every[1]
