"""ENOSPC, EIO and a kill before and after each operation of a run that changes the disk; the same command then goes on.

The operations of each command are counted once and then disturbed one by one. They are intercepted in a forked process
where Python calls the system: open for writing, write, fsync, rename, unlink, mkdir, rmdir and fallocate. A full disk
stays full: from the chosen operation on, nothing can be opened for writing, written, made or allocated, and the first
write is cut in half.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import tiny_run
from .lanes import Outcome, Trial

HANG_S = 120.0

KINDS = ("kill before", "kill after", "ENOSPC", "EIO")

NEEDS_SPACE = ("open", "write", "mkdir", "allocate")
"""The operations that a full disk refuses for as long as it is full."""

STAGES = {
    "train": ("train-member",),
    "fit": ("fit-stacker",),
    "predict": ("predict",),
    "fit again": ("fit-stacker", "--stacker", "mean"),
    "predict again": ("predict", "--tta"),
}
"""The commands that are disturbed, each on what those above it have left. The last two replace older files."""


def trials(data: Path, seed: int) -> tuple[Trial, int | None]:
    """Return the trial, and how many different ones there are: one for each operation and kind of fault."""
    stages = {name: _Stage(name, data) for name in STAGES}
    plan = [(stage, at, kind) for stage in stages.values() for at in range(len(stage.operations)) for kind in KINDS]

    def trial(lane: int, number: int) -> Outcome:
        stage, at, kind = plan[number]
        where = f"{stage.name}: {kind} {stage.operations[at]}"
        failure, ended = stage.disturb(data / f"disk-{lane}", at, kind)
        word = kind if ended < 0 else f"{kind}, exit {ended}"
        return Outcome(failure and f"{where}: {failure}", {f"{stage.name}": 1, word: 1})

    return trial, len(plan)


class _Stage:
    """A command, what lies on disk before it, and what it makes."""

    def __init__(self, name: str, data: Path) -> None:
        self.name, self._data, (self._command, *self._more) = name, data, STAGES[name]
        first, *others = STAGES
        next_name = dict(zip(STAGES, [*others, "end"], strict=True))[name]
        self._before, after = data / f"before-{name}", data / f"before-{next_name}"
        if name == first:
            tiny_run.fresh(self._before)
        work = tiny_run.fresh(data / "disk-work", self._before)
        faults = _Faults(work)
        with open(data / "operations", "wb") as log:
            ended = tiny_run.Child(lambda: faults.counted(lambda: self._run(work), log.fileno())).ended()
        if ended.status:
            raise RuntimeError(f"{name} fails without a fault: {ended.text}")
        self.operations = (data / "operations").read_text().splitlines()
        tiny_run.fresh(after, work)
        self._expected, self._whole = tiny_run.results(after), tiny_run.hashes(after)
        self._older = tiny_run.hashes(self._before)

    def _run(self, folder: Path) -> tiny_run.Ended:
        return tiny_run.run(self._command, self._data, folder / "run", *self._more)

    def disturb(self, folder: Path, at: int, kind: str) -> tuple[str, int]:
        """Disturb one operation; return what is wrong then, and how the command has ended."""
        tiny_run.fresh(folder, self._before)
        faults = _Faults(folder, at, kind)
        ended = tiny_run.Child(lambda: faults.applied(lambda: self._run(folder))).ended()
        return self._failure(folder, ended, kind), ended.status

    def _failure(self, folder: Path, ended: tiny_run.Ended, kind: str) -> str:
        if kind.startswith("kill"):
            if ended.status != -signal.SIGKILL:
                return f"not killed, but ended with {ended.status}"
        elif not (ended.status == 0 or ended.is_refusal(6)):
            return f"ended with {ended.status}: {ended.text[-300:]}"
        if lost := sorted(self._older.keys() - tiny_run.stored(folder)):
            return f"lost: {lost}"
        if torn := [path for path in tiny_run.torn(folder, self._whole) if not self._is_older(folder, Path(path))]:
            return f"torn: {torn}"
        if ended.status == 0 and (differs := tiny_run.differences(tiny_run.results(folder), self._expected)):
            return f"exit status 0 with other results: {differs}"
        again = tiny_run.Child(lambda: self._run(folder)).ended()
        if again.status:
            return f"the same command ends with {again.status}: {again.text[-300:]}"
        if differs := tiny_run.differences(tiny_run.results(folder), self._expected):
            return f"other results: {differs}"
        left = tiny_run.left_behind(folder)
        return f"left behind: {left}" if left else ""

    def _is_older(self, folder: Path, path: Path) -> bool:
        return self._older.get(str(path.relative_to(folder))) == tiny_run.sha256(path)


class _Faults:
    """Counts the operations below a folder, and disturbs the one whose number is `at`."""

    def __init__(self, folder: Path, at: int = -1, kind: str = "") -> None:
        self._folder, self._at, self._kind = str(folder), at, kind
        self._done, self._log, self._is_full = 0, -1, False

    def counted(self, work: Callable[[], tiny_run.Ended], log: int) -> tiny_run.Ended:
        """Do the work, and write a line for each operation."""
        self._log = log
        return self.applied(work)

    def applied(self, work: Callable[[], tiny_run.Ended]) -> tiny_run.Ended:
        """Do the work with operations that may fail. The process must end afterwards."""
        for name in ("rename", "replace", "unlink", "remove", "mkdir", "rmdir"):
            setattr(os, name, self._of_path(name, getattr(os, name)))
        for name, kind in (("fsync", "fsync"), ("posix_fallocate", "allocate")):
            setattr(os, name, self._of_descriptor(kind, getattr(os, name)))
        os.open = self._open_descriptor(os.open)  # type: ignore[assignment]
        builtins.open = io.open = self._open(open)  # type: ignore[assignment]
        import numpy.lib._format_impl

        numpy.lib._format_impl.isfileobj = lambda _: False  # so that numpy writes through the file object
        return work()

    def operation(self, name: str, path: object, work: Callable[[], Any], in_part: Callable[[], Any] = int) -> Any:
        number, self._done = self._done, self._done + 1
        if self._log >= 0:
            os.write(self._log, f"{name} {os.path.relpath(str(path), self._folder)}\n".encode())
        if number == self._at:
            if self._kind == "kill before":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._kind == "kill after":
                try:
                    work()
                finally:
                    os.kill(os.getpid(), signal.SIGKILL)
            self._is_full = self._kind == "ENOSPC"
            in_part()
            raise OSError(getattr(errno, self._kind), os.strerror(getattr(errno, self._kind)), str(path))
        if self._is_full and name in NEEDS_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return work()

    def _is_below(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(os.fspath(path)).startswith(self._folder)

    def _of_path(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def hooked(path: Any, *rest: Any, **named: Any) -> Any:
            in_rmtree = named.get("dir_fd") is not None
            if in_rmtree or (self._is_below(path) and (name == "mkdir" or os.path.lexists(path))):
                return self.operation(name, path, lambda: function(path, *rest, **named))
            return function(path, *rest, **named)

        return hooked

    def _of_descriptor(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def hooked(descriptor: int, *rest: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            return self.operation(name, path, lambda: function(descriptor, *rest))

        return hooked

    def _open_descriptor(self, function: Callable[..., int]) -> Callable[..., int]:
        def hooked(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & os.O_CREAT and self._is_below(path):
                opened: int = self.operation("open", path, lambda: function(path, flags, *rest, **named))
                return opened
            return function(path, flags, *rest, **named)

        return hooked

    def _open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        faults = self

        class File(io.FileIO):
            def write(self, data: Any, /) -> int:
                def half() -> None:
                    io.FileIO.write(self, bytes(data)[: len(data) // 2])

                written: int = faults.operation("write", self.name, lambda: io.FileIO.write(self, data), half)
                return written

        def hooked(path: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or not self._is_below(path):
                return function(path, mode, buffering, *rest, **named)
            binary = mode.replace("b", "").replace("t", "")
            raw = self.operation("open", path, lambda: File(path, binary))
            buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **named)

        return hooked
