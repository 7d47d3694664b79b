"""The images and labels that `TheraClassifier` takes: folders, manifests, paths or pixels, with labels of any kind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemble.data.arrays import dataset_from_arrays, source_from_paths
from ensemble.decision.rates import Labels
from ensemble.errors import DataError
from ensemble.progress import Say, silent
from ensemble.threshold_stacker import column, encode_labels, labels_of_names

if TYPE_CHECKING:
    from ensemble.data.dataset import Dataset, Source

Images: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | NDArray[np.uint8]"
"""The path of a folder, zip file or manifest; the paths of n images; or pixels (n, H, H, 3)."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images that are in memory, (n, H, H, 3), with the labels and groups that were given for them."""

    array: NDArray[np.uint8]
    labels: Labels | None = None
    groups: Any = None
    classes: tuple[str, ...] | None = None


def open_images(
    images: Images,
    n_classes: int | None,
    label_file: Path | None = None,
    on_bad: str = "error",
    find_labels: bool = True,
    follow_links: bool = False,
) -> Source | Pixels:
    """Return images that are not decoded yet: a source if they are files, else pixels.

    Parameters
    ----------
    images : Images
    n_classes, label_file, on_bad, find_labels, follow_links
        As in `data.source.open_source`.

    Raises
    ------
    DataError
        They are neither paths nor pixels, or cannot be read.
    """
    from ensemble.data.source import open_source

    if isinstance(images, str | os.PathLike):
        return open_source(Path(images), label_file, None, follow_links, find_labels, on_bad, n_classes=n_classes)
    try:
        array = np.asarray(images)
    except ValueError as error:
        raise DataError("X", f"must be paths or pixels of one shape ({error})") from None
    if array.ndim == 1 and array.size and all(isinstance(each, str | os.PathLike) for each in array.tolist()):
        return source_from_paths(array.tolist(), on_bad=on_bad)
    return Pixels(array)


def labels_of(images: Source | Pixels, y: Any, n_classes: int | None) -> tuple[NDArray[Any], Labels]:
    """Return the labels of the user, sorted (C,), and the label of each image as their index (n,).

    They are those of the images, if these have labels, and otherwise those of `y`.

    Raises
    ------
    DataError
        There are no labels, both have labels, or there are not `n_classes` classes.
    """
    if images.labels is not None:
        if y is not None and not isinstance(y, str | os.PathLike):
            raise DataError("y", "is given, and the images bring their own labels", "leave it out")
        return labels_of_names(images.classes), images.labels
    if y is None:
        raise DataError("y", "fit requires y to be passed, but the target y is None", "the images bring no labels")
    classes, labels = encode_labels(y, multi_class=True)
    if n_classes not in (None, len(classes)):
        raise DataError("y", f"must hold {n_classes} classes, as `classes` says; got {len(classes)}")
    return classes, labels


def with_labels(images: Source | Pixels, labels: Labels, groups: Any, classes: NDArray[Any]) -> Source | Pixels:
    """Return the images with labels (n,), the names of more than two classes (C,), and groups (n,) or None.

    Raises
    ------
    DataError
        The numbers of images, labels and groups differ.
    """
    names = tuple(map(str, classes)) if len(classes) > 2 else None
    if isinstance(images, Pixels):
        return replace(images, labels=labels, groups=groups, classes=names)
    if len(labels) != len(images):
        raise DataError("y", f"must hold a label for each of {len(images)} images; got {len(labels)}")
    if groups is not None:
        numbers = np.unique(column("groups", groups, len(images)), return_inverse=True)[1]
        images = replace(images, groups=numbers.astype(np.int64))
    return replace(images, labels=labels, classes=names or images.classes)


def load_images(
    images: Source | Pixels,
    pixels: Path,
    resize: int | None,
    exif: str,
    on_bad: str = "error",
    say: Say = silent,
) -> Dataset:
    """Return decoded images; those of files are stored in the folder `pixels`.

    The other parameters are those of `data.store.load_dataset`.

    Raises
    ------
    DataError
        Images cannot be used, or pixels in memory are not of the size `resize`.
    """
    from ensemble.data.store import load_dataset

    if not isinstance(images, Pixels):
        return load_dataset(images, pixels, resize, say=say, on_bad=on_bad, exif=exif)
    dataset = dataset_from_arrays(images.array, images.labels, images.groups, classes=images.classes)
    if resize not in (None, dataset.size[0]):
        raise DataError("X", f"must have {resize} pixels a side; got {dataset.size[0]}", "resize it first")
    return dataset
