"""What the rest of the package sees of the data: images that can be read (`Source`), and decoded ones (`Dataset`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be used: the `name` of its file, and the `reason`."""

    name: str
    reason: str


@dataclass(frozen=True)
class Source:
    """Images that can be read by row, with their ids, labels and groups. Reading is thread-safe.

    Attributes
    ----------
    where : str
        Where the images are, for messages.
    ids : str array (n,)
        The number of a numbered image, ``"000001"``; otherwise the name of its file; the path in a manifest or a list;
        ``"0/name.jpg"`` in class folders.
    labels : int8 array (n,) or None
        Class indices, 0 to C - 1.
    groups : int64 array (n,) or None
        Rows of one group stay in one fold.
    names : tuple of str
        The file of each row, as `fetch` takes it.
    fetch : callable
        Returns the bytes of a name; raises `DataError`.
    notes : tuple of str
        Remarks on how the labels were read, a line each.
    classes : tuple of C str, or None
        The names of the classes; None for two classes that are 0 and 1. Of three or more classes, integers are names
        too: ``("0", "1", "2")``.
    labels_where : str
        Where the labels are, for messages; empty if they are where the images are.
    """

    where: str
    ids: NDArray[np.str_]
    labels: NDArray[np.int8] | None
    groups: NDArray[np.int64] | None
    names: tuple[str, ...]
    fetch: Callable[[str], bytes]
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    labels_where: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, row: int) -> bytes:
        """Return the bytes of the file of a row; raise `DataError` where it cannot be read."""
        return self.fetch(self.names[row])

    def rows(self, rows: NDArray[Any]) -> Source:
        """Return the images of these rows, in their order."""
        labels = None if self.labels is None else self.labels[rows]
        groups = None if self.groups is None else self.groups[rows]
        names = tuple(self.names[row] for row in rows.tolist())
        return replace(self, ids=self.ids[rows], labels=labels, groups=groups, names=names)


@dataclass(frozen=True)
class Dataset:
    """Decoded images with their ids, labels and groups; every array is read-only.

    Attributes
    ----------
    ids : str array (n,)
    labels : int8 array (n,) or None
        Class indices, 0 to C - 1.
    groups : int64 array (n,) or None
    pixels : uint8 memory map (n, H, W, 3)
        RGB.
    digests : bytes array (n,), dtype S64
        SHA-256 of every file, in hexadecimal.
    fingerprint : str
        SHA-256 of the ids, labels, groups and digests, the size and the version of the image policy; these determine
        the pixels.
    notes : tuple of str
        Remarks on the data, a line each.
    classes : tuple of C str, or None
        The names of the classes; None for two classes that are 0 and 1. Of three or more classes, integers are names
        too: ``("0", "1", "2")``.
    bad : tuple of BadImage
        The images that cannot be used and were left out; the arrays have no rows for them.
    exif : {"ignore", "apply"}
        Whether EXIF orientations were ignored or applied.
    """

    ids: NDArray[np.str_]
    labels: NDArray[np.int8] | None
    groups: NDArray[np.int64] | None
    pixels: NDArray[np.uint8]
    digests: NDArray[np.bytes_]
    fingerprint: str
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    bad: tuple[BadImage, ...] = ()
    exif: str = "ignore"

    def __post_init__(self) -> None:
        for array in (self.ids, self.labels, self.groups, self.pixels, self.digests):
            if array is not None:
                array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image, in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


def is_numbered(ids: NDArray[np.str_], first: int = 1) -> bool:
    """Return whether the names of n images, without folder and suffix, are the numbers `first` onwards in this order.

    Line i of a label file can only then say which image it labels.

    >>> is_numbered(np.array(["img/001.png", "img/002.png"])), is_numbered(np.array(["1", "3"]))
    (True, False)
    """
    stems = (PurePosixPath(name).stem for name in ids.tolist())
    return all(stem.isdecimal() and stem.isascii() and int(stem) == i for i, stem in enumerate(stems, first))
