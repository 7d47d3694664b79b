"""A run where what only POSIX systems have is hidden: it works, without the speed and the pinning that it gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_tiny

ROOT = Path(__file__).parents[1]
HIDDEN = (
    *("sched_getaffinity", "sched_setaffinity", "posix_fallocate", "posix_fadvise", "register_at_fork"),
    *("getuid", "geteuid", "uname"),
)
WITHOUT = f"""
import multiprocessing.resource_tracker, os, signal, sys
import torch, timm, pandas, sklearn, scipy.stats, filelock, asyncio  # they may use what is hidden
for name in {HIDDEN!r}:
    if hasattr(os, name):
        delattr(os, name)
del signal.SIGBUS, signal.pthread_sigmask
multiprocessing.resource_tracker._HAVE_SIGMASK = False
sys.modules["fcntl"] = sys.modules["resource"] = None
from ensemble.cli import main
for command in {{commands!r}}:
    status = main(command)
    assert not status, (command, status)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, the other tests show it")
def test_a_run_without_what_only_posix_systems_have(tmp_path: Path) -> None:
    write_tiny(tmp_path / "train", 40)
    write_tiny(tmp_path / "new", 8, seed=1)
    train = ["train-member", "--arch", "test_resnet", "--pretrained", "no", "--epochs", "1", "--batch-size", "8"]
    train += ["--images", "train/img", "--labels", "train/labels.txt", "--folds", "2", "--run", "run", "--workers", "1"]
    predict = ["predict", "new/img", "--run", "run", "--tta"]
    commands = [[*train, "--jobs", "2"], ["fit-stacker", "--run", "run"], predict, ["report", "run"], ["verify", "run"]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = WITHOUT.format(commands=commands)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len((tmp_path / "run/label_val.txt").read_text().split()) == 8
