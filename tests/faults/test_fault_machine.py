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
from ensemble.errors import ResourceError
from ensemble.members import process_start

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
        monkeypatch.setenv(name, "")  # so that it is restored even if the code under test sets it
        monkeypatch.delenv(name)
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
        monkeypatch.setenv(name, "")  # so that it is restored even if the code under test sets it
        monkeypatch.delenv(name)
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
    code = "import os; os.path.expanduser = lambda path: path; import ensemble.members.probe_cache as probe; "
    code += "from huggingface_hub import constants; import torch; probe.write_cache({}); "
    code += "print(constants.HF_HUB_CACHE, torch.hub.get_dir(), probe.cache_file(), sep='\\n')"
    (tmp_path / "work").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in HOMELESS}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=True)
    own = f"{tmp_path}/tmp/thera-{os.getuid()}/"
    assert [line[: len(own)] for line in done.stdout.splitlines()] == [own] * 3, done.stdout
    assert list((tmp_path / "work").iterdir()) == [] and done.stderr == ""


# --- processes --------------------------------------------------------------------------------------------------------

SCRIPT = """
import jobs, numpy as np, torch
from ensemble.config import MemberConfig
from ensemble.machine import available_cores
from ensemble.members.fold_job import FoldJob
from ensemble.members.processes import MappedPixels, Workers
from ensemble.members.sampling import batches_of
from ensemble.progress import progress

print("imported", flush=True)
pixels, rows = MappedPixels(np.ones((8, 8, 8, 3), np.uint8)), np.arange(8)
with Workers() as workers, progress(1, "test") as bar:
    print(list(workers.run(jobs.total, [(pixels,)], [available_cores() + available_cores()[-1:]], bar)), flush=True)
member = MemberConfig(arch="lenet", epochs=1, batch_size=4)
job = FoldJob(member, pixels, rows % 2, rows.astype(str), rows, fold=0, seed=0)
print(len(list(batches_of(job, 0, 1, torch.device("cpu")))))
"""
"""A script without `if __name__ == "__main__":` that starts processes in both ways of the library."""


def test_a_script_without_a_guard_starts_processes_with_a_long_temporary_path(tmp_path: Path) -> None:
    long = tmp_path / ("t" * 120)
    long.mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/members")])
    environment = os.environ | {"PYTHONPATH": paths, "TMPDIR": str(long), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "imported\n[(0, (1536, False))]\n2\n", "a process has run the script"
    assert list(long.glob("pymp-*")) == []


def test_processes_import_the_script_if_networks_are_registered_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    script = sys.modules["__main__"]
    with process_start.starting_processes():
        assert sys.modules["__main__"] is not script
    assert sys.modules["__main__"] is script
    modules = process_start.timm.list_modules()
    monkeypatch.setattr(process_start.timm, "list_modules", lambda: [*modules, "__main__"])
    with process_start.starting_processes():
        assert sys.modules["__main__"] is script


def test_a_temporary_path_that_is_too_long_without_a_shorter_one(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = temporary / ("t" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(process_start, "SHORT_FOLDERS", ())
    with pytest.raises(ResourceError) as caught, process_start.starting_processes():
        raise AssertionError("started")
    remedy = "set it to a folder with a path of at most 70 bytes"
    assert str(caught.value) == f"TMPDIR: {long} is too long for the path of a socket; {remedy}"
    assert list(long.iterdir()) == []
