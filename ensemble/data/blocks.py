"""Walks over stored pixels in blocks, in threads, with progress. Memory does not grow with the number of images."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ensemble.machine import available_cores
from ensemble.progress import progress

BLOCK_BYTES = 2**23
"""The pixels that a thread holds at a time, in bytes: they fit the caches, and a signal is heard within a second."""

T = TypeVar("T")


def each_block(pixels: NDArray[np.uint8], work: Callable[[int, NDArray[np.uint8]], T], what: str) -> Iterator[T]:
    """Yield what `work` returns of each block of images, in order.

    Parameters
    ----------
    pixels : uint8 array (n, H, W, 3)
    work : callable
        Receives the number of the first row and the pixels (m, H, W, 3) of a block. It is called in threads.
    what : str
        What is done, for the bar.
    """
    n = len(pixels)
    rows = max(1, BLOCK_BYTES // max(1, int(np.prod(pixels.shape[1:]))))
    starts = range(0, n, rows)
    pool = ThreadPoolExecutor(len(available_cores()))
    try:
        with progress(n, what) as bar:
            done = pool.map(lambda start: work(start, np.asarray(pixels[start : start + rows])), starts)
            for start, result in zip(starts, done, strict=True):
                bar.advance(min(rows, n - start))
                yield result
    finally:
        pool.shutdown(cancel_futures=True)
        _release(pixels)


def _release(pixels: NDArray[np.uint8]) -> None:
    """Let the system take back the memory of pixels that are mapped from a file; they are read again when needed."""
    base: object = pixels
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and not pixels.flags.writeable:
        base.madvise(mmap.MADV_DONTNEED)


def grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luma (n, H, W) of images (n, H, W, 3), by the weights of ITU-R BT.601."""
    n, height, width, _ = pixels.shape
    rows = np.ascontiguousarray(pixels).reshape(n * height, width, 3)
    return np.asarray(cv2.cvtColor(rows, cv2.COLOR_RGB2GRAY), np.uint8).reshape(n, height, width)
