"""Measure what grows with the number of nodes of a Ray cluster, on as many simulated nodes as this machine holds.

    python tests/benchmarks/hundred_nodes.py [--nodes 8] [--tasks 2000] [--reporters 1600] [--rows 300]

Nodes of one core are started one after the other. Printed are

- the memory of a node (proportional set size of its processes), and the seconds in which the driver joins 2 nodes and
  all of them, which includes one process on each that imports torch;
- the seconds to the first of `--tasks` empty tasks, tasks a second, and the processor time of the driver for each;
- how many reports a second the relay takes where tasks send them as fast as they can, in the names of `--reporters`
  tasks, and how long another question to the relay waits meanwhile; the same where each of so many tasks reports as
  often as the pool asks it to;
- the processor time in which the driver takes the reports of so many tasks and draws them on a terminal, where they
  belong to `--rows` members, each with a line of its own;
- the resident memory of the driver and of the relay.
"""

from __future__ import annotations

import argparse
import os
import pty
import sys
import time
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "cluster")]

import ray
from simulated import Simulated, nothing

from ensemble.cluster import nodes as joined
from ensemble.cluster.display import Display, Report, Subject
from ensemble.cluster.resources import resources_of
from ensemble.cluster.tasks import report_interval
from ensemble.config import ComputeConfig
from ensemble.progress import progress

SENDERS, SECONDS, LOOKED_S = 4, 10.0, 0.5
"""Tasks that send the reports of all simulated ones; seconds for which they do; seconds between two looks at them."""


def pss(pids: list[int]) -> float:
    """Return the proportional set size of processes in MiB."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def tree(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def rss(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


@ray.remote(num_cpus=0)
def send(relay: Any, token: str, indices: list[int], seconds: float, every: float) -> int:
    """Send reports of jobs to the relay, each every so many seconds (0: as fast as possible); return their number."""
    report, sent, began, last = Report(0, "host-0000", 100, 0, (("note", "epoch 1/3 loss 0.123"),)), 0, time.time(), []
    while (now := time.time() - began) < seconds:
        for position, index in enumerate(indices):
            if every:
                due = began + now // every * every + every * (position + 1) / len(indices)
                time.sleep(max(0.0, due - time.time()))
            last.append(relay.report.remote(token, index, report))
            sent += 1
            if len(last) >= 1000:  # no sender is further ahead than this
                ray.get(last)
                last = []
    ray.get(last)
    return sent


def reports(relay: Any, reporters: int, every: float) -> tuple[float, list[float]]:
    """Return how many reports a second the relay takes, and the seconds that other questions to it waited meanwhile."""
    shares, waited = [list(range(first, reporters, SENDERS)) for first in range(SENDERS)], []
    ray.get([send.remote(relay, "warm", [0], 0.1, 0.0) for _ in shares])  # starts the processes
    began = time.perf_counter()
    sending = [send.remote(relay, "x", share, SECONDS, every) for share in shares]
    while len(ray.wait(sending, num_returns=len(sending), timeout=LOOKED_S)[1]):
        asked = time.perf_counter()
        ray.get(relay.collect.remote("x"))
        waited.append(time.perf_counter() - asked)
    return sum(ray.get(sending)) / (time.perf_counter() - began), waited


def draw(reporters: int, rows: int) -> tuple[float, float]:
    """Return the milliseconds of processor time to take a report of each job, and to draw the lines of all members."""
    subjects = [Subject(f"member-{index % rows}", f"fold {index // rows}", 1000) for index in range(reporters)]
    controller, terminal = pty.openpty()
    os.set_blocking(controller, False)
    stderr, sys.stderr = sys.stderr, os.fdopen(terminal, "w")
    os.environ.pop("TERM", None)
    taken, drawn = [], []
    try:
        with progress(1000 * reporters, "train") as bar:
            display = Display(subjects, bar)
            for step in range(1, 6):
                began = time.process_time()
                for index in range(reporters):
                    display.take(index, Report(0, f"host-{index % 100}-{step % 2}", 100 * step, 0, ()))
                middle = time.process_time()
                display.refresh()
                taken.append(middle - began)
                drawn.append(time.process_time() - middle)
                while True:  # a terminal whose other end is not read would stop the drawing
                    try:
                        os.read(controller, 2**20)
                    except BlockingIOError:
                        break
            display.close()
    finally:
        sys.stderr.close()
        sys.stderr = stderr
        os.close(controller)
    return 1000 * sorted(taken)[2], 1000 * sorted(drawn)[2]


def join(address: str) -> tuple[float, Any]:
    """Return the seconds in which this process joins the nodes that are there, and what computes then."""
    joined._joined.clear()
    began = time.perf_counter()
    resources = resources_of(ComputeConfig(cluster=address, device="cpu"))
    return time.perf_counter() - began, resources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--reporters", type=int, default=1600)
    parser.add_argument("--rows", type=int, default=300)
    options = parser.parse_args()
    taken, drawn = draw(options.reporters, options.rows)
    print(
        f"{options.reporters} reports taken in {taken:.0f} ms, {options.rows} lines drawn in {drawn:.0f} ms", flush=True
    )
    simulated = Simulated()
    try:
        for number in range(options.nodes):
            began = time.perf_counter()
            simulated.add()
            print(f"node {number + 1} started in {time.perf_counter() - began:.1f} s", flush=True)
            if number + 1 in (2, options.nodes):
                seconds, resources = join(simulated.address)
                print(f"{number + 1} nodes joined in {seconds:.1f} s", flush=True)
        sizes = [pss(tree(node.all_processes["raylet"][0].process.pid)) for node in simulated.nodes]
        print(f"memory of a node with one worker: {min(sizes):.0f} to {max(sizes):.0f} MiB", flush=True)

        pool, firsts = resources.pool(), list[float]()
        with pool, progress(1, "tasks") as bar:
            for count in (options.nodes, options.tasks):  # the first ones start the processes
                began, cpu = time.perf_counter(), time.process_time()
                for _ in pool.run(nothing, [(number,) for number in range(count)], [[0]], bar):
                    firsts.append(time.perf_counter() - began)
                seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        rate, each = options.tasks / seconds, 1000 * cpu / options.tasks
        print(f"first of {options.tasks} tasks after {firsts[options.nodes]:.2f} s, {rate:.0f} a second")
        print(f"processor time of the driver: {each:.1f} ms a task", flush=True)

        relay = joined._joined["cpu"].relay
        for every in (0.0, report_interval(options.reporters)):
            rate, waited = reports(relay, options.reporters, every)
            how = f"every {every:.1f} s" if every else "as fast as possible"
            print(f"{options.reporters} tasks report {how}: {rate:.0f} reports a second")
            median, most = (1000 * each for each in (sorted(waited)[len(waited) // 2], max(waited)))
            print(f"a question to the relay waits {median:.0f} ms meanwhile, at most {most:.0f} ms", flush=True)
        (of_relay,) = [
            int(path.name)
            for path in Path("/proc").glob("[0-9]*")
            if path.joinpath("cmdline").read_bytes().startswith(b"ray::Relay")
        ][-1:]
        print(f"resident memory: driver {rss(os.getpid()):.0f} MiB, relay {rss(of_relay):.0f} MiB")
    finally:
        simulated.close()


if __name__ == "__main__":
    main()
