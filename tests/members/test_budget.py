"""How many folds fit into the memory of a GPU, by made-up measurements; and what is measured, on a fake GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ensemble.config import MemberConfig
from ensemble.errors import OutOfDeviceMemory
from ensemble.members import budget
from ensemble.members.budget import TrainingMemory, group_sizes, measure
from ensemble.members.fold_job import FoldJob
from ensemble.members.learner import Learner
from ensemble.members.plans import Plan
from ensemble.members.processes import MappedPixels

N, CPU, PLAIN = 30, torch.device("cpu"), Plan("fp32")
PIXELS = np.zeros((N, 16, 16, 3), np.uint8)
IMAGE = PIXELS[0].nbytes


def job(fold: int = 0, **values: Any) -> FoldJob:
    base = {"arch": "lenet", "pretrained": False, "epochs": 1, "batch_size": 10, "augment": "none"}
    config, rows = MemberConfig.model_validate(base | values), np.arange(N)
    return FoldJob(config, MappedPixels(PIXELS), (rows % 2).astype(np.int8), rows.astype(str), rows, fold, seed=0)


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that sets what each architecture needs; it returns the architectures that are measured."""

    def given(**memory: tuple[int, int] | None) -> list[str]:
        measured: list[str] = []

        def fake(one: FoldJob, *_: Any) -> TrainingMemory:
            measured.append(one.config.arch)
            need = memory[one.config.arch]
            if need is None:
                raise OutOfDeviceMemory("training", "out of device memory")
            return TrainingMemory(*need)

        monkeypatch.setattr(budget, "measure", fake)
        return measured

    return given


def sizes(jobs: list[FoldJob], beside_images: float) -> list[int] | None:
    """Return the sizes of the groups where so many bytes are left beside one copy of the images."""
    return group_sizes([(each, PLAIN) for each in jobs], CPU, (N * IMAGE + beside_images + 0.5) / budget.USABLE)


def test_activations_are_shared_and_states_are_not(needs: Callable[..., list[str]]) -> None:
    measured = needs(lenet=(100, 1000))
    jobs = [job(fold) for fold in range(5)]
    found = [sizes(jobs, left) for left in (1500, 1499, 1200, 1199, 1100, 1099)]
    assert found == [[5], [4, 1], [2, 2, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], None]
    assert measured == ["lenet"] * 6, "once for all folds of a member"


def test_networks_that_differ_are_each_measured(needs: Callable[..., list[str]]) -> None:
    """The largest activations count; a change of the batch size is another measurement, a name is none."""
    measured = needs(lenet=(100, 1000), resnet10t=(400, 3000))
    jobs = [job(name="a"), job(name="b"), job(arch="resnet10t"), job(batch_size=5)]
    assert [sizes(jobs, left) for left in (3700, 3600, 3500, 3399)] == [[4], [3, 1], [2, 2], None]
    assert measured == ["lenet", "resnet10t", "lenet"] * 4


def test_each_augmentation_has_a_copy_of_the_images(needs: Callable[..., list[str]]) -> None:
    """One of those that stay the same, two of those that an epoch and the next one need."""
    needs(lenet=(1, 1))
    assert sizes([job(), job(1)], 3) == [2]
    mixed = [job(), job(augment="light")]
    assert sizes(mixed, 2 * N * IMAGE + 3) == [2] and sizes(mixed, 2 * N * IMAGE + 1) is None


def test_a_network_that_does_not_fit_with_a_whole_batch_is_trained_alone(needs: Callable[..., list[str]]) -> None:
    needs(lenet=(1, 1), resnet10t=None)
    assert sizes([job(), job(arch="resnet10t")], 1e9) is None


def test_on_a_cpu_nothing_is_measured(needs: Callable[..., list[str]]) -> None:
    measured = needs()
    assert group_sizes([(job(), PLAIN)] * 3, CPU, math.inf) == [3] and measured == []
    assert budget.free_bytes(CPU) == math.inf


def test_an_update_and_a_prediction_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake GPU holds 1,000 bytes before, 1,400 after the update, and 2,500 at most."""
    steps, update = [], Learner.update

    def updated(self: Learner, number: int, pixels: torch.Tensor, *given: Any) -> torch.Tensor:
        steps.append(("update", len(pixels)))
        return update(self, number, pixels, *given)

    predict = budget.predict_logits
    monkeypatch.setattr(Learner, "update", updated)
    monkeypatch.setattr(
        budget,
        "predict_logits",
        lambda network, pixels, rows, *given: (
            steps.append(("predict", len(rows))) or predict(network, pixels, rows, *given)
        ),
    )
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1400 if steps else 1000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: steps.clear())
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2500)
    assert measure(job(), PLAIN, CPU) == TrainingMemory(kept=400, passing=1100)
    assert steps == [("update", 10), ("predict", N)]


def test_the_free_memory_of_a_gpu_includes_what_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 300)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5000, 9000))
    assert budget.free_bytes(torch.device("cuda")) == 5400
