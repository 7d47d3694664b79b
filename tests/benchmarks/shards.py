"""Label many images in shards with one small network, killed at random: images a second, memory, distinct rows.

    python tests/benchmarks/shards.py WORK --images 2000000 --kills 10

The script draws `--distinct` heads of 64 × 64 pixels, trains `--arch` on them, and packs their JPEG files again and
again, each time under another name, into tars of `--in-a-tar` images. `thera predict --shards` labels the tars. Its
processes are killed (SIGKILL) `--kills` times, each after a random number of seconds, and started again. At the end
another start must find everything done. Printed are the rate without the starts, the greatest memory of the command's
processes (proportional set size) in each tenth of the shards, and the numbers of rows and of distinct rows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np

from ensemble.commands.fit_stacker import fit_stacker
from ensemble.commands.train import train_members
from ensemble.config import DataConfig, MemberConfig
from ensemble.data.shard_lists import list_images
from ensemble.data.synthetic import write_demo
from ensemble.predict_config import PredictConfig
from ensemble.progress import progress
from ensemble.reports.table import Table
from ensemble.runs.shards import ROWS, ShardFolder, read_parquet

SAMPLED_S = 1.0
"""Seconds between two looks at the memory of the processes."""


def write_tars(folder: Path, images: list[bytes], n: int, in_a_tar: int) -> None:
    """Write n images with names of their own into tars, unless that is done; the content repeats."""
    if (folder / "done").exists():
        return
    folder.mkdir(exist_ok=True)
    for start in range(0, n, in_a_tar):
        with tarfile.open(folder / f"{start // in_a_tar:06d}.tar", "w") as tar:
            for row in range(start, min(start + in_a_tar, n)):
                data = images[row % len(images)]
                member = tarfile.TarInfo(f"{row:012d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (folder / "done").write_text(str(n))


def trained(work: Path, arch: str, distinct: int) -> tuple[Path, list[bytes]]:
    """Return a run of one network on drawn heads, and the heads to label as JPEG files."""
    write_demo(work / "heads", 600, distinct, seed=0)
    run = work / f"run-{arch}"
    if not (run / "decision/decision.json").exists():
        data = DataConfig(images=work / "heads/train_img", labels=work / "heads/label_train.txt")
        train_members(run, [MemberConfig(arch=arch, epochs=3, batch_size=64)], data, folds=2, seed=0)
        fit_stacker(run)
    files = sorted((work / "heads/val_img").iterdir())
    pixels = (cv2.imread(str(path), cv2.IMREAD_COLOR) for path in files)
    return run, [cv2.imencode(".jpg", each, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes() for each in pixels]


def memory(group: int) -> float:
    """Return the proportional set size of all processes of a process group, in MiB."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if os.getpgid(int(process.name)) == group:
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def start(run: Path, tars: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "thera", "predict", "--run", run, tars, "--shards", out]
    with open(log, "ab") as file:
        return subprocess.Popen([*map(str, command)], stdout=file, stderr=file, start_new_session=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("work", type=Path)
    options.add_argument("--images", type=int, default=2_000_000)
    options.add_argument("--distinct", type=int, default=2000)
    options.add_argument("--in-a-tar", type=int, default=100_000)
    options.add_argument("--arch", default="lenet")
    options.add_argument("--rows", type=int, default=ROWS, help="images of a shard")
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--seconds", type=float, nargs=2, default=(20, 90), help="of work before each kill")
    given = options.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    run, images = trained(given.work, given.arch, given.distinct)
    tars, out = given.work / f"tars-{given.images}", given.work / f"shards-{given.images}"
    began = time.perf_counter()
    write_tars(tars, images, given.images, given.in_a_tar)
    print(f"tars written in {time.perf_counter() - began:.0f} s", flush=True)

    rng, kills, folder = random.Random(0), 0, ShardFolder(out)
    began = time.process_time()
    if folder.plan() is None:
        listed = list_images(PredictConfig(images=(tars,)))
        with progress(0, "list") as bar:
            folder.write_plan((str(tars.absolute()),), listed, False, bar, given.rows)
    print(f"images listed in {time.process_time() - began:.1f} s of processor time", flush=True)
    shards, peaks, busy = -(-given.images // given.rows), dict[int, float](), 0.0
    while True:
        process, began = start(run, tars, out, given.work / "log.txt"), time.perf_counter()
        until = began + rng.uniform(*given.seconds) if kills < given.kills else float("inf")
        while process.poll() is None and time.perf_counter() < until:
            time.sleep(SAMPLED_S)
            done = len(list((out / "_logits/_done").glob("*.json")))
            tenth = min(9, 10 * done // shards)
            peaks[tenth] = max(peaks.get(tenth, 0.0), memory(process.pid))
        busy += time.perf_counter() - began
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            print(
                f"kill {kills} with {len(list((out / '_logits/_done').glob('*.json')))} of {shards} shards", flush=True
            )
            continue
        if process.returncode:
            raise SystemExit(f"the command failed with exit status {process.returncode}: see log.txt")
        break

    began = time.perf_counter()
    again = start(run, tars, out, given.work / "log.txt").wait()
    parts = [read_parquet(path, ["row", "id"]) for path in sorted(out.glob("part-*.parquet"))]
    rows = np.concatenate([part.column("row").to_numpy() for part in parts])
    names = {hash(name) for part in parts for name in part.column("id").to_pylist()}
    size = sum(path.stat().st_size for path in folder.logits.folder.glob("part-*"))
    labels = sum(path.stat().st_size for path in out.glob("part-*"))
    facts = (
        ("images", given.images),
        ("shards", shards),
        ("kills", kills),
        ("seconds, with all starts", f"{busy:.0f}"),
        ("images/s, with all starts", f"{given.images / busy:.0f}"),
        ("rows", len(rows)),
        ("distinct rows", np.unique(rows).size),
        ("distinct names", len(names)),
        ("a further start: exit status, seconds", f"{again}, {time.perf_counter() - began:.0f}"),
        ("bytes a row of logits, of labels", f"{size / len(rows):.1f}, {labels / len(rows):.1f}"),
        ("greatest memory in each tenth, MiB", " ".join(f"{peaks[i]:.0f}" for i in sorted(peaks))),
    )
    print(
        Table("Prediction in shards", ("what", "value"), tuple((name, str(value)) for name, value in facts)).text(100)
    )


if __name__ == "__main__":
    main()
