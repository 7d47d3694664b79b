"""Lists and reads files in folders and in zips; refuses files that are unsafe or damaged."""

from __future__ import annotations

import contextlib
import os
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ensemble.data import MAX_PIXELS
from ensemble.errors import DataError, printable

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp"}) | frozenset(
    {
        ".gif",
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".avif",
    }  # not decoded, so that such an image is refused and not left out
)
"""Suffixes of the files that are images, in lower case. The format itself is recognised by the content."""

MAX_FILE_BYTES = 4 * MAX_PIXELS
"""The largest file that is read: the largest image, uncompressed, with four bytes a pixel."""

ZIP_METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz", 98: "ppmd"}
"""Compression methods of zips that are not read, for messages: Python has no decoder, or none that bounds memory."""

OUTWARD_LINK = "replace it by what it leads to, or give --follow-links"
"""What to do where a link leads out of the folder of the images."""

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


def files_below(folder: Path, deep: bool, follow_links: bool, skip_bad: bool = False) -> tuple[list[str], list[str]]:
    """Return the images in a folder and everything else, as paths relative to it, in any order.

    Parameters
    ----------
    folder : Path
    deep : bool
        Whether subfolders are searched too. Subfolders that are not, such as hidden ones, are among everything else,
        with a / at the end.
    follow_links : bool
        Whether links may lead out of the folder, and links to folders are searched; each folder is searched once.
    skip_bad : bool
        Whether something with the name of an image that is not a file is among the images: it is left out later.

    Raises
    ------
    DataError
        A link leads out of the folder, or the name of an image belongs to something that is not a file.
    """
    root, images, others, not_files, folders = os.path.realpath(folder), list[str](), list[str](), list[str](), [""]
    searched: set[str] = set()
    while folders:
        inside = folders.pop()
        if follow_links and (real := os.path.realpath(folder / inside)) in searched:
            others.append(inside)
            continue
        searched.add(real if follow_links else inside)
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                name, is_read = os.path.join(inside, entry.name), not is_hidden(entry.name)
                if entry.is_dir(follow_symlinks=False) and not (is_read and is_image(entry.name)):
                    (folders if deep and is_read else others).append(name if deep and is_read else f"{name}/")
                elif not (is_read and (is_image(entry.name) or (deep and entry.is_dir()))):
                    others.append(name)
                elif not follow_links and entry.is_symlink() and not is_inside(os.path.realpath(entry.path), root):
                    raise DataError(printable(entry.path), "is a link out of its folder", OUTWARD_LINK)
                elif not is_image(entry.name):
                    (folders if follow_links else others).append(name)
                else:
                    (images if skip_bad or entry.is_file() else not_files).append(name)
    if not_files:
        problem = f"{len(not_files)} images are not files: {listed(sorted(not_files))}"
        raise DataError(printable(folder), problem, "remove them, or leave them out with --on-bad skip")
    return images, others


def unread_note(folder: Path, others: Sequence[str]) -> str:
    """Return a note that counts and names files in a folder that are not read; those in a subfolder are one name."""
    names, count = [], 0
    for name in sorted(others, key=lambda name: (is_hidden(name), name)):
        inside = sum(len(files) for _, _, files in os.walk(folder / name)) if name.endswith("/") else 1
        names.append(f"{name} ({inside} files)" if name.endswith("/") else name)
        count += inside
    return f"{count} files in it are not read: {listed(names)}"


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


@dataclass(frozen=True)
class Archive:
    """The files of a zip that is read in place.

    Attributes
    ----------
    where : str
        The zip, for messages.
    file : ZipFile
    entries : dict
        The entry of each file; / separates folders, also where the zip has backslashes.
    """

    where: str
    file: zipfile.ZipFile
    entries: dict[str, zipfile.ZipInfo]

    def read(self, name: str) -> bytes:
        """Return the bytes of a file, at most as many as its entry declares; raise `DataError` if it is damaged."""
        at, entry = printable(name), self.entries.get(name)
        if entry is None:
            raise DataError(at, f"cannot be read: it is not in {self.where}")
        _refuse_large(name, entry.file_size)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            method = ZIP_METHODS.get(entry.compress_type, f"method {entry.compress_type}")
            raise DataError(at, f"is compressed with {method}", "pack the zip again with the method deflate")
        with reading(at), self.file.open(entry) as file:
            data = file.read(entry.file_size)  # with a size, zipfile bounds what it unpacks
        if len(data) < entry.file_size:
            raise DataError(at, f"has {len(data)} bytes; {self.where} declares {entry.file_size}", "pack it again")
        return data


def open_archive(path: Path) -> Archive:
    """Open a zip and list its files; raise `DataError` where the zip is not safe to read."""
    file, where = zipfile.ZipFile(path), printable(path)
    named = [(entry.filename.replace("\\", "/"), entry) for entry in file.infolist()]
    named = [(name, entry) for name, entry in named if not name.endswith("/")]
    names = Counter(name for name, _ in named)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise DataError(where, f"has several files of the same name: {listed(repeated)}", "pack it again")
    if sum(entry.compress_size for _, entry in named) > path.stat().st_size:
        raise DataError(where, "declares more bytes than the file has: a zip bomb", "pack the images again")
    for name, entry in named:
        at = f"{where}: {printable(name)}"
        if ".." in (parts := PurePosixPath(name)).parts or parts.is_absolute():
            raise DataError(at, "leads out of the zip", "pack it again")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise DataError(at, "is a symbolic link", "pack the file itself")
        if entry.flag_bits & 1:
            raise DataError(at, "is encrypted", "unpack it first")
    return Archive(where, file, dict(named))
