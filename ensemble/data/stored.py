"""Finds the decoded images of a run in its store, by the hashes of the image files, without these files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.data.form import Form
from ensemble.data.store import read_store, store_key


def find_pixels(store: Path, digests: NDArray[np.bytes_], resize: int | None, exif: str) -> NDArray[np.uint8] | None:
    """Return the decoded images whose files have these hashes; None where the store does not have them.

    Parameters
    ----------
    store : Path
        The folder of decoded images, `pixels/` in a run's folder.
    digests : S64 array (n,)
        SHA-256 of the image files, in order.
    resize : int or None
    exif : {"ignore", "apply"}
        As in `load_dataset`, when the images were decoded.

    Returns
    -------
    uint8 memory map (n, H, W, 3), or None

    Raises
    ------
    ArtifactError
        The store is damaged.
    """
    form = Form(resize, exif == "apply")
    for path in sorted(store.glob("*/digests.txt")):
        stored = np.array(path.read_bytes().split(), "S64")  # also of files that could not be decoded
        if path.parent.name != store_key(stored, form):
            continue
        pixels, _, bad = read_store(path.parent)
        if np.array_equal(np.delete(stored, sorted(bad)), digests):
            return pixels
    return None
