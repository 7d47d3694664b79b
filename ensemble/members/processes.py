"""Work on all cores: one process a share of the cores, pinned there, each with a job of its own.

A network on small images leaves most of a second core idle; two networks, one a core, do not. So the folds of a member,
or the fold models of an ensemble, are computed side by side.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from ensemble.errors import ResourceError, TheraError
from ensemble.machine import available_cores, available_memory
from ensemble.progress import Bar

POLL_S = 0.5
"""How long a signal may wait while no process reports anything."""


PROCESS_PAYS = 100
"""Batches of a job from which a process of its own pays: its start costs some seconds."""


MEMORY_OF_A_JOB = 3 * 2**30
"""Bytes of the machine's memory that each network has to itself unless --jobs asks for more: two that were looked at,
on 80,000 images of 64 pixels, held 2.5 GB, mapped pixels counted."""


class Progress(Protocol):
    """What a job tells of its progress: a `Bar` is one."""

    def advance(self, n: int = 1) -> None: ...

    def skip(self, n: int) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class MappedPixels:
    """An array; a whole memory map is opened by another process itself, of anything else it gets the content."""

    array: np.ndarray

    def __reduce__(self) -> Any:
        if isinstance(self.array, np.memmap) and isinstance(self.array.base, mmap.mmap):  # of a part: another array
            return _open, (str(self.array.filename),)
        return MappedPixels, (np.asarray(self.array),)


def _open(path: str) -> MappedPixels:
    return MappedPixels(np.load(path, mmap_mode="r"))


def shares(jobs: int, at_once: int) -> list[list[int]]:
    """Return the cores of each job: a share for each of `at_once`, and for the last jobs, if fewer, larger shares.

    It depends on the number of jobs alone, not on what is finished already, so that a run that goes on computes each
    job as it would have.
    """
    every = available_cores()

    def split(n: int) -> list[list[int]]:
        return [every[i * len(every) // n : (i + 1) * len(every) // n] or every for i in range(n)]

    last = jobs % at_once
    full = split(at_once) * (jobs // at_once)
    return full + (split(last) if last else [])


def at_once(jobs: int, batches: int, device: torch.device, requested: int | None) -> int:
    """Return how many jobs to compute side by side: as requested, or on a CPU one a core where each is long enough.

    Parameters
    ----------
    jobs : int
    batches : int
        Of one job.
    requested : int, optional
        At most so many.
    """
    if requested is None:
        most = min(len(available_cores()), max(1, available_memory() // MEMORY_OF_A_JOB))
        requested = most if device.type == "cpu" and batches >= PROCESS_PAYS else 1
    return max(1, min(requested, jobs, len(available_cores())))


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of giving it back: each batch asks for the same again. Else nothing happens.

    A network frees and allocates hundreds of megabytes a batch; given back to the system, every page is zeroed anew.
    """
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        if library.mallopt(mmap_threshold, 2**30) or library.mallopt(mmap_threshold, 2**25):  # glibc before 2.35
            library.mallopt(trim_threshold, 2**31 - 1)


Job: TypeAlias = Callable[..., Any]
Results: TypeAlias = Iterator[tuple[int, Any]]


class Workers:
    """Processes, each pinned to its cores, that are started when they are first needed and ended with the block."""

    def __init__(self) -> None:
        self._idle: dict[tuple[int, ...], _Worker] = {}
        self._running: dict[int, _Worker] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; what they are at is lost."""
        for worker in (*self._running.values(), *self._idle.values()):
            worker.end()
        self._idle, self._running = {}, {}

    def run(self, function: Job, calls: Sequence[tuple[Any, ...]], of_call: Sequence[list[int]], bar: Bar) -> Results:
        """Call `function(*call, bar)` for every call and yield (index, result) as they come.

        Parameters
        ----------
        function : callable
            Of a module, so that another process finds it; what goes in and comes out can be pickled.
        of_call : sequence of lists of int
            The cores of each call; calls whose cores overlap run one after the other, in order. Where every call has
            all cores, nothing is pinned and they run in this process.
        bar : Bar
            Told of the progress of all calls together.

        Raises
        ------
        TheraError
            That a call raised, as it is.
        ResourceError
            A process was killed.
        Stopped
            A signal has come since.
        """
        if all(len(own) == len(available_cores()) for own in of_call):
            keep_freed_memory()
            for index, call in enumerate(calls):
                with _threads(len(available_cores())):
                    result = function(*call, bar)
                yield index, result
            return
        waiting = list(range(len(calls)))
        while waiting or self._running:
            busy = {core for worker in self._running.values() for core in worker.cores}
            begun: list[int] = []
            for index in waiting:
                if busy.isdisjoint(of_call[index]):
                    idle = self._idle.pop(tuple(of_call[index]), None)
                    self._running[index] = idle or _Worker(of_call[index])
                    begun.append(index)
                busy |= set(of_call[index])  # a later call does not overtake one that waits for the same core
            for index in begun:  # all have been started by now: a long message waits until its process has torch
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
def _threads(n: int) -> Iterator[None]:
    """Compute with as many threads as a process of its own would on these cores: a sum depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Worker:
    """A process that makes one call after the other, and this end of the line to it."""

    def __init__(self, own: list[int]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork after torch has computed may wait for ever
        self.connection, far = context.Pipe()
        self.cores, self.result = own, None
        self._process = context.Process(target=_work, args=(far, own))
        with _interrupts_ignored():  # inherited: the parent heeds them, and ends this process
            self._process.start()
        far.close()

    def begin(self, function: Job, call: tuple[Any, ...]) -> None:
        try:
            self.connection.send((function, call))
        except (BrokenPipeError, ConnectionResetError):
            raise self._lost() from None

    def receive(self, bar: Bar) -> bool:
        """Read one message, and return whether it was the call's last."""
        try:
            what, value = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._lost() from None
        if what == "done":
            self.result = value
        elif what == "failed":
            raise value
        else:
            getattr(bar, what)(value)
        return bool(what == "done")

    def _lost(self) -> ResourceError:
        self._process.join()
        code = self._process.exitcode or 0
        found = f"was killed (signal {-code})" if code < 0 else f"ended by itself (exit status {code})"
        return ResourceError("a computing process", found, "free memory or use --jobs 1; the same command goes on")

    def end(self) -> None:
        self._process.terminate()
        self._process.join()
        self.connection.close()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _RemoteBar:
    """The bar of another process."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def advance(self, n: int = 1) -> None:
        self._connection.send(("advance", n))

    def skip(self, n: int) -> None:
        self._connection.send(("skip", n))

    def note(self, text: str) -> None:
        self._connection.send(("note", text))


def _work(connection: Any, own: list[int]) -> None:
    """Make the calls that come down the line, until it is closed: by the parent's end, too."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own)
    torch.set_num_threads(len(own))
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
            except torch.OutOfMemoryError as error:
                found = str(error).splitlines()[0]
                answer = "failed", ResourceError("a computing process", found, "lower --batch-size, or use --jobs 1")
            except Exception as error:
                answer = "failed", RuntimeError(f"{error!r} in a computing process:\n{traceback.format_exc()}")
            connection.send(answer)
