"""Decodes every image once into a memory map on disk, which is used again as long as the files stay the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ensemble.data.dataset import Dataset, Source
from ensemble.data.files import SHOWN
from ensemble.data.pixels import POLICY_VERSION, decode, inspect
from ensemble.errors import ArtifactError, DataError, ResourceError, printable
from ensemble.machine import available_cores
from ensemble.progress import Say, progress, silent
from ensemble.runs.files import file_sha256, read_json, write_json
from ensemble.runs.locks import locked

SCHEMA_VERSION = 1
"""The version of the store's files."""

DECODE_AGAIN = "give the command again: it decodes the images again"
"""The remedy where a store is damaged."""

CHUNK = 64
"""Images that a thread reads or decodes before it reports its progress and errors."""

SAMPLED = 101
"""Images whose headers are read to find the common size, evenly spaced over the set."""

SPARE_BYTES = 2**26
"""Bytes that must stay free on the disk after the pixels are written."""

TRAITS = {
    "grey": "grey images: their channel is used three times",
    "alpha": "images with alpha: it is dropped",
    "oriented": "images with an EXIF orientation: it is ignored, in training and in prediction",
    "cmyk": "CMYK images: they become RGB without a colour profile",
    "deep": "images with 16 bits a channel: the high byte is used",
    "unended": "JPEG images without an end marker: their pixels are whole",
    "constant": "constant images",
    "squashed": "images that are not square: resized to a square",
}
"""What is recorded of each image beside its pixels, and the note that counts it."""


def load_dataset(
    source: Source, store: Path, resize: int | None = None, threads: int | None = None, say: Say = silent
) -> Dataset:
    """Return the images of `source` as a `Dataset`; decode them unless `store` holds the pixels of these files.

    Every file is read and hashed at every start, and so are the stored pixels. These are kept in
    ``store/<key>/pixels.npy``; the key is a hash of the content of the files, `resize` and the image policy. The folder
    is written beside and renamed, so that it is never incomplete. Memory is bounded for any number of images.

    Parameters
    ----------
    source : Source
    store : Path
        A folder; made where missing.
    resize : int, optional
        Height and width of every image after resizing, in pixels; an image that is not square becomes one. Without it,
        all images must have the same size.
    threads : int, optional
        Threads that read and decode; by default, the number of cores.
    say : callable
        Receives the notes, a line each.

    Raises
    ------
    DataError
        Some images cannot be used; the message counts them and lists the first.
    ResourceError
        `store` has too little space, or cannot be written.
    """
    threads = threads or len(available_cores())
    digests: NDArray[np.bytes_] = np.zeros(len(source), "S64")

    def hash_row(row: int) -> None:
        digests[row] = hashlib.sha256(source.read(row)).hexdigest()

    _each(source, hash_row, threads, "read")
    key = hashlib.sha256(digests.tobytes() + f"{resize} {POLICY_VERSION} {SCHEMA_VERSION}".encode()).hexdigest()
    folder = store / key[:16]
    try:
        stored = _open_store(folder, digests, silent)
        if stored is None:
            with locked(store, wait=True, say=say):
                for unfinished in store.glob("decoding-*"):  # a killed process leaves its folder
                    shutil.rmtree(unfinished)
                stored = _open_store(folder, digests, say) or _write_store(folder, source, digests, resize, threads)
    except OSError as error:
        raise ResourceError(printable(store), f"cannot be written: {error.strerror or error}") from error
    pixels, traits = stored
    notes = (*source.notes, *_trait_notes(source, traits), *_conflict_notes(source, digests))
    fingerprint = _fingerprint(source, digests, pixels)
    for note in notes:
        say(f"note: {source.where}: {note}")
    return Dataset(source.ids, source.labels, source.groups, pixels, digests, fingerprint, notes, source.classes)


def _each(source: Source, work: Callable[[int], None], threads: int, what: str) -> None:
    """Call `work` with every row, in threads; raise one `DataError` for all rows where it raised one."""

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


@dataclass(frozen=True)
class StoreFacts:
    """`store.json`: the number of images, their height and width, and the hashes of the other files by name.

    Stores of older versions record no hashes.
    """

    n: int
    size: tuple[int, int]
    sha256: dict[str, str] = field(default_factory=dict)


def read_store(folder: Path, digests: NDArray[np.bytes_] | None = None) -> Stored:
    """Return the pixels and traits of a store, once the hashes of its files are verified.

    Parameters
    ----------
    folder : Path
        `pixels/<key>`.
    digests : S64 array (n,), optional
        SHA-256 of the image files that the store must be of.

    Raises
    ------
    ArtifactError
        A file is missing, damaged, of another schema, or of other images.
    """
    facts = read_json(folder / "store.json", StoreFacts, DECODE_AGAIN)
    for name, sha256 in facts.sha256.items():
        if file_sha256(folder / name) != sha256:
            raise ArtifactError(folder / name, "is not the file that thera wrote (its hash differs)", DECODE_AGAIN)
    try:
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        traits = np.load(folder / "traits.npy", allow_pickle=False)
        stored = (folder / "digests.txt").read_bytes()
    except (OSError, ValueError, EOFError, TypeError, KeyError, SyntaxError, OverflowError) as error:
        raise ArtifactError(folder, f"is damaged ({printable(error)})", DECODE_AGAIN) from None
    has_form = pixels.shape == (facts.n, *facts.size, 3) and traits.shape == (facts.n, len(TRAITS))
    if not has_form or pixels.dtype != np.uint8 or traits.dtype != np.bool_:
        raise ArtifactError(folder, "holds arrays of another form", DECODE_AGAIN)
    if digests is not None and (stored != _lines(digests) or len(pixels) != len(digests)):
        raise ArtifactError(folder / "digests.txt", "names other images", DECODE_AGAIN)
    return pixels, traits


def _open_store(folder: Path, digests: NDArray[np.bytes_], say: Say) -> Stored | None:
    """Return a store; None where there is none. One that is damaged is no store, with a warning."""
    if not folder.exists():
        return None
    try:
        return read_store(folder, digests)
    except ArtifactError as error:
        say(f"warning: {printable(error.where)}: {error.found}; the images are decoded again")
        return None


def _lines(digests: NDArray[np.bytes_]) -> bytes:
    return b"".join(digest + b"\n" for digest in digests.tolist())


def _write_store(folder: Path, source: Source, digests: NDArray[np.bytes_], resize: int | None, threads: int) -> Stored:
    n = len(source)
    height, width = (resize, resize) if resize else _common_size(source)
    traits = np.zeros((n, len(TRAITS)), bool)

    def decode_row(row: int) -> None:
        name, data = printable(source.names[row]), source.read(row)
        if hashlib.sha256(data).hexdigest().encode() != digests[row]:
            raise DataError(name, "changed while it was read")
        header = inspect(data, name)
        if not resize and (header.height, header.width) != (height, width):  # refused before its memory is needed
            raise DataError(
                name, f"has {header.width} × {header.height} pixels, the others {width} × {height}", "or give --resize"
            )
        resized = decode(data, name, header).pixels
        if resize:
            resized = _resized(resized, resize)
        pixels[row] = resized
        constant = bool((resized == resized[0, 0]).all())
        squashed = bool(resize) and header.width != header.height
        found = vars(header) | {"constant": constant, "squashed": squashed}
        traits[row] = [found[trait] for trait in TRAITS]

    partial = Path(tempfile.mkdtemp(prefix="decoding-", dir=folder.parent))
    try:
        pixels = _allocate(partial / "pixels.npy", (n, height, width, 3))
        _each(source, decode_row, threads, "decode")
        pixels.flush()
        np.save(partial / "traits.npy", traits)
        (partial / "digests.txt").write_bytes(_lines(digests))
        about = {
            "policy": POLICY_VERSION,
            "n": n,
            "size": [height, width],
            "resize": resize,
            "traits": dict(zip(TRAITS, traits.sum(0).tolist(), strict=True)),
            "sha256": {path.name: file_sha256(path) for path in partial.iterdir()},
        }
        write_json(partial / "store.json", about)
        for path in (*partial.iterdir(), partial):
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False), traits


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap[tuple[int, ...], np.dtype[np.uint8]]:
    """Create a memory map and reserve its space on disk, so that a full disk is an error here and not a crash later."""
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
    """Return the most frequent height and width in a sample of the images."""
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
        duplicates = {int(same[row]): row for row in np.flatnonzero(differs)[::-1]}
        pairs = (f"{source.ids[first[file]]} = {source.ids[duplicates[file]]}" for file in conflicting.tolist())
        yield f"{conflicting.size} images occur twice, byte for byte, with both labels ({_some(pairs)})"


def _some(names: Iterator[str]) -> str:
    shown = [printable(name) for name, _ in zip(names, range(SHOWN), strict=False)]
    return ", ".join(shown) + (", …" if next(names, None) is not None else "")


def _fingerprint(source: Source, digests: NDArray[np.bytes_], pixels: NDArray[np.uint8]) -> str:
    fingerprint = hashlib.sha256(f"policy {POLICY_VERSION}, size {pixels.shape[1:3]}\n".encode())
    fingerprint.update("\0".join(source.ids.tolist()).encode("utf-8", "surrogateescape"))
    for array in (source.labels, source.groups, digests):
        fingerprint.update(b"\0\0none" if array is None else b"\0\0" + array.tobytes())
    return fingerprint.hexdigest()
