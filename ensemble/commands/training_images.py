"""The images that a run was trained on: its decoded ones, or those of the image files where these are still there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ensemble.data.folds import FoldTable
from ensemble.errors import ArtifactError, ConfigError, DataError, ResourceError, TheraError, printable
from ensemble.progress import Say
from ensemble.runs.run import Run, RunFacts

NO_HASHES = "this run has no images.csv, so that no image file can be recognised"
NOT_READ = "the files that the networks were trained on are not where they were"


def stored_pixels(run: Run, say: Say) -> np.ndarray | None:
    """Return the decoded training images (n, H, W, 3) in the order of the fold table; None where they are not there.

    Damaged ones are not used, with a warning.
    """
    from ensemble.data.stored import find_pixels

    facts, digests = run.read(), run.read_images()
    if digests is None:  # runs of older versions do not record the hashes of the image files
        return None
    try:
        return find_pixels(run.pixels, digests, facts.resize, facts.exif)
    except ArtifactError as error:
        say(f"warning: {printable(error.where)}: {error.found}; the decoded images are not used")
        return None


def training_pixels(run: Run, facts: RunFacts, table: FoldTable, say: Say) -> np.ndarray | str:
    """Return the training images in the order of the fold table, decoded again if need be; or what is missing."""
    if (stored := stored_pixels(run, say)) is not None:
        return stored
    from ensemble.data.source import open_source
    from ensemble.data.store import load_dataset

    where = printable(facts.images)
    if not Path(facts.images).exists():
        return f"the decoded images in {printable(run.pixels)} and the images in {where} are missing"
    try:
        source = open_source(Path(facts.images), find_labels=False, on_bad="skip", n_classes=facts.class_count)
        dataset = load_dataset(source, run.pixels, facts.resize, say=say, on_bad="skip", exif=facts.exif)
    except (ConfigError, DataError, ResourceError) as error:
        return f"the images cannot be read again ({printable(error)})"
    digests = run.read_images()
    keys = table.ids if digests is None else digests
    row_of = {key: row for row, key in enumerate((dataset.ids if digests is None else dataset.digests).tolist())}
    if lost := [key for key in keys.tolist() if key not in row_of]:
        return f"{len(lost)} of the {len(keys)} training images are not in {where} any more"
    pixels: np.ndarray = dataset.pixels[np.array([row_of[key] for key in keys.tolist()])]
    return pixels


def images_of_rows(
    run: Run, table: FoldTable, rows: Sequence[int], stored: np.ndarray | None
) -> dict[str, np.ndarray] | str:
    """Return a few training images (H, W, 3) by id, without decoding the others; or why there are none.

    Parameters
    ----------
    run : Run
    table : FoldTable
    rows : sequence of int
        Of the fold table.
    stored : uint8 array (n, H, W, 3) or None
        What `stored_pixels` returned. Without it, image files are read that still have their recorded hashes.
    """
    ids = table.ids[rows].tolist()
    if stored is not None:
        return {str(id_): np.asarray(stored[row]) for id_, row in zip(ids, rows, strict=True)}
    facts, digests = run.read(), run.read_images()
    if digests is None:
        return NO_HASHES
    try:
        return _read(facts, ids, digests[rows].tolist())
    except (TheraError, OSError, KeyError, ValueError):  # a page is whole without them
        return NOT_READ


def _read(facts: RunFacts, ids: Sequence[str], digests: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Decode the files of these images; raise ValueError where one is another than in training."""
    from ensemble.data.pixels import decode, upright
    from ensemble.data.source import open_source

    images_at, labels = Path(facts.images), Path(facts.labels)
    beside = labels if facts.labels != facts.images and labels.is_file() else None  # a table of labels names the images
    classes = facts.class_count if facts.class_count > 2 else None
    source = open_source(images_at, beside, on_bad="skip", n_classes=classes)
    row_of, images = {name: row for row, name in enumerate(source.ids.tolist())}, {}
    for id_, digest in zip(ids, digests, strict=True):
        data = source.read(row_of[id_])
        if hashlib.sha256(data).hexdigest().encode() != digest:
            raise ValueError("another image")
        image = decode(data, source.names[row_of[id_]])
        images[str(id_)] = upright(image) if facts.exif == "apply" else image.pixels
    return images
