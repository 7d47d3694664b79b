"""The check at the end of a session finds processes, also orphans, held locks and temporary files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from leftovers import MARK, held_locks, processes, temporary_files

from ensemble.runs.locks import locked

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")

ORPHAN = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0, stdout=2).pid)"
"""Starts a process, prints its number, and ends before it."""


def test_a_running_process_is_found_until_it_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    assert [each for each in processes("another", within_s=0) if each.startswith(f"{child.pid}: ")]
    child.communicate("\n")
    assert not [each for each in processes("another", within_s=5) if each.startswith(f"{child.pid}: ")]


def test_a_process_whose_parent_has_ended_is_found() -> None:
    reading, writing = os.pipe()
    environment = {**os.environ, MARK: "of this test"}
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN], stdin=reading, stdout=subprocess.PIPE, env=environment, text=True, check=True
    )
    os.close(reading)
    orphan = f"{done.stdout.strip()}: "  # other children of this process, such as a browser, do not matter
    assert [each for each in processes("of this test", within_s=0) if each.startswith(orphan)]
    os.close(writing)
    assert not [each for each in processes("of this test", within_s=5) if each.startswith(orphan)]


def test_a_held_lock_is_found(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert held_locks() == [str(tmp_path / ".lock")]
    assert held_locks() == []


def test_temporary_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "tests" / "run").mkdir(parents=True)
    (tmp_path / "system" / "pymp-1").mkdir(parents=True)
    assert temporary_files(tmp_path / "tests", tmp_path / "system") == []
    paths = [tmp_path / "system" / "decoding-1", tmp_path / "tests" / "run" / ".run.json.host.1.ab.tmp"]
    for path in paths:
        path.touch()
    assert temporary_files(tmp_path / "tests", tmp_path / "system") == sorted(map(str, paths))
    for path in paths:
        path.unlink()
