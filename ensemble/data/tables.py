"""Reads tables of images: CSV and Parquet files with a column of names or paths, and columns of labels and groups."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Sequence
from pathlib import Path

from ensemble.data.files import is_image
from ensemble.errors import DataError, ResourceError, printable

PATH, LABEL, GROUP = "path", "label", "group"

SPELLINGS = {
    PATH: ("path", "file", "filename", "file_name", "name", "image", "image_name", "image_id", "id"),
    LABEL: ("label", "target", "class", "category"),
    GROUP: ("group",),
}
"""The columns that are read, and the names that each may have, in upper or lower case. The first that is there is used,
so that a table may also have an `id` beside its `path`."""

Rows = list[tuple[int, list[str]]]
"""The line number and the cells of each row; the first row is the header."""


def read_columns(rows: Rows, where: str) -> tuple[list[int], dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return the line number of each row, the columns `path`, `label` and `group` as far as there are, and notes.

    Raises
    ------
    DataError
        There is no column of paths, a name of a column is misspelt or used twice, a row has other columns, or there is
        no row.
    """
    header = [name.strip() for name in rows[0][1]] if rows else []
    if rows and len(set(header)) < len(header):
        raise DataError(where, f"has two columns of one name: '{printable(','.join(header))}'", "rename them")
    lower = [name.lower() for name in header]
    chosen = {
        column: lower.index(found)
        for column, names in SPELLINGS.items()
        if (found := next((name for name in names if name in lower), None)) is not None
    }
    others = [name for index, name in enumerate(header) if index not in chosen.values()]
    misspelt = [name for name in others if difflib.get_close_matches(name.lower(), SPELLINGS, n=1, cutoff=0.75)]
    if PATH not in chosen and any(map(is_image, header)):
        raise DataError(where, "has no header", "add a first line with the names of the columns, such as name,label")
    if PATH not in chosen or misspelt:
        raise DataError(
            where, f"must have the columns path[,label][,group]; got '{printable(','.join(header))}'", "rename them"
        )
    if len(rows) < 2:
        raise DataError(where, "lists no images", "write a line for each image")
    for line, row in rows[1:]:
        if len(row) != len(header):
            problem = f"has {len(row)} columns; the first line has {len(header)}"
            raise DataError(f"{where}: line {line}", problem, "correct it")
    cells = list(zip(*(row for _, row in rows[1:]), strict=True))
    notes = (f"columns of {where} that are not used: {printable(', '.join(others))}",) if others else ()
    return [line for line, _ in rows[1:]], {column: cells[index] for column, index in chosen.items()}, notes


def csv_rows(text: str, where: str) -> Rows:
    """Return the rows of a CSV table whose columns are separated by commas, semicolons or tabs."""
    header = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if mark in header), ",")
    # Blanks after a delimiter are skipped where the header has them too; elsewhere they may begin a file name.
    skips = delimiter + " " in header
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=skips, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{where}: line {reader.line_num}", f"is not valid CSV: {error}") from error
    return rows[:-1] if rows and not rows[-1][1] else rows


def parquet_rows(path: Path) -> Rows:
    """Return the rows of a Parquet table; an empty cell is an empty text."""
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise ResourceError(printable(path), "needs pyarrow to be read", "pip install 'thera[parquet]'") from None
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(printable(path), f"is not valid Parquet: {printable(error)}") from error
    columns: Sequence[list[str]] = [
        ["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns
    ]
    return [(1, list(table.column_names))] + [(i, list(row)) for i, row in enumerate(zip(*columns, strict=True), 1)]
