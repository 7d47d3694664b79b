"""What is measured on, and in turns with whom."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.bench.clock import Match, take_turns
from ensemble.config import SHORT_NAMES, MemberConfig
from ensemble.data.source import Source, open_source
from ensemble.data.store import load_dataset
from ensemble.data.synthetic import write_demo
from ensemble.errors import ConfigError
from ensemble.progress import Bar

DEMO_IMAGES = 2048
"""That are generated where no images are given."""


@dataclass(frozen=True)
class Wish:
    """What to measure.

    Parameters
    ----------
    archs : tuple of str
    images, labels : Path, optional
        Given together or, for the demo data, not at all.
    limit : int
        Images of them that are used.
    peers : bool
        Whether other tools are measured too, in turn.
    rounds : int
    device : str
        Of `--device`.
    """

    archs: tuple[str, ...] = tuple(SHORT_NAMES)
    images: Path | None = None
    labels: Path | None = None
    limit: int = DEMO_IMAGES
    peers: bool = False
    rounds: int = 5
    device: str = "auto"


@dataclass(frozen=True)
class Material:
    """Images as files, and decoded in a store."""

    paths: list[str]
    labels: np.ndarray
    mapped: Any
    source: Source
    store: Path

    @property
    def size(self) -> int:
        return int(self.mapped.array.shape[1])


@contextmanager
def open_material(wish: Wish) -> Iterator[Material]:
    from ensemble.members.processes import MappedPixels

    with tempfile.TemporaryDirectory(prefix="thera-bench-") as name:
        folder = Path(name)
        images, labels = wish.images, wish.labels
        if images is None:
            if labels is not None:
                raise ConfigError("--labels", "needs --images")
            write_demo(folder / "demo", wish.limit, 2, seed=0)
            images, labels = folder / "demo" / "train_img", folder / "demo" / "label_train.txt"
        elif not images.is_dir():
            raise ConfigError("--images", f"must be a folder of image files, for the peers to read; got {images}")
        source = open_source(images, labels)
        dataset = load_dataset(source, folder / "store")
        n = min(wish.limit, len(dataset))
        np.save(folder / "pixels.npy", dataset.pixels[:n])
        given = dataset.labels if dataset.labels is not None else np.arange(n) % 8 > 0
        paths = [str(Path(images) / each) for each in source.names[:n]]
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        yield Material(paths, np.asarray(given[:n], np.int8), MappedPixels(pixels), source, folder)


def in_turns(contestants: Mapping[str, Callable[[], int]], wish: Wish, bar: Bar) -> Match:
    def told(name: str, work: Callable[[], int]) -> int:
        bar.note(name)
        images = work()
        bar.advance()
        return images

    return take_turns({name: partial(told, name, work) for name, work in contestants.items()}, wish.rounds)


def told_speed(speeds: np.ndarray) -> str:
    return f"{np.median(speeds):.0f} [{speeds.min():.0f}, {speeds.max():.0f}]"


def told_ratio(match: Match, name: str) -> str:
    found = match.ratios[name]
    return f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}]"


def member_of(arch: str) -> MemberConfig:
    return MemberConfig.model_validate({"arch": arch, "pretrained": False, "augment": "light"})


def columns_of(names: Sequence[str]) -> list[str]:
    return [column for name in names for column in (name, "ratio")]


def turns_of(wish: Wish, names: Sequence[str]) -> int:
    return (wish.rounds + 1) * (1 + (len(names) if wish.peers else 0))
