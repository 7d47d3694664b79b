"""Images that are named one by one: files, globs, and text files with a path in each line."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ensemble.data.dataset import Source
from ensemble.data.files import as_text, is_image, listed, read_file
from ensemble.errors import DataError, printable


def open_listing(paths: Sequence[Path], skip_bad: bool = False) -> Source:
    """Open image files; the path of an image, as it is written, is its id.

    Parameters
    ----------
    paths : sequence of Path
        Image files and globs; or a single text file with a path in each line, relative to its folder or absolute.
    skip_bad : bool
        Whether images that are missing or no files are left out later, and no error here.

    Raises
    ------
    DataError
        A path is repeated, is no image file, or a glob names none.
    """
    where, root = ", ".join(map(printable, paths[:3])) + (" …" if len(paths) > 3 else ""), ""
    names, others = list[str](), list[str]()
    if len(paths) == 1 and paths[0].suffix.lower() in (".txt", ".lst") and paths[0].is_file():
        root = os.path.realpath(paths[0].parent)
        names = [line for line in as_text(paths[0].read_bytes(), where).splitlines() if line]
    else:
        for path in paths:
            images, no_images = _expanded(path, skip_bad)
            names += images
            others += no_images
    source = source_of_files(names, where or "images", root, skip_bad)
    note = f"{len(others)} files that the pattern names are not read: {listed(others)}"
    return replace(source, notes=(note,)) if others else source


def source_of_files(names: Sequence[str], where: str, root: str = "", skip_bad: bool = False) -> Source:
    """Return a source of the files at `names`, in their order; a relative path starts at `root`.

    If `skip_bad`, paths that are missing or no files are no error here.
    """
    if not names:
        raise DataError(where, "lists no images", "give at least one path")
    if not skip_bad and (others := [name for name in names if not os.path.isfile(os.path.join(root, name))]):
        remedy = "give image files, or one folder, zip or manifest"
        raise DataError(where, f"{len(others)} of {len(names)} are missing or not files: {listed(others)}", remedy)
    seen: dict[str, str] = {}
    for name in names:
        real = os.path.realpath(os.path.join(root, name))
        if real in seen:
            raise DataError(where, f"{printable(name)} is listed twice", "list every image once")
        seen[real] = name
    return Source(where, np.array(names), None, None, tuple(names), functools.partial(read_file, root))


def _expanded(path: Path, skip_bad: bool) -> tuple[list[str], list[str]]:
    """Return the path, or if it is a glob, the images and the other files that it names, sorted."""
    text = str(path)
    if os.path.lexists(text) or not glob.has_magic(text):
        if not os.path.exists(text) and not (skip_bad and is_image(text)):
            raise DataError(printable(path), "does not exist", "name a folder of images, a zip, a manifest or images")
        if not is_image(text):
            raise DataError(printable(path), "is not an image, a folder, a zip or a manifest", "name one of these")
        return [text], []
    names = sorted(glob.glob(text, recursive=True))
    images = [name for name in names if is_image(name)]
    if not images:
        raise DataError(printable(path), "names no image files", "check the pattern")
    return images, [name for name in names if not (is_image(name) or os.path.isdir(name))]
