"""Opens decoded images as a memory map, and reads rows of it: without the disk reading what nobody asked for.

The system reads 128 KiB around each page of a memory map that it does not have. Random rows of 12 KB then cost 41 times
their bytes, once the images are more than the page cache holds (tests/benchmarks/large_store.py).
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def open_pixels(path: Path | str) -> NDArray[np.uint8]:
    """Return an array on disk as a memory map that is read page by page; `read_rows` announces what is to be read.

    Raises
    ------
    OSError, ValueError
        The file cannot be read, or is no array.
    """
    pixels: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    pages = pixels.base
    if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        pages.madvise(mmap.MADV_RANDOM)
    return pixels


def read_rows(pixels: NDArray[np.uint8], rows: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return some rows of an array as a copy; of a whole memory map, the disk reads all of them at the same time.

    Parameters
    ----------
    pixels : uint8 array (n, H, W, 3)
    rows : int array (r,)
    """
    pages = pixels.base if isinstance(pixels, np.memmap) else None
    if isinstance(pixels, np.memmap) and isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):
        offset, size = int(pixels.offset), pixels[:1].nbytes
        for row in rows.tolist():
            begin = offset + (row % len(pixels)) * size
            page = begin // mmap.PAGESIZE * mmap.PAGESIZE
            pages.madvise(mmap.MADV_WILLNEED, page, begin + size - page)
    taken: NDArray[np.uint8] = pixels[rows]
    return taken
