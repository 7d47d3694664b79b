"""Faulty images: each planted fault is found as such, and ordinary images are not listed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ensemble.data.blocks import each_block, grey
from ensemble.data.pixel_maps import PERCENTILE, class_means, telling_pixels
from ensemble.data.quality import find_faults, measure, odd_scores, robust_scores
from ensemble.data.synthetic import draw_head


@pytest.fixture(scope="module")
def heads() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([draw_head(rng, bool(row % 2)) for row in range(300)])


def noisy(level: float, sigma: float) -> np.ndarray:
    return np.clip(np.random.default_rng(1).normal(level, sigma, (64, 64, 3)), 0, 255).round().astype(np.uint8)


FAULTS = {
    "constant": lambda image: np.full_like(image, 90),
    "blank": lambda image: noisy(120, 2),
    "dark": lambda image: (image * 0.15).astype(np.uint8),
    "bright": lambda image: (215 + image * 0.15).astype(np.uint8),
    "blurred": lambda image: cv2.GaussianBlur(image, (0, 0), 4),
    "odd": lambda image: np.roll(255 - image, 32, axis=1),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_found_as_such(heads: np.ndarray, kind: str) -> None:
    images = heads.copy()
    planted = [7, 150, 299]
    for row in planted:
        images[row] = FAULTS[kind](images[row])
    found = [fault.row for fault in find_faults(measure(images)) if fault.kind == kind]
    assert set(planted) <= set(found) and len(found) <= len(planted) + 2


def test_few_ordinary_images_are_listed(heads: np.ndarray) -> None:
    assert len(find_faults(measure(heads))) <= 3


def test_constant_and_blank_images_are_not_judged_further(heads: np.ndarray) -> None:
    images = heads[:100].copy()
    images[0], images[1] = 0, noisy(3, 1)
    kinds = {(fault.row, fault.kind) for fault in find_faults(measure(images)) if fault.row < 2}
    assert kinds == {(0, "constant"), (1, "blank")}


@pytest.mark.parametrize("level", [0, 255])
def test_a_set_that_is_dark_or_bright_as_a_whole_is_not_listed(heads: np.ndarray, level: int) -> None:
    images = (level + (heads.astype(float) - level) * 0.2).astype(np.uint8)
    assert not [fault for fault in find_faults(measure(images)) if fault.kind in ("dark", "bright")]


def test_a_set_that_is_blurred_as_a_whole_is_not_listed(heads: np.ndarray) -> None:
    images = np.stack([cv2.GaussianBlur(image, (0, 0), 3) for image in heads])
    assert len([fault for fault in find_faults(measure(images)) if fault.kind == "blurred"]) <= 2


def test_the_worst_image_of_a_kind_comes_first(heads: np.ndarray) -> None:
    images = heads.copy()
    for row, sigma in ((3, 3), (4, 6), (5, 4)):
        images[row] = cv2.GaussianBlur(images[row], (0, 0), sigma)
    rows = [fault.row for fault in find_faults(measure(images)) if fault.kind == "blurred"]
    assert [row for row in rows if row in (3, 4, 5)] == [4, 5, 3]


def test_few_images_have_no_odd_ones() -> None:
    assert odd_scores(np.random.default_rng(0).random((9, 192)).astype(np.float32)).tolist() == [0] * 9


@pytest.mark.parametrize("n", [1, 2, 30])
def test_equal_images_have_no_relative_faults(heads: np.ndarray, n: int) -> None:
    assert find_faults(measure(np.repeat(heads[:1], n, axis=0))) == []


def test_robust_scores_hold_for_a_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(5, 3, 20_000)
    np.testing.assert_allclose(robust_scores(values, 1e-9), (values - 5) / 3, atol=0.1)


def test_measures_are_those_of_single_images(heads: np.ndarray) -> None:
    images = heads[:20]
    measures = measure(images)
    for row, image in enumerate(images):
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        edges = cv2.Laplacian(cv2.GaussianBlur(luma, (3, 3), 0), cv2.CV_64F)
        assert measures.contrast[row] == pytest.approx(luma.std(), rel=1e-4)
        assert measures.sharpness[row] == pytest.approx(edges.var() / luma.var(), rel=1e-3)
        for value, share in ((measures.low[row], 0.05), (measures.high[row], 0.95)):  # of a sample of the pixels
            assert np.quantile(luma, share - 0.02) <= value <= np.quantile(luma, share + 0.02)


def test_blocks_come_in_order_and_cover_all_images(heads: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.data.blocks.BLOCK_BYTES", 7 * heads[0].nbytes)
    parts = list(each_block(heads, lambda start, block: (start, len(block)), "test"))
    assert [start for start, _ in parts] == list(range(0, 300, 7)) and sum(n for _, n in parts) == 300
    np.testing.assert_array_equal(grey(heads[:2])[1], cv2.cvtColor(heads[1], cv2.COLOR_RGB2GRAY))


# --- pictures of the classes ------------------------------------------------------------------------------------------


def test_class_means_are_exact(heads: np.ndarray) -> None:
    labels = np.arange(300) % 3
    means = class_means(heads, labels, 4)
    for label in range(3):
        np.testing.assert_allclose(means[label], heads[labels == label].astype(np.float64).mean(0), atol=1e-9)
    assert np.isnan(means[3]).all()


def test_telling_pixels_are_where_the_classes_differ() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 200, (400, 20, 20, 3)).astype(np.uint8), rng.integers(0, 2, 400)
    images[labels == 1, 4:10, 4:10] += 50
    telling = telling_pixels(images, labels)
    assert telling is not None and telling.images == 400
    inside = np.zeros((20, 20), bool)
    inside[4:10, 4:10] = True
    assert telling.chosen[inside].mean() > 0.9
    assert telling.chosen.sum() == pytest.approx(400 * PERCENTILE / 100, abs=4)
    luma = grey(images).reshape(400, -1)[:, 5 * 20 + 5].astype(float)
    between = sum((labels == c).sum() * (luma[labels == c].mean() - luma.mean()) ** 2 for c in (0, 1))
    assert telling.scores[5, 5] == pytest.approx(between / ((luma - luma.mean()) ** 2).sum())


def test_few_images_are_enough_for_telling_pixels(heads: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.data.pixel_maps.MOST_IMAGES", 50)
    monkeypatch.setattr("ensemble.data.blocks.BLOCK_BYTES", 7 * heads[0].nbytes)
    telling = telling_pixels(heads, np.arange(300) % 2)
    assert telling is not None and telling.images == 50
    assert telling_pixels(heads, np.zeros(300, int)) is None
    assert telling_pixels(np.full((30, 8, 8, 3), 9, np.uint8), np.arange(30) % 2) is not None
