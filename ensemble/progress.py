"""Progress of long work on standard error, and how a signal stops the work.

Progress is nested bars on a terminal; elsewhere it is one plain line a minute and one for each note, such as that of an
epoch. A signal is handled where a bar opens or advances, because all finished work is on disk then. Where no bar is
open, it is handled at once.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO

from tqdm import tqdm

from ensemble.errors import Stopped, printable

PLAIN_INTERVAL_S = 60.0
"""Seconds between two plain lines: often enough to see that work goes on, rarely enough for a log."""

COLUMNS = 80
"""The width of a bar where that of the terminal is not known."""

DESCRIPTION = 30
"""The longest description in a bar. Of 80 columns it leaves 50 for the counts of a million images and the times."""

TIMES = 23
"""The width of what stands beside a note in a bar: percentage, time used, time left (up to 9:59:59) and the bar itself.
It leaves 57 of 80 columns, which hold `small_cnn_smooth fold 0 epoch 3/20 loss 0.123 HTER 0.145`."""

BAR = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{unit} {elapsed}<{remaining}"
NOTED_BAR = "{percentage:3.0f}% {elapsed}<{remaining} {desc} {bar}"
"""The bars of tqdm without and with a note, which stands in place of the description and counts."""

Say = Callable[[str], None]
"""The type of the callback that receives notes and warnings during a command, one line at a time.

The command line passes `say`, which prints on standard error; in Python the default is `silent`.
"""


def silent(line: str) -> None:
    """Ignore the line: the callback for callers that need no messages."""


_hidden = contextvars.ContextVar("hidden", default=False)


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Show no progress inside the block; signals still stop it."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


class Bar:
    """One line of progress. `advance(n)` moves it, `note(text)` shows what has just been reached, `say(line)` stays.

    On a terminal it is a bar of tqdm that fits the terminal's width. Elsewhere it prints at most one plain line a
    minute while it moves, one for each note, and a last line when it is closed.
    """

    def __init__(self, total: int, what: str, unit: str, level: int) -> None:
        self.total, self.what, self.unit, self.done = total, what, unit, 0
        self._printed_at, self._skipped = -1, 0
        self._started = self._printed = time.monotonic()
        self._hidden = _hidden.get()
        self.on_note: Callable[[], None] | None = None  # called at each note
        self._tqdm = None
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not self._hidden:
            self._tqdm = tqdm(
                total=total or None,
                desc=what if len(what) <= DESCRIPTION else f"{what[: DESCRIPTION - 1]}…",
                unit=f" {unit}",
                position=level,
                leave=level == 0,
                dynamic_ncols=True,
                bar_format=BAR,
            )

    @property
    def on_terminal(self) -> bool:
        """Whether it is drawn on a terminal; elsewhere it is printed line by line."""
        return self._tqdm is not None

    def advance(self, n: int = 1) -> None:
        """Move by `n` steps.

        Raises
        ------
        Stopped
            A signal has arrived since the last step.
        """
        _raise_if_stopped()
        self.done += n
        if self._tqdm is not None:
            self._tqdm.update(n)
        elif time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._print()

    def skip(self, n: int) -> None:
        """Count `n` steps that an earlier start has done; the estimate of the time that is left ignores them."""
        self.done += n
        self._skipped += n
        if self._tqdm is not None:
            self._tqdm.initial += n
            self._tqdm.n += n
            self._tqdm.refresh()

    def note(self, text: str) -> None:
        """Show `text` in the bar; off a terminal, print it as a line with the time used and the time left.

        Where the terminal is too narrow, the beginning of the text is left out.
        """
        if self._tqdm is not None:
            room = max((self._tqdm.format_dict["ncols"] or COLUMNS) - TIMES, 1)
            self._tqdm.bar_format = NOTED_BAR
            self._tqdm.set_description_str(text if len(text) <= room else f"…{text[1 - room :]}")
        else:
            self._print(text)
        if self.on_note is not None:
            self.on_note()

    def say(self, line: str) -> None:
        """Print a line above the bar that stays there."""
        if not self._hidden:
            say(line)

    def close(self) -> None:
        """Remove the bar; off a terminal, print its last line unless that was printed already."""
        if self._tqdm is not None:
            self._tqdm.close()
        elif self.done != self._printed_at:
            self._print()

    def _print(self, note: str = "") -> None:
        if self._hidden:
            return
        self._printed = time.monotonic()
        spent = self._printed - self._started
        steps = self.done - self._skipped
        left = f", {_clock(spent / steps * (self.total - self.done))} left" if steps and self.done < self.total else ""
        if note:
            say(f"{note} at {_clock(spent)}{left}")
        else:
            self._printed_at = self.done
            of_all = f" of {self.total}" if self.total else ""
            say(f"{self.what}: {self.done}{of_all} {self.unit} in {_clock(spent)}{left}")


def say(line: str) -> None:
    """Print a line on standard error, above the bars. A closed pipe stops no work: the line is discarded."""
    try:
        tqdm.write(printable(line), file=sys.stderr)
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Redirect a stream whose pipe is closed to the null device, so that later writes raise nothing."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


_open: list[Bar] = []
"""The bars that are open, the outermost first."""


@contextlib.contextmanager
def progress(total: int, what: str, unit: str = "images") -> Iterator[Bar]:
    """Open a bar below the bars that are open already, and close it at the end of the block.

    Parameters
    ----------
    total : int
        Number of steps of the whole work; 0 where it is not known.
    what : str
        The work in a few words: ``"decode"``, ``"resnet18, 3 folds"``.
    unit : str
        What is counted, in the plural.

    Raises
    ------
    Stopped
        A signal has arrived since the last step.
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
"""Names of the signals that have arrived and are not handled yet."""


def _raise_if_stopped() -> None:
    if _signals:
        raise _stopped(_signals[0])


def _stopped(name: str) -> Stopped:
    return Stopped("thera", f"stopped by {name}, what is finished is saved", "run the same command again to go on")


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the block at the next step of a bar; a second signal ends the process at once.

    Where no bar is open, the first signal stops the work at once too. While a module is being imported it ends the
    process: an exception would be raised within the import, where libraries catch it or print its traceback.

    Raises
    ------
    Stopped
        A signal has arrived.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if _signals or (not _open and _is_importing(frame)):
            with contextlib.suppress(OSError):
                os.write(2, f"{_stopped(name).line}\n".encode())
            os._exit(Stopped.status)
        _signals.append(name)
        if not _open:
            _raise_if_stopped()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Stopped:
        raise
    except Exception:
        _raise_if_stopped()  # a library may have caught `Stopped` and raised an error of its own
        raise
    finally:
        _signals.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
