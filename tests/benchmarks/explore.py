"""Precision and recall of each finder of `thera explore` on drawn images with planted faults, and its time on a folder.

    python tests/benchmarks/explore.py                       # plants faults in drawn heads, five seeds, a minute
    python tests/benchmarks/explore.py FOLDER [--labels FILE] [--against FOLDER]

With a folder, the images are decoded first, and a second start is timed, which finds them decoded.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from ensemble import ExploreConfig, explore
from ensemble.data.synthetic import draw_head
from ensemble.progress import hidden

TRAIN, NEW, EACH = 2000, 400, 20
"""The images of both sets, and how many have each fault."""

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def recompressed(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def smaller(image: np.ndarray, side: int) -> np.ndarray:
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def shifted(image: np.ndarray, down: int, across: int) -> np.ndarray:
    return np.roll(np.pad(image, ((2, 2), (2, 2), (0, 0)), "edge"), (down, across), (0, 1))[2:-2, 2:-2]


NEAR: dict[str, Change] = {
    "recompressed, quality 30 to 80": lambda image, rng: recompressed(image, int(rng.integers(30, 81))),
    "shifted by one pixel": lambda image, rng: shifted(image, *rng.choice([-1, 1], 2)),
    "brightness times 0.7 to 1.3": lambda image, rng: np.clip(image * rng.uniform(0.7, 1.3), 0, 255).astype(np.uint8),
    "resized to 32 to 56 and back": lambda image, rng: smaller(image, int(rng.integers(32, 57))),
    "mirrored": lambda image, rng: np.ascontiguousarray(image[:, ::-1]),
}
FAULTS: dict[str, Change] = {
    "blurred": lambda image, rng: cv2.GaussianBlur(image, (0, 0), rng.uniform(2, 4)),
    "dark": lambda image, rng: (image * rng.uniform(0.12, 0.22)).astype(np.uint8),
    "bright": lambda image, rng: (255 - (255 - image) * rng.uniform(0.12, 0.22)).astype(np.uint8),
    "blank": lambda image, rng: np.clip(rng.normal(rng.uniform(20, 230), 2, image.shape), 0, 255).astype(np.uint8),
    "constant": lambda image, rng: np.broadcast_to(rng.integers(0, 256, 3), image.shape).astype(np.uint8),
}


def plant(folder: Path, seed: int) -> dict[str, set[str]]:
    """Write both sets and return the ids that each finder should list; kinds of near copies stand under their names."""
    rng = np.random.default_rng(seed)
    images = [draw_head(rng, rng.random() < 0.12) for _ in range(TRAIN)]
    new = [draw_head(rng, rng.random() < 0.12) for _ in range(NEW)]
    free = iter(rng.permutation(TRAIN).tolist())
    truth: dict[str, set[str]] = defaultdict(set)
    for kind, change in FAULTS.items():
        for row in [next(free) for _ in range(EACH)]:
            images[row] = change(images[row], rng)
            truth[kind].add(str(row + 1))
    for kind, change in {"identical": lambda image, rng: image, **NEAR}.items():
        for source, copy in [(next(free), next(free)) for _ in range(EACH)]:
            images[copy] = change(images[source], rng)
            truth[kind] |= {str(source + 1), str(copy + 1)}
            if kind in NEAR:
                truth["near-identical"] |= {str(source + 1), str(copy + 1)}
    changes = list(NEAR.values())
    for row in range(2 * EACH):  # half of them identical, half nearly so
        image = images[next(free)]
        new[row] = image if row < EACH else changes[row % len(changes)](image, rng)
        truth["overlap"].add(str(row + 1))
    for name, of_set in (("train", images), ("new", new)):
        (folder / name).mkdir()
        for row, image in enumerate(of_set, 1):
            (folder / name / f"{row}.png").write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    return truth


def measured(seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return precision and recall of each finder, and the recall of each kind of near copy."""
    with tempfile.TemporaryDirectory() as name, hidden():
        folder = Path(name)
        truth = plant(folder, seed)
        config = ExploreConfig(images=folder / "train", against=(folder / "new",), out=folder / "page.html")
        result = explore(config)
    precision, recall = {}, {}
    for kind, expected in truth.items():
        of_kind = "near-identical" if kind in NEAR else kind
        set_ = "against" if kind == "overlap" else "images"
        listed = {each.id.lstrip("0") for each in result.of_kind(of_kind) if each.set == set_}
        recall[kind] = len(listed & expected) / len(expected)
        if kind not in NEAR:
            precision[kind] = len(listed & expected) / max(len(listed), 1)
    return precision, recall


def table(seeds: int) -> None:
    rates = [measured(seed) for seed in range(seeds)]
    print("| finder | precision | recall |\n| --- | ---: | ---: |")
    for kind in rates[0][1]:
        cells = [np.array([of_seed[which].get(kind, np.nan) for of_seed in rates]) for which in (0, 1)]
        shown = [
            f"{each.mean():.3f} ({each.min():.2f} to {each.max():.2f})" if each[0] == each[0] else "" for each in cells
        ]
        print(f"| {kind} | {shown[0]} | {shown[1]} |")


def timed(arguments: argparse.Namespace) -> None:
    """Explore a folder in this process, and print the time and the peak memory."""
    started = time.monotonic()
    against = None if arguments.against is None else (arguments.against,)
    run = arguments.run
    result = explore(ExploreConfig(images=arguments.folder, labels=arguments.labels, against=against, run=run))
    seconds, memory = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu, gigabytes = memory.ru_utime + memory.ru_stime, memory.ru_maxrss / 1e6
    print(f"{result.images} and {result.against} images: {seconds:.0f} s, {cpu:.0f} s of CPU")
    print(f"{gigabytes:.2f} GB of memory at most; the page has {result.page.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is None:
        table(arguments.seeds)
    elif arguments.run is not None:
        timed(arguments)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for _ in ("decodes", "finds the images decoded"):
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "--run", folder], check=True)


if __name__ == "__main__":
    main()
