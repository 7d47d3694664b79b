"""Compute one call in a task on a node, as a process of one machine computes it, and report the progress."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from typing import Any

import ray

from ensemble.cluster.display import Report
from ensemble.cluster.facts import MachineFacts, facts_of_this_machine, refuse_unequal
from ensemble.errors import TheraError
from ensemble.progress import hidden

REPORT_S, REPORTS_PER_S = 0.5, 500
"""The minimum number of seconds between two reports of a job, and the maximum number of reports a second of all jobs
together. The relay takes more (tests/benchmarks/hundred_nodes.py), and has to answer other questions meanwhile."""


def report_interval(jobs: int) -> float:
    """Return the seconds between two reports of each of so many jobs that run at once.

    Examples
    --------
    >>> report_interval(1), report_interval(250), report_interval(1600)
    (0.5, 0.5, 3.2)
    """
    return max(REPORT_S, jobs / REPORTS_PER_S)


@dataclass(frozen=True)
class Ticket:
    """The parameters of a task, in addition to its function and the function's arguments.

    Attributes
    ----------
    relay : Any
        The handle of the relay.
    facts : MachineFacts
        The software and hardware that the node must have.
    token : str
        The name of the run of the pool that the call is part of.
    index, attempt : int
        The index of the call, and the number of its earlier attempts.
    threads : int
        The number of threads that compute the call.
    interval : float
        Seconds between two reports.
    """

    relay: Any
    facts: MachineFacts
    token: str
    index: int
    attempt: int
    threads: int
    interval: float


def work(ticket: Ticket, function: Any, call: tuple[Any, ...]) -> tuple[str, Any, Report]:
    """Return the outcome of `function(*call, bar)`, as `members.processes.outcome` does, and the last report."""
    import torch

    from ensemble.members.processes import keep_freed_memory, outcome

    bar = ReportingBar(ticket)
    try:  # the node may have joined after the driver compared all nodes
        refuse_unequal([ticket.facts, facts_of_this_machine()])
    except TheraError as error:
        return "failed", error, bar.report
    torch.set_num_threads(ticket.threads)
    keep_freed_memory()
    with hidden():
        kind, value = outcome(function, call, bar)
    return kind, value, bar.report


def answer(function: Any, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """Return the outcome of `function(*arguments)`."""
    from ensemble.members.processes import outcome

    with hidden():
        return outcome(_without_bar, (function, arguments), None)  # type: ignore[arg-type]


def _without_bar(function: Any, arguments: tuple[Any, ...], _: None) -> Any:
    return function(*arguments)


class ReportingBar:
    """Counts the progress of a job, and sends it to the relay at intervals; it has `members.processes.Progress`."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket, self._sent = ticket, 0.0
        place = f"{socket.gethostname()}-{ray.get_runtime_context().get_node_id()[:4]}"
        self.report = Report(ticket.attempt, place, 0, 0, ())
        self._send()

    def advance(self, n: int = 1) -> None:
        self._change(n, 0)
        if time.monotonic() - self._sent >= self._ticket.interval:
            self._send()

    def skip(self, n: int) -> None:
        self._change(0, n)

    def note(self, text: str) -> None:
        self._change(0, 0, ("note", text))
        self._send()

    def say(self, line: str) -> None:
        self._change(0, 0, ("say", line))
        self._send()

    def _change(self, advanced: int, skipped: int, *messages: tuple[str, str]) -> None:
        last = self.report
        self.report = Report(
            last.attempt, last.place, last.advanced + advanced, last.skipped + skipped, (*last.messages, *messages)
        )

    def _send(self) -> None:
        """Send the report without waiting. A lost report does not matter, because the next one has all its counts."""
        self._sent = time.monotonic()
        with contextlib.suppress(ray.exceptions.RayError):
            self._ticket.relay.report.remote(self._ticket.token, self._ticket.index, self.report)
