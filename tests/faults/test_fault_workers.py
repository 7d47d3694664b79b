"""Data workers that are killed or have no room in shared memory: one retry, then an error, and the same results."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import faulty_jobs
import numpy as np
import pytest
import torch
from tiny import write_tiny

from ensemble.config import VIEWS, MemberConfig
from ensemble.errors import ResourceError, Stopped
from ensemble.members import data_workers, process_start
from ensemble.members.fold_job import FoldJob
from ensemble.members.parallel import Task, train_together
from ensemble.members.plans import Plan
from ensemble.members.processes import MappedPixels
from ensemble.members.sampling import batches_of
from ensemble.members.training import FoldResult, train_and_predict
from ensemble.progress import progress, stoppable
from ensemble.runs.training_state import StateFolder

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with few cores

CPU, N = torch.device("cpu"), 96
LABELS = (np.arange(N) % 5 != 0).astype(np.int8)
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
UPDATES = 8
"""Updates of an epoch: more than a worker augments in advance."""


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def job() -> FoldJob:
    config = MemberConfig.model_validate({"arch": "lenet", "epochs": 2, "batch_size": 8, "drop_rate": 0.5})
    rows = np.flatnonzero(np.arange(N) % 3 != 0)
    return FoldJob(config, MappedPixels(PIXELS), LABELS, np.arange(N).astype(str), rows, fold=0, seed=5)


class Bar(faulty_jobs.Lines):
    """A bar that calls a function after some updates, each time with the processes of the data workers."""

    def __init__(self, call: Callable[[list[int]], object] | None = None, *after: int) -> None:
        super().__init__()
        self._call, self._after = call, after

    def advance(self, n: int = 1) -> None:
        super().advance(n)
        if n and self._call is not None and self.done // 8 in self._after:
            self._call([pid for child in multiprocessing.active_children() if (pid := child.pid)])


def train(folder: Path, workers: int, bar: Bar | None = None, save_every: float = math.inf) -> FoldResult:
    held_out = np.flatnonzero(np.arange(N) % 3 == 0)
    given = (job(), StateFolder(folder, save_every), Plan("fp32"), CPU, workers, held_out, VIEWS, None)
    return train_and_predict(*given, bar or Bar())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> FoldResult:
    return train(tmp_path_factory.mktemp("undisturbed"), 0)


def assert_same(one: FoldResult, other: FoldResult) -> None:
    assert np.array_equal(one.logits, other.logits)
    assert all(np.array_equal(one.weights[name], other.weights[name]) for name in other.weights)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_logits(tmp_path: Path, undisturbed: FoldResult, workers: int) -> None:
    assert_same(train(tmp_path, workers), undisturbed)


def test_workers_go_on_within_an_epoch(tmp_path: Path, undisturbed: FoldResult) -> None:
    def stop(_: list[int]) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(tmp_path, 2, Bar(stop, UPDATES + 3), save_every=0)
    bar = Bar()
    assert_same(train(tmp_path, 2, bar), undisturbed)
    assert bar.said == ["member lenet fold 0 goes on at epoch 2 of 2, update 4 of 8"]


NO_ROOM = (
    "there is no room in shared memory (/dev/shm) for data workers; the training goes on without data workers; "
    "use --workers 0, or enlarge it (in Docker by --shm-size=1g)"
)

FAULTS: dict[str, tuple[int, Callable[[list[int]], object], str]] = {
    "one worker is killed": (
        *(1, lambda pids: os.kill(pids[0], signal.SIGKILL)),
        "a data worker was killed (signal 9); the training goes on without data workers; free memory, ",
    ),
    "one of two workers is killed": (
        *(2, lambda pids: os.kill(pids[1], signal.SIGKILL)),
        "a data worker was killed (signal 9); the training goes on with 1 of 2; free memory, or use --workers 0",
    ),
    "shared memory ends while a worker writes": (
        *(2, lambda pids: os.kill(pids[0], signal.SIGBUS)),
        NO_ROOM,
    ),
    "the fork server is killed, and with it all workers": (
        *(2, lambda _: os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)),  # type: ignore[attr-defined]
        "a data worker ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_that_dies_costs_a_warning_and_no_result(tmp_path: Path, undisturbed: FoldResult, fault: str) -> None:
    workers, call, warning = FAULTS[fault]
    bar = Bar(call, 2)
    assert_same(train(tmp_path, workers, bar), undisturbed)
    (line,) = bar.said
    assert line.startswith(f"warning: member lenet, fold 0: {warning}")
    assert bar.done == 2 * 8 * UPDATES + 2 * 32


def test_a_second_death_is_an_error(tmp_path: Path, undisturbed: FoldResult) -> None:
    """What is saved stays: the same command goes on."""
    bar = Bar(lambda pids: os.kill(pids[0], signal.SIGKILL), 2, UPDATES + 2)
    with pytest.raises(ResourceError) as caught:
        train(tmp_path, 2, bar)
    assert len(bar.said) == 1 and caught.value.status == 6
    assert str(caught.value) == (
        "member lenet, fold 0: a data worker was killed (signal 9), also with fewer of them; "
        "free memory, or use --workers 0; the same command goes on"
    )
    assert multiprocessing.active_children() == []
    assert_same(train(tmp_path, 0), undisturbed)


def test_after_the_error_nothing_is_waited_for() -> None:
    """As other folds do that share the batches."""
    batches = batches_of(job(), 0, 2, CPU)
    with pytest.raises(ResourceError, match="also with fewer of them"):
        while True:
            next(batches)
            for child in multiprocessing.active_children():
                child.kill()
    with pytest.raises(ResourceError, match="also with fewer of them"):
        next(batches)


def test_a_signal_stops_all_folds_of_a_process(tmp_path: Path) -> None:
    """It is not an error of one fold, after which the others go on."""
    seen: list[int] = []

    def stop(_: list[int]) -> None:
        seen.append(1)
        raise Stopped("thera", "stopped by SIGTERM")

    held_out = np.flatnonzero(np.arange(N) % 3 == 0)
    tasks = [Task(job(), StateFolder(tmp_path / name), Plan("fp32"), held_out, VIEWS, None) for name in "abc"]
    with pytest.raises(Stopped):
        train_together(tasks, CPU, 0, 1.0, Bar(stop, 1, 2, 3))
    assert len(seen) == 1


def test_no_room_for_semaphores(
    tmp_path: Path, undisturbed: FoldResult, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(data_workers, "_check_semaphores", full)
    bar = Bar()
    assert_same(train(tmp_path, 2, bar), undisturbed)
    (line,) = bar.said
    assert line == f"warning: member lenet, fold 0: {NO_ROOM}"
    assert capfd.readouterr().err == ""


def test_an_error_of_the_images_themselves_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without workers nothing is tried again."""

    def broken(*_: Any) -> None:
        raise RuntimeError("of the images")

    monkeypatch.setattr(data_workers._AugmentedRows, "__getitems__", broken)
    with pytest.raises(RuntimeError, match="of the images"):
        next(batches_of(job(), 0, 0, CPU))


def test_a_signal_is_handled_while_workers_hang() -> None:
    hanging = replace(job(), mapped=faulty_jobs.HangingPixels(PIXELS))
    with stoppable(), progress(1, "test") as bar:
        batches = batches_of(hanging, 0, 2, CPU, 0, bar)
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        started = time.monotonic()
        with pytest.raises(Stopped):
            next(batches)
        batches.close()
        assert time.monotonic() - started < 4  # the workers would end by themselves after 60 s, and torch waits 5 s


def test_the_semaphores_of_ended_processes_are_removed_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(resource_tracker, "ensure_running", lambda: seen.extend(sys.warnoptions))
    before = list(sys.warnoptions)
    with process_start.interrupts_blocked():
        assert sys.warnoptions == before and process_start.SEMAPHORES_REMOVED in seen
    warns = "import warnings; warnings.warn('resource_tracker: There appear to be 9 leaked semaphore objects')"
    for options, shown in (([], True), (["-W", process_start.SEMAPHORES_REMOVED], False)):
        done = subprocess.run([sys.executable, *options, "-c", warns], capture_output=True, check=True)
        assert bool(done.stderr) == shown


# --- as commands ------------------------------------------------------------------------------------------------------

ORPHANS = """
import multiprocessing, sys, time
sys.path.insert(0, {folder!r})
from test_fault_workers import CPU, batches_of, job
if __name__ == "__main__":
    batches = batches_of(job(), 0, 2, CPU)
    next(batches), next(batches)  # one of each worker
    pids = [child.pid for child in multiprocessing.active_children()]
    print(*pids, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_no_worker_outlives_a_killed_training(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ORPHANS.format(folder=str(Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while (left := [pid for pid in pids if _is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def _is_running(pid: int) -> bool:
    try:
        return not re.search(r"^State:\s*Z", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return False


def _may_mount() -> bool:
    command = "mount -t tmpfs -o size=4k tmpfs /dev/shm"
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not _may_mount(), reason="needs to mount a small /dev/shm")
def test_a_full_shared_memory_costs_a_line(tmp_path: Path) -> None:
    """Semaphores fit into it, and batches do not."""
    write_tiny(tmp_path, 48, size=64)
    arguments = f"train-member --arch lenet --images {tmp_path}/img --labels {tmp_path}/labels.txt --folds 2 --epochs 1"
    mounted = f"mount -t tmpfs -o size=128k tmpfs /dev/shm; exec {sys.executable} -m thera {arguments} --batch-size 24"
    command = f"{mounted} --workers 2 --device cpu --precision fp32 --run {tmp_path}/run"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(data_workers.__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    warnings = [line for line in done.stderr.splitlines() if "shared memory" in line]
    assert warnings == [f"warning: member lenet, fold {fold}: {NO_ROOM}" for fold in range(2)]
