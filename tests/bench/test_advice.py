"""What `thera bench` says to change follows from what it has measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ensemble.bench import advice
from ensemble.config import MemberConfig
from ensemble.members.plans import Plan
from ensemble.members.probe import Probe

PLAN = Plan("fp32")


def member(**given: Any) -> MemberConfig:
    return MemberConfig.model_validate({"arch": "resnet10t", "pretrained": False, **given})


def test_plans_that_are_far_slower_are_advised_against() -> None:
    probed = Probe(PLAN, {"fp32 native": 100.0, "bf16 native": 79.0, "bf16 lowered": 81.0})
    sentence = advice.on_plans("resnet10t", PLAN, probed)
    assert "fp32 native 100, bf16 native 79, bf16 lowered 81" in sentence
    assert sentence.endswith("takes fp32 native; do not force bf16 native.")


@pytest.mark.parametrize(
    ("speeds", "present", "expected"),
    [
        ({32: 50, 64: 80, 128: 100, 256: 109}, 128, "--batch-size 128 is as fast as any."),
        (
            {32: 50, 64: 80, 128: 100, 256: 125},
            128,
            "--batch-size 256 is 1.25 times as fast as 128, and changes the training.",
        ),
        (
            {32: 50, 48: 40, 64: 80, 128: 100, 256: 90},
            48,
            "--batch-size 128 is 2.50 times as fast as 48, and changes the training.",
        ),
    ],
)
def test_a_batch_size_that_is_faster_is_advised(
    monkeypatch: pytest.MonkeyPatch, speeds: dict[int, float], present: int, expected: str
) -> None:
    monkeypatch.setattr(advice, "speed", lambda config, size, plan, phase, batch, threads, device: speeds[batch])
    sentence = advice.on_batches(member(batch_size=present), 32, PLAN)
    assert sentence.endswith(expected) and f"{present} {speeds[present]}" in sentence


def test_batches_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "BATCHES", (8,))
    sentence = advice.on_batches(member(batch_size=4), 32, PLAN)
    assert "images/s by batch: 4 " in sentence and ", 8 " in sentence


def test_without_a_measured_plan_the_chosen_one_is_named() -> None:
    assert (
        advice.on_plans("resnet10t", PLAN, Probe(PLAN, {}))
        == "resnet10t: only fp32 native passes the parity check here."
    )


def test_a_batch_of_large_images_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(advice, "speed", lambda *given: tried.append(given[4]) or 1.0)
    advice.on_batches(member(batch_size=16), 256, PLAN)
    assert tried == [16, 32, 64]


class Clock:
    """A clock on which augmentation makes 1,000 images a second."""

    def __init__(self) -> None:
        self.ticks = iter([0.0, advice.AUGMENTED_IMAGES / 1000])

    def perf_counter(self) -> float:
        return next(self.ticks)


@pytest.mark.parametrize(
    ("speed", "workers", "expected"),
    [
        (11900.0, 3, "need 3 data workers, 3 are enough."),
        (12100.0, 3, "need 4 data workers, --workers 4 would be enough."),
        (100.0, 0, "need 1 data workers, 1 are enough."),
    ],
)
def test_the_advised_workers_keep_a_gpu_busy(
    monkeypatch: pytest.MonkeyPatch, speed: float, workers: int, expected: str
) -> None:
    """Four of five folds train on each augmented image."""
    monkeypatch.setattr(advice, "time", Clock())
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    sentence = advice.on_feeding(member(), pixels, speed, workers, 5)
    assert "makes 1000 images/s on a core, and 5 folds use each of them 4 times" in sentence and sentence.endswith(
        expected
    )


@pytest.mark.parametrize(
    ("probed", "expected"),
    [
        (
            Probe(PLAN, {"fp32 compiled": 200.0}, {"fp32 compiled": 30.0}),
            "200 images/s, 2.00 times fp32 lowered, after 30",
        ),
        (
            Probe(PLAN, {"fp32 compiled": 200.0}, {"fp32 compiled": 30.0}),
            "it saves time from 6000 images on, all epochs",
        ),
        (
            Probe(PLAN, {"fp32 compiled": 90.0}, {"fp32 compiled": 30.0}),
            "0.90 times fp32 lowered, after 30 s of compiling: do not use it.",
        ),
        (Probe(PLAN, {}, {}, {"fp32 compiled": "no g++"}), "does not work here: no g++."),
        (Probe(PLAN, {}), "does not work here: it fails the parity check."),
    ],
)
def test_compiling_is_advised_where_it_saves_time(
    monkeypatch: pytest.MonkeyPatch, probed: Probe, expected: str
) -> None:
    monkeypatch.setattr(advice, "probe", lambda config, size, plans, phase, threads: probed)
    assert expected in advice.on_compiling(member(), 32, Plan("fp32", "lowered"), 100.0)


def test_the_share_of_augmentation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "time", Clock())
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    sentence = advice.on_augmentation(member(augment="standard"), pixels, 250.0)
    assert "makes 1000 images/s on a core, 25 % of the time of training" in sentence
