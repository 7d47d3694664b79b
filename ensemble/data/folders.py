"""Images in a folder or a zip: numbered, of any names, or in a subfolder for each class."""

from __future__ import annotations

import functools
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ensemble.data.dataset import Source
from ensemble.data.files import image_files, is_hidden, is_image, is_inside, list_zip, listed, read_file, unzip
from ensemble.data.joining import with_labels
from ensemble.data.labels import order_classes, read_labels
from ensemble.errors import DataError, printable

Fetch = Callable[[str], bytes]

SETS = ("train", "val", "test", "dev", "holdout")
"""Beginnings of the names of folders that hold sets of images. Two such folders are not taken for two classes."""


# --- a folder ---------------------------------------------------------------------------------------------------------


def open_folder(folder: Path, positive: str | None, any_names: bool) -> Source:
    """Open a folder of images, or of one subfolder for each class.

    Parameters
    ----------
    folder : Path
    positive : str, optional
        The subfolder of label 1.
    any_names : bool
        Whether numbered images may have gaps, because a table names each of them.

    Raises
    ------
    DataError
        It holds no images, folders that are no two classes, or numbered images with gaps.
    """
    where, fetch = printable(folder), functools.partial(read_file, str(folder))
    entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
    if any(is_image(entry.name) for entry in entries):
        return _files(where, {name: name for name in image_files(folder)}, fetch, any_names)
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    if not folders:
        raise DataError(where, "holds no images", "name the folder that does")
    _refuse_other_folders(where, folders)
    for name in folders:
        if not is_inside(os.path.realpath(folder / name), os.path.realpath(folder)):
            raise DataError(printable(folder / name), "is a link out of its folder", "replace the link by the folder")
    files = [f"{name}/{image}" for name in folders for image in image_files(folder / name)]
    if not files:
        raise DataError(where, "holds no images", "name the folder that does")
    return _classes(where, {file: file for file in files}, fetch, positive)


# --- a zip ------------------------------------------------------------------------------------------------------------


def open_zip(path: Path, inner: str, positive: str | None, any_names: bool, has_labels: bool) -> Source:
    """Open the images of a zip, or those of the folder `inner` in it, as `open_folder` does.

    `has_labels` says whether a label file is given; otherwise numbered images take the labels of the zip's text file.
    """
    where = printable(path / inner)
    archive, names = list_zip(path)
    fetch = functools.partial(unzip, archive)
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        if is_image(name) and not is_hidden(name):
            folders[str(PurePosixPath(name).parent)][PurePosixPath(name).name] = name
    chosen = {folder: files for folder, files in folders.items() if not inner or _within(folder, inner)}
    if not chosen:
        raise DataError(where, "holds no images", "name the folder that does")
    if len(chosen) == 1:
        (files,) = chosen.values()
        source = _files(where, files, fetch, any_names)
        return source if has_labels or len(folders) > 1 else _with_labels_beside(source, path, archive, names)
    classes = [PurePosixPath(folder).name for folder in chosen]
    if len({str(PurePosixPath(folder).parent) for folder in chosen}) > 1 or not _are_classes(classes):
        remedy = f"name one of them: {printable(path / min(chosen))}"
        raise DataError(where, f"holds several image folders: {listed(sorted(chosen))}", remedy)
    files = {f"{PurePosixPath(folder).name}/{name}": file for folder in chosen for name, file in chosen[folder].items()}
    return _classes(where, files, fetch, positive)


def _within(folder: str, inner: str) -> bool:
    return PurePosixPath(folder).is_relative_to(PurePosixPath(inner))


def _with_labels_beside(source: Source, path: Path, archive: zipfile.ZipFile, names: list[str]) -> Source:
    """Return the source with the labels of the zip's only text file, or of the only one named "label…"."""
    texts = [name for name in names if name.lower().endswith(".txt") and not is_hidden(name)]
    if len(texts) > 1:
        texts = [name for name in texts if PurePosixPath(name).name.startswith("label")] or texts
    if len(texts) > 1:
        raise DataError(printable(path), f"holds several text files: {listed(texts)}", "name the labels with --labels")
    if not texts or not all(PurePosixPath(name).stem.isdecimal() for name in source.ids.tolist()):
        return source
    where = printable(path / texts[0])
    return with_labels(source, read_labels(unzip(archive, texts[0]), where), where)


# --- files and class folders, on disk or in a zip ---------------------------------------------------------------------


def _files(where: str, files: dict[str, str], fetch: Fetch, any_names: bool) -> Source:
    """Return the images of a folder; `files` maps each name in the folder to what `fetch` takes.

    Images whose names are numbers are in the order of the numbers, others in that of their names.
    """
    by_number: dict[int, str] = {}
    for name in sorted(files):
        stem = PurePosixPath(name).stem
        if not re.fullmatch("[0-9]{1,18}", stem):
            ordered = sorted(files)
            return Source(where, np.array(ordered), None, None, tuple(files[each] for each in ordered), fetch)
        if (twin := by_number.setdefault(int(stem), name)) != name:
            raise DataError(where, f"{twin} and {name} have the same number", "keep one of them")
    numbers = sorted(by_number)
    ordered = [by_number[number] for number in numbers]
    if not any_names:
        _refuse_gaps(where, numbers, ordered)
    ids = np.array([PurePosixPath(name).stem for name in ordered])
    return Source(where, ids, None, None, tuple(files[name] for name in ordered), fetch)


def _refuse_gaps(where: str, numbers: Sequence[int], names: Sequence[str]) -> None:
    remedy = "number the images 1 to n without gaps, or name them one by one: by a glob or a manifest"
    if numbers[0] != 1:
        raise DataError(where, f"numbering starts at {numbers[0]} ({names[0]})", remedy)
    if numbers[-1] != len(numbers):
        gap = next(i for i, number in enumerate(numbers, 1) if i != number)
        raise DataError(where, f"numbering has gaps: image {gap} is missing, before {names[gap - 1]}", remedy)


def _refuse_other_folders(where: str, folders: Sequence[str]) -> None:
    """Raise `DataError` unless the folders are 0 and 1, one of these alone, or two classes of other names."""
    if set(folders) <= {"0", "1"} or _are_classes(folders):
        return
    if len(folders) == 2:
        problem = f"the folders {listed(folders)} look like two sets of images, not like two classes"
        raise DataError(where, problem, f"name one of them: {where}/{printable(folders[0])}")
    problem = f"holds no images, but the folders {listed(folders)}"
    raise DataError(where, problem, "name one of them, or make one folder for each of two classes")


def _are_classes(folders: Sequence[str]) -> bool:
    return len(folders) == 2 and not all(name.lower().startswith(SETS) for name in folders)


def _classes(where: str, files: dict[str, str], fetch: Fetch, positive: str | None) -> Source:
    """Label images by their folder; `files` maps ids such as ``"0/a.jpg"`` to what `fetch` takes."""
    ids = sorted(files)
    folders = [name.partition("/")[0] for name in ids]
    order = order_classes(sorted(set(folders)), positive, f"the folders of {where}")
    labels = np.array([folder == order.positive for folder in folders], np.int8)
    names = tuple(files[name] for name in ids)
    return Source(where, np.array(ids), labels, None, names, fetch, order.notes, order.classes)
