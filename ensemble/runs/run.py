"""A run's folder: `run.json`, the fold table, and where its members and predictions lie."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.config import VIEWS
from ensemble.data.classes import class_count
from ensemble.data.dataset import BadImage
from ensemble.data.folds import FoldTable
from ensemble.errors import ArtifactError, ConfigError, DataError, LockedError, ResourceError
from ensemble.runs.artifacts import RESTORE, forget_below
from ensemble.runs.attribution import MemberMaps, read_maps
from ensemble.runs.distilled import has_teacher_logits
from ensemble.runs.files import (
    file_sha256,
    read_columns,
    read_json,
    refuse_differences,
    remove_orphans,
    table_bytes,
    write_json,
    write_whole,
)
from ensemble.runs.locks import locked
from ensemble.runs.member import MemberFolder
from ensemble.runs.predictions import fingerprint_of

LABEL_FILES = ("label_val.txt", "labels.csv")
"""Names of label files: a 0 or 1 in each line for images numbered 1 to n, and a table with name,label for others."""

TARGETS = "targets.json"
"""The file in a folder whose subfolders are runs of several targets of the same images."""

BAD_IMAGES = "bad_images.csv"
"""The table of the images that cannot be used and were left out, with name,reason."""

RECORD_AGAIN = "give the training command again: it writes the file again"
"""The remedy where `images.csv` is missing or damaged."""

TRAIN_FIRST = "train a member first: thera train-member --help"


@dataclass(frozen=True)
class HistoryEntry:
    """A command that was run: when (ISO 8601, UTC), and for how long."""

    command: str
    when: str
    seconds: float


@dataclass(frozen=True)
class RunFacts:
    """`run.json`.

    Attributes
    ----------
    seed, folds, n : int
        The seed of all random streams, the number of folds, and of images.
    size : tuple of int
        Height and width of the images in pixels.
    resize : int or None
        The size that every image was brought to.
    exif : {"ignore", "apply"}
        Whether EXIF orientations are ignored or applied, in training and in prediction.
    near_duplicates : {"ignore", "group"}
        Whether nearly identical images are kept in one fold.
    fingerprint : str
        Of the images, labels and groups.
    images, labels : str
        Where they were read from.
    notes : tuple of str
        What was noted of the images when they were read.
    versions : dict of str to str
        Of Python and the libraries.
    history : tuple of HistoryEntry
    folds_sha256 : str or None
        Of `folds.csv`.
    bad_images_sha256 : str or None
        Of `bad_images.csv`; None where no image was left out.
    images_sha256 : str or None
        Of `images.csv`, which has the SHA-256 of each image file; None in runs of older versions.
    classes : tuple of C str, or None
        The names of the classes in the order of their labels; None for two classes without names.
    label_files : dict of str to str
        SHA-256 of each label file as it was written last, by its path as it was given.
    artifacts : dict of str to tuple of str
        SHA-256 of the JSON files below this one, by path; two while a file is being replaced. See `runs.artifacts`.
    """

    seed: int
    folds: int
    n: int
    size: tuple[int, int]
    resize: int | None
    fingerprint: str
    images: str
    labels: str
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    history: tuple[HistoryEntry, ...] = ()
    folds_sha256: str | None = None
    bad_images_sha256: str | None = None
    images_sha256: str | None = None
    classes: tuple[str, ...] | None = None
    label_files: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    exif: str = "ignore"
    near_duplicates: str = "ignore"

    @property
    def class_count(self) -> int:
        """The number of classes."""
        return class_count(self.classes)

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay the same as long as the run goes on."""
        size = list(self.size)
        form = {"exif": self.exif, "size": size, "resize": self.resize}
        return {"seed": self.seed, "folds": self.folds, **form, "near-duplicates": self.near_duplicates}


class Run:
    """One run's folder.

    Parameters
    ----------
    folder : Path
        `checkpoints/<run>`; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        of_targets = (folder.parent / TARGETS).exists()  # several targets share the decoded images
        self.pixels = (folder.parent if of_targets else folder) / "pixels"
        self.decision = folder / "decision" / "decision.json"
        self.bad_images = folder / BAD_IMAGES
        self.images = folder / "images.csv"
        self._json = folder / "run.json"

    def read(self) -> RunFacts:
        self.refuse_targets()
        return read_json(self._json, RunFacts, RESTORE if self._json.exists() else TRAIN_FIRST)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold `run.json`, and remove what killed processes have left in the run's folder."""
        with locked(self.folder, wait=True):
            remove_orphans(self.folder)
            for path in (*self.folder.glob(".run.json.*.tmp"), *self.folder.glob(".folds.csv.*.tmp")):
                path.unlink(missing_ok=True)  # both are written by the holder of the lock alone
            for path in self.folder.glob(".removed-*"):  # members, see `commands.remove_member`
                shutil.rmtree(path, ignore_errors=True)
            yield

    def begin(self, facts: RunFacts) -> None:
        """Start a run, or make sure that it is the same one.

        Raises
        ------
        ArtifactError
            The run was begun with another seed, folds or images; the differences are named.
        """
        with self._locked():
            if not self._json.exists():
                write_json(self._json, replace(facts, versions=versions()))
        refuse_differences(self._json, self.read().identity, facts.identity, "use another --run")

    def refuse_targets(self) -> None:
        """Raise `ArtifactError` where the folder holds the runs of several targets in place of one run."""
        if (self.folder / TARGETS).exists():
            example = min(self.folder.glob("*/run.json"), default=self.folder / "TARGET" / "run.json").parent
            raise ArtifactError(self.folder, "holds the runs of several targets", f"name one of them: {example}")

    def refuse_other(self, folds: int, seed: int) -> None:
        """Refuse other folds or another seed than those of the run, once an epoch is finished in it; and several runs.

        Raises
        ------
        ArtifactError
            The differences are named; or the folder holds the runs of several targets.
        """
        self.refuse_targets()
        if self._json.exists() and any(member.has_begun for member in self.members()):
            stored = self.read()
            now = {"seed": seed, "folds": folds}
            refuse_differences(self._json, {"seed": stored.seed, "folds": stored.folds}, now, "use another --run")

    def forget_untrained(self, facts: RunFacts, own: Sequence[MemberFolder]) -> str:
        """Remove what binds the run to other facts if no epoch is finished in it, so that it can begin anew.

        Parameters
        ----------
        facts : RunFacts
            Of the command that is to begin.
        own : sequence of MemberFolder
            The members that this process has locked.

        Returns
        -------
        str
            How the former facts differ; an empty text where nothing was removed.
        """
        with self._locked(), contextlib.ExitStack() as locks:
            if not self._json.exists():
                return ""
            former = self.read()
            before = {**former.identity, "images": former.fingerprint}
            now = {**facts.identity, "images": facts.fingerprint}
            changed = [name for name in now if before[name] != now[name]]
            if max(former.class_count, facts.class_count) > 2 and former.classes != facts.classes:
                changed.append("classes")
            members = [MemberFolder(path) for path in (self.folder / "members").glob("*") if path.is_dir()]
            if not changed or any(member.has_begun for member in members):
                return ""
            try:  # another process may be in its first epoch
                for member in members:
                    if member.name not in [each.name for each in own]:
                        locks.enter_context(locked(member.folder))
            except LockedError:
                return ""
            (self.folder / "folds.csv").unlink(missing_ok=True)  # first: without it, the run can be forgotten again
            for path in (self.bad_images, self.images):
                path.unlink(missing_ok=True)
            self._json.unlink()
        other = {"images": "other images or labels", "classes": "other names of the classes"}
        return ", ".join(other.get(name) or f"{name} was {before[name]} and is {now[name]}" for name in changed)

    @contextlib.contextmanager
    def removed_unless_begun(self, members: Sequence[MemberFolder]) -> Iterator[None]:
        """Remove the folders that the block makes if it refuses its input before an epoch is finished.

        A signal, a lock and an internal fault remove nothing: decoded images serve the same command again, a locked
        folder belongs to another process, and the files of a fault help to explain it.
        """
        existed = self.folder.exists()
        new = [member for member in members if not member.folder.exists()]
        try:
            yield
        except (ConfigError, DataError, ArtifactError, ResourceError):
            for member in new:
                if not member.has_begun and not has_teacher_logits(member):
                    forget_below(self.folder, member.folder)
                    shutil.rmtree(member.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another command's member is in it
                (self.folder / "members").rmdir()
            if not existed and not (self.folder / "members").exists():
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def record(self, command: str, started: float) -> None:
        """Add a command to the history. `started` is in seconds of `time.time()`."""
        when = datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds")
        entry = HistoryEntry(command, when, round(time.time() - started, 1))
        with self._locked():
            facts = self.read()
            write_json(self._json, replace(facts, history=(*facts.history, entry)))

    def record_label_file(self, path: Path, sha256: str) -> None:
        """Record that a label file is written, so that this run may replace it."""
        with self._locked():
            facts = self.read()
            write_json(self._json, replace(facts, label_files={**facts.label_files, str(path): sha256}))

    def label_file_hashes(self) -> set[str]:
        """Return the SHA-256 of the label files that this run has written."""
        if not self._json.exists():
            return set()
        kept = (path for name in LABEL_FILES for path in self.folder.glob(f"predictions/*/{name}"))
        return {*self.read().label_files.values(), *map(file_sha256, kept)}

    # --- the fold table -----------------------------------------------------------------------------------------------

    def write_folds(self, table: FoldTable, bad: Sequence[BadImage] = ()) -> None:
        """Write `folds.csv`, with a group column where there are groups, and its hash to `run.json`.

        Images that were left out are listed in `bad_images.csv`.
        """
        data, of_bad = table_bytes(table.to_pandas()), bad_images_table(bad)
        with self._locked():
            bad_sha256 = hashlib.sha256(of_bad).hexdigest() if bad else None
            folds_sha256 = hashlib.sha256(data).hexdigest()
            write_json(self._json, replace(self.read(), folds_sha256=folds_sha256, bad_images_sha256=bad_sha256))
            if bad:
                write_whole(self.bad_images, of_bad)
            write_whole(self.folder / "folds.csv", data)

    def read_folds(self) -> FoldTable:
        """Return the fold table, once its hash is verified."""
        path = self.folder / "folds.csv"
        columns: dict[str, type] = {"id": str, "label": np.int8, "fold": np.int8}
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
            if file.readline().rstrip().endswith(",group"):
                columns["group"] = np.int64
        recorded = self.read().folds_sha256 if path.exists() else None
        stored = read_columns(path, columns, TRAIN_FIRST, recorded)
        return FoldTable(stored["id"], stored["label"], stored["fold"], stored.get("group"))

    # --- the image files ----------------------------------------------------------------------------------------------

    def record_images(self, ids: np.ndarray, digests: np.ndarray) -> None:
        """Write `images.csv`, the SHA-256 of each image file, and its hash to `run.json`, unless that is done.

        The images must be those of the run: a file with the recorded hash is not written again.

        Parameters
        ----------
        ids : str array (n,)
            In the order of the fold table.
        digests : S64 array (n,)
        """
        recorded = self.read().images_sha256
        if recorded is not None and self.images.exists() and file_sha256(self.images) == recorded:
            return

        data = table_bytes({"id": ids, "sha256": digests.astype(str)})
        with self._locked():
            write_json(self._json, replace(self.read(), images_sha256=hashlib.sha256(data).hexdigest()))
            write_whole(self.images, data)

    def read_images(self) -> np.ndarray | None:
        """Return the SHA-256 of each image file, S64 (n,), in the order of the fold table; None in older runs."""
        recorded = self.read().images_sha256
        if recorded is None:
            return None
        columns = {"id": np.dtype(np.str_), "sha256": np.dtype("S64")}
        return read_columns(self.images, columns, RECORD_AGAIN, recorded)["sha256"]

    def is_new(self, digests: np.ndarray) -> np.ndarray:
        """Return of which image files, bool (n,), the SHA-256 (S64, n) is that of no training image.

        In runs of older versions, the training images are not known, and all images are new.
        """
        known = self.read_images()
        return np.ones(len(digests), bool) if known is None else ~np.isin(digests, known)

    # --- members and predictions --------------------------------------------------------------------------------------

    def member(self, name: str) -> MemberFolder:
        return MemberFolder(self.folder / "members" / name)

    def members(self) -> list[MemberFolder]:
        """Return the members that training has begun for, in the order in which they were begun."""
        begun = [MemberFolder(path.parent) for path in (self.folder / "members").glob("*/member.json")]
        return sorted(begun, key=lambda member: (member.read().begun, member.name))

    def attribution(self, name: str) -> MemberMaps | None:
        """Return what a member looks at; None where that was not computed for the weights that it has now.

        Raises
        ------
        ArtifactError
            The file is not as it was written.
        """
        folds = self.member(name).read().folds
        return read_maps(self.folder, name, {fold: facts.weights_sha256 for fold, facts in folds.items()})

    def oof_logits(self, members: Sequence[str], table: FoldTable | None = None) -> np.ndarray:
        """Return the OOF logits of several members, (n, m, views[, C]), in the order of the fold table.

        Parameters
        ----------
        members : sequence of m str
            At least one.
        table : FoldTable, optional
            The run's fold table, where it is in memory already.

        Raises
        ------
        ArtifactError
            A member lacks a fold, or something is damaged.
        """
        table = self.read_folds() if table is None else table
        for column, name in enumerate(members):
            of_member = self.member(name).oof_logits(table, VIEWS)
            if column == 0:
                logits = np.empty((len(of_member), len(members), *of_member.shape[1:]))
            logits[:, column] = of_member
        return logits

    def predictions(self, set_name: str, fingerprint: str, tta: bool) -> Path:
        """Return the folder for the predictions on a set of images, named after the set.

        Plain predictions lie apart from those with TTA, and sets of one name and other content apart from each other.
        """
        name = set_name + ("" if tta else "-plain")
        folder = self.folder / "predictions" / name
        present = fingerprint_of(folder)
        return folder if present in (None, fingerprint) else folder.with_name(f"{name}-{fingerprint[:8]}")


def bad_images_table(bad: Sequence[BadImage]) -> bytes:
    """Return `bad_images.csv` for these images."""
    return table_bytes({"name": [each.name for each in bad], "reason": [each.reason for each in bad]})


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result may depend on."""
    names = ("thera", "torch", "timm", "albumentations", "opencv-python-headless", "numpy", "scikit-learn")
    installed = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed
