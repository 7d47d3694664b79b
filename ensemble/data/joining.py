"""Joins images to the labels of a file: by line, or by the names of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ensemble.data.dataset import Source, is_numbered
from ensemble.data.files import listed, without_image_suffix
from ensemble.data.labels import Labels
from ensemble.errors import DataError, printable


def with_labels(source: Source, labels: Labels, where: str) -> Source:
    """Return a source with the labels of a file; raise `DataError` where an image has none, or a label no image."""
    join_notes = tuple[str, ...]()
    if labels.names is None:
        rows = _rows_by_line(source, labels, where)
    else:
        rows, join_notes = rows_by_name(labels.names, where, source.ids.tolist(), f"images of {source.where}")
    notes = (*source.notes, *labels.notes, *join_notes)
    return replace(source, labels=labels.y[rows], classes=labels.classes, notes=notes, labels_where=where)


def _rows_by_line(source: Source, labels: Labels, where: str) -> NDArray[np.intp]:
    n, lines = len(source), len(labels.y)
    if not is_numbered(source.ids):
        unnumbered = [name for name in source.ids.tolist() if not PurePosixPath(name).stem.isdecimal()]
        example = f": {len(unnumbered)} names are not numbers ({listed(unnumbered)})" if unnumbered else ""
        problem = f"line i is the label of image i, but the images of {source.where} are not numbered 1 to n{example}"
        raise DataError(where, problem, "give a CSV file with the columns name,label")
    if lines != n:
        rest = f"line {n + 1} has no image" if lines > n else f"{source.names[lines]} has no label"
        raise DataError(where, f"{lines} lines for {n} images; {rest}", "give one line for each image")
    return np.arange(n)


def rows_by_name(
    names: Sequence[str], where: str, ids: Sequence[str], images: str
) -> tuple[NDArray[np.intp], tuple[str, ...]]:
    """Return the row of a table for each image, and a note where the folders in the table are not those of the images.

    A name that thera has escaped for spreadsheets is read without its apostrophe.

    Parameters
    ----------
    names : sequence of n str
        The images as the table names them: by path, by name, either without suffix, or by number.
    where : str
        The table, for messages.
    ids : sequence of n str
    images : str
        The images in words, for messages.

    Raises
    ------
    DataError
        An image is not in the table, is listed twice, or may be another; or the table lists other images.
    """
    known, notes = set(ids), tuple[str, ...]()
    names = [name[1:] if name.startswith("'") and name not in known else name for name in names]
    bare = [PurePosixPath(name.replace("\\", "/")).name for name in names]
    for spelling in (names, bare, [without_image_suffix(name) for name in bare]):  # paths may be of another folder
        rows = _distinct(spelling, where)
        keys = [_key(name, rows) for name in ids]
        if any(keys):
            break
    if spelling is not names and any("/" in name or "\\" in name for name in names):
        notes = (f"{where} names files in other folders, such as {printable(names[0])}; file names alone are compared",)
    matched: dict[str, str] = {}
    for name, key in zip(ids, keys, strict=True):
        if key is not None and (twin := matched.setdefault(key, name)) != name:
            raise DataError(where, f"{key} may be {twin} or {name}", "write the name with its suffix")
    if without := [name for name, key in zip(ids, keys, strict=True) if key is None]:
        problem = f"has no label for {len(without)} of {len(ids)} {images}: {listed(without)}"
        raise DataError(where, problem, "write a line for each image")
    if others := [name for name in rows if name not in matched]:
        problem = f"lists {len(others)} names that are no {images}: {listed(others)}"
        raise DataError(where, problem, "remove their lines, or add the images")
    return np.array([rows[key] for key in keys if key is not None], np.intp), notes


def _distinct(names: Sequence[str], where: str) -> dict[str, int]:
    """Return the row of each name; raise `DataError` where a name is listed twice."""
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        if name in rows:
            raise DataError(where, f"lists {printable(name)} twice", "list every image once")
        rows[name] = row
    return rows


def _key(image: str, rows: dict[str, int]) -> str | None:
    """Return the name under which a table lists an image: its path, its name, either without suffix, or its number."""
    name = PurePosixPath(image).name
    stem = without_image_suffix(name)
    candidates = [image, name, without_image_suffix(image), stem]
    if stem.isdecimal():
        candidates.append(str(int(stem)))
    return next((candidate for candidate in candidates if candidate in rows), None)
