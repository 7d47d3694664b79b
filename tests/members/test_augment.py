from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from ensemble.config import AUGMENTATIONS, AugmentConfig
from ensemble.members.augment import Augmentation, view

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("strength", ["light", "standard"])
def test_depends_on_seed_epoch_and_image_alone(strength: str) -> None:
    first, second = Augmentation(AUGMENTATIONS[strength], 7), Augmentation(AUGMENTATIONS[strength], 7)
    forward = [first(IMAGE, epoch, row) for epoch in range(2) for row in range(8)]
    backward = [second(IMAGE, epoch, row) for epoch in (1, 0) for row in reversed(range(8))][::-1]
    assert all(map(np.array_equal, forward, backward))
    again = pickle.loads(pickle.dumps(first))
    assert np.array_equal(again(IMAGE, 1, 3), forward[11])


@pytest.mark.parametrize("strength", ["light", "standard"])
@pytest.mark.parametrize("change", [(8, 0, 0), (7, 1, 0), (7, 0, 1)])
def test_changes_with_seed_epoch_and_image(strength: str, change: tuple[int, int, int]) -> None:
    seed, epoch, row = change
    base = [Augmentation(AUGMENTATIONS[strength], 7)(IMAGE, 0, 10 * i) for i in range(6)]
    other = [Augmentation(AUGMENTATIONS[strength], seed)(IMAGE, epoch, 10 * i + row) for i in range(6)]
    assert sum(map(np.array_equal, base, other)) <= 1


@pytest.mark.parametrize("strength", ["none", "light", "standard"])
def test_keeps_shape_and_type_and_mirrors_half(strength: str) -> None:
    augmentation = Augmentation(AUGMENTATIONS[strength], 0)
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 32, 3)).copy()
    out = [augmentation(ramp, 0, row) for row in range(200)]
    assert all(image.shape == ramp.shape and image.dtype == np.uint8 for image in out)
    mirrored = np.mean([image[:, :16].mean() > image[:, 16:].mean() for image in out])
    assert mirrored == 0 if strength == "none" else 0.38 < mirrored < 0.62


@pytest.mark.parametrize("parts", [("shift", "rotate", "scale"), ("shift", "colour")])
def test_the_parts_of_an_augmentation_are_drawn_independently(parts: tuple[str, ...]) -> None:
    """Flipped, which way it is shifted and turned, how far zoomed, moved at all, coloured: none tells of another."""
    along = np.arange(64)
    image = np.stack(np.broadcast_arrays(2 * along[None] + 60, 2 * along[:, None] + 60, 128), axis=2).astype(np.uint8)
    amounts = {"shift": 0.06, "rotate": 5.0, "scale": 0.1, "colour": 0.2}
    augmentation = Augmentation(AugmentConfig(flip=True, **{part: amounts[part] for part in parts}), 0)
    found = []
    for row in range(1500):
        out = augmentation(image, 0, row)
        red, green, blue = np.moveaxis(out[16:48, 16:48].astype(float), 2, 0)
        flipped = red[:, -1].mean() < red[:, 0].mean()
        across = (red.mean() - 123) * (1 if flipped else -1)
        turned, zoomed = green[:, -1].mean() - green[:, 0].mean(), green[-1].mean() - green[0].mean()
        coloured = abs(blue.mean() - 128) > 0.5
        moved = not (np.array_equal(out, image) or np.array_equal(out, image[:, ::-1]))
        seen = {"shift": [across, green.mean()], "rotate": [turned], "scale": [zoomed, moved], "colour": [coloured]}
        found.append([flipped, *(value for part in parts for value in seen[part])])
    correlation = np.corrcoef(np.array(found, float).T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.12  # 4.6 standard errors


def test_views() -> None:
    pixels = torch.arange(2 * 3 * 4 * 3).view(2, 3, 4, 3)
    assert torch.equal(view(pixels, "identity"), pixels)
    assert torch.equal(view(pixels, "hflip")[:, :, 0], pixels[:, :, 3])
    assert torch.equal(view(view(pixels, "hflip"), "hflip"), pixels)


def test_each_part_does_what_it_says_and_no_more() -> None:
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 32, 3)).copy()

    def seen(**values: float | bool) -> list[np.ndarray]:
        augmentation = Augmentation(AugmentConfig.model_validate(values), 0)
        return [augmentation(ramp, 0, row) for row in range(60)]

    flipped = seen(flip=True)
    assert all(np.array_equal(image, ramp) or np.array_equal(image, ramp[:, ::-1]) for image in flipped)
    shifted = [image.astype(int).mean() - ramp.mean() for image in seen(shift=0.1)]  # 8 levels a pixel, 3.2 pixels
    assert 8 < np.abs(shifted).max() < 8 * 3.2 + 1
    turned = [np.abs(image.astype(int) - ramp).max() for image in seen(rotate=5)]  # at the corners: 15.5 sin 5°
    assert 4 < max(turned) < 8 * 15.5 * 0.09 + 8
    assert all((image[0] == image[9]).all() for image in seen(colour=0.2)), "colour moves nothing"
    assert any(not np.array_equal(image, ramp) for image in seen(colour=0.2))
