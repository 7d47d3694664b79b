"""`fpr:R,C`: the true rate is at most R with confidence C."""

import numpy as np
import pytest
from scipy.stats import beta, norm

from ensemble.decision.objective import BoundedFnr, BoundedFpr, Objective
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ConfigError


@pytest.mark.parametrize(
    ("n", "bound", "confidence"), [(30, 0.05, 0.95), (300, 0.05, 0.95), (1000, 0.2, 0.9), (59, 0.05, 0.95)]
)
def test_the_most_errors_are_those_whose_upper_bound_is_within_the_bound(n, bound, confidence):
    allowed = [x for x in range(n) if beta.ppf(confidence, x + 1, n - x) <= bound]
    most = allowed[-1] if allowed else 0
    assert BoundedFpr(bound, confidence).on_rows(n, 7) == BoundedFpr(most / n)
    assert BoundedFnr(bound, confidence).on_rows(7, n) == BoundedFnr(most / n)


def test_the_true_rate_seldom_exceeds_a_guaranteed_bound_and_often_a_target(rng):
    exceeded = {"fpr:0.05": 0, "fpr:0.05,0.95": 0}
    y = np.repeat([0, 1], [300, 300])
    for _ in range(400):
        x = rng.normal(size=600) + 2 * y
        for form in exceeded:
            exceeded[form] += norm.sf(fit_threshold(x, y, Objective.parse(form))) > 0.05
    assert exceeded["fpr:0.05,0.95"] <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5
    assert exceeded["fpr:0.05"] > 120


def test_too_few_rows_guarantee_only_the_cut_at_which_no_error_is_possible():
    x, y = np.arange(20.0), np.repeat([0, 1], 10)
    assert fit_threshold(x, y, Objective.parse("fpr:0.01,0.95")) > x.max()
    assert fit_threshold(x, y, Objective.parse("fnr:0.01,0.95")) < x.min()
    assert 9 < fit_threshold(x, y, Objective.parse("fpr:0.5,0.95")) < 10


def test_the_form_is_read_and_written(rng):
    for form in ("fpr:0.05,0.95", "fnr:0.1,0.9"):
        assert Objective.parse(form).text == form
        assert "confidence" in Objective.parse(form).description
    for wrong in ("fpr:0.05,1", "fpr:0.05,0.2", "fpr:0.05,0.95,1", "fpr:,0.95"):
        with pytest.raises(ConfigError):
            Objective.parse(wrong)
