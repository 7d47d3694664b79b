"""Faults 12 to 23 of the table, and the store."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ensemble.data import pixels as module
from ensemble.data.pixels import decode, load_dataset
from ensemble.data.source import Dataset, open_source
from ensemble.errors import DataError, ResourceError

PICTURE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8), (0, 0), 2)


def encode(kind: str, picture: NDArray[np.generic] = PICTURE, *options: int) -> bytes:
    return cv2.imencode(kind, np.asarray(picture), options)[1].tobytes()


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def with_exif(jpeg: bytes, orientation: int) -> bytes:
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return jpeg[:2] + jpeg_segment(0xE1, b"Exif\0\0" + tiff) + jpeg[2:]


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
    image = decode(encode(".jpg", PICTURE, *options) + b"trailing", "1.png")
    assert np.abs(image.pixels.astype(int) - PICTURE[:, :, ::-1]).mean() < 8


@pytest.mark.parametrize("kind", [".jpg", ".png", ".bmp", ".webp"])
def test_truncated_at_any_byte(kind: str) -> None:
    data = encode(kind)
    for length in range(len(data)):
        with pytest.raises(DataError):
            decode(data[:length], "1.jpg")


def test_truncated_progressive_jpeg() -> None:
    data = encode(".jpg", PICTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    for length in range(len(data)):
        with pytest.raises(DataError):
            decode(data[:length], "1.jpg")


@pytest.mark.parametrize("kind", [".jpg", ".png", ".bmp", ".webp"])
def test_mutated_files_are_decoded_or_refused(kind: str) -> None:
    draw, data = random.Random(0), encode(kind)
    for _ in range(400):
        mutated = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            mutated[draw.randrange(len(data))] = draw.randrange(256)
        try:
            image = decode(bytes(mutated), "1.jpg")
        except DataError:
            continue
        assert image.pixels.dtype == np.uint8 and image.pixels.shape == (image.header.height, image.header.width, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "HTML"),
        (b"GIF89a....", "is GIF; must be JPEG, PNG, BMP or WebP"),
        (b"II*\0....", "is TIFF"),
        (b"hello", "is no JPEG, PNG, BMP or WebP"),
        *((huge(kind), "claims 20000 × 20000 pixels") for kind in (".jpg", ".png", ".bmp", ".webp")),
        (with_channels(encode(".jpg"), channels=4), "is a CMYK JPEG"),
        (with_channels(encode(".jpg"), precision=12), "is a 12-bit JPEG"),
        (encode(".png", PICTURE.astype(np.uint16)), "is a 16-bit PNG"),
        (with_chunk(encode(".png"), b"acTL", bytes(8)), "animated PNG"),
        (riff((b"VP8X", b"\2" + bytes(9)), (b"ANIM", bytes(6))), "animated WebP"),
        (encode(".png").replace(b"IDAT", b"IDAt"), "does not reach its end"),
        (encode(".jpg")[:-2] + b"\xff\xd8\xff\xd9", "end marker"),
    ],
)
def test_files_that_are_refused_before_decoding(data: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(DataError, match="^7.jpg: ") as error:
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


def picture(seed: int, height: int = 12, width: int = 12) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def ten(folder: Path) -> Path:
    return write(folder, {f"{i}.png": encode(".png", picture(i)) for i in range(1, 11)})


def load(folder: Path, store: Path, labels: Path | None = None, resize: int | None = None) -> Dataset:
    return load_dataset(open_source(folder, labels), store, resize, threads=2)


def test_load_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ten(tmp_path / "img")
    data = load(folder, tmp_path / "store")
    assert len(data) == 10 and data.size == (12, 12) and data.notes == ()
    for i in range(10):
        assert np.array_equal(data.pixels[i], picture(i + 1)[:, :, ::-1])
        assert data.digests[i].decode() == hashlib.sha256((folder / f"{i + 1}.png").read_bytes()).hexdigest()
    assert isinstance(data.pixels, np.memmap)
    for array in (data.pixels, data.ids, data.digests):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]
    monkeypatch.setattr(module, "decode", lambda *_: pytest.fail("decoded again"))
    again = load(folder, tmp_path / "store")
    assert again.fingerprint == data.fingerprint
    assert np.array_equal(again.pixels, data.pixels)


def test_a_changed_image_or_label_is_noticed(tmp_path: Path) -> None:
    folder, labels = ten(tmp_path / "img"), tmp_path / "l.txt"
    labels.write_text("1\n0\n" * 5)
    before = load(folder, tmp_path / "store", labels)
    labels.write_text("0\n1\n" * 5)
    relabelled = load(folder, tmp_path / "store", labels)
    write(folder, {"4.png": encode(".png", picture(99))})
    changed = load(folder, tmp_path / "store", labels)
    assert len({before.fingerprint, relabelled.fingerprint, changed.fingerprint}) == 3
    assert np.array_equal(changed.pixels[3], picture(99)[:, :, ::-1])


@pytest.mark.parametrize("name", ["pixels.npy", "traits.npy", "store.json", "digests.txt"])
@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_damaged_store_is_written_anew(tmp_path: Path, name: str, damage: str) -> None:
    folder = ten(tmp_path / "img")
    first = np.array(load(folder, tmp_path / "store").pixels)
    (file,) = (tmp_path / "store").glob(f"*/{name}")
    os.truncate(file, file.stat().st_size // 2) if damage == "short" else file.unlink()
    assert np.array_equal(load(folder, tmp_path / "store").pixels, first)


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    write(tmp_path / "store" / "decoding-abc", {"pixels.npy": b"half"})
    load(ten(tmp_path / "img"), tmp_path / "store")
    (made,) = (path for path in (tmp_path / "store").iterdir() if path.is_dir())
    assert {path.name for path in made.iterdir()} == {"pixels.npy", "traits.npy", "store.json", "digests.txt"}
    assert json.loads((made / "store.json").read_text())["size"] == [12, 12]


def test_bad_images_are_listed_in_one_error_and_leave_nothing(tmp_path: Path) -> None:
    folder = ten(tmp_path / "img")
    write(folder, {"2.png": b"", "5.png": (folder / "5.png").read_bytes()[:-1]})
    write(folder, {"1.png": encode(".png", picture(1, 12, 14))})
    with pytest.raises(DataError) as error:
        load(folder, tmp_path / "store")
    for part in ("3 of 10 images", "1.png has 14 × 12 pixels, the set 12 × 12", "2.png is empty", "5.png is cut short"):
        assert part in str(error.value)
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".lock"]


def test_many_bad_images_are_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "img", {f"{i}.jpg": b"" for i in range(1, 201)})
    with pytest.raises(DataError, match="200 of 200 images cannot be used: 1.jpg is empty, .*, and 190 more"):
        load(folder, tmp_path / "store")


def test_resize_brings_every_image_to_one_square(tmp_path: Path) -> None:
    folder = ten(tmp_path / "img")
    write(
        folder,
        {"3.png": encode(".png", picture(3, 24, 12)), "4.png": encode(".png", np.full((40, 40, 3), 9, np.uint8))},
    )
    data = load(folder, tmp_path / "store", resize=12)
    assert data.size == (12, 12)
    assert np.array_equal(data.pixels[0], picture(1)[:, :, ::-1])
    assert (data.pixels[3] == 9).all()
    assert any("1 images that are not square" in note and "(3)" in note for note in data.notes)
    assert load(folder, tmp_path / "store", resize=20).size == (20, 20)


def test_notes(tmp_path: Path) -> None:
    folder, labels = ten(tmp_path / "img"), tmp_path / "l.txt"
    labels.write_text("1\n0\n" * 5)
    write(
        folder,
        {
            "2.png": encode(".png", picture(2)[:, :, 0]),
            "3.png": encode(".png", np.dstack([picture(3), picture(3)[:, :, 0]])),
            "4.png": with_exif(encode(".jpg", picture(4)), 3),
            "5.png": encode(".png", np.full((12, 12, 3), 7, np.uint8)),
            "10.png": (folder / "9.png").read_bytes(),
            "8.png": (folder / "6.png").read_bytes(),
        },
    )
    notes = load(folder, tmp_path / "store", labels).notes
    assert [note.split()[:2] + [note[note.index("(") :]] for note in notes] == [
        ["1", "grey", "(2)"],
        ["1", "images", "(3)"],
        ["1", "images", "(4)"],
        ["1", "constant", "(5)"],
        ["1", "images", "(9 = 10)"],
    ]
    assert load(folder, tmp_path / "store", labels).notes == notes
    assert "both labels" not in "".join(load(folder, tmp_path / "store").notes)


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    with pytest.raises(ResourceError, match="GB are free"):
        load(ten(tmp_path / "img"), tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".lock"]


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot be written"):
        load(ten(tmp_path / "img"), tmp_path / "store")
