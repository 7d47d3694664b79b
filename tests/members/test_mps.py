"""Apple's GPU, with a patched torch.backends.mps: when it is chosen, and what is done otherwise on it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ensemble.bench_config import BenchConfig
from ensemble.commands import bench
from ensemble.commands.checks import check_device
from ensemble.config import MemberConfig
from ensemble.errors import ConfigError, ResourceError
from ensemble.members import devices, mps_check
from ensemble.members.backbones import build
from ensemble.members.budget import group_sizes
from ensemble.members.devices import choose_device, choose_devices, copied, memory_format, moved
from ensemble.members.inference import predict_logits
from ensemble.members.mps_check import TOLERANCE, mps_fault
from ensemble.members.plans import REFERENCE, Plan, continued, possible_plans

MPS, CPU = torch.device("mps"), torch.device("cpu")


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that pretends that torch has MPS, that it is available, and what the check says of it."""

    def pretend(built: bool = True, available: bool = True, fault: str = "") -> None:
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: available)
        monkeypatch.setattr(devices, "mps_fault", lambda device: fault)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(devices, "DRIVERS", ())
        monkeypatch.setattr(devices.shutil, "which", lambda name: None)

    return pretend


@pytest.mark.parametrize("name", ["auto", "mps"])
def test_it_is_used_where_it_agrees_with_the_cpu(apple: Callable[..., None], name: str) -> None:
    apple()
    lines: list[str] = []
    assert choose_devices(name, lines.append) == (MPS,)
    assert lines == ["note: Apple's GPU computes (mps), in fp32"]


def test_it_is_not_used_where_it_does_not_agree(apple: Callable[..., None]) -> None:
    apple(fault="a training step on it does not agree with the CPU (logits differs by 3 of its norm)")
    lines: list[str] = []
    assert choose_device("auto", lines.append) == CPU
    assert lines[0].startswith("warning: Apple's GPU is not used: a training step on it does not agree")
    with pytest.raises(ResourceError, match=r"--device mps: a training step on it does not agree .*use --device cpu"):
        choose_device("mps")


def test_it_is_refused_before_torch_is_imported_on_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ConfigError, match="--device: mps is not there: it is the GPU of a Mac; use --device cpu"):
        check_device("mps")


def test_a_benchmark_of_it_is_refused(apple: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    apple()
    monkeypatch.setattr(bench, "check_device", lambda device: None)
    with pytest.raises(ConfigError, match="bench measures CPUs and CUDA devices; got mps; use --device cpu"):
        bench.bench(BenchConfig(device="mps", subjects=("train",)))


@pytest.mark.parametrize(("built", "found"), [(False, "has no MPS"), (True, "torch says that MPS is not available")])
def test_it_is_refused_where_torch_does_not_have_it(apple: Callable[..., None], built: bool, found: str) -> None:
    apple(built=built, available=False)
    lines: list[str] = []
    assert choose_device("auto", lines.append) == CPU and lines == []
    with pytest.raises(ConfigError, match=f"--device: mps is not there: .*{found}.*; use --device cpu"):
        choose_device("mps")


def test_the_check_compares_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    assert mps_fault.__wrapped__(CPU) == "" and torch.equal(torch.get_rng_state(), state)
    assert mps_fault.__wrapped__(torch.device("meta")).startswith("a training step on it fails (")
    really, on = mps_check._step, []

    def wrong(network: torch.nn.Module, images: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
        results = really(network, images, CPU)
        on.append(device)
        if device == MPS:
            results["gradient of 1.weight"] = results["gradient of 1.weight"] * (1 + 2 * TOLERANCE)
        return results

    monkeypatch.setattr(mps_check, "_step", wrong)
    assert "(gradient of 1.weight differs by 0.02 of its norm)" in mps_fault.__wrapped__(MPS) and on == [CPU, MPS]


def test_the_tolerance_is_far_above_rounding() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, images = mps_check._network(), torch.randint(0, 256, (8, 24, 24, 3), dtype=torch.uint8)
    single = mps_check._step(network, images, CPU)
    moved_a_little = mps_check._step(_rounded(network), images, CPU)
    assert all((moved_a_little[name] - value).norm() < TOLERANCE / 10 * value.norm() for name, value in single.items())


def _rounded(network: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 2.0**-20 * torch.sign(parameter))
    return network


def test_it_computes_in_float32_alone() -> None:
    for precision in ("auto", "fp32", "bf16", "fp16"):
        for phase in ("train", "predict"):
            assert possible_plans(precision, "auto", MPS, 64, phase) == (REFERENCE,)  # type: ignore[arg-type]
    assert continued(Plan("fp32", "compiled"), MPS, 64) == (
        REFERENCE,
        "goes on with native convolutions; it was begun with compiled ones",
    )
    assert continued(Plan("bf16"), MPS, 64) is None
    assert group_sizes([], MPS, math.inf) is None, "each fold is trained alone"


def test_memory_format_and_copies_are_those_that_are_correct_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_format(MPS) == torch.contiguous_format
    assert memory_format(CPU) == memory_format(torch.device("cuda:1")) == torch.channels_last
    last = moved(torch.nn.Conv2d(3, 4, 3), CPU)
    assert last.weight.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(devices, "memory_format", lambda device: torch.contiguous_format)
    assert moved(last, CPU).weight.is_contiguous()
    asked: list[bool] = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: asked.append(non_blocking))
    for device in (MPS, CPU, torch.device("cuda")):
        copied(torch.zeros(2), device)
    assert asked == [False, False, True]


class NoFloat64(TorchDispatchMode):
    """Count operations, and refuse those with a float64 tensor, which MPS has not."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.count += 1
        for value in torch.utils._pytree.tree_leaves((args, result)):
            assert not (isinstance(value, torch.Tensor) and value.dtype == torch.float64), f"{func} has float64"
        return result


def test_prediction_makes_no_float64_tensor() -> None:
    class Bar:
        def advance(self, n: int = 1) -> None: ...

    network = moved(build(MemberConfig(arch="small_cnn", pretrained=False), 16), CPU)
    pixels = np.zeros((4, 16, 16, 3), np.uint8)
    with NoFloat64() as mode:
        logits = predict_logits(network, pixels, np.arange(4), ["identity", "hflip"], "fp32", CPU, Bar())  # type: ignore[arg-type]
    assert logits.dtype == np.float64 and mode.count > 20
