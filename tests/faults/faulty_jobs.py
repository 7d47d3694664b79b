"""Classes that the tests of faults send to other processes, which import them from this module."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.members.processes import MappedPixels
from ensemble.runs.training_state import StateFolder


class KilledAt(StateFolder):
    """A state folder whose process is killed once it has saved the state after the first update of the second epoch."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, save_every=0)

    def save(self, tensors: Any, history: Sequence[Mapping[str, Any]], updates: int = 0) -> None:
        super().save(tensors, history, updates)
        if len(history) == 1 and updates == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class StopsAt(StateFolder):
    """A state folder whose training stops once it has saved the state after some updates, as by a kill."""

    def __init__(self, folder: Path, updates: int, updates_per_epoch: int) -> None:
        super().__init__(folder, save_every=0)
        self.stop_at, self.per_epoch = updates, updates_per_epoch

    def save(self, tensors: Any, history: Sequence[Mapping[str, Any]], updates: int = 0) -> None:
        super().save(tensors, history, updates)
        if len(history) * self.per_epoch + updates == self.stop_at:
            raise InterruptedError


class HangingPixels(MappedPixels):
    """Pixels that a data worker waits for in vain."""

    @property
    def array(self) -> Any:  # type: ignore[override]
        return self

    def __init__(self, pixels: np.ndarray) -> None: ...

    def __reduce__(self) -> Any:
        return HangingPixels, (None,)

    def __getitem__(self, rows: Any) -> Any:
        time.sleep(60)


class Lines:
    """A bar that keeps its sums and lines."""

    def __init__(self) -> None:
        self.done, self.skipped = 0, 0
        self.said: list[str] = []

    def advance(self, n: int = 1) -> None:
        self.done += n

    def skip(self, n: int) -> None:
        self.skipped += n

    def note(self, text: str) -> None: ...

    def say(self, line: str) -> None:
        self.said.append(line)
