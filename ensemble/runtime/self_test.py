"""Drawn images whose logits an exported model states: a machine that computes others is noticed at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IMAGES = 2
"""The number of drawn images: they cost a few milliseconds."""


def drawn_images(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return uint8 (IMAGES, H, W, 3): waves of several lengths and directions, by integer arithmetic alone.

    >>> drawn_images((2, 2))[:, :, :, 0].tolist()
    [[[0, 129], [9, 138]], [[146, 79], [112, 45]]]
    """
    height, width = size
    image, row, column, channel = np.ogrid[:IMAGES, :height, :width, :3]
    wave = image * 401 + row * (90 + 61 * image) * 37 + column * (41 + 112 * image) * 53 + channel * 977
    return np.asarray((wave % 511 - 255 * (wave % 511 > 255)) % 256, np.uint8)
