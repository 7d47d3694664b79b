"""Assigns rows to folds, stratified by class; rows that belong together stay in one fold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ensemble.config import seed_sequence
from ensemble.errors import ConfigError, DataError, printable

if TYPE_CHECKING:
    import pandas as pd

MAX_FOLDS = 127
"""The largest number of folds: a fold number is stored as int8."""

BLOCK = 2**16
"""The number of units that are assigned at a time as Python objects, which bounds the memory of these objects."""


@dataclass(frozen=True)
class Folds:
    """The fold that holds out each row: `fold_of` int8 array (n,) of 0 to `k` - 1, read-only."""

    fold_of: NDArray[np.int8]
    k: int
    seed: int

    def __post_init__(self) -> None:
        self.fold_of.setflags(write=False)


def together(digests: NDArray[np.bytes_], groups: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Return the unit of each row. Rows with an equal digest or group share a unit, and so do rows that others link.

    Parameters
    ----------
    digests : bytes array (n,)
    groups : int64 array (n,), optional

    Returns
    -------
    int64 array (n,)
        The number of the first row of the unit.

    Examples
    --------
    >>> together(np.array([b"a", b"b", b"a", b"c"]), np.array([1, 2, 3, 2]))
    array([0, 1, 0, 1])
    """
    _, unit = np.unique(digests, return_inverse=True)
    if groups is not None:
        from scipy.sparse import coo_array  # type: ignore[import-untyped, unused-ignore]
        from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped, unused-ignore]

        files, group = unit.max(initial=-1) + 1, np.unique(groups, return_inverse=True)[1]
        n = files + group.max(initial=-1) + 1
        links = coo_array((np.ones(len(unit), np.int8), (unit, files + group)), shape=(n, n))
        unit = connected_components(links, directed=False)[1][unit]
    _, first, unit = np.unique(unit, return_index=True, return_inverse=True)
    return first[unit].astype(np.int64)


def assign_folds(
    labels: NDArray[np.integer[Any]],
    units: NDArray[np.int64],
    k: int,
    seed: int,
    where: str = "labels",
    classes: Sequence[str] | None = None,
    strata: NDArray[np.integer[Any]] | None = None,
) -> Folds:
    """Assign units to `k` folds: the largest first, each to the fold with the fewest rows of the unit's classes.

    Where every row is a unit, the folds differ by at most one row in each class.

    Parameters
    ----------
    labels : int array (n,)
        Class indices, 0 to C - 1, all of them present.
    units : int64 array (n,)
        Rows of equal value stay together.
    k : int
        2 or more.
    seed : int
    where : str
        Where the labels are, for messages.
    classes : sequence of C str, optional
        The names of three or more classes. Without them, C - 1 is the greatest label, and at least 1.
    strata : int array (n,) or (n, t), optional
        What is balanced over the folds in place of the labels, such as combinations of several targets. A stratum may
        have fewer units than there are folds. Several columns are balanced at once.

    Raises
    ------
    DataError
        A class is absent, or has fewer units than there are folds.
    ConfigError
        `k` is out of range.
    """
    if not 2 <= k <= MAX_FOLDS:
        raise ConfigError("--folds", f"must be 2 to {MAX_FOLDS}; got {k}")
    refuse_small_classes(labels, units, k, where, classes)
    _, unit = np.unique(units, return_inverse=True)
    sizes = np.bincount(unit)
    rng = np.random.default_rng(seed_sequence(seed, "folds"))
    order = np.lexsort((rng.random(len(sizes)), -sizes))
    kind_of_unit, kinds, rows_of_strata = _kinds_of_unit(labels if strata is None else strata, unit)

    # The rows of a stratum count in inverse proportion to the square of its frequency, so that all are balanced alike.
    # The weights are integers, so that equal loads are equal exactly.
    multiple = math.lcm(*rows_of_strata)
    weights = [(multiple // rows) ** 2 for rows in rows_of_strata]
    rows_in_folds = [[0] * k for _ in weights]  # (strata, k)
    rows_of_fold = [0] * k
    fold_of_unit = np.empty(len(sizes), np.int8)
    for start in range(0, order.size, BLOCK):
        units_now = order[start : start + BLOCK]
        folds_now = []
        for kind, size in zip(kind_of_unit[units_now].tolist(), sizes[units_now].tolist(), strict=True):
            if len(kinds[kind]) == 1:  # a common factor of all loads changes no order
                loads = rows_in_folds[kinds[kind][0][0]]
            else:
                loads = [0] * k
                for stratum, rows in kinds[kind]:
                    weight = rows * weights[stratum]
                    loads = [load + weight * there for load, there in zip(loads, rows_in_folds[stratum], strict=True)]
            fold = min(zip(loads, rows_of_fold, range(k), strict=True))[2]
            rows_of_fold[fold] += size
            for stratum, rows in kinds[kind]:
                rows_in_folds[stratum][fold] += rows
            folds_now.append(fold)
        fold_of_unit[units_now] = folds_now
    return Folds(fold_of_unit[unit], k, seed)


def refuse_small_classes(
    labels: NDArray[np.integer[Any]],
    units: NDArray[np.int64],
    k: int,
    where: str = "labels",
    classes: Sequence[str] | None = None,
) -> None:
    """Raise `DataError` where a class is absent, or has fewer units than there are folds; see `assign_folds`."""
    count = max(2, len(classes or ()), int(labels.max(initial=0)) + 1)
    names = [printable(name) for name in classes] if classes and count > 2 else list(map(str, range(count)))
    rows_of_class = np.bincount(labels, minlength=count).tolist()
    pairs = np.unique(np.unique(units, return_inverse=True)[1] * count + labels)  # a unit and one of its classes
    units_of_class = np.bincount(pairs % count, minlength=count).tolist()
    for name, rows, units_of_label in zip(names, rows_of_class, units_of_class, strict=True):
        if rows == 0:
            which = "both classes" if count == 2 else "every class"
            problem = f"{which} must be present; none of {len(labels)} labels is {name}"
            raise DataError(where, problem, "add images of this class")
        if units_of_label < k:
            groups = "1 group" if units_of_label == 1 else f"{units_of_label} groups"
            same = "" if units_of_label == rows else f" in {groups} that stay together"
            remedy = f"use --folds {units_of_label} at most" if units_of_label > 1 else "add images of this class"
            images = "1 image" if rows == 1 else f"{rows} images"
            raise DataError(where, f"{images} of class {name}{same} cannot fill {k} folds", remedy)


def _kinds_of_unit(
    strata: NDArray[np.integer[Any]], unit: NDArray[np.int64]
) -> tuple[NDArray[np.int32], list[tuple[tuple[int, int], ...]], list[int]]:
    """Return the kind of each unit, the strata of each kind with its rows of each, and the rows of each stratum.

    Units of one kind have equally many rows of each stratum. `strata` (n,) or (n, t) are any integers, and numbered
    from 0 in the result; `unit` (n,) is numbered from 0.
    """
    rows_of_strata: list[int] = []
    pairs_of_columns = []
    columns = strata.reshape(len(strata), -1).T
    most = sum(np.unique(column).size for column in columns)
    for column in columns:
        _, stratum, rows = np.unique(column, return_inverse=True, return_counts=True)
        stratum += unit * most + len(rows_of_strata)
        pairs_of_columns.append(stratum)
        rows_of_strata += rows.tolist()
    pairs, counts = np.unique(np.concatenate(pairs_of_columns), return_counts=True)
    del pairs_of_columns, stratum
    strata_of_unit = np.bincount(pairs // most)
    pairs %= most
    pairs += counts * most  # a stratum and its rows in the unit, as one number
    stops = np.cumsum(strata_of_unit)
    kind_of_unit = np.empty(stops.size, np.int32)
    alone = strata_of_unit == 1
    numbers, kind_of_unit[alone] = np.unique(pairs[stops[alone] - 1], return_inverse=True)
    kinds = {(number,): kind for kind, number in enumerate(numbers.tolist())}
    for u in np.flatnonzero(~alone).tolist():
        mixed = tuple(pairs[stops[u] - strata_of_unit[u] : stops[u]].tolist())
        kind_of_unit[u] = kinds.setdefault(mixed, len(kinds))
    strata_of_kinds = [tuple((number % most, number // most) for number in kind) for kind in kinds]
    return kind_of_unit, strata_of_kinds, rows_of_strata


def _are_distinct(ids: NDArray[Any]) -> bool:
    if ids.dtype.hasobject:
        return len(set(ids.tolist())) == ids.size
    if not (ids[1:] > ids[:-1]).all():  # most ids rise, which needs no sorting
        ids = np.sort(ids)
    return not (ids[1:] == ids[:-1]).any()


@dataclass(frozen=True, eq=False)
class FoldTable:
    """The ids, labels, folds and groups of the rows of a run; logits are joined to it by row.

    Parameters
    ----------
    ids : str array (n,)
        Distinct.
    labels : int8 array (n,)
        Class indices: 0 or 1, or 0 to C - 1 where there are C > 2 classes and each of them occurs.
    fold_of : int8 array (n,)
        The fold that holds the row out.
    groups : int64 array (n,), optional
        Rows of one group are in one fold.

    Raises
    ------
    DataError
        An array does not have the shape or values above.

    Notes
    -----
    The arrays are read-only.
    """

    ids: NDArray[Any]
    labels: NDArray[np.int8]
    fold_of: NDArray[np.int8]
    groups: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        n = np.size(self.labels)
        types = {"ids": None, "labels": np.int8, "fold_of": np.int8, "groups": np.int64}
        for name, type_ in types.items():
            if getattr(self, name) is None:
                continue
            array = np.asarray(getattr(self, name), type_).view()
            if array.shape != (n,):
                raise DataError("fold table", f"{name} must have shape ({n},); got {array.shape}")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if not _are_distinct(self.ids):
            raise DataError("fold table", f"{n} ids must be distinct")
        if not np.isin(self.labels, (0, 1)).all():
            # More than two classes are known only by their labels, so a gap in them would be a class without images.
            gaps = self.labels.min() < 0 or np.unique(self.labels).size < self.classes
            if gaps:
                raise DataError("fold table", f"labels must be 0 or 1, or 0 to {self.classes - 1} with each of them")
        if self.groups is not None:
            _, first, group_of = np.unique(self.groups, return_index=True, return_inverse=True)
            split = self.fold_of != self.fold_of[first][group_of]
            if split.any():
                raise DataError("fold table", f"group {self.groups[split][0]} must lie in one fold; it is split")

    @property
    def k(self) -> int:
        """The number of folds."""
        return int(self.fold_of.max()) + 1

    @property
    def classes(self) -> int:
        """The number of classes C, at least 2."""
        return max(2, int(self.labels.max(initial=0)) + 1)

    def reordered(self, rows: NDArray[np.int64]) -> FoldTable:
        """Return the table of `rows`, in their order."""
        groups = None if self.groups is None else self.groups[rows]
        return FoldTable(self.ids[rows], self.labels[rows], self.fold_of[rows], groups)

    def to_pandas(self) -> pd.DataFrame:
        """Return the columns id, label, fold, and group where there are groups."""
        import pandas as pd

        columns: dict[str, Any] = {"id": pd.Series(self.ids.tolist(), dtype=object)}
        columns |= {"label": self.labels, "fold": self.fold_of}
        return pd.DataFrame(columns if self.groups is None else columns | {"group": self.groups})
