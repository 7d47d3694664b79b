"""Training on targets: the loss against its formulas, and the images of two stores as one array."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from ensemble.config import MemberConfig
from ensemble.members.joined_pixels import JoinedPixels
from ensemble.members.losses import classification_loss, soft_cross_entropy
from ensemble.members.processes import MappedPixels


def test_two_classes_against_torch() -> None:
    z, t = torch.randn(50) * 5, torch.rand(50)
    expected = functional.binary_cross_entropy_with_logits(z, t, reduction="none")
    torch.testing.assert_close(soft_cross_entropy(z, t), expected)


def test_several_classes_against_torch() -> None:
    z, t = torch.randn(50, 5) * 5, torch.softmax(torch.randn(50, 5), 1)
    torch.testing.assert_close(soft_cross_entropy(z, t), functional.cross_entropy(z, t, reduction="none"))


def test_two_columns_are_the_form_of_one_logit() -> None:
    z, t = torch.randn(50), torch.rand(50)
    two = soft_cross_entropy(torch.stack((torch.zeros(50), z), 1), torch.stack((1 - t, t), 1))
    torch.testing.assert_close(two, soft_cross_entropy(z, t))


def test_certain_targets_are_labels() -> None:
    config, labels = MemberConfig(arch="resnet18", loss="bce"), torch.randint(0, 2, (50,)).float()
    z = torch.randn(50)
    torch.testing.assert_close(soft_cross_entropy(z, labels), classification_loss(z, labels, config, None))


def test_certain_targets_of_several_classes_are_labels() -> None:
    config, labels, z = MemberConfig(arch="resnet18", loss="bce"), torch.randint(0, 4, (50,)), torch.randn(50, 4)
    one_hot = functional.one_hot(labels, 4)
    torch.testing.assert_close(soft_cross_entropy(z, one_hot), classification_loss(z, labels.float(), config, None))


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_losses_and_gradients_are_finite(logit: float) -> None:
    z = torch.full((3,), logit, requires_grad=True)
    soft_cross_entropy(z, torch.tensor([0.0, 0.5, 1.0])).sum().backward()
    assert z.grad is not None and torch.isfinite(z.grad).all()


def test_two_stores_are_indexed_as_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, (n, 4, 4, 3), np.uint8) for n in (7, 5)]
    for index, part in enumerate(parts):
        np.save(tmp_path / f"{index}.npy", part)
    maps = tuple(MappedPixels(np.load(tmp_path / f"{index}.npy", mmap_mode="r")) for index in (0, 1))
    joined, whole = JoinedPixels(maps), np.concatenate(parts)
    assert joined.copied_bytes == 0
    for array in (joined.array, pickle.loads(pickle.dumps(joined)).array):
        assert len(array) == 12 and array.shape == whole.shape and array.dtype == np.uint8
        rows = rng.permutation(12)
        np.testing.assert_array_equal(array[rows], whole[rows])
        np.testing.assert_array_equal(array[3], whole[3])
        np.testing.assert_array_equal(array[5:9], whole[5:9])
        assert array[np.array([], np.int64)].shape == (0, 4, 4, 3)
