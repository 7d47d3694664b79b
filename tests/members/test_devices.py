"""The choice of the device, with a patched torch.cuda: what is used, and what is said of a GPU that cannot be."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ensemble.errors import ConfigError, ResourceError, TheraError, out_of_memory
from ensemble.members import devices
from ensemble.members.devices import choose_device, has_code_for
from ensemble.members.parallel import _noted

Card = Callable[..., list[str]]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """Return a function that pretends that there are cards; it returns the lines that are said."""

    def pretend(name: str, capability: tuple[int, int], count: int = 1) -> list[str]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: name)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_86", "sm_90", "compute_90"])
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        return []

    return pretend


def test_a_card_that_serves_is_used_and_named(card: Card) -> None:
    lines = card("Tesla T4", (7, 5))
    assert choose_device("auto", lines.append) == torch.device("cuda:0")
    card("Tesla T4", (7, 5), count=2)
    assert choose_device("cuda:1", lines.append) == torch.device("cuda:1")
    assert lines == ["note: Tesla T4 computes (cuda:0)", "note: Tesla T4 computes (cuda:1)"]
    with pytest.raises(ConfigError, match="cuda:2 is not there: torch sees 2 CUDA devices; use --device cpu"):
        choose_device("cuda:2")


@pytest.mark.parametrize(("name", "capability"), [("Tesla P100", (6, 0)), ("Tesla V100", (7, 0))])
def test_a_card_without_code_is_not_used(card: Card, name: str, capability: tuple[int, int]) -> None:
    lines = card(name, capability)
    assert choose_device("auto", lines.append) == torch.device("cpu")
    version = ".".join(map(str, capability))
    assert f"has no code for {name} (compute capability {version}; it has sm_75," in lines[0]
    assert lines[0].startswith("warning: torch ") and "the CPU computes" in lines[0]
    assert "a build for an earlier version of CUDA may have it: see https://pytorch.org" in lines[0]
    with pytest.raises(ResourceError, match="has no code for") as caught:
        choose_device("cuda")
    assert caught.value.status == 6 and "another build of torch" in str(caught.value)


def test_a_card_that_is_too_new_needs_a_build_for_a_later_cuda(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = card("RTX 5090", (12, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    assert choose_device("auto", lines.append) == torch.device("cpu")
    assert "no code for RTX 5090" in lines[0] and "a build for a later version of CUDA may have it" in lines[0]


def test_a_later_card_runs_ptx() -> None:
    assert has_code_for((10, 0), ["sm_90", "compute_90"]) and not has_code_for((10, 0), ["sm_90"])
    assert has_code_for((9, 4), ["gfx940"])  # of an AMD card


def test_a_driver_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_available() -> bool:
        message = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).\nMore"
        warnings.warn(message, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "DRIVERS", ("/",))
    lines: list[str] = []
    assert choose_device("auto", lines.append) == torch.device("cpu")
    assert (
        "sees no GPU (CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).)"
        in (lines[0])
    )
    with pytest.raises(ConfigError, match="too old"):
        choose_device("cuda")


def test_a_build_for_cpus_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(devices, "DRIVERS", ("/",))
    lines: list[str] = []
    assert choose_device("auto", lines.append) == torch.device("cpu")
    assert "is built for CPUs alone; see https://pytorch.org" in lines[0]

    class Driver:
        @staticmethod
        def cuDriverGetVersion(version: Any) -> int:  # noqa: N802  its name in CUDA
            version._obj.value = 12040
            return 0

    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: Driver)
    assert choose_device("auto", lines.append) == torch.device("cpu")
    assert "is built for CPUs alone; the driver serves builds of torch for CUDA 12.4 and earlier: see" in lines[1]


def test_a_machine_without_a_gpu_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "DRIVERS", ())
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    lines: list[str] = []
    assert choose_device("auto", lines.append) == torch.device("cpu") and lines == []


@pytest.mark.parametrize(
    "message",
    [
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`",
        "CUDA out of memory. Tried to allocate 20.00 MiB",
    ],
)
def test_every_form_of_exhausted_device_memory_is_known(message: str) -> None:
    error = out_of_memory(RuntimeError(message), "training")
    assert isinstance(error, ResourceError) and "out of device memory" in str(error)


def test_a_failed_fold_does_not_keep_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[np.ndarray]] = []

    def fails() -> None:
        images = np.zeros(1000)
        kept.append(weakref.ref(images))
        try:
            raise ValueError("within")
        except ValueError as error:
            raise TheraError("fold 0", "failed") from error

    class Bar:
        def note(self, text: str) -> None:
            pass

    errors: list[TheraError] = []
    try:
        fails()
    except TheraError as error:
        errors.append(_noted(error, Bar()))  # type: ignore[arg-type]
    gc.collect()
    assert errors[0].__traceback__ is not None and kept[0]() is None
