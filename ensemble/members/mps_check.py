"""Check that Apple's GPU (MPS) computes a training step as the CPU does, before it is used.

torch's kernels for MPS have had faults that change results without an error. The step has the layers of the networks
here: a replicated border, strided, depthwise and pointwise convolutions, batch norm, pooling and linear layers.
"""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

from ensemble.errors import first_line

TOLERANCE = 1e-2
"""The largest difference of a tensor from that of the CPU, relative to its norm. A relative change of all parameters by
2**-20 changes them by at most 1e-5; the known faults of MPS change them by more than 1."""


@functools.cache
def mps_fault(device: torch.device) -> str:
    """Return what is wrong with a training step on a device, in a phrase; "" if it agrees with the CPU.

    torch's global generator is left as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _network()
        images = torch.randint(0, 256, (8, 24, 24, 3), dtype=torch.uint8)
        expected = _step(network, images, torch.device("cpu"))
        try:
            computed = _step(network, images, device)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            return f"a training step on it fails ({first_line(error, 200)})"
    for name, value in expected.items():
        difference = float((computed[name] - value).norm() / value.norm().clamp_min(1e-12))
        if not difference <= TOLERANCE:  # also true for NaN
            return f"a training step on it does not agree with the CPU ({name} differs by {difference:.2g} of its norm)"
    return ""


def _network() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False, padding_mode="replicate"),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.Conv2d(8, 16, 1),
        nn.GroupNorm(1, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 1),
    )
    # As initialised, the gain of the first norm changes nothing, because the second norm undoes it: its gradient would
    # be rounding alone.
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network


def _step(network: nn.Module, images: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the logits, the gradients, and the parameters after an update, all on the CPU."""
    network = copy.deepcopy(network).to(device)
    rows = torch.arange(len(images) - 1, -1, -1).to(device)
    x = images.to(device)[rows].permute(0, 3, 1, 2).float()
    x = nn.functional.interpolate(x, (16, 16), mode="bilinear", antialias=True).sub_(127.5).div_(64).contiguous()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    logits = network(x).squeeze(1)
    labels = (torch.arange(len(images)) % 2).float().to(device)
    nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    parameters = dict(network.named_parameters())
    results = {"logits": logits, **parameters}
    results |= {f"gradient of {name}": each.grad for name, each in parameters.items() if each.grad is not None}
    return {name: value.detach().cpu() for name, value in results.items()}
