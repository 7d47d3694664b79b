"""Long work: progress on standard error (nested bars on a terminal, one plain line a minute elsewhere), and its end.

A signal is acted on where a bar opens or advances: there everything that is finished is on disk. Where no bar is open,
it is acted on at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from tqdm import tqdm

from ensemble.errors import Stopped, printable

PLAIN_INTERVAL_S = 60.0

Say = Callable[[str], None]
"""Receives what a command has to say while it works: one line a call."""


def silent(line: str) -> None:
    """Say nothing: the `Say` of a program that wants no lines on standard error."""


class Bar:
    """One line of progress. `advance(n)` moves it, `note(text)` says what is being done.

    Off a terminal it prints at most one plain line a minute while it moves, and one at its end.
    """

    def __init__(self, total: int, what: str, unit: str, level: int) -> None:
        self.total, self.what, self.unit, self.done = total, what, unit, 0
        self._note, self._printed_at, self._skipped = "", -1, 0
        self._started = self._printed = time.monotonic()
        self._tqdm = None
        if sys.stderr.isatty():
            self._tqdm = tqdm(
                total=total, desc=what, unit=f" {unit}", position=level, leave=level == 0, dynamic_ncols=True
            )

    def advance(self, n: int = 1) -> None:
        """Move by `n` steps.

        Raises
        ------
        Stopped
            A signal has come since.
        """
        _raise_if_stopped()
        self.done += n
        if self._tqdm is not None:
            self._tqdm.update(n)
        elif time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._print()

    def skip(self, n: int) -> None:
        """Count `n` steps that an earlier start made; they tell nothing of the time that is left."""
        self.done += n
        self._skipped += n
        if self._tqdm is not None:
            self._tqdm.initial += n
            self._tqdm.n += n
            self._tqdm.refresh()

    def note(self, text: str) -> None:
        self._note = text
        if self._tqdm is not None:
            self._tqdm.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
        elif self.done != self._printed_at:
            self._print()

    def _print(self) -> None:
        self._printed, self._printed_at = time.monotonic(), self.done
        spent = self._printed - self._started
        made = self.done - self._skipped
        left = f", {_clock(spent / made * (self.total - self.done))} left" if made and self.done < self.total else ""
        noted = f", {self._note}" if self._note else ""
        say(f"{self.what}: {self.done} of {self.total} {self.unit} in {_clock(spent)}{left}{noted}")


def say(line: str) -> None:
    """Print a line on standard error, above the bars. One that cannot be shown (a closed pipe) stops no work."""
    try:
        tqdm.write(printable(line), file=sys.stderr)
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Send what is still said to a stream that nobody reads any more to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


_open: list[Bar] = []


@contextlib.contextmanager
def progress(total: int, what: str, unit: str = "images") -> Iterator[Bar]:
    """Open a bar below those that are open already.

    Parameters
    ----------
    total : int
        Number of steps until it is full.
    what : str
        What is being done, in a few words: ``"decode"``, ``"resnet18 fold 1/3"``.
    unit : str
        What a step is.

    Raises
    ------
    Stopped
        A signal has come since.
    """
    _raise_if_stopped()
    bar = Bar(total, what, unit, level=len(_open))
    _open.append(bar)
    try:
        yield bar
    finally:
        _open.remove(bar)
        bar.close()


_signals: list[str] = []


def _raise_if_stopped() -> None:
    if _signals:
        found = f"stopped by {_signals[0]}, what is finished is saved"
        raise Stopped("thera", found, "run the same command again to go on")


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the work below at its bar's next step; a second one ends the process at once."""

    def stop(number: int, _: object) -> None:
        if _signals:
            os._exit(Stopped.status)
        _signals.append(signal.Signals(number).name)
        if not _open:
            _raise_if_stopped()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _signals.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
