"""A member's folder: weights, OOF logits and history of each fold, and the resumable state of its training."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.config import MemberConfig
from ensemble.config_reading import validated
from ensemble.data.folds import FoldTable
from ensemble.errors import ArtifactError, ConfigError, printable
from ensemble.runs.artifacts import read_recorded, write_recorded
from ensemble.runs.files import (
    Tensors,
    file_sha256,
    read_columns,
    read_logits,
    read_tensors,
    refuse_differences,
    remove_temporary_files,
    write_arrays,
    write_logits,
    write_table,
)
from ensemble.runs.training_state import NOT_FINITE

TRAIN_AGAIN = "give its `thera train-member` command again; what is done is kept"

RESTORE = "restore it from a copy, or remove its folder and train the member again"
"""The remedy where `member.json` is damaged."""

FROM_TIMM, FROM_FILE, FROM_SCRATCH = "timm's pretrained weights", "a file", "scratch"
"""Values of `MemberFacts.started_from`: what a member started from whose config says `pretrained: if-possible`."""

REMOVED_OPTIONS = {"early_size": None}
"""Options that configs of older members hold, with the value at which the option had no effect."""


@dataclass(frozen=True)
class FoldFacts:
    """What is recorded of a finished fold.

    Attributes
    ----------
    weights_sha256, oof_sha256 : str
        Hashes of `weights.safetensors` and `oof.csv`.
    epochs : int
    training_seconds : float
        Seconds of all epochs together.
    seconds : float
        Seconds of the process that finished the fold, including prediction.
    device : str
    threads : int
        CPU threads; 1 for runs that were made before it was recorded.
    history_sha256 : str or None
        Hash of `history.jsonl`; None where there is none, or for runs that were made before it was recorded.
    micro_batches : int
        The parts that each batch was computed in, because the memory of the GPU did not suffice for a whole one.
    """

    weights_sha256: str
    oof_sha256: str
    epochs: int = 0
    training_seconds: float = 0.0
    seconds: float = 0.0
    device: str = "cpu"
    threads: int = 1
    history_sha256: str | None = None
    micro_batches: int = 1


@dataclass(frozen=True)
class LeftOut:
    """The training rows of a fold that are left out or changed for doubtful labels: hash of the table, and number."""

    sha256: str
    rows: int


@dataclass(frozen=True)
class MemberIdentity:
    """What must stay the same as long as a member is trained, beside its config."""

    fingerprint: str
    seed: int
    precision: str
    convolutions: str = "native"  # members that were begun before there was a choice do not record it
    started_from: str | None = None


@dataclass(frozen=True)
class HubFile:
    """A file of the model hub: its repository, commit, name and SHA-256, and the tag of the architecture in timm."""

    tag: str
    repository: str
    commit: str
    name: str
    sha256: str

    @property
    def address(self) -> str:
        """The repository and the commit, as OWNER/NAME@COMMIT."""
        return f"{self.repository}@{self.commit}"


@dataclass(frozen=True)
class MemberFacts:
    """`member.json`.

    Attributes
    ----------
    begun : str
        ISO 8601, UTC.
    config : dict
        The member's `config.MemberConfig` as JSON.
    fingerprint, seed, precision, convolutions, started_from
        The fields of `MemberIdentity`.
    folds : dict of str to FoldFacts
        The finished folds.
    parts : dict of str to str
        Hashes of the logits of networks that find doubtful labels, by "fold/part".
    left_out : dict of str to LeftOut
        The rows that each fold leaves out, keyed by fold.
    changed : dict of str to LeftOut
        The rows that each fold trains with another label or weight, keyed by fold; see `runs.changed_rows`.
    oof : dict or None
        The member's assessment, for readers of the file.
    parameters : int or None
        The number of the network's parameters.
    pretrained_from : HubFile or None
        The file of the model hub that all folds start from; None where there is none, or it was not recorded.
    """

    begun: str
    config: dict[str, Any]
    fingerprint: str
    seed: int
    precision: str
    convolutions: str = "native"
    started_from: str | None = None
    folds: dict[str, FoldFacts] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    changed: dict[str, LeftOut] = field(default_factory=dict)
    oof: dict[str, Any] | None = None
    parameters: int | None = None
    pretrained_from: HubFile | None = None

    @property
    def identity(self) -> MemberIdentity:
        return MemberIdentity(self.fingerprint, self.seed, self.precision, self.convolutions, self.started_from)

    @property
    def current_config(self) -> dict[str, Any]:
        """The config without the options that were removed since, none of which prediction ever used."""
        return {key: value for key, value in self.config.items() if key not in REMOVED_OPTIONS}

    @property
    def removed_options(self) -> dict[str, Any]:
        """The removed options that had an effect on this member's training; it cannot be continued."""
        neutral = REMOVED_OPTIONS
        return {key: self.config[key] for key in neutral if self.config.get(key, neutral[key]) != neutral[key]}


class MemberFolder:
    """One member's folder: `member.json`, and for each fold its weights, OOF logits and history."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self._run = folder.parent.parent
        self._json = folder / "member.json"

    def begin(
        self, config: Mapping[str, Any], identity: MemberIdentity, defaults: Mapping[str, Any] | None = None
    ) -> None:
        """Start a member, or verify that it continues with the same config, data and folds.

        A member without a finished fold or epoch may be begun again with another config. Options that an older config
        does not hold are taken from `defaults`.

        Raises
        ------
        ArtifactError
            The member was begun differently; the differences are named.
        """
        remove_temporary_files(self.folder)
        if not self.has_begun:
            now = datetime.datetime.now(datetime.UTC).isoformat()
            write_recorded(self._run, self._json, MemberFacts(now, dict(config), **asdict(identity)))
        stored, remedy = self.read(), "give it another --name, or use another --run"
        if config.get("epochs") != stored.config.get("epochs"):
            example = f"--name {self.name}-{config.get('epochs')}"
            remedy = f"other epochs make a new member: give it another name, such as {example}"
        known = {**(defaults or {}), **stored.current_config, **stored.removed_options}
        refuse_differences(self._json, known, config, remedy)
        refuse_differences(self._json, asdict(stored.identity), asdict(identity), remedy)

    @property
    def has_begun(self) -> bool:
        """Whether there is a finished fold or epoch, or a result of the search for doubtful labels."""
        if not self._json.exists():
            return False
        facts = self.read()
        known = facts.folds or facts.parts or facts.left_out or facts.changed
        return bool(known) or any(self.folder.glob("fold-*/**/state/*"))

    def read(self) -> MemberFacts:
        return read_recorded(self._run, self._json, MemberFacts, RESTORE)

    def check_config(self) -> None:
        """Raise an ArtifactError where the config is no `MemberConfig`, as in an edited file without a hash."""
        try:
            validated(MemberConfig, {**self.read().current_config, "pretrained": False, "weights": None}, self._json)
        except ConfigError as error:
            raise ArtifactError(self._json, f"is damaged (config: {error.found})", RESTORE) from None

    def update(self, **values: Any) -> None:
        write_recorded(self._run, self._json, replace(self.read(), **values))

    def fold(self, fold: int) -> Path:
        return self.folder / f"fold-{fold}"

    def has_oof(self, fold: int) -> bool:
        return str(fold) in self.read().folds

    def has_fold(self, fold: int) -> bool:
        """Return whether a fold is finished: its OOF logits and weights exist and have the recorded hashes."""
        facts = self.read().folds.get(str(fold))
        if facts is None:
            return False
        hashes = {"oof.csv": facts.oof_sha256, "weights.safetensors": facts.weights_sha256}
        folder = self.fold(fold)
        return all((folder / name).exists() and file_sha256(folder / name) == sha for name, sha in hashes.items())

    def history(self, fold: int) -> list[dict[str, Any]]:
        """Return the history of a fold, one mapping per epoch; an empty list if there is none.

        Raises
        ------
        ArtifactError
            It is not as it was written.
        """
        path, facts = self.history_path(fold), self.read().folds.get(str(fold))
        if not path.exists():
            return []
        recorded = facts.history_sha256 if facts is not None else None
        remedy = "restore it, or remove it: it is only drawn"
        if recorded is not None and file_sha256(path) != recorded:
            raise ArtifactError(path, "is not the file that training wrote (its hash differs)", remedy)
        try:
            history = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            if not all(isinstance(epoch, dict) and isinstance(epoch["epoch"], int) for epoch in history):
                raise ValueError("a line is no epoch")
            if not all(isinstance(value, int | float | None) for epoch in history for value in epoch.values()):
                raise ValueError("a value is no number")
        except (OSError, ValueError, KeyError, RecursionError) as error:
            raise ArtifactError(path, f"is damaged ({printable(error)})", remedy) from None
        return history

    def history_path(self, fold: int) -> Path:
        return self.fold(fold) / "history.jsonl"

    def finish_fold(
        self,
        fold: int,
        weights: Mapping[str, np.ndarray],
        ids: np.ndarray,
        logits: np.ndarray,
        views: Sequence[str],
        **facts: Any,
    ) -> None:
        """Write a fold's weights and OOF logits (n, views[, C]), record their hashes, then remove its state."""
        folder = self.fold(fold)
        weights_sha256 = write_arrays(folder / "weights.safetensors", weights)
        oof_sha256 = write_logits(folder / "oof.csv", ids, logits, views)
        history = self.history_path(fold)
        history_sha256 = file_sha256(history) if history.exists() else None
        finished = FoldFacts(weights_sha256, oof_sha256, **facts, history_sha256=history_sha256)
        self.update(folds=self.read().folds | {str(fold): finished})
        self.remove_state(fold)

    def remove_state(self, fold: int) -> None:
        """Remove the training state of a finished fold; a process that was killed in `finish_fold` leaves it."""
        shutil.rmtree(self.fold(fold) / "state", ignore_errors=True)
        (self.fold(fold) / NOT_FINITE).unlink(missing_ok=True)

    # --- OOF logits and weights ---------------------------------------------------------------------------------------

    def read_oof(self, fold: int, views: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (n,) that a fold's model scored and their logits (n, views[, C]) as float64."""
        facts = self._finished(fold, "OOF logits for")
        return read_logits(self.fold(fold) / "oof.csv", views, facts.oof_sha256, TRAIN_AGAIN)

    def oof_logits(self, table: FoldTable, views: Sequence[str]) -> np.ndarray:
        """Return the member's OOF logits (n, views[, C]), in the order of the fold table.

        Raises
        ------
        ArtifactError
            A fold is missing or damaged, or its ids are not those of the table.
        """
        for fold in range(table.k):
            ids, values = self.read_oof(fold, views)
            if fold == 0:
                logits = np.full((len(table.ids), *values.shape[1:]), np.nan)
            rows = np.flatnonzero(table.fold_of == fold)
            if not np.array_equal(ids, table.ids[rows]):
                problem = f"OOF ids of fold {fold} are not those of folds.csv ({len(ids)} rows for {len(rows)})"
                raise ArtifactError(f"member {self.name}", problem, TRAIN_AGAIN)
            logits[rows] = values
        return logits

    def weights_sha256(self, fold: int) -> str:
        """Return the hash of a fold's weights that training recorded; the weights themselves may be missing."""
        return self._finished(fold, "the weights of").weights_sha256

    def weights(self, fold: int) -> Path:
        """Return the path of a fold's weights, or raise an ArtifactError where they are missing."""
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

    def _finished(self, fold: int, what: str) -> FoldFacts:
        facts = self.read().folds.get(str(fold))
        if facts is None:
            raise ArtifactError(f"member {self.name}", f"lacks {what} fold {fold}", TRAIN_AGAIN)
        return facts

    # --- doubtful labels ----------------------------------------------------------------------------------------------

    def part(self, fold: int, part: int) -> Path:
        """Return the folder of a network that finds doubtful labels in a part of a fold's training rows."""
        return self.fold(fold) / f"cleaning-{part}"

    def finish_part(self, fold: int, part: int, ids: np.ndarray, logits: np.ndarray, views: Sequence[str]) -> None:
        """Write the logits (n, views[, C]) of such a network, record their hash, then remove its training state."""
        sha256 = write_logits(self.part(fold, part) / "oof.csv", ids, logits, views)
        self.update(parts=self.read().parts | {f"{fold}/{part}": sha256})
        shutil.rmtree(self.part(fold, part) / "state", ignore_errors=True)

    def read_part(self, fold: int, part: int, views: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the ids (n,) and logits (n, views[, C]) of such a network, or None if it is not finished."""
        sha256 = self.read().parts.get(f"{fold}/{part}")
        path = self.part(fold, part) / "oof.csv"
        return None if sha256 is None or not path.exists() else read_logits(path, views, sha256, TRAIN_AGAIN)

    def write_left_out(self, fold: int, ids: np.ndarray) -> None:
        """Write which training rows of a fold are left out, record the hash, then remove how they were determined."""
        import pandas as pd

        table = pd.DataFrame({"id": pd.Series(ids.tolist(), dtype=object)})
        sha256 = write_table(self.fold(fold) / "left_out.csv", table)
        self.update(left_out=self.read().left_out | {str(fold): LeftOut(sha256, len(ids))})
        for part in self.fold(fold).glob("cleaning-*"):
            shutil.rmtree(part, ignore_errors=True)

    def left_out(self, fold: int) -> np.ndarray | None:
        """Return the ids of the training rows of a fold that are left out, or None where that is not known yet.

        Raises
        ------
        ArtifactError
            The file is not as it was written.
        """
        facts = self.read().left_out.get(str(fold))
        if facts is None:
            return None
        return read_columns(self.fold(fold) / "left_out.csv", {"id": str}, "restore it", facts.sha256)["id"]
