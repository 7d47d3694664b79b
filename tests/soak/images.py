"""Mutated JPEG, PNG, BMP and WebP files: each is refused by name, or its pixels are those that its decoder vouches for.

A mutated file whose decoder notices nothing may have other pixels. A checksum would tell, but JPEG, BMP and WebP have
none; these files are counted. A PNG has checksums, so that a mutated one must be refused or have the same pixels. Half
of the mutated PNGs get new checksums, so that the mutation reaches libpng and zlib; they are counted as well.
"""

from __future__ import annotations

import io
import os
import random
import struct
import tempfile
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ensemble.data.pixels import decode
from ensemble.errors import DataError

from .lanes import Outcome, Trial
from .mutations import mutated

HANG_S = 20.0

FORMATS = {
    "jpeg": (".jpg", [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 1]]),
    "png": (".png", [[], [cv2.IMWRITE_PNG_COMPRESSION, 0]]),
    "bmp": (".bmp", [[]]),
    "webp": (".webp", [[cv2.IMWRITE_WEBP_QUALITY, 80], [cv2.IMWRITE_WEBP_QUALITY, 101]]),
}
"""The suffix of each format, and the settings of its kinds: baseline, progressive, with restarts; lossy, lossless."""

PNG_START = 8
"""Bytes of a PNG before its first chunk."""


def trials(data: Path, seed: int, kind: str) -> tuple[Trial, int | None]:
    """Return the trial of a format, and None: there are as many as one likes."""
    whole = [(file, decode(file, "whole").pixels) for file in _files(kind)]
    said = _Said()

    def trial(lane: int, number: int) -> Outcome:
        rng = random.Random(f"{seed} {kind} {number}")
        original, pixels = whole[rng.randrange(len(whole))]
        file, how = mutated(original, rng)
        is_checked = kind == "png"
        if kind == "png" and rng.random() < 0.5:
            changed = with_checksums(file)
            is_checked, file = changed == file, changed
        size = said.start()
        try:
            image = decode(file, "7.img")
        except DataError as error:
            is_line = str(error).startswith("7.img: ") and "\n" not in str(error)
            return Outcome("" if is_line else f"{how}: no line: {error}", {"refused": 1})
        shape = (image.header.height, image.header.width, 3)
        if image.pixels.shape != shape or image.pixels.dtype != np.uint8:
            return Outcome(f"{how}: pixels {image.pixels.shape} {image.pixels.dtype}")
        if not np.array_equal(image.pixels, decode(file, "7.img").pixels):
            return Outcome(f"{how}: decoded twice, it has different pixels")
        if file.startswith(b"\xff\xd8"):  # simplejpeg prints no warnings; OpenCV decodes with the same library
            cv2.imdecode(np.frombuffer(file + b"\xff\xd9" * image.header.unended, np.uint8), cv2.IMREAD_COLOR)
        if warning := said.since(size):
            return Outcome(f"{how}: accepted, but the decoder says: {warning}")
        same = np.array_equal(image.pixels, pixels)
        if is_checked and not same:
            return Outcome(f"{how}: other pixels, though the checksums hold")
        return Outcome(counts={"same pixels" if same else "other pixels, no decoder can know": 1})

    return trial, None


def _files(kind: str) -> list[bytes]:
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (12, 15, 3), np.uint8)
    smooth = cv2.resize(rng.integers(0, 256, (3, 4, 3), np.uint8), (33, 26), interpolation=cv2.INTER_CUBIC)
    pictures = [noisy, smooth, smooth[..., 0], np.dstack([smooth, smooth[..., :1]])]
    if kind == "png":
        pictures.append(smooth.astype(np.uint16) * 257)
    suffix, settings = FORMATS[kind]
    pictures = [each for each in pictures if kind != "jpeg" or each.ndim == 2 or each.shape[2] == 3]
    files = [cv2.imencode(suffix, each, flags)[1].tobytes() for each in pictures for flags in settings]
    if kind == "jpeg":
        files.append(_by_pillow(Image.fromarray(smooth).convert("CMYK"), "JPEG"))
    if kind == "png":
        files.append(_by_pillow(Image.fromarray(smooth).quantize(16), "PNG"))
    return files


def _by_pillow(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def with_checksums(png: bytes) -> bytes:
    """Return a PNG in which each chunk that is whole has its right checksum."""
    changed, at = bytearray(png), PNG_START
    while at + 12 <= len(changed):
        (length,) = struct.unpack_from(">I", changed, at)
        end = at + 8 + length
        if end + 4 > len(changed):
            break
        struct.pack_into(">I", changed, end, zlib.crc32(changed[at + 4 : end]))
        at = end + 4
    return bytes(changed)


class _Said:
    """What this process prints on file descriptor 2, where decoders write their warnings."""

    def __init__(self) -> None:
        self._pid, self._file = -1, -1

    def start(self) -> int:
        """Keep what is printed from now on, in each process in a file of its own; return how much there is already."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._file, path = tempfile.mkstemp()
            os.unlink(path)
            os.dup2(self._file, 2)
        return os.fstat(self._file).st_size

    def since(self, size: int) -> str:
        return os.pread(self._file, 300, size).decode(errors="replace")
