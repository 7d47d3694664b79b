"""What `thera bench` returns: how fast this machine trains, predicts, loads and decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        ordered = sorted(float(value) for value in values)
        return cls(median(ordered), ordered[0], ordered[-1])


@dataclass(frozen=True)
class MachineSpeed:
    """The measured peak speed of a device.

    Attributes
    ----------
    name : str
        The name of a GPU; empty for a CPU.
    threads : int
    gflops : mapping of str to float
        10^9 operations per second of matrix products and convolutions, by precision; a multiply-add counts as two.
    copy_gb_per_s : float
        10^9 bytes per second, read and written.
    """

    name: str
    threads: int
    gflops: Mapping[str, float]
    copy_gb_per_s: float


@dataclass(frozen=True)
class NetworkSpeed:
    """How fast one architecture is trained or predicted.

    Attributes
    ----------
    arch, plan : str
    images_per_second : Spread
    roofline_share : float
        Share of the machine's peak speed, counted in nominal operations.
    busy_share : float or None
        Share of the time that a GPU computes something; None on a CPU.
    advice : tuple of str
        What to change, a sentence each.
    """

    arch: str
    plan: str
    images_per_second: Spread
    roofline_share: float
    busy_share: float | None
    advice: tuple[str, ...]


@dataclass(frozen=True)
class LoadingSpeed:
    """Images per second into batches: in the first epoch, which hashes and decodes, and in later ones."""

    first_epoch: float
    later_epochs: Spread


@dataclass(frozen=True)
class DecisionTime:
    """Seconds of the exact threshold, and of a whole decision with stackers, bootstrap and floor."""

    rows: int
    threshold_seconds: Spread
    decision_seconds: float


@dataclass(frozen=True)
class BenchResult:
    """How well this machine is used.

    Attributes
    ----------
    rounds, images, size : int
        Repetitions, images a turn, and their side in pixels.
    machine : MachineSpeed or None
    training, prediction : tuple of NetworkSpeed
    loading : LoadingSpeed or None
    decision : DecisionTime or None
    """

    rounds: int
    images: int = 0
    size: int = 0
    machine: MachineSpeed | None = None
    training: tuple[NetworkSpeed, ...] = ()
    prediction: tuple[NetworkSpeed, ...] = ()
    loading: LoadingSpeed | None = None
    decision: DecisionTime | None = None
