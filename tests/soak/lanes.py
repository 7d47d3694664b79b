"""Runs trials side by side in processes, one on each core. A crash or a hang ends its trial alone."""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

SHOWN = 500
"""Characters of a failure that are kept."""


@dataclass(frozen=True)
class Outcome:
    """What a trial gave: why it failed, an empty text where it was survived, and counts of what happened."""

    failure: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


Trial = Callable[[int, int], Outcome]
"""A function of the lane, counted from 0, and of the trial's number."""


@dataclass
class Result:
    """The trials of one kind: how many were requested, tried and survived, and why the others failed, by number."""

    kind: str
    requested: int
    tried: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def survived(self) -> int:
        return self.tried - len(self.failures)

    def add(self, number: int, failure: str, counts: Mapping[str, int]) -> None:
        self.tried += 1
        self.counts.update(counts)
        if failure:
            self.failures[number] = failure[:SHOWN]


def run_trials(
    kind: str,
    trial: Trial,
    numbers: Sequence[int],
    deadline: float,
    hang_s: float,
    cores: Sequence[int],
    show: Callable[[Result], object] = lambda _: None,
) -> Result:
    """Run trials until all are done or the deadline has passed.

    Parameters
    ----------
    kind : str
    trial : callable
        Called in a process for each core, in which it stays: what it keeps in memory serves later trials.
    numbers : sequence of int
    deadline : float
        In seconds of `time.monotonic()`. No trial begins later.
    hang_s : float
        Seconds after which a trial is a hang; its process and those that it has started are killed.
    cores : sequence of int
        One process is pinned to each.
    show : callable
        Receives the result so far, about once a second.
    """
    result, started = Result(kind, len(numbers)), time.monotonic()
    lanes = [_Lane(lane, core, trial, numbers[lane :: len(cores)]) for lane, core in enumerate(cores)]
    shown = started
    try:
        while any(lane.is_running for lane in lanes):
            ready, _, _ = select.select([lane.pipe for lane in lanes if lane.is_running], [], [], 0.2)
            for lane in lanes:
                if lane.is_running and (lane.pipe in ready or lane.hangs(hang_s)):
                    lane.receive(result, hang_s, deadline)
            if time.monotonic() - shown > 1:
                shown = time.monotonic()
                show(result)
            if shown > deadline:
                for lane in lanes:
                    lane.stop_soon()
    finally:
        for lane in lanes:
            lane.kill()
    result.seconds = time.monotonic() - started
    return result


class _Lane:
    """A process on one core that runs trials one after the other; it is started again after a crash or a hang."""

    def __init__(self, lane: int, core: int, trial: Trial, numbers: Sequence[int]) -> None:
        self._lane, self._core, self._trial, self._left = lane, core, trial, list(numbers)
        self._shared = mmap.mmap(-1, 24)  # number in progress or -1, when it began, whether to stop
        self.is_running, self._text = False, b""
        self._start()

    def _start(self) -> None:
        if not self._left:
            return
        self._shared[:] = struct.pack("<qdq", -1, 0.0, 0)
        self.pipe, writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self.pipe)
            status = 1
            try:
                self._work(writing)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        self.is_running, self._text = True, b""

    def _work(self, writing: int) -> None:
        os.setpgid(0, 0)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {self._core})
        for number in self._left:
            if struct.unpack_from("<q", self._shared, 16)[0]:
                return
            struct.pack_into("<d", self._shared, 8, time.monotonic())  # first, so that no number has an older time
            struct.pack_into("<q", self._shared, 0, number)
            try:
                outcome = self._trial(self._lane, number)
            except Exception:
                outcome = Outcome(traceback.format_exc()[-SHOWN:])
            line = json.dumps([number, outcome.failure, dict(outcome.counts)]).encode() + b"\n"
            struct.pack_into("<q", self._shared, 0, -1)
            while line:
                line = line[os.write(writing, line) :]

    def stop_soon(self) -> None:
        struct.pack_into("<q", self._shared, 16, 1)

    def hangs(self, hang_s: float) -> bool:
        number, began = struct.unpack_from("<qd", self._shared, 0)
        return number >= 0 and time.monotonic() - began > hang_s

    def receive(self, result: Result, hang_s: float, deadline: float) -> None:
        """Add the finished trials to the result; where the process has ended or hangs, add that and start another."""
        hangs = self.hangs(hang_s)
        data = b"" if hangs else os.read(self.pipe, 2**16)
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            number, failure, counts = json.loads(line)
            self._left.remove(number)
            result.add(number, failure, counts)
        if data:
            return
        in_progress = struct.unpack_from("<q", self._shared, 0)[0]
        how = self.kill()
        if in_progress >= 0 and in_progress in self._left:
            result.add(in_progress, f"hang: no end within {hang_s:.0f} s" if hangs else f"crash: {how}", {})
            self._left.remove(in_progress)
        if time.monotonic() < deadline and in_progress >= 0:
            self._start()

    def kill(self) -> str:
        """End the process and those that it has started, and return how it had ended."""
        if not self.is_running:
            return ""
        self.is_running = False
        os.close(self.pipe)
        ended, status = os.waitpid(self._pid, os.WNOHANG)
        for end in (lambda: os.killpg(self._pid, signal.SIGKILL), lambda: os.kill(self._pid, signal.SIGKILL)):
            try:
                end()
            except (ProcessLookupError, PermissionError):
                continue
        if not ended:
            _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return f"the process was ended by signal {-code}" if code < 0 else f"the process ended with status {code}"
