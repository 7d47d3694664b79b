"""Decodes every image once into a memory map on disk, which is used again as long as the files stay the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.data.dataset import BadImage, Dataset, Source
from ensemble.data.files import SHOWN
from ensemble.data.form import Form
from ensemble.data.mapped import open_pixels
from ensemble.data.pixels import Header, inspect
from ensemble.errors import ArtifactError, ConfigError, DataError, ResourceError, printable
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

UPRIGHT = {"oriented": "images with an EXIF orientation: it is applied, in training and in prediction"}
"""The note where EXIF orientations are applied."""


def load_dataset(
    source: Source,
    store: Path,
    resize: int | None = None,
    threads: int | None = None,
    say: Say = silent,
    on_bad: str = "error",
    exif: str = "ignore",
) -> Dataset:
    """Return the images of `source` as a `Dataset`; decode them unless `store` holds the pixels of these files.

    Every file is read and hashed at every start, and so are the stored pixels. These are kept in
    ``store/<key>/pixels.npy``; the key is a hash of the content of the files, `resize` and the image policy. The folder
    is written beside and renamed, so that it is never incomplete. Memory is bounded for any number of images.

    Images that are left out have no rows: the result is that of a set without them. The store records them, so that
    they are not decoded again.

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
    on_bad : {"error", "skip"}
        What to do with images that cannot be used: raise an error, or leave them out.
    exif : {"ignore", "apply"}
        Whether to use the pixels as they are stored, or to apply the EXIF orientations.

    Raises
    ------
    DataError
        Some images cannot be used, or with "skip" all of them; the message counts them and lists the first.
    ConfigError
        `on_bad` or `exif` has another value.
    ResourceError
        `store` has too little space or cannot be written, or a file changed while it was read.
    """
    _refuse_unknown("on_bad", on_bad, "error", "skip")
    _refuse_unknown("exif", exif, "ignore", "apply")
    threads, skip, whole = threads or len(available_cores()), on_bad == "skip", source
    digests: NDArray[np.bytes_] = np.zeros(len(source), "S64")

    def hash_row(row: int) -> None:
        digests[row] = hashlib.sha256(source.read(row)).hexdigest()

    unreadable = _each(len(source), hash_row, threads, "read")
    if unreadable:
        _refuse_bad(source, unreadable, skip)
        readable = _other_rows(len(source), unreadable)
        source, digests = source.rows(readable), digests[readable]
    form = Form(resize, exif == "apply")
    folder = store / store_key(digests, form)
    try:
        stored = _open_store(folder, digests, silent)
        if stored is None:
            with locked(store, wait=True, say=say):
                for unfinished in store.glob("decoding-*"):  # a killed process leaves its folder
                    shutil.rmtree(unfinished)
                stored = _open_store(folder, digests, say) or _write_store(folder, source, digests, form, threads, skip)
    except OSError as error:
        raise ResourceError(printable(store), f"cannot be written: {error.strerror or error}") from error
    pixels, traits, undecodable = stored
    bad = _bad_images(whole, unreadable) + _bad_images(source, undecodable)
    if undecodable:
        _refuse_bad(source, undecodable, skip)
        decoded = _other_rows(len(source), undecodable)
        source, digests = source.rows(decoded), digests[decoded]
    left_out = (left_out_note(bad, len(whole)),) if bad else ()
    notes = (*source.notes, *left_out, *_trait_notes(source, traits, exif), *_conflict_notes(source, digests))
    fingerprint = _fingerprint(source, digests, pixels, form)
    for note in notes:
        say(f"note: {source.where}: {note}")
    return Dataset(
        source.ids, source.labels, source.groups, pixels, digests, fingerprint, notes, source.classes, bad, exif
    )


def store_key(digests: NDArray[np.bytes_], form: Form) -> str:
    """Return the name of the folder of the decoded images whose files have these hashes."""
    key = hashlib.sha256(digests.tobytes() + f"{form.resize} {form.policy} {SCHEMA_VERSION}".encode()).hexdigest()
    return key[:16]


def _refuse_unknown(name: str, value: str, *known: str) -> None:
    if value not in known:
        raise ConfigError(name, f"must be {' or '.join(known)}; got {printable(value)}")


def _each(n: int, work: Callable[[int], None], threads: int, what: str) -> Reasons:
    """Call `work` with every row of n, in threads; return the rows where it raised a `DataError`, and the reasons."""

    def chunk(rows: range) -> Reasons:
        reasons = {}
        for row in rows:
            try:
                work(row)
            except DataError as error:
                reasons[row] = error.found + (f" ({error.remedy})" if error.remedy else "")
        return reasons

    found: Reasons = {}
    chunks = [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    pool = ThreadPoolExecutor(threads)
    try:
        with progress(n, what) as bar:
            for rows, reasons in zip(chunks, pool.map(chunk, chunks), strict=True):
                bar.advance(len(rows))
                found |= reasons
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _refuse_bad(source: Source, reasons: Reasons, skip: bool) -> None:
    """Raise `DataError` where images cannot be used, unless others are left and these may be skipped."""
    if not reasons or (skip and len(reasons) < len(source)):
        return
    found = f"{len(reasons)} of {len(source)} images cannot be used: {_first(_bad_images(source, reasons))}"
    raise DataError(source.where, found, "replace them" + ("" if skip else ", or leave them out with --on-bad skip"))


def left_out_note(bad: tuple[BadImage, ...], n: int) -> str:
    """Return the note that counts the images of n that are left out, and names the first."""
    return f"{len(bad)} of {n} images cannot be used and are left out: {_first(bad)}"


def _first(bad: tuple[BadImage, ...]) -> str:
    more = f", and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return ", ".join(f"{printable(each.name)} {each.reason}" for each in bad[:SHOWN]) + more


def _bad_images(source: Source, reasons: Reasons) -> tuple[BadImage, ...]:
    return tuple(BadImage(source.names[row], reason) for row, reason in sorted(reasons.items()))


def _other_rows(n: int, rows: Iterable[int]) -> NDArray[np.intp]:
    return np.delete(np.arange(n), sorted(rows))


Reasons = dict[int, str]
"""The rows that cannot be used, and why."""

Stored = tuple[NDArray[np.uint8], NDArray[np.bool_], Reasons]
"""Pixels (n, H, W, 3) and traits (n, len(TRAITS)) of the images that can be decoded, and the rows of the others."""


@dataclass(frozen=True)
class StoreFacts:
    """`store.json`: the number of decoded images, their height and width, and the hashes of the other files by name.

    `bad` says of each row that could not be decoded why not. Stores of older versions have no such rows and no hashes.
    """

    n: int
    size: tuple[int, int]
    bad: Reasons = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)


def read_store(folder: Path, digests: NDArray[np.bytes_] | None = None) -> Stored:
    """Return the content of a store, once the hashes of its files are verified.

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
        pixels = open_pixels(folder / "pixels.npy")
        traits = np.load(folder / "traits.npy", allow_pickle=False)
        stored = (folder / "digests.txt").read_bytes()
    except (OSError, ValueError, EOFError, TypeError, KeyError, SyntaxError, OverflowError) as error:
        raise ArtifactError(folder, f"is damaged ({printable(error)})", DECODE_AGAIN) from None
    has_form = pixels.shape == (facts.n, *facts.size, 3) and traits.shape == (facts.n, len(TRAITS))
    if not has_form or pixels.dtype != np.uint8 or traits.dtype != np.bool_:
        raise ArtifactError(folder, "holds arrays of another form", DECODE_AGAIN)
    if digests is not None and (stored != _lines(digests) or facts.n + len(facts.bad) != len(digests)):
        raise ArtifactError(folder / "digests.txt", "names other images", DECODE_AGAIN)
    return pixels, traits, facts.bad


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


def _write_store(
    folder: Path, source: Source, digests: NDArray[np.bytes_], form: Form, threads: int, skip: bool
) -> Stored:
    n, resize = len(source), form.resize
    height, width = (resize, resize) if resize else _common_size(source, form)
    traits = np.zeros((n, len(TRAITS)), bool)

    def decode_row(row: int) -> None:
        name, data = printable(source.names[row]), _read_again(source, row, digests[row])
        own, header = form.pixels(data, name, (height, width))
        pixels[row] = own
        traits[row] = traits_of(own, header, resize)

    partial = Path(tempfile.mkdtemp(prefix="decoding-", dir=folder.parent))
    try:
        pixels = _allocate(partial / "pixels.npy", (n, height, width, 3))
        bad = _each(n, decode_row, threads, "decode")
        _refuse_bad(source, bad, skip)
        decoded = _other_rows(n, bad)
        _keep_rows(partial / "pixels.npy", pixels, decoded)
        traits = traits[decoded]
        np.save(partial / "traits.npy", traits)
        (partial / "digests.txt").write_bytes(_lines(digests))
        about = {
            "policy": form.policy,
            "n": len(decoded),
            "bad": bad,
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
    return open_pixels(folder / "pixels.npy"), traits, bad


def traits_of(pixels: NDArray[np.uint8], header: Header, resize: int | None) -> list[bool]:
    """Return which of `TRAITS` an image has, from its pixels (H, W, 3) and header."""
    first = pixels[0, 0]
    constant = bool((pixels[0] == first).all() and (pixels == first).all())  # the first row of most images differs
    squashed = bool(resize) and header.width != header.height
    found = {"constant": constant, "squashed": squashed}
    return [found[trait] if trait in found else getattr(header, trait) for trait in TRAITS]


def _read_again(source: Source, row: int, digest: bytes) -> bytes:
    """Return the bytes of a file that was hashed before; raise `ResourceError` where they are others now."""
    name = printable(source.names[row])
    try:
        data = source.read(row)
    except DataError as error:
        raise ResourceError(name, error.found, "give the command again") from error
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise ResourceError(name, "changed while it was read", "give the command again when no program writes to it")
    return data


def _keep_rows(path: Path, pixels: np.memmap[Any, np.dtype[np.uint8]], rows: NDArray[np.intp]) -> None:
    """Move these rows of a memory map to its beginning and cut off the rest, so that the file is a whole array."""
    n, offset = len(rows), pixels.offset
    if n < len(pixels):
        for start in range(0, n, CHUNK):  # a row never moves behind one that is still to be read
            pixels[start : min(start + CHUNK, n)] = pixels[rows[start : start + CHUNK]]
    pixels.flush()
    if n < len(pixels):
        with open(path, "rb+") as file:
            # numpy pads the header, so that it keeps its length when the first axis changes.
            header = {"descr": "|u1", "fortran_order": False, "shape": (n, *pixels.shape[1:])}
            np.lib.format.write_array_header_1_0(file, header)
            assert file.tell() == offset
            file.truncate(offset + n * int(np.prod(pixels.shape[1:])))


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


def _common_size(source: Source, form: Form) -> tuple[int, int]:
    """Return the most frequent height and width in a sample of the images."""
    sizes: Counter[tuple[int, int]] = Counter()
    for row in np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int)):
        with contextlib.suppress(DataError):
            sizes[form.size(inspect(source.read(row), source.names[row]))] += 1
    return sizes.most_common(1)[0][0] if sizes else (1, 1)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _trait_notes(source: Source, traits: NDArray[np.bool_], exif: str) -> Iterator[str]:
    for column, what in enumerate((TRAITS | (UPRIGHT if exif == "apply" else {})).values()):
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
        both = "both" if len(source.classes or ()) <= 2 else "different"
        yield f"{conflicting.size} images occur twice, byte for byte, with {both} labels ({_some(pairs)})"


def _some(names: Iterator[str]) -> str:
    shown = [printable(name) for name, _ in zip(names, range(SHOWN), strict=False)]
    return ", ".join(shown) + (", …" if next(names, None) is not None else "")


def _fingerprint(source: Source, digests: NDArray[np.bytes_], pixels: NDArray[np.uint8], form: Form) -> str:
    fingerprint = hashlib.sha256(f"policy {form.policy}, size {pixels.shape[1:3]}\n".encode())
    fingerprint.update("\0".join(source.ids.tolist()).encode("utf-8", "surrogateescape"))
    for array in (source.labels, source.groups, digests):
        fingerprint.update(b"\0\0none" if array is None else b"\0\0" + array.tobytes())
    return fingerprint.hexdigest()
