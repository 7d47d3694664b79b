"""Reads labels: 0 and 1, and other spellings of two classes that can only mean these."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble.data.files import as_text, listed
from ensemble.errors import DataError, printable

HEADER = "label"
"""The first line of a label file that has a header."""

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


def read_labels(data: bytes, where: str) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    """Return the labels of a text file with a label in each line, and notes.

    A byte-order mark, CRLF, a missing final newline, an extra one, and the header `label` are accepted.

    Returns
    -------
    labels : int8 array (n,)
    notes : tuple of str
        What was read as 0 and 1, where the file has other spellings, and whether it has a header.

    Raises
    ------
    DataError
        A line is blank, has another column or another value; the message names it.
    """
    lines = as_text(data, where).replace("\r\n", "\n").split("\n")
    for _ in range(2):
        if lines and not lines[-1]:
            lines.pop()
    has_header = bool(lines) and _bare(lines[0]).lower() == HEADER
    values = lines[1:] if has_header else lines
    if not values:
        raise DataError(where, "holds no labels", "write a 0 or 1 in each line")
    first = 2 if has_header else 1
    labels, notes = read_values(values, range(first, first + len(values)), where)
    header_note = (f"line 1 of {where} is a header; the labels begin in line 2",) if has_header else ()
    return labels, (*header_note, *notes)


def read_values(values: Sequence[str], lines: Sequence[int], where: str) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    """Return the labels of n texts, and a note where they are not written as 0 and 1.

    Accepted are decimals (`1.0`), the pair -1 and 1, quoted values, and blanks at the ends.

    Parameters
    ----------
    values : sequence of n str
    lines : sequence of n int
        The line of each value, for messages.
    where : str
        The file, for messages.

    Raises
    ------
    DataError
        A value is none of these, or both 0 and -1 occur; the message names the line.
    """
    numbers = {value: _number(value) for value in dict.fromkeys(values)}
    for line, value in zip(lines, values, strict=True):
        if numbers[value] not in (-1, 0, 1):
            _refuse(where, line, value)
    if {-1, 0} <= set(numbers.values()):
        line = next(line for line, value in zip(lines, values, strict=True) if numbers[value] == -1)
        raise DataError(f"{where}: line {line}", "is -1, and other lines are 0", "write each label as 0 or 1")
    labels = np.array([numbers[value] == 1 for value in values], np.int8)
    if set(numbers) <= {"0", "1"}:
        return labels, ()
    spellings = ([value for value in numbers if (numbers[value] == 1) == label] for label in (False, True))
    meaning = (f"{listed(texts)} as {label}" for label, texts in enumerate(spellings) if texts)
    return labels, (f"labels in {where} are read as 0 and 1: {', '.join(meaning)}",)


def _bare(value: str) -> str:
    """Return a value without blanks and quotes around it."""
    value = value.strip()
    return value[1:-1].strip() if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def _number(value: str) -> float | None:
    bare = _bare(value)
    return float(bare) if _NUMBER.fullmatch(bare) else None


def _refuse(where: str, line: int, value: str) -> None:
    if not value.strip():
        problem = "is blank"
    elif len(value.replace(",", " ").replace(";", " ").split()) > 1:
        problem = f"holds more than one column: '{printable(value[:40])}'"
    else:
        problem = f"must be 0 or 1; got '{printable(value[:40])}'"
    raise DataError(f"{where}: line {line}", problem, "write a 0 or 1 in each line")
