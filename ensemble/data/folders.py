"""Images in a folder or a zip: numbered, of any names, or in a subfolder for each class."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from ensemble.data.classes import UNREAD, order_classes
from ensemble.data.dataset import Source
from ensemble.data.files import (
    OUTWARD_LINK,
    Archive,
    files_below,
    is_hidden,
    is_image,
    is_inside,
    listed,
    open_archive,
    read_file,
    unread_note,
)
from ensemble.data.joining import with_labels
from ensemble.data.labels import read_labels
from ensemble.errors import DataError, printable

Fetch = Callable[[str], bytes]

SETS = ("train", "val", "test", "dev", "holdout")
"""Beginnings of the names of folders that hold sets of images. Such folders are not taken for classes."""


# --- a folder ---------------------------------------------------------------------------------------------------------


def open_folder(
    folder: Path,
    positive: str | None,
    any_names: bool,
    labels: Path | None = None,
    follow_links: bool = False,
    skip_bad: bool = False,
    n_classes: int | None = None,
) -> Source:
    """Open a folder of images, or of one subfolder for each class, which may have subfolders in turn.

    Parameters
    ----------
    folder : Path
    positive : str, optional
        The subfolder of label 1.
    any_names : bool
        Whether numbered images may have gaps, because a table names each of them.
    labels : Path, optional
        The label file: the note of files that are not read leaves it out.
    follow_links : bool
        Whether links may lead out of the folder.
    skip_bad : bool
        Whether images that are not files are left out later, and no error here.
    n_classes : int, optional
        The number of three or more classes; None for two.

    Raises
    ------
    DataError
        It holds no images, folders that are no such classes, or numbered images with gaps.
    """
    where, fetch = printable(folder), functools.partial(read_file, str(folder))
    images, others = files_below(folder, False, follow_links, skip_bad)
    classes = [] if images else sorted(name for name in os.listdir(folder) if _is_class(folder / name))
    if classes:
        _refuse_other_folders(where, classes, n_classes)
        images, others = _images_of_classes(folder, classes, others, follow_links, skip_bad)
    if not images:
        beside = f"; {unread_note(folder, others)}" if others else ""
        raise DataError(where, f"holds no images{beside}", "name the folder that does")
    files = {name: name for name in images}
    source = _classes(where, files, fetch, positive, n_classes) if classes else _files(where, files, fetch, any_names)
    others = [name for name in others if labels is None or not _is_same(folder / name, labels)]
    return replace(source, notes=(*source.notes, unread_note(folder, others))) if others else source


def _is_class(path: Path) -> bool:
    return path.is_dir() and not is_hidden(path.name)


def _is_same(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _images_of_classes(
    folder: Path, classes: list[str], others: list[str], follow_links: bool, skip_bad: bool
) -> tuple[list[str], list[str]]:
    """Return the images below the folders of classes, and everything else that is in `folder`."""
    images, others = [], [name for name in others if name.rstrip("/") not in classes]
    for name in classes:
        if not follow_links and not is_inside(os.path.realpath(folder / name), os.path.realpath(folder)):
            raise DataError(printable(folder / name), "is a link out of its folder", OUTWARD_LINK)
        of_class, of_no_class = files_below(folder / name, True, follow_links, skip_bad)
        images += [f"{name}/{file}" for file in of_class]
        others += [f"{name}/{file}" for file in of_no_class]
    return images, others


# --- a zip ------------------------------------------------------------------------------------------------------------


def open_zip(
    path: Path,
    inner: str,
    positive: str | None,
    any_names: bool,
    labels: Path | None = None,
    find_labels: bool = True,
    n_classes: int | None = None,
) -> Source:
    """Open the images of a zip, or those of the folder `inner` in it, as `open_folder` does.

    `labels` is the label file that is given. Without it and if `find_labels`, numbered images take the labels of the
    zip's text file.
    """
    archive, where = open_archive(path), printable(path / inner)
    names = [name for name in archive.entries if PurePosixPath(name).is_relative_to(inner)]
    images = {name: str(PurePosixPath(name).parent) for name in names if is_image(name) and not is_hidden(name)}
    if inner in images.values():  # as in a folder, images in its subfolders are not read
        images = {name: parent for name, parent in images.items() if parent == inner}
    if not images:
        raise DataError(where, "holds no images", "name the folder that does")
    parents = sorted(set(images.values()))
    root = PurePosixPath(os.path.commonpath(parents))
    files = {str(PurePosixPath(name).relative_to(root)): name for name in images}
    if len(parents) == 1:
        source = _files(where, files, archive.read, any_names)
        others = (name for name in archive.entries if name not in images)
        if labels is None and find_labels and not any(is_image(name) and not is_hidden(name) for name in others):
            source, labels = _with_labels_beside(source, path, archive, positive, n_classes)
    else:
        classes = sorted({PurePosixPath(name).parts[0] for name in files})
        if str(root) in parents or not _are_classes(classes, n_classes):
            may_be = str(root) not in parents and len(classes) > 2 and n_classes is None
            remedy = f"name one of them: {printable(path / parents[0])}{_if_classes(classes) if may_be else ''}"
            raise DataError(where, f"holds several image folders: {listed(parents)}", remedy)
        source = _classes(where, files, archive.read, positive, n_classes)
    unread = [name for name in names if name not in images and not (labels and _is_same(path / name, labels))]
    note = f"{len(unread)} files in it are not read: {listed(sorted(unread))}"
    return replace(source, notes=(*source.notes, note)) if unread else source


def _with_labels_beside(
    source: Source, path: Path, archive: Archive, positive: str | None, n_classes: int | None
) -> tuple[Source, Path | None]:
    """Return the source with the labels of the zip's only text file, or the only one named "label…", and its path."""
    texts = [name for name in archive.entries if name.lower().endswith(".txt") and not is_hidden(name)]
    if len(texts) > 1:
        texts = [name for name in texts if PurePosixPath(name).name.startswith("label")] or texts
    if len(texts) > 1:
        raise DataError(printable(path), f"holds several text files: {listed(texts)}", "name the labels with --labels")
    if not texts or not all(PurePosixPath(name).stem.isdecimal() for name in source.ids.tolist()):
        return source, None
    where = printable(path / texts[0])
    labels = read_labels(archive.read(texts[0]), where, positive, n_classes=n_classes)
    return with_labels(source, labels, where), path / texts[0]


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


def _refuse_other_folders(where: str, folders: Sequence[str], n_classes: int | None) -> None:
    """Raise `DataError` unless the folders are 0 and 1, one of these alone, or classes of other names."""
    if (n_classes is None and set(folders) <= {"0", "1"}) or _are_classes(folders, n_classes):
        return
    if len(folders) == 2 or (n_classes is not None and len(folders) > 2):
        count = "two " if len(folders) == 2 else ""
        problem = f"the folders {listed(folders)} look like {count}sets of images, not like {count}classes"
        raise DataError(where, problem, f"name one of them: {where}/{printable(folders[0])}")
    problem = f"holds no images, but the folders {listed(folders)}"
    more = _if_classes(folders) if n_classes is None and len(folders) > 2 else ""
    each = "of two classes" if n_classes is None else "class"
    raise DataError(where, problem, f"name one of them{more}, or make one folder for each {each}")


def _if_classes(folders: Sequence[str]) -> str:
    return f", or give --classes {len(folders)} if each is a class"


def _are_classes(folders: Sequence[str], n_classes: int | None) -> bool:
    """Return whether folders may be classes; where there are three or more, `order_classes` compares their number."""
    enough = len(folders) == 2 if n_classes is None else len(folders) > 1
    return enough and not all(name.lower().startswith(SETS) for name in folders)


def _classes(where: str, files: dict[str, str], fetch: Fetch, positive: str | None, n_classes: int | None) -> Source:
    """Label images by their folder; `files` maps ids such as ``"0/a.jpg"`` to what `fetch` takes."""
    ids = sorted(files)
    names = tuple(files[name] for name in ids)
    if n_classes == UNREAD:
        return Source(where, np.array(ids), None, None, names, fetch)
    folders = [name.partition("/")[0] for name in ids]
    order = order_classes(folders, positive, where if n_classes else f"the folders of {where}", n_classes)
    labels = np.array([order.label_of[folder] for folder in folders], np.int8)
    return Source(where, np.array(ids), labels, None, names, fetch, order.notes, order.classes)
