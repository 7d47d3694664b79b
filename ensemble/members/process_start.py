"""Start processes of multiprocessing: without Ctrl-C, without the user's script, and with short paths of sockets."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import resource_tracker, util
from pathlib import Path
from types import ModuleType

import timm

from ensemble.errors import ResourceError, printable

SEMAPHORES_REMOVED = "ignore:resource_tracker:UserWarning"
"""The warning, as for Python's option -W, that semaphores were left: those of data workers, when a signal stops all."""

LONGEST_FOLDER = 70
"""The longest path, in bytes, of a temporary folder in which sockets can be made. The path of a socket has at most 103
bytes on macOS and 107 on Linux, of which multiprocessing's own names take 32."""

SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  multiprocessing makes a private folder in it
"""Temporary folders for sockets where `TMPDIR` is too long."""


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
