"""Writes the histories of trainings for TensorBoard, while they are trained (`--log tensorboard`)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from torch.utils.tensorboard import SummaryWriter

UNLOGGED = ("epoch", "seconds")
"""Keys of a history that are no curve: the step itself, and what depends on the machine alone."""

Scalars = dict[tuple[str, int], float]
"""Values by tag and step, in the float32 that TensorBoard stores."""


class TensorBoardLog:
    """The event files of several trainings, each in a folder of its own; a step is an epoch.

    What the files hold is always a part of the history: an interrupted training goes on after the steps that are
    written already. Where they hold anything else, as after a training that was begun anew with another config, they
    are written anew. Only the process that shows the progress writes.

    Parameters
    ----------
    folder : Path
        `tensorboard/` in the run's folder; a training is below it, such as `small_cnn/fold-0`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._followed: dict[str, Path] = {}
        self._seen: dict[str, bytes] = {}
        self._written: dict[str, Scalars] = {}
        self._writers: dict[str, SummaryWriter] = {}

    def follow(self, name: str, history: Path) -> None:
        """Write the epochs of this history file from now on, at each `update`."""
        self._followed[name] = history
        self._update(name)

    def update(self) -> None:
        """Write the epochs that the followed trainings have finished since."""
        for name in self._followed:
            self._update(name)

    def write(self, name: str, history: Iterable[Mapping[str, Any]]) -> None:
        """Write the whole history of a training, as far as it is not written yet."""
        scalars = _scalars(history)
        written = self._read(name)
        if not written.items() <= scalars.items():
            self._remove(name)
            written = self._written[name]
        missing = {key: value for key, value in scalars.items() if key not in written}
        if not missing:
            return
        if name not in self._writers:
            self._writers[name] = SummaryWriter(str(self._folder / name))
        for (tag, step), value in missing.items():
            self._writers[name].add_scalar(tag, value, step)
        self._writers[name].flush()
        written |= missing

    def finish(self, name: str, history: Iterable[Mapping[str, Any]]) -> None:
        """Write the history of a finished training, and follow it no longer."""
        self._followed.pop(name, None)
        self.write(name, history)
        if name in self._writers:
            self._writers.pop(name).close()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _update(self, name: str) -> None:
        data = b""
        with contextlib.suppress(FileNotFoundError):
            data = self._followed[name].read_bytes()  # it is replaced whole after each epoch
        if data != self._seen.get(name):
            self._seen[name] = data
            self.write(name, map(json.loads, data.splitlines()))

    def _read(self, name: str) -> Scalars:
        """Return what the event files of a training hold."""
        if name not in self._written:
            self._written[name] = read_scalars(self._folder / name)
        return self._written[name]

    def _remove(self, name: str) -> None:
        if name in self._writers:
            self._writers.pop(name).close()
        for path in _event_files(self._folder / name):
            path.unlink()
        self._written[name] = {}


def read_scalars(folder: Path) -> Scalars:
    """Return what the event files of a folder hold; a record that was cut off by a kill is left out."""
    if not any(_event_files(folder)):
        return {}
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    return {(tag, event.step): event.value for tag in events.Tags()[SCALARS] for event in events.Scalars(tag)}


def _event_files(folder: Path) -> Iterator[Path]:
    return folder.glob("events.out.tfevents.*")


def _scalars(history: Iterable[Mapping[str, Any]]) -> Scalars:
    return {
        (key, epoch["epoch"]): float(np.float32(value))
        for epoch in history
        for key, value in epoch.items()
        if key not in UNLOGGED and value is not None
    }
