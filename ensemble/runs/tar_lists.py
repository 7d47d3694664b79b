"""The list of the images of one tar: a Parquet file, and the file with its hash that is written after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from ensemble.data.tars import TarImage
from ensemble.errors import ArtifactError
from ensemble.runs import files

ROWS = 65_536
"""Images of a tar that are in memory at a time."""


def write_tar_list(path: Path, images: Iterator[TarImage], advance: Callable[[int], object]) -> None:
    """Write the images of a tar as a Parquet file atomically, `ROWS` of them in memory at a time, then its hash.

    Names are stored as bytes, because those in a tar need not be UTF-8.
    """
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
    from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]

    schema = pa.schema([("name", pa.binary()), ("offset", pa.int64()), ("size", pa.int64())])
    with files.replacing(path) as temporary:
        with parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            while chunk := list(islice(images, ROWS)):
                names = [os.fsencode(image.name) for image in chunk]
                columns = [names, [image.offset for image in chunk], [image.size for image in chunk]]
                writer.write_table(pa.table(columns, schema=schema))
                advance(len(chunk))
        sha256 = files.file_sha256(temporary)
    files.write_whole(_hash_of(path), sha256.encode())


def has_tar_list(path: Path) -> bool:
    """Return whether the images of a tar were listed to their end; `read_tar_list` verifies the list."""
    return _hash_of(path).exists()


def read_tar_list(path: Path) -> Iterator[TarImage]:
    """Return the images of a tar from its list, once the hash of the list is verified.

    Raises
    ------
    ArtifactError
        It is missing or damaged.
    """
    try:
        recorded = _hash_of(path).read_bytes()
    except OSError as error:
        raise ArtifactError(_hash_of(path), f"cannot be read ({error.strerror})") from None
    if files.file_sha256(path).encode() != recorded:
        raise ArtifactError(path, "is not the file that thera wrote (its hash differs)")
    return _rows_of_tar_list(path)


def _rows_of_tar_list(path: Path) -> Iterator[TarImage]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS):
            names, offsets, sizes = (column.to_pylist() for column in batch.columns)
            yield from map(TarImage, map(os.fsdecode, names), offsets, sizes)


def _hash_of(path: Path) -> Path:
    """Return the file with the SHA-256 of the list of a tar. It is written last."""
    return path.with_suffix(".sha256")
