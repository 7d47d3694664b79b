"""Faults of the machine: no home, no user entry, long temporary paths, scripts and modules of the user."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ensemble import machine

ROOT = Path(__file__).parents[2]

HOMELESS = {"HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "HF_HOME"}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the temporary folder of the test."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    machine._temporary_cache.cache_clear()
    return tmp_path / "tmp"


def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HOMELESS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it is without HOME and without a user entry


# --- the cache folder -------------------------------------------------------------------------------------------------


def test_without_a_home_the_cache_is_a_private_temporary_folder(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_home(monkeypatch)
    folder = machine.cache_folder()
    assert folder == temporary / f"thera-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert machine.cache_folder() == folder, "the specification ignores relative paths"
    monkeypatch.setenv("XDG_CACHE_HOME", "/given")
    assert machine.cache_folder() == Path("/given")


@pytest.mark.parametrize("taken", ["link", "file", "writable by others"])
def test_a_folder_of_another_user_is_no_cache(temporary: Path, monkeypatch: pytest.MonkeyPatch, taken: str) -> None:
    without_home(monkeypatch)
    path = temporary / f"thera-{os.getuid()}"
    if taken == "link":
        (temporary / "theirs").mkdir()
        path.symlink_to(temporary / "theirs")
    elif taken == "file":
        path.write_bytes(b"")
    else:
        path.mkdir()
        path.chmod(0o777)
    folder = machine.cache_folder()
    assert folder != path and folder.parent == temporary and folder == machine.cache_folder()


def test_a_home_that_cannot_be_written_is_still_read(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in HOMELESS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert machine.cache_folder() == tmp_path / ".cache"
    machine.provide_cache_folder()
    assert "MPLCONFIGDIR" not in os.environ
    monkeypatch.setattr(os, "access", lambda *_: False)
    machine.provide_cache_folder()
    assert machine.cache_folder() == temporary / f"thera-{os.getuid()}"
    assert os.environ["MPLCONFIGDIR"] == f"{machine.cache_folder()}/matplotlib"
    assert "XDG_CACHE_HOME" not in os.environ, "the hub's client reads its cache there"


def test_no_library_makes_a_folder_called_tilde(tmp_path: Path) -> None:
    code = "import os; os.path.expanduser = lambda path: path; import ensemble.members.probe as probe; "
    code += "from huggingface_hub import constants; import torch; probe._write({}); "
    code += "print(constants.HF_HUB_CACHE, torch.hub.get_dir(), probe._file(), sep='\\n')"
    (tmp_path / "work").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in HOMELESS}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=True)
    assert all(line.startswith(f"{tmp_path}/tmp/thera-{os.getuid()}/") for line in done.stdout.splitlines()), (
        done.stdout
    )
    assert list((tmp_path / "work").iterdir()) == [] and done.stderr == ""
