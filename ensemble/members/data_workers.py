"""Augment batches of images, in the training process or in data workers; go on with fewer workers if one fails."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any, TypeAlias

import numpy as np
import torch

from ensemble.data.mapped import read_rows
from ensemble.errors import ResourceError, Stopped, printable
from ensemble.members.augment import Augmentation
from ensemble.members.fold_job import FoldJob
from ensemble.members.process_start import starting_processes
from ensemble.members.processes import POLL_S, Progress

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor, np.ndarray]
"""Pixels (b, H, W, 3) uint8, labels (b,) or targets float32, and the rows (b,) that they come from."""

Draw: TypeAlias = tuple[int, int, int]
"""An epoch, a row, and how often the row was drawn before in that epoch."""

FAILURES = (RuntimeError, OSError, EOFError, MemoryError)
"""Errors by which torch and multiprocessing report that data workers cannot be started, died or cannot share memory."""

NO_ROOM = ("No space left on device", "shared memory", "shm_open")
"""Parts of the messages of these errors if /dev/shm is full."""


class AugmentedBatches(Iterator[Batch]):
    """The augmented images of lists of (epoch, row, time), in their order: pixels, labels, rows.

    A batch depends only on its draws, so the number of workers does not change it. If workers fail, their batches are
    made again, once, with fewer workers: half of them if one was killed, which memory may explain, else none.

    Parameters
    ----------
    job : FoldJob
        Its images, labels, seed and augmentation are used.
    draws : iterable of lists of (int, int, int)
        The draws of each batch.
    workers : int
        Processes that augment in advance. With 0, a batch is augmented when it is requested.
    device : torch.device
        For a GPU the batches are in pinned memory.
    bar : Progress, optional
        A signal is handled through it while a batch is awaited. It shows the warning that there are fewer workers.

    Raises
    ------
    ResourceError
        Workers failed again.
    """

    def __init__(
        self,
        job: FoldJob,
        draws: Iterable[list[Draw]],
        workers: int,
        device: torch.device,
        bar: Progress | None = None,
    ) -> None:
        self._rows, self._draws, self._device, self._bar = _AugmentedRows(job), iter(draws), device, bar
        self._where = f"member {job.config.name}, fold {job.fold}"
        self._requested: deque[list[Draw]] = deque()  # from the loader, which has not returned them yet
        self._failed = False
        self._error: ResourceError | None = None
        self._loader: Any
        self._start(workers)

    def __next__(self) -> Batch:
        while self._error is None:
            try:
                batch: Batch = next(self._loader)
            except FAILURES as error:
                if not self._workers:
                    raise
                if not str(error).startswith("DataLoader timed out"):
                    self._start_again(error)
                self._heed_signals()
            else:
                self._requested.popleft()
                return batch
        raise self._error

    def close(self) -> None:
        """End the workers."""
        if hasattr(self._loader, "_shutdown_workers"):
            self._loader._shutdown_workers()

    def _heed_signals(self) -> None:
        """Let the bar raise `Stopped` if a signal has arrived; workers that do not answer are killed then."""
        try:
            if self._bar is not None:
                self._bar.advance(0)
        except Stopped:
            for worker in getattr(self._loader, "_workers", ()):
                worker.kill()
            raise

    def _start(self, workers: int) -> None:
        self._workers, self._loader = workers, None
        again, self._requested = list(self._requested), deque()
        try:
            self._loader = _loader(self._rows, self._requests(again), workers, self._device)
        except FAILURES as error:
            if not workers:
                raise
            self._requested = deque(again)
            self._start_again(error)

    def _requests(self, again: list[list[Draw]]) -> Iterator[list[Draw]]:
        for draws in itertools.chain(again, self._draws):
            self._requested.append(draws)
            yield draws

    def _start_again(self, error: Exception) -> None:
        """Start fewer workers that make the batches which failed; if this was done already, it is an error."""
        started = getattr(self._loader, "_workers", ())
        if isinstance(error, (ConnectionError, EOFError)):  # a worker has died; its exit status may follow
            wait([worker.sentinel for worker in started], POLL_S)
        codes = [worker.exitcode for worker in started]
        found, fewer, remedy = _diagnosis(error, [-code for code in codes if code], self._workers)
        self.close()
        if self._failed:
            problem = f"{found}, also with fewer of them"
            self._error = ResourceError(self._where, problem, f"{remedy}; the same command goes on")
            return
        self._failed = True
        if self._bar is not None:
            on = f"with {fewer} of {self._workers}" if fewer else "without data workers"
            self._bar.say(f"warning: {self._where}: {found}; the training goes on {on}; {remedy}")
        self._start(fewer)


def _loader(rows: _AugmentedRows, requests: Iterable[list[Draw]], workers: int, device: torch.device) -> Any:
    """Return an iterator over the batches; its workers, if any, are started."""
    if workers:
        torch.multiprocessing.set_forkserver_preload([__name__, "albumentations"])
        _check_semaphores(workers)
    loader = torch.utils.data.DataLoader(
        rows,
        batch_sampler=requests,
        collate_fn=_to_tensors,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,  # CUDA cannot be used after a fork
        pin_memory=device.type == "cuda",
        timeout=POLL_S if workers else 0,
        worker_init_fn=_end_with_parent,
        generator=torch.Generator(),  # so that a start draws nothing from the generator of the training
    )
    with starting_processes():
        return iter(loader)


def _check_semaphores(workers: int) -> None:
    """Make as many semaphores as a loader needs, because a loader that lacks one prints a traceback when it is removed.

    It has three for each queue, one queue for each worker and one more, and five for an event.
    """
    context = torch.multiprocessing.get_context("forkserver")
    _ = [context.Semaphore() for _ in range(3 * (workers + 1) + 5)]


def _diagnosis(error: Exception, signals: list[int], workers: int) -> tuple[str, int, str]:
    """Return what failed, the number of workers to go on with, and a remedy, from the signals that ended workers."""
    text = str(error)
    if getattr(signal, "SIGBUS", None) in signals or any(part in text for part in NO_ROOM):
        remedy = "use --workers 0, or enlarge it (in Docker by --shm-size=1g)"
        return "there is no room in shared memory (/dev/shm) for data workers", 0, remedy
    if signals:
        ended = f"was killed (signal {signals[0]})" if signals[0] > 0 else f"ended (exit status {-signals[0]})"
        return f"a data worker {ended}", workers // 2, "free memory, or use --workers 0"
    last = printable(text.strip().splitlines()[-1][:100]) if text.strip() else type(error).__name__
    return f"data workers failed ({last})", 0, "use --workers 0"


class _AugmentedRows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Batches of augmented images. A batch depends only on its draws, not on the worker that makes it."""

    def __init__(self, job: FoldJob) -> None:
        self.mapped, self.learned = job.mapped, job.learned
        self.augmentation = Augmentation(job.config.augmentation, job.seed)

    def __getitems__(self, draws: list[Draw]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = np.array([row for _, row, _ in draws])
        pixels = read_rows(self.mapped.array, rows)
        if not self.augmentation.is_idle:
            for image, (epoch, row, time) in zip(pixels, draws, strict=True):
                image[:] = self.augmentation(image, epoch, row, time)
        return pixels, self.learned[rows].astype(np.float32), rows


def _to_tensors(batch: Any) -> Batch:
    """Return a batch as tensors; those of a data worker are in shared memory.

    If there is no room, it is an error here, which the loader reports. Without this, a thread of the worker would share
    the tensors, and an error there is printed and never reported: the training would wait for ever.
    """
    tensors, rows = [torch.from_numpy(each) for each in batch[:2]], batch[2]
    if torch.utils.data.get_worker_info() is not None:
        tensors = [each.share_memory_() for each in tensors]  # type: ignore[no-untyped-call]
    return tensors[0], tensors[1], rows


def _end_with_parent(_: int) -> None:
    """Let this data worker end when the training process ends, even if that is killed.

    Torch's workers end when their parent does. It is the fork server, which in turn waits for them: all would stay.
    """
    threading.Thread(target=_exit_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _exit_after(training: Any) -> None:
    training.join()
    os._exit(1)
