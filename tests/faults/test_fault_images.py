"""Faults 14 and 17 of the table: damaged images are refused by name, and odd ones are read by one rule."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from samples import PICTURE, encode, jpeg_segment

from ensemble.cli import main
from ensemble.data.pixels import decode, inspect
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.errors import DataError

PROGRESSIVE = encode(".jpg", PICTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
FORMATS = {".jpg": encode(".jpg"), "progressive": PROGRESSIVE, **{k: encode(k) for k in (".png", ".bmp", ".webp")}}
END = b"\xff\xd9"


def cmyk_jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE).convert("CMYK").save(file, "JPEG", quality=95)
    return file.getvalue()


def half_lost(jpeg: bytes) -> bytes:
    middle = (jpeg.index(b"\xff\xda") + len(jpeg)) // 2
    return jpeg[:middle] + bytes(len(jpeg) - middle - 2) + END


def with_damaged_chunk(png: bytes, kind: bytes) -> bytes:
    chunk = struct.pack(">I", 3) + kind + b"abc" + struct.pack(">I", zlib.crc32(b"another"))
    return png[:33] + chunk + png[33:]


def with_stream(png: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Return a PNG with other compressed pixels, and the right checksum of their chunk."""
    at = png.index(b"IDAT")
    end = at + 4 + struct.unpack_from(">I", png, at - 4)[0]
    stream = change(png[at + 4 : end])
    return png[: at - 4] + png_chunk(b"IDAT", stream) + png[end + 4 :]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def grey_with_palette() -> bytes:
    png = encode(".png", PICTURE[..., 0])
    return png[:33] + png_chunk(b"PLTE", bytes(3)) + png[33:]


def mpo(jpeg: bytes) -> bytes:
    return jpeg[:2] + jpeg_segment(0xE2, b"MPF\0" + bytes(20)) + jpeg[2:] + jpeg


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (half_lost(FORMATS[".jpg"]), "is damaged: Corrupt JPEG data: premature end of data segment; replace it"),
        (FORMATS[".jpg"][:-20] + END, "is damaged: Corrupt JPEG data: premature end of data segment; replace it"),
        (FORMATS[".jpg"][:-20], "is cut short: Corrupt JPEG data: premature end of data segment; replace it"),
        (PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")] + END, "is cut short: the last scans of this JPEG are missing"),
        (mpo(FORMATS[".jpg"]), "is an MPO file, which holds several images; save one of them as a JPEG"),
        (FORMATS[".jpg"] + b"rest", "has 4 bytes after the end of the JPEG; save the image again"),
        (FORMATS[".png"] + b"rest", "has 4 bytes after the end of the PNG; save the image again"),
        (FORMATS[".bmp"] + b"rest", "has 4 bytes after the end of the BMP; save the image again"),
        (FORMATS[".webp"] + b"rest", "has 4 bytes after the end of the WebP; save the image again"),
        (with_damaged_chunk(FORMATS[".png"], b"tEXt"), "is damaged outside its pixels: the checksum of its chunk tEXt"),
        (
            with_stream(FORMATS[".png"], lambda stream: stream[:-1] + bytes([stream[-1] ^ 1])),
            "is damaged: Error -3 while",
        ),
        (with_stream(FORMATS[".png"], lambda stream: stream[:-4]), "is damaged: its compressed pixels have another"),
        (
            with_stream(FORMATS[".png"], lambda stream: stream + b"rest"),
            "is damaged: its compressed pixels have another",
        ),
        (with_stream(FORMATS[".png"], lambda _: zlib.compress(bytes(10**6))), "is damaged: its compressed pixels have"),
        (grey_with_palette(), "is damaged: it is grey and has a palette; save the image again"),
        (with_damaged_chunk(FORMATS[".png"], b"PLTE"), "is damaged in its header or its pixels: the checksum of its"),
    ],
)
def test_images_that_are_refused(data: bytes, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError) as error:
        decode(data, "7.jpg")
    assert str(error.value).startswith(f"7.jpg: {message}") and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # the warnings of the decoders are not printed


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_at_any_byte_is_refused_or_its_pixels_are_whole(kind: str) -> None:
    data = FORMATS[kind]
    whole, accepted = decode(data, "1.jpg").pixels, 0
    for length in range(len(data)):
        for end in (b"", END) if data[:2] == b"\xff\xd8" else (b"",):
            try:
                image = decode(data[:length] + end, "1.jpg")
            except DataError:
                continue
            accepted += 1
            assert np.array_equal(image.pixels, whole)
    assert accepted == (4 if data[:2] == b"\xff\xd8" else 0)  # only (a part of) the end marker is missing


@pytest.mark.parametrize("kind", FORMATS)
def test_no_mutated_image_is_accepted_on_which_a_decoder_warns(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    draw, data, accepted = random.Random(0), FORMATS[kind], 0
    for _ in range(500):
        mutated = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            mutated[draw.randrange(len(data))] = draw.randrange(256)
        if mutated == data:
            continue
        try:
            image = decode(bytes(mutated), "1.jpg")
        except DataError:
            continue
        accepted += 1
        assert image.pixels.dtype == np.uint8 and image.pixels.shape == (image.header.height, image.header.width, 3)
        whole = bytes(mutated) + END * image.header.unended
        assert cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_COLOR) is not None
        assert capfd.readouterr().err == ""  # OpenCV prints what its decoders warn of
    assert (accepted == 0) == (kind == ".png")  # checksums tell of each change of a PNG


@pytest.mark.parametrize("width", range(1, 10))
def test_interlaced_pngs_are_read(width: int) -> None:
    for height in range(1, 10):
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        starts_and_steps = [
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ]
        parts = [pixels[y::down, x::right] for x, y, right, down in starts_and_steps]
        rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
        header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))
        data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
        assert np.array_equal(decode(data, "1.png").pixels, pixels)


@pytest.mark.parametrize("kind", [".jpg", "progressive"])
def test_simplejpeg_gives_the_pixels_of_opencv(kind: str) -> None:
    data = np.frombuffer(FORMATS[kind], np.uint8)
    assert np.array_equal(decode(FORMATS[kind], "1.jpg").pixels, cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))


def test_a_cmyk_jpeg_becomes_rgb_as_pillow_does_it() -> None:
    image = decode(cmyk_jpeg(), "1.jpg")
    expected = np.asarray(Image.open(io.BytesIO(cmyk_jpeg())).convert("RGB"))
    assert image.header.cmyk and np.array_equal(image.pixels, expected)
    assert np.abs(image.pixels.astype(int) - PICTURE).mean() < 4


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_of_16_bits_the_high_byte_is_used(channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 2**16, (9, 7, channels), np.uint16)
    image = decode(encode(".png", deep), "1.png")
    expected = (deep >> 8)[..., 2::-1] if channels > 1 else np.repeat(deep >> 8, 3, axis=2)
    assert image.header.deep and np.array_equal(image.pixels, expected)


def test_odd_images_are_counted_in_notes(tmp_path: Path) -> None:
    folder = tmp_path / "img"
    folder.mkdir()
    files = [FORMATS[".jpg"], FORMATS[".jpg"][:-2], cmyk_jpeg(), encode(".png", PICTURE.astype(np.uint16) * 257)]
    for i, data in enumerate(files, 1):
        (folder / f"{i}.jpg").write_bytes(data)
    dataset = load_dataset(open_source(folder), tmp_path / "store", threads=1)
    assert dataset.notes == (
        "1 CMYK images: they become RGB without a colour profile (3)",
        "1 images with 16 bits a channel: the high byte is used (4)",
        "1 JPEG images without an end marker: their pixels are whole (2)",
    )


def test_an_image_of_another_size_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "img"
    folder.mkdir()
    for i in range(1, 4):
        (folder / f"{i}.png").write_bytes(FORMATS[".png"])
    large = encode(".png", np.zeros((4096, 8192), np.uint8))
    (folder / "4.png").write_bytes(large)
    decoded: list[int] = []

    def spy(data: bytes, *arguments: object) -> object:
        decoded.append(inspect(data, "").width)
        return decode(data, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ensemble.data.form.decode", spy)
    with pytest.raises(DataError, match=r"4\.png has 8192 × 4096 pixels, the others 20 × 16"):
        load_dataset(open_source(folder), tmp_path / "store", threads=1)
    assert set(decoded) == {20} and not list((tmp_path / "store").glob("*/*"))


def test_the_command_names_a_half_lost_image(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "img"
    folder.mkdir()
    for i in range(1, 9):
        (folder / f"{i}.jpg").write_bytes(half_lost(FORMATS[".jpg"]) if i == 5 else FORMATS[".jpg"])
    (tmp_path / "labels.txt").write_text("0\n1\n" * 4)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    options = ["--arch", "lenet", "--no-pretrained", "--images", str(folder), "--run", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        main(["train-member", *options, "--labels", str(tmp_path / "labels.txt"), "--folds", "2", "--epochs", "1"])
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 3 and "1 of 8 images cannot be used: 5.jpg is damaged: Corrupt JPEG data" in line
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    assert not list((tmp_path / "run").rglob("*.npy"))
