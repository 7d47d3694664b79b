"""The position of a training within an epoch: the losses so far, the seconds, and the random numbers that come next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

FINITE_CHECK_INTERVAL = 50
"""Updates between two checks that the losses are finite. A check reads them from the device, which makes a GPU wait."""


class EpochLosses:
    """The losses of an epoch's updates. They stay on the device until `read` copies them.

    Parameters
    ----------
    values : iterable of float
        The losses of the updates that are made.
    scaled : bool
        Whether a gradient scaler skips updates that overflow, as in fp16. Then a loss may be infinite, but not those of
        `FINITE_CHECK_INTERVAL` updates in a row.
    """

    def __init__(self, values: Iterable[float], scaled: bool) -> None:
        self.values: list[float] = []
        self._allowed = FINITE_CHECK_INTERVAL - 1 if scaled else 0
        self._failing = 0  # the updates before the next one whose losses are not finite
        self._on_device: list[torch.Tensor] = []
        for value in values:
            self._add(value)

    def __len__(self) -> int:
        return len(self.values) + len(self._on_device)

    @property
    def mean(self) -> float | None:
        """The mean of the finite losses that are read, None if there are none."""
        finite = [value for value in self.values if math.isfinite(value)]
        return float(np.mean(finite)) if finite else None

    def append(self, loss: torch.Tensor) -> None:
        self._on_device.append(loss)

    def read(self) -> int | None:
        """Copy the losses from the device; return the first update whose loss is a fault, None if there is none."""
        pending = torch.stack(self._on_device).tolist() if self._on_device else []
        self._on_device = []
        faults = [self._add(value) for value in pending]
        return next((fault for fault in faults if fault is not None), None)

    def _add(self, value: float) -> int | None:
        self.values.append(value)
        self._failing = 0 if math.isfinite(value) else self._failing + 1
        return len(self.values) - self._failing if self._failing > self._allowed else None


@dataclass(frozen=True)
class Position:
    """The position of a training within an epoch.

    Attributes
    ----------
    losses : EpochLosses
        Those of the updates that are made.
    seconds : float
        The time that these updates took, over all starts.
    random : mapping
        States of torch's random number generators by the type of device; empty at the beginning of an epoch.
    """

    losses: EpochLosses
    seconds: float
    random: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], scaled: bool) -> Position:
        """Return the position that `tensors` returned, or the beginning of an epoch if there are none."""
        losses = EpochLosses(tensors["losses"].tolist() if tensors else [], scaled)
        seconds = float(tensors["seconds"]) if tensors else 0.0
        random = {key.removeprefix("random."): each for key, each in tensors.items() if key.startswith("random.")}
        return cls(losses, seconds, random)

    def tensors(self, seconds: float, device: torch.device) -> dict[str, torch.Tensor]:
        """Return the current position as tensors, after so many seconds of the epoch."""
        tensors = {
            "losses": torch.tensor(self.losses.values, dtype=torch.float64),
            "seconds": torch.tensor(seconds, dtype=torch.float64),
            "random.cpu": torch.get_rng_state(),
        }
        if device.type != "cpu":
            tensors[f"random.{device.type}"] = torch.get_device_module(device).get_rng_state(device)
        return tensors

    def restore_random(self, device: torch.device) -> None:
        """Let the next random numbers be those that came next at this position."""
        if "cpu" in self.random:
            torch.set_rng_state(self.random["cpu"])
        if device.type != "cpu" and device.type in self.random:
            torch.get_device_module(device).set_rng_state(self.random[device.type], device)
