"""Faults 13 to 19 of the table: what is decoded, what is refused, and by which rule it becomes RGB."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from samples import PICTURE, encode, with_exif

from ensemble.data.pixels import decode
from ensemble.errors import DataError


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    return png[:33] + png_chunk(kind, body) + png[33:]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def huge(kind: str) -> bytes:
    data, side = bytearray(encode(kind)), 20_000
    if kind == ".jpg":
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, side, side)
    elif kind == ".png":
        data[8:33] = png_chunk(b"IHDR", struct.pack(">II", side, side) + bytes(data[24:29]))
    elif kind == ".bmp":
        struct.pack_into("<ii", data, 18, side, -side)
    else:
        flags = struct.pack("<I", 0) + (side - 1).to_bytes(3, "little") * 2
        return riff((b"VP8X", flags), (b"VP8 ", b"\0" * 10))
    return bytes(data)


def with_channels(jpeg: bytes, channels: int = 3, precision: int = 8) -> bytes:
    at = jpeg.index(b"\xff\xc0")
    return jpeg[: at + 4] + bytes([precision]) + jpeg[at + 5 : at + 9] + bytes([channels]) + jpeg[at + 10 :]


@pytest.mark.parametrize("kind", [".png", ".bmp", ".webp"])
def test_lossless_formats_give_back_rgb(kind: str) -> None:
    options = (cv2.IMWRITE_WEBP_QUALITY, 101) if kind == ".webp" else ()
    image = decode(encode(kind, PICTURE, *options), "1.jpg")
    assert np.array_equal(image.pixels, PICTURE[:, :, ::-1])
    assert not (image.header.grey or image.header.alpha or image.header.oriented)


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)])
def test_jpeg(options: tuple[int, ...]) -> None:
    image = decode(encode(".jpg", PICTURE, *options), "1.png")
    assert np.abs(image.pixels.astype(int) - PICTURE[:, :, ::-1]).mean() < 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "HTML"),
        (b"GIF89a....", "is GIF; must be JPEG, PNG, BMP or WebP; convert it to PNG"),
        (b"II*\0....", "is TIFF"),
        (b"\0\0\0\x1cftypheic....", "is HEIC"),
        (b"\0\0\0\x1cftypavif....", "is AVIF"),
        (b"hello", "is not a JPEG, PNG, BMP or WebP"),
        *((huge(kind), "declares 20000 × 20000 pixels") for kind in (".jpg", ".png", ".bmp", ".webp")),
        (with_channels(encode(".jpg"), channels=2), "is a JPEG of 2 channels"),
        (with_channels(encode(".jpg"), precision=12), "is a 12-bit JPEG"),
        (with_chunk(encode(".png"), b"acTL", bytes(8)), "animated PNG"),
        (riff((b"VP8X", b"\2" + bytes(9)), (b"ANIM", bytes(6))), "animated WebP"),
        (encode(".png").replace(b"IDAT", b"IDAt"), "its chunk IDAt is wrong"),
        (encode(".jpg")[:-2] + b"\xff\xd8\xff\xd9", "end marker"),
    ],
)
def test_files_that_are_refused_before_decoding(data: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(DataError, match=r"^7\.jpg: ") as error:
        decode(data, "7.jpg")
    assert message in str(error.value)


@pytest.mark.parametrize("kind", [".jpg", ".png", ".bmp"])
def test_grey_is_used_three_times(kind: str) -> None:
    image = decode(encode(kind, PICTURE[:, :, 0]), "1.jpg")
    assert image.header.grey
    assert (image.pixels == image.pixels[:, :, :1]).all()


@pytest.mark.parametrize("kind", [".png", ".webp"])
def test_alpha_is_dropped(kind: str) -> None:
    alpha = np.tile(np.arange(1, 21, dtype=np.uint8), (16, 1))[:, :, None]
    options = (cv2.IMWRITE_WEBP_QUALITY, 101) if kind == ".webp" else ()
    image = decode(encode(kind, np.concatenate([PICTURE, alpha], axis=2), *options), "1.png")
    assert image.header.alpha
    assert np.array_equal(image.pixels, PICTURE[:, :, ::-1])


def test_exif_orientation_is_ignored_and_said() -> None:
    plain = encode(".jpg")
    turned, upright = decode(with_exif(plain, 6), "1.jpg"), decode(with_exif(plain, 1), "1.jpg")
    assert turned.header.oriented and not upright.header.oriented
    assert np.array_equal(turned.pixels, decode(plain, "1.jpg").pixels)
    png = with_chunk(encode(".png"), b"eXIf", b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 8, 0, 0))
    assert decode(png, "1.png").header.oriented
    assert decode(png, "1.png").pixels.shape == PICTURE.shape
