"""Finds decoded images again in the store of a run, by the hashes of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.data.store import read_store


def find_pixels(
    store: Path, digests: NDArray[np.bytes_], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
    """Return the pixels of a store and the row of each image in them; None where no store holds all of the images.

    Parameters
    ----------
    store : Path
        `pixels/` of a run.
    digests : S64 array (n,)
        SHA-256 of the image files, in hexadecimal.
    size : tuple of int
        Height and width of the images as they were trained, in pixels.

    Returns
    -------
    uint8 memory map (m, H, W, 3), int64 array (n,)

    Raises
    ------
    ArtifactError
        The store that holds them is damaged.
    """
    for path in sorted(store.glob("*/store.json")):
        if not (path.parent / "digests.txt").is_file():
            continue
        lines: NDArray[Any] = np.array((path.parent / "digests.txt").read_bytes().split(), "S64")
        if not np.isin(digests, lines).all():
            continue
        pixels, _, bad = read_store(path.parent)
        if pixels.shape[1:3] != tuple(size):
            continue
        good = np.delete(lines, sorted(bad))
        row_of = {digest: row for row, digest in enumerate(good.tolist())}
        if all(digest in row_of for digest in digests.tolist()):
            return pixels, np.array([row_of[digest] for digest in digests.tolist()], np.int64)
    return None
