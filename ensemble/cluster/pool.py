"""A pool that runs each job as a task of a Ray cluster, and starts a lost task again."""

from __future__ import annotations

import contextlib
import errno
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from ensemble.cluster.display import Display, Report, Subject
from ensemble.cluster.nodes import Cluster
from ensemble.cluster.tasks import Ticket, answer, report_interval, work
from ensemble.cluster.travel import Luggage
from ensemble.errors import ResourceError, printable
from ensemble.members.parallel import Task
from ensemble.members.predictor import FoldModel
from ensemble.members.processes import Job, Results
from ensemble.progress import Bar

if TYPE_CHECKING:
    import torch

POLL_S = 0.5
"""The number of seconds between two checks for progress and for a signal."""

SILENT_S = 40.0
"""The number of seconds without an answer after which the cluster counts as lost. Ray ends the process after 60."""

LOST_LIMIT = 10
"""The number of times in succession that a job may be lost without progress."""

LEAST_BATCHES = 16
"""The smallest number of batches in a part of a prediction: 4,096 images. A task first builds its network, which takes
as long as some batches."""

REASONS = {
    "OutOfMemoryError": "its node had no memory left",
    "NodeDiedError": "its node has ended",
    "WorkerCrashedError": "its process has ended",
}
"""The reason for which a task was lost, by the name of Ray's error."""


class ClusterPool:
    """Runs calls as tasks of a Ray cluster; it has the contract of `members.processes.Pool`.

    Parameters
    ----------
    cluster : Cluster
    cores : int
        The number of cores of each task. On a CPU as many threads compute a network.
    gpu : float
        The share of a GPU that each task has.
    at_once : int, optional
        The largest number of tasks at a time; by default as many as the nodes have room for.
    """

    least_batches = LEAST_BATCHES

    def __init__(self, cluster: Cluster, cores: int, gpu: float, at_once: int | None) -> None:
        self._cluster, self._cores, self._gpu, self._at_once = cluster, cores, gpu, at_once
        self._luggage = Luggage(cluster.relay)
        self._running: dict[Any, int] = {}

    def __enter__(self) -> ClusterPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the tasks that run."""
        for ref in self._running:
            with contextlib.suppress(Exception):  # the cluster may be lost
                ray.cancel(ref, force=True)
        self._running = {}
        self._luggage.clear()

    @property
    def _room(self) -> int:
        """The number of tasks for which the nodes have room."""
        nodes = self._cluster.nodes
        fits = sum(int(node.gpus / self._gpu) if self._gpu else node.cores // self._cores for node in nodes)
        return max(1, min(fits, self._at_once or fits))

    def cores(
        self, jobs: int, batches: int, device: torch.device, requested: int | None, copied_bytes: int = 0
    ) -> list[list[int]]:
        """Return the cores of each job. Only their number is used: it is the number of cores of a task."""
        return [list(range(self._cores))] * jobs

    def slots(
        self, batches: int, device: torch.device, requested: int | None, copied_bytes: int = 0
    ) -> list[list[int]]:
        """Return the cores of as many tasks as the nodes have room for."""
        return [list(range(self._cores))] * self._room

    def call(self, function: Job, *arguments: Any) -> Any:
        """Return `function(*arguments)`, computed by a task."""
        self._luggage.register()
        ref = self._task(answer, retries=LOST_LIMIT).remote(function, arguments)
        try:
            kind, value = ray.get(ref)
        except ray.exceptions.RayError as error:
            raise _lost_cluster(f"{function.__name__} could not be computed ({_reason(error)})") from None
        if kind == "failed":
            raise value
        return value

    def run(self, function: Job, calls: Sequence[tuple[Any, ...]], cores: Sequence[list[int]], bar: Bar) -> Results:
        """Run `function(*call, bar)` for every call, and yield (index, result) in the order in which they finish.

        If a process or node ends, its task is started again on another one, and goes on from the last saved state.

        Parameters
        ----------
        function : callable
            A function of a module that is installed on all nodes.
        calls : sequence of tuples
            The arguments of each call.
        cores : sequence of lists of int
            The number of cores is the number of threads that compute a call.
        bar : Bar
            It is advanced by the progress of all calls together. A repeated step counts once.

        Raises
        ------
        TheraError
            The error that a call raised.
        ResourceError
            A call was lost `LOST_LIMIT` times without progress, or the cluster was lost.
        Stopped
            A signal has arrived.
        """
        try:
            yield from self._run(function, calls, cores, bar)
        except _Failed as failed:
            raise failed.error from None
        except OSError as error:
            if error.errno not in (None, errno.EPIPE, errno.ECONNRESET):  # Ray's own errors have no number
                raise
            raise _lost_cluster("Ray has ended on this node") from None

    def _run(self, function: Job, calls: Sequence[tuple[Any, ...]], cores: Sequence[list[int]], bar: Bar) -> Results:
        self._luggage.register()
        subjects, token, reports = [_subject(call) for call in calls], secrets.token_hex(8), None
        display, losses, waiting = Display(subjects, bar), _Losses(subjects, bar), deque(range(len(calls)))
        most = self._at_once or 2 * self._room  # the next ones are there when a node becomes free
        with _Watch() as watch, contextlib.closing(display):
            while waiting or self._running:
                while waiting and len(self._running) < most:
                    index = waiting.popleft()
                    ticket = Ticket(
                        self._cluster.relay,
                        self._cluster.facts,
                        token,
                        index,
                        losses.attempts.get(index, 0),
                        len(cores[index % len(cores)]),
                        report_interval(min(self._room, len(calls))),
                    )
                    self._running[self._task(work).remote(ticket, function, calls[index])] = index
                ready, _ = ray.wait(list(self._running), timeout=POLL_S)
                watch.check(bar)
                reports = self._show(token, display, reports)
                for ref in ready:
                    index = self._running.pop(ref)
                    try:
                        kind, value, report = _received(ref, subjects[index])
                    except _Lost as lost:
                        losses.add(index, str(lost), display.end(index), display.done[index])
                        waiting.appendleft(index)
                        continue
                    display.take(index, report)
                    display.end(index)
                    if kind == "failed":
                        raise _Failed(value)
                    yield index, value

    def _task(self, function: Any, retries: int = 0) -> Any:
        return ray.remote(function).options(num_cpus=self._cores, num_gpus=self._gpu, max_retries=retries)

    def _show(self, token: str, display: Display, requested: Any) -> Any:
        """Show the reports that were requested, if they have arrived, and return the next request."""
        display.refresh()
        if requested is not None:
            if not ray.wait([requested], timeout=0)[0]:
                return requested
            with contextlib.suppress(ray.exceptions.RayError):  # the relay starts again, and the next reports have all
                arrived: dict[int, Report] = ray.get(requested)
                for index in set(arrived) & set(self._running.values()):
                    display.take(index, arrived[index])
        return self._cluster.relay.collect.remote(token)


class _Lost(Exception):
    """A task was lost because its process or node has ended; the message is the reason."""


class _Failed(Exception):
    """A call has raised an error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _Losses:
    """Counts how often jobs are lost, and refuses to repeat a job that is lost `LOST_LIMIT` times without progress."""

    def __init__(self, subjects: Sequence[Subject], bar: Bar) -> None:
        self._subjects, self._bar = subjects, bar
        self.attempts: dict[int, int] = {}
        self._in_vain: dict[int, int] = {}
        self._done: dict[int, int] = {}

    def add(self, index: int, reason: str, place: str, done: int) -> None:
        """Record that a job was lost on a node after a number of steps."""
        self.attempts[index] = self.attempts.get(index, 0) + 1
        further = done > self._done.get(index, 0)
        self._in_vain[index] = 0 if further else self._in_vain.get(index, 0) + 1
        self._done[index] = done
        if self._in_vain[index] >= LOST_LIMIT:
            problem = f"was lost {LOST_LIMIT} times without progress ({reason})"
            remedy = "give each task more of a node by --task-cores, or use larger nodes"
            raise ResourceError(self._subjects[index], problem, f"{remedy}; the same command goes on")
        self._bar.say(f"warning: {self._subjects[index]} was lost on {place} ({reason}); it goes on elsewhere")


class _Watch:
    """Asks the cluster at intervals whether it runs, in a thread, because the call blocks while it does not."""

    def __init__(self) -> None:
        self._answered, self._ended = time.monotonic(), threading.Event()
        self._computes, self._said = True, False

    def __enter__(self) -> _Watch:
        threading.Thread(target=self._ask, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _ask(self) -> None:
        while not self._ended.wait(SILENT_S / 10):
            with contextlib.suppress(Exception):  # whatever it is, there was no answer
                self._computes = any(node["Alive"] and node["Resources"].get("CPU") for node in ray.nodes())
                self._answered = time.monotonic()

    def check(self, bar: Bar) -> None:
        """Warn if no node is left to compute, and raise `ResourceError` if the cluster does not answer."""
        if time.monotonic() - self._answered > SILENT_S:
            raise _lost_cluster(f"the cluster has not answered for {SILENT_S:.0f} s")
        if not self._computes and not self._said:
            bar.say("warning: no node of the cluster has a core; the work waits until one joins")
        self._said = not self._computes


def _received(ref: Any, subject: Subject) -> tuple[str, Any, Report]:
    """Return the result of a task, or raise `_Lost` if its process or node has ended."""
    try:
        received: tuple[str, Any, Report] = ray.get(ref)
        return received
    except ray.exceptions.LocalRayletDiedError:
        raise _lost_cluster("Ray has ended on this node") from None
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        # The relay or the object store did not answer. Ray raises the base class for an error that it cannot send.
        if isinstance(cause, ray.exceptions.RayError) and type(cause) is not ray.exceptions.RayError:
            raise _Lost(_reason(cause)) from None
        raise RuntimeError(f"{subject} in a task of the cluster: {error}") from None
    except ray.exceptions.RayError as error:
        raise _Lost(_reason(error)) from None


def _reason(error: Exception) -> str:
    return REASONS.get(type(error).__name__, type(error).__name__)


def _lost_cluster(problem: str) -> ResourceError:
    return ResourceError("--cluster", problem, "the same command goes on once the cluster runs")


def _subject(call: tuple[Any, ...]) -> Subject:
    """Return what a call computes: the training of a fold, a part of a prediction, or another function."""
    match call:
        case [FoldModel() as model, _, rows, views]:
            return Subject(model.name, f"fold {model.fold}", len(rows) * len(views))
        case [[Task() as task, *_], *_]:
            job = task.job
            what = f"fold {job.fold}" + ("" if job.part is None else f" part {job.part}")
            return Subject(job.config.name, what, job.images + len(task.held_out) * len(task.views))
        case [Path(), _, _, Path() as shards, int() as index, *_]:
            return Subject(printable(shards.name), f"shard {index}", 1)
    return Subject("job", printable(str(call))[:40], 1)
