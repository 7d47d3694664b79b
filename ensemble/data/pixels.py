"""Decodes the bytes of a file to uint8 RGB pixels. Training and prediction use the same image policy:

- JPEG, PNG, BMP and WebP are recognised by their content. A file must be complete, contain one still image of at most
  `MAX_PIXELS` pixels, and end where the image ends. Animated files and files of several images are refused.
- A file whose decoder reports an error or a warning is refused. A JPEG may lack its end marker if its pixels are whole.
- The channel of a grey image is used three times. Alpha is dropped; the colour channels are used as they are stored.
- A CMYK JPEG becomes RGB by R = C·K / 255 (G and B likewise) of the samples as they are stored, which Adobe inverts. No
  colour profile is applied. Of a 16-bit PNG, the high byte of each sample is used.
- An EXIF orientation is ignored: the pixels are used as they are stored. `upright` applies it where that is requested.

JPEGs are decoded by simplejpeg: its strict mode turns each warning of libjpeg into an error, where OpenCV only prints
the warning. Both give the same pixels.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from dataclasses import dataclass, replace

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from ensemble.data import MAX_PIXELS
from ensemble.errors import DataError, printable

POLICY_VERSION = 1
"""The version of this policy. It is part of the key of a pixel store, so that another policy decodes anew."""

# A JPEG marker that is not part of a scan: neither a stuffed byte (FF 00) nor a restart marker.
_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
# The markers of frame headers: C0 to CF, but not Huffman tables (C4), a reserved marker (C8) or arithmetic coding (CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# The markers of progressive frames, whose scans code ranges of coefficients or bits; other scans code all of them.
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_ALL_COEFFICIENTS = 2**64 - 1
# The first column and row of each of the seven parts of an interlaced PNG, and the distances to the next ones.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_JPEG_END = b"\xff\xd9"
_OTHER_FORMATS = {
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"%PDF": "PDF",
    b"PK\3\4": "zip",
    b"8BPS": "PSD",
}
# Formats whose files begin with the length of a box and one of these: its kind, or its kind and brand.
_BOXES = {
    b"ftypavi": "AVIF",
    b"ftyphe": "HEIC",
    b"ftypmif1": "HEIC",
    b"ftyp": "MP4",
    b"jP  ": "JPEG 2000",
    b"JXL ": "JPEG XL",
}


@dataclass(frozen=True)
class Header:
    """What the header of an image says.

    Attributes
    ----------
    width, height : int
        In pixels.
    grey, alpha, cmyk, deep : bool
        Whether it is grey, has alpha, is CMYK, or has 16 bits a sample.
    orientation : int
        The EXIF orientation, 1 to 8; 1 is that of the stored pixels.
    unended : bool
        Whether it is a JPEG without an end marker. Only decoding tells whether its pixels are whole.
    """

    width: int
    height: int
    grey: bool = False
    alpha: bool = False
    orientation: int = 1
    cmyk: bool = False
    deep: bool = False
    unended: bool = False

    @property
    def oriented(self) -> bool:
        """Whether the EXIF orientation is another than that of the stored pixels."""
        return self.orientation != 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width once the EXIF orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


@dataclass(frozen=True)
class Image:
    """A decoded image: `pixels` uint8 array (H, W, 3), RGB, and its `header`."""

    pixels: NDArray[np.uint8]
    header: Header


def decode(data: bytes, name: str, header: Header | None = None) -> Image:
    """Decode one file under the image policy.

    Parameters
    ----------
    data : bytes
    name : str
        The file, for messages.
    header : Header, optional
        What `inspect` returned for this file; without it, the file is inspected here.

    Raises
    ------
    DataError
        The policy refuses the file, its decoder reports an error or a warning, or the file is incomplete. No image is
        decoded in part.
    """
    header = header or inspect(data, name)
    if data.startswith(b"\x89PNG"):
        _check_png_stream(data, name)
    pixels = _decode_jpeg(data, name, header) if data.startswith(b"\xff\xd8") else _decode_other(data)
    if pixels is None or pixels.shape != (header.height, header.width, 3) or pixels.dtype != np.uint8:
        raise DataError(name, "is damaged: its header can be read, but not its pixels", "replace it")
    return Image(pixels, header)


def upright(image: Image) -> NDArray[np.uint8]:
    """Return the pixels of an image with its EXIF orientation applied.

    Orientations 5 to 8 exchange rows and columns; 2, 3, 6 and 7 then mirror left to right, and 3, 4, 7 and 8 top to
    bottom (Exif 2.32, tag 274).
    """
    pixels, orientation = image.pixels, image.header.orientation
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _decode_jpeg(data: bytes, name: str, header: Header) -> NDArray[np.uint8]:
    if header.unended:  # libjpeg does not warn of the missing marker then, but still of missing pixels
        data = data.removesuffix(b"\xff") + _JPEG_END
    try:
        pixels = simplejpeg.decode_jpeg(data, "CMYK" if header.cmyk else "RGB", strict=True)
    except ValueError as error:
        problem = "is cut short" if header.unended else "is damaged"
        raise DataError(name, f"{problem}: {printable(error)}", "replace it") from error
    if header.cmyk:
        pixels = ((pixels[..., :3].astype(np.uint16) * pixels[..., 3:] + 127) // 255).astype(np.uint8)
    return np.asarray(pixels, np.uint8)


def _decode_other(data: bytes) -> NDArray[np.uint8] | None:
    """Decode a PNG, BMP or WebP; return None where the decoder fails."""
    pixels = None
    with contextlib.suppress(cv2.error):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else np.asarray(pixels)


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
    box = next((kind for start, kind in _BOXES.items() if data[4:].startswith(start)), None)
    if kind := _OTHER_FORMATS.get(data[:4], box):
        raise DataError(name, f"is {kind}; must be JPEG, PNG, BMP or WebP", "convert it to PNG")
    raise DataError(name, "is not a JPEG, PNG, BMP or WebP file")


def file_format(data: bytes) -> str:
    """Return the format of a file that `inspect` accepts: JPEG, PNG, BMP or WebP."""
    return {b"\xff\xd8": "JPEG", b"\x89P": "PNG", b"BM": "BMP"}.get(data[:2], "WebP")


def _refuse_trailing(data: bytes, end: int, name: str, kind: str) -> None:
    """Raise `DataError` where bytes follow the image: they may be another image, or the rest of another file."""
    if len(data) > end:
        raise DataError(name, f"has {len(data) - end} bytes after the end of the {kind}", "save the image again")


def _checked_size(name: str, width: int, height: int) -> tuple[int, int]:
    if not 0 < width * height <= MAX_PIXELS or width < 0:
        raise DataError(name, f"declares {width} × {height} pixels; at most {MAX_PIXELS} are decoded")
    return width, height


def _inspect_jpeg(data: bytes, name: str) -> Header:
    at, header, frame, orientation, several, in_scan = 2, None, 0, 1, False, False
    coded: dict[int, int] = {}  # component -> the bit k is set where a scan has coded the last bit of coefficient k
    while match := (_NEXT_MARKER.search if in_scan else _NEXT_MARKER.match)(data, at):
        marker, at = match[1][0], match.end()
        if marker in (0x01, 0xD8, 0xD9):
            break
        (length,) = struct.unpack_from(">H", data, at)
        segment = data[at + 2 : at + length]
        if length < 2 or len(segment) != length - 2:
            break
        at += length
        in_scan = marker == 0xDA
        if in_scan:
            _add_scan(coded, segment, progressive=frame in _PROGRESSIVE)
        elif marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            orientation = _orientation(segment[6:])
        elif marker == 0xE2 and segment.startswith(b"MPF\0"):
            several = True
        elif marker in _FRAMES:
            if header:
                break
            header, frame = _jpeg_frame(segment, name), marker
            channels = segment[5]
    unended = in_scan and match is None
    if header is None or not coded or not (unended or (match and match[1] == _JPEG_END[1:])):
        raise DataError(name, "is cut short or damaged: this JPEG does not reach its end marker")
    if len(coded) < channels or set(coded.values()) != {_ALL_COEFFICIENTS}:
        raise DataError(name, "is cut short: the last scans of this JPEG are missing", "replace it")
    if several and not unended and len(data) > at:
        raise DataError(name, "is an MPO file, which holds several images", "save one of them as a JPEG")
    if not unended:
        _refuse_trailing(data, at, name, "JPEG")
    return replace(header, orientation=orientation, unended=unended)


def _jpeg_frame(segment: bytes, name: str) -> Header:
    precision, height, width, channels = struct.unpack_from(">BHHB", segment)
    _checked_size(name, width, height)
    if precision != 8 or channels not in (1, 3, 4):
        kind = f"{precision}-bit JPEG" if precision != 8 else f"JPEG of {channels} channels"
        raise DataError(name, f"is a {kind}", "convert it to 8-bit RGB")
    return Header(width, height, grey=channels == 1, cmyk=channels == 4)


def _add_scan(coded: dict[int, int], segment: bytes, progressive: bool) -> None:
    """Add the coefficients of which a scan codes the last bit; a scan that is not progressive codes all of them."""
    end = 1 + 2 * segment[0]
    first, last, bits = struct.unpack_from("BBB", segment, end)
    mask = (1 << last + 1) - (1 << first) if progressive and first <= last < 64 else _ALL_COEFFICIENTS
    if progressive and bits & 15:  # the lowest bit that the scan codes
        mask = 0
    for component in segment[1:end:2]:
        coded[component] = coded.get(component, 0) | mask


def _inspect_png(data: bytes, name: str) -> Header:
    at, header, alpha, orientation, pixels = 8, None, False, 1, False
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack_from(">IIBB", body)
            _checked_size(name, width, height)
            header = Header(width, height, grey=colour in (0, 4), deep=depth == 16)
            alpha = colour in (4, 6)
        checksum = data[at + 8 + length : at + 12 + length]
        if len(checksum) < 4:
            break
        if checksum != struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))):
            _refuse_chunk(kind, name)
        at += 12 + length
        if kind == b"acTL":
            raise DataError(name, "is an animated PNG", "save one frame of it")
        if kind == b"PLTE" and header and header.grey:
            raise DataError(name, "is damaged: it is grey and has a palette", "save the image again")
        alpha |= kind == b"tRNS"
        pixels |= kind == b"IDAT"
        if kind == b"eXIf":
            orientation = _orientation(body)
        if kind == b"IEND" and header and pixels:
            _refuse_trailing(data, at, name, "PNG")
            return replace(header, alpha=alpha, orientation=orientation)
    raise DataError(name, "is cut short or damaged: this PNG does not reach its end")


def _check_png_stream(data: bytes, name: str) -> None:
    """Raise `DataError` where the compressed pixels do not have their checksum or their length.

    libpng only prints a warning then. The stream is unpacked without keeping it, up to the length that the header
    declares; the pixels of an interlaced image have a filter byte in each row of each of its seven parts.
    """
    at, stream, unpacked, most = 8, zlib.decompressobj(), 0, 0
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IHDR":
            width, height, depth, colour, interlaced = struct.unpack_from(">IIBBxxB", data, at + 8)
            channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 4)
            rows = [(width, height)]
            if interlaced:
                rows = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in _ADAM7]
            most = sum(h * (1 + (w * depth * channels + 7) // 8) for w, h in rows if w > 0 and h > 0)
        elif kind == b"IDAT":
            try:
                unpacked += len(stream.decompress(data[at + 8 : at + 8 + length], most + 1 - unpacked))
            except zlib.error as error:
                raise DataError(name, f"is damaged: {error} in its pixels", "replace it") from None
            if unpacked > most or stream.unconsumed_tail:
                break
        at += 12 + length
    if unpacked != most or not stream.eof or stream.unused_data:
        raise DataError(name, "is damaged: its compressed pixels have another length or no checksum", "replace it")


def _refuse_chunk(kind: bytes, name: str) -> None:
    ancillary = kind[0] & 32  # lower case: a decoder may ignore the chunk
    where = "outside its pixels" if ancillary else "in its header or its pixels"
    problem = f"is damaged {where}: the checksum of its chunk {printable(kind.decode('latin-1'))} is wrong"
    raise DataError(name, problem, "save the image again" if ancillary else "replace it")


def _inspect_bmp(data: bytes, name: str) -> Header:
    declared, _, offset, info, width, height, _, depth, coding = struct.unpack_from("<IIIIiiHHI", data, 2)
    height = abs(height)
    _checked_size(name, width, height)
    if info < 40 or depth not in (1, 4, 8, 24, 32) or coding not in (0, 3):
        raise DataError(name, "is a BMP of an old or compressed kind", "convert it to PNG")
    end = max(declared, offset + (width * depth + 31) // 32 * 4 * height)
    if end > len(data):
        raise DataError(name, "is cut short: the header of this BMP declares more bytes")
    _refuse_trailing(data, end, name, "BMP")
    palette = data[14 + info : offset] if depth <= 8 else b"\0\1\2\3"
    return Header(width, height, palette[0::4] == palette[1::4] == palette[2::4], alpha=depth == 32)


def _inspect_webp(data: bytes, name: str) -> Header:
    end = 8 + int.from_bytes(data[4:8], "little")
    size, alpha, orientation, at, framed = None, False, 1, 12, False
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
        elif kind == b"EXIF":
            orientation = _orientation(body.removeprefix(b"Exif\0\0"))
    if size and framed and end <= len(data) and at in (end, end + 1):
        _refuse_trailing(data, at, name, "WebP")
        return Header(*size, alpha=alpha, orientation=orientation)
    raise DataError(name, "is cut short or damaged: this WebP does not reach its end")


def _webp_frame(kind: bytes, body: bytes) -> tuple[int, int, bool]:
    """Return width, height and whether a lossy or lossless WebP frame is opaque."""
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF, True
    (bits,) = struct.unpack_from("<I", body, 1)
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), not bits >> 28 & 1


def _orientation(tiff: bytes) -> int:
    """Return the orientation that an EXIF block sets, 1 to 8; 1 where it sets none or no valid one."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 0x0112:
                return int(value) if 2 <= value <= 8 else 1
    return 1
