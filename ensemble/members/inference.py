"""Pixels -> logits, one column a view."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np
import torch

from ensemble.errors import ConfigError
from ensemble.members.augment import view
from ensemble.members.backbones import Backbone
from ensemble.progress import Bar

BATCH = 256
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; ``auto`` is the first CUDA device where there is one, else the CPU.

    Raises
    ------
    ConfigError
        It is none of auto, cpu, cuda, cuda:N, or there is no such CUDA device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch("cpu|cuda(:[0-9]+)?", name):
        raise ConfigError("--device", f"must be auto, cpu, cuda or cuda:N; got {name}")
    device = torch.device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError("--device", f"{name} is asked for and torch sees {count} CUDA devices", "use --device cpu")
    return device


def choose_precision(name: str, device: torch.device, input_size: int) -> str:
    """Return the precision to compute in: what is asked for, or what the device is good at.

    ``auto`` is bf16 from compute capability 8.0, fp16 below it, fp32 on a CPU. What a device only emulates is replaced:
    fp16 on a CPU by fp32, bf16 below compute capability 8.0 by fp16. On a CPU, bf16 needs an input of more than 16
    pixels: below, the last stages see one pixel, and there the gradient of a strided 3 × 3 convolution in bf16 is read
    from memory that nobody wrote (torch 2.15 with oneDNN).
    """
    if name == "fp32":
        return name
    if device.type == "cpu":
        return "bf16" if name == "bf16" and input_size > 16 else "fp32"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "fp16"
    return "bf16" if name == "auto" else name


def default_workers(device: torch.device) -> int:
    """Return how many data workers pay: none where the CPU itself trains, else one a core, 8 at most."""
    return 0 if device.type == "cpu" else min(8, max(1, (os.cpu_count() or 2) - 1))


@torch.inference_mode()
def predict_logits(
    network: Backbone,
    pixels: np.ndarray,
    rows: np.ndarray,
    views: Sequence[str],
    precision: str,
    device: torch.device,
    bar: Bar,
) -> np.ndarray:
    """Return the logits of some images under each view.

    Parameters
    ----------
    network : Backbone
        On `device`; it is put into evaluation mode.
    pixels : uint8 array (n, H, W, 3)
        May be a memory map: a batch at a time is read.
    rows : int array (r,)
        Which images.
    views : sequence of str
        Of `config.VIEWS`.
    precision : {"fp32", "bf16", "fp16"}
    bar : Bar
        Advanced by the images times the views.

    Returns
    -------
    float64 array (r, views)
    """
    network.eval()
    logits = np.empty((len(rows), len(views)))
    for start in range(0, len(rows), BATCH):
        batch = torch.from_numpy(pixels[rows[start : start + BATCH]]).to(device, non_blocking=True)
        for column, name in enumerate(views):
            out = network(view(batch, name), PRECISIONS[precision])
            logits[start : start + BATCH, column] = out.double().cpu().numpy()
            bar.advance(len(batch))
    return logits
