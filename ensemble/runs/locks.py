"""Locks: a folder is held by one process at a time. Marks: other machines find out whether they share a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble.errors import LockedError, ResourceError, printable
from ensemble.runs.files import irregular, is_running, remove_orphans, write_whole

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK, MARKER, HOLDER = ".lock", ".lock.marker", ".lock.holder"
"""Files of a held folder: the one that is locked, the one that stands in where a file system has no locks, and the one
that names pid and host of the holder."""

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""The errors by which a file system says that it has no locks: NFS without its lock daemon, Lustre without `flock`."""

PATIENCE = 60.0
"""Seconds to wait for a marker without a note to the user. What is done without one takes milliseconds, so a marker
that stays longer was left by a killed process of another host."""

NAMED_WITHIN_S = 0.5
"""Seconds that a process which is refused a lock waits for the name of the holder; a refusal takes at most a second."""

Say = Callable[[str], object]


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False, say: Say | None = None) -> Iterator[None]:
    """Hold a folder for this process. The lock of a killed process is free again.

    Where the file system has no locks, the file `.lock.marker` stands in: it exists as long as the folder is held, and
    names pid and host. One that a killed process has left is removed if that process ran on this host.

    Parameters
    ----------
    folder : Path
        Made where missing. The lock is `.lock` in it; pid and host of the holder are in `.lock.holder`.
    wait : bool
        Wait for another holder instead of raising.
    say : callable, optional
        Receives a line that names the holder, if there is one to wait for, and one about a file system without locks.

    Raises
    ------
    LockedError
        Another process holds the folder; its pid and host are named.
    ResourceError
        The folder cannot be written, or one of the lock's files is a link, a folder or a device.
    """
    for name in (LOCK, MARKER, HOLDER):
        if kind := irregular(folder / name):
            raise ResourceError(folder / name, f"is {kind} and no lock file", "remove it if nothing works there")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquired(folder, wait, say)
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise ResourceError(folder, problem, "choose a place that can be written") from None
    try:
        remove_orphans(folder, HOLDER)
        write_whole(folder / HOLDER, f"pid {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


def _acquired(folder: Path, wait: bool, say: Say | None) -> BaseFileLock:
    from filelock import FileLock, SoftFileLock

    try:
        return _held(FileLock(folder / LOCK, fallback_to_soft=False), folder, wait, say)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    if say is not None:
        say(f"note: {printable(folder)}: the file system has no locks; the file {MARKER} stands in for one")
    return _held(SoftFileLock(folder / MARKER), folder, wait, say)


def _held(lock: BaseFileLock, folder: Path, wait: bool, say: Say | None) -> BaseFileLock:
    """Return the lock once it is held, or raise a LockedError."""
    from filelock import Timeout

    marker = Path(lock.lock_file).name == MARKER
    gone = f"; if it no longer runs, remove {printable(folder / MARKER)}" if marker else ""
    try:
        lock.acquire(timeout=0)
        return lock
    except Timeout:
        if wait and say is not None:
            say(f"note: waiting for {_holder(folder)}, which works in {printable(folder)}{gone}")
    try:
        lock.acquire(timeout=0 if not wait else PATIENCE if marker and say is None else -1)
        return lock
    except Timeout:
        remedy = f"wait for it, or stop it first{gone}"
        raise LockedError(folder, f"{_holder(folder)} works here", remedy) from None


def _holder(folder: Path) -> str:
    """Return who holds a lock. Its holder writes that just after it has locked, so wait a moment for a live one."""
    until = time.monotonic() + NAMED_WITHIN_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError):
            name = printable((folder / HOLDER).read_text(errors="replace").strip())
            _, pid, _, host = name.split()
            if host != socket.gethostname() or is_running(int(pid)):
                return name
        time.sleep(0.01)
    return "another process"


@contextlib.contextmanager
def marked(folder: Path) -> Iterator[Path]:
    """Yield the absolute path of a file that is in a folder for a while: a machine that sees it shares the folder."""
    # `remove_orphans` must not take it for that of a killed process: containers may share a host name, but no pids
    name = f".shared.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    mark = folder.absolute() / name
    write_whole(mark, b"")
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def refuse_unshared(shards: Path, mark: Path | None = None) -> None:
    """Raise `ResourceError` where this machine does not see the folder of the process that gave a command.

    Parameters
    ----------
    shards : Path
    mark : Path, optional
        A file that the process has made there by `marked`. Without one, the process holds the folder's lock, so that
        the file which names the holder is the mark.
    """
    if not os.path.exists(mark or shards / HOLDER):
        where, found = f"--shards {printable(shards)}", f"is not visible on node {socket.gethostname()}"
        raise ResourceError(where, found, "put it on storage that all nodes share, or leave out --cluster")
