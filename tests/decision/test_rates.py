import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from ensemble.decision.rates import apply_threshold, auc, error_rates
from ensemble.errors import DataError

rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=40).map(
    lambda extra: np.array([(0, 1), (1, 1), *extra])
)
scored = st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), max_size=40).map(
    lambda extra: np.array([(0, 1), (1, 0), *extra])
)


@given(rows)
def test_hter_is_one_minus_balanced_accuracy(table):
    labels, y_pred = table.T
    assert error_rates(labels, y_pred).hter == pytest.approx(1 - balanced_accuracy_score(labels, y_pred))


@given(scored, st.randoms(use_true_random=False))
def test_rates_and_auc_ignore_the_order_of_rows(table, random):
    order = random.sample(range(len(table)), len(table))
    (labels, logits), (labels_too, logits_too) = table.T, table[order].T
    assert error_rates(labels, apply_threshold(logits, 1)) == error_rates(labels_too, apply_threshold(logits_too, 1))
    assert auc(logits, labels) == auc(logits_too, labels_too)


@given(scored)
def test_auc_equals_scikit_learn(table):
    labels, logits = table.T
    assert auc(logits, labels) == pytest.approx(roc_auc_score(labels, logits))


def test_a_tie_is_a_one():
    np.testing.assert_array_equal(apply_threshold([-0.1, 0.0, 0.1], 0.0), np.array([0, 1, 1], np.int8))


@pytest.mark.parametrize(
    ("labels", "y_pred", "says"),
    [
        ([1] * 240, [1] * 240, "HTER needs both classes; got 0 of label 0 in 240 images"),
        ([0, 0], [1, 0], "got 0 of label 1 in 2 images"),
        ([0, 1], [1, 0, 1], r"one shape; got \(2,\) and \(3,\)"),
        ([0, 2], [1, 0], "labels must be 0 or 1; got 2 at row 1"),
        ([0, 1], [np.nan, 0], "predictions must be 0 or 1; got nan at row 0"),
        (["0", "1"], [1, 0], "labels must be 0 or 1"),
        ([], [], "HTER needs both classes"),
    ],
)
def test_what_cannot_be_rated_is_refused(labels, y_pred, says):
    with pytest.raises(DataError, match=says):
        error_rates(labels, y_pred)


@pytest.mark.parametrize("logits", [[np.nan, 0.0], [np.inf, 0.0], [[0.0], [1.0]], [0.0]])
def test_logits_that_are_not_finite_or_of_another_shape_are_refused(logits):
    with pytest.raises(DataError, match="cannot compute the AUC: "):
        auc(logits, [0, 1])


def test_rates_need_no_scikit_learn():
    check = "import sys, ensemble.decision.rates; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
