from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from ensemble.members.augment import Augmentation, view

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("strength", ["light", "standard"])
def test_depends_on_seed_epoch_and_image_alone(strength: str) -> None:
    first, second = Augmentation(strength, 7), Augmentation(strength, 7)
    forward = [first(IMAGE, epoch, row) for epoch in range(2) for row in range(8)]
    backward = [second(IMAGE, epoch, row) for epoch in (1, 0) for row in reversed(range(8))][::-1]
    assert all(map(np.array_equal, forward, backward))
    again = pickle.loads(pickle.dumps(first))
    assert np.array_equal(again(IMAGE, 1, 3), forward[11])


@pytest.mark.parametrize("strength", ["light", "standard"])
@pytest.mark.parametrize("change", [(8, 0, 0), (7, 1, 0), (7, 0, 1)])
def test_changes_with_seed_epoch_and_image(strength: str, change: tuple[int, int, int]) -> None:
    seed, epoch, row = change
    base = [Augmentation(strength, 7)(IMAGE, 0, 10 * i) for i in range(6)]
    other = [Augmentation(strength, seed)(IMAGE, epoch, 10 * i + row) for i in range(6)]
    assert sum(map(np.array_equal, base, other)) <= 1


@pytest.mark.parametrize("strength", ["none", "light", "standard"])
def test_keeps_shape_and_type_and_mirrors_half(strength: str) -> None:
    augmentation = Augmentation(strength, 0)
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 32, 3)).copy()
    out = [augmentation(ramp, 0, row) for row in range(200)]
    assert all(image.shape == ramp.shape and image.dtype == np.uint8 for image in out)
    mirrored = np.mean([image[:, :16].mean() > image[:, 16:].mean() for image in out])
    assert mirrored == 0 if strength == "none" else 0.38 < mirrored < 0.62


def test_views() -> None:
    pixels = torch.arange(2 * 3 * 4 * 3).view(2, 3, 4, 3)
    assert torch.equal(view(pixels, "identity"), pixels)
    assert torch.equal(view(pixels, "hflip")[:, :, 0], pixels[:, :, 3])
    assert torch.equal(view(view(pixels, "hflip"), "hflip"), pixels)
