"""Functions that test_processes.py runs in other processes, which import them from this module."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import torch

from ensemble.errors import DataError
from ensemble.members.processes import MappedPixels


def describe(number: int, bar: Any) -> tuple[int, int, list[int], int]:
    """Return the number, and the process that computed it, its cores, its threads."""
    bar.note(f"number {number}")
    bar.say(f"call {number}")
    bar.skip(10)
    bar.advance(number)
    return number, os.getpid(), sorted(os.sched_getaffinity(0)), torch.get_num_threads()


def total(mapped: MappedPixels, bar: Any) -> tuple[int, bool]:
    return int(mapped.array.sum(dtype=np.int64)), isinstance(mapped.array, np.memmap)


def wrong(kind: str, bar: Any) -> None:
    if kind == "refused":
        raise DataError("a\nb.jpg", "has zero bytes", "remove it")
    if kind == "disk":
        raise OSError(28, "No space left on device", "/x")
    if kind == "memory":
        raise MemoryError
    if kind == "allocator":
        torch.empty(2**50, dtype=torch.uint8)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ZeroDivisionError("of nothing")


def wait_for(path: str, others: int, bar: Any) -> int:
    """Return the process once the folder of `path` has so many files, and make this one."""
    while len(os.listdir(os.path.dirname(path))) < others:
        time.sleep(0.01)
    with open(path, "w"):
        return os.getpid()


def slow(bar: Any) -> None:
    """Report progress for ever."""
    while True:
        bar.advance(1)
        time.sleep(0.05)
