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
    rows = _rows_by_line(source, labels, where) if labels.names is None else _rows_by_name(source, labels, where)
    notes = (*source.notes, *labels.notes)
    return replace(source, labels=labels.y[rows], classes=labels.classes, notes=notes)


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


def _rows_by_name(source: Source, labels: Labels, where: str) -> NDArray[np.intp]:
    assert labels.names is not None
    rows = rows_by_name(labels.names, where)
    keys = [_key(name, rows) for name in source.ids.tolist()]
    if not any(keys):  # the table may have paths from another folder
        rows = rows_by_name([PurePosixPath(name.replace("\\", "/")).name for name in labels.names], where)
        keys = [_key(name, rows) for name in source.ids.tolist()]
    without = [name for name, key in zip(source.ids.tolist(), keys, strict=True) if key is None]
    if without:
        problem = f"{len(without)} of {len(source)} images have no label: {listed(without)}"
        raise DataError(where, problem, "write a line for each image")
    images: dict[str, str] = {}
    for name, key in zip(source.ids.tolist(), keys, strict=True):
        assert key is not None
        if (twin := images.setdefault(key, name)) != name:
            raise DataError(where, f"{key} may be {twin} or {name}", "write the name with its suffix")
    if others := [name for name in rows if name not in images]:
        problem = f"{len(others)} of {len(rows)} names are no image of {source.where}: {listed(others)}"
        raise DataError(where, problem, "remove their lines, or add the images")
    return np.array([rows[key] for key in keys if key is not None], np.intp)


def rows_by_name(names: Sequence[str], where: str) -> dict[str, int]:
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
