"""What of a machine decides the bits of a result: the versions of packages, and the CPU or the GPU."""

from __future__ import annotations

from importlib import metadata

import torch

from ensemble.machine import cpu_model

PACKAGES = ("torch", "timm", "albumentations", "opencv-python-headless", "simplejpeg", "numpy")
"""The packages that decode images and compute."""


def package_versions() -> dict[str, str]:
    """Return the version of each of `PACKAGES` by its name."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def hardware_of(device: torch.device) -> dict[str, str]:
    """Return the CPU's model and the vector instructions that torch uses on it, or the name of the GPU."""
    if device.type == "cuda":
        return {"GPU": torch.cuda.get_device_name(device)}
    if device.type != "cpu":
        return {"GPU": device.type}
    return {"CPU": cpu_model(), "CPU capability": torch.backends.cpu.get_cpu_capability()}


def deciding_facts(device: torch.device) -> dict[str, str]:
    """Return by name what two machines must have in common so that they compute the same bits on a device."""
    return {**package_versions(), **hardware_of(device)}
