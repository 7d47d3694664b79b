"""Read random batches of training from a store of decoded images that is larger than the page cache's share.

    python tests/benchmarks/large_store.py WORK --images 2000000

The script writes `--images` images of 64 × 64 pixels as `thera` stores them (the pixels of drawn noise, repeated), and
removes them from the page cache. It then reads `--batches` batches of 128 random images, as training does: once by the
plain memory map, and once by `data.mapped`, as training does. Each time it starts without the cache.
Printed are images a second, the bytes that the disk read for each byte of an image, and by how much the memory of the
process grew.

After that it trains `--arch` with one thread for `--seconds` in a process of its own: from the first `--small` images,
which the page cache can hold; from all images, with an empty page cache; from all images, with a page cache that is
full, after the whole file was read once; and from the few again. Printed are images a second after the first tenth of
the time, the processor time of an image, the greatest anonymous and mapped memory of the process (mapped files: more
than at the first update), and the size of the page cache at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from ensemble.config import MemberConfig
from ensemble.data.mapped import open_pixels, read_rows
from ensemble.errors import Stopped
from ensemble.members.fold_job import FoldJob
from ensemble.members.plans import Plan
from ensemble.members.processes import MappedPixels
from ensemble.members.training import train_fold
from ensemble.reports.table import Table
from ensemble.runs.training_state import StateFolder

SIZE, BATCH, BLOCK = 64, 128, 4096
"""Side of an image in pixels, images of a batch, and images that are written at a time."""


def write_pixels(path: Path, n: int) -> None:
    """Write an array (n, 64, 64, 3), and leave none of it in the page cache."""
    if path.exists():
        return
    block = np.random.default_rng(0).integers(0, 256, (BLOCK, SIZE, SIZE, 3), dtype=np.uint8)
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, SIZE, SIZE, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, n, BLOCK):
            file.write(block[: n - start].data)
            if start % (16 * BLOCK) == 0:
                forget(file.fileno())
        forget(file.fileno())


def forget(file: int) -> None:
    """Write a file to the disk, and remove it from the page cache."""
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes() -> int:
    """Return the bytes that this process has read from the disk."""
    (line,) = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("read_bytes")]
    return int(line.split()[1])


def resident() -> tuple[float, float]:
    """Return the anonymous memory of this process and its share of mapped files, in MiB."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if "Rss" in line)
    anonymous, mapped = (int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    return anonymous, mapped


def measured(
    path: Path, opened: Callable[[Path], np.ndarray], read: Callable[..., np.ndarray], batches: int
) -> tuple[str, ...]:
    with open(path, "rb") as file:
        forget(file.fileno())
    pixels = opened(path)
    rng = np.random.default_rng(1)
    before, began, total, at_first = read_bytes(), time.perf_counter(), 0, resident()
    for _ in range(batches):
        total += int(read(pixels, rng.integers(0, len(pixels), BATCH))[0, 0, 0, 0])
    seconds, from_disk = time.perf_counter() - began, read_bytes() - before
    anonymous, mapped = (now - before for now, before in zip(resident(), at_first, strict=True))
    images = batches * BATCH
    amplification = from_disk / (images * SIZE * SIZE * 3)
    return f"{images / seconds:.0f}", f"{amplification:.2f}", f"{anonymous:.0f}", f"{mapped:.0f}"


# --- training ---------------------------------------------------------------------------------------------------------


class Clock:
    """Counts images and samples the memory of this process, until it stops the training after some seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._began = seconds, 0.0
        self._mapped_before = 0.0
        self.marks: list[tuple[float, float, int, int]] = []
        self.anonymous = self.mapped = 0.0

    def advance(self, n: int = 1) -> None:
        if not n:
            return
        if not self.marks:
            self._began, self._mapped_before = time.perf_counter(), resident()[1]
        images = self.marks[-1][2] + n if self.marks else n
        self.marks.append((time.perf_counter() - self._began, time.process_time(), images, read_bytes()))
        if len(self.marks) % 16 == 0:
            anonymous, mapped = resident()
            self.anonymous, self.mapped = max(self.anonymous, anonymous), max(self.mapped, mapped - self._mapped_before)
        if self.marks[-1][0] > self._seconds:
            raise Stopped("thera", "is stopped", "measure again")

    def skip(self, n: int) -> None: ...

    def note(self, text: str) -> None: ...

    def say(self, line: str) -> None: ...


def train(store: Path, images: int, arch: str, seconds: float) -> dict[str, float]:
    """Train on the first images of a store, and return what was measured."""
    torch.set_num_threads(1)
    pixels, rows = open_pixels(store), np.arange(images)
    labels = (rows % 2).astype(np.int8)
    config = MemberConfig(arch=arch, epochs=100, batch_size=BATCH, augment="light")
    job = FoldJob(config, MappedPixels(pixels), labels, rows.astype(str), rows, 0, 0)
    clock = Clock(seconds)
    with TemporaryDirectory(dir=store.parent) as folder, contextlib.suppress(Stopped):
        train_fold(job, StateFolder(Path(folder), math.inf), Plan("fp32"), torch.device("cpu"), 0, clock)
    first, last = next(mark for mark in clock.marks if mark[0] > seconds / 10), clock.marks[-1]
    wall, cpu, count, from_disk = (b - a for a, b in zip(first, last, strict=True))
    return {
        "rate": count / wall,
        "cpu": 1000 * cpu / count,
        "read": from_disk / (count * SIZE * SIZE * 3),
        "anonymous": clock.anonymous,
        "mapped": clock.mapped,
        "cache": cached(),
    }


def cached() -> float:
    """Return the size of the system's page cache in MiB."""
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Cached:")]
    return int(line.split()[1]) / 1024


def trained(store: Path, images: int, given: argparse.Namespace) -> tuple[str, ...]:
    """Train in a process of its own, and return the columns of the table."""
    command = [__file__, given.work, "--train", images, "--arch", given.arch, "--seconds", given.seconds]
    done = subprocess.run([sys.executable, *map(str, command)], stdout=subprocess.PIPE, check=True)
    of = json.loads(done.stdout)
    return (
        f"{of['rate']:.0f}",
        f"{of['cpu']:.2f}",
        f"{of['read']:.2f}",
        f"{of['anonymous']:.0f}",
        f"{of['mapped']:.0f}",
        f"{of['cache']:.0f}",
    )


def read_whole(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(2**24):
            pass


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("work", type=Path)
    options.add_argument("--images", type=int, default=2_000_000)
    options.add_argument("--batches", type=int, default=200)
    options.add_argument("--small", type=int, default=20_000)
    options.add_argument("--arch", default="small_cnn")
    options.add_argument("--seconds", type=float, default=180)
    options.add_argument("--train", type=int, help="train from so many images in this process, and print JSON")
    given = options.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    path = given.work / "pixels.npy"
    if given.train:
        print(json.dumps(train(path, given.train, given.arch, given.seconds)))
        return
    write_pixels(path, given.images)
    ways = {
        "plain memory map": (lambda path: np.load(path, mmap_mode="r"), lambda pixels, rows: pixels[rows]),
        "as training reads": (open_pixels, read_rows),
    }
    rows = tuple((name, *measured(path, *way, given.batches)) for name, way in ways.items())
    columns = ("way", "images/s", "bytes read of a byte", "more memory, MiB", "more of mapped files, MiB")
    print(Table(f"Random batches of {given.images} images", columns, rows).text(100), flush=True)

    def without_cache() -> None:
        with open(path, "rb") as file:
            forget(file.fileno())

    trainings: dict[str, tuple[int, Callable[[], None]]] = {
        f"from {given.small} images": (given.small, lambda: None),
        "from all, page cache empty": (given.images, without_cache),
        "from all, page cache full": (given.images, lambda: read_whole(path)),
        f"from {given.small} images, again": (given.small, lambda: None),
    }
    found = list[tuple[str, ...]]()
    for name, (images, prepare) in trainings.items():
        prepare()
        found.append((name, *trained(path, images, given)))
    columns = ("training", "images/s", "ms of processor an image", "bytes read of a byte", "memory, MiB",
               "of mapped files, MiB", "page cache, MiB")  # fmt: skip
    print(Table(f"{given.arch}, {given.seconds:.0f} s each", columns, tuple(found)).text(120))


if __name__ == "__main__":
    main()
