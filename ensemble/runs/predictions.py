"""Reads and writes `predictions/<set>/` of a run: the logits of the fold models, labels, a table and the facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ensemble.errors import ArtifactError, printable
from ensemble.progress import Say, silent
from ensemble.runs import files
from ensemble.runs.artifacts import read_recorded, write_recorded
from ensemble.runs.member import MemberFolder
from ensemble.runs.migration import migrate_note

if TYPE_CHECKING:
    import pandas as pd

PREDICT_AGAIN = "run: thera predict"
"""The remedy where a file of a prediction is missing or damaged."""

T = TypeVar("T")


# --- kept logits ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeptFacts:
    """How a file of kept logits was computed.

    Attributes
    ----------
    sha256, weights_sha256 : str
        Hashes of the file, and of the weights that it was computed with.
    views : tuple of str
        The columns of the file.
    precision, convolutions, device : str
        The number format, the kind of convolutions and the device.
    forced : dict or None
        The precision and convolutions that were requested; None in older files.
    """

    sha256: str
    weights_sha256: str
    views: tuple[str, ...]
    precision: str = "fp32"
    convolutions: str = "native"
    device: str = "cpu"
    forced: dict[str, str] | None = None


@dataclass(frozen=True)
class KeptNote:
    """`made_from.json`: the fingerprint of the images, and the facts of each file, by `<member>/fold-<k>.csv`."""

    fingerprint: str
    files: dict[str, KeptFacts] = field(default_factory=dict)


def read_note(path: Path) -> KeptNote:
    """Return `made_from.json`, once its hash is verified."""
    remedy = f"remove {path.parent}; its logits are then computed again"
    return files.read_json(path, KeptNote, remedy, migrate_note)


class KeptLogits:
    """The logits of fold models in `<member>/fold-<k>.csv`, and how they were computed in `made_from.json`.

    Parameters
    ----------
    folder : Path
        `predictions/<set>/logits`.
    ids : str array (n,)
        The ids of the images.
    fingerprint : str
        The fingerprint of the images; logits of other images are not used.

    Raises
    ------
    ArtifactError
        `made_from.json` is damaged, or of a newer schema.
    """

    def __init__(self, folder: Path, ids: np.ndarray, fingerprint: str) -> None:
        self._folder, self._path, self._ids = folder, folder / "made_from.json", ids
        self._note = KeptNote(fingerprint)
        if self._path.exists():
            stored = read_note(self._path)
            if stored.fingerprint == fingerprint:
                self._note = stored

    def load(
        self, member: MemberFolder, fold: int, views: Sequence[str], precision: str = "auto", convolutions: str = "auto"
    ) -> np.ndarray | None:
        """Return the kept logits (n, views[, C]) of a fold model; None where there are none of these weights and views.

        Parameters
        ----------
        member : MemberFolder
        fold : int
        views : sequence of str
        precision, convolutions : str
            Logits with another precision or other convolutions are not used; "auto" accepts any.

        Raises
        ------
        ArtifactError
            The file was changed after it was written.
        """
        path, facts = self._folder / _name(member, fold), self._note.files.get(_name(member, fold))
        if facts is None or not set(views) <= set(facts.views) or not path.exists():
            return None
        if facts.weights_sha256 != member.weights_sha256(fold):
            return None
        forced = {"precision": precision, "convolutions": convolutions}
        is_accepted = precision in ("auto", facts.precision) and convolutions in ("auto", facts.convolutions)
        if not is_accepted and facts.forced != forced:
            return None
        ids, logits = files.read_logits(path, facts.views, facts.sha256, "restore it")
        if not np.array_equal(ids, self._ids):
            raise ArtifactError(path, "does not have the ids of the images", "restore it")
        return logits[:, [facts.views.index(view) for view in views]]

    def save(
        self, member: MemberFolder, fold: int, views: Sequence[str], logits: np.ndarray, **facts: Any
    ) -> np.ndarray:
        """Write the logits (n, views[, C]) of a fold model and their facts; return them as written, rounded."""
        path = self._folder / _name(member, fold)
        sha256 = files.write_logits(path, self._ids, logits, views)
        self._note.files[_name(member, fold)] = KeptFacts(sha256, member.weights_sha256(fold), tuple(views), **facts)
        files.write_json(self._path, self._note)
        return files.read_logits(path, views, sha256, "")[1]


def _name(member: MemberFolder, fold: int) -> str:
    return f"{member.name}/fold-{fold}.csv"


# --- label file, table and facts --------------------------------------------------------------------------------------


def is_predicted(folder: Path, request: object, say: Say = silent) -> bool:
    """Return whether the files of a prediction exist, are unchanged, and were made for this request.

    Parameters
    ----------
    folder : Path
        `predictions/<set>` of a run.
    request : dataclass
        The `request` of the facts that `write_facts` wrote.
    say : callable
        Receives a warning where a file is damaged, so that it is made again.
    """
    path = folder / "predictions.json"
    if not path.exists():
        return False
    try:
        stored = read_recorded(folder.parent.parent, path, _StoredRequest, "", _with_request)
        if not stored.files or stored.request != _plain(request):
            return False
        if damaged := [name for name, sha in stored.files.items() if files.file_sha256(folder / name) != sha]:
            raise ArtifactError(folder / damaged[0], "is not the file that thera wrote (its hash differs)")
    except ArtifactError as error:
        say(f"warning: {printable(error.where)} {error.found}; it is made again")
        return False
    return True


@dataclass(frozen=True)
class _StoredRequest:
    request: dict[str, Any]
    files: dict[str, str]


def _with_request(content: dict[str, Any]) -> dict[str, Any]:
    # Predictions without a request, of older versions, are made again; a request without this field left no image out.
    return {**content, "request": {"bad_images_sha256": None, **content.get("request", {})}}


def _plain(request: object) -> dict[str, Any]:
    assert not isinstance(request, type)
    values = asdict(request)  # type: ignore[call-overload]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def write_labels(folder: Path, name: str, content: bytes, table: pd.DataFrame) -> dict[str, str]:
    """Write the label file and `predictions.csv`, and return their hashes by name.

    Parameters
    ----------
    folder : Path
        `predictions/<set>`.
    name : str
        The name of the label file.
    content : bytes
    table : DataFrame
        The first column has the ids.
    """
    return {
        name: files.write_whole(folder / name, content),
        "predictions.csv": files.write_table(folder / "predictions.csv", table),
    }


def write_facts(folder: Path, facts: object) -> None:
    """Write `predictions.json`. It is written last: a prediction without it is incomplete."""
    write_recorded(folder.parent.parent, folder / "predictions.json", facts)


def read_facts(folder: Path, type_: type[T], migrate: files.Migrate | None = None) -> T:
    """Return `predictions.json`, once its hash is verified."""
    return read_recorded(folder.parent.parent, folder / "predictions.json", type_, PREDICT_AGAIN, migrate)


def read_table(folder: Path, hashes: Mapping[str, str]) -> pd.DataFrame:
    """Return `predictions.csv` with all cells as text, once its hash among those of `predictions.json` is verified."""
    import pandas as pd

    columns = files.read_columns(folder / "predictions.csv", None, PREDICT_AGAIN, hashes.get("predictions.csv"))
    # pandas' own text type refuses names that are no UTF-8
    return pd.DataFrame({name: pd.Series(texts.tolist(), dtype=object) for name, texts in columns.items()})


@dataclass(frozen=True)
class _Fingerprint:
    fingerprint: str


def fingerprint_of(folder: Path) -> str | None:
    """Return the fingerprint of the images of a predictions folder; None where the folder is empty."""
    facts, note = folder / "predictions.json", folder / "logits" / "made_from.json"
    if facts.exists():
        remedy = "remove it; thera predict makes it again from the kept logits"
        return files.read_json(facts, _Fingerprint, remedy, _with_fingerprint).fingerprint
    return read_note(note).fingerprint if note.exists() else None  # a killed process leaves the note alone


def _with_fingerprint(content: dict[str, Any]) -> dict[str, Any]:
    return {**content.get("request", {}), **content}
