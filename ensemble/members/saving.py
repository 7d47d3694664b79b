"""When the state of a training is saved: after each epoch and by time; on a GPU by time alone, in a thread of its own.

A fast GPU makes an epoch in less time than a disk takes for the state (of resnet18, 179 MB). There the training only
copies its state, and a thread writes the copy while the training goes on.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch

from ensemble.members.learner import Tensors

History: TypeAlias = list[dict[str, Any]]
Snapshot: TypeAlias = Callable[[], Tensors]
"""Returns the state of a training as tensors on the CPU; with `BackgroundSaves`, as copies."""


class Checkpoint(Protocol):
    """The store of a fold's state. `save` is `save_state` and, at the end of an epoch, `write_history`."""

    @property
    def save_every(self) -> float: ...

    def load(self) -> tuple[Tensors, History] | None: ...

    def save(self, tensors: Tensors, history: Sequence[Mapping[str, Any]], updates: int = 0) -> None: ...

    def save_state(self, tensors: Tensors, history: Sequence[Mapping[str, Any]], updates: int = 0) -> None: ...

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None: ...

    def write_not_finite(self, facts: Mapping[str, Any]) -> Path: ...


class Saves:
    """Saves the state of a training at once: after each epoch, and within an epoch every `save_every` seconds.

    Parameters
    ----------
    checkpoint : Checkpoint
    """

    in_background = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._saved = checkpoint, time.monotonic()

    def begin_epoch(self) -> None:
        """Count the seconds from now on."""
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Return whether the state is to be saved within an epoch."""
        return time.monotonic() - self._saved >= self._checkpoint.save_every

    def save(self, snapshot: Snapshot, history: History, updates: int = 0) -> None:
        """Save the state after the epochs of `history` and so many updates of the next one."""
        if updates:
            self._checkpoint.save(snapshot(), history, updates)
        else:
            self._checkpoint.save(snapshot(), history)
        self._saved = time.monotonic()

    def save_epoch(self, snapshot: Snapshot, history: History, last: bool) -> bool:
        """Save the state and the history after an epoch, and return whether the state is saved; `last` requires it."""
        self.save(snapshot, history)
        return True

    def finish(self) -> None:
        """Wait until everything is on disk."""


class BackgroundSaves(Saves):
    """Saves the state of a training every `save_every` seconds and at its end, in a thread.

    The history is written after each epoch at once. An error of the thread is raised by the next call of any method.
    At most one state waits to be written.
    """

    in_background = True

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self._pending: Future[None] | None = None

    def begin_epoch(self) -> None:
        """Change nothing: the seconds count from the last saved state."""

    def is_due(self) -> bool:
        """Return whether the state is to be saved: the seconds have passed, and no earlier state is being written."""
        if self._pending is not None and self._pending.done():
            self.finish()
        return self._pending is None and super().is_due()

    def save(self, snapshot: Snapshot, history: History, updates: int = 0) -> None:
        """Copy the state, and let the thread write it; if the thread still writes an earlier state, wait for it."""
        self.finish()
        self._pending = _thread().submit(self._checkpoint.save_state, snapshot(), list(history), updates)
        self._saved = time.monotonic()

    def save_epoch(self, snapshot: Snapshot, history: History, last: bool) -> bool:
        """Write the history, and save the state if that is due; `last` requires it, and waits for it."""
        self._checkpoint.write_history(history)
        due = last or self.is_due()
        if due:
            self.save(snapshot, history)
        if last:
            self.finish()
        return due

    def finish(self) -> None:
        """Wait until the state is on disk, and raise the error of the thread if there was one."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def saves_on(device: torch.device, checkpoint: Checkpoint) -> Saves:
    """Return the way in which a training on a device is saved."""
    return Saves(checkpoint) if device.type == "cpu" else BackgroundSaves(checkpoint)


@functools.cache
def _thread() -> ThreadPoolExecutor:
    """Return the one thread of this process that writes states."""
    return ThreadPoolExecutor(1, "thera-save")
