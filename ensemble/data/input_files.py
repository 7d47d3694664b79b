"""The files that the images of a list come from, archives and manifests, and whether one was changed since then."""

from __future__ import annotations

import datetime
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ensemble.errors import ArtifactError, printable

RESTORE = "restore it, with its time of modification, or give another folder as --shards"
"""The remedy where an archive is another than the listed one."""

RESTORE_CONTENT = "restore it, or give another folder as --shards"
"""The remedy where a file is missing, or a manifest has another content than the listed one."""


LIST_WHEN_COMPLETE = "give the same command again once the file is complete"
"""The remedy where a file is changed while it is listed."""


@dataclass(frozen=True)
class InputFile:
    """An archive or a manifest as it was when its images were listed.

    Attributes
    ----------
    path : str
        The absolute path.
    size : int
        In bytes.
    mtime_ns : int
        The time of the last modification, in nanoseconds since 1970.
    sha256 : str
        Of the content of a manifest; empty for an archive, which may be too large to be hashed at every start.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str = ""

    @classmethod
    def of(cls, path: Path, hashed: bool = False) -> InputFile:
        """Return a file as it is now."""
        facts, sha256 = path.stat(), ""
        if hashed:
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(os.path.abspath(path), facts.st_size, facts.st_mtime_ns, sha256)

    def check(self, remedy: str = "") -> None:
        """Raise `ArtifactError` unless the file is there and has the hash, or else the size and time, that it had.

        The remedy is by default to restore it.
        """
        where = printable(self.path)
        try:
            now = InputFile.of(Path(self.path), hashed=bool(self.sha256))
        except OSError as error:
            problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            raise ArtifactError(where, f"{problem}, but was listed", remedy or RESTORE_CONTENT) from None
        if now.sha256 != self.sha256:
            raise ArtifactError(where, "was changed after it was listed (its hash differs)", remedy or RESTORE_CONTENT)
        if not self.sha256:
            check_unchanged(where, (self.size, self.mtime_ns), (now.size, now.mtime_ns), remedy)


def check_unchanged(where: str, before: tuple[int, int], now: tuple[int, int], remedy: str = "") -> None:
    """Raise `ArtifactError` unless an archive has the size and the time of modification that it had when listed.

    Parameters
    ----------
    where : str
        The archive, for messages.
    before, now : (int, int)
        Its size and time, as in `InputFile`.
    remedy : str
        By default, to restore it.
    """
    problem = "was changed after it was listed"
    if now[0] != before[0]:
        raise ArtifactError(where, f"{problem}: it had {before[0]} bytes and has {now[0]}", remedy or RESTORE)
    if now[1] != before[1]:
        times = f"it was modified at {_time(before[1])} and then at {_time(now[1])}"
        raise ArtifactError(where, f"{problem}: {times}", remedy or RESTORE)


def _time(ns: int) -> str:
    """Return a time to the nanosecond, which may be all that differs."""
    seconds, rest = divmod(ns, 10**9)
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
