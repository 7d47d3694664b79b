"""What a member records of training rows with another label or weight: a table for each fold, and its overlay."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

from ensemble.data.folds import FoldTable
from ensemble.data.overlay import Change, Overlay, overlay_bytes, read_overlay
from ensemble.errors import ArtifactError, DataError
from ensemble.runs.files import file_sha256, write_whole
from ensemble.runs.member import TRAIN_AGAIN, LeftOut, MemberFolder

CHANGED = "changed.csv"
"""The table in a fold's folder of the training rows with another label or weight; it has the columns of an overlay."""

OVERLAY = "overlay.csv"
"""The copy of a member's overlay in its folder; `member.json` has its hash in the config."""


def write_changed(member: MemberFolder, fold: int, changes: Mapping[int, Change], table: FoldTable) -> None:
    """Write the training rows of a fold with another label or weight, record the hash, and remove how they were found.

    Parameters
    ----------
    member : MemberFolder
    fold : int
    changes : mapping of int to Change
        By row of the table.
    table : FoldTable
        Of the run.
    """
    sha256 = write_whole(member.fold(fold) / CHANGED, overlay_bytes(changes, table.ids, _indices(table)))
    member.update(changed=member.read().changed | {str(fold): LeftOut(sha256, len(changes))})
    for part in member.fold(fold).glob("cleaning-*"):
        shutil.rmtree(part, ignore_errors=True)


def read_changed(member: MemberFolder, fold: int, table: FoldTable) -> Overlay | None:
    """Return the training rows of a fold with another label or weight, or None where that is not known yet.

    Raises
    ------
    ArtifactError
        The file is not as it was written.
    """
    facts = member.read().changed.get(str(fold))
    return None if facts is None else _read(member, f"fold-{fold}/{CHANGED}", facts.sha256, table, _indices(table))


def write_overlay(member: MemberFolder, overlay: Overlay) -> None:
    """Write the copy of a member's overlay, unless it is there."""
    path = member.folder / OVERLAY
    if not path.is_file() or file_sha256(path) != overlay.sha256:
        write_whole(path, overlay.data)


def read_own_overlay(member: MemberFolder, table: FoldTable, classes: Sequence[str] | None) -> Overlay | None:
    """Return the overlay that a member was trained with, from the copy in its folder; None where it has none.

    `classes` are the names of the classes of the run.

    Raises
    ------
    ArtifactError
        The copy is missing or is not as it was written.
    """
    sha256 = member.read().config.get("overlay")
    return None if sha256 is None else _read(member, OVERLAY, sha256, table, classes)


def _read(member: MemberFolder, name: str, sha256: str, table: FoldTable, classes: Sequence[str] | None) -> Overlay:
    path = member.folder / name
    if not path.is_file():
        raise ArtifactError(path, "is not there", TRAIN_AGAIN)
    if file_sha256(path) != sha256:
        raise ArtifactError(path, "is not the file that thera wrote (its hash differs)", TRAIN_AGAIN)
    try:
        return read_overlay(path, table.ids, table.labels, classes)
    except DataError as error:
        raise ArtifactError(path, f"is damaged ({error.found})", TRAIN_AGAIN) from None


def _indices(table: FoldTable) -> tuple[str, ...]:
    return tuple(map(str, range(table.classes)))
