"""Read random batches of training from a store of decoded images that is larger than the page cache's share.

    python tests/benchmarks/large_store.py WORK --images 2000000

The script writes `--images` images of 64 × 64 pixels as `thera` stores them (the pixels of drawn noise, repeated), and
removes them from the page cache. It then reads `--batches` batches of 128 random images, as training does: once by the
plain memory map, and once by `data.mapped`, as training does. Each time it starts without the cache.
Printed are images a second, the bytes that the disk read for each byte of an image, and the memory of the process.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ensemble.data.mapped import open_pixels, read_rows
from ensemble.reports.table import Table

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
    before, began, total = read_bytes(), time.perf_counter(), 0
    for _ in range(batches):
        total += int(read(pixels, rng.integers(0, len(pixels), BATCH))[0, 0, 0, 0])
    seconds, from_disk = time.perf_counter() - began, read_bytes() - before
    anonymous, mapped = resident()
    images = batches * BATCH
    amplification = from_disk / (images * SIZE * SIZE * 3)
    return f"{images / seconds:.0f}", f"{amplification:.2f}", f"{anonymous:.0f}", f"{mapped:.0f}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("work", type=Path)
    options.add_argument("--images", type=int, default=2_000_000)
    options.add_argument("--batches", type=int, default=200)
    given = options.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    path = given.work / "pixels.npy"
    write_pixels(path, given.images)
    ways = {
        "plain memory map": (lambda path: np.load(path, mmap_mode="r"), lambda pixels, rows: pixels[rows]),
        "as training reads": (open_pixels, read_rows),
    }
    rows = tuple((name, *measured(path, *way, given.batches)) for name, way in ways.items())
    columns = ("way", "images/s", "bytes read of a byte", "memory, MiB", "of mapped files, MiB")
    print(Table(f"Random batches of {given.images} images", columns, rows).text(100))


if __name__ == "__main__":
    main()
