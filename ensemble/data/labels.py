"""Reads labels: 0 and 1, other spellings of these, the names of two classes, or those of more classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.data.classes import (
    MAX_CLASSES,
    bare_text,
    checked_count,
    class_note,
    number_of,
    order_classes,
    refuse_positive,
    shortest,
)
from ensemble.data.files import as_text, listed, open_archive, reading, split_zip
from ensemble.data.tables import BY_NAME, LABEL, PATH, Columns, csv_rows, read_columns
from ensemble.errors import DataError, printable

HEADER = "label"
"""The first line of a label file that has a header and no other column."""

NO_NAMES = frozenset({"", "nan", "none", "null", "na", "n/a", "?"})
"""Texts that stand for a missing value, so that no class may have them as its name."""

MISSING = NO_NAMES - {"none"}
"""Those of three or more classes: a class such as a mask's may have the name none, and the number of classes tells."""

MOST_NAMED = 10
"""The most different labels that a message calls names of classes; more are something else than labels."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a file.

    Attributes
    ----------
    y : int8 array (n,)
        Class indices, 0 to C - 1.
    classes : tuple of C str, or None
        The names of the classes; None for two classes that are 0 and 1.
    names : tuple of n str, or None
        The image of each label, where the file is a table.
    notes : tuple of str
        How the labels were read, where they are not 0 and 1 in a line each.
    """

    y: NDArray[np.int8]
    classes: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


# --- files ------------------------------------------------------------------------------------------------------------


def read_label_file(
    path: Path,
    positive: str | None = None,
    classes: tuple[str, ...] | None = None,
    columns: Columns = BY_NAME,
    n_classes: int | None = None,
) -> Labels:
    """Read a label file, also one in a zip; see `read_labels`. Raise `DataError` where it cannot be read."""
    where = printable(path)
    with reading(where):
        archive = split_zip(path)
        data = open_archive(archive[0]).read(archive[1]) if archive else path.read_bytes()
    return read_labels(data, where, positive, classes, columns, n_classes)


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
    classes: tuple[str, ...] | None = None,
    columns: Columns = BY_NAME,
    n_classes: int | None = None,
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
    classes : tuple of C str, optional
        The names of the classes, if they are known; only these are accepted, and some of them may be absent. Of three
        or more classes, the indices 0 to C - 1 are accepted too. Where the names are such numbers themselves, lines
        hold indices and tables hold names, as the files that thera writes.
    columns : Columns
        The names of a table's columns, if they are given.
    n_classes : int, optional
        The number of classes, as in `read_values`; not where `classes` are given.

    Raises
    ------
    DataError
        A line is blank, has another column or another value; the message names it. Or the classes are others.
    ConfigError
        No label has the name `positive`, no column has a name that is given, or `n_classes` is out of range.
    """
    text, n_classes = as_text(data, where), checked_count(n_classes, positive)
    if re.search("[,;\t]", text.partition("\n")[0]):
        return _read_table(text, where, positive, classes, columns, n_classes)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for _ in range(2):
        if lines and not lines[-1]:
            lines.pop()
    has_header = bool(lines) and bare_text(lines[0]).lower() == HEADER
    values = lines[1:] if has_header else lines
    if not values:
        raise DataError(where, "holds no labels", f"write {_a_label(n_classes)} in each line")
    first = 2 if has_header else 1
    read = read_values(values, range(first, first + len(values)), where, positive, classes, n_classes, indices=True)
    header_note = (f"line 1 of {where} is a header; the labels begin in line 2",) if has_header else ()
    return Labels(read.y, read.classes, None, (*header_note, *read.notes))


def _read_table(
    text: str,
    where: str,
    positive: str | None,
    classes: tuple[str, ...] | None,
    names: Columns,
    n_classes: int | None,
) -> Labels:
    rows = csv_rows(text, where)
    lines, columns, notes = read_columns(rows, where, names)
    if LABEL not in columns:
        problem = f"has no column of labels; its columns are {printable(', '.join(rows[0][1]))}"
        raise DataError(where, problem, "call it label, or give --label-column")
    read = read_values(columns[LABEL], lines, where, positive, classes, n_classes)
    return Labels(read.y, read.classes, columns[PATH], (*notes, *read.notes))


# --- values -----------------------------------------------------------------------------------------------------------


def read_values(
    values: Sequence[str],
    lines: Sequence[int],
    where: str,
    positive: str | None = None,
    classes: tuple[str, ...] | None = None,
    n_classes: int | None = None,
    indices: bool = False,
) -> Labels:
    """Return the labels of n texts, with a note where they are not written as 0 and 1.

    Accepted are decimals (`1.0`), the pair -1 and 1, quoted values, blanks at the ends, and two names of any kind, of
    which the second in the order of the alphabet is label 1. Three or more classes are names or integers; see
    `order_classes`.

    Parameters
    ----------
    values : sequence of n str
    lines : sequence of n int
        The line of each value, for messages.
    where : str
        The file, for messages.
    positive : str, optional
        The name that is label 1 instead.
    classes : tuple of C str, optional
        As in `read_labels`.
    n_classes : int, optional
        The number of three or more classes, all of which must be present; None for two.
    indices : bool
        Whether numbers that may be either names among `classes` or indices are indices.

    Raises
    ------
    DataError
        A value is none of these, or both 0 and -1 occur; the message names the line. Or there are not `n_classes`
        classes; the message names them.
    ConfigError
        No label has the name `positive`.
    """
    if n_classes is not None:
        return _read_classes(values, lines, where, n_classes)
    if classes is not None and len(classes) > 2:
        return _known_or_indices([bare_text(value) for value in values], lines, where, classes, indices)
    if classes is not None and {bare_text(value) for value in values} <= set(classes):  # also names such as 1 and 2
        return _known([bare_text(value) for value in values], lines, where, classes)
    numbers = {value: number_of(value) for value in dict.fromkeys(values)}
    if all(number is None and bare_text(value).lower() not in NO_NAMES for value, number in numbers.items()):
        names = [bare_text(value) for value in values]
        return _read_names(names, lines, where, positive) if classes is None else _known(names, lines, where, classes)
    for line, value in zip(lines, values, strict=True):
        if numbers[value] not in (-1, 0, 1):
            _refuse(where, line, value, values)
    if {-1, 0} <= set(numbers.values()):
        line = next(line for line, value in zip(lines, values, strict=True) if numbers[value] == -1)
        remedy = f"write each label as 0 or 1{_or_more_classes(values)}"
        raise DataError(f"{where}: line {line}", "is -1, and other lines are 0", remedy)
    refuse_positive(positive)
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
            _refuse(where, lines[at], values[at], values)
        problem = f"is {printable(values[third])[:40]}, a third label beside {listed(sorted(set(values[:third])))}"
        raise DataError(f"{where}: line {lines[third]}", problem, f"give --classes {len(names)}")
    order = order_classes(names, positive, where)
    return Labels(np.array([order.label_of[value] for value in values], np.int8), order.classes, None, order.notes)


def _read_classes(values: Sequence[str], lines: Sequence[int], where: str, n_classes: int) -> Labels:
    texts = [bare_text(value) for value in values]
    for line, text in zip(lines, texts, strict=True):
        if text.lower() in MISSING:
            problem = f"is {printable(text)}, which stands for a missing label" if text else "is blank"
            raise DataError(f"{where}: line {line}", problem, f"write {_a_label(n_classes)} in each line")
    order = order_classes(texts, None, where, n_classes)
    return Labels(np.array([order.label_of[text] for text in texts], np.int8), order.classes, None, order.notes)


def _known(values: Sequence[str], lines: Sequence[int], where: str, classes: tuple[str, ...]) -> Labels:
    label_of = {name: label for label, name in enumerate(classes)}
    for line, value in zip(lines, values, strict=True):
        if value not in label_of:
            possible = " or ".join(map(printable, classes))
            if len(classes) > 2:
                possible = f"one of {listed(classes)}, or its index 0 to {len(classes) - 1}"
            raise DataError(f"{where}: line {line}", f"must be {possible}; got '{printable(value)[:40]}'")
    return Labels(np.array([label_of[value] for value in values], np.int8), classes)


def _known_or_indices(
    values: Sequence[str], lines: Sequence[int], where: str, classes: tuple[str, ...], indices: bool
) -> Labels:
    """Return labels that are either names among three or more `classes`, or all of them their indices."""
    texts = [value if value in classes else shortest(value) for value in values]
    numbers = tuple(map(str, range(len(classes))))
    are_names, are_indices = set(texts) <= set(classes), set(texts) <= set(numbers)
    if not are_indices or (are_names and (not indices or classes == numbers)):
        return _known(texts, lines, where, classes)
    notes = (f"labels in {where} are read as indices: {class_note(classes)}",) if are_names else ()
    return Labels(_known(texts, lines, where, numbers).y, classes, None, notes)


# --- messages ---------------------------------------------------------------------------------------------------------


def _a_label(n_classes: int | None) -> str:
    return "a 0 or 1" if n_classes is None else f"one of the {n_classes} classes"


def _or_more_classes(values: Sequence[str]) -> str:
    """Return the remedy that values are three or more classes, if they may be: where some of them are repeated."""
    names = {shortest(bare_text(value)) for value in values}
    may_be = 2 < len(names) <= MAX_CLASSES and len(names) < len(values)
    return f", or give --classes {len(names)}" if may_be and not {name.lower() for name in names} & MISSING else ""


def _refuse(where: str, line: int, value: str, values: Sequence[str]) -> None:
    remedy = f"write a 0 or 1 in each line{_or_more_classes(values)}"
    if not value.strip():
        problem = "is blank"
    elif len(value.replace(",", " ").replace(";", " ").split()) > 1:
        problem, remedy = f"holds more than one column: '{printable(value[:40])}'", "give a CSV file with name,label"
    else:
        problem = f"must be 0 or 1; got '{printable(value[:40])}'"
    raise DataError(f"{where}: line {line}", problem, remedy)
