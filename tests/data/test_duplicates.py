"""Copies of images: the search against brute force, and the check on planted copies and on images that look alike."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.data import duplicates, hashes
from ensemble.data.duplicates import Copies, copy_groups, find_copies, find_overlaps, fold_units
from ensemble.data.hashes import MIRROR_BITS, MIRRORED, Descriptors, describe, similar_pairs
from ensemble.data.synthetic import draw_head


def heads(n: int, seed: int = 0, size: int = 64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([draw_head(rng, bool(row % 2), size) for row in range(n)])


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def smaller(image: np.ndarray, side: int) -> np.ndarray:
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


CHANGES = {
    "recompressed": lambda image: jpeg(image, 50),
    "shifted by one pixel": lambda image: np.pad(image, ((1, 0), (0, 1), (0, 0)), "edge")[:-1, 1:],
    "brighter": lambda image: np.clip(image * 1.2, 0, 255).astype(np.uint8),
    "darker": lambda image: (image * 0.7).astype(np.uint8),
    "smaller and enlarged again": lambda image: smaller(image, 40),
    "mirrored": lambda image: image[:, ::-1],
    "mirrored and recompressed": lambda image: jpeg(np.ascontiguousarray(image[:, ::-1]), 60),
}


def pairs_of(copies: Copies) -> set[tuple[int, int]]:
    return set(zip(copies.first.tolist(), copies.second.tolist(), strict=True))


# --- the search -------------------------------------------------------------------------------------------------------


def near_hashes(data: st.DataObject, n: int) -> np.ndarray:
    """Draw hashes of which many are a few bits apart, so that there are pairs on both sides of the radius."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    centres = rng.integers(0, 2**64, max(1, n // 6), dtype=np.uint64)
    bits = rng.integers(0, 24, n)
    flips = np.array([sum(1 << int(b) for b in rng.choice(64, k, replace=False)) for k in bits], np.uint64)
    return centres[rng.integers(0, len(centres), n)] ^ flips


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(0, 12), st.booleans(), st.booleans())
def test_the_search_finds_each_pair_of_brute_force_once(
    data: st.DataObject, radius: int, with_others: bool, mirrored: bool
) -> None:
    a = near_hashes(data, data.draw(st.integers(1, 60)))
    b = near_hashes(data, data.draw(st.integers(1, 60))) if with_others else a
    changed = MIRROR_BITS if mirrored else np.uint64(0)
    expected = np.bitwise_count(a[:, None] ^ b[None] ^ changed) <= radius
    expected = expected if with_others else np.triu(expected, 1)
    found = [
        (int(i), int(j))
        for first, second in similar_pairs(a, b if with_others else None, radius, changed)
        for i, j in zip(first, second, strict=True)
    ]
    assert len(found) == len(set(found))
    assert set(found) == set(zip(*(each.tolist() for each in np.nonzero(expected)), strict=True))


def test_the_search_takes_few_steps_where_all_hashes_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of pairs that are looked at grows by far less than the number of all pairs."""
    looked_at = []
    expanded = hashes._expanded

    def counted(starts: np.ndarray, stops: np.ndarray):  # type: ignore[no-untyped-def]
        for pair in expanded(starts, stops):
            looked_at.append(len(pair[0]))
            yield pair

    monkeypatch.setattr(hashes, "_expanded", counted)
    n = 20_000
    list(similar_pairs(np.random.default_rng(0).integers(0, 2**64, n, dtype=np.uint64), radius=7))
    assert sum(looked_at) < n * n / 2 / 500


def test_pairs_come_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "CANDIDATES", 50)
    parts = [len(first) for first, _ in similar_pairs(np.full(40, 7, np.uint64))]
    assert sum(parts) == 40 * 39 // 2 and max(parts) <= 50


def test_the_hash_of_a_mirrored_image_differs_in_the_mirror_bits() -> None:
    images = heads(20)
    ours, mirrored = describe(images), describe(np.ascontiguousarray(images[:, :, ::-1]))
    np.testing.assert_allclose(mirrored.shapes, ours.shapes * MIRRORED, atol=2e-5)
    assert np.median(np.bitwise_count(ours.hashes ^ mirrored.hashes ^ MIRROR_BITS)) == 0


# --- the check --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_planted_copies_are_found(change: str) -> None:
    images = heads(60)
    planted = np.concatenate([images, np.stack([CHANGES[change](image) for image in images[:20]])])
    copies = find_copies(planted, describe(planted))
    expected = {(row, 60 + row) for row in range(20)}
    assert len(expected & pairs_of(copies)) >= 19
    assert len(pairs_of(copies) - expected) <= 1
    mirrored = dict(zip(zip(copies.first.tolist(), copies.second.tolist(), strict=True), copies.mirrored, strict=True))
    assert all(mirrored[pair] == change.startswith("mirrored") for pair in expected & pairs_of(copies))


def test_images_that_look_alike_are_no_copies() -> None:
    """Two drawn heads share layout and shapes; the details and colours tell most of them apart."""
    images = heads(600, seed=3)
    assert len(find_copies(images, describe(images)).first) <= 3


def test_other_colours_are_no_copy_unless_all_details_agree() -> None:
    rng = np.random.default_rng(0)
    shapes = cv2.GaussianBlur(rng.random((64, 64)).astype(np.float32), (0, 0), 2)
    image = np.dstack([shapes * k for k in (1.0, 0.6, 0.3)])
    image = (255 * image / image.max()).astype(np.uint8)
    noisy = np.clip(image[..., ::-1] + rng.normal(0, 14, (64, 64, 1)), 0, 255).astype(np.uint8)
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    both = np.stack([image, noisy, grey])
    assert duplicates.colour_difference(image, noisy) > duplicates.MOST_COLOUR
    assert duplicates.colour_difference(image, image) == 0
    assert pairs_of(find_copies(both, describe(both))) == {(0, 2)}


def test_the_size_of_the_images_does_not_matter() -> None:
    images = np.stack([cv2.resize(image, (150, 110)) for image in heads(30)])
    planted = np.concatenate([images, np.stack([jpeg(image, 60) for image in images[:10]])])
    assert {(row, 30 + row) for row in range(10)} <= pairs_of(find_copies(planted, describe(planted)))


def test_flat_images_have_identical_copies_only() -> None:
    rng = np.random.default_rng(0)
    flat = (128 + rng.integers(-2, 3, (3, 64, 64, 3))).astype(np.uint8)
    planted = np.concatenate([flat, flat[:1]])
    descriptors = describe(planted)
    copies = find_copies(planted, descriptors)
    assert descriptors.flat.all() and not len(copies.first)
    assert copy_groups(descriptors, copies).tolist() == [0, 1, 2, 0]


def test_a_thousand_copies_need_few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    image = heads(1)[0]
    planted = np.repeat(image[None], 300, axis=0).copy()
    planted[:, 0, 0] = np.arange(900).reshape(300, 3) % 256  # different pixels in a corner
    checked = []
    compare = duplicates.compare

    def counted(first, second, pairs, mirrored):  # type: ignore[no-untyped-def]
        checked.append(pairs)
        return compare(first, second, pairs, mirrored)

    monkeypatch.setattr(duplicates, "compare", counted)
    monkeypatch.setattr(duplicates, "CHECKED", 500)
    descriptors = describe(planted)
    assert np.unique(copy_groups(descriptors, find_copies(planted, descriptors))).tolist() == [0]
    assert sum(checked) < 2500  # of 44,850 pairs


def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    images = heads(80)
    planted = np.concatenate([images, np.stack([jpeg(image, 40) for image in images])])
    ours = find_copies(planted, describe(planted))
    monkeypatch.setattr(duplicates, "available_cores", lambda: [0])
    alone = find_copies(planted, describe(planted))
    for name in ("first", "second", "correlation", "mirrored"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(alone, name))


# --- two sets, and groups ---------------------------------------------------------------------------------------------


def test_overlaps_name_the_image_that_each_other_one_equals() -> None:
    images, others = heads(60), heads(30, seed=9)
    others[0], others[1] = images[5], jpeg(images[7], 50)
    others[2] = images[8][:, ::-1]
    others[3] = 77
    overlaps = find_overlaps(images, describe(images), others, describe(others))
    found = dict(zip(overlaps.second.tolist(), overlaps.first.tolist(), strict=True))
    assert {other: found.get(other) for other in (0, 1, 2)} == {0: 5, 1: 7, 2: 8}
    assert 3 not in found and len(found) <= 4
    assert overlaps.correlation[overlaps.second == 0].tolist() == [1]
    assert overlaps.mirrored[overlaps.second == 2].tolist() == [True]


def test_groups_join_identical_images_copies_and_given_groups() -> None:
    descriptors = Descriptors(
        np.array([b"a", b"b", b"a", b"c", b"d", b"e"]), np.zeros((6, 64), np.float32), np.zeros(6, bool)
    )
    ones, plain = np.ones(1, np.float32), np.zeros(1, bool)
    copies = Copies(np.array([2]), np.array([3]), ones, plain)
    assert copy_groups(descriptors, copies).tolist() == [0, 1, 0, 0, 4, 5]
    assert copy_groups(descriptors, copies, np.array([1, 2, 3, 4, 4, 2])).tolist() == [0, 1, 0, 0, 0, 1]


def test_fold_units_group_copies_on_request_alone() -> None:
    from ensemble.data.dataset import Dataset

    images = heads(20)
    planted = np.concatenate([images, jpeg(images[3], 60)[None]])
    digests = np.array([f"{row:064d}" for row in range(21)], "S64")
    dataset = Dataset(np.arange(21).astype(str), None, None, planted, digests, "")
    said: list[str] = []
    assert fold_units(dataset).tolist() == list(range(21))
    units = fold_units(dataset, "group", said.append)
    assert units[20] == units[3] == 3
    assert said == ["2 identical or nearly identical images are kept together in folds, in 1 groups"]
    grouped = dataclasses.replace(dataset, groups=np.array([0, *range(20)]))
    units = fold_units(grouped, "group")
    assert units[0] == units[1] and units[20] == units[3]


def test_no_images_have_no_copies() -> None:
    none = np.empty((0, 16, 16, 3), np.uint8)
    assert not len(find_copies(none, describe(none)).first)
    assert not len(find_overlaps(none, describe(none), none, describe(none)).first)
