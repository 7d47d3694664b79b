"""The `thera` command: `python -m thera`, and the entry point of the installed script.

Signals and standard streams come first, before anything that takes long to import.

A user may have a module of their own named `ensemble`, in the working directory or on PYTHONPATH, and it would hide the
package. The command runs no code of the user's, so it looks into such folders last, and so do its worker processes.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, TextIO

HOME = Path(__file__).resolve().parents[1]
"""The folder that holds both packages, `thera` and `ensemble`."""


def prefer_home() -> None:
    """Move each folder that hides the package `ensemble` to the end of the path, for worker processes too."""
    hiding = [entry for entry in sys.path if _hides(entry)]
    sys.path[:] = [entry for entry in sys.path if entry not in hiding]
    if HOME not in map(_folder, sys.path):
        sys.path.append(str(HOME))
    sys.path += hiding
    # A worker that is started anew first looks into the working directory, and preloads modules before it receives the
    # path of this process (multiprocessing's fork server ignores `sys_path` in Python 3.11).
    os.environ["PYTHONSAFEPATH"] = "1"
    if "PYTHONPATH" in os.environ:
        entries = os.environ["PYTHONPATH"].split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if not _hides(entry))


def _hides(entry: str) -> bool:
    """Return whether a folder of the path holds another module or package named `ensemble`."""
    if _folder(entry) == HOME:
        return False
    spec = PathFinder.find_spec("ensemble", [entry])
    return spec is not None and spec.origin is not None  # a folder without __init__.py has no origin and hides nothing


def _folder(entry: str) -> Path:
    return Path(entry).resolve()


# --- signals and standard streams -------------------------------------------------------------------------------------


def stop_at_once(number: int, _: object) -> None:
    """End the process with one line; before the work, and after it, nothing can be lost.

    An exception would not do: it may be raised within an import, where libraries catch it or print its traceback.
    """
    line = f"stopped by {signal.Signals(number).name}, what is finished is saved; run the same command again to go on\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    os._exit(75)  # the status of `Stopped`


class _Lasting(io.FileIO):
    """A standard stream that outlives its reader: what is written to a closed pipe or terminal is dropped."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self._terminal = self.isatty()  # a terminal that is closed is none any more

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if len(data):  # typer tries a stream by writing nothing
                # Python writes what is left in the buffer again when it exits, and a failure then changes the status.
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.fileno())
                os.close(null)
            if not (self._terminal or isinstance(error, BrokenPipeError)):  # the disk is full, for example
                raise
            return len(data)


def open_streams() -> None:
    """Give the process three standard streams that no file of the user can replace and no closed pipe can break.

    Where a descriptor is closed, the next file that is opened would receive its number, and with it all that a library
    prints. So the null device is opened there. Worker processes inherit the descriptors.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it receives the lowest number that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  it stays open
    sys.stdout = _lasting(1, sys.stdout)
    sys.stderr = _lasting(2, sys.stderr)


def _lasting(number: int, stream: TextIO | None) -> TextIO:
    """Return a stream with the settings of the one that Python has opened, None where the descriptor was closed."""
    raw = _Lasting(number)
    if not isinstance(stream, io.TextIOWrapper):
        return io.TextIOWrapper(io.BufferedWriter(raw), errors="backslashreplace")
    buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def main() -> int:
    """Run the command, and return its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_at_once)
    open_streams()
    prefer_home()
    from ensemble.cli import main as run

    try:
        return run() or 0
    finally:  # the work is done; Python restores the default handlers while it exits, and these would change the status
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
