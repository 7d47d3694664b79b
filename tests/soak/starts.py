"""Two commands that start at once in one run: one trains, the other ends at once with exit status 5."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from . import tiny_run
from .lanes import Outcome, Trial

HANG_S = 120.0

APART_S = 0.05
"""The longest time by which one of the two starts later; it is short beside the training."""


def trials(data: Path, seed: int) -> tuple[Trial, int | None]:
    """Return the trial, and None: there are as many as one likes."""
    of_training = ("run/folds.csv", "run/members/")
    whole = tiny_run.results(data / "whole")
    expected = {name: sha256 for name, sha256 in whole.items() if name.startswith(of_training)}

    def trial(lane: int, number: int) -> Outcome:
        folder, rng = tiny_run.fresh(data / f"starts-{lane}"), random.Random(f"{seed} start {number}")
        gates, children = [], []
        for _ in range(2):
            reading, writing = os.pipe()
            apart = rng.choice([0.0, rng.uniform(0, APART_S)])
            gates.append(writing)
            children.append(tiny_run.Child(lambda gate=reading, s=apart: _started(data, folder, gate, s)))  # type: ignore[misc]
            os.close(reading)
        for gate in gates:
            os.write(gate, b"g")
        ended = sorted((child.ended() for child in children), key=lambda each: each.status)
        for gate in gates:
            os.close(gate)
        winner, loser = ended
        seconds = loser.text.rpartition("seconds ")[2]
        counts = {f"exit {winner.status} and {loser.status}": 1}
        counts["refused after more than 1 s"] = int(loser.status == 5 and float(seconds) > 1)
        if (winner.status, loser.status) != (0, 5) or not loser.is_refusal(5):
            return Outcome(f"{winner.status}, {loser.status}: {winner.text[-200:]} {loser.text[-200:]}", counts)
        if not any(f"pid {child.pid} on " in loser.errors[0] for child in children):
            return Outcome(f"the winner is not named: {loser.errors}", counts)
        if differs := tiny_run.differences(tiny_run.results(folder), expected):
            return Outcome(f"other results: {differs}", counts)
        left = tiny_run.left_behind(folder)
        return Outcome(f"left behind: {left}" if left else "", counts)

    return trial, None


def _started(data: Path, folder: Path, gate: int, apart: float) -> tiny_run.Ended:
    os.read(gate, 1)
    time.sleep(apart)
    began = time.monotonic()
    ended = tiny_run.run("train-member", data, folder / "run")
    return tiny_run.Ended(ended.status, f"{ended.text}seconds {time.monotonic() - began}")
