"""Small copies of images, as WebP files that fit a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

SIDES_AND_QUALITIES = ((96, 75), (96, 50), (64, 75), (64, 40), (48, 40), (32, 30), (24, 10))
"""The largest side of an image in pixels with its WebP quality, the best first: the first pair that fits is used."""

COLUMNS = 12
"""The images of a row of a mosaic."""

GAP = 2
"""The white pixels between the images of a mosaic."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


def small(image: NDArray[Any], side: int) -> NDArray[Any]:
    """Return an image (h, w, 3) with at most this side, in pixels; a smaller one stays as it is."""
    import cv2

    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA))


def thumbnails(images: Mapping[K, NDArray[np.uint8]], budget: int) -> dict[K, bytes]:
    """Return RGB images (h, w, 3) as WebP files of at most `budget` bytes together, at the best quality that fits."""
    return _fitting(images, small, budget)


def mosaics(samples: Mapping[K, NDArray[np.uint8]], budget: int) -> dict[K, bytes]:
    """Return each set of RGB images (k, h, w, 3) as one WebP file, of at most `budget` bytes together."""
    return _fitting(samples, lambda images, side: _mosaic([small(image, side) for image in images]), budget)


def _fitting(images: Mapping[K, T], shrink: Callable[[T, int], NDArray[np.uint8]], budget: int) -> dict[K, bytes]:
    encoded: dict[K, bytes] = {}
    for side, quality in SIDES_AND_QUALITIES:
        encoded = {key: _webp(shrink(image, side), quality) for key, image in images.items()}
        if sum(map(len, encoded.values())) <= budget:
            break
    return encoded


def _webp(image: NDArray[np.uint8], quality: int) -> bytes:
    import cv2

    written, data = cv2.imencode(".webp", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, quality])
    assert written
    return data.tobytes()


def _mosaic(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return images (h, w, 3) in rows of `COLUMNS`, on white."""
    height, width = images[0].shape[:2]
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    grid = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = index // columns * (height + GAP), index % columns * (width + GAP)
        grid[y : y + height, x : x + width] = image
    return grid
