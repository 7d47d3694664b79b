"""A training that is killed within an epoch goes on to the same bytes; a loss that is not finite leaves its batch."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import faulty_jobs
import numpy as np
import pytest
import torch
from tiny import write_tiny

from ensemble.cli import main
from ensemble.config import VIEWS, MemberConfig
from ensemble.errors import ResourceError, TheraError, out_of_memory
from ensemble.members import learner, position, processes, resident, training
from ensemble.members.fold_job import FoldJob
from ensemble.members.learner import Learner
from ensemble.members.parallel import Task, train_together
from ensemble.members.plans import Plan
from ensemble.members.position import EpochLosses
from ensemble.members.processes import MappedPixels, Workers
from ensemble.members.resident import ResidentEpochs
from ensemble.members.sampling import order
from ensemble.members.training import FoldResult, Watch, train_fold
from ensemble.progress import progress
from ensemble.runs.files import read_tensors, write_tensors
from ensemble.runs.training_state import StateFolder, StateNote

CPU, PLAIN, N, FOLDS = torch.device("cpu"), Plan("fp32"), 96, 2
LABELS = (np.arange(N) % 5 != 0).astype(np.int8)
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
UPDATES = 3
"""Updates of an epoch: 48 training rows in batches of 16."""


def task(folder: Path, fold: int = 0, plan: Plan = PLAIN, **values: Any) -> Task:
    base = {"arch": "lenet", "epochs": 2, "batch_size": 16, "drop_rate": 0.5, "ema_decay": 0.9, "name": "m"}
    base["pretrained"] = False
    config, rows = MemberConfig.model_validate(base | values), np.arange(N)
    job = FoldJob(config, MappedPixels(PIXELS), LABELS, rows.astype(str), rows[rows % FOLDS != fold], fold, seed=5)
    return Task(job, StateFolder(folder / f"fold-{fold}"), plan, rows[rows % FOLDS == fold], VIEWS, None)


class StopsAt(faulty_jobs.StopsAt):
    """A state folder whose training stops once it has saved the state after some updates, as by a kill."""

    def __init__(self, folder: Path, updates: int) -> None:
        super().__init__(folder, updates, UPDATES)


def together(tasks: Sequence[Task]) -> list[FoldResult]:
    with progress(1, "test") as bar:
        return train_together(tasks, CPU, 0, 1.0, bar)  # type: ignore[return-value]


def assert_same(one: FoldResult, other: FoldResult) -> None:
    assert one.weights.keys() == other.weights.keys()
    assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert np.array_equal(one.logits, other.logits)
    histories = [[{**epoch, "seconds": 0} for epoch in each.history] for each in (one, other)]
    assert histories[0] == histories[1]


CASES: dict[str, dict[str, Any]] = {
    "every transform": {"augment": "standard"},
    "no augmentation": {"augment": "none"},
    "balanced draws": {"sampler": "balanced", "augment": "light"},
    "balanced draws without augmentation": {"sampler": "balanced", "augment": "none"},
    "batch norm, stochastic depth and the step schedule": {
        **{"arch": "resnet10t", "drop_path_rate": 0.5, "schedule": "step", "step_epochs": 1},
    },
    "two rates": {"arch": "resnet10t", "backbone_lr_factor": 0.5, "freeze": True},
    "a gradient scaler": {"plan": Plan("fp16")},
    "bfloat16 and lowered convolutions": {"plan": Plan("bf16", "lowered"), "input_size": 32},
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_within_an_epoch_it_goes_on_to_the_same_bytes(tmp_path: Path, case: str) -> None:
    undisturbed = together([task(tmp_path / "undisturbed", **CASES[case])])[0]
    stopped = task(tmp_path / "stopped", **CASES[case])
    for updates in (2, UPDATES + 1):
        with pytest.raises(InterruptedError):
            together([replace(stopped, checkpoint=StopsAt(tmp_path / "stopped/fold-0", updates))])
        torch.manual_seed(99)
    assert_same(together([stopped])[0], undisturbed)


@pytest.mark.parametrize("case", list(CASES)[:4])
def test_folds_that_share_their_images_do_too(tmp_path: Path, case: str) -> None:
    """One fold stops within its first epoch, then the other one within its second."""
    undisturbed = [together([task(tmp_path / "undisturbed", fold, **CASES[case])])[0] for fold in range(FOLDS)]
    tasks = [task(tmp_path / "stopped", fold, **CASES[case]) for fold in range(FOLDS)]
    for stopped, updates in ((1, 2), (0, UPDATES + 1)):
        checkpoint = StopsAt(tmp_path / f"stopped/fold-{stopped}", updates)
        with pytest.raises(InterruptedError):
            together([replace(each, checkpoint=checkpoint) if i == stopped else each for i, each in enumerate(tasks)])
    for one, other in zip(together(tasks), undisturbed, strict=True):
        assert_same(one, other)


def test_a_process_that_is_killed_within_an_epoch_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the folds of a member on several cores, each of which a process of its own trains."""
    core = sorted(os.sched_getaffinity(0))[0]
    monkeypatch.setattr(processes, "available_cores", lambda: [core, core])
    killed = [replace(task(tmp_path), checkpoint=faulty_jobs.KilledAt(tmp_path / "run/fold-0"))]
    with pytest.raises(ResourceError, match="signal 9"), progress(1, "test") as bar, Workers() as workers:
        list(workers.run(train_together, [(killed, CPU, 0, 1.0)], [[core]], bar))
    names = sorted(path.name for path in (tmp_path / "run/fold-0/state").glob("*.json"))
    assert names == ["epoch-0001-update-00000001.json", "epoch-0001.json"]
    with processes.torch_threads(1):
        assert_same(*(together([task(tmp_path / name)])[0] for name in ("run", "undisturbed")))


def test_it_says_where_it_goes_on_and_counts_what_is_done(tmp_path: Path) -> None:
    stopped = task(tmp_path)
    with pytest.raises(InterruptedError):
        together([replace(stopped, checkpoint=StopsAt(tmp_path / "fold-0", UPDATES + 2))])
    bar = faulty_jobs.Lines()
    train_fold(stopped.job, stopped.checkpoint, stopped.plan, CPU, 0, bar)
    assert bar.said == ["member m fold 0 goes on at epoch 2 of 2, update 3 of 3"]
    assert (bar.skipped, bar.done) == (16 * (UPDATES + 2), 16)


def test_the_next_epoch_is_loaded_by_the_updates_that_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a device does not wait for it when a resumed epoch ends."""
    monkeypatch.setattr(resident, "CHUNK", 4)
    jobs = [task(tmp_path, fold).job for fold in range(FOLDS)]
    images = ResidentEpochs(jobs, [0] * FOLDS, 0, CPU)
    images.start(0, faulty_jobs.Lines())
    for job in jobs:
        assert len(list(images.batches(job, 0, first_update=2))) == UPDATES - 2
    assert images._held[1].loaded == len(images._held[1].codes) > 0


# --- when the state is saved, and which states are kept ---------------------------------------------------------------


class Counted(StateFolder):
    """A state folder that lists the updates of each state that is saved."""

    def save(self, tensors: Any, history: Any, updates: int = 0) -> None:
        self.saved = [*getattr(self, "saved", []), updates]


def test_within_an_epoch_a_state_is_saved_once_the_interval_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def passes(self: Learner, *given: Any) -> torch.Tensor:
        nonlocal now
        now += 10
        return really(self, *given)

    really = Learner.update
    monkeypatch.setattr(Learner, "update", passes)
    monkeypatch.setattr(training.time, "monotonic", lambda: now)
    epoch_of_six = task(tmp_path, batch_size=8, epochs=1, augment="none")
    for interval, expected in ((0, [1, 2, 3, 4, 5, 0]), (20, [2, 4, 0]), (50, [5, 0]), (60, [0]), (math.inf, [0])):
        checkpoint = Counted(tmp_path, interval)
        together([replace(epoch_of_six, checkpoint=checkpoint)])
        assert checkpoint.saved == expected, interval


def test_the_seconds_of_an_epoch_are_those_of_all_its_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, really = 0.0, Learner.update

    def passes(self: Learner, *given: Any) -> torch.Tensor:
        nonlocal now
        now += 10
        return really(self, *given)

    monkeypatch.setattr(Learner, "update", passes)
    monkeypatch.setattr(training.time, "monotonic", lambda: now)
    stopped = task(tmp_path, epochs=1)
    with pytest.raises(InterruptedError):
        together([replace(stopped, checkpoint=StopsAt(tmp_path / "fold-0", 2))])
    now += 1000
    assert together([stopped])[0].history[0]["seconds"] == 10 * UPDATES


def state_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "state").iterdir())


def test_the_two_newest_states_are_kept_and_nothing_else(tmp_path: Path) -> None:
    state, tensors = StateFolder(tmp_path), {"w": torch.zeros(3)}
    history = [{"epoch": 1, "loss": 0.5}]
    state.save(tensors, history)
    state.save(tensors, history, 7)
    assert state_names(tmp_path) == [
        *("epoch-0001-update-00000007.json", "epoch-0001-update-00000007.safetensors"),
        *("epoch-0001.json", "epoch-0001.safetensors"),
    ]
    write_tensors(tmp_path / "state/epoch-0001-update-00000009.safetensors", tensors)  # a kill before its note
    state.save(tensors, history, 12)
    assert state_names(tmp_path) == [
        f"epoch-0001-update-000000{n}.{kind}" for n in ("07", "12") for kind in ("json", "safetensors")
    ]
    (tmp_path / "state/epoch-0001-update-00000012.safetensors").write_bytes(b"damaged")
    assert StateFolder(tmp_path).load() is not None
    state.save(tensors, history, 8)
    assert state_names(tmp_path)[::2] == ["epoch-0001-update-00000007.json", "epoch-0001-update-00000008.json"]
    state.save(tensors, [*history, {"epoch": 2, "loss": 0.4}])
    assert state_names(tmp_path)[::2] == ["epoch-0001-update-00000008.json", "epoch-0002.json"]
    (loaded, epochs), warnings = StateFolder(tmp_path).load(), state.warnings  # type: ignore[misc]
    assert len(epochs) == 2 and torch.equal(loaded["w"], tensors["w"]) and warnings == []


def test_a_damaged_state_within_an_epoch_gives_way_to_the_one_before(tmp_path: Path) -> None:
    undisturbed = together([task(tmp_path / "undisturbed")])[0]
    stopped = task(tmp_path / "stopped")
    with pytest.raises(InterruptedError):
        together([replace(stopped, checkpoint=StopsAt(tmp_path / "stopped/fold-0", UPDATES + 2))])
    newest = tmp_path / "stopped/fold-0/state/epoch-0001-update-00000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    result = together([stopped])[0]
    assert result.warnings == (f"{newest} is damaged; going on from an older state",)
    assert_same(result, undisturbed)


def test_a_state_of_before_there_were_positions_is_read(tmp_path: Path) -> None:
    """Its note does not name the updates, and its tensors hold no position."""
    undisturbed = together([task(tmp_path / "undisturbed")])[0]
    stopped = task(tmp_path / "stopped")
    with pytest.raises(InterruptedError):
        together([replace(stopped, checkpoint=StopsAt(tmp_path / "stopped/fold-0", UPDATES))])
    for path in (tmp_path / "stopped/fold-0/state").glob("*-update-*"):
        path.unlink()
    note = tmp_path / "stopped/fold-0/state/epoch-0001.json"
    content = json.loads(note.read_text())
    assert content.pop("updates") == 0
    note.write_text(json.dumps({key: value for key, value in content.items() if key != "content_sha256"}))
    assert not any(key.startswith("epoch.") for key in read_tensors(note.with_suffix(".safetensors")))
    assert_same(together([stopped])[0], undisturbed)


def test_the_names_of_states_are_in_the_order_of_time() -> None:
    places = [(0, 5), (1, 0), (1, 1), (1, 20), (1, 10**7), (2, 0), (10, 0), (10, 3)]
    stems = [StateNote("", [{}] * epochs, updates).stem for epochs, updates in places]
    assert stems == sorted(stems) and len(set(stems)) == len(stems)


def test_a_watch_measures_at_the_end_of_an_epoch_alone(tmp_path: Path) -> None:
    seen: list[int] = []
    watched = replace(task(tmp_path), watch=Watch(np.arange(4), lambda logits, _: seen.append(len(logits)) or 0.5))
    together([replace(watched, checkpoint=StateFolder(tmp_path / "fold-0", 0))])
    assert seen == [4, 4]


# --- losses that are not finite ---------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Let the loss of some updates, counted over all epochs, be infinite, and with it the gradients."""
    really, scaled = Learner.update, learner.classification_loss
    current = -1

    def update(self: Learner, number: int, *given: Any) -> torch.Tensor:
        nonlocal current
        current = number
        return really(self, number, *given)

    def loss(*given: Any) -> torch.Tensor:
        return scaled(*given) * (math.inf if current in numbers else 1.0)

    monkeypatch.setattr(Learner, "update", update)
    monkeypatch.setattr(learner, "classification_loss", loss)


@pytest.mark.parametrize("save_every", [0, math.inf])
def test_a_loss_that_is_not_finite_leaves_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every: float
) -> None:
    """No state is saved with it, however often states are saved; the same command finds the same batch."""
    poison(monkeypatch, UPDATES + 1)
    broken = replace(task(tmp_path), checkpoint=StateFolder(tmp_path / "fold-0", save_every))
    rows = order(broken.job, 1)[1]
    for _ in range(2):
        with pytest.raises(TheraError) as caught:
            together([broken])
        path = tmp_path / "fold-0/not_finite.json"
        assert str(caught.value) == (
            "training m fold 0: the loss is not finite (inf) in epoch 2, update 2, on a batch of 16 images "
            f"({', '.join(map(str, rows[:5]))} …), all listed in {path}; lower --lr, or use --precision fp32"
        )
        assert caught.value.status == 1
        facts = json.loads(path.read_text())
        assert facts["ids"] == [str(row) for row in rows] and facts["labels"] == LABELS[rows].tolist()
        assert (facts["member"], facts["fold"], facts["epoch"], facts["update"]) == ("m", 0, 2, 2)
        assert 0 < facts["learning_rate"] < broken.job.config.lr and facts["loss"] == "inf"
        loaded = StateFolder(tmp_path / "fold-0").load()
        assert loaded is not None and all(value.isfinite().all() for value in loaded[0].values())


def test_an_overflow_in_mixed_precision_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its update changes no weight, and its loss is not in the mean; also the last one of an epoch, and the first."""
    overflows = (0, UPDATES - 1, UPDATES)
    poison(monkeypatch, *overflows)
    result = together([task(tmp_path, plan=Plan("fp16"))])[0]
    assert all(np.isfinite(value).all() for value in result.weights.values())
    assert all(math.isfinite(epoch["loss"]) for epoch in result.history)
    assert not (tmp_path / "fold-0/not_finite.json").exists()


def overflow_in_batch_norm(monkeypatch: pytest.MonkeyPatch, update: int) -> None:
    """Let the activations before a batch norm overflow in one update, so that its statistics do too."""
    original = Learner.update

    def poisoned(self: Learner, number: int, *given: Any) -> torch.Tensor:
        norm = next(each for each in self.network.modules() if isinstance(each, torch.nn.BatchNorm2d))
        handle = norm.register_forward_pre_hook(lambda _, inputs: (inputs[0] * math.inf,) if number == update else None)
        try:
            return original(self, number, *given)
        finally:
            handle.remove()

    monkeypatch.setattr(Learner, "update", poisoned)


def test_an_overflow_leaves_the_statistics_of_batch_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflow_in_batch_norm(monkeypatch, 1)
    kept = together([task(tmp_path / "a", arch="resnet10t", plan=Plan("fp16"))])[0]
    assert all(np.isfinite(value).all() for value in kept.weights.values())
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_restore_buffers", lambda *_: None)
        with pytest.raises(TheraError, match="the average of the weights is not finite after epoch 1"):
            together([task(tmp_path / "b", arch="resnet10t", plan=Plan("fp16"))])


def test_an_epoch_of_overflows_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, *range(UPDATES))
    with pytest.raises(TheraError, match=r"not finite \(inf\) in epoch 1, update 1, "):
        together([task(tmp_path, plan=Plan("fp16"))])


@pytest.mark.parametrize("reads", [1, 7, position.FINITE_CHECK_INTERVAL])
def test_so_many_overflows_in_a_row_are_a_fault_however_often_losses_are_read(reads: int) -> None:
    allowed = position.FINITE_CHECK_INTERVAL - 1
    values = [1.0] * 20 + [math.inf] * allowed + [2.0] + [math.nan] * (allowed + 1) + [3.0] * 60
    losses, faults = EpochLosses([], scaled=True), set()
    for number, value in enumerate(values, 1):
        losses.append(torch.tensor(value))
        if number % reads == 0:
            faults.add(losses.read())
    assert faults == {None, 20 + allowed + 1}
    assert len(losses) == len(values) and len(EpochLosses(losses.values, scaled=True)) == len(losses.values)


# --- memory that is exhausted -----------------------------------------------------------------------------------------

EXHAUST: dict[str, Callable[[], object]] = {
    "torch": lambda: torch.empty(2**50, dtype=torch.uint8),
    "numpy": lambda: np.empty(2**50, np.uint8),
    "OpenCV": lambda: cv2.resize(np.zeros((1, 1, 3), np.uint8), (2**24, 2**24)),
    "the system": lambda: mmap.mmap(-1, 2**50),
}


@pytest.mark.parametrize("library", EXHAUST)
def test_an_allocation_that_fails_is_an_error_of_resources(library: str) -> None:
    with pytest.raises(Exception, match=r"allocate|memory") as caught:
        EXHAUST[library]()
    error = out_of_memory(caught.value)
    assert error is not None and error.status == 6
    assert str(error) == "thera: out of memory; close other programs, or use --jobs 1 or a smaller --batch-size"
    assert out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_a_command_that_exhausts_memory_exits_with_6(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(tmp_path, 24)
    monkeypatch.setattr(Learner, "update", lambda *_: torch.empty(2**50, dtype=torch.uint8))
    data = ["--images", tmp_path / "img", "--labels", tmp_path / "labels.txt", "--run", tmp_path / "run"]
    options = [*data, "--folds", 2, "--device", "cpu", "--precision", "fp32", "--convolutions", "native"]
    with pytest.raises(SystemExit) as caught:
        main(["train-member", "--arch", "lenet", *map(str, options)])
    assert caught.value.code == 6
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: thera: out of memory; close other programs, or use --jobs 1 or a smaller --batch-size"
