"""Measure the memory and the processor time of one decision, or of `thera fit-stacker`, on many OOF rows.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/large_decision.py --rows 10000000
    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/large_decision.py --rows 10000000 --files WORK

The script draws logits of three members in five folds, and fits one decision on them as `thera fit-stacker` does. It
prints the peak of the resident memory over what the process had with the logits and the fold table in memory, in MiB
and in bytes a row, the processor time, and the processor time of the parts. The peak is the kernel's own.

With `--files`, it first writes the fold table and the OOF files of such a run, with two views, into `WORK/run-ROWS`,
unless they are there. It then fits the stacker on them, and prints the peak of the memory over what the process had
before it read them, and the processor time: of reading, and of each decision.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.commands import fit_stacker
from ensemble.config import VIEWS
from ensemble.data.folds import FoldTable
from ensemble.decision import assessment, decision
from ensemble.decision.cross_fitting import OofLogits
from ensemble.runs.files import Table, decimals, table_bytes, write_json
from ensemble.runs.member import FoldFacts, MemberIdentity
from ensemble.runs.run import Run, RunFacts

FOLDS, STRENGTHS = 5, (1.0, 0.9, 0.6)
"""The folds, and for each member the distance of the mean logit of each label from 0, in standard deviations."""

BLOCK = 100_000
"""The rows that are drawn and written at a time; a multiple of the folds."""


def drawn(n: int, groups: int = 0) -> OofLogits:
    """Return logits of which 5 % have a flipped label, rounded as OOF files hold them.

    The logits of the rows of a group have a part in common, with the variance that a member adds to a row.
    """
    rng = np.random.default_rng(0)
    truth = (rng.random(n) < 0.88).astype(np.int8)
    labels = np.where(rng.random(n) < 0.05, 1 - truth, truth).astype(np.int8)
    logits, shared = np.empty((n, len(STRENGTHS))), rng.normal(size=n)
    group_of = np.arange(n) % groups if groups else None
    if group_of is not None:
        shared += 2 * rng.normal(size=groups)[group_of]
    for j, strength in enumerate(STRENGTHS):
        logits[:, j] = ((2.0 * truth - 1) * strength + 0.5 * shared + rng.normal(size=n)).round(5)
    fold_of = np.arange(n) % FOLDS if group_of is None else group_of % FOLDS
    table = FoldTable(np.arange(n), labels, fold_of.astype(np.int8), group_of)
    return OofLogits(table, tuple("abc"), logits)


class HashedFile:
    """A table that is written in parts, and its SHA-256."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._hash = path.open("wb"), hashlib.sha256()

    def add(self, table: Table) -> None:
        data = table_bytes(table)
        part = data[data.index(b"\n") + 1 :] if self._file.tell() else data  # the header stands once
        self._hash.update(part)
        self._file.write(part)

    def close(self) -> str:
        self._file.close()
        return self._hash.hexdigest()


def write_run(folder: Path, n: int) -> None:
    """Write the tables that training leaves in a run; they are the same for the same number of rows."""
    run = Run(folder)
    run.begin(RunFacts(0, FOLDS, n, (64, 64), None, "f", "images", "labels"))
    members = [run.member(name) for name in "abc"[: len(STRENGTHS)]]
    for member in members:
        member.begin({"arch": member.name}, MemberIdentity("f", 0, "fp32"))
    folds = HashedFile(folder / "folds.csv")
    oof = {
        (member.name, fold): HashedFile(member.fold(fold) / "oof.csv") for member in members for fold in range(FOLDS)
    }
    for start in range(0, n, BLOCK):
        rows = np.arange(start, min(start + BLOCK, n))
        rng = np.random.default_rng((0, start))
        truth = (rng.random(rows.size) < 0.88).astype(np.int8)
        labels = np.where(rng.random(rows.size) < 0.05, 1 - truth, truth)
        ids, shared = np.array([f"{row:08d}" for row in rows.tolist()]), rng.normal(size=rows.size)
        folds.add({"id": ids, "label": labels, "fold": rows % FOLDS})
        for member, strength in zip(members, STRENGTHS, strict=True):
            logits = (2.0 * truth - 1) * strength + 0.5 * shared + rng.normal(size=rows.size)
            of_views = {f"logit_{view}": logits + 0.2 * rng.normal(size=rows.size) for view in VIEWS}
            for fold in range(FOLDS):
                inside = rows % FOLDS == fold
                columns = {name: decimals(column[inside].tolist()) for name, column in of_views.items()}
                oof[member.name, fold].add({"id": ids[inside], **columns})
    for member in members:
        member.update(folds={str(fold): FoldFacts("", oof[member.name, fold].close()) for fold in range(FOLDS)})
    write_json(folder / "run.json", replace(run.read(), folds_sha256=folds.close()))


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


class Meter:
    """The peak of the resident memory over what it was at first, and processor and wall time since the last line."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._first = self._begin()

    def _begin(self) -> float:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._spent, self._wall = time.process_time(), time.perf_counter()
        return resident("VmRSS")

    def line(self, what: str) -> None:
        """Print a line, and begin anew."""
        spent, wall = time.process_time() - self._spent, time.perf_counter() - self._wall
        peak = resident("VmHWM") - self._first
        print(
            f"{what}: {peak:.0f} MiB over {self._first:.0f} MiB, {peak * 2**20 / self._n:.0f} bytes a row; "
            f"{spent:.1f} s of processor time, {wall:.1f} s of wall time",
            flush=True,
        )
        self._begin()


def measure_command(work: Path, n: int) -> None:
    """Write a run unless it is there, and measure `fit_stacker` on it."""
    small, run = work / "run-2000", work / f"run-{n}"
    for folder, rows in ((small, 2000), (run, n)):
        if not (folder / "members" / "a" / "member.json").exists() or not Run(folder).read().folds_sha256:
            started = time.process_time()
            write_run(folder, rows)
            size = sum(path.stat().st_size for path in folder.rglob("*.csv"))
            print(
                f"{folder}: {size / 2**20:.0f} MiB written in {time.process_time() - started:.1f} s of processor time"
            )
    fit_stacker.fit_stacker(small)  # imports and caches are no part of the measurement
    fit: Callable[..., Any] = fit_stacker.fit_decision
    kinds = iter(fit_stacker.VIEW_SETS)

    @functools.wraps(fit)
    def measured(*given: Any, **options: Any) -> Any:
        kind = next(kinds)
        meter.line(f"before the decision {kind}")
        fitted = fit(*given, **options)
        meter.line(f"the decision {kind}")
        return fitted

    fit_stacker.fit_decision = measured
    meter = Meter(n)
    fit_stacker.fit_stacker(run)
    meter.line("after the decisions")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=300_000)
    options.add_argument("--files", type=Path, metavar="WORK")
    options.add_argument("--replicates", type=int, default=assessment.REPLICATES, help="of the bootstrap")
    options.add_argument("--groups", type=int, default=0, help="that the rows of a decision belong to; 0 for none")
    given = options.parse_args()
    n, assessment.REPLICATES = given.rows, given.replicates
    if given.files is not None:
        measure_command(given.files, n)
        return
    decision.fit_decision(drawn(2000), ("image",))  # imports and caches are no part of the measurement
    oof, seconds = drawn(n, given.groups), dict[str, float]()
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
