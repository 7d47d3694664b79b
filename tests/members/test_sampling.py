from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from torch.utils.data import WeightedRandomSampler

from ensemble.config import AUGMENTATIONS, MemberConfig
from ensemble.members.augment import Augmentation
from ensemble.members.fold_job import FoldJob
from ensemble.members.processes import MappedPixels
from ensemble.members.sampling import balanced_shares, batches_of, order, times_before

N = 4000
LABELS = (np.arange(N) % 8 != 0).astype(np.int8)
ROWS = np.flatnonzero(np.arange(N) % 3 != 0)


def job(**values: Any) -> FoldJob:
    config = MemberConfig.model_validate({"arch": "lenet", "pretrained": False, "batch_size": 32} | values)
    pixels = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), np.uint8)
    return FoldJob(config, MappedPixels(pixels), LABELS, np.arange(N).astype(str), ROWS, fold=0, seed=3)


def test_plain_takes_each_training_row_once() -> None:
    rows = order(job(), 0)
    assert rows.shape == (len(ROWS) // 32, 32)
    assert np.unique(rows).size == rows.size and set(rows.ravel().tolist()) <= set(ROWS.tolist())
    assert order(job(batch_size=5000), 0).shape == (1, len(ROWS))


def test_balanced_draws_training_rows_of_both_classes_equally_often() -> None:
    fold_job = job(sampler="balanced")
    drawn = np.concatenate([order(fold_job, epoch).ravel() for epoch in range(40)])
    assert set(drawn.tolist()) == set(ROWS.tolist()), "every training row, and no other"
    share = np.mean(LABELS[drawn] == 0)
    assert abs(share - 0.5) < 4 * 0.5 / drawn.size**0.5
    counts = np.bincount(drawn, minlength=N)[ROWS]
    for label in (0, 1):  # within a class every row has the same chance: counts are Poisson-like
        own = counts[LABELS[ROWS] == label]
        assert own.var() == pytest.approx(own.mean(), rel=0.25)


def test_balanced_draws_as_torchs_weighted_sampler_does() -> None:
    """How often a row is drawn in an epoch: the same distribution, by a chi-squared test of two samples."""
    own, n = LABELS[ROWS], order(job(sampler="balanced"), 0).size
    weights = torch.from_numpy(1 / np.bincount(own)[own])
    generator = torch.manual_seed(0)
    theirs = [torch.tensor(list(WeightedRandomSampler(weights, n, generator=generator))).numpy() for _ in range(20)]
    ours = [np.searchsorted(ROWS, order(job(sampler="balanced"), epoch).ravel()) for epoch in range(20)]
    for label in (0, 1):
        times = [
            np.concatenate([np.bincount(drawn, minlength=len(ROWS))[own == label] for drawn in many]).clip(max=5)
            for many in (theirs, ours)
        ]
        table = np.stack([np.bincount(each, minlength=6) for each in times])
        assert chi2_contingency(table[:, table.sum(axis=0) > 10]).pvalue > 1e-3


def test_balanced_takes_each_of_many_classes_equally_often() -> None:
    labels = np.array([0, 3, 3, 1, 4, 4, 4, 4, 0, 3], np.int8)  # no row of class 2
    shares = balanced_shares(labels)
    assert shares.tolist() == pytest.approx([1 / 4 / np.count_nonzero(labels == label) for label in labels])
    many = (np.arange(N) % 100).clip(max=9).astype(np.int8)  # class 9 in 91 % of the rows
    fold_job = replace(job(sampler="balanced"), labels=many, classes=10)
    drawn = np.concatenate([order(fold_job, epoch).ravel() for epoch in range(40)])
    assert set(drawn.tolist()) <= set(ROWS.tolist()), "training rows only"
    counts = np.bincount(many[drawn])
    assert chisquare(counts).pvalue > 1e-3, "all classes equally often"
    of_last = np.bincount(drawn, minlength=N)[ROWS][many[ROWS] == 9]
    assert of_last.var() == pytest.approx(of_last.mean(), rel=0.25)


def test_two_classes_are_drawn_by_the_same_probabilities_as_ever() -> None:
    """To the last bit: half of the draws for each label."""
    expected = np.where(LABELS == 1, 0.5 / np.count_nonzero(LABELS == 1), 0.5 / np.count_nonzero(LABELS == 0))
    assert balanced_shares(LABELS).tobytes() == expected.tobytes()


@pytest.mark.parametrize("sampler", ["plain", "balanced"])
def test_an_epoch_depends_on_seed_member_fold_and_epoch(sampler: str) -> None:
    fold_job = job(sampler=sampler)
    assert np.array_equal(order(fold_job, 1), order(fold_job, 1))
    others = [order(fold_job, 2), order(replace(fold_job, fold=1), 1), order(replace(fold_job, seed=4), 1)]
    assert not any(np.array_equal(order(fold_job, 1), other) for other in others)


def test_times_before_counts_in_order() -> None:
    rows = np.random.default_rng(1).integers(0, 9, (7, 11))
    seen: dict[int, int] = {}
    for row, time in zip(rows.ravel().tolist(), times_before(rows).ravel().tolist(), strict=True):
        assert time == seen.get(row, 0)
        seen[row] = time + 1


def test_a_row_that_is_drawn_again_is_augmented_anew() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    augmentation = Augmentation(AUGMENTATIONS["standard"], 0)
    assert not np.array_equal(augmentation(image, 0, 5, 0), augmentation(image, 0, 5, 1))
    assert np.array_equal(augmentation(image, 0, 5), augmentation(image, 0, 5, 0))


@pytest.mark.parametrize("sampler", ["plain", "balanced"])
def test_batches_hold_the_rows_of_the_order_with_their_labels(sampler: str) -> None:
    fold_job = job(sampler=sampler, augment="none", epochs=2)
    batches = list(batches_of(fold_job, 1, 0, torch.device("cpu")))
    assert len(batches) == fold_job.updates_per_epoch
    for (pixels, labels, rows), expected in zip(batches, order(fold_job, 1), strict=True):
        assert np.array_equal(rows, expected)
        assert np.array_equal(labels.numpy(), LABELS[rows])
        assert np.array_equal(pixels.numpy(), fold_job.pixels[rows])
