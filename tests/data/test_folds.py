"""Faults 10, 11 and 21: folds are stratified and never split what belongs together."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ensemble.config import seed_sequence
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


# --- two classes as before, and more classes --------------------------------------------------------------------------


def former_folds(labels: NDArray[np.int8], units: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int8]:
    """Assign folds as the rule for two classes did before there were more, to the letter."""
    _, unit = np.unique(units, return_inverse=True)
    counts = np.bincount(2 * unit + labels, minlength=2 * (unit.max(initial=-1) + 1)).reshape(-1, 2)
    rng = np.random.default_rng(seed_sequence(seed, "folds"))
    order = np.lexsort((rng.random(len(counts)), -counts.sum(1)))
    weight_0, weight_1 = (counts.sum(0)[::-1] ** 2).tolist()
    rows_of_0, rows_of_1 = [0] * k, [0] * k

    def cost(fold: int) -> tuple[int, int]:
        load = n_0 * rows_of_0[fold] * weight_0 + n_1 * rows_of_1[fold] * weight_1
        return load, rows_of_0[fold] + rows_of_1[fold]

    fold_of_unit = np.empty(len(counts), np.int8)
    for u, (n_0, n_1) in zip(order, counts[order].tolist(), strict=True):
        fold_of_unit[u] = fold = min(range(k), key=cost)
        rows_of_0[fold] += n_0
        rows_of_1[fold] += n_1
    return fold_of_unit[unit]


def folds_by_fractions(
    strata: NDArray[np.int64], units: NDArray[np.int64], k: int, seed: int
) -> NDArray[np.int8]:  # strata (n, t)
    """Assign folds by the rule of `assign_folds`, in fractions and over dense counts."""
    _, unit = np.unique(units, return_inverse=True)
    indicators = np.concatenate([column[:, None] == np.unique(column) for column in strata.T], axis=1)
    counts = np.array([indicators[unit == u].sum(0) for u in range(unit.max() + 1)])
    sizes = np.bincount(unit)
    rng = np.random.default_rng(seed_sequence(seed, "folds"))
    folds: list[list[int]] = [[] for _ in range(k)]
    for u in np.lexsort((rng.random(len(sizes)), -sizes)).tolist():

        def cost(fold: int, u: int = u) -> tuple[Fraction, int]:
            there = counts[folds[fold]].sum(0)
            parts = zip(counts[u].tolist(), there.tolist(), counts.sum(0).tolist(), strict=True)
            return sum((Fraction(n * m, total**2) for n, m, total in parts), Fraction()), sizes[folds[fold]].sum()

        folds[min(range(k), key=cost)].append(u)
    fold_of_unit = {u: fold for fold, of_fold in enumerate(folds) for u in of_fold}
    return np.array([fold_of_unit[u] for u in unit.tolist()], np.int8)


@given(
    n=st.integers(8, 150),
    of_units=st.floats(0.1, 1),
    share=st.floats(0.05, 0.95),
    k=st.integers(2, 6),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=300)
def test_two_classes_have_the_folds_that_they_always_had(
    n: int, of_units: float, share: float, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < share).astype(np.int8)
    units = rng.integers(0, max(1, round(of_units * n)), n)
    assume(min(len(np.unique(units[labels == label])) for label in (0, 1)) >= k)
    expected = former_folds(labels, units, k, seed)
    assert assign_folds(labels, units, k, seed).fold_of.tobytes() == expected.tobytes()
    assert assign_folds(labels, units, k, seed, classes=("a", "b")).fold_of.tobytes() == expected.tobytes()
    assert (
        assign_folds(labels, units, k, seed, strata=7 - 500 * labels.astype(int)).fold_of.tolist() == expected.tolist()
    )


@given(
    n=st.integers(20, 90),
    of_units=st.floats(0.2, 1),
    classes=st.integers(3, 18),
    columns=st.integers(1, 3),
    k=st.integers(2, 5),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_strata_are_balanced_by_the_rule_in_fractions(
    n: int, of_units: float, classes: int, columns: int, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels, units = np.arange(n) % 2, rng.integers(0, round(of_units * n), n)
    assume(min(len(np.unique(units[labels == label])) for label in (0, 1)) >= k)
    strata = rng.integers(-(10**6), 10**6, classes)[rng.integers(0, classes, (n, columns))]
    fold_of = assign_folds(labels, units, k, seed, strata=strata).fold_of
    assert fold_of.tolist() == folds_by_fractions(strata, units, k, seed).tolist()
    one = assign_folds(labels, units, k, seed, strata=strata[:, 0]).fold_of
    assert one.tolist() == folds_by_fractions(strata[:, :1], units, k, seed).tolist()


@given(sizes=st.lists(st.integers(5, 40), min_size=3, max_size=18), k=st.integers(2, 5), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_single_rows_of_many_classes_are_dealt_out_evenly(sizes: list[int], k: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes), dtype=np.int8), sizes))
    fold_of = assign_folds(labels, np.arange(len(labels)), k, seed).fold_of
    assert all(np.ptp(counts(fold_of, labels, label, k)) <= 1 for label in range(len(sizes)))


def test_people_of_seven_images_and_rare_classes_are_in_every_fold() -> None:
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(300), 7)
    gender, age = rng.integers(0, 2, 300), rng.choice(3, 300, p=(0.45, 0.48, 0.07))
    mask = np.tile([0, 0, 0, 0, 0, 1, 2], 300)
    labels = (mask * 6 + gender[person] * 3 + age[person]).astype(np.int8)
    fold_of = assign_folds(labels, person, 5, 0).fold_of
    assert all(len(set(fold_of[person == each])) == 1 for each in range(300))
    fold_of_person = fold_of[::7]
    for cell in range(6):  # a person's gender and age
        assert np.ptp(counts(fold_of_person, gender * 3 + age, cell, 5)) <= 1
    assert all(counts(fold_of, labels, label, 5).min() > 0 for label in range(18))


@pytest.mark.parametrize(
    ("labels", "units", "k", "classes", "message"),
    [
        ([0, 0, 1, 1], range(4), 2, ("a", "b", "c"), "every class must be present; none of 4 labels is c; add images"),
        ([0, 0, 2, 2], range(4), 2, None, "every class must be present; none of 4 labels is 1; add images of"),
        ([0, 0, 1, 1, 2], range(5), 2, ("a", "b", "a\nc"), r"1 image of class a\nc cannot fill 2 folds; add images"),
        ([0, 0, 0, 1, 1, 1, 2, 2], range(8), 3, None, "2 images of class 2 cannot fill 3 folds; use --folds 2 at most"),
        ([0, 0, 0, 1, 1, 1], [0, 0, 1, 2, 3, 4], 3, ("a", "b"), "3 images of class 0 in 2 groups that stay together"),
        ([0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 4], 2, ("a", "b", "c"), "2 images of class c in 1 group that stay toge"),
    ],
)
def test_classes_that_cannot_fill_the_folds_are_named(
    labels: list[int], units: list[int], k: int, classes: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(DataError) as error:
        assign_folds(np.array(labels, np.int8), np.array(units), k, 0, "labels.csv", classes)
    assert str(error.value).startswith(f"labels.csv: {message}")


def test_strata_may_be_rare_and_their_number_is_not_that_of_int8() -> None:
    labels = np.arange(600) % 3
    strata = np.arange(600) // 2 * 10**9
    folds = assign_folds(labels, np.arange(600), 4, 0, strata=strata)
    assert all(len(set(folds.fold_of[strata == each])) == 2 for each in np.unique(strata))
    assert np.ptp(np.bincount(folds.fold_of)) <= 1


# --- what belongs together, and the table of folds --------------------------------------------------------------------


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
    columns = table.to_pandas()
    again = FoldTable(columns["id"], columns["label"], columns["fold"], columns.get("group"))
    backwards = table.reordered(np.arange(6)[::-1])
    for name in ("ids", "labels", "fold_of", "groups"):
        expected = getattr(table, name)
        if expected is None:
            assert getattr(again, name) is None and getattr(backwards, name) is None
        else:
            np.testing.assert_array_equal(getattr(again, name), expected)
            np.testing.assert_array_equal(getattr(backwards, name), expected[::-1])
