"""The timing of a probe: steps of several plans in turn, each until the device has computed it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

import torch

from ensemble.members.devices import synchronize
from ensemble.members.plans import Plan
from ensemble.progress import Bar

ROUNDS = 3
"""The number of timed batches of each plan; the median time is used."""

TOO_SLOW = 5.0
"""A plan whose first timed batch takes this many times as long as the fastest plan's is not timed further."""


class Step(Protocol):
    """Work of which each step takes as long as the others."""

    def step(self) -> torch.Tensor: ...


def time_in_turn(subjects: Mapping[Plan, Step], bar: Bar) -> dict[Plan, list[float]]:
    """Return the seconds of each plan's steps, taken in turn, so that other work slows all plans equally."""
    seconds: dict[Plan, list[float]] = {plan: [] for plan in subjects}
    too_slow: set[Plan] = set()
    for _ in range(ROUNDS):
        for plan in (each for each in subjects if each not in too_slow):
            seconds[plan].append(seconds_of(subjects[plan]))
            bar.advance()
        fastest = min((of_plan[0] for of_plan in seconds.values()), default=0.0)
        too_slow = {plan for plan in subjects if seconds[plan][0] > TOO_SLOW * fastest}
    return seconds


def seconds_of(subject: Step) -> float:
    """Return the seconds of one step."""
    started = time.perf_counter()
    synchronize(subject.step().device)
    return time.perf_counter() - started
