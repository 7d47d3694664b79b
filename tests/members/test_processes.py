"""Jobs side by side in pinned processes: what goes in, what comes out, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest
import torch
from tiny import write_tiny

from ensemble import machine
from ensemble.config import MemberConfig
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.errors import DataError, ResourceError, Stopped
from ensemble.machine import available_cores
from ensemble.members import processes
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import default_workers
from ensemble.members.process_start import interrupts_blocked
from ensemble.members.processes import PROCESS_PAYS, MappedPixels, Workers, at_once, shares
from ensemble.members.sampling import batches_of
from ensemble.progress import progress, stoppable

CPU = torch.device("cpu")
HERE = sorted(os.sched_getaffinity(0))


ROWS = (np.arange(8).astype(str), np.arange(8))
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def ignores_ctrl_c(pid: int) -> bool:
    (blocked,) = re.findall(r"^SigBlk:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(blocked, 16) & 1 << (signal.SIGINT - 1))


class CountingBar:
    """A bar that keeps its sums, notes and lines."""

    def __init__(self) -> None:
        self.done, self.skipped, self.notes, self.said = 0, 0, set[str](), set[str]()

    def advance(self, n: int = 1) -> None:
        self.done += n

    def skip(self, n: int) -> None:
        self.skipped += n

    def note(self, text: str) -> None:
        self.notes.add(text)

    def say(self, line: str) -> None:
        self.said.add(line)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two cores, if need be one and the same: what a process is pinned to must be there."""
    found = [HERE[0], HERE[-1]]
    monkeypatch.setattr(processes, "available_cores", lambda: found)
    return found


# --- who computes where -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("jobs_", [1, 2, 3, 5, 6])
def test_shares_cover_all_cores_and_depend_on_the_counts_alone(
    monkeypatch: pytest.MonkeyPatch, n: int, jobs_: int
) -> None:
    every = [3 * i + 1 for i in range(n)]
    monkeypatch.setattr(processes, "available_cores", lambda: every)
    for requested in range(1, 9):
        side_by_side = at_once(jobs_, 10**6, CPU, requested)
        found = shares(jobs_, side_by_side)
        assert found == shares(jobs_, side_by_side) and len(found) == jobs_
        for start in range(0, jobs_, side_by_side):
            turn = found[start : start + side_by_side]
            assert sorted(core for own in turn for core in own) == every, "each once"
            assert max(map(len, turn)) - min(map(len, turn)) <= 1


def test_as_many_at_once_as_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "available_cores", lambda: [0, 1, 2, 3])
    assert at_once(5, PROCESS_PAYS, CPU, None) == 4
    assert at_once(3, PROCESS_PAYS, CPU, None) == 3
    assert at_once(5, PROCESS_PAYS - 1, CPU, None) == 1
    assert at_once(5, 10**6, torch.device("cuda"), None) == 1
    assert [at_once(5, 1, CPU, requested) for requested in (1, 2, 4, 9)] == [1, 2, 4, 4]


@pytest.mark.parametrize(
    ("membership", "limits"),
    [
        ("0::/job", {"job/memory.max": 4 * 2**30, "job/cpu.max": "200000 100000"}),
        ("2:cpu:/job\n1:memory:/job", {"memory/job/memory.limit_in_bytes": 4 * 2**30, "cpu/job/cpu.cfs_quota_us": -1}),
    ],
)
def test_the_limits_of_a_container_are_planned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, limits: dict[str, Any]
) -> None:
    """4 GB on a host of 64 cores and 512 GB: one network at once, and two data workers beside it."""
    for name, value in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    (tmp_path / "membership").write_text(membership)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    really = os.sysconf
    pages = 512 * 2**30 // really("SC_PAGE_SIZE")
    monkeypatch.setattr(os, "sysconf", lambda name: pages if name == "SC_PHYS_PAGES" else really(name))
    assert at_once(64, 1000, CPU, None) == 1
    assert default_workers(torch.device("cuda")) == (1 if "job/cpu.max" in limits else 2)


def test_copies_of_the_images_limit_how_many_processes_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "available_cores", lambda: list(range(16)))
    monkeypatch.setattr(processes, "available_memory", lambda: 16 * 2**30)
    copies = [0, 2**20, 2 * 2**30, 10 * 2**30]
    assert [at_once(16, PROCESS_PAYS, CPU, None, copied) for copied in copies] == [5, 5, 2, 1]
    assert at_once(16, PROCESS_PAYS, CPU, 7, 10 * 2**30) == 7, "as requested"
    np.save(tmp_path / "pixels.npy", np.zeros((4, 2, 2, 3), np.uint8))
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    assert [MappedPixels(array).copied_bytes for array in (mapped, mapped[1:], np.asarray(mapped))] == [0, 36, 48]


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_in_this_process_where_each_has_all_cores() -> None:
    bar, threads = CountingBar(), torch.get_num_threads()
    with Workers() as workers:
        found = list(workers.run(jobs.describe, [(4,), (5,), (6,)], [available_cores()] * 3, bar))  # type: ignore[arg-type]
    assert found == [(i, (4 + i, os.getpid(), HERE, len(HERE))) for i in range(3)]
    assert (bar.done, bar.skipped, bar.notes) == (15, 30, {"number 4", "number 5", "number 6"})
    assert bar.said == {"call 4", "call 5", "call 6"}
    assert torch.get_num_threads() == threads


def test_in_processes_of_their_own(two: list[int], tmp_path: Path) -> None:
    """Two processes for five calls and another round; then a call that has all cores, in a process of its own, too."""
    bar, cores = CountingBar(), [[two[0]], [two[1]], [two[0]], [two[1]], two]
    np.save(tmp_path / "p.npy", np.full((4, 2, 2, 3), 7, np.uint8))
    mapped = MappedPixels(np.load(tmp_path / "p.npy", mmap_mode="r"))
    with Workers() as workers:
        found = list(workers.run(jobs.describe, [(number,) for number in range(5)], cores, bar))  # type: ignore[arg-type]
        again = list(workers.run(jobs.total, [(mapped,)] * 2, cores[:2], bar))  # type: ignore[arg-type]
    assert sorted(index for index, _ in found) == list(range(5))
    where = dict(found)
    assert all(where[index][0] == index for index in range(5))
    assert [where[index][2:] for index in range(5)] == [(sorted(set(own)), len(own)) for own in cores]
    pids = [where[index][1] for index in range(5)]
    assert os.getpid() not in pids and pids[4] not in pids[:4] and found[-1][0] == 4
    if two[0] != two[1]:
        assert pids[0] == pids[2] != pids[1] == pids[3]
    assert (bar.done, bar.skipped, bar.notes) == (10, 50, {f"number {i}" for i in range(5)})
    assert sorted(again) == [(0, (7 * 48, True)), (1, (7 * 48, True))]


def test_a_free_process_takes_the_next_call(two: list[int], tmp_path: Path) -> None:
    """The first call ends after all others, which the other process computes; on one core it would wait for ever."""
    if two[0] == two[1]:
        pytest.skip("needs two cores")
    calls = [(str(tmp_path / str(i)), 0 if i else 4) for i in range(5)]
    with Workers() as workers:
        found = list(workers.run(jobs.wait_for, calls, [[two[0]], [two[1]]], CountingBar()))  # type: ignore[arg-type]
    assert [index for index, _ in found] == [1, 2, 3, 4, 0]
    assert len({pid for _, pid in found[:4]}) == 1 and found[4][1] != found[0][1]


def test_what_goes_wrong_there_arrives_here(two: list[int]) -> None:
    """One process for all but the killed one."""
    with Workers() as workers:

        def run(kind: str) -> None:
            list(workers.run(jobs.wrong, [(kind,)], [[two[0]]], CountingBar()))  # type: ignore[arg-type]

        def idle_again() -> None:  # a worker whose call failed is as good as before
            workers._idle[two[0],] = workers._running.pop(0)

        with pytest.raises(DataError) as refused:
            run("refused")
        assert (refused.value.where, refused.value.found, refused.value.remedy) == (
            "a\nb.jpg",
            "has zero bytes",
            "remove it",
        )
        assert refused.value.status == 3
        idle_again()
        with pytest.raises(OSError, match="No space left on device") as full:
            run("disk")
        assert (full.value.errno, full.value.filename) == (28, "/x")
        idle_again()
        with pytest.raises(MemoryError):
            run("memory")
        idle_again()
        with pytest.raises(ResourceError, match=r"^a computing process: out of memory; close other"):
            run("allocator")
        idle_again()
        with pytest.raises(RuntimeError, match="ZeroDivisionError") as fault:
            run("other")
        assert "in a computing process" in str(fault.value) and "jobs.py" in str(fault.value)
        idle_again()
        with pytest.raises(ResourceError) as killed:
            run("killed")
        assert str(killed.value) == (
            "a computing process: was killed (signal 9); free memory or use --jobs 1; the same command goes on"
        )


def test_a_signal_ends_the_processes(two: list[int]) -> None:
    started = time.monotonic()
    with stoppable(), pytest.raises(Stopped), progress(10, "test") as bar, Workers() as workers:
        for index, _ in workers.run(jobs.describe, [(0,), (1,)], [[two[0]], [two[1]]], bar):
            assert index in (0, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        list(workers.run(jobs.slow, [(), ()], [[two[0]], [two[1]]], bar))
        pytest.fail("it went on")
    assert time.monotonic() - started < 60


def test_ctrl_c_waits_while_processes_start_and_is_not_lost() -> None:
    reached = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs with SIGINT ignored
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_blocked():
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # os.kill may wake a thread of torch
            reached.append("the end of the block")
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached == ["the end of the block"]


@needs_proc
def test_a_process_does_not_see_ctrl_c(two: list[int]) -> None:
    worker = processes._Worker([two[0]])
    try:
        assert ignores_ctrl_c(worker._process.pid)
    finally:
        worker.end()
    assert not ignores_ctrl_c(os.getpid())


@needs_proc
def test_nor_does_a_data_worker() -> None:
    config = MemberConfig(arch="lenet", batch_size=2)
    fold_job = FoldJob(config, MappedPixels(np.zeros((8, 8, 8, 3), np.uint8)), np.ones(8, np.int8), *ROWS, 0, 0)
    batches = batches_of(fold_job, 0, 1, CPU)
    try:
        assert ignores_ctrl_c(batches._loader._workers[0].pid)  # type: ignore[attr-defined]
        assert ignores_ctrl_c(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]
    finally:
        batches.close()


# --- pixels that are not sent -----------------------------------------------------------------------------------------


def test_a_memory_map_goes_by_its_path_and_an_array_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.arange(16 * 48, dtype=np.uint8).reshape(16, 4, 4, 3).repeat(50, axis=0)
    np.save(tmp_path / "pixels.npy", pixels)
    monkeypatch.chdir(tmp_path)
    mapped = MappedPixels(np.load("pixels.npy", mmap_mode="r"))
    sent = pickle.dumps(mapped)
    monkeypatch.chdir("/")
    there = pickle.loads(sent)
    assert len(sent) < 1000 and isinstance(there.array, np.memmap) and not there.array.flags.writeable
    assert np.array_equal(there.array, pixels)
    sent = pickle.dumps(MappedPixels(pixels))
    assert len(sent) > pixels.nbytes and np.array_equal(pickle.loads(sent).array, pixels)


def test_the_pixels_of_a_data_set_go_by_their_path(tmp_path: Path) -> None:
    write_tiny(tmp_path, 8)
    dataset = load_dataset(open_source(tmp_path / "img", tmp_path / "labels.txt"), tmp_path / "store")
    sent = pickle.dumps(MappedPixels(dataset.pixels))
    assert len(sent) < 1000 and np.array_equal(pickle.loads(sent).array, dataset.pixels)


@pytest.mark.parametrize("part", [lambda x: x[3:], lambda x: x[::2], lambda x: x[[1, 0]], lambda x: 255 - x])
def test_a_part_of_a_memory_map_arrives_as_that_part(tmp_path: Path, part: Any) -> None:
    np.save(tmp_path / "pixels.npy", np.arange(6 * 48, dtype=np.uint8).reshape(6, 4, 4, 3))
    own = part(np.load(tmp_path / "pixels.npy", mmap_mode="r"))
    assert np.array_equal(pickle.loads(pickle.dumps(MappedPixels(own))).array, own)
