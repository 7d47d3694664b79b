"""Reads tables of images: CSV and Parquet files with a column of names or paths, and columns of labels and groups."""

from __future__ import annotations

import csv
import difflib
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ensemble.data.files import is_image, reading
from ensemble.errors import ConfigError, DataError, printable
from ensemble.extras import refuse_missing

PATH, LABEL, GROUP = "path", "label", "group"

BATCH = 8192
"""Rows of a Parquet table that are in memory at a time where it is read as a stream."""

SPELLINGS = {
    PATH: ("path", "file", "filename", "file_name", "name", "image", "image_name", "image_id", "id"),
    LABEL: ("label", "target", "class", "category"),
    GROUP: ("group",),
}
"""The columns that are read, and the names that each may have, in upper or lower case. The first that is there is used,
so that a table may also have an `id` beside its `path`."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns of images and of labels, where the user gives them; None for those in `SPELLINGS`."""

    image: str | None = None
    label: str | None = None

    @property
    def given(self) -> dict[str, tuple[str, str]]:
        """The option and the name of each column that is given, by what the column holds."""
        options = {PATH: ("--image-column", self.image), LABEL: ("--label-column", self.label)}
        return {column: (option, name) for column, (option, name) in options.items() if name is not None}


BY_NAME = Columns()
"""No name is given: the columns are those in `SPELLINGS`."""

Numbered = tuple[int, list[str]]
"""The line number and the cells of a row."""

Rows = list[Numbered]
"""The rows of a table; the first row is the header."""


def read_columns(
    rows: Rows, where: str, names: Columns = BY_NAME
) -> tuple[list[int], dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return the line number of each row, the columns `path`, `label` and `group` as far as there are, and notes.

    Raises
    ------
    DataError
        There is no column of paths, a name of a column is misspelt or used twice, a row has other columns, or there is
        no row.
    ConfigError
        There is no column of a name that is given.
    """
    header = [name.strip() for name in rows[0][1]] if rows else []
    if rows and len(set(header)) < len(header):
        raise DataError(where, f"has two columns of one name: '{printable(','.join(header))}'", "rename them")
    chosen = _chosen(header, where, names)
    others = [name for index, name in enumerate(header) if index not in chosen.values()]
    sought = [column for column in SPELLINGS if column not in names.given]
    misspelt = [name for name in others if difflib.get_close_matches(name.lower(), sought, n=1, cutoff=0.75)]
    if PATH not in chosen and any(map(is_image, header)):
        raise DataError(where, "has no header", "add a first line with the names of the columns, such as name,label")
    if PATH not in chosen or misspelt:
        problem = f"must have the columns path[,label][,group]; got '{printable(','.join(header))}'"
        raise DataError(where, problem, "rename them, or give --image-column and --label-column")
    if len(rows) < 2:
        raise DataError(where, "lists no images", "write a line for each image")
    for line, row in rows[1:]:
        if len(row) != len(header):
            problem = f"has {len(row)} columns; the first line has {len(header)}"
            raise DataError(f"{where}: line {line}", problem, "correct it")
    cells = list(zip(*(row for _, row in rows[1:]), strict=True))
    notes = (f"columns that are not used: {printable(', '.join(others))}",) if others else ()
    return [line for line, _ in rows[1:]], {column: cells[index] for column, index in chosen.items()}, notes


def _chosen(header: Sequence[str], where: str, names: Columns) -> dict[str, int]:
    """Return the index of each column that is used: the given ones, and of the others the first with a known name."""
    chosen = {}
    for column, (option, name) in names.given.items():
        if name not in header:
            problem = f"{where} has no column {printable(name)}"
            raise ConfigError(option, problem, f"its columns are {printable(', '.join(header))}")
        chosen[column] = header.index(name)
    free = {name.lower(): index for index, name in reversed(list(enumerate(header))) if index not in chosen.values()}
    for column, spellings in SPELLINGS.items():
        known = next((name for name in spellings if name in free), None)
        if column not in chosen and known is not None:
            chosen[column] = free[known]
    return chosen


def csv_rows(text: str, where: str) -> Rows:
    """Return the rows of a CSV table whose columns are separated by commas, semicolons or tabs."""
    return list(_csv_lines(io.StringIO(text, newline=""), text.partition("\n")[0], where))


def csv_stream(path: Path) -> Iterator[Numbered]:
    """Yield the rows of a CSV file as `csv_rows` returns them; the file is never in memory as a whole."""
    where = printable(path)
    with reading(where), open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header = file.readline()
        file.seek(0)
        yield from _csv_lines(file, header, where)


def _csv_lines(file: TextIO, header: str, where: str) -> Iterator[Numbered]:
    """Yield the line number and cells of each row; an empty last line is no row."""
    delimiter = next((mark for mark in ",;\t" if mark in header), ",")
    # Blanks after a delimiter are skipped where the header has them too; elsewhere they may begin a file name.
    skips = delimiter + " " in header
    reader = csv.reader(file, delimiter=delimiter, skipinitialspace=skips, strict=True)
    last: Numbered | None = None
    try:
        for row in reader:
            if last is not None:
                yield last
            last = reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{where}: line {reader.line_num}", f"is not valid CSV: {error}") from error
    if last is not None and last[1]:
        yield last


def parquet_rows(path: Path) -> Rows:
    """Return the rows of a Parquet table; an empty cell is an empty text."""
    refuse_missing("parquet", printable(path))
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped, unused-ignore]

    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(printable(path), f"is not valid Parquet: {printable(error)}") from error
    return [(1, list(table.column_names)), *((i, row) for i, row in enumerate(_texts(table.columns), 1))]


def parquet_stream(path: Path) -> Iterator[Numbered]:
    """Yield the rows of a Parquet table as `parquet_rows` returns them, one batch in memory at a time."""
    refuse_missing("parquet", printable(path))
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield 1, list(file.schema_arrow.names)
            numbers = itertools.count(1)
            for batch in file.iter_batches(BATCH):
                for row in _texts(batch.columns):
                    yield next(numbers), row
    except (ArrowException, OSError) as error:
        raise DataError(printable(path), f"is not valid Parquet: {printable(error)}") from error


def _texts(columns: Sequence[Any]) -> Iterator[list[str]]:
    """Yield the cells of each row of Arrow columns as text; an empty cell is an empty text."""
    texts = [["" if value is None else str(value) for value in column.to_pylist()] for column in columns]
    yield from map(list, zip(*texts, strict=True))
