"""Files to test with: named after their content, packed into zips, or encoded pictures."""

from __future__ import annotations

import struct
import warnings
import zipfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

PICTURE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8), (0, 0), 2)


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    return folder


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pack(path: Path, *names: str, **extra: bytes) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)
        for name in names:
            archive.writestr(name, name)
        for name, content in extra.items():
            archive.writestr(name.replace("__", "."), content, zipfile.ZIP_DEFLATED)
    return path


def encode(kind: str, picture: NDArray[np.generic] = PICTURE, *options: int) -> bytes:
    return cv2.imencode(kind, np.asarray(picture), options)[1].tobytes()


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def with_exif(jpeg: bytes, orientation: int) -> bytes:
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return jpeg[:2] + jpeg_segment(0xE1, b"Exif\0\0" + tiff) + jpeg[2:]
