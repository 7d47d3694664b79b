"""What all tests share: a quiet library, no deadlines, own folders, and a check that nothing is left behind."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import browser as browser
from browser import open_page as open_page
from hypothesis import settings
from leftovers import MARK, held_locks, processes, temporary_files

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the model hub
settings.register_profile("thera", deadline=None)  # a busy machine is no fault
settings.load_profile("thera")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what probes find in a folder of this session, for the processes that tests start, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """With THERA_LEFTOVERS=1, fail if at the end a process of the tests runs, a lock is held, or a file remains.

    The temporary folder is then another, which tests that make sockets in long paths do not expect.
    """
    if not os.environ.get("THERA_LEFTOVERS"):
        yield
        return
    tests = tmp_path_factory.getbasetemp()  # made in the system's folder, before that is another
    mark, folder = secrets.token_hex(8), Path(tempfile.mkdtemp(prefix="thera-tests-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        try:
            yield
            left = [*processes(mark), *held_locks(), *temporary_files(tests, folder)]
            assert left == [], f"the tests have left behind: {left}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
