"""Time a contest. The contestants take turns (A B A B), so that other work on the machine slows all of them equally."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Contestant = Callable[[], int]
"""A function that does a fixed amount of work and returns the number of images."""


class Ratio(NamedTuple):
    """The speed of A divided by that of another: median, least and greatest over the rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Match:
    """The speeds of all contestants.

    Parameters
    ----------
    speeds : dict of str to float64 array (rounds,)
        Images per second in each round, by contestant, A first.
    """

    speeds: dict[str, np.ndarray]

    @property
    def ratios(self) -> dict[str, Ratio]:
        """The ratio of A to each other contestant. The two speeds of one round give that round's ratio."""
        first, *others = self.speeds
        of_rounds = {name: self.speeds[first] / self.speeds[name] for name in others}
        return {name: Ratio(float(np.median(x)), float(x.min()), float(x.max())) for name, x in of_rounds.items()}


def take_turns(
    contestants: Mapping[str, Contestant], rounds: int, now: Callable[[], float] = time.perf_counter
) -> Match:
    """Run each contestant once untimed, then all of them in turn, `rounds` times.

    Parameters
    ----------
    contestants : mapping of str to callable
        The first is A.
    rounds : int
        At least 1.
    now : callable
        The time in seconds.
    """
    for work in contestants.values():
        work()
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            started = now()
            images = work()
            speeds[name].append(images / (now() - started))
    return Match({name: np.array(of_rounds) for name, of_rounds in speeds.items()})
