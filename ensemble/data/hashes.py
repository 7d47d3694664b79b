"""Perceptual hashes of images, and an exact search for pairs of similar hashes that does not compare all pairs.

A hash of 64 bits says which of the lowest frequencies of the cosine transform of an image are positive. Copies of one
picture differ in few bits, whatever their brightness; a mirrored copy differs in the bits of `MIRROR_BITS`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.data.blocks import each_block, grey
from ensemble.progress import progress

Rows = NDArray[np.int64]

BANDS, BITS = 4, 16
"""A hash is cut into four bands of 16 bits, so that a band is the index of a table of 65,536 entries."""

RADIUS = 11
"""Two hashes are similar if at most this many of 64 bits differ. Eleven is the most that two flipped bits in one of
four bands reach. It holds 0.997 of the copies shifted by one pixel (7 bits hold 0.949), and all recompressed ones."""

LEAST_CONTRAST = 4.0
"""The least standard deviation of the luma, in grey levels, of an image that is compared. In flatter ones, a codec's
noise decides on the hash. Constant and blank images are reported as such."""

CANDIDATES = 2**21
"""The pairs that the search holds at a time."""


def _lowest_frequencies() -> NDArray[np.int64]:
    """Return the 64 lowest frequencies (64, 2), down and across, without the mean."""
    pairs = [(u, v) for u in range(10) for v in range(10) if u + v]
    return np.array(sorted(pairs, key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair))[:64])


FREQUENCIES = _lowest_frequencies()
MIRRORED = np.where(FREQUENCIES[:, 1] % 2, -1, 1).astype(np.float32)
"""The sign that the coefficient of each frequency gets where an image is mirrored left to right."""

BIT_ORDER = np.argsort(np.arange(64) % BANDS, kind="stable")
"""The frequency of each bit: neighbours go to different bands, so that all bands tell images apart equally well."""

MIRROR_BITS = np.ascontiguousarray(np.packbits(MIRRORED[BIT_ORDER] < 0)).view(np.uint64)[0]
"""The bits that change where an image is mirrored left to right, which changes the sign of every other frequency
across."""

UNCHANGED = np.uint64(0)


@dataclass(frozen=True)
class Descriptors:
    """What the search knows of each image.

    Attributes
    ----------
    digests : bytes array (n,), dtype S32
        A hash of the pixels, in hexadecimal: equal where all pixels are equal.
    shapes : float32 array (n, 64)
        The coefficients of the cosine transform of the luma at `FREQUENCIES`, of length 1.
    flat : bool array (n,)
        Whether the contrast is below `LEAST_CONTRAST`, so that the image has no copies but identical ones.
    """

    digests: NDArray[np.bytes_]
    shapes: NDArray[np.float32]
    flat: NDArray[np.bool_]

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """The perceptual hashes, uint64 (n,): which coefficients are positive."""
        bits = np.packbits((self.shapes > 0)[:, BIT_ORDER], axis=1)
        return np.ascontiguousarray(bits).view(np.uint64).reshape(-1)


def describe(pixels: NDArray[np.uint8], what: str = "compare") -> Descriptors:
    """Describe images (n, H, W, 3) for the search for copies."""
    height, width = pixels.shape[1:3]
    down, across = _cosines(height), _cosines(width)

    def of_block(start: int, block: NDArray[np.uint8]) -> tuple[list[bytes], NDArray[np.float32], NDArray[np.bool_]]:
        digests = [hashlib.blake2b(image.data, digest_size=16).hexdigest().encode() for image in block]
        luma = grey(block).astype(np.float32)
        coefficients = (down @ luma @ across.T)[:, FREQUENCIES[:, 0], FREQUENCIES[:, 1]]
        length = np.linalg.norm(coefficients, axis=1, keepdims=True)
        flat = luma.reshape(len(luma), -1).std(axis=1) < LEAST_CONTRAST
        return digests, coefficients / np.maximum(length, np.finfo(np.float32).tiny), flat

    parts = list(each_block(pixels, of_block, what))
    return Descriptors(
        np.array([digest for part in parts for digest in part[0]], "S32"),
        np.concatenate([part[1] for part in parts]) if parts else np.empty((0, 64), np.float32),
        np.concatenate([part[2] for part in parts]) if parts else np.empty(0, bool),
    )


def similar_pairs(
    hashes: NDArray[np.uint64],
    others: NDArray[np.uint64] | None = None,
    radius: int = RADIUS,
    changed: np.uint64 = UNCHANGED,
) -> Iterator[tuple[Rows, Rows]]:
    """Yield the pairs of hashes that differ in at most `radius` bits, each pair once.

    Of four bands, one differs in at most ``radius // 4`` bits (the pigeonhole principle). For each band, a table lists
    the hashes of each of its values; a hash is compared with those in its own entry and in the entries that differ from
    it in so few bits (Norouzi, Punjani and Fleet, 2014: Fast exact search in Hamming space with multi-index hashing). A
    pair is yielded in the first band that finds it.

    Parameters
    ----------
    hashes : uint64 array (n,)
    others : uint64 array (m,), optional
        Pairs of a hash and another are sought. By default both are among `hashes`, and the first row is less than the
        second.
    radius : int
        0 to 63.
    changed : uint64
        Bits of the second hash that are changed before the two are compared, such as `MIRROR_BITS`.
    """
    database = hashes if others is None else others
    flips = min(radius // BANDS, BITS)
    masks = [sum(1 << bit for bit in bits) for k in range(flips + 1) for bits in itertools.combinations(range(BITS), k)]
    with progress(BANDS * len(masks), "search for copies", "tables") as bar:
        for band in range(BANDS):
            keys, other_keys = _band(hashes, band), _band(database, band)
            order, row_of = np.argsort(other_keys, kind="stable"), np.argsort(keys, kind="stable")
            bounds = np.concatenate([[0], np.cumsum(np.bincount(other_keys, minlength=1 << BITS))])
            ordered = keys[row_of]
            for mask in (flip ^ int(_band(changed, band)) for flip in masks):
                entry = ordered ^ mask
                starts, stops = bounds[entry], bounds[entry + 1]
                if others is None:  # of two entries, the one with the lower value looks into the other
                    starts = np.arange(1, len(ordered) + 1) if mask == 0 else starts
                    stops = np.where(entry >= ordered, stops, starts)
                for position, found in _expanded(starts, stops):
                    first, second = row_of[position], order[found]
                    difference = hashes[first] ^ database[second] ^ changed
                    close = np.flatnonzero(np.bitwise_count(difference) <= radius)
                    for earlier in range(band):
                        new = np.bitwise_count(_band(difference[close], earlier)) > flips
                        close = close[new]
                    first, second = first[close], second[close]
                    if others is None:
                        first, second = np.minimum(first, second), np.maximum(first, second)
                    if first.size:
                        yield first, second
                bar.advance()


def _cosines(size: int) -> NDArray[np.float32]:
    """Return the cosine transform (10, size) of the lowest frequencies of a row or column."""
    at = (np.arange(size) + 0.5) / size
    return np.asarray(np.cos(np.pi * np.arange(10)[:, None] * at) / np.sqrt(size), np.float32)


def _band(hashes: NDArray[np.uint64] | np.uint64, band: int) -> Rows:
    return np.asarray(hashes >> np.uint64(BITS * band) & np.uint64((1 << BITS) - 1), np.int64)


def _expanded(starts: Rows, stops: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Yield each position with every number from its start to before its stop, at most about `CANDIDATES` at a time."""
    counts = np.maximum(stops - starts, 0)
    positions = np.flatnonzero(counts)
    totals = np.cumsum(counts[positions])
    begin = 0
    while begin < len(positions):
        done = int(totals[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(totals, done + CANDIDATES, side="right")))
        chosen = positions[begin:end]
        repeated = np.repeat(chosen, counts[chosen])
        within = np.arange(len(repeated)) - np.repeat(totals[begin:end] - counts[chosen] - done, counts[chosen])
        yield repeated, starts[repeated] + within
        begin = end
