"""From bytes to uint8 RGB under one image policy, and the memory-mapped store that is decoded once.

The image policy, the same in training and in prediction:

- JPEG, PNG, BMP and WebP, told by their content; a file must be whole to its last byte and hold one still image of
  8 bits a channel and at most `MAX_PIXELS` pixels. CMYK, 16-bit and animated files are refused.
- Grey becomes RGB by using its channel three times. Alpha is dropped; the colour below it is used as it is stored.
- An EXIF orientation is ignored: the pixels are used as they are stored.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ensemble.data import MAX_PIXELS
from ensemble.data.source import SHOWN, Dataset, Source
from ensemble.errors import DataError, ResourceError, printable
from ensemble.progress import progress

POLICY_VERSION = 1
SCHEMA_VERSION = 1
CHUNK = 64
SAMPLED = 101
SPARE_BYTES = 2**26

TRAITS = {
    "grey": "grey images: their channel is used three times",
    "alpha": "images with alpha: it is dropped",
    "oriented": "images with an EXIF orientation: it is ignored, in training and in prediction",
    "constant": "constant images",
    "squashed": "images that are not square: resized to a square",
}

_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_OTHER_FORMATS = {b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"PK\3\4": "zip"}


@dataclass(frozen=True)
class Header:
    """What the structure of a file says about its image: size in pixels, and what the policy must know."""

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
        The file is refused, or is not whole; nothing is ever decoded in part.
    """
    header = inspect(data, name)
    pixels = None
    with contextlib.suppress(cv2.error):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.shape != (header.height, header.width, 3) or pixels.dtype != np.uint8:
        raise DataError(name, "is damaged: its header can be read, but not its pixels")
    return Image(np.asarray(pixels, np.uint8), header)


def inspect(data: bytes, name: str) -> Header:
    """Read the structure of a file to its end, without decoding it; raise `DataError` where the policy refuses it."""
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
    raise DataError(name, f"is {kind}; must be JPEG, PNG, BMP or WebP" if kind else "is no JPEG, PNG, BMP or WebP")


def _bounded(name: str, width: int, height: int) -> tuple[int, int]:
    if not 0 < width * height <= MAX_PIXELS or width < 0:
        raise DataError(name, f"claims {width} × {height} pixels; at most {MAX_PIXELS} are decoded")
    return width, height


def _inspect_jpeg(data: bytes, name: str) -> Header:
    at, header, oriented, in_scan, scans = 2, None, False, False, 0
    while found := (_NEXT_MARKER.search if in_scan else _NEXT_MARKER.match)(data, at):
        marker, at = found[1][0], found.end()
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
            _bounded(name, width, height)
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
            _bounded(name, width, height)
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
    _bounded(name, width, height)
    if info < 40 or depth not in (1, 4, 8, 24, 32) or coding not in (0, 3):
        raise DataError(name, "is a BMP of an old or packed kind", "convert it to PNG")
    if max(declared, offset + (width * depth + 31) // 32 * 4 * height) > len(data):
        raise DataError(name, "is cut short: this BMP is longer")
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
            size = _bounded(name, *(1 + int.from_bytes(body[i : i + 3], "little") for i in (4, 7)))
            alpha = bool(body[0] & 16)
        elif kind in (b"VP8 ", b"VP8L"):
            framed = True
            width, height, opaque = _webp_frame(kind, body)
            frame = _bounded(name, width, height)
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
    """Return whether an EXIF block asks for another orientation than the stored one."""
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


def load_dataset(source: Source, store: Path, resize: int | None = None, threads: int | None = None) -> Dataset:
    """Return the data set behind `source`, decoding it unless `store` holds just these files already.

    Every file is read and hashed at every start; pixels are kept in ``store/<key>/pixels.npy``, where the key is a
    hash of the files' content, `resize` and the image policy. The folder appears whole or not at all. Memory is
    bounded for any number of images.

    Parameters
    ----------
    source : Source
    store : Path
        A folder; made where missing.
    resize : int, optional
        Height and width that every image is brought to, in pixels; an image that is not square is squashed. Without it
        all images must have one size.
    threads : int, optional
        Readers and decoders; as many as there are cores by default.

    Raises
    ------
    DataError
        Images that cannot be used: their count and the first of them.
    ResourceError
        No room in `store`, or no permission to write there.
    """
    threads = threads or os.cpu_count() or 1
    digests: NDArray[np.bytes_] = np.zeros(len(source), "S64")

    def hash_one(row: int) -> None:
        digests[row] = hashlib.sha256(source.read(row)).hexdigest()

    _each(source, hash_one, threads, "read")
    key = hashlib.sha256(digests.tobytes() + f"{resize} {POLICY_VERSION} {SCHEMA_VERSION}".encode()).hexdigest()
    folder = store / key[:16]
    try:
        stored = _open_store(folder, digests)
        if stored is None:
            with _locked(store):
                stored = _open_store(folder, digests) or _write_store(folder, source, digests, resize, threads)
    except OSError as error:
        raise ResourceError(printable(store), f"cannot be written: {error.strerror or error}") from error
    pixels, traits = stored
    notes = (*_trait_notes(source, traits), *_conflict_notes(source, digests))
    fingerprint = _fingerprint(source, digests, pixels)
    return Dataset(source.ids, source.labels, source.groups, pixels, digests, fingerprint, notes)


def _each(source: Source, work: Callable[[int], None], threads: int, what: str) -> None:
    """Call `work` with every row, in threads, and raise one `DataError` for all rows for which it raised one."""

    def chunk(rows: range) -> tuple[int, list[str]]:
        errors = []
        for row in rows:
            try:
                work(row)
            except DataError as error:
                errors.append(f"{error.where} {error.found}" + (f" ({error.remedy})" if error.remedy else ""))
        return len(errors), errors[:SHOWN]

    n, bad, shown = len(source), 0, list[str]()
    chunks = [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    pool = ThreadPoolExecutor(threads)
    try:
        with progress(n, what) as bar:
            for rows, (count, errors) in zip(chunks, pool.map(chunk, chunks), strict=True):
                bar.advance(len(rows))
                bad += count
                shown += errors[: SHOWN - len(shown)]
    finally:
        pool.shutdown(cancel_futures=True)
    if bad:
        more = f", and {bad - len(shown)} more" if bad > len(shown) else ""
        raise DataError(
            source.where, f"{bad} of {n} images cannot be used: {', '.join(shown)}{more}", "replace or remove them"
        )


Stored = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""Pixels (n, H, W, 3) and traits (n, len(TRAITS))."""


def _open_store(folder: Path, digests: NDArray[np.bytes_]) -> Stored | None:
    try:
        about = json.loads((folder / "store.json").read_text())
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        traits = np.load(folder / "traits.npy", allow_pickle=False)
        listed = (folder / "digests.txt").read_bytes()
    except (OSError, ValueError, EOFError):
        return None
    shape = (len(digests), *about.get("size", ()), 3)
    whole = pixels.shape == shape and pixels.dtype == np.uint8 and traits.shape == (len(digests), len(TRAITS))
    return (pixels, traits) if whole and listed == _lines(digests) else None


def _lines(digests: NDArray[np.bytes_]) -> bytes:
    return b"".join(digest + b"\n" for digest in digests.tolist())


@contextlib.contextmanager
def _locked(store: Path) -> Iterator[None]:
    """Be the only writer of `store`, and remove what a killed one left."""
    store.mkdir(parents=True, exist_ok=True)
    with open(store / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in store.glob("decoding-*"):
            shutil.rmtree(left)
        yield


def _write_store(folder: Path, source: Source, digests: NDArray[np.bytes_], resize: int | None, threads: int) -> Stored:
    n = len(source)
    height, width = (resize, resize) if resize else _common_size(source)
    traits = np.zeros((n, len(TRAITS)), bool)

    def decode_one(row: int) -> None:
        name, data = printable(source.names[row]), source.read(row)
        if hashlib.sha256(data).hexdigest().encode() != digests[row]:
            raise DataError(name, "changed while it was read")
        image = decode(data, name)
        header, fitted = image.header, image.pixels
        if resize:
            fitted = _resized(fitted, resize)
        elif fitted.shape != (height, width, 3):
            raise DataError(
                name, f"has {header.width} × {header.height} pixels, the set {width} × {height}", "or give --resize"
            )
        pixels[row] = fitted
        constant = bool((fitted == fitted[0, 0]).all())
        squashed = bool(resize) and header.width != header.height
        traits[row] = header.grey, header.alpha, header.oriented, constant, squashed

    partial = Path(tempfile.mkdtemp(prefix="decoding-", dir=folder.parent))
    try:
        pixels = _allocate(partial / "pixels.npy", (n, height, width, 3))
        _each(source, decode_one, threads, "decode")
        pixels.flush()
        np.save(partial / "traits.npy", traits)
        (partial / "digests.txt").write_bytes(_lines(digests))
        about = {
            "schema": SCHEMA_VERSION,
            "policy": POLICY_VERSION,
            "n": n,
            "size": [height, width],
            "resize": resize,
            "traits": dict(zip(TRAITS, traits.sum(0).tolist(), strict=True)),
        }
        (partial / "store.json").write_text(json.dumps(about, indent=2) + "\n")
        for path in (*partial.iterdir(), partial):
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    stored = _open_store(folder, digests)
    if stored is None:
        raise ResourceError(printable(folder), "was written but cannot be read back")
    return stored


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap[tuple[int, ...], np.dtype[np.uint8]]:
    """Make a memory map whose room on disk is reserved, so that a full disk is an error here and not a crash later."""
    need, free = int(np.prod(shape)) + SPARE_BYTES, shutil.disk_usage(path.parent).free
    if need > free:
        raise ResourceError(
            printable(path.parent.parent), f"needs {need / 1e9:.2f} GB for the pixels; {free / 1e9:.2f} GB are free"
        )
    pixels: np.memmap[tuple[int, ...], np.dtype[np.uint8]]
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return pixels


def _common_size(source: Source) -> tuple[int, int]:
    """Return the height and width that most of a sample of the images have."""
    sizes: Counter[tuple[int, int]] = Counter()
    for row in np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int)):
        with contextlib.suppress(DataError):
            header = inspect(source.read(row), source.names[row])
            sizes[header.height, header.width] += 1
    return sizes.most_common(1)[0][0] if sizes else (1, 1)


def _resized(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if pixels.shape[:2] == (size, size):
        return pixels
    shrinks = size <= min(pixels.shape[:2])
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (size, size), interpolation=method), np.uint8)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _trait_notes(source: Source, traits: NDArray[np.bool_]) -> Iterator[str]:
    for column, what in enumerate(TRAITS.values()):
        if rows := np.flatnonzero(traits[:, column]).tolist():
            yield f"{len(rows)} {what} ({_some(source.ids[row] for row in rows)})"


def _conflict_notes(source: Source, digests: NDArray[np.bytes_]) -> Iterator[str]:
    if source.labels is None:
        return
    _, first, same = np.unique(digests, return_index=True, return_inverse=True)
    differs = source.labels != source.labels[first[same]]
    conflicting = np.unique(same[differs])
    if conflicting.size:
        twins = {int(same[row]): row for row in np.flatnonzero(differs)[::-1]}
        pairs = (f"{source.ids[first[file]]} = {source.ids[twins[file]]}" for file in conflicting.tolist())
        yield f"{conflicting.size} images come byte-identical with both labels ({_some(pairs)})"


def _some(names: Iterator[str]) -> str:
    shown = [printable(name) for name, _ in zip(names, range(SHOWN), strict=False)]
    return ", ".join(shown) + (", …" if next(names, None) is not None else "")


def _fingerprint(source: Source, digests: NDArray[np.bytes_], pixels: NDArray[np.uint8]) -> str:
    whole = hashlib.sha256(f"policy {POLICY_VERSION}, size {pixels.shape[1:3]}\n".encode())
    whole.update("\0".join(source.ids.tolist()).encode("utf-8", "surrogateescape"))
    for array in (source.labels, source.groups, digests):
        whole.update(b"\0\0none" if array is None else b"\0\0" + array.tobytes())
    return whole.hexdigest()
