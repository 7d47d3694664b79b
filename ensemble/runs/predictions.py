"""`predictions/<set>/` in a run: kept logits, the label file, the table and the facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble.config import (
    PredictConfig,
)
from ensemble.errors import ArtifactError
from ensemble.runs import files
from ensemble.runs.member import MemberFolder

if TYPE_CHECKING:
    from ensemble.data.source import Dataset


class KeptLogits:
    """A folder of fold models' logits, `<member>/fold-<k>.csv`, and `made_from.json`, which says what made them.

    Parameters
    ----------
    folder : Path
        `predictions/<set>/logits`.
    dataset : Dataset
        The images; logits of others are not theirs.

    Raises
    ------
    ArtifactError
        What is said of them is damaged, or of a newer schema.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self._folder, self._note, self._dataset = folder, folder / "made_from.json", dataset
        self._files: dict[str, dict[str, Any]] = {}
        if not self._note.exists():
            return
        remedy = f"remove {folder}; its logits are then computed again"
        stored = files.read_json(self._note, remedy)
        kept = stored.get("files")
        if not isinstance(kept, dict) or not all(isinstance(facts, dict) for facts in kept.values()):
            raise ArtifactError(self._note, "is damaged", remedy)
        if stored.get("fingerprint") == dataset.fingerprint:
            self._files = kept

    def load(self, member: MemberFolder, fold: int, views: Sequence[str], wanted: PredictConfig) -> np.ndarray | None:
        """Return the logits (n, views) of a fold model, or None where these weights, views and forced plan have none.

        Raises
        ------
        ArtifactError
            The file is not as it was written.
        """
        path, facts = self._folder / _name(member, fold), self._files.get(_name(member, fold), {})
        seen = facts.get("views")
        if not isinstance(seen, list) or not all(view in seen for view in views):
            return None
        if facts.get("weights_sha256") != member.weights_sha256(fold) or not path.exists():
            return None
        forced = {"precision": wanted.precision, "convolutions": wanted.convolutions}
        as_forced = all(value in ("auto", facts.get(key, "native")) for key, value in forced.items())
        if not as_forced and facts.get("forced") != forced:
            return None
        ids, logits = files.read_logits(path, seen, str(facts.get("sha256")), "restore it")
        if not np.array_equal(ids, self._dataset.ids):
            raise ArtifactError(path, "has other ids than the images", "restore it")
        return logits[:, [seen.index(view) for view in views]]

    def save(
        self, member: MemberFolder, fold: int, views: Sequence[str], logits: np.ndarray, **facts: Any
    ) -> np.ndarray:
        """Write the logits (n, views) of a fold model and what made them; return them as written, rounded."""
        path = self._folder / _name(member, fold)
        sha256 = files.write_logits(path, self._dataset.ids, logits, views)
        made_from = {"sha256": sha256, "weights_sha256": member.weights_sha256(fold), "views": list(views)}
        self._files[_name(member, fold)] = made_from | facts
        stored = {"schema": files.SCHEMA, "fingerprint": self._dataset.fingerprint, "files": self._files}
        files.write_json(self._note, stored)
        return files.read_logits(path, views, sha256, "")[1]


def _name(member: MemberFolder, fold: int) -> str:
    return f"{member.name}/fold-{fold}.csv"


def is_predicted(place: Path, made_from: Mapping[str, Any]) -> bool:
    """Return whether the files of a prediction are there as they were written, and were made from this."""
    try:
        stored = files.read_json(place / "predictions.json", "")
        hashes = {name: files.file_sha256(place / name) for name in ("label_val.txt", "predictions.csv")}
    except (ArtifactError, OSError):
        return False
    stored = {"combine": "mean"} | stored  # what one of before there was a choice does not say
    return all(stored.get(key) == value for key, value in made_from.items()) and stored.get("files") == hashes


def verify(text: bytes, n: int, path: Path) -> None:
    """Raise an ArtifactError unless a label file is n lines of 0 or 1."""
    lines = text.split(b"\n")
    if lines[-1] != b"" or len(lines) != n + 1 or not set(lines[:-1]) <= {b"0", b"1"}:
        raise ArtifactError(path, f"must hold {n} lines of 0 or 1", "run: thera predict")
