"""The speed of training that a budget is planned by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemble.bench import rates
from ensemble.bench.rates import training_speed
from ensemble.config import MemberConfig
from ensemble.members.parallel import Resources
from ensemble.members.plans import Plan

CPU = Resources(torch.device("cpu"), 0, 2)
LABELS = (np.arange(64) % 4 > 0).astype(np.int8)


def member(**values: Any) -> MemberConfig:
    return MemberConfig.model_validate({"arch": "test_resnet", "pretrained": False, "batch_size": 8} | values)


@pytest.fixture
def pixels(tmp_path: Path) -> np.ndarray:
    np.save(tmp_path / "pixels.npy", np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8))
    mapped: np.ndarray = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    return mapped


@pytest.mark.parametrize(("folds", "groups"), [(4, [2]), (5, [2, 1]), (3, [2, 1]), (1, [1])])
def test_folds_side_by_side_count_once_and_the_last_ones_for_themselves(
    pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch, folds: int, groups: list[int]
) -> None:
    """Two folds take 3 s a round together, one alone takes 2 s; the first round takes 10 s more."""
    now, seen = [0.0], []

    class Training:
        def __init__(self, _: Any, plan: Any, mapped: Any, labels: Any, images: int, at_once: int) -> None:
            assert images == at_once * rates.UPDATES * 8
            seen.append(at_once)
            self.images, self.seconds, self.first = images, {2: 3.0, 1: 2.0}[at_once], 10.0

        def run(self, bar: Any) -> int:
            now[0] += self.seconds + self.first
            self.first = 0.0
            return self.images

        def close(self) -> None: ...

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return now[0]

    monkeypatch.setattr(rates, "TrainingOnCpu", Training)
    monkeypatch.setattr(rates, "at_once", lambda jobs, *_: min(2, jobs))
    monkeypatch.setattr(rates, "time", Clock)
    plan, per_row, start = training_speed(member(), pixels, LABELS, folds, CPU)
    assert seen == groups and start == 10 * len(groups) and isinstance(plan, Plan)
    seconds = {4: 2 * 3.0, 5: 2 * 3.0 + 2.0, 3: 3.0 + 2.0, 1: 2.0}[folds]
    assert per_row == pytest.approx(seconds / (rates.UPDATES * 8))


def test_training_is_measured_and_no_weights_are_fetched(pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble.members import backbones

    monkeypatch.setattr(backbones, "fetched", lambda *_: pytest.fail("looks for weights"))
    one_at_a_time = Resources(torch.device("cpu"), 0, 1)
    plan, per_row, start = training_speed(
        member(arch="resnet10t", pretrained="if-possible", epochs=1), pixels, LABELS, 2, one_at_a_time
    )
    assert plan == Plan("fp32") and 0 < per_row < 1 and start >= 0
