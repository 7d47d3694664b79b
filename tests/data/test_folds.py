"""Faults 10, 11 and 21: folds are stratified and never split what belongs together."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ensemble.data.folds import FoldTable, assign_folds, together
from ensemble.errors import ConfigError, DataError


def counts(fold_of: NDArray[np.int8], labels: NDArray[np.int8], label: int, k: int) -> NDArray[np.int64]:
    return np.bincount(fold_of[labels == label], minlength=k)


@given(zeros=st.integers(2, 60), ones=st.integers(2, 200), k=st.integers(2, 12), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_single_rows_are_dealt_out_evenly(zeros: int, ones: int, k: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.array([0, 1], np.int8), [zeros, ones]))
    k = min(k, zeros, ones)
    folds = assign_folds(labels, np.arange(len(labels)), k, seed)
    for label in (0, 1):
        assert np.ptp(counts(folds.fold_of, labels, label, k)) <= 1
    assert np.ptp(np.bincount(folds.fold_of, minlength=k)) <= 2
    assert np.array_equal(folds.fold_of, assign_folds(labels, np.arange(len(labels)), k, seed).fold_of)
    assert not folds.fold_of.flags.writeable


@given(
    rows=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30)), min_size=1, max_size=120),
    k=st.integers(2, 6),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=100)
def test_units_stay_whole_and_spread(rows: list[tuple[int, int]], k: int, seed: int) -> None:
    labels, units = np.array(rows).T
    labels = labels.astype(np.int8)
    holders = min(len(np.unique(units[labels == label])) for label in (0, 1))
    if holders < k:
        with pytest.raises(DataError):
            assign_folds(labels, units, k, seed)
        return
    fold_of = assign_folds(labels, units, k, seed).fold_of
    for unit in np.unique(units):
        assert len(set(fold_of[units == unit])) == 1
    heaviest = np.unique(units, return_counts=True)[1].max()
    assert np.ptp(np.bincount(fold_of, minlength=k)) <= 4 * heaviest


@pytest.mark.parametrize(
    ("labels", "units", "k", "message"),
    [
        ([1, 1, 1], [0, 1, 2], 2, "none of 3 labels is 0"),
        ([0, 0, 0], [0, 1, 2], 2, "none of 3 labels is 1"),
        ([0, 0, 0, 1, 1, 1, 1], range(7), 4, "3 images of class 0 cannot fill 4 folds; use --folds 3 at most"),
        (
            [0, 0, 0, 1, 1, 1],
            [0, 0, 1, 2, 3, 4],
            3,
            "in 2 groups that stay together cannot fill 3 folds; use --folds 2",
        ),
        ([0, 1, 1], range(3), 2, "add images of this class"),
    ],
)
def test_too_few_of_a_class(labels: list[int], units: list[int], k: int, message: str) -> None:
    with pytest.raises(DataError) as error:
        assign_folds(np.array(labels, np.int8), np.array(units), k, 0)
    assert message in str(error.value)


@pytest.mark.parametrize("k", [-1, 1, 128])
def test_folds_out_of_range(k: int) -> None:
    with pytest.raises(ConfigError, match="--folds"):
        assign_folds(np.tile(np.array([0, 1], np.int8), 500), np.arange(1000), k, 0)


def test_seeds_differ() -> None:
    labels, units = np.tile(np.array([0, 1], np.int8), 50), np.arange(100)
    assert not np.array_equal(assign_folds(labels, units, 5, 0).fold_of, assign_folds(labels, units, 5, 1).fold_of)


def test_a_hundred_thousand_rows_take_no_time() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(100_000) > 0.12).astype(np.int8)
    units = together(np.arange(100_000).astype("S64"), rng.integers(0, 60_000, 100_000))
    started = time.process_time()
    folds = assign_folds(labels, units, 5, 0)
    assert time.process_time() - started < 2
    for label in (0, 1):
        assert np.ptp(counts(folds.fold_of, labels, label, 5)) <= 2


def test_together_links_through_files_and_groups() -> None:
    digests = np.array([b"a", b"b", b"c", b"b", b"d", b"e"])
    assert together(digests).tolist() == [0, 1, 2, 1, 4, 5]
    assert together(digests, np.array([7, 7, 8, 9, 9, 5])).tolist() == [0, 0, 2, 0, 0, 5]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_together_is_the_finest_partition(rows: list[tuple[int, int]]) -> None:
    unit = list(range(len(rows)))
    for i, (digest, group) in enumerate(rows):
        for j in range(i):
            if digest == rows[j][0] or group == rows[j][1]:
                low, high = sorted((unit[i], unit[j]))
                unit = [low if u == high else u for u in unit]
    digests, groups = np.array(rows).T
    assert together(digests.astype("S2"), groups).tolist() == unit


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ids": np.zeros(16)}, "16 ids must be distinct"),
        ({"ids": np.arange(15)}, r"ids must have shape \(16,\); got \(15,\)"),
        ({"labels": np.full(16, 2)}, "labels must be 0 or 1"),
        ({"groups": np.zeros(16)}, "group 0 must lie in one fold"),
        ({"groups": np.zeros(3)}, r"groups must have shape \(16,\)"),
    ],
)
def test_a_fold_table_that_contradicts_itself_is_refused(change: dict[str, np.ndarray], says: str) -> None:
    arrays = {"ids": np.arange(16), "labels": np.arange(16) % 2, "fold_of": np.arange(16) // 4}
    FoldTable(**arrays)
    with pytest.raises(DataError, match=says):
        FoldTable(**(arrays | change))


@pytest.mark.parametrize("groups", [None, np.arange(6) // 2])
def test_a_fold_table_goes_through_pandas_and_can_be_reordered(groups: np.ndarray | None) -> None:
    table = FoldTable(np.array(list("abcdef")), np.arange(6) % 2, np.arange(6) // 2, groups)
    again = FoldTable.from_pandas(table.to_pandas())
    backwards = table.reordered(np.arange(6)[::-1])
    for name in ("ids", "labels", "fold_of", "groups"):
        expected = getattr(table, name)
        if expected is None:
            assert getattr(again, name) is None and getattr(backwards, name) is None
        else:
            np.testing.assert_array_equal(getattr(again, name), expected)
            np.testing.assert_array_equal(getattr(backwards, name), expected[::-1])
