"""Choose the device that networks are computed on, and say why a GPU that is there cannot be used."""

from __future__ import annotations

import os
import re
import shutil
import warnings

import torch

from ensemble.errors import ConfigError, ResourceError, printable
from ensemble.progress import Say, silent

DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Files of the drivers of NVIDIA cards, of such cards under WSL, and of AMD cards."""

GET_TORCH = "see https://pytorch.org/get-started/locally for another build of torch"
"""Where builds of torch for other drivers and cards are listed."""


def choose_device(name: str = "auto", say: Say = silent) -> torch.device:
    """Return the device of that name; ``auto`` is the first CUDA device that torch can use, else the CPU.

    Parameters
    ----------
    name : str
        auto, cpu, cuda or cuda:N.
    say : callable
        Receives the GPU that is used, or why one that is there cannot be used.

    Raises
    ------
    ConfigError
        The name is none of these, or there is no such CUDA device.
    ResourceError
        A CUDA device is requested by name, and this build of torch has no code for it.
    """
    if not re.fullmatch("auto|cpu|cuda(:[0-9]+)?", name):
        raise ConfigError("--device", f"must be auto, cpu, cuda or cuda:N; got {name}")
    if name == "cpu":
        return torch.device(name)
    count, reason = _cuda_devices()
    device = torch.device("cuda" if name == "auto" else name)
    if (device.index or 0) >= count:
        if name == "auto":
            if reason:
                say(f"warning: {reason}; the CPU computes")
            return torch.device("cpu")
        problem = f"{name} is not there: " + (reason or f"torch sees {count} CUDA devices")
        raise ConfigError("--device", problem, "use --device cpu")
    index = device.index or 0
    capability, title = torch.cuda.get_device_capability(index), printable(torch.cuda.get_device_name(index))
    if not has_code_for(capability, torch.cuda.get_arch_list()):
        version = ".".join(map(str, capability))
        problem = (
            f"torch {torch.__version__} has no code for {title} (compute capability {version}; it has "
            f"{', '.join(torch.cuda.get_arch_list())})"
        )
        if name == "auto":
            say(f"warning: {problem}; the CPU computes; {GET_TORCH}")
            return torch.device("cpu")
        raise ResourceError(f"--device {name}", problem, f"{GET_TORCH}, or use --device cpu")
    say(f"note: {title} computes ({device})")
    return device


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


def _cuda_devices() -> tuple[int, str]:
    """Return the number of CUDA devices, and if there are none although there is a driver, why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return torch.cuda.device_count(), ""
    if not any(map(os.path.exists, DRIVERS)) and shutil.which("nvidia-smi") is None:
        return 0, ""
    if torch.version.cuda is None and torch.version.hip is None:
        return 0, f"there is a GPU driver, but torch {torch.__version__} is built for CPUs alone; {GET_TORCH}"
    said = [printable(str(each.message).splitlines()[0]) for each in caught if "CUDA" in str(each.message)]
    built = f"torch {torch.__version__} for CUDA {torch.version.cuda}"
    return 0, f"there is a GPU driver, but {built} sees no GPU{f' ({said[0][:200]})' if said else ''}; {GET_TORCH}"


def capability_of(device: torch.device) -> tuple[str, str]:
    """Return what two machines must have in common to compute the same logits, as far as torch tells.

    Returns
    -------
    str
        The vector instructions of the CPU, or the name of the GPU.
    str
        The version of torch.
    """
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability(), torch.__version__
    return torch.cuda.get_device_name(device), torch.__version__
