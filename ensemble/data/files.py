"""Lists and reads files in folders and in zips; refuses files that are unsafe or damaged."""

from __future__ import annotations

import contextlib
import os
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ensemble.data import MAX_PIXELS
from ensemble.errors import DataError, printable

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
"""Suffixes of the files that are images, in lower case. The format itself is recognised by the content."""

MAX_FILE_BYTES = 4 * MAX_PIXELS
"""The largest file that is read: the largest image, uncompressed, with four bytes a pixel."""

MAX_INFLATION = 100
"""The largest ratio of unpacked to packed size in a zip. Images are compressed already, so that theirs is about 1."""

SHOWN = 10
"""Names that a message lists before it counts the others."""


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Raise `DataError` where reading a file or a zip raises an error."""
    try:
        yield
    except OSError as error:
        raise DataError(where, f"cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeError) as error:
        raise DataError(where, f"is damaged: {printable(error)}") from error


def listed(names: Sequence[object]) -> str:
    """Return the first `SHOWN` names and the number of the others, for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(printable(name) for name in names[:SHOWN]) + more


def as_text(data: bytes, where: str) -> str:
    """Decode UTF-8, with or without a byte-order mark; invalid bytes become surrogates."""
    if b"\0" in data:
        raise DataError(where, "contains zero bytes: it is UTF-16 or not text", "save it as UTF-8 text")
    return data.decode("utf-8-sig", "surrogateescape")


def is_image(name: str) -> bool:
    """Return whether a file name has the suffix of an image."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def without_image_suffix(name: str) -> str:
    """Return a file name without the suffix of an image, if it has one."""
    return name[: -len(PurePosixPath(name).suffix)] if is_image(name) else name


def is_hidden(name: str) -> bool:
    """Return whether a part of the path starts with a dot, or is the folder that macOS adds to zips."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def is_inside(path: str, root: str) -> bool:
    """Return whether `path` is `root` or below it; both are real paths."""
    return os.path.commonpath((path, root)) == root


# --- folders ----------------------------------------------------------------------------------------------------------


def image_files(folder: Path) -> list[str]:
    """Return the names of the images in a folder, in any order; raise `DataError` where a link leads out of it."""
    root = os.path.realpath(folder)
    names: list[str] = []
    not_files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name) or not is_image(entry.name):
                continue
            if entry.is_symlink() and not is_inside(os.path.realpath(entry.path), root):
                raise DataError(printable(entry.path), "is a link out of its folder", "replace the link by the file")
            (names if entry.is_file() else not_files).append(entry.name)
    if not_files:
        raise DataError(
            printable(folder), f"{len(not_files)} images are not files: {listed(sorted(not_files))}", "remove them"
        )
    return names


def read_file(root: str, name: str) -> bytes:
    """Return the bytes of a file below `root`; raise `DataError` where it is unreadable or too large."""
    with reading(printable(name)), open(os.path.join(root, name), "rb", buffering=0) as file:
        _refuse_large(name, os.fstat(file.fileno()).st_size)
        return file.read()


def _refuse_large(name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(printable(name), f"has {size} bytes; at most {MAX_FILE_BYTES} are read", "remove or shrink it")


# --- zips -------------------------------------------------------------------------------------------------------------


def split_zip(path: Path) -> tuple[Path, str] | None:
    """Split ``a/set.zip/inner/folder`` into the zip file and the path inside it."""
    for outer in (path, *path.parents):
        if outer.suffix.lower() == ".zip" and outer.is_file():
            return outer, "" if outer == path else path.relative_to(outer).as_posix()
    return None


def list_zip(path: Path) -> tuple[zipfile.ZipFile, list[str]]:
    """Open a zip and return the names of its files; raise `DataError` where the zip is not safe to read."""
    archive, where = zipfile.ZipFile(path), printable(path)
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    names = Counter(entry.filename for entry in entries)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise DataError(where, f"has several files of the same name: {listed(repeated)}", "pack it again")
    if sum(entry.compress_size for entry in entries) > path.stat().st_size:
        raise DataError(where, "declares more bytes than the file has: a zip bomb", "pack the images again")
    for entry in entries:
        name = f"{where}: {printable(entry.filename)}"
        if ".." in (parts := PurePosixPath(entry.filename.replace("\\", "/"))).parts or parts.is_absolute():
            raise DataError(name, "leads out of the zip", "pack it again")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise DataError(name, "is a symbolic link", "pack the file itself")
        if entry.flag_bits & 1:
            raise DataError(name, "is encrypted", "unpack it first")
        if entry.file_size > max(MAX_INFLATION * entry.compress_size, 2**20) or entry.file_size > MAX_FILE_BYTES:
            raise DataError(
                name, f"would grow from {entry.compress_size} to {entry.file_size} bytes: a zip bomb", "remove it"
            )
    return archive, list(names)


def unzip(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the bytes of a file in a zip; raise `DataError` where it is missing or damaged."""
    with reading(printable(name)):
        try:
            return archive.read(name)
        except (KeyError, RuntimeError) as error:
            raise DataError(printable(name), f"cannot be read: {printable(error)}") from error
