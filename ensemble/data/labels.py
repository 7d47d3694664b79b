"""Reads labels: 0 and 1, other spellings of these, or the names of two classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.data.files import as_text, listed, open_archive, reading, split_zip
from ensemble.data.tables import BY_NAME, LABEL, PATH, Columns, csv_rows, read_columns
from ensemble.errors import ConfigError, DataError, printable

HEADER = "label"
"""The first line of a label file that has a header and no other column."""

NO_NAMES = frozenset({"", "nan", "none", "null", "na", "n/a", "?"})
"""Texts that stand for a missing value, so that no class may have them as its name."""

MOST_NAMED = 10
"""The most different labels that a message calls names of classes; more are something else than labels."""

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a file.

    Attributes
    ----------
    y : int8 array (n,)
        0 or 1.
    classes : tuple of two str, or None
        The names of label 0 and of label 1, where the labels are names.
    names : tuple of n str, or None
        The image of each label, where the file is a table.
    notes : tuple of str
        How the labels were read, where they are not 0 and 1 in a line each.
    """

    y: NDArray[np.int8]
    classes: tuple[str, str] | None = None
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


# --- files ------------------------------------------------------------------------------------------------------------


def read_label_file(
    path: Path,
    positive: str | None = None,
    classes: tuple[str, str] | None = None,
    columns: Columns = BY_NAME,
) -> Labels:
    """Read a label file, also one in a zip; see `read_labels`. Raise `DataError` where it cannot be read."""
    where = printable(path)
    with reading(where):
        archive = split_zip(path)
        data = open_archive(archive[0]).read(archive[1]) if archive else path.read_bytes()
    return read_labels(data, where, positive, classes, columns)


def parse_labels(data: bytes, where: str) -> NDArray[np.int8]:
    """Return the labels of a file; see `read_labels`.

    Returns
    -------
    int8 array (n,)

    Examples
    --------
    >>> parse_labels(b"1\\r\\n0\\r\\n", "labels.txt")
    array([1, 0], dtype=int8)
    """
    return read_labels(data, where).y


def read_labels(
    data: bytes,
    where: str,
    positive: str | None = None,
    classes: tuple[str, str] | None = None,
    columns: Columns = BY_NAME,
) -> Labels:
    """Return the labels of a text file with a label in each line, or of a CSV file with the columns name,label.

    A byte-order mark, CRLF or CR, a missing final newline, an extra one, and the header `label` are accepted.

    Parameters
    ----------
    data : bytes
    where : str
        The file, for messages.
    positive : str, optional
        Where the labels are names, the one that is label 1.
    classes : tuple of two str, optional
        The names of label 0 and label 1, if they are known; only these are accepted, and one of them may be absent.
    columns : Columns
        The names of a table's columns, if they are given.

    Raises
    ------
    DataError
        A line is blank, has another column or another value; the message names it.
    ConfigError
        No label has the name `positive`, or no column has a name that is given.
    """
    text = as_text(data, where)
    if re.search("[,;\t]", text.partition("\n")[0]):
        return _read_table(text, where, positive, classes, columns)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for _ in range(2):
        if lines and not lines[-1]:
            lines.pop()
    has_header = bool(lines) and _bare(lines[0]).lower() == HEADER
    values = lines[1:] if has_header else lines
    if not values:
        raise DataError(where, "holds no labels", "write a 0 or 1 in each line")
    first = 2 if has_header else 1
    read = read_values(values, range(first, first + len(values)), where, positive, classes)
    header_note = (f"line 1 of {where} is a header; the labels begin in line 2",) if has_header else ()
    return Labels(read.y, read.classes, None, (*header_note, *read.notes))


def _read_table(text: str, where: str, positive: str | None, classes: tuple[str, str] | None, names: Columns) -> Labels:
    rows = csv_rows(text, where)
    lines, columns, notes = read_columns(rows, where, names)
    if LABEL not in columns:
        problem = f"has no column of labels; its columns are {printable(', '.join(rows[0][1]))}"
        raise DataError(where, problem, "call it label, or give --label-column")
    read = read_values(columns[LABEL], lines, where, positive, classes)
    return Labels(read.y, read.classes, columns[PATH], (*notes, *read.notes))


# --- values -----------------------------------------------------------------------------------------------------------


def read_values(
    values: Sequence[str],
    lines: Sequence[int],
    where: str,
    positive: str | None = None,
    classes: tuple[str, str] | None = None,
) -> Labels:
    """Return the labels of n texts, with a note where they are not written as 0 and 1.

    Accepted are decimals (`1.0`), the pair -1 and 1, quoted values, blanks at the ends, and two names of any kind, of
    which the second in the order of the alphabet is label 1.

    Parameters
    ----------
    values : sequence of n str
    lines : sequence of n int
        The line of each value, for messages.
    where : str
        The file, for messages.
    positive : str, optional
        The name that is label 1 instead.
    classes : tuple of two str, optional
        As in `read_labels`.

    Raises
    ------
    DataError
        A value is none of these, or both 0 and -1 occur; the message names the line.
    ConfigError
        No label has the name `positive`.
    """
    if classes is not None and {_bare(value) for value in values} <= set(classes):  # also names such as 1 and 2
        return _known([_bare(value) for value in values], lines, where, classes)
    numbers = {value: _number(value) for value in dict.fromkeys(values)}
    if all(number is None and _bare(value).lower() not in NO_NAMES for value, number in numbers.items()):
        names = [_bare(value) for value in values]
        return _read_names(names, lines, where, positive) if classes is None else _known(names, lines, where, classes)
    for line, value in zip(lines, values, strict=True):
        if numbers[value] not in (-1, 0, 1):
            _refuse(where, line, value)
    if {-1, 0} <= set(numbers.values()):
        line = next(line for line, value in zip(lines, values, strict=True) if numbers[value] == -1)
        raise DataError(f"{where}: line {line}", "is -1, and other lines are 0", "write each label as 0 or 1")
    _refuse_positive(positive)
    labels = np.array([numbers[value] == 1 for value in values], np.int8)
    if set(numbers) <= {"0", "1"}:
        return Labels(labels)
    spellings = ([value for value in numbers if (numbers[value] == 1) == label] for label in (False, True))
    meaning = (f"{listed(texts)} as {label}" for label, texts in enumerate(spellings) if texts)
    return Labels(labels, notes=(f"labels in {where} are read as 0 and 1: {', '.join(meaning)}",))


def _read_names(values: Sequence[str], lines: Sequence[int], where: str, positive: str | None) -> Labels:
    names = set(values)
    if len(names) > 2:
        columns = next((i for i, value in enumerate(values) if len(value.split()) > 1), None)
        third = next(i for i, value in enumerate(values) if len(set(values[: i + 1])) == 3)
        if len(names) > MOST_NAMED or columns is not None:
            at = third if columns is None else columns
            _refuse(where, lines[at], values[at])
        problem = f"is {printable(values[third])[:40]}, a third label beside {listed(sorted(set(values[:third])))}"
        raise DataError(f"{where}: line {lines[third]}", problem, "two labels are possible")
    order = order_classes(names, positive, where)
    return Labels(np.array([value == order.positive for value in values], np.int8), order.classes, None, order.notes)


def _known(values: Sequence[str], lines: Sequence[int], where: str, classes: tuple[str, str]) -> Labels:
    for line, value in zip(lines, values, strict=True):
        if value not in classes:
            problem = f"must be {' or '.join(map(printable, classes))}; got '{printable(value)[:40]}'"
            raise DataError(f"{where}: line {line}", problem)
    return Labels(np.array([value == classes[1] for value in values], np.int8), classes)


@dataclass(frozen=True)
class ClassOrder:
    """Which of two names is label 1: `positive`; the names of both labels, None for 0 and 1; and a note."""

    positive: str
    classes: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()


def order_classes(of: Iterable[str], positive: str | None, where: str) -> ClassOrder:
    """Return which name is label 1: `positive` if given, else the second in the order of the alphabet.

    Capitals and small letters are alike in this order.

    Raises
    ------
    DataError
        There is one name only, which may stand for either label.
    ConfigError
        `positive` is none of the names.
    """
    names = sorted(set(of), key=lambda name: (name.casefold(), name))
    if set(names) <= {"0", "1"}:
        _refuse_positive(positive)
        return ClassOrder("1")
    if len(names) != 2:
        raise DataError(where, f"has one label only, {listed(names)}", "both classes must be present")
    if positive is not None and positive not in names:
        raise ConfigError("--positive", f"no class has the name {printable(positive)}", f"they are {listed(names)}")
    one = names[1] if positive is None else positive
    zero = names[0] if one == names[1] else names[1]
    return ClassOrder(one, (zero, one), (class_note((zero, one)),))


def class_note(classes: tuple[str, str]) -> str:
    """Return the note that says which class is which label."""
    return f"{printable(classes[0])} is label 0, {printable(classes[1])} is label 1"


def _refuse_positive(positive: str | None) -> None:
    if positive not in (None, "1"):
        raise ConfigError("--positive", "the labels are 0 and 1 already", "leave it out")


def _bare(value: str) -> str:
    """Return a value without blanks and quotes around it."""
    value = value.strip()
    return value[1:-1].strip() if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def _number(value: str) -> float | None:
    bare = _bare(value)
    return float(bare) if _NUMBER.fullmatch(bare) else None


def _refuse(where: str, line: int, value: str) -> None:
    remedy = "write a 0 or 1 in each line"
    if not value.strip():
        problem = "is blank"
    elif len(value.replace(",", " ").replace(";", " ").split()) > 1:
        problem, remedy = f"holds more than one column: '{printable(value[:40])}'", "give a CSV file with name,label"
    else:
        problem = f"must be 0 or 1; got '{printable(value[:40])}'"
    raise DataError(f"{where}: line {line}", problem, remedy)
