"""Lists the images of tar files, such as those of WebDataset, and reads them in place."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ensemble.data.files import is_hidden, is_image, reading
from ensemble.errors import DataError, printable

COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
"""Suffixes of compressed tar files, whose images cannot be read one by one."""


@dataclass(frozen=True)
class TarImage:
    """An image in a tar: its name, and where its bytes are in the file."""

    name: str
    offset: int
    size: int


def is_compressed_tar(path: Path) -> bool:
    """Return whether a path has the suffix of a compressed tar."""
    return path.name.lower().endswith(COMPRESSED)


def images_of_tar(path: Path) -> Iterator[TarImage]:
    """Yield the images of a tar in the order of the file; memory does not grow with their number.

    Hidden files and files that are no images, such as labels beside the images, are passed over.

    Raises
    ------
    DataError
        The tar is damaged or cut short, is compressed, or has an image that is a link or has holes.
    """
    where = printable(path)
    if is_compressed_tar(path):
        raise DataError(where, "is compressed, so that its images cannot be read one by one", "unpack it to a .tar")
    try:
        with reading(where), tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header
                if is_hidden(member.name) or not is_image(member.name) or member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    problem = "is a link or has holes and is no plain file"
                    raise DataError(f"{where}: {printable(member.name)}", problem, "pack the file itself")
                yield TarImage(member.name, member.offset_data, member.size)
            _refuse_cut(path, tar.offset, where)
    except tarfile.TarError as error:
        raise DataError(where, f"is damaged: {printable(error)}", "pack it again") from None


def _refuse_cut(path: Path, offset: int, where: str) -> None:
    """Raise `DataError` unless the block where reading stopped marks the end; tarfile stops at a damaged header too."""
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DataError(where, f"is damaged or cut short after {offset} bytes", "pack it again")


def read_tar_image(file: int, image: TarImage, where: str) -> bytes:
    """Return the bytes of an image in a tar that is open as a file descriptor; any thread may call it.

    Raises
    ------
    DataError
        The tar is shorter than when it was listed, or cannot be read.
    """
    with reading(where):
        data = os.pread(file, image.size, image.offset)
    if len(data) < image.size:
        raise DataError(where, f"is cut short: {len(data)} of {image.size} bytes are there", "pack the tar again")
    return data
