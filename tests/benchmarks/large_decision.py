"""Measure the memory and the processor time of one decision on many OOF rows.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/large_decision.py --rows 10000000

The script draws logits of three members in five folds, and fits one decision on them as `thera fit-stacker` does. It
prints the peak of the resident memory over what the process had with the logits and the fold table in memory, in MiB
and in bytes a row, the processor time, and the processor time of the parts. The peak is the kernel's own.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.data.folds import FoldTable
from ensemble.decision import assessment, decision
from ensemble.decision.cross_fitting import OofLogits

FOLDS, STRENGTHS = 5, (1.0, 0.9, 0.6)
"""The folds, and for each member the distance of the mean logit of each label from 0, in standard deviations."""


def drawn(n: int) -> OofLogits:
    """Return logits of which 5 % have a flipped label, rounded as OOF files hold them."""
    rng = np.random.default_rng(0)
    truth = (rng.random(n) < 0.88).astype(np.int8)
    labels = np.where(rng.random(n) < 0.05, 1 - truth, truth).astype(np.int8)
    logits, shared = np.empty((n, len(STRENGTHS))), rng.normal(size=n)
    for j, strength in enumerate(STRENGTHS):
        logits[:, j] = ((2.0 * truth - 1) * strength + 0.5 * shared + rng.normal(size=n)).round(5)
    table = FoldTable(np.arange(n), labels, (np.arange(n) % FOLDS).astype(np.int8))
    return OofLogits(table, tuple("abc"), logits)


def resident(key: str) -> float:
    """Return a line of `/proc/self/status` in MiB, such as VmHWM, the peak of the resident memory."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) / 1024


def timed(module: Any, name: str, seconds: dict[str, float]) -> None:
    """Replace a function by one that adds its processor time to `seconds`."""
    work: Callable[..., Any] = getattr(module, name)

    @functools.wraps(work)
    def measured(*given: Any, **options: Any) -> Any:
        started = time.process_time()
        result = work(*given, **options)
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - started
        return result

    setattr(module, name, measured)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=300_000)
    n = options.parse_args().rows
    decision.fit_decision(drawn(2000), ("image",))  # imports and caches are no part of the measurement
    oof, seconds = drawn(n), dict[str, float]()
    for module, name in (
        (decision, "find_fold_offsets"),
        (decision.CandidateSet, "of"),
        (assessment, "refit_errors"),
        (decision, "assess"),
        (decision, "_performance_curve"),
        (decision, "_bound_noise"),
    ):
        timed(module, name, seconds)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started, wall = resident("VmRSS"), time.process_time(), time.perf_counter()
    decision.fit_decision(oof, ("image",))
    spent, wall = time.process_time() - started, time.perf_counter() - wall
    peak = resident("VmHWM") - before
    print(f"{n} rows: {peak:.0f} MiB over {before:.0f} MiB, {peak * 2**20 / n:.0f} bytes a row")
    print(f"{spent:.0f} s of processor time, {wall:.0f} s of wall time")
    for name, took in seconds.items():
        print(f"  {name.strip('_')}: {took:.1f} s")


if __name__ == "__main__":
    main()
