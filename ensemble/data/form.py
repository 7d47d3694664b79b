"""The form in which networks get images: what is done to the decoded pixels, and the size that they must have."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ensemble.data.pixels import POLICY_VERSION, Header, decode, inspect, upright
from ensemble.errors import DataError


@dataclass(frozen=True)
class Form:
    """What the stored pixels depend on beside the files: `resize`, and whether they are `upright` by EXIF."""

    resize: int | None
    upright: bool

    @property
    def policy(self) -> str:
        """The image policy, which is part of the key of a store and of the fingerprint of a set."""
        return f"{POLICY_VERSION}{', exif applied' if self.upright else ''}"

    def size(self, header: Header) -> tuple[int, int]:
        """Return the height and width of an image before it is resized."""
        return header.upright_size if self.upright else (header.height, header.width)

    def pixels(
        self, data: bytes, name: str, size: tuple[int, int], whose: str = "the others", remedy: str = "or give --resize"
    ) -> tuple[NDArray[np.uint8], Header]:
        """Decode one file to the pixels (H, W, 3) that networks get.

        Parameters
        ----------
        data : bytes
        name : str
            The file, for messages.
        size : (int, int)
            The height and width that the pixels must have.
        whose : str
            What has this size, for messages.
        remedy : str
            What to do about an image of another size.

        Raises
        ------
        DataError
            The image policy refuses the file, or it has another size.
        """
        header = inspect(data, name)
        height, width = self.size(header)
        if not self.resize and (height, width) != tuple(size):  # refused before its memory is needed
            problem = f"has {width} × {height} pixels, {whose} {size[1]} × {size[0]}"
            raise DataError(name, problem, remedy)
        image = decode(data, name, header)
        pixels = upright(image) if self.upright else image.pixels
        return _resized(pixels, self.resize) if self.resize else pixels, header


def _resized(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if pixels.shape[:2] == (size, size):
        return pixels
    shrinks = size <= min(pixels.shape[:2])
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (size, size), interpolation=method), np.uint8)
