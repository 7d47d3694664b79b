"""Reads manifests: CSV and Parquet tables with the columns path[,label][,group], a row for each image."""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ensemble.data.files import as_text, is_inside, listed
from ensemble.errors import DataError, ResourceError, printable

MANIFEST_COLUMNS = ("path", "label", "group")
"""The columns that a manifest may have."""


def read_manifest(path: Path) -> tuple[list[int], dict[str, tuple[str, ...]]]:
    """Return the line number of each row, and the columns by name. Paths are checked, other values are not.

    Raises
    ------
    DataError
        The table is damaged, a column is missing or unknown, or a path is listed twice, names no file, or leads out of
        the folder of the manifest.
    """
    where, rows_of = printable(path), _csv_rows if path.suffix.lower() == ".csv" else _parquet_rows
    (_, header), *rows = rows_of(path) or [(1, [])]
    if "path" not in header or not set(header) <= set(MANIFEST_COLUMNS) or len(set(header)) < len(header):
        raise DataError(
            where, f"must have the columns path[,label][,group]; got '{printable(','.join(header))}'", "rename them"
        )
    if not rows:
        raise DataError(where, "lists no images", "write a line for each image")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{where}: line {line}", f"has {len(row)} columns; the first line has {len(header)}", "correct it"
            )
    columns = dict(zip(header, zip(*(row for _, row in rows), strict=True), strict=True))
    numbers = [line for line, _ in rows]
    _check_paths(where, os.path.realpath(path.parent), numbers, columns["path"])
    return numbers, columns


def _check_paths(where: str, root: str, lines: list[int], paths: Sequence[str]) -> None:
    real_folder = functools.cache(os.path.realpath)
    seen: dict[str, int] = {}
    missing = []
    for line, path in zip(lines, paths, strict=True):
        at = f"{where}: line {line}"
        full = os.path.join(root, path)
        if not path or os.path.isabs(path) or ".." in PurePosixPath(path).parts:
            raise DataError(at, f"'{printable(path)}' must be a path inside the manifest's folder", "correct it")
        if (first := seen.setdefault(os.path.normpath(path), line)) != line:
            raise DataError(at, f"{printable(path)} is listed in line {first} already", "list every image once")
        real = os.path.realpath(full) if os.path.islink(full) else real_folder(os.path.dirname(full))
        if not is_inside(real, root):
            raise DataError(at, f"{printable(path)} is a link out of the manifest's folder")
        if not os.path.isfile(full):
            missing.append(f"{path} (line {line})")
    if missing:
        raise DataError(where, f"{len(missing)} of {len(paths)} images are missing or not files: {listed(missing)}")


def _csv_rows(path: Path) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(as_text(path.read_bytes(), printable(path)), newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{printable(path)}: line {reader.line_num}", f"is not valid CSV: {error}") from error
    return rows[:-1] if rows and not rows[-1][1] else rows


def _parquet_rows(path: Path) -> list[tuple[int, list[str]]]:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise ResourceError(printable(path), "needs pyarrow to be read", "pip install 'thera[parquet]'") from None
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(printable(path), f"is not valid Parquet: {printable(error)}") from error
    columns = [["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns]
    return [(1, list(table.column_names))] + [(i, list(row)) for i, row in enumerate(zip(*columns, strict=True), 1)]
