"""`--log tensorboard`: the scalars are the recorded history, each once, whatever interrupts the training."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import listing, write_tiny

from ensemble.cli import main
from ensemble.commands import checks
from ensemble.commands.train import train_members
from ensemble.config import ComputeConfig, DataConfig, MemberConfig
from ensemble.errors import ResourceError, Stopped
from ensemble.progress import Bar
from ensemble.runs.run import Run

pytest.importorskip("tensorboard", reason="the extra thera[tensorboard] is not installed")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ensemble.members.tensorboard_log import TensorBoardLog, read_scalars

LOGGED = ComputeConfig(device="cpu", jobs=1, log="tensorboard")


def member(**values: Any) -> MemberConfig:
    return MemberConfig(arch="test_resnet", name="a", pretrained=False, batch_size=8, **{"epochs": 3} | values)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    write_tiny(tmp_path / "tiny", 24)
    return DataConfig(images=tmp_path / "tiny/img", labels=tmp_path / "tiny/labels.txt")


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) by tag in the order of steps, with repetitions.

    TensorBoard reads files in the order of their names, which hold a second and a process's count; files that one
    process begins within a second may be read in another order than they were written.
    """
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: sorted((each.step, each.value) for each in read.Scalars(tag)) for tag in read.Tags()["scalars"]}


def recorded(run: Path, fold: int, name: str = "a") -> dict[str, list[tuple[int, float]]]:
    """Return the history of a fold in the same form, in the precision of TensorBoard."""
    history = Run(run).member(name).history(fold)
    assert history
    tags = ("loss", "lr", "hter")
    return {tag: [(epoch["epoch"], float(np.float32(epoch[tag]))) for epoch in history] for tag in tags}


def stop_after(notes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the training, as a signal does, after this many epochs of all folds together."""
    real, seen = Bar.note, []

    def note(self: Bar, text: str) -> None:
        real(self, text)
        seen.append(text)
        if len(seen) == notes:
            raise Stopped("thera", "stopped by SIGTERM")

    monkeypatch.setattr(Bar, "note", note)


def test_the_scalars_are_the_recorded_history(data: DataConfig, tmp_path: Path) -> None:
    train_members(tmp_path / "run", [member()], data, 2, 0, LOGGED)
    for fold in range(2):
        logged = events(tmp_path / f"run/tensorboard/a/fold-{fold}")
        assert logged == recorded(tmp_path / "run", fold)
        assert [step for step, _ in logged["loss"]] == [1, 2, 3]


def test_an_epoch_is_logged_when_it_ends(data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = Bar.note, []

    def note(self: Bar, text: str) -> None:
        real(self, text)
        seen.append(len(events(tmp_path / "run/tensorboard/a/fold-0")["loss"]))

    monkeypatch.setattr(Bar, "note", note)
    train_members(tmp_path / "run", [member()], data, 2, 0, LOGGED)
    assert seen == [1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("notes", [1, 2, 4])
def test_a_training_that_goes_on_writes_no_step_twice(
    notes: int, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(notes, patch)
        train_members(tmp_path / "run", [member()], data, 2, 0, LOGGED)
    before = listing(tmp_path / "run/tensorboard")
    train_members(tmp_path / "run", [member()], data, 2, 0, LOGGED)
    for fold in range(2):
        assert events(tmp_path / f"run/tensorboard/a/fold-{fold}") == recorded(tmp_path / "run", fold)
    after = listing(tmp_path / "run/tensorboard")
    assert before.items() <= after.items(), "what was logged before the stop stays"


def test_a_step_that_was_cut_off_by_a_kill_is_written_again(data: DataConfig, tmp_path: Path) -> None:
    train_members(tmp_path / "run", [member()], data, 2, 0, LOGGED)
    (path,) = (tmp_path / "run/tensorboard/a/fold-0").iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    train_members(tmp_path / "run", [member()], data, 2, 0, LOGGED)
    assert events(path.parent) == recorded(tmp_path / "run", 0)


def test_a_finished_run_is_logged_afterwards(data: DataConfig, tmp_path: Path) -> None:
    train_members(tmp_path / "run", [member()], data, 2, 0, ComputeConfig(device="cpu", jobs=1))
    assert not (tmp_path / "run/tensorboard").exists()
    train_members(tmp_path / "run", [member()], data, 2, 0, LOGGED)
    for fold in range(2):
        assert events(tmp_path / f"run/tensorboard/a/fold-{fold}") == recorded(tmp_path / "run", fold)


def test_a_member_that_is_trained_anew_replaces_its_log(tmp_path: Path) -> None:
    log, folder = TensorBoardLog(tmp_path), tmp_path / "a/fold-0"
    log.write("a/fold-0", [{"epoch": 1, "loss": 0.5, "seconds": 9.0}, {"epoch": 2, "loss": 0.25, "seconds": 9.0}])
    log.write("b/fold-0", [{"epoch": 1, "loss": 0.125, "hter": None}])
    log.write("a/fold-0", [{"epoch": 1, "loss": 0.75, "seconds": 8.0}])
    log.close()
    assert events(folder) == {"loss": [(1, 0.75)]}
    assert read_scalars(tmp_path / "b/fold-0") == {("loss", 1): 0.125}
    assert Counter(path.parent for path in tmp_path.rglob("events.*")) == {folder: 1, tmp_path / "b/fold-0": 1}


def test_the_event_files_are_no_artifacts(data: DataConfig, tmp_path: Path) -> None:
    train_members(tmp_path / "run", [member(epochs=1)], data, 2, 0, LOGGED)
    assert not any("tensorboard" in name for name in Run(tmp_path / "run").read().artifacts)
    for path in (tmp_path / "run/tensorboard").rglob("events.*"):
        path.unlink()
    assert main(["verify", str(tmp_path / "run")]) is None


def test_run_logs_each_member(data: DataConfig, tmp_path: Path) -> None:
    members = "[{arch: test_resnet, name: a, pretrained: false, epochs: 1, batch_size: 8}]"
    (tmp_path / "c.yaml").write_text(
        f"run: {tmp_path}/run\nfolds: 2\ndata: {{images: {data.images}, labels: {data.labels}}}\nmembers: {members}\n"
    )
    main(["run", str(tmp_path / "c.yaml"), "--log", "tensorboard", "--device", "cpu", "--jobs", "1"])
    assert events(tmp_path / "run/tensorboard/a/fold-1") == recorded(tmp_path / "run", 1)


MISSING = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "tensorboard" else real(name, *rest)
from ensemble.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""


@pytest.mark.parametrize("command", ["train-member", "fit", "run", "trial", "demo"])
def test_without_the_package_it_is_refused_at_once(command: str, data: DataConfig, tmp_path: Path) -> None:
    images = ["--images", str(data.images), "--labels", str(data.labels)]
    (tmp_path / "c.yaml").write_text(
        f"run: r\nfolds: 2\ndata: {{images: {data.images}, labels: {data.labels}}}\nmembers: [{{arch: resnet18}}]\n"
    )
    options = {
        "train-member": ["--run", "r", "--arch", "resnet18", *images],
        "fit": [str(data.images), "--labels", str(data.labels), "--run", "r"],
        "run": ["c.yaml"],
        "trial": ["c.yaml"],
        "demo": ["--run", "r"],
    }[command]
    before, started = sorted(tmp_path.iterdir()), time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", MISSING, command, *options, "--log", "tensorboard"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert time.monotonic() - started < 10  # a busy machine; alone it takes less than a second
    assert ended.stderr.splitlines() == [
        "error: --log tensorboard: needs the package tensorboard; pip install 'thera[tensorboard]'"
    ]
    assert ended.stdout == "6 False\n"
    assert sorted(tmp_path.iterdir()) == before


def test_the_package_is_looked_for_where_a_log_is_requested_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.extras.find_spec", lambda _: None)
    checks.check_compute(ComputeConfig(device="cpu"))
    with pytest.raises(ResourceError, match="tensorboard"):
        checks.check_compute(ComputeConfig(device="cpu", log="tensorboard"))
