"""The actor on the driver's node, which collects progress and reads and writes files for nodes that do not see them."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import ray

from ensemble.cluster.display import Report
from ensemble.runs.training_state import StateFolder

Arrays: TypeAlias = dict[str, np.ndarray]


class Relay:
    """Runs on the driver's node as an actor, and ends with the driver. Ray may start it again at any time.

    It keeps nothing that would be lost then: its answers come from files, and from reports that tasks send again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reports: dict[str, dict[int, Report]] = {}
        self._pixels: dict[str, Any] = {}

    # --- progress

    def report(self, token: str, index: int, report: Report) -> None:
        """Keep the last report of a job; `token` is the name of the run of the pool that the job is part of."""
        with self._lock:
            self._reports.setdefault(token, {})[index] = report

    def collect(self, token: str) -> dict[int, Report]:
        """Return the reports that have arrived since the last call, by job, and remove those of other tokens."""
        with self._lock:
            new = self._reports.pop(token, {})
            self._reports = {}
            return new

    # --- files

    def mark(self, folder: str) -> str:
        """Make a folder and a hidden file in it, and return the file's path: a node that sees it shares the folder."""
        path = Path(folder) / f".shared.{secrets.token_hex(8)}.tmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return str(path)

    def unmark(self, path: str) -> None:
        """Remove the file that `mark` made."""
        Path(path).unlink(missing_ok=True)

    def load(self, folder: str) -> tuple[tuple[Arrays, list[dict[str, Any]]] | None, list[str]]:
        """Return the newest training state of a folder and its warnings, as `StateFolder.load`."""
        states = StateFolder(Path(folder))
        loaded = states.load()
        if loaded is None:
            return None, states.warnings
        return (arrays_of(loaded[0]), loaded[1]), states.warnings

    def save_state(self, folder: str, arrays: Arrays, history: Sequence[Mapping[str, Any]], updates: int) -> None:
        """Write a training state, as `StateFolder.save_state`."""
        StateFolder(Path(folder)).save_state(tensors_of(arrays), history, updates)

    def write_history(self, folder: str, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the history of the epochs, as `StateFolder.write_history`."""
        StateFolder(Path(folder)).write_history(history)

    def write_not_finite(self, folder: str, facts: Mapping[str, Any]) -> str:
        """Write what is known of a loss that is not finite, as `StateFolder.write_not_finite`."""
        return str(StateFolder(Path(folder)).write_not_finite(facts))

    def pixels(self, path: str) -> list[Any]:
        """Put the images of a file into the object store, once, and return the reference to them."""
        with self._lock:
            if path not in self._pixels:
                self._pixels[path] = ray.put(np.asarray(np.load(path, mmap_mode="r")))
            return [self._pixels[path]]  # Ray would replace a reference outside a list by its content


def arrays_of(tensors: Mapping[str, Any]) -> Arrays:
    """Return tensors as arrays, which travel without a copy."""
    return {key: value.detach().cpu().numpy() for key, value in tensors.items()}


def tensors_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return arrays as tensors; they are copied, because arrays of the object store are read-only."""
    import torch

    return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}
