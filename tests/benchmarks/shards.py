"""Label many images in shards with one small network, killed at random: images a second, memory, distinct rows.

    python tests/benchmarks/shards.py WORK --images 2000000 --kills 10

The script draws `--distinct` heads of 64 × 64 pixels, trains `--arch` on them, and packs their JPEG files again and
again, each time under another name and with another comment in the file, into tars of `--in-a-tar` images. `thera
predict --shards` labels the tars. All its processes are killed (SIGKILL) `--kills` times, each after a random number of
seconds, and started again. At the end another start must find everything done.

Printed are the rates of all starts together and of the last start, which nothing interrupts; the greatest memory
(proportional set size) of the command and of one computing process in each quarter of the time; the numbers of rows,
distinct rows and ids; how many parts have the hash of their note; and how far logits of the same head differ, wherever
it was in the tars. `memory.csv` has every sample of the memory.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ensemble.commands.fit_stacker import fit_stacker
from ensemble.commands.shard_listing import planned
from ensemble.commands.train import train_members
from ensemble.config import ComputeConfig, DataConfig, MemberConfig
from ensemble.data.synthetic import write_demo
from ensemble.members.parallel import Resources
from ensemble.predict_config import PredictConfig
from ensemble.reports.table import Table
from ensemble.runs.run import Run
from ensemble.runs.shards import Parts, ShardFolder

SAMPLED_S = 2.0
"""Seconds between two looks at the memory of the processes."""

COMMENT = b"\xff\xfe\x00\x0e"
"""The beginning of a comment of 12 bytes in a JPEG file."""


def write_tars(folder: Path, images: list[bytes], n: int, in_a_tar: int) -> None:
    """Write n different files with names of their own into tars, unless that is done; the pixels repeat."""
    if (folder / "done").exists():
        return
    folder.mkdir(exist_ok=True)
    for start in range(0, n, in_a_tar):
        with tarfile.open(folder / f"{start // in_a_tar:06d}.tar", "w") as tar:
            for row in range(start, min(start + in_a_tar, n)):
                image = images[row % len(images)]
                data = image[:2] + COMMENT + b"%012d" % row + image[2:]
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


@dataclass(frozen=True)
class Sample:
    """The memory at a moment: the proportional set size in MiB of the command, and of its largest computing process."""

    seconds: float
    parts: int
    command: float
    worker: float


def memory(group: int) -> tuple[float, float]:
    """Return the proportional set size, in MiB, of the first process of a group and of its largest computing one."""
    command, workers = 0.0, [0.0]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            if os.getpgid(int(process.name)) == group:
                lines = (process / "smaps_rollup").read_text().splitlines()
                size = next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
                if int(process.name) == group:
                    command = size
                elif b"spawn_main" in (process / "cmdline").read_bytes():
                    workers.append(size)
    return command, max(workers)


def start(run: Path, tars: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "thera", "predict", "--run", run, tars, "--shards", out]
    with open(log, "ab") as file:
        return subprocess.Popen([*map(str, command)], stdout=file, stderr=file, start_new_session=True)


def processor_seconds() -> float:
    """Return the processor time of the processes that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def quarters(samples: list[Sample], name: str) -> str:
    """Return the greatest value in each quarter of the samples."""
    values = np.array([getattr(sample, name) for sample in samples])
    return " ".join(f"{part.max():.0f}" for part in np.array_split(values, 4))


def right_parts(parts: Parts) -> int:
    """Return how many parts have the hash of their note."""
    right = 0
    for note in sorted((parts.folder / "_done").glob("*.json")):
        stored = json.loads(note.read_text())["sha256"]
        right += hashlib.sha256(parts.path(int(note.stem)).read_bytes()).hexdigest() == stored
    return right


def rows_and_logits(folder: ShardFolder, shards: int, distinct: int) -> tuple[tuple[str, str], ...]:
    """Return what the rows, ids and logits of all parts are."""
    rows, labels, logits, names = list[np.ndarray](), list[np.ndarray](), list[np.ndarray](), set[int]()
    for index in range(shards):
        part = folder.labels.read(index, ["row", "id", "label", "stacked_logit"])
        rows.append(part.column("row").to_numpy())
        labels.append(part.column("label").to_numpy())
        logits.append(part.column("stacked_logit").to_numpy())
        ids = part.column("id").to_pylist()
        names.update(map(hash, ids))
        assert [int(Path(name).stem) for name in ids] == rows[-1].tolist()  # the file is named by its row
    row, label, logit = map(np.concatenate, (rows, labels, logits))
    head = row % distinct
    first = np.unique(head, return_index=True)[1]
    return (
        ("rows", str(len(row))),
        ("distinct rows", str(np.unique(row).size)),
        ("distinct ids", str(len(names))),
        ("greatest difference of two logits of a head", f"{np.abs(logit - logit[first][head]).max():.2g}"),
        ("rows with another label than the first of the head", str(np.count_nonzero(label != label[first][head]))),
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("work", type=Path)
    options.add_argument("--images", type=int, default=2_000_000)
    options.add_argument("--distinct", type=int, default=2000)
    options.add_argument("--in-a-tar", type=int, default=100_000)
    options.add_argument("--arch", default="lenet")
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--seconds", type=float, nargs=2, default=(30, 150), help="before each kill")
    given = options.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    run, images = trained(given.work, given.arch, given.distinct)
    tars, out = given.work / f"tars-{given.images}", given.work / f"shards-{given.images}"
    began = time.perf_counter()
    write_tars(tars, images, given.images, given.in_a_tar)
    print(f"tars written in {time.perf_counter() - began:.0f} s", flush=True)

    rng, kills, folder = random.Random(0), 0, ShardFolder(out)
    wall, config = time.perf_counter(), PredictConfig(images=(tars.absolute(),))
    plan = planned(folder, config, Run(run).read(), Resources.of(ComputeConfig()), lambda line: None)
    print(f"images listed in {time.perf_counter() - wall:.1f} s", flush=True)
    shards, samples = plan.shards, list[Sample]()

    def parts() -> int:
        return len(list((out / "_logits/_done").glob("*.json")))

    first_start = time.perf_counter()
    while True:
        process, last_start, last_start_at = (
            start(run, tars, out, given.work / "log.txt"),
            time.perf_counter(),
            time.time(),
        )
        begun_with, used, first_sample = parts(), processor_seconds(), len(samples)
        until = last_start + rng.uniform(*given.seconds) if kills < given.kills else float("inf")
        while process.poll() is None and time.perf_counter() < until:
            time.sleep(SAMPLED_S)
            samples.append(Sample(time.perf_counter() - first_start, parts(), *memory(process.pid)))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        seconds = time.perf_counter() - first_start
        print(f"kill {kills} after {seconds:.0f} s, with the logits of {parts()} of {shards} shards", flush=True)
    if process.returncode:
        raise SystemExit(f"the command failed with exit status {process.returncode}: see log.txt")
    ended, used = time.perf_counter(), processor_seconds() - used
    lines = [f"{each.seconds:.1f},{each.parts},{each.command:.1f},{each.worker:.1f}\n" for each in samples]
    (given.work / "memory.csv").write_text("seconds,parts,command_mib,worker_mib\n" + "".join(lines))
    notes = (path.stat().st_mtime for path in (out / "_logits/_done").glob("*.json"))
    logits_s, last = max(notes) - last_start_at, given.images - begun_with * plan.rows

    began = time.perf_counter()
    again = start(run, tars, out, given.work / "log.txt").wait()
    again_s = time.perf_counter() - began
    computing = [each for each in samples if each.worker]
    since = [each for each in samples[first_sample:] if each.worker]
    size = sum(path.stat().st_size for path in folder.logits.folder.glob("part-*"))
    labels = sum(path.stat().st_size for path in out.glob("part-*"))
    facts = (
        ("images, shards, kills", f"{given.images}, {shards}, {kills}"),
        ("seconds of all starts", f"{ended - first_start:.0f}"),
        ("images/s of all starts", f"{given.images / (ended - first_start):.0f}"),
        ("the last start: images, seconds to their last logits", f"{last}, {logits_s:.0f}"),
        ("the last start: images/s, without labels", f"{last / logits_s:.0f}"),
        ("the last start: images for a second of processor time", f"{last / used:.0f}"),
        ("seconds of the decision and all labels", f"{ended - last_start - logits_s:.0f}"),
        ("a further start: exit status, seconds", f"{again}, {again_s:.0f}"),
        *rows_and_logits(folder, shards, given.distinct),
        (
            "parts with the hash of their note: logits, labels",
            f"{right_parts(folder.logits)}, {right_parts(folder.labels)}",
        ),
        ("bytes a row of logits, of labels", f"{size / given.images:.1f}, {labels / given.images:.1f}"),
        ("memory of the command by quarter, MiB", quarters(computing, "command")),
        ("memory of a computing process by quarter, MiB", quarters(computing, "worker")),
        ("… since the last start: the command", quarters(since, "command")),
        ("… since the last start: a computing process", quarters(since, "worker")),
    )
    print(Table("Prediction in shards", ("what", "value"), facts).text(100))


if __name__ == "__main__":
    main()
