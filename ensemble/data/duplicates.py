"""Images that are identical or nearly identical: equal pixels, or one photograph in two versions.

The search has three steps. A hash of 64 bits says where each low frequency of an image is bright; copies differ in few
bits. An exact search by bands lists all pairs whose hashes differ in at most `RADIUS` bits, without comparing all
pairs. A check on the pixels then keeps the copies and drops the images that merely look alike, such as two faces before
a white wall.

The limits were chosen by measurement on 80,000 photographs of faces and on copies that were made of them: recompressed,
shifted by one or two pixels, brighter, darker, made smaller and enlarged again, with noise, cropped by one pixel and
mirrored. `tests/benchmarks/explore.py` measures them on drawn images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ensemble.data.dataset import Dataset
from ensemble.data.folds import together
from ensemble.data.hashes import (
    MIRROR_BITS,
    MIRRORED,
    UNCHANGED,
    Descriptors,
    Rows,
    describe,
    similar_pairs,
)
from ensemble.machine import available_cores
from ensemble.progress import Say, silent

LEAST_SHAPE = 0.95
"""The least cosine of the low frequencies of two copies. It drops nineteen of twenty pairs with similar hashes before
their pixels are read; of the copies shifted by one pixel, the lowest cosine in 1,000 was 0.967."""

LEAST_CORRELATION = 0.88
"""The least correlation of the details of two copies, at the best shift. Of the pairs of faces with similar hashes,
those that merely look alike lie about 0.55 and the copies above 0.9. Between 0.84 and 0.88 there are few of either; 40
pairs of 0.88 to 0.96 were looked at, and all of them were copies."""

SURE_CORRELATION = 0.98
"""The correlation of the details from which two images are copies whatever their colours: one may be black and
white."""

MOST_COLOUR = 0.35
"""The most that the colours of two copies with a lower correlation differ, as a share of how colourful they are. Drawn
heads often have the same details in other colours: 19 of 393 such pairs differ less. Of the copies among the
photographs, 96 % differ less, and of those that were made by each change 98 % or more."""

COLOUR_SIZE, COLOURLESS = 8, 4.0
"""The side in pixels at which colours are compared, and the root mean square of the colour differences, in levels,
below which an image counts as having this much: JPEG changes the colours of a grey image by one or two levels."""

CHECKED_SIZE = 64
"""The side in pixels at which details are compared. Larger images are made smaller, so that the check takes equally
long for all sizes."""

SHIFT = 2
"""The largest shift between two copies, in pixels of `CHECKED_SIZE`, down and across."""

FINE, COARSE = 1.0, 3.0
"""Standard deviations of the two Gaussian blurs, in pixels of `CHECKED_SIZE`, whose difference is called the details.
It has neither the noise of a codec, nor brightness and large areas, in which portraits resemble each other."""

CHECKED = 4096
"""The pairs that are checked at a time. In between, the pairs that others connect already are dropped."""


@dataclass(frozen=True)
class Copies:
    """Pairs of nearly identical images.

    Attributes
    ----------
    first, second : int64 arrays (p,)
        Rows.
    correlation : float32 array (p,)
        Of the details, from `LEAST_CORRELATION` to 1.
    mirrored : bool array (p,)
        Whether the second is a copy of the mirrored first.
    """

    first: Rows
    second: Rows
    correlation: NDArray[np.float32]
    mirrored: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: list[tuple[Rows, Rows, NDArray[np.float32], bool]]) -> Copies:
        """Return the pairs of several searches, in the order of their rows."""
        if not parts:
            empty = np.empty(0, np.int64)
            return cls(empty, empty, np.empty(0, np.float32), np.empty(0, bool))
        first, second, correlation = (np.concatenate([part[k] for part in parts]) for k in range(3))
        mirrored = np.concatenate([np.full(len(part[0]), part[3]) for part in parts])
        order = np.lexsort((second, first))
        return cls(first[order], second[order], correlation[order].astype(np.float32), mirrored[order])


def compare(
    first: Callable[[int], NDArray[np.uint8]],
    second: Callable[[int], NDArray[np.uint8]],
    pairs: int,
    mirrored: bool,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Return which pairs of images are copies, and how their details correlate at the shift where they do most.

    Parameters
    ----------
    first, second : callables
        The number of a pair -> the pixels (H, W, 3) of its image.
    pairs : int
    mirrored : bool
        Whether the second image is mirrored.

    Returns
    -------
    bool array (pairs,) and float32 array (pairs,)
    """

    def of_pair(pair: int) -> tuple[bool, float]:
        image, other = first(pair), second(pair)
        other = other[:, ::-1] if mirrored else other
        template = _details(image)[SHIFT:-SHIFT, SHIFT:-SHIFT]
        correlation = float(cv2.matchTemplate(_details(other), template, cv2.TM_CCOEFF_NORMED).max())
        if not LEAST_CORRELATION <= correlation < SURE_CORRELATION:
            return correlation >= SURE_CORRELATION, correlation
        return colour_difference(image, other) <= MOST_COLOUR, correlation

    def of_range(rows: range) -> list[tuple[bool, float]]:
        return [of_pair(row) for row in rows]

    step = -(-pairs // len(available_cores())) or 1
    with ThreadPoolExecutor(len(available_cores())) as pool:
        parts = pool.map(of_range, [range(start, min(start + step, pairs)) for start in range(0, pairs, step)])
        results = [result for part in parts for result in part]
    return np.array([copy for copy, _ in results], bool), np.array([each for _, each in results], np.float32)


def colour_difference(image: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return how much the colours of two images (H, W, 3) differ, as a share of how colourful they are.

    The colours are the two colour differences of YCrCb at 8 × 8 pixels. Those of the other image are scaled by the best
    factor between a half and two first, since brightness scales them too.
    """
    a, b = _colours(image), _colours(other)
    scale = np.clip(a @ b / max(float(b @ b), 1e-6), 0.5, 2)
    colourful = np.sqrt(max(float(a @ a), float(b @ b)) / len(a))
    return float(np.sqrt(np.mean((a - scale * b) ** 2)) / max(colourful, COLOURLESS))


def find_copies(pixels: NDArray[np.uint8], descriptors: Descriptors) -> Copies:
    """Find the pairs of nearly identical images in a set.

    Of identical images, only the first takes part. Pairs of images that other pairs connect already may be left out, so
    that a thousand copies of one image need a thousand checks and not a million.

    Parameters
    ----------
    pixels : uint8 array (n, H, W, 3)
    descriptors : Descriptors
        Of these images.
    """
    rows = _searched(descriptors)
    unit = np.arange(len(rows))
    parts: list[tuple[Rows, Rows, NDArray[np.float32], bool]] = []
    for mirrored in (False, True):
        pairs = similar_pairs(descriptors.hashes[rows], changed=MIRROR_BITS if mirrored else UNCHANGED)
        for first, second in _batches(pairs, descriptors.shapes[rows], None, mirrored):
            for start in range(0, len(first), CHECKED):
                a, b = first[start : start + CHECKED], second[start : start + CHECKED]
                apart = unit[a] != unit[b]
                a, b = a[apart], b[apart]
                kept, correlation = _checked(pixels, rows[a], pixels, rows[b], mirrored)
                parts.append((rows[a[kept]], rows[b[kept]], correlation[kept], mirrored))
                if kept.any():
                    unit = _connected(unit, a[kept], b[kept])
    return Copies.joined(parts)


def find_overlaps(
    pixels: NDArray[np.uint8],
    descriptors: Descriptors,
    others: NDArray[np.uint8],
    other_descriptors: Descriptors,
) -> Copies:
    """Find the images of another set that are in this one too, identically or nearly so.

    Returns
    -------
    Copies
        The first row is one of `pixels`, the second one of `others`; of each of the others, at most one pair. Identical
        images have the correlation 1 and come before nearly identical ones.
    """
    known, first_row = np.unique(descriptors.digests, return_index=True)
    at = np.minimum(np.searchsorted(known, other_descriptors.digests), max(len(known) - 1, 0))
    same = np.flatnonzero(known[at] == other_descriptors.digests) if len(known) else np.empty(0, np.int64)
    parts: list[tuple[Rows, Rows, NDArray[np.float32], bool]] = []
    parts.append((first_row[at[same]].astype(np.int64), same, np.ones(len(same), np.float32), False))
    paired = other_descriptors.flat.copy()
    paired[same] = True
    rows = _searched(descriptors)
    for mirrored in (False, True):
        open_rows = np.flatnonzero(~paired)
        changed = MIRROR_BITS if mirrored else UNCHANGED
        pairs = similar_pairs(descriptors.hashes[rows], other_descriptors.hashes[open_rows], changed=changed)
        shapes, other_shapes = descriptors.shapes[rows], other_descriptors.shapes[open_rows]
        for first, second in _batches(pairs, shapes, other_shapes, mirrored):
            a, b = rows[first], open_rows[second]
            a, b = a[~paired[b]], b[~paired[b]]
            kept, correlation = _checked(pixels, a, others, b, mirrored)
            a, b, correlation = a[kept], b[kept], correlation[kept]
            order = np.lexsort((a, -correlation, b))
            best = order[np.unique(b[order], return_index=True)[1]]
            parts.append((a[best], b[best], correlation[best], mirrored))
            paired[b] = True
    return Copies.joined(parts)


def copy_groups(descriptors: Descriptors, copies: Copies, groups: Rows | None = None) -> Rows:
    """Return the unit of each row: identical and nearly identical images, and those of one group, share a unit.

    Parameters
    ----------
    descriptors : Descriptors
    copies : Copies
        What `find_copies` found.
    groups : int64 array (n,), optional

    Returns
    -------
    int64 array (n,)
        The number of the first row of the unit.
    """
    identical = together(descriptors.digests, groups)
    return _connected(identical, copies.first, copies.second)


def fold_units(dataset: Dataset, near_duplicates: str = "ignore", say: Say = silent) -> Rows:
    """Return the unit of each row: rows of one unit are held out together.

    Parameters
    ----------
    dataset : Dataset
    near_duplicates : {"ignore", "group"}
        With "group", nearly identical images share a unit, as images of equal files and of one group always do.
    say : callable
        Receives a line that counts the images that are grouped.

    Returns
    -------
    int64 array (n,)
        The number of the first row of the unit.
    """
    units = together(dataset.digests, dataset.groups)
    if near_duplicates == "ignore":
        return units
    descriptors = describe(dataset.pixels, "compare images")
    copies = find_copies(dataset.pixels, descriptors)
    sizes = np.unique(copy_groups(descriptors, copies), return_counts=True)[1]
    grouped = sizes[sizes > 1]
    say(f"{grouped.sum()} identical or nearly identical images are kept together in folds, in {len(grouped)} groups")
    return copy_groups(descriptors, copies, units)


def _searched(descriptors: Descriptors) -> Rows:
    """Return the rows that are compared: the first of identical images, where it is not flat."""
    _, first = np.unique(descriptors.digests, return_index=True)
    return np.sort(first[~descriptors.flat[first]]).astype(np.int64)


def _batches(
    pairs: Iterator[tuple[Rows, Rows]],
    shapes: NDArray[np.float32],
    others: NDArray[np.float32] | None,
    mirrored: bool,
) -> Iterator[tuple[Rows, Rows]]:
    """Yield the pairs whose low frequencies agree, gathered to batches of about `CHECKED` pairs."""
    database = shapes if others is None else others
    signs = MIRRORED if mirrored else np.float32(1)
    held: list[tuple[Rows, Rows]] = []
    count = 0
    for first, second in pairs:
        agrees = np.einsum("ij,ij->i", shapes[first] * signs, database[second]) >= LEAST_SHAPE
        held.append((first[agrees], second[agrees]))
        count += int(agrees.sum())
        if count >= CHECKED:
            yield np.concatenate([each[0] for each in held]), np.concatenate([each[1] for each in held])
            held, count = [], 0
    if count:
        yield np.concatenate([each[0] for each in held]), np.concatenate([each[1] for each in held])


def _checked(
    pixels: NDArray[np.uint8], first: Rows, others: NDArray[np.uint8], second: Rows, mirrored: bool
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Return which pairs of rows are copies, and their correlations."""
    return compare(lambda pair: pixels[first[pair]], lambda pair: others[second[pair]], len(first), mirrored)


def _colours(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    side = (COLOUR_SIZE, COLOUR_SIZE)
    small = cv2.resize(np.ascontiguousarray(pixels), side, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb)[..., 1:].ravel() - 128.0, np.float32)


def _details(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    luma = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    if luma.shape != (CHECKED_SIZE, CHECKED_SIZE):
        shrinks = min(luma.shape) >= CHECKED_SIZE
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        luma = cv2.resize(luma, (CHECKED_SIZE, CHECKED_SIZE), interpolation=method)
    values = luma.astype(np.float32)
    fine, coarse = (cv2.GaussianBlur(values, (0, 0), sigma) for sigma in (FINE, COARSE))
    return np.asarray(fine - coarse, np.float32)


def _connected(unit: Rows, first: Rows, second: Rows) -> Rows:
    """Return the units, each named by its lowest row, once these rows are connected too."""
    from scipy.sparse import coo_array  # type: ignore[import-untyped, unused-ignore]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped, unused-ignore]

    n = len(unit)
    starts, ends = np.concatenate([np.arange(n), first]), np.concatenate([unit, second])
    links = coo_array((np.ones(len(starts), np.int8), (starts, ends)), shape=(n, n))
    component = connected_components(links, directed=False)[1]
    _, lowest, component = np.unique(component, return_index=True, return_inverse=True)
    return lowest[component].astype(np.int64)
