"""Reads manifests: CSV and Parquet tables with the columns path[,label][,group], a row for each image."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ensemble.data.classes import UNREAD, bare_text, shortest
from ensemble.data.dataset import Source
from ensemble.data.files import IMAGE_SUFFIXES, as_text, is_image, is_inside, listed, read_file, reading
from ensemble.data.labels import read_values
from ensemble.data.tables import BY_NAME, GROUP, LABEL, PATH, Columns, Rows, csv_rows, parquet_rows, read_columns
from ensemble.errors import DataError, printable


def open_manifest(
    path: Path,
    positive: str | None = None,
    follow_links: bool = False,
    skip_bad: bool = False,
    names: Columns = BY_NAME,
    n_classes: int | None = None,
) -> Source:
    """Open the images that a manifest lists, with its labels and groups.

    Paths are relative to the folder of the manifest, or absolute. A path may lack the suffix of its image. Links may
    lead out of the folder if `follow_links`. If `skip_bad`, images that are missing or no files are left out later.
    `names` are the names of columns that the user gives, `n_classes` is the number of three or more classes.

    Raises
    ------
    DataError
        The table is damaged, a column is missing or misspelt, a label is none, a group is blank, or a path is listed
        twice, names no file, or leads out of the folder of the manifest.
    """
    where = printable(path)
    lines, columns, notes = read_columns(_rows(path), where, names)
    root, given = os.path.realpath(path.parent), columns[PATH]
    paths = _completed(where, root, lines, given)
    missing = _missing(where, root, lines, paths, follow_links)
    if missing and not skip_bad:
        problem = f"{len(missing)} of {len(paths)} images are missing or not files: {listed(missing)}"
        remedy = "correct the paths, or give the folder of the images as --images and this table as --labels"
        raise DataError(where, problem, remedy)
    completed = sum(text != name for text, name in zip(given, paths, strict=True))
    if completed:
        notes += (f"{completed} paths have no suffix or have backslashes; the image files of these names are used",)
    labels = classes = groups = None
    if LABEL in columns and n_classes != UNREAD:
        read = read_values(columns[LABEL], lines, where, positive, n_classes=n_classes)
        labels, classes, notes = read.y, read.classes, notes + read.notes
    if GROUP in columns:
        if "" in columns[GROUP]:
            line = lines[columns[GROUP].index("")]
            raise DataError(f"{where}: line {line}", "has a blank group", "write a group that no other image has")
        groups = np.unique(np.array(columns[GROUP]), return_inverse=True)[1].astype(np.int64)
    return Source(where, np.array(paths), labels, groups, paths, functools.partial(read_file, root), notes, classes)


def count_classes(path: Path, column: str) -> int:
    """Return the number of different labels in a column of a manifest.

    Raises
    ------
    DataError, ConfigError
        The table is damaged, or has no such column.
    """
    values = read_columns(_rows(path), printable(path), Columns(label=column))[1][LABEL]
    return len({shortest(bare_text(value)) for value in values})


def _rows(path: Path) -> Rows:
    if path.suffix.lower() != ".csv":
        return parquet_rows(path)
    with reading(printable(path)):
        return csv_rows(as_text(path.read_bytes(), printable(path)), printable(path))


def _completed(where: str, root: str, lines: Sequence[int], paths: Sequence[str]) -> tuple[str, ...]:
    """Return the paths with the suffix of the image file where a path lacks one, and with / in place of backslashes."""
    completed = []
    for line, path in zip(lines, paths, strict=True):
        try:
            completed.append(completed_path(root, path))
        except DataError as error:
            raise DataError(f"{where}: line {line}", error.found, error.remedy) from None
    return tuple(completed)


def completed_path(root: str, path: str) -> str:
    """Return a path with the suffix of the image file where it lacks one, and with / in place of backslashes.

    Raises
    ------
    DataError
        Several images have this name.
    """
    if "\\" in path and not os.path.lexists(os.path.join(root, path)):
        path = path.replace("\\", "/")
    if not path or is_image(path) or os.path.lexists(os.path.join(root, path)):
        return path
    names = [path + suffix for suffix in _SUFFIXES if os.path.isfile(os.path.join(root, path + suffix))] or [path]
    if len(names) > 1:
        raise DataError(printable(path), f"may be {listed(names)}", "write the suffix")
    return names[0]


_SUFFIXES = sorted(IMAGE_SUFFIXES | {suffix.upper() for suffix in IMAGE_SUFFIXES})


def _missing(where: str, root: str, lines: Sequence[int], paths: Sequence[str], follow_links: bool) -> list[str]:
    """Return the paths that name no file, with their lines; raise `DataError` where a path is none or is repeated."""
    real_folder = functools.cache(os.path.realpath)
    seen: dict[str, int] = {}
    missing = []
    for line, path in zip(lines, paths, strict=True):
        at, full = f"{where}: line {line}", os.path.join(root, path)
        if not path or ".." in PurePosixPath(path).parts:
            raise DataError(at, f"'{printable(path)}' must be a path inside the manifest's folder", "correct it")
        if (first := seen.setdefault(os.path.normpath(full), line)) != line:
            raise DataError(at, f"{printable(path)} is listed in line {first} already", "list every image once")
        if not (follow_links or os.path.isabs(path)):  # who writes an absolute path names a file anywhere on purpose
            real = os.path.realpath(full) if os.path.islink(full) else real_folder(os.path.dirname(full))
            if not is_inside(real, root):
                raise DataError(
                    at, f"{printable(path)} is a link out of the manifest's folder", "or give --follow-links"
                )
        if not os.path.isfile(full):
            missing.append(f"{path} (line {line})")
    return missing
