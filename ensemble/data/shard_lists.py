"""Lists any number of images one by one, and reads them: a tree of folders, a manifest, tars and zips.

Unlike a `Source`, a list is never held in memory as a whole: `thera predict --shards` writes it in parts to disk.
"""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from ensemble.data.files import (
    MAX_FILE_BYTES,
    OUTWARD_LINK,
    SHOWN,
    Archive,
    is_hidden,
    is_image,
    is_inside,
    open_archive,
    read_file,
    reading,
    split_zip,
)
from ensemble.data.input_files import InputFile, check_unchanged
from ensemble.data.manifest import completed_path
from ensemble.data.source import is_manifest, open_unlabelled
from ensemble.data.tables import PATH, Columns, Numbered, csv_stream, parquet_stream, read_columns
from ensemble.data.tars import TarImage, images_of_tar, is_compressed_tar, read_tar_image
from ensemble.errors import DataError, ResourceError, printable, some
from ensemble.predict_config import PredictConfig

OPEN_ARCHIVES = 4
"""Tars and zips that a reader keeps open. The images of a shard are in the order of the archives."""

ROWS_AT_ONCE = 8192
"""Rows of a manifest that are checked together."""


@dataclass(frozen=True)
class Entry:
    """An image: its id, and where its bytes are.

    Attributes
    ----------
    id : str
        As `Source.ids`; of an image in one of several archives, ``"a.tar/name.jpg"``.
    name : str
        The path of the file below the root of the list, or in the archive.
    archive : str
        The path of the tar or zip below the root; empty where the image is a file.
    offset, size : int
        Where the image is in a tar, in bytes; -1 otherwise.
    archive_size, archive_mtime_ns : int
        As in `InputFile`: the tar or zip when it was listed; -1 where the image is a file.
    """

    id: str
    name: str
    archive: str = ""
    offset: int = -1
    size: int = -1
    archive_size: int = -1
    archive_mtime_ns: int = -1


@dataclass(frozen=True)
class ListedArchive:
    """A tar or zip in a list.

    Attributes
    ----------
    path : Path
    name : str
        Its path below the root of the list.
    prefix : str
        The beginning of the ids of its images.
    file : InputFile
        What it is before its images are listed.
    """

    path: Path
    name: str
    prefix: str
    file: InputFile

    @classmethod
    def of(cls, path: Path, name: str, prefix: str) -> ListedArchive:
        with reading(printable(path)):
            return cls(path, name, prefix, InputFile.of(path))

    @property
    def is_zip(self) -> bool:
        return _is_zip(self.path)


ImagesOf: TypeAlias = Callable[[ListedArchive], Iterator[TarImage]]
"""A function that yields the images of a tar, from the tar or from a stored list."""


@dataclass
class ImageList:
    """A list of images that is read once, from its beginning to its end.

    Attributes
    ----------
    where : str
        Where the images are, for messages.
    root : str
        The absolute folder that relative paths start at.
    entries : iterator of Entry
    from_manifest : bool
        Whether the files are those of a manifest: they are looked for when they are read.
    notes : list of str
        Remarks, a line each; complete once all entries are read.
    inputs : list of InputFile
        The archives, the manifest or the list of paths that the entries come from; complete once all are read.
    """

    where: str
    root: str
    entries: Iterator[Entry]
    from_manifest: bool = False
    notes: list[str] = field(default_factory=list)
    inputs: list[InputFile] = field(default_factory=list)


# --- listing ----------------------------------------------------------------------------------------------------------


def _from_tar(tar: ListedArchive) -> Iterator[TarImage]:
    return images_of_tar(tar.path)


def list_images(config: PredictConfig, n_classes: int | None = None, images_of: ImagesOf = _from_tar) -> ImageList:
    """Return the list of the images to label.

    A folder whose images are in subfolders is read with all of them, and with the tars and zips in them. Tars, several
    zips and manifests are read as streams. Anything else is listed as `open_unlabelled` does, with the same ids.

    Parameters
    ----------
    config : PredictConfig
    n_classes : int, optional
        As in `open_unlabelled`.
    images_of : callable
        Yields the images of a tar.

    Raises
    ------
    DataError
        There are no images, or they cannot be listed; of streams, this may be raised by an entry.
    """
    paths, notes = _expanded(config.images), list[str]()
    path, found = paths[0], found_in(config, notes)
    if found is not None:
        where = ", ".join(map(printable, paths[:3])) + (" …" if len(paths) > 3 else "")
        listed = ImageList(where, os.path.abspath(path) if path.is_dir() else "/", iter(()), notes=notes)
        listed.entries = _unpacked(found, images_of, listed.inputs)
        return listed
    if is_manifest(config.images):
        return _of_manifest(path, Columns(image=config.image_column))
    archive = split_zip(path)
    is_list = not archive and path.is_file() and not is_image(path.name)
    with reading(printable(path)):
        inputs = [InputFile.of(path, hashed=True)] if is_list else [InputFile.of(archive[0])] if archive else []
    source = open_unlabelled(config, n_classes)
    listed = ImageList(source.where, "/", iter(()), notes=list(source.notes), inputs=inputs)
    pairs = zip(source.ids.tolist(), source.names, strict=True)
    if archive:
        file = inputs[0]
        in_zip = (file.path, -1, -1, file.size, file.mtime_ns)
        listed.entries = (Entry(id_, name, *in_zip) for id_, name in pairs)
    elif path.is_dir():
        listed.root = os.path.abspath(path)
        listed.entries = (Entry(id_, name) for id_, name in pairs)
    else:
        root = os.path.realpath(path.parent) if is_list else os.getcwd()
        listed.entries = (Entry(id_, os.path.join(root, name)) for id_, name in pairs)
    return listed


def found_in(config: PredictConfig, notes: list[str]) -> Iterator[Entry | ListedArchive] | None:
    """Return the images and archives of a folder tree, or the given archives; None where there is neither.

    They are in the order of `list_images`, and found while they are read, each time anew.

    Parameters
    ----------
    config : PredictConfig
    notes : list of str
        Receives remarks, a line each, while they are read.
    """
    paths = _expanded(config.images)
    if all(map(_is_archive, paths)) and (len(paths) > 1 or not _is_zip(paths[0])):
        return map(_named, paths)
    if len(paths) == 1 and paths[0].is_dir() and not _has_images(paths[0]):
        return _walk(paths[0], config.follow_links, notes)
    return None


def first_added(config: PredictConfig, listed: Collection[str]) -> str | None:
    """Return the first archive or image that globs or folders now name and that is not among listed paths.

    Parameters
    ----------
    config : PredictConfig
    listed : collection of str
        Absolute paths.
    """
    for path in config.images:
        if path.is_dir():
            found = (each.name for each in _walk(path, config.follow_links, []))
            now = (os.path.abspath(path / name) for name in found)
        else:
            named = _matches(path) if _is_glob(path) else []
            now = (os.path.abspath(each) for each in named if _is_archive(each) or is_image(each.name))
        if added := next((name for name in now if name not in listed), None):
            return added
    return None


def _expanded(images: Sequence[Path]) -> list[Path]:
    """Return the paths, with the archives that globs name in place of the globs."""
    paths = list[Path]()
    for path in images:
        named = _matches(path) if _is_glob(path) else []
        paths += named if named and all(map(_is_archive, named)) else [path]
    return paths


def _is_glob(path: Path) -> bool:
    return glob.has_magic(str(path)) and not os.path.lexists(path)


def _matches(pattern: Path) -> list[Path]:
    return [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _is_archive(path: Path) -> bool:
    return (_is_zip(path) or path.suffix.lower() == ".tar" or is_compressed_tar(path)) and path.is_file()


def _has_images(folder: Path) -> bool:
    with reading(printable(folder)), os.scandir(folder) as entries:
        return any(is_image(entry.name) and not is_hidden(entry.name) and not entry.is_dir() for entry in entries)


def _named(path: Path) -> ListedArchive:
    return ListedArchive.of(path, os.path.abspath(path), str(path))


def _unpacked(found: Iterator[Entry | ListedArchive], images_of: ImagesOf, inputs: list[InputFile]) -> Iterator[Entry]:
    """Yield the entries, with the images of archives in place of the archives, which are added to `inputs`."""
    for each in found:
        if isinstance(each, Entry):
            yield each
        else:
            inputs.append(each.file)
            yield from _in_archive(each, images_of)


def _in_archive(found: ListedArchive, images_of: ImagesOf) -> Iterator[Entry]:
    name, prefix, state = found.name, found.prefix, (found.file.size, found.file.mtime_ns)
    if not found.is_zip:
        for image in images_of(found):
            yield Entry(f"{prefix}/{image.name}", image.name, name, image.offset, image.size, *state)
        return
    with reading(printable(found.path)):
        archive = open_archive(found.path)
    with archive.file:
        for inside in sorted(archive.entries):
            if is_image(inside) and not is_hidden(inside):
                yield Entry(f"{prefix}/{inside}", inside, name, -1, -1, *state)


def _walk(folder: Path, follow_links: bool, notes: list[str]) -> Iterator[Entry | ListedArchive]:
    """Yield the images and archives below a folder, each folder in the order of its names, one in memory at a time."""
    root, searched, others = os.path.realpath(folder), {os.path.realpath(folder)}, list[str]()
    count, way = 0, [_inside(folder, "")]  # the rest of each folder on the way down
    while way:
        name, is_link, is_folder = next(way[-1], (None, False, False))
        if name is None:
            way.pop()
            continue
        path = folder / name
        if is_link and not is_hidden(path.name) and (is_image(name) or path.is_dir() or _is_archive(path)):
            if not follow_links and not is_inside(os.path.realpath(path), root):
                raise DataError(printable(path), "is a link out of its folder", OUTWARD_LINK)
            real = os.path.realpath(path)
            is_folder = follow_links and os.path.isdir(real) and real not in searched
            searched.add(real)
        if is_folder and not is_hidden(path.name):
            way.append(_inside(folder, name))
        elif is_image(name) and not is_hidden(path.name):
            yield Entry(name, name)
        elif not is_hidden(path.name) and _is_archive(path):
            yield ListedArchive.of(path, name, name)
        else:
            count += 1
            others += [name] if count <= SHOWN else []
    if count:
        are = "file in it is" if count == 1 else "files in it are"
        notes.append(f"{count} {are} not read: {some(others)}")


def _inside(folder: Path, name: str) -> Iterator[tuple[str, bool, bool]]:
    """Return what is in a folder in the order of the names: the path, whether it is a link, and whether a folder."""
    with reading(printable(folder / name)), os.scandir(folder / name) as entries:
        found = [(each.name, each.is_symlink(), each.is_dir(follow_symlinks=False)) for each in entries]
    return iter([(os.path.join(name, own), is_link, is_folder) for own, is_link, is_folder in sorted(found)])


def _of_manifest(path: Path, columns: Columns) -> ImageList:
    listed = ImageList(printable(path), os.path.realpath(path.parent), iter(()), from_manifest=True)
    with reading(printable(path)):
        listed.inputs.append(InputFile.of(path, hashed=True))
    rows = csv_stream(path) if path.suffix.lower() == ".csv" else parquet_stream(path)
    listed.entries = _rows_of_manifest(rows, listed, columns)
    return listed


def _rows_of_manifest(rows: Iterator[Numbered], listed: ImageList, columns: Columns) -> Iterator[Entry]:
    """Yield the rows of a manifest. Whether the files exist is seen when they are read."""
    header = list(islice(rows, 1))
    chunk, begun = list(islice(rows, ROWS_AT_ONCE)), False
    while chunk or not begun:
        lines, cells, notes = read_columns(header + chunk, listed.where, columns)
        if not begun:
            listed.notes += notes
        for line, path in zip(lines, cells[PATH], strict=True):
            if not path or ".." in PurePosixPath(path).parts:
                problem = f"'{printable(path)}' must be a path inside the manifest's folder"
                raise DataError(f"{listed.where}: line {line}", problem, "correct it")
            yield Entry(path, path)
        chunk, begun = list(islice(rows, ROWS_AT_ONCE)), True


# --- reading ----------------------------------------------------------------------------------------------------------


class EntryReader:
    """Reads the images of a list, with a few archives open at a time. Reading is thread-safe.

    Parameters
    ----------
    root : str
        The root of the list.
    from_manifest, follow_links : bool
        Files of a manifest may lack their suffix, and may not be links out of its folder unless `follow_links`.
    """

    def __init__(self, root: str, from_manifest: bool = False, follow_links: bool = False) -> None:
        self._root, self._from_manifest, self._follow_links = root, from_manifest, follow_links
        self._archives: dict[str, _OpenArchive] = {}
        self._real_folder = functools.lru_cache(4096)(os.path.realpath)

    def __enter__(self) -> EntryReader:
        return self

    def __exit__(self, *_: object) -> None:
        for archive in self._archives.values():
            archive.close()
        self._archives = {}

    def prepare(self, entries: Sequence[Entry]) -> list[Callable[[], bytes]]:
        """Return what reads each entry, in their order; the archives of all of them are open until the next call.

        Raises
        ------
        DataError
            An archive cannot be opened.
        ArtifactError
            An archive is missing or is not the one that was listed.
        """
        needed = {entry.archive: entry for entry in entries if entry.archive}
        for name in [name for name in self._archives if name not in needed]:
            self._archives.pop(name).close()
        for name in needed:
            if name not in self._archives:
                self._archives[name] = _OpenArchive(Path(os.path.join(self._root, name)), needed[name])
        return [functools.partial(self._read, entry) for entry in entries]

    def _read(self, entry: Entry) -> bytes:
        if entry.archive:
            return self._archives[entry.archive].read(entry)
        if not self._from_manifest:
            return read_file(self._root, entry.name)
        name = completed_path(self._root, entry.name)
        full = os.path.join(self._root, name)
        if not (self._follow_links or os.path.isabs(name)):
            real = os.path.realpath(full) if os.path.islink(full) else self._real_folder(os.path.dirname(full))
            if not is_inside(str(real), self._root):
                raise DataError(printable(name), "is a link out of the manifest's folder", "or give --follow-links")
        return read_file(self._root, name)


class _OpenArchive:
    """A tar or zip that is open for reading; one of its entries says what it was when it was listed."""

    def __init__(self, path: Path, entry: Entry) -> None:
        self._where = printable(path)
        InputFile(str(path), entry.archive_size, entry.archive_mtime_ns).check()
        with reading(self._where):
            self._zip: Archive | None = open_archive(path) if _is_zip(path) else None
            if self._zip is None:
                self._file = os.open(path, os.O_RDONLY)
            else:
                self._file = self._zip.file.fp.fileno()  # type: ignore[union-attr]  # None once it is closed

    def read(self, entry: Entry) -> bytes:
        """Return the bytes of an image; raise `ArtifactError` where the archive is not the one that was listed.

        The archive is checked after it is read, so that a file which is being written over gives no other image.
        """
        try:
            return self._read(entry)
        finally:
            try:
                facts = os.fstat(self._file)
            except OSError as error:  # that of a file on a server may be gone; it says nothing about the image
                problem = f"cannot be read ({error.strerror})"
                raise ResourceError(self._where, problem, "the same command goes on once it can") from None
            before = (entry.archive_size, entry.archive_mtime_ns)
            check_unchanged(self._where, before, (facts.st_size, facts.st_mtime_ns))

    def _read(self, entry: Entry) -> bytes:
        if self._zip is not None:
            return self._zip.read(entry.name)
        where = f"{self._where}: {printable(entry.name)}"
        if entry.size > MAX_FILE_BYTES:
            problem = f"has {entry.size} bytes; at most {MAX_FILE_BYTES} are read"
            raise DataError(where, problem, "remove or shrink it")
        return read_tar_image(self._file, TarImage(entry.name, entry.offset, entry.size), where)

    def close(self) -> None:
        if self._zip is not None:
            self._zip.file.close()
        else:
            os.close(self._file)
