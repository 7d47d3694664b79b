"""Overlays: tables that say which training rows are left out, get another label, or count less in the loss."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ensemble.data.files import as_text, reading
from ensemble.data.tables import Rows, csv_rows
from ensemble.errors import DataError, printable
from ensemble.runs.files import table_bytes

Action: TypeAlias = Literal["drop", "flip", "weight"]
ACTIONS: tuple[Action, ...] = get_args(Action)
"""What an overlay does to a row: leave it out of training, give it another label, or weigh its loss."""

COLUMNS = ("id", "action", "label", "weight")
"""The columns of an overlay."""


@dataclass(frozen=True)
class Change:
    """What an overlay does to one row.

    Attributes
    ----------
    action : {"drop", "flip", "weight"}
    label : int
        The label that the row is trained with, a class index. Without effect for a dropped row.
    weight : float
        The factor of the row's loss, in [0, 1]; 0 for a dropped row, 1 for a flipped one.
    """

    action: Action
    label: int
    weight: float


@dataclass(frozen=True)
class Overlay:
    """The changes of an overlay by row of the data set, and the content of its file."""

    changes: Mapping[int, Change]
    data: bytes = field(default=b"", repr=False)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.data).hexdigest()

    def rows(self, action: Action) -> NDArray[np.int64]:
        """Return the rows that have this action, ascending."""
        return np.array(sorted(row for row, change in self.changes.items() if change.action == action), np.int64)

    def labels(self, labels: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return the labels (n,) with those of flipped rows in place of the given ones."""
        changed = labels.copy()
        for row in self.rows("flip").tolist():
            changed[row] = self.changes[row].label
        return changed

    def weights(self, n: int) -> NDArray[np.float32]:
        """Return the factor of each row's loss (n,): 1 where the overlay does not weigh it."""
        weights = np.ones(n, np.float32)
        for row in self.rows("weight").tolist():
            weights[row] = self.changes[row].weight
        return weights


def changes_of(
    action: Action,
    rows: NDArray[np.integer[Any]],
    given: NDArray[np.integer[Any]],
    suggested: NDArray[np.integer[Any]],
    probability: NDArray[np.float64],
) -> dict[int, Change]:
    """Return the changes that do the same to each of some doubtful rows.

    A dropped row has the weight 0 and a flipped row gets the suggested label. A weighed row keeps its label, and its
    weight is the calibrated probability of this label, rounded to six digits.

    Parameters
    ----------
    action : {"drop", "flip", "weight"}
    rows : int array (s,)
    given, suggested : int array (s,)
        Class indices.
    probability : float64 array (s,)
        Of the given label, out of fold.

    Examples
    --------
    >>> changes_of("weight", np.array([7]), np.array([1]), np.array([0]), np.array([0.25]))
    {7: Change(action='weight', label=1, weight=0.25)}
    """
    labels = suggested if action == "flip" else given
    weights = {"drop": np.zeros(len(rows)), "flip": np.ones(len(rows)), "weight": probability.round(6)}[action]
    each = zip(rows.tolist(), labels.tolist(), weights.tolist(), strict=True)
    return {row: Change(action, label, weight) for row, label, weight in each}


def overlay_bytes(changes: Mapping[int, Change], ids: NDArray[np.str_], classes: Sequence[str] | None = None) -> bytes:
    """Return an overlay as CSV, in the order of the rows.

    Parameters
    ----------
    changes : mapping of int to Change
        By row.
    ids : str array (n,)
    classes : sequence of C str, optional
        The names of the classes, which are written in place of their indices.
    """
    import pandas as pd

    rows = sorted(changes)
    labels = ["" if changes[row].action == "drop" else _name(changes[row].label, classes) for row in rows]
    columns = {
        "id": [ids[row] for row in rows],
        "action": [changes[row].action for row in rows],
        "label": labels,
        "weight": [changes[row].weight for row in rows],
    }
    return table_bytes(pd.DataFrame(columns, dtype=object))


def read_overlay(
    path: Path, ids: NDArray[np.str_], labels: NDArray[np.int8], classes: Sequence[str] | None = None
) -> Overlay:
    """Read an overlay for a data set.

    Parameters
    ----------
    path : Path
        A CSV file with the columns id,action,label,weight.
    ids : str array (n,)
    labels : int8 array (n,)
        As given: a flipped row must get another one.
    classes : sequence of C str, optional
        The names of the classes, which the file may have in place of their indices.

    Raises
    ------
    DataError
        The file cannot be read, or a line names an unknown image, action, label or weight, or an image a second time;
        the message has the number of the line.
    """
    where = printable(path)
    with reading(where):
        data = path.read_bytes()
    row_of, changes = RowsById(ids), dict[int, Change]()
    for line, cells in decision_rows(csv_rows(as_text(data, where), where), where, COLUMNS):
        at = f"{where}: line {line}"
        row = row_of.find(cells["id"], at)
        if row in changes:
            raise DataError(at, f"{printable(cells['id'])} has a line already", "give every image one line")
        changes[row] = _change(cells, int(labels[row]), classes, at)
    return Overlay(changes, data)


def _change(cells: Mapping[str, str], given: int, classes: Sequence[str] | None, at: str) -> Change:
    if cells["action"] not in ACTIONS:
        raise DataError(
            at, f"the action must be {', '.join(ACTIONS)}; got '{printable(cells['action'])}'", "correct it"
        )
    action: Action = cells["action"]
    label = given if not cells["label"] and action != "flip" else label_of(cells["label"], classes, at)
    if (label == given) == (action == "flip") and cells["label"]:
        problem = "the label is the given one" if action == "flip" else "the label is not the given one"
        raise DataError(at, problem, "flip gives a row another label, drop and weight leave it as it is")
    try:
        weight = float(cells["weight"] or {"drop": 0, "flip": 1}[action])
    except (KeyError, ValueError):
        weight = math.nan
    expected = {"drop": weight == 0, "flip": weight == 1, "weight": 0 <= weight <= 1}[action]
    if not expected:
        bounds = {"drop": "0", "flip": "1", "weight": "from 0 to 1"}[action]
        raise DataError(at, f"the weight must be {bounds}; got '{printable(cells['weight'])}'", "correct it")
    return Change(action, label, weight)


def decision_rows(rows: Rows, where: str, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the line number and the cells by column of each row of a table with exactly these columns.

    Raises
    ------
    DataError
        The table has other columns, or a row has more or fewer cells.
    """
    header = [name.strip() for name in rows[0][1]] if rows else []
    if header != list(columns):
        problem = f"must have the columns {','.join(columns)}; got '{printable(','.join(header))}'"
        raise DataError(where, problem, "give the file as it was written")
    result = []
    for line, row in rows[1:]:
        if len(row) != len(columns):
            raise DataError(f"{where}: line {line}", f"has {len(row)} columns, not {len(columns)}", "correct it")
        result.append((line, dict(zip(columns, row, strict=True))))
    return result


class RowsById:
    """Finds the row of an id that a table names.

    An id may have the apostrophe with which thera's tables escape formulas. An id that is no valid text may be written
    with escapes, as `errors.printable` writes it.
    """

    def __init__(self, ids: NDArray[np.str_]) -> None:
        names = ids.tolist()
        self._rows = {name: row for row, name in enumerate(names)}
        self._escaped = {printable(name): row for row, name in enumerate(names) if not is_text(name)}

    def find(self, name: str, at: str) -> int:
        """Return the row of an id; raise `DataError` for the line `at` where there is none."""
        for candidate in (name, name[1:] if name.startswith("'") else name):
            if candidate in self._rows:
                return self._rows[candidate]
        if name in self._escaped:
            return self._escaped[name]
        raise DataError(at, f"'{printable(name)}' is no image of the run", "give the table of this run")


def is_text(name: str) -> bool:
    """Return whether an id can be written as UTF-8; a file name with other bytes cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def label_of(text: str, classes: Sequence[str] | None, at: str) -> int:
    """Return the class index of a label that a table has by name or, without names, by index.

    Raises
    ------
    DataError
        There is no such class.
    """
    names = list(classes) if classes is not None else ["0", "1"]
    if text in names:
        return names.index(text)
    raise DataError(at, f"'{printable(text)}' is no label of the run", f"its labels are {printable(', '.join(names))}")


def _name(label: int, classes: Sequence[str] | None) -> str:
    return str(label) if classes is None else classes[label]
