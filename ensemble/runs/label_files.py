"""The label file of a prediction: its two forms, and where it may be written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from ensemble.data.dataset import is_numbered
from ensemble.errors import ConfigError, DataError, ResourceError, printable
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
    labels = y_pred if classes is None else np.array(classes, object)[y_pred]
    return files.table_bytes({"name": ids, "label": labels})


def labels_of_all(
    out: Path,
    every: np.ndarray,
    ids: np.ndarray,
    y_pred: np.ndarray,
    classes: tuple[str, ...] | None,
    bad_label: int | None,
) -> tuple[bytes, int]:
    """Return a label file, and the number of its labels, where images may have been left out.

    Those are in no table, and get `bad_label` in a file with a label in each line.

    Parameters
    ----------
    out : Path
    every : str array (n_all,)
        The ids of all images, in their order.
    ids : str array (n,)
        Those of the images that have labels.
    y_pred : int8 array (n,)
    classes : tuple of C str, or None
    bad_label : int, optional
        Needed where images were left out of a file with lines.
    """
    if is_table(out):
        every = ids
    elif len(every) > len(y_pred):
        labels = dict(zip(ids.tolist(), y_pred.tolist(), strict=True))
        y_pred = np.array([labels.get(name, bad_label) for name in every.tolist()], np.int8)
    return label_file(out.name, every, y_pred, classes), len(every)


def incomplete(
    where: str, n: int, count: int, listed: Path, out: Path | None, written: bool, classes: int
) -> DataError:
    """Return what is reported last where `count` images were left out, which the file `listed` names.

    Parameters
    ----------
    where : str
        Where the images are.
    n : int
        The number of all images.
    count : int
    listed : Path
    out : Path or None
        The label file; None where none is to be written.
    written : bool
        Whether it was written.
    classes : int
        The number of classes.
    """
    found = f"{count} of {n} images cannot be used and are listed in {printable(listed)}"
    if written or out is None:
        return DataError(where, found)
    remedy = f"{printable(out)} needs a line for each image and is not written"
    labels = "0 or 1" if classes == 2 else f"0 to {classes - 1}"
    return DataError(where, found, f"{remedy}: give --bad-label {labels}, or --out FILE.csv for a table")


def is_table(name: str | Path) -> bool:
    """Return whether a label file of this name is a table with name,label."""
    return Path(name).suffix.lower() == ".csv"


def checked_target(run: Run, out: Path | None, ids: np.ndarray, force: bool) -> Path:
    """Return the path of the label file to write for images of these ids (n,), if it may be written.

    By default it is `label_val.txt` or `labels.csv` in the run's folder. The rest is as of `checked_path`.
    """
    name = label_file_name(ids)
    return checked_path(run, run.folder / name if out is None else out, name, force)


def checked_path(run: Run, path: Path, name: str, force: bool) -> Path:
    """Return the path of a label file, if it may be written.

    Parameters
    ----------
    run : Run
    path : Path
    name : str
        The name that `label_file_name` gives for the images to label.
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
