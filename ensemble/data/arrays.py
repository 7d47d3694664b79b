"""Images that Python code passes: a list of paths, or an array of pixels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.data.dataset import Dataset, Source
from ensemble.data.listing import source_of_files
from ensemble.errors import DataError


def source_from_paths(
    paths: Sequence[str | os.PathLike[str]],
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    on_bad: str = "error",
    classes: tuple[str, ...] | None = None,
) -> Source:
    """Return a source of the images at `paths`, in their order.

    Parameters
    ----------
    paths : sequence of n paths
        Distinct. The path of an image is its id.
    labels : array (n,), optional
        Class indices, 0 to C - 1.
    groups : array (n,), optional
        Images of one group stay in one fold.
    on_bad : {"error", "skip"}
        What to do with paths that name no file, as in `open_source`.
    classes : tuple of C str, optional
        The names of the classes; by default, there are two, which are 0 and 1.

    Raises
    ------
    DataError
        The list is empty, a path is repeated or names no file, or shapes differ.
    """
    source = source_of_files([os.fspath(path) for path in paths], "paths", skip_bad=on_bad == "skip")
    n = len(source)
    return replace(source, labels=_labels(labels, n, classes), groups=_groups(groups, n), classes=classes)


def dataset_from_arrays(
    images: NDArray[np.uint8],
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    ids: Sequence[str] | None = None,
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    """Return decoded images as a `Dataset`, without a store on disk.

    Parameters
    ----------
    images : uint8 array (n, H, H, 3)
        RGB. Identical images are kept in one fold.
    labels : array (n,), optional
        Class indices, 0 to C - 1.
    groups : array (n,), optional
        Images of one group stay in one fold.
    ids : sequence of n str, optional
        Distinct; by default the row numbers, "000000" onwards.
    classes : tuple of C str, optional
        The names of the classes; by default, there are two, which are 0 and 1.

    Raises
    ------
    DataError
        An argument does not have the shape or type above.
    """
    pixels = np.asarray(images)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        problem = f"must be uint8 with shape (n, H, W, 3); got {pixels.dtype} with shape {pixels.shape}"
        raise DataError("images", problem, "decode to RGB first")
    if pixels.shape[1] != pixels.shape[2]:
        raise DataError("images", f"must be square; got {pixels.shape[1]} × {pixels.shape[2]} pixels", "resize first")
    n = len(pixels)
    if not n:
        raise DataError("images", "holds no images", "give at least one image")
    names = np.array([f"{row:06d}" for row in range(n)] if ids is None else list(ids), np.str_)
    if names.shape != (n,) or len(set(names.tolist())) < n:
        raise DataError("ids", f"must be {n} distinct strings")
    pixels = np.ascontiguousarray(pixels).view()
    digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in pixels], "S64")
    y, group_of = _labels(labels, n, classes), _groups(groups, n)
    fingerprint = hashlib.sha256(f"arrays, size {pixels.shape[1:3]}\n".encode())
    fingerprint.update("\0".join(names.tolist()).encode("utf-8", "surrogateescape"))
    for array in (y, group_of, digests):
        fingerprint.update(b"\0\0none" if array is None else b"\0\0" + array.tobytes())
    return Dataset(names, y, group_of, pixels, digests, fingerprint.hexdigest(), classes=classes)


def _labels(labels: ArrayLike | None, n: int, classes: tuple[str, ...] | None) -> NDArray[np.int8] | None:
    if labels is None:
        return None
    raw: NDArray[Any] = np.asarray(labels)
    if raw.shape != (n,):
        raise DataError("labels", f"must have shape ({n},); got {raw.shape}")
    count = 2 if classes is None else len(classes)
    is_label = np.isin(raw, np.arange(count))
    if not is_label.all():
        possible = "0 or 1" if count == 2 else f"0 to {count - 1}"
        raise DataError("labels", f"must be {possible}; got {raw[~is_label][0]}")
    return raw.astype(np.int8)


def _groups(groups: ArrayLike | None, n: int) -> NDArray[np.int64] | None:
    if groups is None:
        return None
    raw: NDArray[Any] = np.asarray(groups)
    if raw.shape != (n,):
        raise DataError("groups", f"must have shape ({n},); got {raw.shape}")
    return np.unique(raw, return_inverse=True)[1].astype(np.int64)
