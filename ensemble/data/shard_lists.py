"""Lists any number of images one by one, and reads them: a tree of folders, a manifest, tars and zips.

Unlike a `Source`, a list is never held in memory as a whole: `thera predict --shards` writes it in parts to disk.
"""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Iterator, Sequence
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
from ensemble.data.manifest import completed_path
from ensemble.data.source import is_manifest, open_unlabelled
from ensemble.data.tables import PATH, Columns, Numbered, csv_stream, parquet_stream, read_columns
from ensemble.data.tars import TarImage, images_of_tar, is_compressed_tar, read_tar_image
from ensemble.errors import DataError, printable, some
from ensemble.predict_config import PredictConfig

OPEN_ARCHIVES = 4
"""Tars and zips that a reader keeps open. The images of a shard are in the order of the archives."""

ROWS_AT_ONCE = 8192
"""Rows of a manifest that are checked together."""

ImagesOf: TypeAlias = Callable[[Path], Iterator[TarImage]]
"""What lists a tar: `images_of_tar`, or what reads a list that was made before."""


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
    """

    id: str
    name: str
    archive: str = ""
    offset: int = -1
    size: int = -1


@dataclass(frozen=True)
class _Archive:
    """A tar or zip in a list: its path, its path in the list, and the beginning of the ids of its images."""

    path: Path
    name: str
    prefix: str


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
    """

    where: str
    root: str
    entries: Iterator[Entry]
    from_manifest: bool = False
    notes: list[str] = field(default_factory=list)


# --- listing ----------------------------------------------------------------------------------------------------------


def list_images(config: PredictConfig, n_classes: int | None = None, images_of: ImagesOf = images_of_tar) -> ImageList:
    """Return the list of the images to label.

    A folder whose images are in subfolders is read with all of them, and with the tars and zips in them. Tars, several
    zips and manifests are read as streams. Anything else is listed as `open_unlabelled` does, with the same ids.

    Parameters
    ----------
    config : PredictConfig
    n_classes : int, optional
        As in `open_unlabelled`.
    images_of : callable
        Lists a tar.

    Raises
    ------
    DataError
        There are no images, or they cannot be listed; of streams, this may be raised by an entry.
    """
    paths = _expanded(config.images)
    path = paths[0]
    if _are_archives(paths):
        where = ", ".join(map(printable, paths[:3])) + (" …" if len(paths) > 3 else "")
        return ImageList(where, "/", _unpacked(map(_named, paths), images_of))
    if _is_tree(paths):
        notes = list[str]()
        entries = _unpacked(_walk(path, config.follow_links, notes), images_of)
        return ImageList(printable(path), os.path.abspath(path), entries, notes=notes)
    if is_manifest(config.images):
        return _of_manifest(path, Columns(image=config.image_column))
    source = open_unlabelled(config, n_classes)
    pairs = zip(source.ids.tolist(), source.names, strict=True)
    if archive := split_zip(path):
        inside = os.path.abspath(archive[0])
        entries = (Entry(id_, name, inside) for id_, name in pairs)
        return ImageList(source.where, "/", entries, notes=list(source.notes))
    if path.is_dir():
        files = (Entry(id_, name) for id_, name in pairs)
        return ImageList(source.where, os.path.abspath(path), files, notes=list(source.notes))
    root = os.path.realpath(path.parent) if path.is_file() and not is_image(path.name) else os.getcwd()
    files = (Entry(id_, os.path.join(root, name)) for id_, name in pairs)
    return ImageList(source.where, "/", files, notes=list(source.notes))


def tars_of(config: PredictConfig) -> list[Path]:
    """Return the tars, each once, that `list_images` lists in their order. A tree of folders is searched for them."""
    paths = _expanded(config.images)
    if _are_archives(paths):
        found: Iterator[Entry | _Archive] = map(_named, paths)
    elif _is_tree(paths):
        found = _walk(paths[0], config.follow_links, [])
    else:
        return []
    archives = (each.path for each in found if isinstance(each, _Archive))
    return list(dict.fromkeys(path for path in archives if not _is_zip(path)))


def _are_archives(paths: Sequence[Path]) -> bool:
    return all(map(_is_archive, paths)) and (len(paths) > 1 or not _is_zip(paths[0]))


def _is_tree(paths: Sequence[Path]) -> bool:
    return len(paths) == 1 and paths[0].is_dir() and not _has_images(paths[0])


def _expanded(images: Sequence[Path]) -> list[Path]:
    """Return the paths, with the archives that globs name in place of the globs."""
    paths = list[Path]()
    for path in images:
        named = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))] if _is_glob(path) else []
        paths += named if named and all(map(_is_archive, named)) else [path]
    return paths


def _is_glob(path: Path) -> bool:
    return glob.has_magic(str(path)) and not os.path.lexists(path)


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _is_archive(path: Path) -> bool:
    return (_is_zip(path) or path.suffix.lower() == ".tar" or is_compressed_tar(path)) and path.is_file()


def _has_images(folder: Path) -> bool:
    with reading(printable(folder)), os.scandir(folder) as entries:
        return any(is_image(entry.name) and not is_hidden(entry.name) and not entry.is_dir() for entry in entries)


def _named(path: Path) -> _Archive:
    return _Archive(path, os.path.abspath(path), str(path))


def _unpacked(found: Iterator[Entry | _Archive], images_of: ImagesOf) -> Iterator[Entry]:
    """Yield the entries, with the images of archives in place of the archives."""
    for each in found:
        if isinstance(each, Entry):
            yield each
        else:
            yield from _in_archive(each, images_of)


def _in_archive(found: _Archive, images_of: ImagesOf) -> Iterator[Entry]:
    path, name, prefix = found.path, found.name, found.prefix
    if not _is_zip(path):
        for image in images_of(path):
            yield Entry(f"{prefix}/{image.name}", image.name, name, image.offset, image.size)
        return
    with reading(printable(path)):
        archive = open_archive(path)
    with archive.file:
        for inside in sorted(archive.entries):
            if is_image(inside) and not is_hidden(inside):
                yield Entry(f"{prefix}/{inside}", inside, name)


def _walk(folder: Path, follow_links: bool, notes: list[str]) -> Iterator[Entry | _Archive]:
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
            yield _Archive(path, name, name)
        else:
            count += 1
            others += [name] if count <= SHOWN else []
    if count:
        notes.append(f"{count} files in it are not read: {some(others)}")


def _inside(folder: Path, name: str) -> Iterator[tuple[str, bool, bool]]:
    """Return what is in a folder in the order of the names: the path, whether it is a link, and whether a folder."""
    with reading(printable(folder / name)), os.scandir(folder / name) as entries:
        found = [(each.name, each.is_symlink(), each.is_dir(follow_symlinks=False)) for each in entries]
    return iter([(os.path.join(name, own), is_link, is_folder) for own, is_link, is_folder in sorted(found)])


def _of_manifest(path: Path, columns: Columns) -> ImageList:
    listed = ImageList(printable(path), os.path.realpath(path.parent), iter(()), from_manifest=True)
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
        """
        needed = dict.fromkeys(entry.archive for entry in entries if entry.archive)
        for name in [name for name in self._archives if name not in needed]:
            self._archives.pop(name).close()
        for name in needed:
            if name not in self._archives:
                self._archives[name] = _OpenArchive(Path(os.path.join(self._root, name)))
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
    """A tar or zip that is open for reading."""

    def __init__(self, path: Path) -> None:
        self._where = printable(path)
        with reading(self._where):
            self._zip: Archive | None = open_archive(path) if _is_zip(path) else None
            self._file = -1 if self._zip is not None else os.open(path, os.O_RDONLY)

    def read(self, entry: Entry) -> bytes:
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
