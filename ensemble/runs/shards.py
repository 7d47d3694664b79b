"""A folder of predictions in shards: the lists of images, the parts of a table, and the notes that verify them.

    part-000000.parquet      the labels of a shard
    _done/000000.json        its note: hash, rows, and what it was made from; written after the part
    _logits/                 the same for the logits of the fold models
    _plan/                   plan.json, request.json, facts.json, and list-000000.parquet: the images of a shard
    _plan/inputs.parquet     the archives and the manifest that they come from
    _plan/tars/              the images of each tar, and their hash, while the images are listed
    _claims/                 the locks of shards that are being computed

Names that begin with `_` are passed over by readers of Parquet folders. Every file is written whole. A part is a pure
function of its list and of what its note says that it was made from, so that to compute one twice is harmless.
The locks stay when all is done, because another process may still lock a shard.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ensemble.data.dataset import is_numbered
from ensemble.data.input_files import LIST_WHEN_COMPLETE, InputFile
from ensemble.data.shard_lists import Entry, ImageList
from ensemble.errors import ArtifactError, ConfigError, DataError, printable
from ensemble.progress import Bar, Say, silent
from ensemble.runs import files

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

ROWS = 65_536
"""The images of a shard. A part of so many rows has a few megabytes, and a billion images have 15,259 parts."""

PLAN_SCHEMA = 2
"""Schema of `plan.json` and of the lists. A folder of another one was begun by another version; 1 had no mark."""

LIST_AGAIN = "remove the folder and give the command again"
"""The remedy where the plan of a folder is damaged."""

OTHER_VERSION = "finish it with that version, or give another folder as --shards"
"""The remedy where another version of thera has begun a folder."""

T = TypeVar("T")


@dataclass(frozen=True)
class ShardPlan:
    """`_plan/plan.json`: which images there are, in shards.

    Attributes
    ----------
    images : tuple of str
        What was to be labelled, as absolute paths and patterns.
    where, root, from_manifest
        As in `ImageList`.
    follow_links : bool
    n, rows : int
        The number of images, and of those in each shard but the last.
    numbered : bool
        Whether they are numbered 1 to n in this order.
    lists : tuple of str
        SHA-256 of the list of each shard.
    inputs : str
        SHA-256 of the list of the files that the images come from.
    plain_files : int
        The number of images that are not in an archive.
    notes : tuple of str
    plan_schema : int
        `PLAN_SCHEMA`.
    """

    images: tuple[str, ...]
    where: str
    root: str
    from_manifest: bool
    follow_links: bool
    n: int
    rows: int
    numbered: bool
    lists: tuple[str, ...]
    inputs: str
    plain_files: int
    notes: tuple[str, ...] = ()
    plan_schema: int = PLAN_SCHEMA

    @property
    def shards(self) -> int:
        """The number of shards."""
        return len(self.lists)

    def images_in(self, index: int) -> range:
        """Return the rows of a shard among all images."""
        return range(index * self.rows, min((index + 1) * self.rows, self.n))


@dataclass(frozen=True)
class PartNote:
    """`_done/NNNNNN.json`: a finished part.

    Attributes
    ----------
    sha256 : str
        Of the part.
    rows : int
    made_from : str
        SHA-256 of everything that the part is a function of.
    bad : dict of int to str
        The rows, among all images, that cannot be used and are left out, with the reasons.
    traits : dict of str to int
        How many images have each of `data.store.TRAITS`.
    labels : tuple of C ints
        How many images have each label; empty in a part of logits.
    seen : int or None
        How many images were in training; None in a part of labels.
    """

    sha256: str
    rows: int
    made_from: str
    bad: dict[int, str] = field(default_factory=dict)
    traits: dict[str, int] = field(default_factory=dict)
    labels: tuple[int, ...] = ()
    seen: int | None = None


class Parts:
    """The parts of one table: `part-NNNNNN.parquet` in a folder, and their notes in `_done/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, index: int) -> Path:
        return self.folder / f"part-{index:06d}.parquet"

    def note(self, index: int, made_from: str, say: Say = silent) -> PartNote | None:
        """Return the note of a part that is there and unchanged; None where the part is still to be made.

        Parameters
        ----------
        index : int
        made_from : str
            A part that was made from something else is still to be made.
        say : callable
            Receives a warning where a part or its note is damaged.
        """
        note_path, path = self.folder / "_done" / f"{index:06d}.json", self.path(index)
        if not note_path.exists():
            return None
        try:
            note = files.read_json(note_path, PartNote, "")
            if note.made_from != made_from:
                return None
            if files.file_sha256(path) != note.sha256:
                raise ArtifactError(path, "is not the file that thera wrote (its hash differs)")
        except ArtifactError as error:
            say(f"warning: {printable(error.where)} {error.found}; it is made again")
            return None
        return note

    def write(self, index: int, columns: Mapping[str, Any], made_from: str, **facts: Any) -> PartNote:
        """Write a part, then its note, and return the note.

        Parameters
        ----------
        index : int
        columns : mapping of str to array (n,)
        made_from : str
        **facts
            The other fields of `PartNote`.
        """
        sha256 = write_parquet(self.path(index), columns)
        rows = len(next(iter(columns.values())))
        note = PartNote(sha256, rows, made_from, **facts)
        files.write_json(self.folder / "_done" / f"{index:06d}.json", note)
        return note

    def read(self, index: int, columns: list[str] | None = None) -> pa.Table:
        """Return a part, or some of its columns.

        Raises
        ------
        ArtifactError
            It is missing or no Parquet file.
        """
        return read_parquet(self.path(index), columns)


class ShardFolder:
    """A folder of predictions in shards.

    Parameters
    ----------
    folder : Path
        On storage that all machines that compute its shards can write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labels, self.logits = Parts(folder), Parts(folder / "_logits")
        self.claims = folder / "_claims"
        self.bad_images = folder / "_bad_images.csv"
        self._plan = folder / "_plan"
        self._tar_lists = self._plan / "tars"

    def check(self) -> None:
        """Raise `ConfigError` where the folder is a file, or holds something else than shards."""
        where = f"--shards {printable(self.folder)}"
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(where, "is no folder", "give a new folder")
        ours = (self._plan, self.folder / ".lock", self.folder / ".lock.marker")
        if self.folder.is_dir() and any(self.folder.iterdir()) and not any(path.exists() for path in ours):
            raise ConfigError(where, "holds other files", "give a new folder")

    def remove_orphans(self) -> None:
        """Remove the temporary files of processes of this machine that were killed."""
        for parts in (self.labels, self.logits):
            files.remove_orphans(parts.folder)
            files.remove_orphans(parts.folder / "_done")
        files.remove_orphans(self._plan)
        files.remove_orphans(self._tar_lists)

    # --- the plan -----------------------------------------------------------------------------------------------------

    def plan(self) -> ShardPlan | None:
        """Return the plan; None where the images were not listed to their end yet.

        Raises
        ------
        ArtifactError
            It is damaged, or another version of thera has written it.
        """
        path = self._plan / "plan.json"
        return files.read_json(path, ShardPlan, LIST_AGAIN, self._checked_schema) if path.exists() else None

    def _checked_schema(self, content: dict[str, Any]) -> dict[str, Any]:
        if content.get("plan_schema") != PLAN_SCHEMA:
            raise ArtifactError(self.folder, "was begun by another version of thera", OTHER_VERSION)
        return content

    def listed_at(self) -> str:
        """Return when the plan was written, in UTC: the time of the file, so that equal plans have equal bytes."""
        seconds = (self._plan / "plan.json").stat().st_mtime
        return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"

    def write_plan(
        self, images: tuple[str, ...], listed: ImageList, follow_links: bool, bar: Bar, rows: int | None = None
    ) -> ShardPlan:
        """List all images on disk, a file for each shard of `rows` images (by default `ROWS`), and return the plan.

        Raises
        ------
        DataError
            There are no images, they cannot be listed, or a name is not UTF-8, as names in Parquet files must be.
        ArtifactError
            An archive or the manifest is changed meanwhile. There is no plan then.
        """
        hashes, n, plain_files, numbered, rows = list[str](), 0, 0, True, rows or ROWS
        while shard := list(islice(listed.entries, rows)):
            columns = _columns(shard, Entry)
            _refuse_other_than_utf8(columns["id"])
            hashes.append(write_parquet(self._list(len(hashes)), columns))
            numbered = numbered and is_numbered(np.array(columns["id"]), n + 1)
            n += len(shard)
            plain_files += columns["archive"].count("")
            bar.advance(len(shard))
        if not n:
            raise DataError(listed.where, "holds no images", "name the folder that does")
        for file in listed.inputs:
            file.check(LIST_WHEN_COMPLETE)
        inputs = _columns(list(dict.fromkeys(listed.inputs)), InputFile)
        _refuse_other_than_utf8(inputs["path"])
        plan = ShardPlan(
            images=images,
            where=listed.where,
            root=listed.root,
            from_manifest=listed.from_manifest,
            follow_links=follow_links,
            n=n,
            rows=rows,
            numbered=numbered,
            lists=tuple(hashes),
            inputs=write_parquet(self._inputs, inputs),
            plain_files=plain_files,
            notes=tuple(listed.notes),
        )
        files.write_json(self._plan / "plan.json", plan)
        return plan

    def tar_list(self, tar: InputFile) -> Path:
        """Return where the images of a tar are listed; a tar that was changed has another list."""
        return self._tar_lists / f"{content_sha256(tar)}.parquet"

    def remove_tar_lists(self) -> None:
        """Remove the lists of single tars, once there is a plan."""
        shutil.rmtree(self._tar_lists, ignore_errors=True)

    def read_inputs(self, plan: ShardPlan) -> list[InputFile]:
        """Return the files that the images come from, once the hash of their list is verified."""
        return _read_rows(self._inputs, plan.inputs, InputFile)

    def read_list(self, plan: ShardPlan, index: int) -> list[Entry]:
        """Return the images of a shard, once the hash of their list is verified."""
        return _read_rows(self._list(index), plan.lists[index], Entry)

    def _list(self, index: int) -> Path:
        return self._plan / f"list-{index:06d}.parquet"

    @property
    def _inputs(self) -> Path:
        return self._plan / "inputs.parquet"

    # --- what the parts are made from ---------------------------------------------------------------------------------

    def read_request(self, type_: type[T]) -> T | None:
        """Return `_plan/request.json`; None where there is none.

        Raises
        ------
        ArtifactError
            It is damaged, or has other fields than `type_`: another version wrote it, whose logits may differ.
        """

        def of_this_version(content: dict[str, Any]) -> dict[str, Any]:
            expected = {*type_.__dataclass_fields__}  # type: ignore[attr-defined]
            if names := {*content} - {"schema", files.CONTENT_SHA256} ^ expected:
                differing = ", ".join(map(printable, sorted(names)))
                found = f"was begun by another version of thera (request.json differs in the fields {differing})"
                raise ArtifactError(self.folder, found, OTHER_VERSION)
            return content

        return self._read("request.json", type_, of_this_version)

    def write_request(self, request: object) -> None:
        files.write_json(self._plan / "request.json", request)

    def read_facts(self, type_: type[T]) -> T | None:
        """Return `_plan/facts.json`; None where there is none."""
        return self._read("facts.json", type_)

    def write_facts(self, facts: object) -> None:
        files.write_json(self._plan / "facts.json", facts)

    def _read(self, name: str, type_: type[T], migrate: files.Migrate | None = None) -> T | None:
        path = self._plan / name
        return files.read_json(path, type_, LIST_AGAIN, migrate) if path.exists() else None

    def claim(self, index: int) -> Path:
        """Return the folder whose lock is held by the process that computes a shard."""
        return self.claims / f"{index:06d}"


def _columns(rows: Sequence[Entry | InputFile], type_: type[Entry | InputFile]) -> dict[str, list[Any]]:
    return {name: list(map(attrgetter(name), rows)) for name in type_.__dataclass_fields__}


def _read_rows(path: Path, sha256: str, type_: type[T]) -> list[T]:
    """Return the rows of a list as dataclasses, once the hash of the file is verified."""
    if files.file_sha256(path) != sha256:
        raise ArtifactError(path, "is not the file that thera wrote (its hash differs)", LIST_AGAIN)
    table = read_parquet(path)
    columns = [table.column(field.name).to_pylist() for field in fields(type_)]  # type: ignore[arg-type]
    return [type_(*cells) for cells in zip(*columns, strict=True)]


def _refuse_other_than_utf8(names: Sequence[str]) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(printable(name), "is a name that is not UTF-8", "rename the file") from None


def content_sha256(*values: object) -> str:
    """Return the SHA-256 of dataclasses and plain values, as JSON with sorted keys."""
    plain = [asdict(value) if hasattr(value, "__dataclass_fields__") else value for value in values]  # type: ignore[call-overload]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write_parquet(path: Path, columns: Mapping[str, Any]) -> str:
    """Write columns as a Parquet file atomically, and return its SHA-256; the same columns give the same bytes."""
    import pyarrow as pa
    from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]

    with files.replacing(path) as temporary:
        parquet.write_table(pa.table(dict(columns)), temporary, compression="zstd", row_group_size=ROWS)
        return files.file_sha256(temporary)


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Return a Parquet file, or some of its columns, as an Arrow table.

    Raises
    ------
    ArtifactError
        It is missing or no Parquet file.
    """
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            return file.read(columns)
    except (ArrowException, OSError) as error:
        raise ArtifactError(path, f"cannot be read ({printable(error)})", LIST_AGAIN) from None
