"""Measure how fast a piece of work is over several rounds."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np


def images_per_second(work: Callable[[], int], rounds: int, now: Callable[[], float] = time.perf_counter) -> np.ndarray:
    """Repeat the same work, and return the speed of each round.

    Parameters
    ----------
    work : callable
        Returns how many images it has done. It runs once more than `rounds`: the first time is not counted, because
        it builds networks and starts processes.
    rounds : int
        At least 1.
    now : callable
        The time in seconds.

    Returns
    -------
    float64 array (rounds,)
    """
    work()
    speeds = []
    for _ in range(rounds):
        started = now()
        images = work()
        speeds.append(images / (now() - started))
    return np.array(speeds)
