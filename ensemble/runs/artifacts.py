"""JSON files of a run whose hashes `run.json` records: a file that was exchanged or edited is not believed.

A file is written in three steps under the lock of the run: its former and its new hash are recorded, the file is
replaced, the former hash is removed. A process that is killed between two steps leaves a file with one of the recorded
hashes. A file without a recorded hash, as in runs of older versions, is accepted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ensemble.errors import ArtifactError
from ensemble.runs import files
from ensemble.runs.locks import locked

RESTORE = "restore run.json from a copy, or use another --run"
"""The remedy where `run.json` itself is damaged."""

T = TypeVar("T")


def write_recorded(run: Path, path: Path, value: object) -> str:
    """Write a JSON file of a run, record its hash in `run.json`, and return the hash.

    Parameters
    ----------
    run : Path
        The run's folder, which this process has not locked. Nothing is recorded where it has no `run.json`.
    path : Path
        A file below `run`.
    value : dataclass or mapping
    """
    data = files.json_bytes(value)
    sha256 = hashlib.sha256(data).hexdigest()
    if not (run / "run.json").exists():
        return files.write_whole(path, data)
    with locked(run, wait=True):
        hashes = recorded(run, path)
        present = files.file_sha256(path) if path.is_file() else None
        former = [present] if present and (present in hashes or not hashes) else []
        _record(run, path, [*former, sha256])
        files.write_whole(path, data)
        _record(run, path, [sha256])
    return sha256


def read_recorded(run: Path, path: Path, type_: type[T], remedy: str, migrate: files.Migrate | None = None) -> T:
    """Read a JSON file of a run as `files.read_json` does, and check it against the hash in `run.json`.

    Raises
    ------
    ArtifactError
        As `files.read_json`, also where the file is not the recorded one.
    """
    while True:
        hashes = recorded(run, path)
        try:
            return files.read_json(path, type_, remedy, migrate, hashes)
        except ArtifactError:
            if recorded(run, path) == hashes:  # otherwise another process has just written the file
                raise


def recorded(run: Path, path: Path) -> Sequence[str]:
    """Return the hashes of which a file must have one; none where nothing is recorded.

    Raises
    ------
    ArtifactError
        `run.json` is damaged.
    """
    return recorded_files(run).get(path.relative_to(run).as_posix(), ())


def recorded_files(run: Path) -> dict[str, tuple[str, ...]]:
    """Return the recorded hashes of each file by its path in the run's folder; nothing without `run.json`."""
    path = run / "run.json"
    return files.read_json(path, _Recorded, RESTORE).artifacts if path.exists() else {}


def forget_below(run: Path, folder: Path) -> None:
    """Remove the recorded hashes of the files below a folder, which is to be removed."""

    def inside(name: str) -> bool:
        return (run / name).is_relative_to(folder)

    if any(map(inside, recorded_files(run))):
        with locked(run, wait=True):
            _write(run, {name: hashes for name, hashes in recorded_files(run).items() if not inside(name)})


@dataclass(frozen=True)
class _Recorded:
    artifacts: dict[str, tuple[str, ...]] = field(default_factory=dict)


def _record(run: Path, path: Path, hashes: Sequence[str]) -> None:
    before, name = recorded_files(run), path.relative_to(run).as_posix()
    if before.get(name) != tuple(hashes):
        _write(run, {**before, name: tuple(hashes)})


def _write(run: Path, artifacts: dict[str, tuple[str, ...]]) -> None:
    content = files.read_json(run / "run.json", dict[str, Any], RESTORE)
    files.write_json(run / "run.json", {**content, "artifacts": artifacts})
