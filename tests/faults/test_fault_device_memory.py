"""The memory of a GPU that does not suffice: smaller micro-batches, folds that go on, errors that say what to do.

The memory is a fake on a CPU: an error of torch is raised where a loss is computed for more images than fit.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import faulty_jobs
import numpy as np
import pytest
import torch
from tiny import write_tiny

from ensemble.cli import main
from ensemble.config import VIEWS, MemberConfig
from ensemble.errors import OutOfDeviceMemory, ResourceError, TheraError, out_of_memory
from ensemble.members import learner, memory, parallel
from ensemble.members.backbones import build
from ensemble.members.fold_job import FoldJob
from ensemble.members.learner import Learner
from ensemble.members.parallel import Task, train_together
from ensemble.members.plans import Plan
from ensemble.members.processes import MappedPixels
from ensemble.members.resident import ResidentEpochs
from ensemble.members.training import FoldResult, train_and_predict
from ensemble.runs.training_state import StateFolder

CPU, PLAIN, N, FOLDS = torch.device("cpu"), Plan("fp32"), 96, 2
LABELS = (np.arange(N) % 5 != 0).astype(np.int8)
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
BATCH, UPDATES = 16, 3
"""48 training rows in batches of 16."""

MESSAGES = ("CUDA out of memory. Tried to allocate 2.00 GiB", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED")


def task(folder: Path, fold: int = 0, **values: Any) -> Task:
    base = {"arch": "lenet", "epochs": 2, "batch_size": BATCH, "ema_decay": 0.9, "name": "m", "pretrained": False}
    config, rows = MemberConfig.model_validate(base | values), np.arange(N)
    job = FoldJob(config, MappedPixels(PIXELS), LABELS, rows.astype(str), rows[rows % FOLDS != fold], fold, seed=5)
    return Task(job, StateFolder(folder / f"fold-{fold}"), PLAIN, rows[rows % FOLDS == fold], VIEWS, None)


class Device:
    """A fake memory: it fits this many images of one fold, in each of its updates, counted over all starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fits: dict[int, int] = {}
        self.message, self.updates, self.fold = MESSAGES[0], {0: 0, 1: 0}, -1
        self.full_at: dict[int, tuple[int, ...]] = {}
        update, loss = Learner.update, learner.classification_loss

        def updated(one: Learner, *given: Any) -> torch.Tensor:
            self.fold = one.job.fold
            self.updates[self.fold] += 1
            return update(one, *given)

        def computed(logits: torch.Tensor, *given: Any) -> torch.Tensor:
            full = self.updates[self.fold] in self.full_at.get(self.fold, ())
            if full or len(logits) > self.fits.get(self.fold, BATCH):
                raise RuntimeError(self.message)
            return loss(logits, *given)

        monkeypatch.setattr(Learner, "update", updated)
        monkeypatch.setattr(learner, "classification_loss", computed)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def together(tasks: list[Task], bar: Any = None) -> list[Any]:
    return train_together(tasks, CPU, 0, 1.0, bar or faulty_jobs.Lines())


def same(one: FoldResult, other: FoldResult) -> bool:
    histories = [[{**epoch, "seconds": 0} for epoch in each.history] for each in (one, other)]
    weights = all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)
    return weights and np.array_equal(one.logits, other.logits) and histories[0] == histories[1]


@pytest.mark.parametrize("message", MESSAGES)
def test_in_the_first_epoch_it_begins_again_with_half_the_micro_batch(
    tmp_path: Path, device: Device, message: str
) -> None:
    """Alone and beside another fold, whose result is that of a fold on a device with enough memory."""
    plenty = [together([task(tmp_path / "plenty", fold)])[0] for fold in range(FOLDS)]
    device.fits, device.message, alone, beside = {0: 8}, message, faulty_jobs.Lines(), faulty_jobs.Lines()
    halved = together([task(tmp_path / "alone")], alone)[0]
    results = together([task(tmp_path / "beside", fold) for fold in range(FOLDS)], beside)
    assert [each.micro_batches for each in (halved, *results)] == [2, 2, 1]
    assert same(results[0], halved) and same(results[1], plenty[1]) and not same(halved, plenty[0])
    (line,) = alone.said
    expected = "note: member m fold 0: out of device memory; it begins again with 2 micro-batches of 8 images "
    expected += "in each update of 16; batch norm takes its statistics from a micro-batch"
    assert line == beside.said[0] == expected
    images = 2 * UPDATES * BATCH
    assert alone.skipped == 0 and alone.done == images + len(VIEWS) * N // FOLDS


def test_the_gradient_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """Also with weights, and where the parts differ in size; with batch norm it is another one."""
    pixels, labels = torch.from_numpy(PIXELS[:14]), torch.from_numpy(LABELS[:14].astype(np.float32))
    for arch, alike in (("lenet", True), ("resnet10t", False)):
        for weights in (None, np.linspace(0, 1, 14).astype(np.float32)):
            gradients, losses = [], []
            for parts in (1, 4):
                torch.manual_seed(0)
                job = task(tmp_path, arch=arch).job
                network = build(job.config, 16).train()
                one = Learner(job, network, PLAIN, CPU, parts)
                losses.append(float(one._add_gradients(one._on_device(pixels, labels, weights))))
                gradients.append(torch.cat([each.grad.flatten() for each in network.parameters()]))
            close = torch.allclose(*gradients, rtol=1e-3, atol=1e-6)
            assert close == alike and (losses[0] == pytest.approx(losses[1], rel=1e-5)) == alike


def test_a_continuation_uses_the_same_micro_batches(tmp_path: Path, device: Device) -> None:
    """On a device with enough memory too: the result does not depend on where it was stopped."""
    device.fits = {0: 4 * 2}
    expected = together([task(tmp_path / "whole", arch="resnet10t")])[0]
    stopped = task(tmp_path / "stopped", arch="resnet10t")
    for updates in (2, UPDATES + 1):
        checkpoint = faulty_jobs.StopsAt(tmp_path / "stopped/fold-0", updates, UPDATES)
        with pytest.raises(InterruptedError):
            together([replace(stopped, checkpoint=checkpoint)])
        device.fits = {}
    found = together([stopped])[0]
    assert same(found, expected) and found.micro_batches == 2


def test_in_a_later_epoch_the_error_is_of_resources_and_the_same_command_goes_on(
    tmp_path: Path, device: Device
) -> None:
    expected = together([task(tmp_path / "whole")])[0]
    device.updates, device.full_at = {0: 0, 1: 0}, {0: (UPDATES + 2,)}
    (error,) = together([task(tmp_path / "run")])
    assert isinstance(error, ResourceError) and error.status == 6
    assert str(error) == (
        "training m fold 0: out of device memory; end other programs on the GPU, or use --jobs 1, and give the same "
        "command again to go on; or train with a smaller --batch-size under another --name"
    )
    bar = faulty_jobs.Lines()
    assert same(together([task(tmp_path / "run")], bar)[0], expected)
    assert bar.said == ["member m fold 0 goes on at epoch 2 of 2"]


def test_beside_others_it_is_tried_again_alone_and_the_others_go_on(tmp_path: Path, device: Device) -> None:
    expected = [together([task(tmp_path / "alone", fold)])[0] for fold in range(FOLDS)]
    device.updates, device.full_at = {0: 0, 1: 0}, {0: (UPDATES + 2,)}
    bar = faulty_jobs.Lines()
    assert all(map(same, together([task(tmp_path / "once", fold) for fold in range(FOLDS)], bar), expected))
    assert bar.said == ["note: member m fold 0 is tried again alone", "member m fold 0 goes on at epoch 2 of 2"]
    assert bar.done + bar.skipped == FOLDS * 2 * UPDATES * BATCH + len(VIEWS) * N
    device.updates, device.full_at = {0: 0, 1: 0}, {0: (UPDATES + 2, UPDATES + 3)}
    failed, other = together([task(tmp_path / "twice", fold) for fold in range(FOLDS)])
    assert isinstance(failed, OutOfDeviceMemory) and same(other, expected[1])


def test_a_micro_batch_has_at_least_eight_images(tmp_path: Path, device: Device) -> None:
    device.fits = {0: memory.LEAST_MICRO_BATCH - 1}
    (error,) = together([task(tmp_path)])
    assert isinstance(error, OutOfDeviceMemory) and device.updates[0] == 2, "with 16 images, and twice 8"


def test_images_that_do_not_fit_beside_the_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fold is then trained alone, with batches of its own."""
    expected = [together([task(tmp_path / "whole", fold)])[0] for fold in range(FOLDS)]

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError(MESSAGES[0])

    monkeypatch.setattr(ResidentEpochs, "start", full)
    bar = faulty_jobs.Lines()
    found = together([task(tmp_path / "run", fold) for fold in range(FOLDS)], bar)
    assert all(map(same, found, expected))
    assert bar.said == [f"note: member m fold {fold} is tried again alone" for fold in range(FOLDS)]


def test_a_network_that_does_not_fit_beside_another_is_trained_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [together([task(tmp_path / "whole", fold)])[0] for fold in range(FOLDS)]
    really, living = parallel.FoldTraining, []

    class Training(really):  # type: ignore[misc,valid-type]
        def __init__(self, job: FoldJob, *given: Any) -> None:
            if living:
                raise torch.OutOfMemoryError(MESSAGES[0])
            living.append(job.fold)
            super().__init__(job, *given)

        def run_epoch(self, *given: Any) -> bool:
            living.clear()
            return super().run_epoch(*given)

    monkeypatch.setattr(parallel, "FoldTraining", Training)
    assert all(map(same, together([task(tmp_path / "run", fold) for fold in range(FOLDS)]), expected))


def test_other_errors_of_an_update_are_told_as_they_are(tmp_path: Path, device: Device) -> None:
    device.message, device.fits = "mat1 and mat2 shapes cannot be multiplied", {0: 0}
    with pytest.raises(RuntimeError, match="mat1"):
        together([task(tmp_path)])
    assert not isinstance(out_of_memory(MemoryError()), OutOfDeviceMemory)


def test_a_prediction_that_exhausts_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError(MESSAGES[0])

    monkeypatch.setattr("ensemble.members.training.predict_logits", full)
    one = task(tmp_path)
    with pytest.raises(TheraError, match="training m fold 0: out of device memory"):
        train_and_predict(one.job, one.checkpoint, PLAIN, CPU, 0, one.held_out, VIEWS, None, faulty_jobs.Lines())


def test_a_command_finishes_the_other_folds_and_exits_with_6(
    tmp_path: Path, device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fold 0 needs micro-batches, and fails in its second epoch; the same command then finishes it."""
    write_tiny(tmp_path, 64)
    data = ["--images", tmp_path / "img", "--labels", tmp_path / "labels.txt", "--run", tmp_path / "run"]
    options = [*data, "--folds", 2, "--epochs", 2, "--batch-size", BATCH, "--augment", "none", "--device", "cpu"]
    options += ["--no-pretrained", "--precision", "fp32", "--convolutions", "native", "--jobs", 1]
    command = ["train-member", "--arch", "lenet", *map(str, options)]
    device.fits, device.full_at = {0: 8, 1: BATCH}, {0: (1 + 2 + 1,)}  # one update that fails, and two of each epoch
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 6
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: training lenet fold 0: out of device memory; end other programs on the GPU")
    assert any("it begins again with 2 micro-batches of 8 images in each update of 16" in line for line in lines)

    def folds() -> dict[str, int]:
        facts = json.loads((tmp_path / "run/members/lenet/member.json").read_text())["folds"]
        return {fold: of_fold["micro_batches"] for fold, of_fold in facts.items()}

    assert folds() == {"1": 1}
    main(command)
    assert folds() == {"0": 2, "1": 1}
