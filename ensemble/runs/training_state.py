"""The resumable state of a fold's training: tensors with their hashes, and the history of the epochs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ensemble.errors import ArtifactError
from ensemble.runs.files import Tensors, file_sha256, read_json, read_tensors, write_json, write_tensors, write_whole

NOT_FINITE = "not_finite.json"
"""The file in a fold's folder that describes the batch at which its training stopped because of the loss."""


@dataclass(frozen=True)
class StateNote:
    """The JSON file beside a training state: the hash of its tensors, the history, and updates of a further epoch."""

    sha256: str
    history: list[dict[str, int | float | None]]
    updates: int = 0

    @property
    def stem(self) -> str:
        """The name of the state without suffix. The names of later states are greater."""
        within = f"-update-{self.updates:08d}" if self.updates else ""
        return f"epoch-{len(self.history):04d}{within}"


class StateFolder:
    """A fold's resumable training state: the last two that were saved, each with its hash beside it.

    Parameters
    ----------
    folder : Path
        `members/<name>/fold-<k>`; the state lies in `state/` below it, the history beside it.
    save_every : float
        Seconds after which the training saves its state.
    """

    KEPT = 2

    def __init__(self, folder: Path, save_every: float = math.inf) -> None:
        self.folder, self._state, self._history = folder, folder / "state", folder / "history.jsonl"
        self.save_every = save_every
        self.warnings: list[str] = []

    def save(self, tensors: Tensors, history: Sequence[Mapping[str, Any]], updates: int = 0) -> None:
        """Save the state as `save_state` does; at the end of an epoch also write the history."""
        self.save_state(tensors, history, updates)
        if not updates:
            self.write_history(history)

    def save_state(self, tensors: Tensors, history: Sequence[Mapping[str, Any]], updates: int = 0) -> None:
        """Save the state after `len(history)` epochs and `updates` of the next one."""
        note = StateNote("", [dict(epoch) for epoch in history], updates)
        sha256 = write_tensors(self._state / f"{note.stem}.safetensors", tensors)
        write_json(self._state / f"{note.stem}.json", replace(note, sha256=sha256))
        self._remove_all_but(note.stem)

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the history of the epochs, a line each."""
        write_whole(self._history, "".join(json.dumps(epoch) + "\n" for epoch in history).encode())

    def _remove_all_but(self, newest: str) -> None:
        """Remove all states but the newest ones; also later ones, which were damaged, and tensors without a note."""
        stems = sorted(path.stem for path in self._state.glob("epoch-*.json"))
        kept = [stem for stem in stems if stem <= newest][-self.KEPT :]
        for suffix in ("json", "safetensors"):
            for path in self._state.glob(f"epoch-*.{suffix}"):
                if path.stem not in kept:
                    path.unlink()

    def write_not_finite(self, facts: Mapping[str, Any]) -> Path:
        """Write what is known of a batch whose loss is not finite, and return the path of the file."""
        path = self._history.with_name(NOT_FINITE)
        write_json(path, facts)
        return path

    def load(self) -> tuple[Tensors, list[dict[str, Any]]] | None:
        """Return the newest undamaged state, or None if there is no state yet.

        Raises
        ------
        ArtifactError
            There are states, and all of them are damaged.
        """
        notes = sorted(self._state.glob("epoch-*.json"), key=lambda path: path.stem, reverse=True)
        for path in notes:
            weights = path.with_suffix(".safetensors")
            try:
                note = read_json(path, StateNote, "")
                if file_sha256(weights) == note.sha256 and path.stem == note.stem:
                    return read_tensors(weights), note.history
            except ArtifactError:
                pass
            self.warnings.append(f"{weights} is damaged; going on from an older state")
        if notes:
            problem = "holds only damaged states"
            raise ArtifactError(self._state, problem, "remove this folder to start the fold anew")
        return None
