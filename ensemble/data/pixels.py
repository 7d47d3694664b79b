"""Decodes the bytes of a file to uint8 RGB pixels. Training and prediction use the same image policy:

- JPEG, PNG, BMP and WebP are recognised by their content. A file must be complete, and contain one still image with
  8 bits a channel and at most `MAX_PIXELS` pixels. CMYK, 16-bit and animated files are refused.
- The channel of a grey image is used three times. Alpha is dropped; the colour channels are used as they are stored.
- An EXIF orientation is ignored: the pixels are used as they are stored.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ensemble.data import MAX_PIXELS
from ensemble.errors import DataError

POLICY_VERSION = 1
"""The version of this policy. It is part of the key of a pixel store, so that another policy decodes anew."""

# A JPEG marker that is not part of a scan: neither a stuffed byte (FF 00) nor a restart marker.
_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
# The markers of frame headers: C0 to CF, but not Huffman tables (C4), a reserved marker (C8) or arithmetic coding (CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_OTHER_FORMATS = {b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"PK\3\4": "zip"}


@dataclass(frozen=True)
class Header:
    """Size of an image in pixels, and whether it is grey, has alpha, or has an EXIF orientation."""

    width: int
    height: int
    grey: bool = False
    alpha: bool = False
    oriented: bool = False


@dataclass(frozen=True)
class Image:
    """A decoded image: `pixels` uint8 array (H, W, 3), RGB, and its `header`."""

    pixels: NDArray[np.uint8]
    header: Header


def decode(data: bytes, name: str) -> Image:
    """Decode one file under the image policy.

    Raises
    ------
    DataError
        The policy refuses the file, or the file is incomplete. No image is decoded in part.
    """
    header = inspect(data, name)
    pixels = None
    with contextlib.suppress(cv2.error):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.shape != (header.height, header.width, 3) or pixels.dtype != np.uint8:
        raise DataError(name, "is damaged: its header can be read, but not its pixels", "replace it")
    return Image(np.asarray(pixels, np.uint8), header)


def inspect(data: bytes, name: str) -> Header:
    """Read the structure of a whole file without decoding it; raise `DataError` where the policy refuses it."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _inspect_jpeg(data, name)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _inspect_png(data, name)
        if data.startswith(b"BM"):
            return _inspect_bmp(data, name)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _inspect_webp(data, name)
    except (struct.error, IndexError) as error:
        raise DataError(name, "is cut short or damaged") from error
    if not data:
        raise DataError(name, "is empty")
    if data.startswith(b"version https://git-lfs."):
        raise DataError(name, "is a git-LFS pointer, not the image", "run: git lfs pull")
    if data.lstrip()[:1] == b"<":
        raise DataError(name, "is HTML or XML, not an image")
    kind = _OTHER_FORMATS.get(data[:4])
    raise DataError(
        name, f"is {kind}; must be JPEG, PNG, BMP or WebP" if kind else "is not a JPEG, PNG, BMP or WebP file"
    )


def _checked_size(name: str, width: int, height: int) -> tuple[int, int]:
    if not 0 < width * height <= MAX_PIXELS or width < 0:
        raise DataError(name, f"declares {width} × {height} pixels; at most {MAX_PIXELS} are decoded")
    return width, height


def _inspect_jpeg(data: bytes, name: str) -> Header:
    at, header, oriented, in_scan, scans = 2, None, False, False, 0
    while match := (_NEXT_MARKER.search if in_scan else _NEXT_MARKER.match)(data, at):
        marker, at = match[1][0], match.end()
        if marker == 0xD9 and header and scans:
            return Header(header.width, header.height, header.grey, oriented=oriented)
        if marker in (0x01, 0xD8, 0xD9):
            break
        (length,) = struct.unpack_from(">H", data, at)
        segment = data[at + 2 : at + length]
        if length < 2 or len(segment) != length - 2:
            break
        at += length
        in_scan = marker == 0xDA
        scans += in_scan
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            oriented = _is_oriented(segment[6:])
        if marker in _FRAMES:
            precision, height, width, channels = struct.unpack_from(">BHHB", segment)
            _checked_size(name, width, height)
            if precision != 8 or channels not in (1, 3):
                kind = f"{precision}-bit" if precision != 8 else "CMYK"
                raise DataError(name, f"is a {kind} JPEG", "convert it to 8-bit RGB")
            if header:
                break
            header = Header(width, height, grey=channels == 1)
    raise DataError(name, "is cut short or damaged: this JPEG does not reach its end marker")


def _inspect_png(data: bytes, name: str) -> Header:
    at, header, alpha, oriented, pixels = 8, None, False, False, False
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack_from(">IIBB", body)
            _checked_size(name, width, height)
            if depth == 16:
                raise DataError(name, "is a 16-bit PNG", "convert it to 8-bit RGB")
            header, alpha = Header(width, height, grey=colour in (0, 4)), colour in (4, 6)
        if data[at + 8 + length : at + 12 + length] != struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))):
            break
        at += 12 + length
        if kind == b"acTL":
            raise DataError(name, "is an animated PNG", "save one frame of it")
        alpha |= kind == b"tRNS"
        pixels |= kind == b"IDAT"
        oriented |= kind == b"eXIf" and _is_oriented(body)
        if kind == b"IEND" and header and pixels:
            return Header(header.width, header.height, header.grey, alpha, oriented)
    raise DataError(name, "is cut short or damaged: this PNG does not reach its end")


def _inspect_bmp(data: bytes, name: str) -> Header:
    declared, _, offset, info, width, height, _, depth, coding = struct.unpack_from("<IIIIiiHHI", data, 2)
    height = abs(height)
    _checked_size(name, width, height)
    if info < 40 or depth not in (1, 4, 8, 24, 32) or coding not in (0, 3):
        raise DataError(name, "is a BMP of an old or compressed kind", "convert it to PNG")
    if max(declared, offset + (width * depth + 31) // 32 * 4 * height) > len(data):
        raise DataError(name, "is cut short: the header of this BMP declares more bytes")
    palette = data[14 + info : offset] if depth <= 8 else b"\0\1\2\3"
    return Header(width, height, palette[0::4] == palette[1::4] == palette[2::4], alpha=depth == 32)


def _inspect_webp(data: bytes, name: str) -> Header:
    end = 8 + int.from_bytes(data[4:8], "little")
    size, alpha, oriented, at, framed = None, False, False, 12, False
    while at + 8 <= end <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
        if kind in (b"ANIM", b"ANMF") or (kind == b"VP8X" and body[0] & 2):
            raise DataError(name, "is an animated WebP", "save one frame of it")
        if kind == b"VP8X":
            size = _checked_size(name, *(1 + int.from_bytes(body[i : i + 3], "little") for i in (4, 7)))
            alpha = bool(body[0] & 16)
        elif kind in (b"VP8 ", b"VP8L"):
            framed = True
            width, height, opaque = _webp_frame(kind, body)
            frame = _checked_size(name, width, height)
            size, alpha = size or frame, alpha or not opaque
        oriented |= kind == b"EXIF" and _is_oriented(body.removeprefix(b"Exif\0\0"))
    if size and framed and end <= len(data) and at in (end, end + 1):
        return Header(*size, alpha=alpha, oriented=oriented)
    raise DataError(name, "is cut short or damaged: this WebP does not reach its end")


def _webp_frame(kind: bytes, body: bytes) -> tuple[int, int, bool]:
    """Return width, height and whether a lossy or lossless WebP frame is opaque."""
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF, True
    (bits,) = struct.unpack_from("<I", body, 1)
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), not bits >> 28 & 1


def _is_oriented(tiff: bytes) -> bool:
    """Return whether an EXIF block sets an orientation other than the stored one."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return False
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 0x0112:
                return bool(2 <= value <= 8)
    return False
