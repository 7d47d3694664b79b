"""Folds that are trained on one device in turn: the same bytes as alone, from images that are augmented once."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ensemble.config import VIEWS, MemberConfig
from ensemble.errors import TheraError
from ensemble.members import budget, parallel
from ensemble.members.augment import Augmentation
from ensemble.members.budget import TrainingMemory
from ensemble.members.fold_job import FoldJob
from ensemble.members.parallel import Task, train_together
from ensemble.members.plans import Plan
from ensemble.members.processes import MappedPixels
from ensemble.members.resident import CHUNK, ResidentEpochs, resident_bytes
from ensemble.members.sampling import batches_of
from ensemble.members.training import FoldResult, Watch, train_and_predict
from ensemble.progress import progress

CPU, N, FOLDS = torch.device("cpu"), 300, 3
RNG = np.random.default_rng(0)
LABELS = (np.arange(N) % 4 != 0).astype(np.int8)
PIXELS = RNG.integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)


class Kept:
    """A checkpoint in memory; the training stops when it has been saved so often, as by a kill."""

    save_every = math.inf

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.saved, self.epochs = stop_after, None, 0

    def load(self) -> Any:
        return self.saved

    def save(self, tensors: Any, history: Any) -> None:
        self.saved = ({key: value.clone() for key, value in tensors.items()}, list(history))
        self.epochs = len(history)
        if len(history) == self.stop_after:
            raise InterruptedError

    def write_not_finite(self, facts: Any) -> str:
        return "not_finite.json"


def task(fold: int, stop_after: int | None = None, **values: Any) -> Task:
    base = {"arch": "lenet", "pretrained": False, "epochs": 3, "batch_size": 32, "drop_rate": 0.5}
    config, rows = MemberConfig.model_validate(base | values), np.arange(N)
    job = FoldJob(config, MappedPixels(PIXELS), LABELS, rows.astype(str), rows[rows % FOLDS != fold], fold, seed=5)
    held_out = rows[rows % FOLDS == fold]
    watch = Watch(held_out[:9], lambda logits, labels: float(logits.mean()))
    return Task(job, Kept(stop_after), Plan("fp32"), held_out, VIEWS, watch)


def alone(one: Task) -> FoldResult:
    with progress(1, "test") as bar:
        return train_and_predict(one.job, Kept(), one.plan, CPU, 0, one.held_out, one.views, one.watch, bar)


def together(tasks: list[Task], workers: int = 0) -> list[FoldResult]:
    with progress(1, "test") as bar:
        return train_together(tasks, CPU, workers, 1.0, bar)


def assert_same(found: FoldResult, expected: FoldResult) -> None:
    assert found.weights.keys() == expected.weights.keys() and found.parameters == expected.parameters
    assert all(np.array_equal(found.weights[name], expected.weights[name]) for name in expected.weights)
    assert np.array_equal(found.logits, expected.logits)
    untimed = [[{**epoch, "seconds": 0} for epoch in each.history] for each in (found, expected)]
    assert untimed[0] == untimed[1]


MIXED = [
    {"augment": "light", "name": "a"},
    {"augment": "none", "name": "b", "epochs": 5},
    {"augment": "light", "name": "c", "sampler": "balanced", "batch_size": 48, "epochs": 1},
    {"arch": "resnet10t", "augment": "none", "name": "d", "sampler": "balanced", "drop_rate": 0},
]


@pytest.mark.parametrize("values", [{}, {"augment": "none"}, {"sampler": "balanced"}, {"input_size": 32}])
def test_folds_side_by_side_give_the_same_bytes_as_alone(values: dict[str, Any]) -> None:
    tasks = [task(fold, **values) for fold in range(FOLDS)]
    for one, found in zip(tasks, together(tasks), strict=True):
        assert_same(found, alone(one))
        assert found.seconds >= sum(epoch["seconds"] for epoch in found.history) - 0.1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where this process may use one core only
@pytest.mark.parametrize("workers", [0, 1])
def test_members_of_every_kind_do_too(workers: int) -> None:
    tasks = [task(fold, **values) for values in MIXED for fold in ((0,) if workers else (0, 2))]
    for one, found in zip(tasks, together(tasks, workers), strict=True):
        assert_same(found, alone(one))


def test_stopped_at_different_epochs_they_go_on_to_the_same() -> None:
    tasks = [task(0), task(1, stop_after=2), task(2)]
    with pytest.raises(InterruptedError):
        together(tasks)
    assert [one.checkpoint.epochs for one in tasks] == [2, 2, 1], "each its last epoch, and none lost"
    tasks[1].checkpoint.stop_after = None
    tasks.append(task(0, name="later", epochs=2))
    for one, found in zip(tasks, together(tasks), strict=True):
        assert_same(found, alone(one))
    for one, found in zip(tasks, together(tasks), strict=True):  # all epochs are there, the predictions are not
        assert_same(found, alone(one))


def test_each_image_is_augmented_once_for_all_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    really, seen = Augmentation.__call__, Counter()

    def counted(self: Augmentation, image: np.ndarray, epoch: int, row: int, time: int = 0) -> np.ndarray:
        seen[epoch, row, time] += 1
        return really(self, image, epoch, row, time)

    monkeypatch.setattr(Augmentation, "__call__", counted)
    together([task(fold, batch_size=8) for fold in range(FOLDS)])
    assert set(seen.values()) == {1} and len(seen) == 3 * N
    seen.clear()
    alone(task(0, batch_size=8))
    assert len(seen) == 3 * N * 2 // FOLDS, "what the count would be of"


def test_the_next_epoch_is_loaded_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is trained on, so that a device neither waits at its end nor a batch long."""
    tasks = [task(fold, batch_size=8) for fold in range(FOLDS)]
    images = ResidentEpochs([one.job for one in tasks], [0] * FOLDS, 0, CPU)
    really, come = images._incoming, 0

    def counted() -> Any:
        nonlocal come
        for chunk in really:
            come += len(chunk[0])
            yield chunk

    images._incoming = counted()
    updates = FOLDS * tasks[0].job.updates_per_epoch
    for epoch in range(3):
        images.start(epoch, _SilentBar())
        done = 0
        assert come == (epoch + 1) * N, "nothing is left to wait for"
        for one in tasks:
            batches = images.batches(one.job, epoch)
            for _ in range(one.job.updates_per_epoch):  # as a training does, which does not look for an end
                next(batches)
                done += 1
                due = (epoch + 1) * N + (done / updates) * N * (epoch < 2)
                assert due <= come < due + CHUNK, (epoch, done)
    assert come == 3 * N and next(images._incoming, None) is None, "and nothing more than is needed"


@pytest.mark.parametrize("values", [{}, {"augment": "none"}, {"sampler": "balanced"}])
def test_the_batches_are_those_of_each_job_alone(values: dict[str, Any]) -> None:
    jobs, firsts = [task(fold, **values).job for fold in range(FOLDS)], [0, 1, 0]
    images, expected = ResidentEpochs(jobs, firsts, 0, CPU), [batches_of(job, 1, 0, CPU) for job in jobs]
    images.start(0, _SilentBar())
    for job in (jobs[0], jobs[2]):
        assert sum(len(rows) for _, _, rows in images.batches(job, 0)) == job.images // job.config.epochs
    for epoch in (1, 2):
        images.start(epoch, _SilentBar())
        for job, own in zip(jobs, expected, strict=True):
            for found in images.batches(job, epoch):
                pixels, labels, rows = next(own)
                assert torch.equal(found[0], pixels) and torch.equal(found[1], labels)
                assert np.array_equal(found[2], rows)


def test_as_many_folds_are_side_by_side_as_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images, the activations of one network, and the state of each network; else one fold after the other."""
    tasks, held = [task(fold, batch_size=8) for fold in range(FOLDS)], 2 * PIXELS.nbytes
    assert resident_bytes([one.job for one in tasks]) == held
    expected, groups, really = [alone(one) for one in tasks], [], ResidentEpochs

    def noted(jobs: Any, *given: Any) -> ResidentEpochs:
        groups.append([job.fold for job in jobs])
        return really(jobs, *given)

    monkeypatch.setattr(parallel, "ResidentEpochs", noted)
    monkeypatch.setattr(budget, "measure", lambda *_: TrainingMemory(kept=1000, passing=5000))
    cases = ((9000, [[0, 1, 2]]), (7999, [[0, 1], [2]]), (6999, [[0], [1], [2]]), (5999, []))
    for beside_images, found in cases:
        groups.clear()
        room = (held + beside_images + 0.5) / budget.USABLE
        monkeypatch.setattr(parallel, "free_bytes", lambda _, room=room: room)
        for one, other in zip(together([replace(one, checkpoint=Kept()) for one in tasks]), expected, strict=True):
            assert_same(one, other)
        assert groups == found, beside_images


def test_the_bytes_of_resident_images() -> None:
    """A balanced draw takes an image of the rare class again and again, each time another way; none, each one once."""
    one = PIXELS[0].nbytes
    for sampler in ("plain", "balanced"):
        jobs = [task(fold, sampler=sampler, batch_size=8, augment="none").job for fold in range(FOLDS)]
        assert resident_bytes(jobs) == PIXELS.nbytes, "one copy, for all epochs"
        jobs = [task(fold, sampler=sampler, batch_size=8).job for fold in range(FOLDS)]
        images = ResidentEpochs(jobs, [0] * FOLDS, 0, CPU)
        images.start(0, _SilentBar())
        assert resident_bytes(jobs) == 2 * one * len(images._held[0].pixels)
    assert resident_bytes(jobs) > 2.2 * PIXELS.nbytes


def test_an_epoch_that_no_fold_needs_is_skipped() -> None:
    """One member goes on where another one has long ended."""
    late, early = task(0, epochs=5, name="late"), task(1, epochs=1, name="early")
    late.checkpoint.stop_after = 3
    with pytest.raises(InterruptedError):
        together([late, task(2, epochs=5, name="other")])
    late.checkpoint.stop_after = None
    for one, found in zip((late, early), together([late, early]), strict=True):
        assert_same(found, alone(one))


def broken(one: Task) -> Task:
    """Return a task that fails in its first epoch."""
    state = train_and_predict(one.job, Kept(), one.plan, CPU, 0, one.held_out, VIEWS, None, _SilentBar()).weights
    weights = {name: np.full_like(value, 1e30) for name, value in state.items()}
    return replace(one, job=replace(one.job, weights=weights))


@pytest.mark.parametrize("fits", [True, False])
def test_a_fold_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    monkeypatch.setattr(budget, "measure", lambda *_: TrainingMemory(1, 1))
    monkeypatch.setattr(parallel, "free_bytes", lambda _: np.inf if fits else 0)
    tasks = [task(0), broken(task(1)), task(2)]
    found = together(tasks)
    assert_same(found[0], alone(tasks[0]))
    assert_same(found[2], alone(tasks[2]))
    assert isinstance(found[1], TheraError) and "training lenet fold 1: the loss is not finite" in str(found[1])
    with pytest.raises(TheraError, match="training lenet fold 1: the loss is not finite"):
        together(tasks[1:2])


def test_a_prediction_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    really = parallel.predict_held_out

    def fails(job: FoldJob, *given: Any) -> Any:
        if job.fold == 1:
            raise TheraError("member lenet", "3 OOF logits of fold 1 are not finite")
        return really(job, *given)

    monkeypatch.setattr(parallel, "predict_held_out", fails)
    found = together([task(fold) for fold in range(FOLDS)])
    assert [isinstance(each, TheraError) for each in found] == [False, True, False]


class _SilentBar:
    def advance(self, n: int = 1) -> None: ...
    def skip(self, n: int) -> None: ...
    def note(self, text: str) -> None: ...
    def say(self, line: str) -> None: ...
