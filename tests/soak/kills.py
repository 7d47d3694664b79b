"""SIGKILL at a random time of a whole run, a third of them aimed into a save; the same commands then go on."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import tiny_run
from .lanes import Outcome, Trial

HANG_S = 120.0


def trials(data: Path, seed: int) -> tuple[Trial, int | None]:
    """Return the trial, and None: there are as many as one likes."""
    whole = data / "whole"
    expected, hashes = tiny_run.results(whole), tiny_run.hashes(whole)
    lasts: dict[int, float] = {}  # seconds of an undisturbed run in each lane

    def trial(lane: int, number: int) -> Outcome:
        folder, rng = data / f"kills-{lane}", random.Random(f"{seed} kill {number}")
        if lane not in lasts:
            lasts[lane] = _seconds(data, folder)
        aimed = number % 3 == 0
        saves = _Saves()
        for _ in range(20):
            tiny_run.fresh(folder)
            child = saves.start(lambda: tiny_run.whole_run(data, folder / "run"))
            if aimed:
                saves.wait(rng.randrange(1, 80))
                time.sleep(rng.choice([0.0, rng.uniform(0, 0.01)]))
            else:
                time.sleep(rng.uniform(0, lasts[lane]))
            child.kill()
            if child.ended().status == -9:
                break  # otherwise the run was over before the kill
        else:
            return Outcome("20 runs in turn were over before the kill")
        counts = {"inside a save": int(saves.inside), "aimed": int(aimed)}
        if torn := tiny_run.torn(folder, hashes):
            return Outcome(f"torn after the kill: {torn}", counts)
        ended = tiny_run.Child(lambda: tiny_run.whole_run(data, folder / "run")).ended()
        if ended.status:
            return Outcome(f"the same command ends with {ended.status}: {ended.text[-300:]}", counts)
        if differs := tiny_run.differences(tiny_run.results(folder), expected):
            return Outcome(f"other results: {differs}", counts)
        if left := tiny_run.left_behind(folder):
            return Outcome(f"left behind: {left}", counts)
        return Outcome(counts=counts)

    return trial, None


def _seconds(data: Path, folder: Path) -> float:
    tiny_run.fresh(folder)
    started = time.monotonic()
    tiny_run.Child(lambda: tiny_run.whole_run(data, folder / "run")).ended()
    return time.monotonic() - started


class _Saves:
    """Tells the parent of a process when the process begins and ends to save."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)  # how many saves are in progress, one within the other

    @property
    def inside(self) -> bool:
        """Whether the process was killed within a save."""
        return struct.unpack("<q", self._shared[:])[0] > 0

    def start(self, work: Callable[[], tiny_run.Ended]) -> tiny_run.Child:
        self._shared[:] = struct.pack("<q", 0)
        self._reading, writing = os.pipe()

        def flagged() -> tiny_run.Ended:
            from ensemble.data import store
            from ensemble.runs import files

            os.close(self._reading)
            replacing, write_store = files.replacing, store._write_store

            @contextlib.contextmanager
            def flag() -> Iterator[None]:
                self._add(1)
                with contextlib.suppress(BrokenPipeError):
                    os.write(writing, b"s")
                yield
                self._add(-1)

            @contextlib.contextmanager
            def flagged_replacing(path: Path) -> Iterator[Path]:
                with flag(), replacing(path) as temporary:
                    yield temporary

            def flagged_store(*arguments: Any) -> Any:
                with flag():
                    return write_store(*arguments)

            files.replacing, store._write_store = flagged_replacing, flagged_store
            return work()

        child = tiny_run.Child(flagged)
        os.close(writing)
        return child

    def _add(self, n: int) -> None:
        self._shared[:] = struct.pack("<q", struct.unpack("<q", self._shared[:])[0] + n)

    def wait(self, n: int) -> None:
        """Wait until the process begins its n-th save, or ends."""
        with open(self._reading, "rb", buffering=0) as file:
            while n > 0 and (begun := file.read(n)):
                n -= len(begun)
