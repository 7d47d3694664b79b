"""Several arrays of images as one, so that images of two stores can be trained on together without a copy on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ensemble.members.processes import MappedPixels


class JoinedArray:
    """Arrays (n_i, H, W, 3) one after the other; it can be indexed by an int, a slice, or an int array (r,)."""

    def __init__(self, arrays: tuple[np.ndarray, ...]) -> None:
        self._arrays, self._ends = arrays, np.cumsum([len(array) for array in arrays])
        self.shape, self.dtype = (int(self._ends[-1]), *arrays[0].shape[1:]), arrays[0].dtype

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, slice):
            key = np.arange(*key.indices(len(self)))
        rows = np.atleast_1d(np.asarray(key))
        pixels = np.empty((len(rows), *self.shape[1:]), self.dtype)
        part_of = np.searchsorted(self._ends, rows, side="right")
        for part, array in enumerate(self._arrays):
            inside = part_of == part
            if inside.any():
                pixels[inside] = array[rows[inside] - (self._ends[part] - len(array))]
        return pixels if np.ndim(key) else pixels[0]


@dataclass(frozen=True)
class JoinedPixels:
    """The images of several `MappedPixels`, in their order; it stands for one of them in a `FoldJob`."""

    parts: tuple[MappedPixels, ...]

    @cached_property
    def array(self) -> Any:
        """The images (n, H, W, 3), which can be indexed by rows."""
        return JoinedArray(tuple(part.array for part in self.parts))

    @property
    def copied_bytes(self) -> int:
        """The memory of the copy that each process has."""
        return sum(part.copied_bytes for part in self.parts)

    def __reduce__(self) -> Any:
        return JoinedPixels, (self.parts,)
