"""Choose the devices that networks are computed on, say why a GPU that is there cannot be used, and move data there."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
import warnings
from typing import Any, TypeVar

import torch

from ensemble.config_fields import DEVICE_PATTERN, DEVICES
from ensemble.errors import ConfigError, ResourceError, printable
from ensemble.machine import available_cores
from ensemble.members.mps_check import mps_fault
from ensemble.progress import Say, silent

Network = TypeVar("Network", bound=torch.nn.Module)

CPU = torch.device("cpu")

DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Files of the drivers of NVIDIA cards, of such cards under WSL, and of AMD cards."""

GET_TORCH = "see https://pytorch.org/get-started/locally for another build of torch"
"""Where builds of torch for other drivers and cards are listed."""


def choose_device(name: str = "auto", say: Say = silent) -> torch.device:
    """Return the device of that name, or the first of several; the parameters are those of `choose_devices`."""
    return choose_devices(name, say)[0]


def choose_devices(name: str = "auto", say: Say = silent) -> tuple[torch.device, ...]:
    """Return the devices of that name, which compute side by side.

    ``cuda`` stands for all CUDA devices of one kind, ``cuda:N`` for one of them. ``auto`` is ``cuda`` where torch can
    use it, else ``mps`` where a training step on it agrees with the CPU, else the CPU. The first CUDA device becomes
    the current one of this process, as by `use`.

    Parameters
    ----------
    name : str
        auto, cpu, mps, cuda or cuda:N.
    say : callable
        Receives each GPU that is used, and why one that is there is not.

    Returns
    -------
    tuple of torch.device
        One or more CUDA devices with their indices, all of the same compute capability and at most one for each core;
        or one other device.

    Raises
    ------
    ConfigError
        The name is none of these, or there is no such device.
    ResourceError
        A device is requested by name, and this build of torch has no code for it, or computes wrong results on it.
    """
    if not re.fullmatch(DEVICE_PATTERN, name):
        raise ConfigError("--device", f"must be {DEVICES}; got {printable(name)}")
    if name == "cpu":
        return (CPU,)
    if name == "mps":
        return (_mps(say),)
    count, reason = _cuda_devices()
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        if name != "auto":
            problem = f"{name} is not there: " + (reason or f"torch sees {count} CUDA devices")
            raise ConfigError("--device", problem, "use --device cpu")
        if reason:
            say(f"warning: {reason}; the CPU computes")
        return (CPU if reason else _mps_or_cpu(say),)
    indices = [index] if ":" in name else range(count)
    without_code = {each: problem for each in indices if (problem := _lacks_code(each))}
    usable = [each for each in indices if each not in without_code]
    if not usable:
        problem = next(iter(without_code.values()))
        if name != "auto":
            raise ResourceError(f"--device {name}", problem, "install such a build, or use --device cpu")
        say(f"warning: {problem}; the CPU computes")
        return (CPU,)
    for each, problem in without_code.items():
        say(f"warning: cuda:{each} is not used: {problem}")
    devices = tuple(torch.device("cuda", each) for each in _alike(usable, say))
    use(devices[0])
    for device in devices:
        say(f"note: {_title(device.index)} computes ({device})")
    return devices


def use(device: torch.device) -> None:
    """Make a CUDA device the current one of this process; with any other device, do nothing.

    Some calls of torch concern the current device, such as those that pin memory. Without this they would make a
    context on device 0, which takes hundreds of megabytes there.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def synchronize(device: torch.device) -> None:
    """Wait until a device has computed what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def moved(network: Network, device: torch.device) -> Network:
    """Return the network on a device, in the memory format of that device."""
    return network.to(memory_format=memory_format(device)).to(device)


def memory_format(device: torch.device) -> torch.memory_format:
    """Return channels last, in which convolutions are faster; on MPS the contiguous format.

    On MPS the gradients of batch norm are wrong in channels last (github.com/pytorch/pytorch/issues/175189).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def copied(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; on CUDA the copy does not wait.

    On MPS such a copy can read memory that is free already (github.com/pytorch/pytorch/issues/189690).
    """
    return values.to(device, non_blocking=device.type == "cuda")


def has_code_for(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Return whether a build of torch can compute on a card.

    Machine code (sm_XY) runs on cards of the same major version with the same or a later minor one; with a letter
    behind the number, on that version alone. PTX (compute_XY) is compiled for every later card.

    Examples
    --------
    >>> has_code_for((8, 6), ["sm_75", "sm_80"]), has_code_for((7, 0), ["sm_75", "sm_80"])
    (True, False)
    >>> has_code_for((12, 0), ["sm_90", "compute_90"]), has_code_for((9, 1), ["sm_90a"])
    (True, False)
    """
    for name in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)([a-z]?)", name)
        if found is None:
            continue  # of another vendor, such as gfx90a: torch sees only cards that it has code for
        major, minor = divmod(int(found[2]), 10)
        if found[3]:
            serves = capability == (major, minor)
        elif found[1] == "sm":
            serves = capability[0] == major and capability[1] >= minor
        else:
            serves = capability >= (major, minor)
        if serves:
            return True
    return not any(name.startswith(("sm_", "compute_")) for name in architectures)


def _alike(indices: list[int], say: Say) -> list[int]:
    """Return the CUDA devices that compute together: those like the first one, at most one for each core.

    They have one plan, whose precision depends on the compute capability.
    """
    first = torch.cuda.get_device_capability(indices[0])
    alike = [index for index in indices if torch.cuda.get_device_capability(index) == first]
    for index in sorted(set(indices) - set(alike)):
        of_index = ".".join(map(str, torch.cuda.get_device_capability(index)))
        problem = f"its compute capability {of_index} is not that of cuda:{indices[0]} ({'.'.join(map(str, first))})"
        say(f"note: cuda:{index} ({_title(index)}) is not used: {problem}; --device cuda:{index} uses it alone")
    cores = max(1, len(available_cores()))
    if len(alike) > cores:
        say(f"note: {cores} of {len(alike)} GPUs are used, one for each CPU core")
    return alike[:cores]


def _title(index: int) -> str:
    return printable(torch.cuda.get_device_name(index))


def _lacks_code(index: int) -> str:
    """Return why this build of torch cannot compute on a CUDA device, and which build would; "" if it can."""
    capability, architectures = torch.cuda.get_device_capability(index), torch.cuda.get_arch_list()
    if has_code_for(capability, architectures):
        return ""
    numbers = [int(found[1]) for name in architectures if (found := re.match(r"sm_(\d+)", name))]
    age = "an earlier" if capability < divmod(min(numbers, default=0), 10) else "a later"
    return (
        f"torch {torch.__version__} has no code for {_title(index)} (compute capability "
        f"{'.'.join(map(str, capability))}; it has {', '.join(architectures)}); a build for {age} version of CUDA may "
        f"have it: {GET_TORCH}"
    )


def _cuda_devices() -> tuple[int, str]:
    """Return the number of CUDA devices, and if there are none although there is a driver, why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return torch.cuda.device_count(), ""
    if not any(map(os.path.exists, DRIVERS)) and shutil.which("nvidia-smi") is None:
        return 0, ""
    if torch.version.cuda is None and torch.version.hip is None:
        return 0, f"there is a GPU driver, but torch {torch.__version__} is built for CPUs alone; {_build_to_get()}"
    said = [printable(str(each.message).splitlines()[0]) for each in caught if "CUDA" in str(each.message)]
    built = f"torch {torch.__version__} for CUDA {torch.version.cuda}"
    of_torch = f" ({said[0][:200]})" if said else ""
    return 0, f"there is a GPU driver, but {built} sees no GPU{of_torch}; {_build_to_get()}"


def _build_to_get() -> str:
    """Return which build of torch would serve, by the version of CUDA that the driver supports if it is known."""
    version = _cuda_of_driver()
    if version is None:
        return GET_TORCH
    return f"the driver serves builds of torch for CUDA {version[0]}.{version[1]} and earlier: {GET_TORCH}"


def _cuda_of_driver() -> tuple[int, int] | None:
    """Return the latest version of CUDA that NVIDIA's driver supports; None if there is none that says so."""
    version = ctypes.c_int(0)
    try:
        # it needs no initialisation and makes no context
        driver: Any = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return (version.value // 1000, version.value % 1000 // 10) if version.value else None


def _mps(say: Say) -> torch.device:
    """Return Apple's GPU.

    Raises
    ------
    ConfigError
        It is not there.
    ResourceError
        A training step on it does not agree with the CPU.
    """
    if not torch.backends.mps.is_built():
        raise ConfigError("--device", f"mps is not there: torch {torch.__version__} has no MPS", "use --device cpu")
    if not torch.backends.mps.is_available():
        problem = "mps is not there: torch says that MPS is not available; it needs an Apple GPU and a recent macOS"
        raise ConfigError("--device", problem, "use --device cpu")
    device = torch.device("mps")
    if fault := mps_fault(device):
        raise ResourceError("--device mps", fault, "use --device cpu")
    say("note: Apple's GPU computes (mps), in fp32")
    return device


def _mps_or_cpu(say: Say) -> torch.device:
    if not (torch.backends.mps.is_built() and torch.backends.mps.is_available()):
        return CPU
    try:
        return _mps(say)
    except ResourceError as error:
        say(f"warning: Apple's GPU is not used: {error.found}; the CPU computes")
        return CPU
