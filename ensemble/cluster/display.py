"""Show the progress of jobs on a cluster by member, with the node of each job. A repeated step counts once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ensemble.progress import PLAIN_INTERVAL_S, Bar, progress

LISTED = 6
"""The largest number of jobs of a member whose node is shown, so that a line stays readable."""


@dataclass(frozen=True)
class Subject:
    """The member and the fold that a job computes, for messages.

    Attributes
    ----------
    member : str
    what : str
        The fold of the member, or a part of it.
    steps : int
        The number of steps by which the job advances its bar.
    """

    member: str
    what: str
    steps: int

    def __str__(self) -> str:
        return f"{self.member} {self.what}"


@dataclass(frozen=True)
class Report:
    """The progress of a job. The counts are those since its attempt began, so that a lost report changes nothing.

    Attributes
    ----------
    attempt : int
        The number of earlier attempts.
    place : str
        The name of the node that computes the job.
    advanced, skipped : int
        The number of steps that this attempt has computed, and of those that an earlier attempt had computed.
    messages : tuple of (str, str)
        All messages of this attempt: the method of the bar ("note" or "say"), and the text.
    """

    attempt: int
    place: str
    advanced: int
    skipped: int
    messages: tuple[tuple[str, str], ...]

    @property
    def done(self) -> int:
        return self.advanced + self.skipped


class Display:
    """Shows the reports of jobs: the steps of all jobs in a bar, and the share and the nodes of each member.

    On a terminal each member has a line below the bar. Elsewhere one line a minute describes all members.

    Parameters
    ----------
    subjects : sequence of Subject
        One for each job.
    bar : Bar
        It is advanced by the steps of all jobs. Steps that an attempt repeats are not counted again.
    """

    def __init__(self, subjects: Sequence[Subject], bar: Bar) -> None:
        self._subjects, self._bar = subjects, bar
        self.done = [0] * len(subjects)
        self._places: dict[int, str] = {}
        self._shown: dict[tuple[int, int], int] = {}
        self._said_at = time.monotonic()
        self._lines = contextlib.ExitStack()
        self._bars: dict[str, Bar] = {}
        self._texts: dict[str, str] = {}
        for member in dict.fromkeys(subject.member for subject in subjects):
            if bar.on_terminal:
                steps = sum(subject.steps for subject in subjects if subject.member == member)
                self._bars[member] = self._lines.enter_context(progress(steps, member))

    def close(self) -> None:
        """Remove the lines of the members."""
        self._lines.close()

    def take(self, index: int, report: Report) -> None:
        """Show a report of job `index`."""
        before, of_attempt = self.done[index], (index, report.attempt)
        resumed, done = max(0, report.skipped - before), max(before, report.done)
        self.done[index], self._places[index] = done, report.place
        bars = [self._bar, *filter(None, [self._bars.get(self._subjects[index].member)])]
        for bar in bars:
            if resumed:
                bar.skip(resumed)
            bar.advance(done - before - resumed)
        for kind, text in report.messages[self._shown.get(of_attempt, 0) :]:
            if kind == "note":
                self._bar.note(f"{text} on {report.place}")
            else:
                self._bar.say(f"{text} (on {report.place})")
        self._shown[of_attempt] = max(self._shown.get(of_attempt, 0), len(report.messages))  # reports may overtake

    def end(self, index: int) -> str:
        """Show that a job no longer runs, and return the name of its node."""
        return self._places.pop(index, "a node")

    def refresh(self) -> None:
        """Show the nodes of the jobs if they have changed or a minute has passed, and let the bar handle a signal."""
        self._bar.advance(0)
        for member, bar in self._bars.items():
            if (text := f"{member}: {self._where(member)}") != self._texts.get(member):
                self._texts[member] = text
                bar.note(text)
        if not self._bars and self._places and time.monotonic() - self._said_at >= PLAIN_INTERVAL_S:
            self._said_at = time.monotonic()
            members = dict.fromkeys(self._subjects[index].member for index in self._places)
            self._bar.say("; ".join(f"{member} {self._share(member):.0%}: {self._where(member)}" for member in members))

    def _share(self, member: str) -> float:
        rows = [index for index, subject in enumerate(self._subjects) if subject.member == member]
        return sum(self.done[index] for index in rows) / max(1, sum(self._subjects[index].steps for index in rows))

    def _where(self, member: str) -> str:
        running = [index for index in sorted(self._places) if self._subjects[index].member == member]
        places = [f"{self._subjects[index].what} on {self._places[index]}" for index in running[:LISTED]]
        more = [f"{len(running) - LISTED} more"] if running[LISTED:] else []
        return ", ".join([*places, *more]) or "waits"
