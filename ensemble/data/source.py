"""Recognises where images and labels come from: a numbered folder, class folders, a zip, or a manifest."""

from __future__ import annotations

import functools
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ensemble.data.files import (
    image_files,
    is_hidden,
    is_image,
    is_inside,
    list_zip,
    listed,
    read_file,
    reading,
    split_zip,
    unzip,
)
from ensemble.data.labels import read_labels, read_values
from ensemble.data.manifest import read_manifest
from ensemble.errors import ConfigError, DataError, printable


@dataclass(frozen=True)
class Source:
    """Images that can be read by row, with their ids, labels and groups. Reading is thread-safe.

    Attributes
    ----------
    where : str
        Where the images are, for messages.
    ids : str array (n,)
        The number of a numbered image, ``"000001"``; the path in a manifest; ``"0/name.jpg"`` in class folders.
    labels : int8 array (n,) or None
    groups : int64 array (n,) or None
        Rows of one group stay in one fold.
    names : tuple of str
        The file of each row, as `fetch` takes it.
    fetch : callable
        Returns the bytes of a name; raises `DataError`.
    notes : tuple of str
        Remarks on how the labels were read, a line each.
    """

    where: str
    ids: NDArray[np.str_]
    labels: NDArray[np.int8] | None
    groups: NDArray[np.int64] | None
    names: tuple[str, ...]
    fetch: Callable[[str], bytes]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, row: int) -> bytes:
        """Return the bytes of the file of a row; raise `DataError` where it cannot be read."""
        return self.fetch(self.names[row])


@dataclass(frozen=True)
class Dataset:
    """Decoded images with their ids, labels and groups; every array is read-only.

    Attributes
    ----------
    ids : str array (n,)
    labels : int8 array (n,) or None
        0 or 1.
    groups : int64 array (n,) or None
    pixels : uint8 memory map (n, H, W, 3)
        RGB.
    digests : bytes array (n,), dtype S64
        SHA-256 of every file, in hexadecimal.
    fingerprint : str
        SHA-256 of the ids, labels, groups and digests, the size and the version of the image policy; these determine
        the pixels.
    notes : tuple of str
        Remarks on the data, a line each.
    """

    ids: NDArray[np.str_]
    labels: NDArray[np.int8] | None
    groups: NDArray[np.int64] | None
    pixels: NDArray[np.uint8]
    digests: NDArray[np.bytes_]
    fingerprint: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for array in (self.ids, self.labels, self.groups, self.pixels, self.digests):
            if array is not None:
                array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image, in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


def open_source(images: Path, labels: Path | None = None) -> Source:
    """Recognise what `images` is and read its labels; no image is read yet.

    Parameters
    ----------
    images : Path
        A folder of numbered images, a folder with the class folders ``0`` and ``1``, a zip of either (or a folder in
        it: ``set.zip/val_img``), or a CSV or Parquet manifest with the columns path[,label][,group].
    labels : Path, optional
        A text file; line i is the label of image i. It may be in a zip. Without it, a zip with one image folder takes
        the labels of its text file, and a numbered folder has none.

    Raises
    ------
    DataError
        The images cannot be listed, or it is not clear which label an image has.
    ConfigError
        `labels` is given for images that have labels already.
    """
    where = printable(images)
    with reading(where):
        if archive := split_zip(images):
            return _open_zip(*archive, labels)
        if images.is_dir():
            return _open_folder(images, labels)
        if not images.exists():
            raise DataError(where, "does not exist", "name a folder of images, a zip or a manifest")
        if images.suffix.lower() in (".csv", ".parquet"):
            _refuse_labels(where, labels)
            return _open_manifest(images)
    raise DataError(where, "is not a folder of images, a zip or a manifest", "name one of these")


def parse_labels(data: bytes, where: str) -> NDArray[np.int8]:
    """Return the labels of a text file with a label in each line; `data/labels.py` says which forms are accepted.

    Returns
    -------
    int8 array (n,)

    Raises
    ------
    DataError
        A line is blank, has another column or another value; the message names it.

    Examples
    --------
    >>> parse_labels(b"1\\r\\n0\\r\\n", "labels.txt")
    array([1, 0], dtype=int8)
    """
    return read_labels(data, where)[0]


def _refuse_labels(where: str, labels: Path | None) -> None:
    if labels is not None:
        raise ConfigError("--labels", f"{where} has labels already", "leave it out")


# --- numbered images and class folders, on disk or in a zip -----------------------------------------------------------


def _numbered(
    where: str, files: dict[str, str], fetch: Callable[[str], bytes], labels: tuple[str, bytes] | None
) -> Source:
    """Join images to label lines by the number in their names.

    Parameters
    ----------
    files : dict
        From the name in the folder to the name that `fetch` takes.
    labels : tuple of str and bytes, optional
        Name and content of the label file.
    """
    remedy = "number the images 1 to n without gaps, or give a manifest (path,label)"
    not_numbers = [name for name in files if not re.fullmatch("[0-9]{1,18}", PurePosixPath(name).stem)]
    if not_numbers:
        raise DataError(where, f"{len(not_numbers)} image names are not numbers: {listed(sorted(not_numbers))}", remedy)
    by_number: dict[int, str] = {}
    for name in sorted(files):
        number = int(PurePosixPath(name).stem)
        if (twin := by_number.setdefault(number, name)) != name:
            raise DataError(where, f"{twin} and {name} have the same number", "keep one of them")
    numbers = sorted(by_number)
    if numbers[0] != 1:
        raise DataError(where, f"numbering starts at {numbers[0]} ({by_number[numbers[0]]})", remedy)
    if numbers[-1] != len(numbers):
        gap = next(i for i, number in enumerate(numbers, 1) if i != number)
        raise DataError(
            where, f"numbering has gaps: image {gap} is missing, before {by_number[numbers[gap - 1]]}", remedy
        )
    ordered = [by_number[number] for number in numbers]
    parsed, notes = None, tuple[str, ...]()
    if labels is not None:
        parsed, notes = read_labels(labels[1], labels[0])
        n, lines = len(ordered), len(parsed)
        if lines != n:
            rest = f"line {n + 1} has no image" if lines > n else f"{ordered[lines]} has no label"
            raise DataError(labels[0], f"{lines} lines for {n} images; {rest}", "give one line for each image")
    ids = np.array([PurePosixPath(name).stem for name in ordered])
    return Source(where, ids, parsed, None, tuple(files[name] for name in ordered), fetch, notes)


def _classes(where: str, files: dict[str, str], fetch: Callable[[str], bytes]) -> Source:
    """Label images by their folder; `files` maps ids such as ``"0/a.jpg"`` to what `fetch` takes."""
    ids = sorted(files)
    labels = np.array([name.partition("/")[0] for name in ids], dtype="U1").astype(np.int8)
    return Source(where, np.array(ids), labels, None, tuple(files[name] for name in ids), fetch)


def _open_folder(folder: Path, labels: Path | None) -> Source:
    where, fetch = printable(folder), functools.partial(read_file, str(folder))
    entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
    if any(is_image(entry.name) for entry in entries):
        names = image_files(folder)
        return _numbered(where, {name: name for name in names}, fetch, _read_labels(labels) if labels else None)
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    if not folders:
        raise DataError(where, "holds no images", "name the folder that does")
    if not set(folders) <= {"0", "1"}:
        raise DataError(
            where, f"holds no images, but the folders {listed(folders)}", "name one of them, or rename them to 0 and 1"
        )
    _refuse_labels(where, labels)
    for name in folders:
        if not is_inside(os.path.realpath(folder / name), os.path.realpath(folder)):
            raise DataError(printable(folder / name), "is a link out of its folder", "replace the link by the folder")
    files = [f"{name}/{image}" for name in folders for image in image_files(folder / name)]
    if not files:
        raise DataError(where, "holds no images", "name the folder that does")
    return _classes(where, {file: file for file in files}, fetch)


def _read_labels(path: Path) -> tuple[str, bytes]:
    where = printable(path)
    with reading(where):
        if archive := split_zip(path):
            return where, unzip(list_zip(archive[0])[0], archive[1])
        return where, path.read_bytes()


# --- zips -------------------------------------------------------------------------------------------------------------


def _open_zip(path: Path, inner: str, labels: Path | None) -> Source:
    where = printable(path / inner)
    archive, names = list_zip(path)
    fetch = functools.partial(unzip, archive)
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        if is_image(name) and not is_hidden(name):
            folders[str(PurePosixPath(name).parent)][PurePosixPath(name).name] = name
    chosen = {folder: files for folder, files in folders.items() if not inner or _within(folder, inner)}
    parents = {str(PurePosixPath(folder).parent) for folder in chosen}
    if len(parents) == 1 and {PurePosixPath(folder).name for folder in chosen} == {"0", "1"}:
        _refuse_labels(where, labels)
        files = {
            f"{PurePosixPath(folder).name}/{name}": file for folder in chosen for name, file in chosen[folder].items()
        }
        return _classes(where, files, fetch)
    if len(chosen) > 1:
        first = path / min(chosen)
        raise DataError(
            where, f"holds several image folders: {listed(sorted(chosen))}", f"name one of them: {printable(first)}"
        )
    if not chosen:
        raise DataError(where, "holds no images", "name the folder that does")
    (files,) = chosen.values()
    label_text = _read_labels(labels) if labels else _labels_beside(path, archive, names) if len(folders) == 1 else None
    return _numbered(where, files, fetch, label_text)


def _within(folder: str, inner: str) -> bool:
    return PurePosixPath(folder).is_relative_to(PurePosixPath(inner))


def _labels_beside(path: Path, archive: zipfile.ZipFile, names: list[str]) -> tuple[str, bytes] | None:
    """Return the label file of a zip: its only text file, or the only one whose name starts with "label"."""
    texts = [name for name in names if name.lower().endswith(".txt") and not is_hidden(name)]
    if len(texts) > 1:
        texts = [name for name in texts if PurePosixPath(name).name.startswith("label")] or texts
    if len(texts) > 1:
        raise DataError(printable(path), f"holds several text files: {listed(texts)}", "name the labels with --labels")
    return (printable(path / texts[0]), unzip(archive, texts[0])) if texts else None


# --- manifests --------------------------------------------------------------------------------------------------------


def _open_manifest(path: Path) -> Source:
    where = printable(path)
    numbers, columns, notes = read_manifest(path)
    labels = groups = None
    if "label" in columns:
        labels, label_notes = read_values(columns["label"], numbers, where)
        notes += label_notes
    if "group" in columns:
        if "" in columns["group"]:
            line = numbers[columns["group"].index("")]
            raise DataError(f"{where}: line {line}", "has a blank group", "write a group that no other image has")
        groups = np.unique(np.array(columns["group"]), return_inverse=True)[1].astype(np.int64)
    paths, fetch = columns["path"], functools.partial(read_file, os.path.realpath(path.parent))
    return Source(where, np.array(paths), labels, groups, paths, fetch, notes)
