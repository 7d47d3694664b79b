"""What a session of tests has left: running processes, held locks, temporary files. Linux lists processes in /proc."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "THERA_TEST_SESSION"
"""The environment variable that all processes of a session inherit, also those whose parent has ended."""

SERVERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Modules of Python's own servers, which serve this process until it ends."""

GRACE_S = 10.0
"""Seconds that processes which are ending have to do so."""


def processes(mark: str, within_s: float = GRACE_S) -> list[str]:
    """Return the processes that this one or another with the mark has started and that go on, as `pid: command`."""
    until = time.monotonic() + within_s
    while (found := list(_processes(mark))) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def _processes(mark: str) -> Iterator[str]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            pid, state, parent = _stat(folder)
            if pid == os.getpid() or state == "Z":
                continue
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            is_server = parent == os.getpid() and any(server in command for server in SERVERS)
            is_ours = parent == os.getpid() or f"{MARK}={mark}\0".encode() in (folder / "environ").read_bytes() + b"\0"
            if is_ours and not is_server:
                yield f"{pid}: {command[:200]}"


def _stat(folder: Path) -> tuple[int, str, int]:
    """Return the number, state and parent of a process."""
    text = (folder / "stat").read_text(errors="replace")
    state, parent = text.rpartition(")")[2].split()[:2]  # the name before it may have spaces and brackets
    return int(folder.name), state, int(parent)


def held_locks() -> list[str]:
    """Return the lock files that this process has open; a lock is held as long as its file is open."""
    links = []
    for path in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(path))
    return sorted(link for link in links if Path(link).name == ".lock")


def temporary_files(tests: Path, system: Path) -> list[str]:
    """Return the temporary files of atomic writes below the tests' folder, and all that lies in the system's folder.

    A server of Python's `multiprocessing` has its socket there, until this process ends.
    """
    entries = [path for path in system.iterdir() if not path.name.startswith("pymp-")] if system.exists() else []
    return sorted(map(str, [*tests.rglob(".*.tmp"), *entries]))
