"""Folds that are stratified by class and never split rows that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ensemble.config import seed_sequence
from ensemble.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

MAX_FOLDS = 127


@dataclass(frozen=True)
class Folds:
    """Which fold holds out which row: `fold_of` int8 array (n,) of 0 to `k` - 1, read-only."""

    fold_of: NDArray[np.int8]
    k: int
    seed: int

    def __post_init__(self) -> None:
        self.fold_of.setflags(write=False)


def together(digests: NDArray[np.bytes_], groups: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Return the unit of every row: rows of one digest or one group, or linked through others, are one unit.

    Parameters
    ----------
    digests : bytes array (n,)
    groups : int64 array (n,), optional

    Returns
    -------
    int64 array (n,)
        The first row of the unit.

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


def assign_folds(labels: NDArray[np.int8], units: NDArray[np.int64], k: int, seed: int) -> Folds:
    """Deal units out to `k` folds, the heaviest first, each to the fold that holds least of its classes.

    Where every row is a unit, the folds differ by at most one row in each class.

    Parameters
    ----------
    labels : int8 array (n,)
        0 or 1, both present.
    units : int64 array (n,)
        Rows of equal value stay together.
    k : int
        2 or more.
    seed : int

    Raises
    ------
    DataError
        One class only, or fewer units of a class than folds.
    ConfigError
        `k` is out of range.
    """
    if not 2 <= k <= MAX_FOLDS:
        raise ConfigError("--folds", f"must be 2 to {MAX_FOLDS}; got {k}")
    unit, held = _composition(labels, units)
    for label, (rows, holders) in enumerate(zip(held.sum(0), (held > 0).sum(0), strict=True)):
        if rows == 0:
            raise DataError("labels", f"both classes must be present; none of {len(labels)} labels is {label}")
        if holders < k:
            same = "" if holders == rows else f" in {holders} groups that stay together"
            remedy = f"use --folds {holders} at most" if holders > 1 else "more images of it are needed"
            raise DataError("labels", f"{rows} images of class {label}{same} cannot fill {k} folds", remedy)
    rng = np.random.default_rng(seed_sequence(seed, "folds"))
    order = np.lexsort((rng.random(len(held)), -held.sum(1)))
    weight_zero, weight_one = (held.sum(0)[::-1] ** 2).tolist()
    zeros, ones = [0] * k, [0] * k

    def cost(fold: int) -> tuple[int, int]:
        load = zero * zeros[fold] * weight_zero + one * ones[fold] * weight_one
        return load, zeros[fold] + ones[fold]

    fold_of_unit = np.empty(len(held), np.int8)
    for u, (zero, one) in zip(order, held[order].tolist(), strict=True):
        fold_of_unit[u] = fold = min(range(k), key=cost)
        zeros[fold] += zero
        ones[fold] += one
    return Folds(fold_of_unit[unit], k, seed)


def _composition(labels: NDArray[np.int8], units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the unit of each row (n,), numbered from 0, and the rows of each class that a unit holds (u, 2)."""
    _, unit = np.unique(units, return_inverse=True)
    held = np.bincount(2 * unit + labels, minlength=2 * (unit.max(initial=-1) + 1)).reshape(-1, 2)
    return unit, held


@dataclass(frozen=True, eq=False)
class FoldTable:
    """The table that travels with the logits: an image a row, its label, fold and group.

    Parameters
    ----------
    ids : str array (n,)
        Distinct.
    labels : int8 array (n,)
        0 or 1.
    fold_of : int8 array (n,)
        The fold that holds the row out.
    groups : int64 array (n,), optional
        Rows of one group are in one fold.

    Raises
    ------
    DataError
        Any of the above does not hold.

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
        if len(set(self.ids.tolist())) < n:
            raise DataError("fold table", f"{n} ids must be distinct")
        if not np.isin(self.labels, (0, 1)).all():
            raise DataError("fold table", "labels must be 0 or 1")
        if self.groups is not None:
            _, first, group_of = np.unique(self.groups, return_index=True, return_inverse=True)
            split = self.fold_of != self.fold_of[first][group_of]
            if split.any():
                raise DataError("fold table", f"group {self.groups[split][0]} must lie in one fold; it is split")

    @property
    def k(self) -> int:
        """The number of folds."""
        return int(self.fold_of.max()) + 1

    def reordered(self, rows: NDArray[np.int64]) -> FoldTable:
        """Return the table of some rows in a given order."""
        groups = None if self.groups is None else self.groups[rows]
        return FoldTable(self.ids[rows], self.labels[rows], self.fold_of[rows], groups)

    def to_pandas(self) -> pd.DataFrame:
        """Return the columns id, label, fold, and group where there are groups."""
        import pandas as pd

        columns: dict[str, Any] = {"id": pd.Series(self.ids.tolist(), dtype=object)}
        columns |= {"label": self.labels, "fold": self.fold_of}
        return pd.DataFrame(columns if self.groups is None else columns | {"group": self.groups})

    @classmethod
    def from_pandas(cls, table: pd.DataFrame) -> FoldTable:
        """Read the columns that `to_pandas` gives."""
        groups = table["group"].to_numpy() if "group" in table else None
        return cls(np.array(table["id"].tolist(), np.str_), table["label"].to_numpy(), table["fold"].to_numpy(), groups)
