"""States that a thread writes, as of a training on a GPU: by time, from a copy, and to the same bytes when resumed."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemble.config import VIEWS, MemberConfig
from ensemble.errors import ResourceError, Stopped
from ensemble.members import training
from ensemble.members.fold_job import FoldJob
from ensemble.members.learner import Learner
from ensemble.members.parallel import Task, train_together
from ensemble.members.plans import Plan
from ensemble.members.processes import MappedPixels
from ensemble.members.saving import BackgroundSaves, Saves, saves_on
from ensemble.members.training import FoldResult
from ensemble.runs.training_state import StateFolder

CPU, N, FOLDS, BATCH, UPDATES, EPOCHS = torch.device("cpu"), 96, 2, 16, 3, 3
LABELS = (np.arange(N) % 5 != 0).astype(np.int8)
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)


def task(folder: Path, fold: int = 0, save_every: float = 1e9) -> Task:
    values = {
        "arch": "lenet",
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "drop_rate": 0.5,
        "name": "m",
        "pretrained": False,
    }
    config, rows = MemberConfig.model_validate(values), np.arange(N)
    job = FoldJob(config, MappedPixels(PIXELS), LABELS, rows.astype(str), rows[rows % FOLDS != fold], fold, seed=5)
    state = StateFolder(folder / f"fold-{fold}", save_every)
    return Task(job, state, Plan("fp32"), rows[rows % FOLDS == fold], VIEWS, None)


class Bar:
    """A bar that a signal stops after so many updates."""

    def __init__(self, updates: int = -1) -> None:
        self.left, self.said = updates, []

    def advance(self, n: int = 1) -> None:
        self.left -= n == BATCH
        if self.left == 0:
            raise Stopped("thera", "stopped by SIGTERM")

    def skip(self, n: int) -> None: ...

    def note(self, text: str) -> None: ...

    def say(self, line: str) -> None:
        self.said.append(line)


def together(tasks: list[Task], bar: Bar | None = None) -> list[Any]:
    return train_together(tasks, CPU, 0, 1.0, bar or Bar())


def same(one: FoldResult, other: FoldResult) -> bool:
    histories = [[{**epoch, "seconds": 0} for epoch in each.history] for each in (one, other)]
    weights = all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)
    return weights and np.array_equal(one.logits, other.logits) and histories[0] == histories[1]


def stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("state/*.json"))


@pytest.fixture
def in_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a training on a CPU be saved as on a GPU."""
    monkeypatch.setattr(training, "saves_on", lambda device, checkpoint: BackgroundSaves(checkpoint))


@pytest.fixture(params=[Saves, BackgroundSaves])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a training on a CPU be saved as on a CPU, and as on a GPU."""
    monkeypatch.setattr(training, "saves_on", lambda device, checkpoint: request.param(checkpoint))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[FoldResult]:
    folder = tmp_path_factory.mktemp("whole")
    return [together([task(folder, fold)])[0] for fold in range(FOLDS)]


def test_a_gpu_saves_in_a_thread_and_a_cpu_at_once(tmp_path: Path) -> None:
    checkpoint = StateFolder(tmp_path)
    assert type(saves_on(CPU, checkpoint)) is Saves
    assert type(saves_on(torch.device("cuda"), checkpoint)) is BackgroundSaves


@pytest.mark.parametrize("updates", [1, UPDATES, UPDATES + 2])
def test_a_signal_saves_what_is_not_saved(tmp_path: Path, either_way: None, whole: Any, updates: int) -> None:
    """However rarely states are saved, also after the last update of an epoch; the result has the same bytes."""
    one = task(tmp_path)
    with pytest.raises(Stopped):
        together([one], Bar(updates))
    epochs, rest = divmod(updates - 1, UPDATES)
    assert stems(tmp_path / "fold-0")[-1] == f"epoch-{epochs:04d}-update-{rest + 1:08d}"
    bar = Bar()
    assert same(together([one], bar)[0], whole[0])
    within = f"update {rest + 2} of {UPDATES}" if rest + 1 < UPDATES else "after its last update"
    assert bar.said == [f"member m fold 0 goes on at epoch {epochs + 1} of {EPOCHS}, {within}"]


@pytest.mark.parametrize("updates", [UPDATES + 2, 3 * UPDATES + 1, 4 * UPDATES])
def test_a_signal_saves_every_fold(tmp_path: Path, in_thread: None, whole: Any, updates: int) -> None:
    """Those whose turn it is not, after their last epoch."""
    tasks = [task(tmp_path, fold) for fold in range(FOLDS)]
    with pytest.raises(Stopped):
        together(tasks, Bar(updates))
    assert all(stems(tmp_path / f"fold-{fold}") for fold in range(FOLDS))
    bar = Bar()
    assert all(map(same, together(tasks, bar), whole)) and len(bar.said) == FOLDS


def test_states_are_saved_by_time_and_at_the_end(
    tmp_path: Path, in_thread: None, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 10 s for each update and a state every 50 s: within the second epoch, and at the end of the third."""
    now, saved, histories, update = 0.0, [], [], Learner.update

    def passes(*given: Any) -> torch.Tensor:
        nonlocal now
        now += 10
        return update(*given)

    class Counted(StateFolder):
        def save_state(self, tensors: Any, history: Any, updates: int = 0) -> None:
            saved.append((len(history), updates))

        def write_history(self, history: Any) -> None:
            histories.append(len(history))

    monkeypatch.setattr(Learner, "update", passes)
    monkeypatch.setattr("ensemble.members.saving.time.monotonic", lambda: now)
    one = task(tmp_path)
    together([replace(one, checkpoint=Counted(tmp_path, 50))])
    assert saved == [(1, 2), (3, 0)] and histories == [1, 2, 3]


def test_the_state_is_a_copy_that_later_updates_do_not_change(
    tmp_path: Path, in_thread: None, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread writes when further updates are made; then an error ends the training, so that nothing is added."""
    go_on, done, update = threading.Event(), threading.Event(), Learner.update

    class Slow(StateFolder):
        def save_state(self, *given: Any) -> None:
            assert go_on.wait(60)
            super().save_state(*given)
            done.set()

    def updated(self: Learner, number: int, *given: Any) -> torch.Tensor:
        loss = update(self, number, *given)
        if number == UPDATES + 1:
            go_on.set()
            assert done.wait(60)
            raise InterruptedError
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", updated)
        with pytest.raises(InterruptedError):
            together([replace(task(tmp_path), checkpoint=Slow(tmp_path / "fold-0", 0))])
    assert stems(tmp_path / "fold-0") == ["epoch-0000-update-00000001"], "no second state while the first one waits"
    assert same(together([task(tmp_path)])[0], whole[0])


def test_an_error_of_the_thread_is_that_of_the_training(tmp_path: Path, in_thread: None) -> None:
    class Full(StateFolder):
        def save_state(self, *given: Any) -> None:
            raise ResourceError("state", "no space left on device")

    for save_every in (0, 1e9):  # in the next update, and at the end
        with pytest.raises(ResourceError, match="no space left"):
            together([replace(task(tmp_path), checkpoint=Full(tmp_path, save_every))])


def test_a_fold_that_failed_is_not_saved_by_a_signal(
    tmp_path: Path, in_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its losses, or its statistics, may be useless."""
    update = Learner.update

    def poisoned(self: Learner, *given: Any) -> torch.Tensor:
        return update(self, *given) * (float("nan") if self.job.fold == 0 else 1)

    monkeypatch.setattr(Learner, "update", poisoned)
    with pytest.raises(Stopped):
        together([task(tmp_path, fold) for fold in range(FOLDS)], Bar(UPDATES + 2))
    assert not stems(tmp_path / "fold-0") and stems(tmp_path / "fold-1")
