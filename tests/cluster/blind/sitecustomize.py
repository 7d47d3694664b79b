"""Loaded by the processes of a node that simulates one without a shared folder: it does not see files of the driver.

The marks in a folder that is named `shared`, or below it, are visible: it stands for storage that this node does share.
"""

from __future__ import annotations

import os
import pathlib

_getsize, _exists = os.path.getsize, os.path.exists


def _getsize_without_images(path: str) -> int:
    if str(path).endswith(".npy"):
        raise FileNotFoundError(path)
    return _getsize(path)


def _exists_without_marks(path: str | pathlib.Path) -> bool:
    if isinstance(path, pathlib.Path) and path.name.startswith((".shared.", ".lock.holder")):
        return "shared" in path.parts and _exists(path)
    return _exists(path)


if os.environ.get("THERA_TEST_BLIND"):  # where the tests are collected, this module is imported, too
    os.path.getsize = _getsize_without_images
    os.path.exists = _exists_without_marks
