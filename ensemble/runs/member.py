"""A member's folder: weights, OOF logits and history of each fold, and the resumable state of its training."""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.errors import ArtifactError
from ensemble.runs.files import (
    SCHEMA,
    Tensors,
    file_sha256,
    read_json,
    read_logits,
    read_table,
    read_tensors,
    refuse_differences,
    write_arrays,
    write_json,
    write_logits,
    write_table,
    write_tensors,
    write_whole,
)

TRAIN_AGAIN = "give its `thera train-member` command again; what is done is kept"

UNSAID_OF_TRAINING = {"convolutions": "native"}
"""How a member was trained that was begun before there was a choice, and does not say."""

FROM_TIMM, FROM_FILE, FROM_SCRATCH = "timm's pretrained weights", "a file", "scratch"
"""What a member started from that asked for pretrained weights if they can be had."""


class MemberFolder:
    """One member's folder: `member.json`, and for each fold its weights, OOF logits and history."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self._json = folder / "member.json"

    def begin(
        self, config: Mapping[str, Any], identity: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> None:
        """Start a member, or make sure that it goes on with the same config, data and folds.

        One that has nothing yet, no finished fold and no epoch of one, may still be begun with another config. What an
        older config does not say is taken from `defaults`.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat()
        for left_by_a_kill in self.folder.rglob(".*.tmp"):
            left_by_a_kill.unlink(missing_ok=True)
        if not self.has_begun:
            first = {"schema": SCHEMA, "begun": now, "config": config, **identity, "folds": {}, "oof": None}
            write_json(self._json, first)
        found, remedy = self.read(), "give it another --name, or use another --run"
        refuse_differences(self._json, {**(defaults or {}), **found["config"]}, config, remedy)
        made = UNSAID_OF_TRAINING | found
        refuse_differences(self._json, {key: made.get(key) for key in identity}, identity, remedy)

    @property
    def has_begun(self) -> bool:
        """Whether there is a finished fold, or an epoch of one, or of what comes before it."""
        if not self._json.exists():
            return False
        facts = self.read()
        return any(facts.get(key) for key in ("folds", "parts", "left_out")) or any(
            self.folder.glob("fold-*/**/state/*")
        )

    def read(self) -> Any:
        return read_json(self._json, TRAIN_AGAIN)

    def update(self, **values: Any) -> None:
        write_json(self._json, self.read() | values)

    def fold(self, fold: int) -> Path:
        return self.folder / f"fold-{fold}"

    def has_oof(self, fold: int) -> bool:
        return str(fold) in self.read()["folds"]

    def has_fold(self, fold: int) -> bool:
        """Return whether nothing of a fold is left to do: OOF logits and weights are there, as they were written."""
        facts = self.read()["folds"].get(str(fold), {})
        files = {"oof_sha256": "oof.csv", "weights_sha256": "weights.safetensors"}
        return bool(facts) and all(
            (self.fold(fold) / name).exists() and file_sha256(self.fold(fold) / name) == facts[key]
            for key, name in files.items()
        )

    def history(self, fold: int) -> list[Any]:
        """Return what is kept of a fold's epochs, one mapping each; nothing where nothing is kept."""
        with contextlib.suppress(OSError, ValueError):
            return [json.loads(line) for line in (self.fold(fold) / "history.jsonl").read_text().splitlines()]
        return []

    def finish_fold(
        self,
        fold: int,
        weights: Mapping[str, np.ndarray],
        ids: np.ndarray,
        logits: np.ndarray,
        views: Sequence[str],
        **facts: Any,
    ) -> None:
        """Write a fold's weights and OOF logits (n, views), record their hashes, then drop its training state."""
        folder = self.fold(fold)
        weights_sha256 = write_arrays(folder / "weights.safetensors", weights)
        oof_sha256 = write_logits(folder / "oof.csv", ids, logits, views)
        files = {"weights_sha256": weights_sha256, "oof_sha256": oof_sha256}
        self.update(folds=self.read()["folds"] | {str(fold): files | facts})
        shutil.rmtree(folder / "state", ignore_errors=True)

    def part(self, fold: int, part: int) -> Path:
        """Return where a part of a fold's training rows is held out, to find doubtful labels among them."""
        return self.fold(fold) / f"cleaning-{part}"

    def finish_part(self, fold: int, part: int, ids: np.ndarray, logits: np.ndarray, views: Sequence[str]) -> None:
        """Write the logits (n, views) of such a part, record the hash, then drop its training state."""
        sha256 = write_logits(self.part(fold, part) / "oof.csv", ids, logits, views)
        self.update(parts=self.read().get("parts", {}) | {f"{fold}/{part}": sha256})
        shutil.rmtree(self.part(fold, part) / "state", ignore_errors=True)

    def read_part(self, fold: int, part: int, views: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the ids (n,) and logits (n, views) of such a part, or None where it is not finished."""
        sha256 = self.read().get("parts", {}).get(f"{fold}/{part}")
        path = self.part(fold, part) / "oof.csv"
        return None if sha256 is None or not path.exists() else read_logits(path, views, sha256, TRAIN_AGAIN)

    def write_left_out(self, fold: int, ids: np.ndarray) -> None:
        """Write which training rows of a fold are left out, record the hash, then drop how they were found."""
        sha256 = write_table(self.fold(fold) / "left_out.csv", ("id",), ((id_,) for id_ in ids))
        self.update(left_out=self.read().get("left_out", {}) | {str(fold): {"sha256": sha256, "rows": len(ids)}})
        for part in self.fold(fold).glob("cleaning-*"):
            shutil.rmtree(part, ignore_errors=True)

    def left_out(self, fold: int) -> np.ndarray | None:
        """Return the ids of the training rows of a fold that are left out, or None where that is not known yet.

        Raises
        ------
        ArtifactError
            The file is not as it was written.
        """
        facts = self.read().get("left_out", {}).get(str(fold))
        if facts is None:
            return None
        path, remedy = self.fold(fold) / "left_out.csv", "restore it"
        (ids,) = read_table(path, ("id",), remedy)
        if file_sha256(path) != facts["sha256"]:
            raise ArtifactError(path, "is not the file that thera wrote (its hash differs)", remedy)
        return np.array(ids, np.str_)

    def read_oof(self, fold: int, views: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (n,) that a fold's model scored and their logits (n, views) as float64."""
        facts = self.read()["folds"].get(str(fold))
        if facts is None:
            raise ArtifactError(f"member {self.name}", f"lacks OOF logits for fold {fold}", TRAIN_AGAIN)
        return read_logits(self.fold(fold) / "oof.csv", views, facts["oof_sha256"], TRAIN_AGAIN)

    def weights_sha256(self, fold: int) -> str:
        """Return the hash that training recorded of a fold's weights; the weights themselves may be gone."""
        facts = self.read()["folds"].get(str(fold))
        if facts is None:
            raise ArtifactError(f"member {self.name}", f"lacks the weights of fold {fold}", TRAIN_AGAIN)
        return str(facts["weights_sha256"])

    def weights(self, fold: int) -> Path:
        """Return where a fold's weights lie, or raise an ArtifactError where they are gone."""
        path = self.fold(fold) / "weights.safetensors"
        if not path.exists():
            raise ArtifactError(f"member {self.name}", f"lacks the weights of fold {fold}", TRAIN_AGAIN)
        return path

    def read_weights(self, fold: int) -> Tensors:
        """Return a fold's weights, once their hash is verified."""
        path, sha256 = self.weights(fold), self.weights_sha256(fold)
        if file_sha256(path) != sha256:
            raise ArtifactError(path, "is not the file that training wrote (its hash differs)", TRAIN_AGAIN)
        return read_tensors(path)


class StateFolder:
    """A fold's resumable training state: the last two epochs, each with its hash beside it.

    Parameters
    ----------
    folder : Path
        `members/<name>/fold-<k>`; the state lies in `state/` below it, the history beside it.
    """

    KEPT = 2

    def __init__(self, folder: Path) -> None:
        self._state, self._history = folder / "state", folder / "history.jsonl"
        self.warnings: list[str] = []

    def save(self, tensors: Tensors, history: Sequence[Mapping[str, Any]]) -> None:
        """Keep the state after `len(history)` epochs, and the history of them."""
        stem = f"epoch-{len(history):04d}"
        sha256 = write_tensors(self._state / f"{stem}.safetensors", tensors)
        write_json(self._state / f"{stem}.json", {"schema": SCHEMA, "sha256": sha256, "history": list(history)})
        write_whole(self._history, "".join(json.dumps(epoch) + "\n" for epoch in history).encode())
        for old in sorted(self._state.glob("epoch-*.json"))[: -self.KEPT]:
            old.unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def load(self) -> tuple[Tensors, list[dict[str, Any]]] | None:
        """Return the newest state that is whole, or None where there is none yet.

        Raises
        ------
        ArtifactError
            There are states, and none of them is whole.
        """
        found = sorted(self._state.glob("epoch-*.json"), reverse=True)
        for path in found:
            weights = path.with_suffix(".safetensors")
            try:
                note = read_json(path, "")
                if file_sha256(weights) == note["sha256"]:
                    return read_tensors(weights), note["history"]
            except (KeyError, ArtifactError):
                pass
            self.warnings.append(f"{weights} is damaged; going on from an older state")
        if found:
            raise ArtifactError(
                self._state, "holds no state that is whole", "remove this folder to start the fold anew"
            )
        return None
