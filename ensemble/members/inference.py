"""Pixels -> logits, one column a view."""

from __future__ import annotations

import os
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
        CUDA is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("--device", f"{name} is asked for and torch sees no CUDA device", "use --device cpu")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision to compute in: what is asked for, or what the device is good at.

    ``auto`` is bf16 from compute capability 8.0, fp16 below it, fp32 on a CPU. fp16 on a CPU becomes fp32.
    """
    if device.type == "cpu":
        return "fp32" if name in ("auto", "fp16") else name
    if name == "auto":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return name


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
