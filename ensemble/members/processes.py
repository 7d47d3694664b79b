"""A pool of processes that work on all cores, each process pinned to its share of them.

One network on small images leaves most of a second core unused; two networks, one on each core, use both. Therefore the
folds of a member, or the fold models of an ensemble, are computed in parallel.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker, util
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias

import numpy as np
import timm
import torch

from ensemble.data.mapped import open_pixels
from ensemble.errors import ResourceError, TheraError, out_of_memory, printable
from ensemble.machine import available_cores, available_memory
from ensemble.progress import Bar

POLL_S = 0.5
"""Seconds between two checks for a signal while no process sends a message."""

SEMAPHORES_REMOVED = "ignore:resource_tracker:UserWarning"
"""The warning, as for Python's option -W, that semaphores were left: those of data workers, when a signal stops all."""

PROCESS_PAYS = 100
"""The number of batches in a job from which a separate process saves time. Starting a process takes some seconds."""

MEMORY_OF_A_JOB = 3 * 2**30
"""The memory budget of each network in bytes, used if --jobs is not given. A network on 80,000 images of 64 pixels
was measured at up to 2.5 GB, including the memory-mapped images."""


MEMORY_OF_A_WORKER = 2**29
"""The memory budget of a data worker in bytes. It was measured at 161 MiB for images of 64 pixels and at 449 MiB for
images of 224, including its share of what all workers and the memory-mapped images have in common."""
LONGEST_FOLDER = 70
"""The longest path, in bytes, of a temporary folder in which sockets can be made. The path of a socket has at most 103
bytes on macOS and 107 on Linux, of which multiprocessing's own names take 32."""

SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  multiprocessing makes a private folder in it
"""Temporary folders for sockets where `TMPDIR` is too long."""


class Progress(Protocol):
    """The interface by which a job reports its progress; `Bar` has it."""

    def advance(self, n: int = 1) -> None: ...

    def skip(self, n: int) -> None: ...

    def note(self, text: str) -> None: ...

    def say(self, line: str) -> None: ...


@dataclass(frozen=True)
class MappedPixels:
    """An array that is cheap to send to another process if it is a memory map.

    A whole memory map is sent as its path, and the other process opens it. Any other array is sent with its content.
    """

    array: np.ndarray

    @property
    def is_mapped(self) -> bool:
        """Whether it is a whole memory map."""
        # Only a whole memory map has an `mmap` as its base; the base of a slice is the whole memory map.
        return isinstance(self.array, np.memmap) and isinstance(self.array.base, mmap.mmap)

    @property
    def copied_bytes(self) -> int:
        """The memory of the copy that each process has; none of a memory map, whose pages the system can drop."""
        return 0 if self.is_mapped else self.array.nbytes

    def __reduce__(self) -> Any:
        if self.is_mapped:
            return _open, (str(self.array.filename),)  # type: ignore[attr-defined]
        return MappedPixels, (np.asarray(self.array),)


def _open(path: str) -> MappedPixels:
    return MappedPixels(open_pixels(Path(path)))


def shares(jobs: int, at_once: int) -> list[list[int]]:
    """Return the cores of each job: equal shares for `at_once` jobs; the last jobs, if fewer, have larger shares.

    The shares depend only on the number of jobs, not on which of them are finished. A resumed run therefore computes
    each job with the same number of threads, and gets the same bytes.
    """
    every = available_cores()

    def split(n: int) -> list[list[int]]:
        return [every[i * len(every) // n : (i + 1) * len(every) // n] or every for i in range(n)]

    last = jobs % at_once
    full = split(at_once) * (jobs // at_once)
    return full + (split(last) if last else [])


def at_once(jobs: int, batches: int, device: torch.device, requested: int | None, copied_bytes: int = 0) -> int:
    """Return how many jobs to compute in parallel: as requested, or on a CPU one for each core if the jobs are long.

    Parameters
    ----------
    jobs : int
    batches : int
        Batches of one job.
    device : torch.device
    requested : int, optional
        The number of `--jobs`; without it, memory limits the number, too.
    copied_bytes : int
        The memory of the images that each process copies from this one.
    """
    if requested is None:
        fits = (available_memory() - copied_bytes) // (MEMORY_OF_A_JOB + copied_bytes)
        most = min(len(available_cores()), max(1, fits))
        requested = most if device.type == "cpu" and batches >= PROCESS_PAYS else 1
    return max(1, min(requested, jobs, len(available_cores())))


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next batch instead of returning it to the system.

    A network frees and allocates hundreds of megabytes in each batch. Memory that has been returned is zeroed page by
    page when it is allocated again: keeping it makes mobilenetv2 1.2 times as fast. Without glibc nothing is done.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        # glibc before 2.35 accepts a threshold of at most 32 MiB
        if library.mallopt(mmap_threshold, 2**30) or library.mallopt(mmap_threshold, 2**25):
            library.mallopt(trim_threshold, 2**31 - 1)


Job: TypeAlias = Callable[..., Any]
Results: TypeAlias = Iterator[tuple[int, Any]]


class Workers:
    """Processes, each pinned to its cores, that are started when first needed and ended with the `with` block."""

    def __init__(self) -> None:
        self._idle: dict[tuple[int, ...], _Worker] = {}
        self._running: dict[int, _Worker] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; unfinished calls are lost."""
        for worker in (*self._running.values(), *self._idle.values()):
            worker.end()
        self._idle, self._running = {}, {}

    def run(self, function: Job, calls: Sequence[tuple[Any, ...]], cores: Sequence[list[int]], bar: Bar) -> Results:
        """Run `function(*call, bar)` for every call, and yield (index, result) in the order in which they finish.

        Parameters
        ----------
        function : callable
            A function of a module, which other processes can import. Arguments and results can be pickled.
        calls : sequence of tuples
            The arguments of each call.
        cores : sequence of lists of int
            The cores of each call. Calls whose cores overlap run one after the other, in order. Where every call has
            all cores, nothing is pinned and they run in this process.
        bar : Bar
            Advanced by the progress of all calls together.

        Raises
        ------
        TheraError
            The error that a call raised.
        ResourceError
            A process was killed.
        Stopped
            A signal has arrived.
        """
        if all(len(of_call) == len(available_cores()) for of_call in cores):
            keep_freed_memory()
            for index, call in enumerate(calls):
                with torch_threads(len(available_cores())):
                    result = function(*call, bar)
                yield index, result
            return
        waiting = list(range(len(calls)))
        while waiting or self._running:
            busy = {core for worker in self._running.values() for core in worker.cores}
            begun: list[int] = []
            for index in waiting:
                if busy.isdisjoint(cores[index]):
                    idle = self._idle.pop(tuple(cores[index]), None)
                    self._running[index] = idle or _Worker(cores[index])
                    begun.append(index)
                busy |= set(cores[index])  # a later call does not overtake one that waits for the same core
            # Only when all processes are starting: sending blocks until the receiver has imported torch.
            for index in begun:
                self._running[index].begin(function, calls[index])
                waiting.remove(index)
            ready = wait([worker.connection for worker in self._running.values()], POLL_S)
            bar.advance(0)
            for index, worker in list(self._running.items()):
                if worker.connection in ready and worker.receive(bar):
                    del self._running[index]
                    self._idle[tuple(worker.cores)] = worker
                    yield index, worker.result


@contextlib.contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Set torch's threads for a while. Sums round by their number, so it must be that of a pinned process."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Worker:
    """A process that runs one call after the other, and the parent's end of the pipe to it."""

    def __init__(self, cores: list[int]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork deadlocks once torch's threads have been started
        self.connection, child_end = context.Pipe()
        self.cores, self.result = cores, None
        self._process = context.Process(target=_work, args=(child_end, cores))
        with starting_processes():
            self._process.start()
        child_end.close()

    def begin(self, function: Job, call: tuple[Any, ...]) -> None:
        try:
            self.connection.send((function, call))
        except (BrokenPipeError, ConnectionResetError):
            raise self._lost() from None

    def receive(self, bar: Bar) -> bool:
        """Handle one message, and return whether it was the last one of the call."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._lost() from None
        if kind == "done":
            self.result = value
        elif kind == "failed":
            raise value
        else:
            getattr(bar, kind)(value)  # a method of `_RemoteBar`
        return bool(kind == "done")

    def _lost(self) -> ResourceError:
        self._process.join()
        code = self._process.exitcode or 0
        problem = f"was killed (signal {-code})" if code < 0 else f"ended by itself (exit status {code})"
        return ResourceError("a computing process", problem, "free memory or use --jobs 1; the same command goes on")

    def end(self) -> None:
        self._process.terminate()
        self._process.join()
        self.connection.close()


@contextlib.contextmanager
def starting_processes() -> Iterator[None]:
    """Start processes without Ctrl-C, without the user's script, and with sockets whose paths are short enough.

    Raises
    ------
    ResourceError
        The path of the temporary folder is too long, and there is no shorter one.
    """
    _make_socket_folder()
    with interrupts_blocked(), _script_hidden():
        yield


@contextlib.contextmanager
def _script_hidden() -> Iterator[None]:
    """Hide the user's script, so that processes that are started do not import it.

    A script without `if __name__ == "__main__":` would train again in each of them. It is not hidden if the user's code
    has registered networks with timm: then they are known only where it is imported.
    """
    script = sys.modules["__main__"]
    own = {path.stem for path in (Path(timm.__file__).parent / "models").glob("*.py")} | {"small_cnns"}
    if own.issuperset(timm.list_modules()):
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _make_socket_folder() -> None:
    """Make the folder for multiprocessing's sockets, in a short one if the path of the temporary folder is too long.

    The processes that this process starts use the same folder, and this process removes it. They would each leave one
    behind, because they are terminated.
    """
    usual, before, folder = tempfile.gettempdir(), tempfile.tempdir, None
    if len(os.fsencode(usual)) > LONGEST_FOLDER:
        folder = next((each for each in SHORT_FOLDERS if os.access(each, os.W_OK)), None)
        if folder is None:
            problem = f"{printable(usual)} is too long for the path of a socket"
            raise ResourceError("TMPDIR", problem, f"set it to a folder with a path of at most {LONGEST_FOLDER} bytes")
    try:
        tempfile.tempdir = folder or usual
        util.get_temp_dir()
    finally:
        tempfile.tempdir = before


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Start processes without Ctrl-C, which a terminal sends to all of them: the parent handles it and ends them.

    A process inherits the blocked signals, from its first instruction on. In the parent a Ctrl-C waits for the end of
    the block. Windows has no such mask: there, a Ctrl-C reaches the processes too.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    _start_resource_tracker()  # it unblocks the signals when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_resource_tracker() -> None:
    """Start the process that removes the semaphores of ended processes, and let it do so without a warning."""
    sys.warnoptions.append(SEMAPHORES_REMOVED)
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(SEMAPHORES_REMOVED)


class _RemoteBar:
    """Sends progress to the bar of the parent process."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def advance(self, n: int = 1) -> None:
        self._connection.send(("advance", n))

    def skip(self, n: int) -> None:
        self._connection.send(("skip", n))

    def note(self, text: str) -> None:
        self._connection.send(("note", text))

    def say(self, line: str) -> None:
        self._connection.send(("say", line))


def _work(connection: Any, cores: list[int]) -> None:
    """Run the calls received on the pipe until it closes; it also closes when the parent process ends."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    keep_freed_memory()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, call = connection.recv()
            try:
                answer = "done", function(*call, _RemoteBar(connection))
            except (BrokenPipeError, ConnectionResetError):
                return
            except (TheraError, OSError, MemoryError) as error:
                answer = "failed", error
            except Exception as error:
                fault = RuntimeError(f"{error!r} in a computing process:\n{traceback.format_exc()}")
                answer = "failed", out_of_memory(error, "a computing process") or fault
            connection.send(answer)
