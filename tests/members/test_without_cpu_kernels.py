"""`members/cpu` is optional: a copy of the package without it trains and predicts the same, only slower."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_tiny

PACKAGE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without")
    for name in ("ensemble", "thera"):
        shutil.copytree(PACKAGE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(folder / "ensemble" / "members" / "cpu", ignore_errors=True)  # someone may have deleted it
    return folder


def thera(root: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "thera", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    return done


def test_a_run_is_the_same_without_the_kernels(without: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny", 24)
    images, results = tmp_path / "tiny/img", []
    for root in (PACKAGE, without):
        run = tmp_path / root.name
        train = ["train-member", "--arch", "test_resnet", "--pretrained", "no", "--folds", 2, "--epochs", 2]
        given = ["--batch-size", 8, "--images", images, "--labels", tmp_path / "tiny/labels.txt"]
        thera(root, *train, *given, "--run", run, "--device", "cpu", "--jobs", 1)
        thera(root, "fit-stacker", "--run", run)
        thera(root, "predict", "--run", run, "--images", images, "--out", run / "l.txt", "--device", "cpu", "--jobs", 1)
        oof = [(run / f"members/test_resnet/fold-{fold}/oof.csv").read_bytes() for fold in range(2)]
        results.append([*oof, (run / "l.txt").read_bytes()])
    assert results[0] == results[1]


def test_no_plan_uses_the_kernels_that_are_not_there(without: Path) -> None:
    code = """
import torch
from ensemble.members.plans import KINDS, Plan, possible_plans
assert KINDS == {"train": ("native",), "predict": ("native",)}, KINDS
assert possible_plans("fp32", "lowered", torch.device("cpu"), 64, "train") == (Plan("fp32"),)
assert possible_plans("fp32", "fused", torch.device("cpu"), 64, "predict") == (Plan("fp32"),)
"""
    environment = os.environ | {"PYTHONPATH": str(without)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120, cwd=without)
