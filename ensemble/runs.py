"""The run directory: the only code that knows what lies where on disk.

Every file is written by `storage`: whole or not at all. A SHA-256 stands beside whatever another step relies on.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.errors import ArtifactError, printable
from ensemble.storage import (
    SCHEMA,
    Tensors,
    file_sha256,
    locked,
    read_json,
    read_table,
    read_tensors,
    table_bytes,
    write_arrays,
    write_json,
    write_table,
    write_tensors,
    write_whole,
)

LOGIT_DECIMALS = 5
"""Logits are rounded to this many decimals when they are made; the file holds them as they are used."""

TRAIN_AGAIN = "give its `thera train-member` command again; what is done is kept"

UNSAID_OF_TRAINING = {"convolutions": "native"}
"""How a member was trained that was begun before there was a choice, and does not say."""

FROM_TIMM, FROM_FILE, FROM_SCRATCH = "timm's pretrained weights", "a file", "scratch"
"""What a member started from that asked for pretrained weights if they can be had."""

# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoldTable:
    """`folds.csv`: ids (n,) str, labels (n,) int8, fold_of (n,) int8, and groups (n,) int64 or None."""

    ids: np.ndarray
    labels: np.ndarray
    fold_of: np.ndarray
    groups: np.ndarray | None

    @property
    def k(self) -> int:
        return int(self.fold_of.max()) + 1


class Run:
    """One run's folder.

    Parameters
    ----------
    folder : Path
        `checkpoints/<run>`; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pixels = folder / "pixels"
        self.decision = folder / "decision" / "decision.json"

    def member(self, name: str) -> MemberFolder:
        return MemberFolder(self.folder / "members" / name)

    def members(self) -> list[MemberFolder]:
        """Return the members that training has begun for, in the order in which they were begun."""
        begun = [MemberFolder(path.parent) for path in (self.folder / "members").glob("*/member.json")]
        return sorted(begun, key=lambda member: (member.read()["begun"], member.name))

    def predictions(self, images: Path, fingerprint: str, tta: bool) -> Path:
        """Return the folder for the predictions on a set of images, named after it.

        Plain predictions lie apart from those with TTA, and sets of one name and other content apart from each other.
        """
        place = Path(os.path.abspath(images))
        name = ((place.stem if place.is_file() else place.name) or "images") + ("" if tta else "-plain")
        folder = self.folder / "predictions" / name
        notes = (folder / "predictions.json", folder / "logits" / "made_from.json")  # the second of one interrupted
        if begun := [note for note in notes if note.exists()]:
            there = read_json(begun[0], f"remove {folder}").get("fingerprint")
            folder = folder if there == fingerprint else folder.with_name(f"{name}-{fingerprint[:8]}")
        return folder

    def read(self) -> Any:
        return read_json(self.folder / "run.json", "train a member first: thera train-member --help")

    def begin(self, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Start a run with its identity (seed, folds, data) and further facts, or make sure that it is the same one.

        Raises
        ------
        ArtifactError
            It was begun with another; the differences are named.
        """
        path = self.folder / "run.json"
        with locked(self.folder, wait=True):
            if not path.exists():
                write_json(path, {"schema": SCHEMA, **identity, **facts, "versions": versions(), "history": []})
        refuse_differences(path, {key: self.read().get(key) for key in identity}, identity, "use another --run")

    def record(self, what: str, started: float) -> None:
        """Add a line to what was run when. `started` is in seconds of `time.time()`."""
        when = datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds")
        entry = {"command": what, "when": when, "seconds": round(time.time() - started, 1)}
        with locked(self.folder, wait=True):
            run = self.read()
            write_json(self.folder / "run.json", run | {"history": [*run["history"], entry]})

    def write_folds(self, table: FoldTable) -> None:
        """Write which image is in which fold, a group column where the user gave groups, and the hash to `run.json`."""
        columns = [("id", table.ids), ("label", table.labels), ("fold", table.fold_of), ("group", table.groups)]
        given = [(name, values.tolist()) for name, values in columns if values is not None]
        rows = zip(*(values for _, values in given), strict=True)
        data = table_bytes([name for name, _ in given], rows)
        with locked(self.folder, wait=True):
            write_json(self.folder / "run.json", self.read() | {"folds_sha256": hashlib.sha256(data).hexdigest()})
            write_whole(self.folder / "folds.csv", data)

    def read_folds(self) -> FoldTable:
        path, columns = self.folder / "folds.csv", ["id", "label", "fold"]
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
            columns += ["group"] if file.readline().rstrip().endswith(",group") else []
        ids, labels, fold_of, *groups = read_table(path, columns, "train a member first: thera train-member --help")
        found = file_sha256(path)
        if found != self.read().get("folds_sha256", found):
            raise ArtifactError(path, "is not the file that training wrote (its hash differs)", "restore it")
        return FoldTable(
            np.array(ids),
            np.array(labels, np.int8),
            np.array(fold_of, np.int8),
            np.array(groups[0], np.int64) if groups else None,
        )


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


def write_logits(path: Path, ids: np.ndarray, logits: np.ndarray, views: Sequence[str]) -> str:
    """Write logits (n, views) as a CSV file keyed by id (n,), rounded to `LOGIT_DECIMALS`, and return its SHA-256."""
    rows = ((id_, *(f"{x:.{LOGIT_DECIMALS}f}" for x in row)) for id_, row in zip(ids, logits, strict=True))
    return write_table(path, _logit_columns(views), rows)


def read_logits(path: Path, views: Sequence[str], sha256: str, remedy: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids (n,) and the float64 logits (n, views) of a file, once its hash is verified."""
    ids, *logits = read_table(path, _logit_columns(views), remedy)
    if file_sha256(path) != sha256:
        raise ArtifactError(path, "is not the file that thera wrote (its hash differs)", remedy)
    return np.array(ids), np.array(logits, np.float64).T


def _logit_columns(views: Sequence[str]) -> tuple[str, ...]:
    return ("id", *(f"logit_{view}" for view in views))


def refuse_differences(where: object, found: Mapping[str, Any], wanted: Mapping[str, Any], remedy: str) -> None:
    """Raise an ArtifactError that names every key whose value differs."""
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if keys:
        told = ", ".join(f"{key} was {printable(found.get(key))} and is {printable(wanted.get(key))}" for key in keys)
        raise ArtifactError(where, f"was made differently: {told}", remedy)


def versions() -> dict[str, str]:
    names = ("torch", "timm", "albumentations", "opencv-python-headless", "numpy", "scikit-learn")
    found = {"python": platform.python_version()}
    for name in ("thera", *names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
