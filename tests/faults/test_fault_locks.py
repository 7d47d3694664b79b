"""Faults 24 and 40 of the table: what is no lock file, what is no output file, and file systems without locks."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny

from ensemble.cli import main
from ensemble.errors import ConfigError, LockedError, ResourceError
from ensemble.runs import files, locks
from ensemble.runs.label_files import checked_target
from ensemble.runs.locks import locked
from ensemble.runs.run import Run


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


KINDS: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to("precious"),
    "a folder": lambda path: (path / "precious").mkdir(parents=True),
    "a pipe": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
}


def made(kind: str, path: Path) -> tuple[int, int]:
    """Make what is no regular file, and return its identity."""
    try:
        KINDS[kind](path)
    except PermissionError:
        pytest.skip("only root makes devices")
    return path.lstat().st_ino, path.lstat().st_mode


@pytest.mark.parametrize("name", [locks.LOCK, locks.MARKER, locks.HOLDER])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_lock_file_is_refused_and_stays(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "precious").write_text("precious")
    identity = made(kind, tmp_path / name)
    with pytest.raises(ResourceError) as caught, locked(tmp_path):
        raise AssertionError("locked")
    assert str(caught.value) == f"{tmp_path / name}: is {kind} and no lock file; remove it if nothing works there"
    assert ((tmp_path / name).lstat().st_ino, (tmp_path / name).lstat().st_mode) == identity
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_replaces_nothing_but_a_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "precious").write_text("precious")
    identity = made(kind, tmp_path / "out")
    with pytest.raises(ResourceError, match=f"out: cannot be written: {kind} is not replaced; remove it, or"):
        files.write_whole(tmp_path / "out", b"data")
    with pytest.raises(ConfigError, match=r"--out .*: is a "):
        checked_target(Run(tmp_path / "run"), tmp_path / "out", np.array(["1.png"]), force=True)
    assert ((tmp_path / "out").lstat().st_ino, (tmp_path / "out").lstat().st_mode) == identity
    assert (tmp_path / "precious").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_command_refuses_a_linked_lock_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny(tmp_path, 12)
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run/.lock").symlink_to(tmp_path / "precious")
    command = ["train-member", "--arch", "lenet", "--images", str(tmp_path / "img"), "--run", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--labels", str(tmp_path / "labels.txt"), "--folds", "2"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 6 and "/.lock: is a link and no lock file; remove it" in line
    assert (tmp_path / "precious").read_text() == "precious"


# --- file systems without locks ---------------------------------------------------------------------------------------


def refuse_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_marker_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    refuse_locks(monkeypatch, number)
    (tmp_path / ".lock").write_bytes(b"")  # of an earlier run, on another file system
    said: list[str] = []
    for _ in range(2):
        with locked(tmp_path, say=said.append):
            assert (tmp_path / ".lock.marker").read_text().splitlines()[:2] == [str(os.getpid()), socket.gethostname()]
            started = time.monotonic()
            with pytest.raises(LockedError) as caught, locked(tmp_path):
                raise AssertionError("both are in")
            assert time.monotonic() - started < 1
            assert str(caught.value) == (
                f"{tmp_path}: pid {os.getpid()} on {socket.gethostname()} works here; wait for it, or stop it first; "
                f"if it no longer runs, remove {tmp_path / '.lock.marker'}"
            )
        assert not (tmp_path / ".lock.marker").exists()
    assert said == [f"note: {tmp_path}: the file system has no locks; the file .lock.marker stands in for one"] * 2


def test_the_marker_of_a_killed_process_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch, errno.ENOLCK)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / ".lock.marker").write_text(f"{ended.pid}\n{socket.gethostname()}\n")
    with locked(tmp_path, wait=True):
        assert (tmp_path / ".lock.marker").read_text().splitlines()[0] == str(os.getpid())


def test_the_marker_of_another_host_is_waited_for_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch, errno.ENOLCK)
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    (tmp_path / ".lock.marker").write_text("1\nanother\n")
    (tmp_path / ".lock.holder").write_text("pid 1 on another")
    with (
        pytest.raises(LockedError, match=r"pid 1 on another works here; .* remove .*\.lock\.marker$"),
        locked(tmp_path, wait=True),
    ):
        raise AssertionError("taken over")
    assert (tmp_path / ".lock.holder").read_text() == "pid 1 on another"


def test_another_error_of_the_file_system_is_no_lack_of_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch, errno.EIO)
    with pytest.raises(ResourceError, match=r"cannot be written \(Input/output error\)"), locked(tmp_path):
        raise AssertionError("locked")
