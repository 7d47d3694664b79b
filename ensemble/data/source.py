"""Recognises where images and labels come from, and joins each image to its label."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ensemble.config import DataConfig
from ensemble.data.classes import UNREAD, checked_count, class_note
from ensemble.data.dataset import Source
from ensemble.data.files import reading, split_zip
from ensemble.data.folders import open_folder, open_zip
from ensemble.data.joining import with_labels
from ensemble.data.labels import Labels, read_label_file
from ensemble.data.listing import open_listing
from ensemble.data.manifest import open_manifest
from ensemble.data.tables import Columns
from ensemble.errors import ConfigError, printable
from ensemble.predict_config import PredictConfig


def open_source(
    images: Path | Sequence[Path],
    labels: Path | None = None,
    positive: str | None = None,
    follow_links: bool = False,
    find_labels: bool = True,
    on_bad: str = "error",
    image_column: str | None = None,
    label_column: str | None = None,
    n_classes: int | None = None,
) -> Source:
    """Recognise what `images` is and read its labels; no image is read yet.

    Parameters
    ----------
    images : Path or sequence of Path
        A folder of images, a folder with a subfolder for each class, a zip of either (or a folder in it:
        ``set.zip/val_img``), a CSV or Parquet manifest with the columns path[,label][,group], an image file, a glob, or
        a text file with a path in each line. A sequence holds image files and globs.
    labels : Path, optional
        A text file whose line i is the label of image i, where the images are numbered 1 to n; or a CSV file with the
        columns name,label, for images of any names. It may be in a zip. Without it, a zip with one folder of numbered
        images takes the labels of its text file.
    positive : str, optional
        Where the labels are names, the one that is label 1; by default the second in the order of the alphabet.
    follow_links : bool
        Whether links may lead out of the folder of the images, or of the manifest; a zip has no links.
    find_labels : bool
        Whether a text file in a zip is read as its labels; not for images that are predicted.
    on_bad : {"error", "skip"}
        What to do with images that are missing or no files: raise an error, or keep them for `load_dataset`, which
        leaves them out.
    image_column, label_column : str, optional
        The columns of a table's images and labels; by default, they are recognised by their names.
    n_classes : int, optional
        The number of classes, 2 by default. More than two may be folders, names or integers; all must be present, but
        not among images that are predicted, whose labels are not read then.

    Raises
    ------
    DataError
        The images cannot be listed, it is not clear which label an image has, or there are not `n_classes` classes.
    ConfigError
        `labels` is given for images that have labels already, no label has the name `positive`, a table has no column
        of a given name, `n_classes` is out of range, or `positive` is given for more than two classes.
    """
    n_classes = checked_count(n_classes, positive)
    if n_classes is not None and not find_labels:
        n_classes = UNREAD
    columns = Columns(image_column, label_column)
    given = None if labels is None else read_label_file(labels, positive, None, columns, n_classes)
    if columns.given and not (is_manifest(images) or (given is not None and given.names is not None)):
        (option, _), *_ = columns.given.values()
        raise ConfigError(option, "neither the images nor their labels are a table", "leave it out")
    of_images = columns if labels is None else replace(columns, label=None)
    source = _open(images, positive, labels, given, follow_links, find_labels, on_bad == "skip", of_images, n_classes)
    if given is not None:
        if source.labels is not None:
            raise ConfigError("--labels", f"{source.where} has labels already", "leave it out")
        source = with_labels(source, given, printable(labels))
    if not find_labels and source.classes is not None:  # the labels are the run's to name
        notes = tuple(note for note in source.notes if note != class_note(source.classes))
        source = replace(source, classes=None, notes=notes)
    return source


def open_labelled(config: DataConfig) -> Source:
    """Open the labelled images of a config; see `open_source`."""
    return open_source(
        config.images,
        config.labels,
        config.positive,
        config.follow_links,
        on_bad=config.on_bad,
        image_column=config.image_column,
        label_column=config.label_column,
        n_classes=config.classes,
    )


def open_unlabelled(config: PredictConfig, n_classes: int | None = None) -> Source:
    """Open the images to label of a config; see `open_source`. Only a table has a column of images.

    `n_classes` is the run's number of classes: with more than two, folders of any number are read.
    """
    column = config.image_column if is_manifest(config.images) else None
    return open_source(
        config.images,
        follow_links=config.follow_links,
        find_labels=False,
        on_bad=config.on_bad,
        image_column=column,
        n_classes=n_classes,
    )


def is_manifest(images: Path | Sequence[Path]) -> bool:
    """Return whether images are given by a CSV or Parquet table."""
    paths = [images] if isinstance(images, Path) else list(images)
    return len(paths) == 1 and paths[0].suffix.lower() in (".csv", ".parquet") and paths[0].is_file()


def set_name(images: Path | Sequence[Path]) -> str:
    """Return a name for a set of images: that of its folder or file, or of the folder that all files are in."""
    paths = [images] if isinstance(images, Path) else list(images)
    path = Path(os.path.abspath(paths[0]))  # without `..`, and a link keeps its name
    path = path if len(paths) == 1 else path.parent
    name = path.stem if path.is_file() else path.name
    return "images" if not name or set(name) & set("*?[]") else name


def _open(
    images: Path | Sequence[Path],
    positive: str | None,
    labels: Path | None,
    given: Labels | None,
    follow_links: bool,
    find_labels: bool,
    skip_bad: bool,
    columns: Columns,
    n_classes: int | None,
) -> Source:
    paths = [images] if isinstance(images, Path) else list(images)
    if len(paths) != 1:
        return open_listing(paths, skip_bad)
    (path,) = paths
    where, any_names = printable(path), given is not None and given.names is not None
    with reading(where):
        if archive := split_zip(path):
            return open_zip(*archive, positive, any_names, labels, find_labels, n_classes)
        if path.is_dir():
            return open_folder(path, positive, any_names, labels, follow_links, skip_bad, n_classes)
        if is_manifest(path):
            return open_manifest(path, positive, follow_links, skip_bad, columns, n_classes)
        return open_listing(paths, skip_bad)
