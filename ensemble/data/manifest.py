"""Reads manifests: CSV and Parquet tables with the columns path[,label][,group], a row for each image."""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ensemble.data.files import IMAGE_SUFFIXES, as_text, is_image, is_inside, listed
from ensemble.errors import DataError, ResourceError, printable

MANIFEST_COLUMNS = ("path", "label", "group")
"""The columns that a manifest may have."""


def read_manifest(path: Path) -> tuple[list[int], dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return the line number of each row, the columns by name, and notes. Paths are checked, other values are not.

    Columns may be separated by commas or semicolons. A path may lack the suffix of its image.

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
    root, paths = os.path.realpath(path.parent), columns["path"]
    columns["path"] = _with_suffixes(where, root, numbers, paths)
    _check_paths(where, root, numbers, columns["path"])
    completed = sum(given != name for given, name in zip(paths, columns["path"], strict=True))
    notes = (f"{completed} paths have no suffix; the image files of these names are used",) if completed else ()
    return numbers, columns, notes


def _with_suffixes(where: str, root: str, lines: list[int], paths: Sequence[str]) -> tuple[str, ...]:
    """Return the paths with the suffix of the image file where a path lacks one."""
    suffixes = sorted(IMAGE_SUFFIXES | {suffix.upper() for suffix in IMAGE_SUFFIXES})
    completed = []
    for line, path in zip(lines, paths, strict=True):
        names = [path]
        if path and not is_image(path) and not os.path.lexists(os.path.join(root, path)):
            names = [path + suffix for suffix in suffixes if os.path.isfile(os.path.join(root, path + suffix))] or names
        if len(names) > 1:
            raise DataError(f"{where}: line {line}", f"may be {listed(names)}", "write the suffix")
        completed.append(names[0])
    return tuple(completed)


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
    text = as_text(path.read_bytes(), printable(path))
    header = text.partition("\n")[0]
    delimiter = ";" if ";" in header and "," not in header else ","
    # Blanks after a delimiter are skipped where the header has them too; elsewhere they may begin a file name.
    skips = delimiter + " " in header
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=skips, strict=True)
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
