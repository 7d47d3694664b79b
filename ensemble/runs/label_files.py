"""The label file of a prediction: its two forms, and where it may be written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from ensemble.data.dataset import is_numbered
from ensemble.errors import ConfigError, ResourceError, printable
from ensemble.runs import files
from ensemble.runs.run import LABEL_FILES, Run

LINES, TABLE = LABEL_FILES

OWN_FOLDERS = ("members", "decision", "predictions", "pixels")
"""Folders of a run in which no other file may be written."""


def label_file_name(ids: np.ndarray) -> str:
    """Return the name of the label file for images of these ids (n,)."""
    return LINES if is_numbered(ids) else TABLE


def label_file(name: str, ids: np.ndarray, y_pred: np.ndarray, classes: tuple[str, ...] | None) -> bytes:
    """Return the content of a label file.

    Parameters
    ----------
    name : str
        A name with the suffix .csv is that of a table.
    ids : str array (n,)
    y_pred : int8 array (n,)
        Class indices, 0 to C - 1, which a file of lines holds.
    classes : tuple of C str, or None
        The names of the classes, which a table has in place of the indices.
    """
    if not is_table(name):
        return "".join(f"{label}\n" for label in y_pred.tolist()).encode()
    import pandas as pd

    labels = y_pred if classes is None else np.array(classes, object)[y_pred]
    return files.table_bytes(pd.DataFrame({"name": ids, "label": labels}))


def is_table(name: str | Path) -> bool:
    """Return whether a label file of this name is a table with name,label."""
    return Path(name).suffix.lower() == ".csv"


def checked_target(run: Run, out: Path | None, ids: np.ndarray, force: bool) -> Path:
    """Return the path of the label file to write, if it may be written.

    Parameters
    ----------
    run : Run
    out : Path, optional
        By default `label_val.txt` or `labels.csv` in the run's folder.
    ids : str array (n,)
        The images to label.
    force : bool
        Whether a file that this run did not write is replaced.

    Raises
    ------
    ConfigError
        The path is a folder, a link or a device, or a file that this run did not write; or it is to have lines, but the
        images are not numbered.
    ResourceError
        Its folder cannot be written.
    """
    name = label_file_name(ids)
    path = run.folder / name if out is None else out
    where, instead = f"--out {printable(path)}", "give the name of a new file"
    if path.is_symlink():
        raise ConfigError(where, "is a link, and the file that it names would stay as it is", instead)
    if path.is_dir():
        raise ConfigError(where, "is a folder", f"give a file: {printable(path / name)}")
    if path.exists() and not path.is_file():
        raise ConfigError(where, "is a device and no file", instead)
    inside = Path(os.path.realpath(path))
    if any(inside.is_relative_to(os.path.realpath(run.folder / own)) for own in OWN_FOLDERS):
        raise ConfigError(where, "is in a folder of the run's own files", "give a file elsewhere")
    if not is_table(path) and name == TABLE:
        problem = "would hold a label in each line, but these images are not numbered 1 to n"
        raise ConfigError(where, problem, "give a name with the suffix .csv, for a table with name,label")
    parent = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ResourceError(printable(path), f"cannot be written in {printable(parent)}", "choose another --out")
    if path.exists() and not force and files.file_sha256(path) not in run.label_file_hashes():
        raise ConfigError(where, "is there already, and this run did not write it", f"{instead}, or --force")
    return path


def write_label_file(run: Run, path: Path, content: bytes) -> None:
    """Write a label file, and record it in the run first, so that the run may replace it later."""
    files.remove_orphans(path.parent, path.name)
    run.record_label_file(path, hashlib.sha256(content).hexdigest())
    files.write_whole(path, content)
