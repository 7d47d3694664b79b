"""Measure a Ray cluster of two one-core nodes on this machine against two processes of one core each.

python tests/benchmarks/cluster.py [--rounds 2] [--images 2000] [--epochs 2]

It prints tasks a second; the seconds of the same four trainings, with their held-out predictions, in both pools, in
turn (processes, cluster, processes, cluster, …) and after both have started, with the CPU seconds of their processes;
the resident memory of each kind of process.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "cluster")]

import numpy as np
import torch
from simulated import Forgotten, Simulated, cpu_seconds, nothing

from ensemble.cluster.resources import resources_of
from ensemble.config import VIEWS, ComputeConfig, MemberConfig
from ensemble.members.fold_job import FoldJob
from ensemble.members.parallel import Task
from ensemble.members.plans import Plan
from ensemble.members.processes import MappedPixels, Workers
from ensemble.progress import progress

TASKS, FOLDS = 500, 4


def tasks(images: int, epochs: int) -> list[Task]:
    """Return the trainings of four folds of small_cnn on drawn pixels."""
    rng, rows = np.random.default_rng(0), np.arange(images)
    pixels, labels = rng.integers(0, 256, (images, 64, 64, 3), np.uint8), (rows % 4 != 0).astype(np.int8)
    config = MemberConfig(arch="small_cnn", epochs=epochs, batch_size=64, augment="light")
    mapped, found = MappedPixels(pixels), []
    for fold in range(FOLDS):
        job = FoldJob(config, mapped, labels, rows.astype(str), rows[rows % FOLDS != fold], fold, 0)
        found.append(Task(job, Forgotten(), Plan("fp32"), rows[rows % FOLDS == fold], VIEWS, None))
    return found


def seconds(pool: Any, work: list[Task]) -> tuple[float, float]:
    """Return the seconds in which a pool of two trains and predicts the folds, and the CPU seconds of its processes."""
    calls = [([task], torch.device("cpu"), 0, 1.0) for task in work]
    cores = [[index % 2] for index in range(len(calls))]
    started = time.perf_counter()
    with progress(1, "train") as bar:
        used = sum(of_call for _, of_call in pool.run(cpu_seconds, calls, cores, bar))
    return time.perf_counter() - started, used


def memory() -> dict[str, list[float]]:
    """Return the resident MiB of this process and of those of Ray, by kind."""
    found = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title = path.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
            status = path.joinpath("status").read_text()
        except OSError:
            continue  # it has ended
        own = path.name == str(Path("/proc/self").resolve().name)
        kind = "driver" if own else next((k for k in KINDS if k in title), None)
        if kind and "VmRSS:" in status:
            found[kind].append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
    return found


KINDS = ("ray::work", "ray::IDLE", "ray::Relay", "raylet/raylet", "gcs_server", "DashboardAgent", "RuntimeEnvAgent")
"""Parts of the command lines of Ray's processes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    started, simulated = time.perf_counter(), Simulated()
    try:
        for _ in range(2):
            simulated.add()
        print(f"two nodes started in {time.perf_counter() - started:.1f} s")
        started = time.perf_counter()
        resources = resources_of(ComputeConfig(cluster=simulated.address, device="cpu"))
        print(f"joined in {time.perf_counter() - started:.1f} s, with torch imported on each node")
        work, least = tasks(options.images, options.epochs), tasks(64, 1)
        with Workers() as processes, resources.pool() as cluster:
            for pool in (processes, cluster):
                seconds(pool, least)  # starts the processes, and builds a network in each
            started = time.perf_counter()
            with progress(1, "tasks") as bar:
                list(cluster.run(nothing, [(number,) for number in range(TASKS)], [[0]] * TASKS, bar))
            print(f"{TASKS / (time.perf_counter() - started):.0f} tasks a second")
            ratios = []
            for number in range(options.rounds):
                (one, cpu_of_one), (two, cpu_of_two) = seconds(processes, work), seconds(cluster, work)
                ratios.append((two / one, cpu_of_two / cpu_of_one))
                times = f"processes {one:.1f} s ({cpu_of_one:.1f} s of CPU), cluster {two:.1f} s ({cpu_of_two:.1f} s)"
                print(f"round {number}: {times}", flush=True)
            wall, cpu = np.exp(np.log(ratios).mean(0))
            print(f"cluster / processes, geometric mean: {wall:.3f} of the time, {cpu:.3f} of the CPU seconds")
            for kind, sizes in memory().items():
                print(f"{kind}: {', '.join(f'{size:.0f}' for size in sorted(sizes))} MiB")
    finally:
        simulated.close()


if __name__ == "__main__":
    main()
