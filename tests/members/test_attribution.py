"""Occlusion against networks whose logit is known in every pixel, and on drawn heads whose criterion is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ensemble.config import seed_sequence
from ensemble.data.pixel_maps import mean_image
from ensemble.data.synthetic import draw_head
from ensemble.members.attribution import class_logits, occlusion, passes, squares

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


class Counting:
    """A progress bar that counts."""

    def __init__(self) -> None:
        self.done = 0

    def advance(self, n: int = 1) -> None:
        self.done += n


class MeanOfSquare(nn.Module):
    """Its logit is the mean of the pixels of a square; of C classes, each has a square of its own."""

    def __init__(self, *places: tuple[slice, slice]) -> None:
        super().__init__()
        self.places = places
        self.logit_shape = () if len(places) == 1 else (len(places),)

    def forward(self, pixels: torch.Tensor, precision: torch.dtype = torch.float32) -> torch.Tensor:
        means = [pixels.double()[:, down, across].mean(dim=(1, 2, 3)) for down, across in self.places]
        return means[0] if len(means) == 1 else torch.stack(means, dim=1)


def random_images(n: int, height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width", "grid"), [(64, 64, 8), (24, 40, 8), (19, 30, 5), (3, 4, 3)])
def test_only_the_square_that_the_logit_depends_on_has_an_effect(height: int, width: int, grid: int) -> None:
    pixels, labels = random_images(6, height, width), np.array([0, 1, 0, 1, 1, 0])
    mean, bar = random_images(1, height, width)[0], Counting()
    places = list(squares(height, width, grid))
    for index in (0, grid + 1, grid * grid - 1):
        down, across = places[index]
        effects = occlusion(MeanOfSquare((down, across)), pixels, labels, mean, grid, CPU, bar)  # type: ignore[arg-type]
        fall = pixels[:, down, across].mean(axis=(1, 2, 3)) - mean[down, across].mean()
        expected = np.zeros((6, grid * grid))
        expected[:, index] = np.where(labels == 1, fall, -fall)
        np.testing.assert_allclose(effects.reshape(6, -1), expected, atol=1e-4)
    assert bar.done == 3 * passes(6, grid)


def test_of_three_classes_the_effect_is_on_the_logit_less_the_mean_of_the_others() -> None:
    pixels, labels, mean = random_images(4, 16, 16), np.array([0, 1, 2, 2]), random_images(1, 16, 16)[0]
    places = list(squares(16, 16, 4))
    network = MeanOfSquare(*places[:3])
    effects = occlusion(network, pixels, labels, mean, 4, CPU, Counting()).reshape(4, -1)  # type: ignore[arg-type]
    for row, label in enumerate(labels.tolist()):
        for index, (down, across) in enumerate(places):
            fall = pixels[row, down, across].mean() - mean[down, across].mean()
            weight = 0.0 if index > 2 else 1.0 if index == label else -0.5
            assert effects[row, index] == pytest.approx(weight * fall, abs=1e-4)


def test_images_are_left_as_they_are() -> None:
    pixels = random_images(2, 16, 16)
    before, (place, *_) = pixels.copy(), squares(16, 16, 2)
    occlusion(MeanOfSquare(place), pixels, np.array([0, 1]), before[0], 2, CPU, Counting())  # type: ignore[arg-type]
    np.testing.assert_array_equal(pixels, before)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_the_squares_tile_the_image(height: int, width: int, data: st.DataObject) -> None:
    grid = data.draw(st.integers(1, min(height, width)))
    covered, sides = np.zeros((height, width), int), []
    for down, across in squares(height, width, grid):
        covered[down, across] += 1
        sides.append((down.stop - down.start, across.stop - across.start))
    assert (covered == 1).all() and len(sides) == grid * grid
    assert all(max(side) - min(side) <= 1 for side in zip(*sides, strict=True))


def test_the_logit_of_a_class_is_antisymmetric_for_two_and_sums_to_zero_for_more() -> None:
    z = RNG.normal(size=9)
    np.testing.assert_array_equal(class_logits(z, np.zeros(9, int)), -class_logits(z, np.ones(9, int)))
    logits = RNG.normal(size=(5, 4))
    each = [class_logits(logits, np.full(5, label)) for label in range(4)]
    np.testing.assert_allclose(np.sum(each, axis=0), 0, atol=1e-12)
    shifted = class_logits(logits + 7, np.full(5, 2))
    np.testing.assert_allclose(shifted, each[2], atol=1e-12)


def test_the_mean_image_is_the_mean() -> None:
    pixels = random_images(50, 8, 8)
    np.testing.assert_array_equal(mean_image(pixels), np.round(pixels.mean(axis=0)))
    np.testing.assert_array_equal(mean_image(pixels, np.array([3, 4])), np.round(pixels[[3, 4]].mean(axis=0)))


def test_of_many_images_the_mean_takes_some_that_are_evenly_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.data.pixel_maps.MEAN_ROWS", 3)
    pixels = random_images(11, 4, 4)
    np.testing.assert_array_equal(mean_image(pixels), np.round(pixels[[0, 5, 10]].mean(axis=0)))


# --- the criterion of the demo ----------------------------------------------------------------------------------------


class SmallNetwork(nn.Module):
    """Two convolutions on images of 32 pixels, which tell hats and glasses from bare heads after some seconds."""

    logit_shape = ()

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 1))

    def forward(self, pixels: torch.Tensor, precision: torch.dtype = torch.float32) -> torch.Tensor:
        logits: torch.Tensor = self.layers(pixels.permute(0, 3, 1, 2).float() / 128 - 1)
        return logits.squeeze(1)


def heads(first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return drawn heads of 32 pixels and their labels: 0 means a hat or glasses."""
    labels = np.arange(n) % 2
    drawn = [
        draw_head(np.random.default_rng(seed_sequence(0, "heads", first + row)), label == 0, 32)
        for row, label in enumerate(labels.tolist())
    ]
    return np.stack(drawn), labels


def test_the_map_of_label_0_lights_up_where_hats_and_glasses_are() -> None:
    torch.manual_seed(0)
    network, (pixels, labels) = SmallNetwork(), heads(0, 800)
    optimiser, x, y = torch.optim.AdamW(network.parameters(), 3e-3), torch.from_numpy(pixels), torch.from_numpy(labels)
    for _ in range(8):
        for rows in torch.randperm(len(x)).split(32):
            optimiser.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(network(x[rows]), y[rows].float()).backward()
            optimiser.step()
    others, truth = heads(len(x), 200)
    with torch.no_grad():
        right = (network(torch.from_numpy(others)) > 0).numpy() == truth
    assert right.mean() > 0.85
    shown = (truth == 0) & right
    effects = occlusion(network, others[shown], truth[shown], mean_image(pixels), 8, CPU, Counting())  # type: ignore[arg-type]
    positive = np.maximum(effects.mean(axis=0), 0)
    # of 8 squares, hats are drawn on rows 1 to 3 and glasses on rows 3 and 4, both on columns 1 to 6
    accessories = positive[1:5, 1:7].sum() / positive.sum()
    assert accessories > 0.8  # they are 0.375 of the area
    assert np.unravel_index(positive.argmax(), positive.shape)[0] in (2, 3, 4)
