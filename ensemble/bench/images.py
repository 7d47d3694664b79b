"""Open the images that `thera bench` measures with, as files and decoded in a store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensemble.config import MemberConfig
from ensemble.data.dataset import Source
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.data.synthetic import write_demo
from ensemble.members.processes import MappedPixels
from ensemble.progress import Say, silent


@dataclass(frozen=True)
class BenchImages:
    """Images for a measurement, both as files and decoded in a store.

    Attributes
    ----------
    paths : list of n str
    labels : int8 array (n,)
    mapped : MappedPixels
        uint8 array (n, H, W, 3).
    source : Source
        The source of the files; it may contain more than n.
    folder : Path
        A temporary folder for files that a measurement writes.
    """

    paths: list[str]
    labels: np.ndarray
    mapped: MappedPixels
    source: Source
    folder: Path

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.mapped.array.shape[1])


@contextmanager
def open_images(images: Path | None, labels: Path | None, limit: int, say: Say = silent) -> Iterator[BenchImages]:
    """Open up to `limit` images of a folder, or generated images if no folder is given.

    The store is a temporary folder that is removed when the block ends.

    Raises
    ------
    ConfigError
        Labels are given without images, or the images are not files in a folder.
    DataError
        The images or labels cannot be used.
    """
    from ensemble.members.processes import MappedPixels

    with tempfile.TemporaryDirectory(prefix="thera-bench-") as name:
        folder = Path(name)
        if images is None:
            write_demo(folder / "demo", limit, 2, seed=0)
            images, labels = folder / "demo" / "train_img", folder / "demo" / "label_train.txt"
        source = open_source(images, labels)
        dataset = load_dataset(source, folder / "store", say=say)
        n = min(limit, len(dataset))
        np.save(folder / "pixels.npy", dataset.pixels[:n])
        # Without labels any will do: the speed does not depend on them.
        y_true = dataset.labels if dataset.labels is not None else np.arange(n) % 8 > 0
        paths = [str(images / image) for image in source.names[:n]]
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        yield BenchImages(paths, np.asarray(y_true[:n], np.int8), MappedPixels(pixels), source, folder)


def member_config(arch: str) -> MemberConfig:
    """Return the config of the measured member: trained from scratch, with flips and shifts as augmentation."""
    return MemberConfig.model_validate({"arch": arch, "pretrained": False, "augment": "light"})
