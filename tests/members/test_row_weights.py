"""The loss with a weight for each row, and labels that differ between folds, against formulas."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from ensemble.config import MemberConfig
from ensemble.members.backbones import build
from ensemble.members.fold_job import FoldJob
from ensemble.members.learner import Learner
from ensemble.members.losses import classification_loss
from ensemble.members.plans import Plan
from ensemble.members.processes import MappedPixels
from ensemble.members.resident import ResidentEpochs
from ensemble.members.sampling import batches_of, order

CPU, N = torch.device("cpu"), 48
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)


def job(classes: int = 2, **values: object) -> FoldJob:
    base = {"arch": "resnet10t", "pretrained": False, "epochs": 2, "batch_size": 16, "name": "m", "augment": "none"}
    config = MemberConfig.model_validate(base | values)
    labels = (np.arange(N) % classes).astype(np.int8)
    ids = np.arange(N).astype(str)
    return FoldJob(config, MappedPixels(PIXELS), labels, ids, np.arange(N), 0, 0, classes=classes)


@pytest.mark.parametrize("loss", ["focal", "weighted-bce"])
@pytest.mark.parametrize("classes", [2, 3])
def test_an_update_with_weights_is_that_of_the_weighted_mean(classes: int, loss: str) -> None:
    one = job(classes, loss=loss, label_smoothing=0.1, clip_norm=1e9)
    torch.manual_seed(0)
    learner = Learner(one, build(one.config, 16, classes=classes), Plan("fp32"), CPU)
    by_hand = deepcopy(learner.network).train()
    learner.network.train()
    rows = order(one, 0)[0]
    pixels, labels = torch.from_numpy(PIXELS[rows]), torch.from_numpy(one.labels[rows].astype(np.float32))
    weights = np.random.default_rng(1).random(len(rows)).astype(np.float32)
    loss_of_update = learner.update(0, pixels, labels, weights)
    losses = classification_loss(by_hand(pixels), labels, one.config, learner.class_weights)
    expected = sum(float(w) * x for w, x in zip(weights, losses, strict=True)) / len(rows)
    assert torch.allclose(loss_of_update, expected, rtol=1e-5)
    expected.backward()
    for parameter, reference in zip(learner.network.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(parameter.grad, reference.grad, rtol=1e-4, atol=1e-6)


def test_weights_of_rows_are_those_of_the_batch() -> None:
    weights = np.linspace(0, 1, N, dtype=np.float32)
    weighed = replace(job(), row_weights=weights)
    assert np.array_equal(weighed.weights_of(np.array([5, 3])), weights[[5, 3]])
    assert job().weights_of(np.array([5, 3])) is None


def test_folds_that_share_their_images_keep_their_own_labels() -> None:
    """A row that one fold trains with another label has the given one in the other folds."""
    first = job()
    flipped = first.labels.copy()
    flipped[:10] = 1 - flipped[:10]
    jobs = [first, replace(first, labels=flipped, fold=1)]
    images = ResidentEpochs(jobs, [0, 0], 0, CPU)

    class Bar:
        def advance(self, n: int = 1) -> None: ...

    images.start(0, Bar())  # type: ignore[arg-type]
    for each in jobs:
        alone = batches_of(each, 0, 0, CPU)
        for pixels, labels, rows in images.batches(each, 0):
            expected = next(alone)
            assert torch.equal(pixels, expected[0]) and torch.equal(labels, expected[1])
            assert np.array_equal(labels.numpy(), each.labels[rows])
