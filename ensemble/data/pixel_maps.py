"""Pictures of a labelled set: the mean image of each class, and the pixels that differ most between the classes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ensemble.data.blocks import each_block, grey

MOST_IMAGES = 30_000
"""The images that the scores of pixels are computed from, evenly spaced over the set. More of them change no
picture."""

LARGEST_MAP = 64
"""The largest side in pixels of the images that scores are computed from. Larger images are made smaller."""

PERCENTILE = 10
"""The share of the pixels that are marked as telling, in percent."""

COLUMNS = 256
"""The pixels whose scores are computed at a time, which bounds the memory."""


MEAN_ROWS = 2000
"""The number of images, evenly spaced in the data, whose mean is the mean image. The mean of 2,000 images with a
standard deviation of 80 grey levels has a standard error of 2."""


@dataclass(frozen=True)
class TellingPixels:
    """How much each pixel's grey level differs between the classes, and which pixels differ most.

    Attributes
    ----------
    scores : float64 array (h, w)
        The share of the variance of the grey level that the classes explain, 0 to 1 (eta squared).
    chosen : bool array (h, w)
        The `PERCENTILE` percent of the pixels with the greatest F statistics.
    images : int
        The images that this was computed from.
    """

    scores: NDArray[np.float64]
    chosen: NDArray[np.bool_]
    images: int


def class_means(pixels: NDArray[np.uint8], labels: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    """Return the mean image of each class, (classes, H, W, 3); NaN for a class without images."""

    def of_block(start: int, block: NDArray[np.uint8]) -> list[NDArray[np.uint32] | None]:
        of_rows = labels[start : start + len(block)]
        return [block[of_rows == c].sum(0, dtype=np.uint32) if (of_rows == c).any() else None for c in range(classes)]

    sums = np.zeros((classes, *pixels.shape[1:]), np.int64)
    for part in each_block(pixels, of_block, "average"):
        for c, of_class in enumerate(part):
            if of_class is not None:
                sums[c] += of_class
    counts = np.bincount(labels, minlength=classes).astype(float).reshape(-1, 1, 1, 1)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / counts)


def mean_image(pixels: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Return the mean of up to `MEAN_ROWS` images, which are evenly spaced.

    Parameters
    ----------
    pixels : uint8 array (n, H, W, 3)
        It may be a memory map.
    rows : int array (r,), optional
        The images to average; all by default.

    Returns
    -------
    uint8 array (H, W, 3)
    """
    rows = np.arange(len(pixels)) if rows is None else rows
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, MEAN_ROWS).astype(int))]
    total = np.zeros(pixels.shape[1:], np.int64)
    for row in rows:
        total += pixels[row]
    mean: np.ndarray = np.round(total / len(rows)).astype(np.uint8)
    return mean


def telling_pixels(pixels: NDArray[np.uint8], labels: NDArray[np.integer]) -> TellingPixels | None:
    """Score the pixels of grey images by the F test of the classes; None where fewer than two classes are present.

    Parameters
    ----------
    pixels : uint8 array (n, H, W, 3)
    labels : int array (n,)
    """
    from sklearn.feature_selection import SelectPercentile, f_classif

    rows = np.unique(np.linspace(0, len(pixels) - 1, min(len(pixels), MOST_IMAGES)).astype(int))
    y = labels[rows]
    classes, n = np.unique(y).size, len(rows)
    if classes < 2 or n <= classes:
        return None
    height, width = (min(side, LARGEST_MAP) for side in pixels.shape[1:3])

    def of_block(start: int, block: NDArray[np.uint8]) -> NDArray[np.uint8]:
        kept = block[rows[(rows >= start) & (rows < start + len(block))] - start]
        luma = grey(kept)
        if luma.shape[1:] != (height, width):
            luma = np.array([cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in luma])
        return luma.reshape(len(luma), -1)

    x = np.concatenate([part for part in each_block(pixels, of_block, "score pixels") if len(part)])

    def scores_of(x: NDArray[np.uint8], y: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        f, p = np.zeros(x.shape[1]), np.ones(x.shape[1])
        varying = np.flatnonzero((x != x[0]).any(axis=0))  # a pixel that is the same in all images has no score
        for start in range(0, len(varying), COLUMNS):
            columns = varying[start : start + COLUMNS]
            with np.errstate(divide="ignore"):  # a pixel that is the same within each class separates them
                f[columns], p[columns] = f_classif(x[:, columns].astype(np.float64), y)
        return np.nan_to_num(f, posinf=1e300), p

    selector = SelectPercentile(scores_of, percentile=PERCENTILE).fit(x, y)
    f, inside = selector.scores_, n - classes
    eta = f * (classes - 1) / (f * (classes - 1) + inside)  # the F statistic is a monotone function of eta squared
    return TellingPixels(eta.reshape(height, width), selector.get_support().reshape(height, width), n)
