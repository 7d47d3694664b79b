"""The best rates of any rule equal brute force over all rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import norm

from ensemble.data.bayes import best_rates
from ensemble.data.synthetic import bayes_hter

RULES = np.array(list(itertools.product(range(3), repeat=6)))
"""Every rule that predicts one of three classes in each of six cells, (729, 6)."""


def rates_of(joint: np.ndarray, rule: np.ndarray) -> tuple[float, float, float]:
    """Return error, mean class error and macro F1 of a rule, from its confusion matrix."""
    confusion = np.array([[row[rule == c].sum() for c in range(len(joint))] for row in joint])
    recall = confusion.diagonal() / confusion.sum(1)
    f1 = 2 * confusion.diagonal() / (confusion.sum(1) + confusion.sum(0))
    return 1 - confusion.trace(), 1 - recall.mean(), f1.mean()


@pytest.mark.parametrize("concentration", [0.2, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_best_rates_equal_brute_force(seed: int, concentration: float) -> None:
    joint = np.random.default_rng(seed).dirichlet(np.full(18, concentration)).reshape(3, 6)
    errors, mean_errors, f1_scores = np.array([rates_of(joint, rule) for rule in RULES]).T
    best = best_rates(joint)
    assert (best.error, best.mean_error) == pytest.approx((errors.min(), mean_errors.min()), abs=1e-5)
    assert best.macro_f1 > f1_scores.max() - 1e-5  # a randomised rule may have a greater one where cells are large


def test_the_macro_f1_of_small_cells_equals_brute_force_over_two_cuts() -> None:
    """Three normal densities in a line: the best rule has two cuts, and brute force tries all pairs."""
    means, shares = (0.0, 2.5, 5.0), np.array([0.5, 0.43, 0.07])
    cuts = np.arange(-5, 10, 0.05)
    joint = shares[:, None] * np.diff([norm.cdf(cuts, mean) for mean in means], axis=1, prepend=0, append=1)
    below = np.hstack([np.zeros((3, 1)), joint.cumsum(1)])
    low, high = np.triu_indices(below.shape[1])
    parts = [below[:, low], below[:, high] - below[:, low], below[:, -1:] - below[:, high]]
    f1 = sum(2 * part[c] / (shares[c] + part.sum(0)) for c, part in enumerate(parts)) / 3
    assert best_rates(joint).macro_f1 == pytest.approx(f1.max(), abs=2e-5)


def test_two_classes_agree_with_the_bayes_hter_of_the_demo() -> None:
    joint = np.array([[0.12 * 0.95, 0.88 * 0.05], [0.12 * 0.05, 0.88 * 0.95]])  # given label, true class
    assert best_rates(joint).mean_error == pytest.approx(bayes_hter(), abs=1e-5)
