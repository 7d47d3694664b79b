"""The command of the soak: it shares the time among the kinds of faults, and prints what was tried and survived."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import util
from pathlib import Path
from types import FrameType

# One thread in each process, set before any library starts its threads: a process that has threads must not fork.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
os.environ |= {"HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}

from ensemble.machine import available_cores

from . import artifacts, disk, images, kills, starts, workers
from .lanes import Result, Trial, run_trials


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes
    ----------
    title : str
    trials : callable
        Takes the folder that `tiny_run.prepare` has written and the seed; returns the trial, and the number of
        different ones where it is limited.
    count : int or None
        The trials of a whole soak; None for all different ones.
    seconds : float
        What a trial was measured to take of one core; the kinds share the time in proportion.
    hang_s : float
        Seconds after which a trial is a hang.
    """

    title: str
    trials: Callable[[Path, int], tuple[Trial, int | None]]
    count: int | None
    seconds: float
    hang_s: float


def _images(kind: str) -> Kind:
    return Kind(
        f"mutated {kind.upper()}", lambda data, seed: images.trials(data, seed, kind), 10_000, 0.002, images.HANG_S
    )


KINDS = {
    **{kind: _images(kind) for kind in images.FORMATS},
    "configs": Kind("mutated configs", artifacts.config_trials, 10_000, 0.02, artifacts.HANG_S),
    "labels": Kind("mutated label files", artifacts.label_trials, 10_000, 0.035, artifacts.HANG_S),
    "workers": Kind("0, 1, 2 and 4 data workers", workers.trials, 10, 15.0, workers.HANG_S),
    "starts": Kind("two starts at once", starts.trials, 100, 1.0, starts.HANG_S),
    "kills": Kind("SIGKILL", kills.trials, 500, 2.4, kills.HANG_S),
    "disk": Kind("faults of the disk", disk.trials, None, 0.5, disk.HANG_S),
    "artifacts": Kind("mutated files of a run", artifacts.trials, 10_000, 0.25, artifacts.HANG_S),
}
"""All kinds, in the order in which they run: those first that take least time."""

DISK_TRIALS = 3000
"""About how many trials the faults of the disk are; their number is known only once they have been counted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; return 1 if a trial has failed, else 0."""
    options = _options(arguments)
    chosen = options.only.split(",") if options.only else list(KINDS)
    if unknown := [name for name in chosen if name not in KINDS]:
        sys.exit(f"soak: no such kind: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    signal.signal(signal.SIGTERM, _raise_interrupt)
    util.get_temp_dir()  # multiprocessing removes its folder at exit; it must not lie in the one that is removed here
    data = Path(tempfile.mkdtemp(prefix="thera-soak-"))
    os.environ["XDG_CACHE_HOME"] = str(data / "cache")
    os.environ["TMPDIR"] = tempfile.tempdir = str(data)
    try:
        results = _soak(chosen, options, data)
    except KeyboardInterrupt:
        sys.exit("soak: stopped by a signal")
    finally:
        shutil.rmtree(data, ignore_errors=True)
    print(table(results))
    for name, result in results.items():
        for number, failure in sorted(result.failures.items()):
            print(f"FAILED {name} --seed {options.seed} --number {number}: {failure}")
    if options.json:
        options.json.write_text(json.dumps({name: vars(result) for name, result in results.items()}))
    return int(any(result.failures for result in results.values()))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description="Try many random faults, and print what was survived.")
    parser.add_argument("--minutes", type=float, default=60.0, help="Set how long everything may take.")
    parser.add_argument("--only", help=f"Name kinds, separated by commas: {', '.join(KINDS)}.")
    parser.add_argument("--seed", type=int, default=0, help="Set the seed of all trials.")
    parser.add_argument("--number", type=int, help="Repeat one trial.")
    parser.add_argument("--scale", type=float, default=1.0, help="Multiply the numbers of trials.")
    parser.add_argument("--json", type=Path, help="Write the results to a file, too.")
    return parser.parse_args(arguments)


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that the processes are ended and the folder is removed


def _soak(chosen: Sequence[str], options: argparse.Namespace, data: Path) -> dict[str, Result]:
    from . import tiny_run

    ends, cores = time.monotonic() + 60 * options.minutes, available_cores()[:2]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores[0]})  # what is prepared here is computed as in the processes of the trials
    tiny_run.prepare(data)
    results: dict[str, Result] = {}
    for index, name in enumerate(chosen):
        kind = KINDS[name]
        trial, most = kind.trials(data, options.seed)
        count = kind.count or most or 0
        wanted = max(1, round(count * options.scale))
        numbers = [i * count // wanted for i in range(wanted)] if most else list(range(wanted))
        numbers = [options.number] if options.number is not None else numbers
        shares = [_seconds(each) for each in chosen[index:]]
        deadline = time.monotonic() + (ends - time.monotonic()) * shares[0] / sum(shares)
        result = run_trials(name, trial, numbers, deadline, kind.hang_s, cores, _show)
        results[name] = result
        _show(result, "\n")
    return results


def _seconds(name: str) -> float:
    """Return the seconds of one core that all trials of a kind take; three, at least, to begin."""
    return 3 + (KINDS[name].count or DISK_TRIALS) * KINDS[name].seconds


def _show(result: Result, end: str = "") -> None:
    if end or sys.stderr.isatty():
        line = f"{result.kind}: {result.tried} of {result.requested} tried, {len(result.failures)} failed"
        print(f"\r{line}", end=end, file=sys.stderr, flush=True)


def table(results: dict[str, Result]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| faults | tried | of | survived | seconds | of them |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    for name, each in results.items():
        counts = ", ".join(f"{n:,} {what}" for what, n in sorted(each.counts.items(), key=lambda item: -item[1]) if n)
        numbers = f"{each.tried:,} | {each.requested:,} | {each.survived:,} | {each.seconds:.0f}"
        lines.append(f"| {KINDS[name].title} | {numbers} | {counts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
