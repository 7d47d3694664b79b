"""A run's folder: the run, its fold table, and where its members and predictions lie."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.data.folds import FoldTable
from ensemble.errors import ArtifactError
from ensemble.runs.files import (
    SCHEMA,
    file_sha256,
    locked,
    read_json,
    read_table,
    refuse_differences,
    table_bytes,
    write_json,
    write_whole,
)
from ensemble.runs.member import MemberFolder


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


def versions() -> dict[str, str]:
    names = ("torch", "timm", "albumentations", "opencv-python-headless", "numpy", "scikit-learn")
    found = {"python": platform.python_version()}
    for name in ("thera", *names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
