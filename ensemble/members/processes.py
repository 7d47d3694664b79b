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
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from ensemble.data.mapped import open_pixels
from ensemble.errors import ResourceError, TheraError, out_of_memory
from ensemble.machine import available_cores, available_memory
from ensemble.members.devices import use
from ensemble.members.process_start import starting_processes
from ensemble.progress import Bar

POLL_S = 0.5
"""Seconds between two checks for a signal while no process sends a message."""

PROCESS_PAYS = 100
"""The number of batches in a job from which a separate process saves time. Starting a process takes some seconds."""

MEMORY_OF_A_JOB = 3 * 2**30
"""The memory budget of each network in bytes, used if --jobs is not given. A network on 80,000 images of 64 pixels
was measured at up to 2.5 GB, including the memory-mapped images."""

MEMORY_OF_A_WORKER = 2**29
"""The memory budget of a data worker in bytes. It was measured at 161 MiB for images of 64 pixels and at 449 MiB for
images of 224, including its share of what all workers and the memory-mapped images have in common."""


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
    return MappedPixels(open_pixels(path))


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


def at_once(
    jobs: int, batches: int, device: torch.device, requested: int | None, copied_bytes: int = 0, gpus: int = 1
) -> int:
    """Return how many jobs to compute in parallel: as requested, or one for each core or GPU if the jobs are long.

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
    gpus : int
        The number of GPUs; each has at least one process, unless fewer are requested.
    """
    if requested is None:
        fits = (available_memory() - copied_bytes) // (MEMORY_OF_A_JOB + copied_bytes)
        most = min(len(available_cores()), max(1, fits))
        many = most if device.type == "cpu" else gpus
        requested = many if batches >= PROCESS_PAYS else 1
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


class Pool(Protocol):
    """What computes jobs: the processes of this machine (`Workers`), or another pool with the same contract.

    Attributes
    ----------
    least_batches : int
        The least batches for which a part of the images of a prediction is a job of its own.
    """

    @property
    def least_batches(self) -> int: ...

    def __enter__(self) -> Pool: ...

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...

    def cores(
        self, jobs: int, batches: int, device: torch.device, requested: int | None, copied_bytes: int = 0
    ) -> list[list[int]]:
        """Return the cores of each of some jobs; the parameters are those of `at_once`."""

    def slots(
        self, batches: int, device: torch.device, requested: int | None, copied_bytes: int = 0
    ) -> list[list[int]]:
        """Return the cores of as many jobs as are computed at once where there are enough; parameters as `at_once`."""

    def run(self, function: Job, calls: Sequence[tuple[Any, ...]], cores: Sequence[list[int]], bar: Bar) -> Results:
        """Run `function(*call, bar)` for every call, and yield (index, result) in the order in which they finish.

        `cores` has the cores of each call, or fewer entries: those of the calls that run at once, as from `slots`.
        """

    def call(self, function: Job, *arguments: Any) -> Any:
        """Return `function(*arguments)`, computed on a machine that computes the jobs: a probe, or what it supports."""


class Workers:
    """Processes, each pinned to its cores, that are started when first needed and ended with the `with` block.

    Parameters
    ----------
    gpus : sequence of torch.device
        CUDA devices with their indices. One of them is the current device of each process, and each is that of as many
        processes as the others, or of one more. What is computed on `torch.device("cuda")` is computed there.
    """

    least_batches = 1

    def __init__(self, gpus: Sequence[torch.device] = ()) -> None:
        self._gpus = tuple(gpus)
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

    def cores(
        self, jobs: int, batches: int, device: torch.device, requested: int | None, copied_bytes: int = 0
    ) -> list[list[int]]:
        """Return the cores of each job: as many jobs at once as `at_once` says, with equal shares."""
        return shares(jobs, at_once(jobs, batches, device, requested, copied_bytes))

    def slots(
        self, batches: int, device: torch.device, requested: int | None, copied_bytes: int = 0
    ) -> list[list[int]]:
        """Return the cores of as many jobs at once as `at_once` says if there is one for each core, in equal shares."""
        gpus = max(1, len(self._gpus))
        side_by_side = at_once(len(available_cores()), batches, device, requested, copied_bytes, gpus)
        return shares(side_by_side, side_by_side)

    def call(self, function: Job, *arguments: Any) -> Any:
        """Return `function(*arguments)`, computed in this process."""
        return function(*arguments)

    def run(self, function: Job, calls: Sequence[tuple[Any, ...]], cores: Sequence[list[int]], bar: Bar) -> Results:
        """Run `function(*call, bar)` for every call, and yield (index, result) in the order in which they finish.

        Parameters
        ----------
        function : callable
            A function of a module, which other processes can import. Arguments and results can be pickled.
        calls : sequence of tuples
            The arguments of each call.
        cores : sequence of lists of int
            The cores of each call. Calls whose cores overlap run one after the other, in order. If there are fewer than
            calls, each call gets the first ones that are free. Where every call has all cores, nothing is pinned and
            they run in this process.
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
            begun = self._begun(waiting, cores, fixed=len(cores) == len(calls))
            for index, of_call in begun.items():
                idle = self._idle.pop(tuple(of_call), None)
                self._running[index] = idle or _Worker(of_call, self._free_gpu())
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

    def _begun(self, waiting: Sequence[int], cores: Sequence[list[int]], fixed: bool) -> dict[int, list[int]]:
        """Return the calls that can begin now, and their cores."""
        busy = {core for worker in self._running.values() for core in worker.cores}
        begun: dict[int, list[int]] = {}
        pairs = ((index, cores[index]) for index in waiting) if fixed else zip(waiting, self._free(cores), strict=False)
        for index, of_call in pairs:
            if busy.isdisjoint(of_call):
                begun[index] = of_call
            busy |= set(of_call)  # a later call does not overtake one that waits for the same core
        return begun

    def _free(self, slots: Sequence[list[int]]) -> list[list[int]]:
        taken = [worker.cores for worker in self._running.values()]
        return [slot for slot in slots if slot not in taken]

    def _free_gpu(self) -> torch.device | None:
        """Return the GPU that the fewest processes have; None if there are no GPUs."""
        taken = [worker.gpu for worker in (*self._running.values(), *self._idle.values())]
        return min(self._gpus, key=taken.count, default=None)


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

    def __init__(self, cores: list[int], gpu: torch.device | None = None) -> None:
        context = multiprocessing.get_context("spawn")  # a fork deadlocks once torch's threads have been started
        self.connection, child_end = context.Pipe()
        self.cores, self.gpu, self.result = cores, gpu, None
        self._process = context.Process(target=_work, args=(child_end, cores, gpu))
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


def _work(connection: Any, cores: list[int], gpu: torch.device | None = None) -> None:
    """Run the calls received on the pipe until it closes; it also closes when the parent process ends.

    The GPU becomes the current device before anything else, so that this process has a context on no other one.
    """
    if gpu is not None:
        use(gpu)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    keep_freed_memory()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, call = connection.recv()
            connection.send(outcome(function, call, _RemoteBar(connection)))


def outcome(function: Job, call: tuple[Any, ...], bar: Progress) -> tuple[str, Any]:
    """Return ("done", the result of `function(*call, bar)`), or ("failed", an error that can be sent to a parent).

    Errors of a closed pipe are raised.
    """
    try:
        return "done", function(*call, bar)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except (TheraError, OSError, MemoryError) as error:
        return "failed", error
    except Exception as error:
        fault = RuntimeError(f"{error!r} in a computing process:\n{traceback.format_exc()}")
        return "failed", out_of_memory(error, "a computing process") or fault
