"""The rates of several targets together, against scikit-learn and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from ensemble.decision.joint import measure_joint
from ensemble.errors import DataError


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=40))
def test_the_rates_are_those_of_the_joined_class(rows: list[tuple[int, int, int, int]]) -> None:
    table = np.array(rows)
    labels, y_pred = table[:, :2], table[:, 2:]
    rates = measure_joint(labels, y_pred, replicates=2)
    y_true, predicted = labels @ [3, 1], y_pred @ [3, 1]
    assert rates.accuracy == pytest.approx(accuracy_score(y_true, predicted))
    expected = f1_score(y_true, predicted, labels=np.unique(y_true), average="macro", zero_division=0)
    assert rates.macro_f1 == pytest.approx(expected)
    assert rates.n == len(rows)
    assert [row.labels for row in rates.rows] == sorted(set(map(tuple, labels.tolist())))


def test_a_rule_without_errors_has_no_interval_below_1_though_few_people_have_a_combination() -> None:
    labels = np.stack([np.tile([0, 0, 1], 8), np.repeat([0, 0, 0, 1, 1, 2, 3, 4], 3)], axis=1)
    rates = measure_joint(labels, labels, np.repeat(np.arange(8), 3), replicates=200)
    assert (rates.macro_f1_interval.low, rates.macro_f1_interval.high) == (1, 1)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match=r"shapes must be \(n, t\) and equal; got \(3, 2\), \(3, 1\)"):
        measure_joint(np.zeros((3, 2), int), np.zeros((3, 1), int))


def test_intervals_hold_the_true_rates_of_fixed_rules_also_with_groups() -> None:
    rng, held, sets = np.random.default_rng(0), np.zeros(2), 200
    accuracy = 0.8  # of groups of four images, which are right together or not; of each combination alike

    def drawn(people: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = np.stack([rng.permutation(people) % 2, np.arange(people) % 3], axis=1)
        right = rng.random(people) < accuracy
        wrong = np.stack([labels[:, 0], (labels[:, 1] + 1) % 3], axis=1)
        y_pred = np.where(right[:, None], labels, wrong)
        return np.repeat(labels, 4, axis=0), np.repeat(y_pred, 4, axis=0), np.repeat(np.arange(people), 4)

    truth = measure_joint(*drawn(30_000)[:2], replicates=1)
    for _ in range(sets):
        labels, y_pred, groups = drawn(240)
        rates = measure_joint(labels, y_pred, groups, replicates=100)
        for j, (value, interval) in enumerate(
            ((truth.accuracy, rates.accuracy_interval), (truth.macro_f1, rates.macro_f1_interval))
        ):
            held[j] += interval.low <= value <= interval.high
    assert (held / sets > 0.89).all() and (held / sets < 0.985).all(), held / sets
