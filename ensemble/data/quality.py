"""Finds images that may be faulty: constant, blank, dark, bright, blurred or odd ones. The rest is said to be ordinary.

Some limits are absolute, since they say what an image can show at all. Others are relative to the set: how sharp or how
varied images are depends on what they show. A relative limit is in robust standard deviations from the median, where
the median absolute deviation times 1.4826 estimates the standard deviation; faulty images hardly change either of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ensemble.data.blocks import each_block, grey
from ensemble.data.dataset import Source
from ensemble.data.hashes import LEAST_CONTRAST
from ensemble.data.pixels import file_format, inspect
from ensemble.errors import DataError
from ensemble.machine import available_cores
from ensemble.progress import progress

DARK, BRIGHT = 64, 192
"""Grey levels of 0 to 255, a quarter and three quarters of the range. In a dark image 95 % of the pixels are below
the first, in a bright one 95 % are above the second. Of 80,000 photographs of faces, 8 were that dark and none that
bright."""

RELATIVE = 3.5
"""The distance from the median, in robust standard deviations, beyond which an image is blurred or odd. A normal
distribution has one value in 4,300 on one side beyond it. Iglewicz and Hoaglin (1993) recommend it for outliers."""

ALSO_DARKER = 3.0
"""The distance from the median, in robust standard deviations, that a dark or a bright image must have too, so that a
set of dark images, such as of stars, is not listed whole."""

BLURRED_SHARE = 0.25
"""A blurred image has at most this share of the median sharpness too, so that a set of equally sharp images has none. A
Gaussian blur with a standard deviation of one pixel leaves about this share."""

THUMBNAIL = 8
"""The side in pixels of the thumbnails by which odd images are found. They show layout and colours and no details."""

COMPONENTS = 24
"""The principal components of the thumbnails that are typical of the set. They explain 93 % of the variance of the
faces."""

IMAGES_PER_COMPONENT = 10
"""The least images for each component: with fewer, an image itself decides on what is typical."""

LEAST_LEVELS, LEAST_LOG = 1.0, 0.1
"""The least robust standard deviations of grey levels and of logarithms. They keep a set of nearly equal images from
having outliers by rounding."""


@dataclass(frozen=True)
class FileHeader:
    """Format and size of a file: `format` such as ``"JPEG"``; `width` and `height` in pixels."""

    format: str
    width: int
    height: int


@dataclass(frozen=True)
class Measures:
    """What is measured of each image.

    Attributes
    ----------
    constant : bool array (n,)
        Whether all pixels are equal.
    contrast : float32 array (n,)
        The standard deviation of the luma, in grey levels.
    low, high : float32 arrays (n,)
        The grey levels that 5 % and 95 % of the pixels are below.
    sharpness : float32 array (n,)
        The variance of the Laplacian of the luma, which a 3 × 3 blur has freed of noise, as a share of the variance of
        the luma.
    thumbnails : float32 array (n, 192)
        Of `THUMBNAIL` × `THUMBNAIL` pixels, in RGB.
    """

    constant: NDArray[np.bool_]
    contrast: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    thumbnails: NDArray[np.float32]


@dataclass(frozen=True)
class Fault:
    """A finding: the `row` of the image, the `kind`, and a `detail` for people."""

    row: int
    kind: str
    detail: str


def read_headers(source: Source, upright: bool = False) -> list[FileHeader | None]:
    """Return format and size of each file of a source; None where the header cannot be read.

    With `upright`, the size is that once the EXIF orientation is applied.
    """

    def of_row(row: int) -> FileHeader | None:
        try:
            data = source.read(row)
            header = inspect(data, source.names[row])
        except DataError:
            return None
        height, width = header.upright_size if upright else (header.height, header.width)
        return FileHeader(file_format(data), width, height)

    def of_rows(rows: range) -> list[FileHeader | None]:
        return [of_row(row) for row in rows]

    step, n, headers = 64, len(source), []
    with progress(n, "read headers") as bar, ThreadPoolExecutor(len(available_cores())) as pool:
        for part in pool.map(of_rows, [range(start, min(start + step, n)) for start in range(0, n, step)]):
            bar.advance(len(part))
            headers += part
    return headers


def measure(pixels: NDArray[np.uint8]) -> Measures:
    """Measure images (n, H, W, 3)."""
    side = (THUMBNAIL, THUMBNAIL)

    def of_block(start: int, block: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        luma = grey(block)
        n = len(luma)
        variance = luma.reshape(n, -1).astype(np.float32).var(axis=1)
        sample = luma[:, :: 1 + luma.shape[1] // 64, :: 1 + luma.shape[2] // 64].reshape(n, -1)
        at = (sample.shape[1] // 20, sample.shape[1] - 1 - sample.shape[1] // 20)
        ordered = np.partition(sample, at, axis=1)[:, at]
        edges = [cv2.Laplacian(cv2.GaussianBlur(image, (3, 3), 0), cv2.CV_32F).var() for image in luma]
        constant = (block == block[:, :1, :1]).all(axis=(1, 2, 3))
        thumbnails = np.stack([cv2.resize(image, side, interpolation=cv2.INTER_AREA) for image in block])
        numbers = np.column_stack([constant, np.sqrt(variance), ordered, np.array(edges) / np.maximum(variance, 1e-3)])
        return numbers.astype(np.float32), thumbnails.reshape(n, -1).astype(np.float32)

    parts = list(each_block(pixels, of_block, "measure"))
    numbers = np.concatenate([part[0] for part in parts])
    thumbnails = np.concatenate([part[1] for part in parts])
    return Measures(numbers[:, 0] > 0, numbers[:, 1], numbers[:, 2], numbers[:, 3], numbers[:, 4], thumbnails)


def find_faults(measures: Measures) -> list[Fault]:
    """Find the images that may be faulty, by kind: constant, blank, dark, bright, blurred, odd; worst first in each.

    A constant or blank image is not judged further, and the others are compared among themselves. Less than
    `IMAGES_PER_COMPONENT` of these have no odd ones.
    """
    constant = measures.constant
    blank = ~constant & (measures.contrast < LEAST_CONTRAST)
    faults = [
        *(Fault(row, "constant", "every pixel has the same colour") for row in np.flatnonzero(constant).tolist()),
        *_listed(blank, measures.contrast, "blank", "contrast {value:.1f} of 255 grey levels", measures.contrast),
    ]
    judged = np.flatnonzero(~constant & ~blank)
    if judged.size:
        for fault in _relative_faults(
            measures.low[judged], measures.high[judged], measures.sharpness[judged], measures.thumbnails[judged]
        ):
            faults.append(Fault(int(judged[fault.row]), fault.kind, fault.detail))
    return faults


def _relative_faults(
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    sharpness: NDArray[np.float32],
    thumbnails: NDArray[np.float32],
) -> Iterator[Fault]:
    """Yield the faults of images that show something, worst first in each kind."""
    darkness, brightness = -robust_scores(high, LEAST_LEVELS), robust_scores(low, LEAST_LEVELS)
    dark = (high < DARK) & (darkness > ALSO_DARKER)
    yield from _listed(dark, -darkness, "dark", "95 % of the pixels are below grey level {value:.0f}", high)
    bright = (low > BRIGHT) & (brightness > ALSO_DARKER)
    yield from _listed(bright, -brightness, "bright", "95 % of the pixels are above grey level {value:.0f}", low)
    logs = np.log(np.maximum(sharpness, 1e-6))
    blur, share = -robust_scores(logs, LEAST_LOG), np.exp(logs - np.median(logs))
    blurred = (blur > RELATIVE) & (share < BLURRED_SHARE)
    yield from _listed(blurred, -blur, "blurred", "{value:.0f} % of the set's median sharpness", 100 * share)
    oddness = odd_scores(thumbnails)
    detail = "layout and colours lie {value:.1f} standard deviations from the set's"
    yield from _listed(oddness > RELATIVE, -oddness, "odd", detail, oddness)


def odd_scores(thumbnails: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how far each image (n, d) lies from what is typical, in robust standard deviations; 0 for few images.

    The distance is the larger of two: how unusual the amounts of the set's principal components are (the Mahalanobis
    distance), and how much of the image these components do not explain. Both are compared with the set on a
    logarithmic scale.
    """
    n, d = thumbnails.shape
    k = min(COMPONENTS, n // IMAGES_PER_COMPONENT, d - 1)
    if k == 0:
        return np.zeros(n)
    centred = thumbnails.astype(np.float64) - np.median(thumbnails, axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred / n)
    variances, directions = variances[::-1][:k], directions[:, ::-1][:, :k]
    amounts = centred @ directions
    distance = (amounts**2 / np.maximum(variances, 1e-3)).sum(axis=1)
    rest = np.maximum((centred**2).sum(axis=1) - (amounts**2).sum(axis=1), 0)
    # one grey level squared for each of d values is what rounding leaves
    logs = np.log(distance + 1e-3), np.log(rest + d)
    return np.maximum(*(robust_scores(each, LEAST_LOG) for each in logs))


def robust_scores(values: NDArray[np.floating], least: float) -> NDArray[np.float64]:
    """Return the distances of values (n,) from their median, in robust standard deviations of at least `least`.

    Examples
    --------
    >>> robust_scores(np.array([1.0, 2.0, 3.0, 4.0, 100.0]), 1.0).round(1)
    array([-1.3, -0.7,  0. ,  0.7, 65.4])
    """
    distances = values.astype(np.float64) - np.median(values)
    return np.asarray(distances / max(1.4826 * float(np.median(np.abs(distances))), least))


def _listed(
    chosen: NDArray[np.bool_], order: NDArray[np.floating], kind: str, detail: str, values: NDArray[np.floating]
) -> Iterator[Fault]:
    """Yield a fault for each row that is chosen, in the order of their values in `order`."""
    rows = np.flatnonzero(chosen)
    for row in rows[np.argsort(order[rows], kind="stable")].tolist():
        yield Fault(row, kind, detail.format(value=values[row]))
