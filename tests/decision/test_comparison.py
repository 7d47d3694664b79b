import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, classification_report, confusion_matrix

from ensemble.decision.comparison import FEW, Agreement, compare_predictions, evaluate_predictions, measure_predictions
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import error_rates
from ensemble.errors import DataError

DIFFERENCES = ("fpr", "fnr", "hter")


def two_calls(rng, n=4000, errs=((0.2, 0.1), (0.15, 0.12)), common=0.6):
    """Return labels (n,), and calls (n,) of A and B with these (FPR, FNR), whose errors mostly coincide."""
    labels = (rng.random(n) < 0.8).astype(np.int8)
    shared = rng.random(n)
    own = [np.where(rng.random(n) < common, shared, rng.random(n)) for _ in errs]
    return labels, *(labels ^ (draw < np.where(labels, fnr, fpr)) for draw, (fpr, fnr) in zip(own, errs, strict=True))


def paired_closed_form(labels, a, b):
    """Return the 95 % intervals of B minus A in FPR, FNR and HTER, as ±1.96 standard errors of paired proportions."""
    means, variances = [], []
    for label in (0, 1):
        rows = labels == label
        d = (b[rows] != label).astype(float) - (a[rows] != label)
        means.append(d.mean())
        variances.append(d.var() / d.size)
    means.append(sum(means) / 2)
    variances.append(sum(variances) / 4)
    return [(mean - 1.959964 * v**0.5, mean + 1.959964 * v**0.5) for mean, v in zip(means, variances, strict=True)]


def paired_rows_drawn(rng, labels, a, b, groups=None, replicates=2000):
    """Return the same intervals by drawing rows, or whole groups of one class, one by one."""
    groups = np.arange(labels.size) if groups is None else groups
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    strata = [[rows for rows in members if labels[rows[0]] == label] for label in (0, 1)]
    drawn = np.empty((replicates, 3))
    for replicate in range(replicates):
        rows = np.concatenate([of[j] for of in strata for j in rng.integers(len(of), size=len(of))])
        one, other = (error_rates(labels[rows], calls[rows]) for calls in (a, b))
        drawn[replicate] = other.fpr - one.fpr, other.fnr - one.fnr, other.hter - one.hter
    return np.quantile(drawn, [0.025, 0.975], axis=0).T


def width(interval):
    return interval.high - interval.low


def test_the_paired_interval_agrees_with_the_closed_form(rng):
    labels, a, b = two_calls(rng)
    for groups in (None, np.arange(labels.size)):
        compared = compare_predictions(labels, a, b, groups, replicates=8000)
        for name, (low, high) in zip(DIFFERENCES, paired_closed_form(labels, a, b), strict=True):
            interval = getattr(compared, name).interval
            assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.05 * (high - low)), name


@pytest.mark.parametrize("size", [1, 4])
def test_the_paired_interval_agrees_with_drawing_rows_or_groups_one_by_one(rng, size):
    labels, a, b = (np.repeat(column, size) for column in two_calls(rng, 400))
    keep = rng.random(labels.size) < 0.9  # groups of different sizes
    labels, a, b, groups = labels[keep], a[keep], b[keep], np.repeat(np.arange(400), size)[keep]
    a = np.where(rng.random(a.size) < 0.1, 1 - a, a)
    compared = compare_predictions(labels, a, b, groups, replicates=8000)
    for name, (low, high) in zip(DIFFERENCES, paired_rows_drawn(rng, labels, a, b, groups), strict=True):
        interval = getattr(compared, name).interval
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.08 * (high - low)), name


def test_pairing_narrows_the_interval(rng):
    labels, a, b = two_calls(rng)
    compared = compare_predictions(labels, a, b)
    assert width(compared.hter.interval) < 0.9 * np.hypot(width(compared.a.hter), width(compared.b.hter))


@pytest.mark.parametrize("errs", [((0.2, 0.1), (0.2, 0.1)), ((0.25, 0.1), (0.15, 0.12))], ids=["alike", "apart"])
def test_the_paired_intervals_cover_the_true_difference(rng, errs):
    (fpr_a, fnr_a), (fpr_b, fnr_b) = errs
    truth = {"fpr": fpr_b - fpr_a, "fnr": fnr_b - fnr_a}
    truth["hter"] = (truth["fpr"] + truth["fnr"]) / 2
    covered, trials = dict.fromkeys(DIFFERENCES, 0), 300
    for trial in range(trials):
        compared = compare_predictions(*two_calls(rng, 1000, errs), seed=trial, replicates=1000)
        for name in DIFFERENCES:
            interval = getattr(compared, name).interval
            covered[name] += interval.low <= truth[name] <= interval.high
    assert all(0.915 < inside / trials < 0.98 for inside in covered.values()), covered


def test_a_difference_is_b_minus_a_and_swapping_turns_its_sign(rng):
    labels, a, b = two_calls(rng)
    one, other = compare_predictions(labels, a, b, replicates=8000), compare_predictions(labels, b, a, replicates=8000)
    assert one.hter.value == error_rates(labels, b).hter - error_rates(labels, a).hter
    assert one.fpr.value < 0 < one.fnr.value
    for name in DIFFERENCES:
        here, there = getattr(one, name), getattr(other, name)
        assert here.value == -there.value
        near = pytest.approx((-there.interval.high, -there.interval.low), abs=0.05 * width(there.interval))
        assert (here.interval.low, here.interval.high) == near
        assert here.interval.low < here.value < here.interval.high
    assert (one.a, one.b) == (other.b, other.a)
    for here, there in zip(one.agreement, other.agreement, strict=True):
        assert here == Agreement(there.only_b, there.only_a, there.both, there.neither)


def test_each_side_is_measured_as_by_itself(rng):
    labels, a, b = two_calls(rng)
    groups = np.arange(labels.size) // 3
    compared = compare_predictions(labels, a, b, groups, seed=4)
    for measured, calls in ((compared.a, a), (compared.b, b)):
        assert measured == measure_predictions(labels, calls, groups, seed=4)
        assert measured.rates == error_rates(labels, calls)


def test_duplicated_rows_widen_the_interval_only_if_they_are_one_group(rng):
    labels, a, b = two_calls(rng, 1000)
    once = compare_predictions(labels, a, b, replicates=8000)
    labels, a, b, groups = (np.repeat(column, 4) for column in (labels, a, b, np.arange(1000)))
    blind, aware = (compare_predictions(labels, a, b, which, replicates=8000) for which in (None, groups))
    assert (blind.apart, aware.apart) == (4 * once.apart, once.apart)
    for name in DIFFERENCES:
        of_once, of_blind, of_aware = (width(getattr(c, name).interval) for c in (once, blind, aware))
        assert of_aware == pytest.approx(of_once, rel=0.06)
        assert of_blind == pytest.approx(of_once / 2, rel=0.06)


def test_agreement_counts_who_is_right_in_each_class():
    labels = [0] * 10 + [1] * 20
    a = [0] * 1 + [1] * 2 + [0] * 3 + [1] * 4 + [1] * 5 + [0] * 6 + [1] * 7 + [0] * 2
    b = [1] * 1 + [0] * 2 + [0] * 3 + [1] * 4 + [0] * 5 + [1] * 6 + [1] * 7 + [0] * 2
    zero, one = compare_predictions(labels, a, b).agreement
    assert zero == Agreement(only_a=1, only_b=2, both=3, neither=4)
    assert one == Agreement(only_a=5, only_b=6, both=7, neither=2)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 3), (12, 4), (500, 430)])
def test_mcnemar_is_the_sign_test_of_the_disagreements(only_a, only_b):
    expected = binomtest(only_b, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert Agreement(only_a, only_b, 100, 7).p_value == pytest.approx(expected)


def test_mcnemar_of_few_rows_by_hand():
    assert Agreement(0, 3, 9, 9).p_value == pytest.approx(2 / 8)
    assert Agreement(5, 5, 9, 9).p_value == pytest.approx(1)


def test_identical_calls_have_no_difference_and_no_width(rng):
    labels, a, _ = two_calls(rng)
    compared = compare_predictions(labels, a, a.copy())
    for name in DIFFERENCES:
        assert (getattr(compared, name).value, getattr(compared, name).interval) == (0.0, Interval(0.0, 0.0))
    assert compared.apart == 0 and not compared.beyond_chance
    assert width(compared.a.hter) > 0


def test_beyond_chance_needs_an_interval_without_0_and_more_than_a_few_rows(rng):
    labels = np.repeat([0, 1], 500)
    found = {}
    for wrong in (1, FEW - 1, FEW, 100):
        a = labels.copy()
        a[:wrong] = 1
        compared = compare_predictions(labels, a, labels)
        found[wrong] = compared.hter.interval.high < 0, compared.beyond_chance
    assert found == {1: (False, False), FEW - 1: (True, False), FEW: (True, True), 100: (True, True)}
    labels, a, b = two_calls(rng, 400, ((0.2, 0.1), (0.2, 0.1)))
    assert not compare_predictions(labels, a, b).beyond_chance
    assert compare_predictions(labels, a, labels).beyond_chance and compare_predictions(labels, labels, a).beyond_chance


def test_a_group_is_one_disagreement_however_many_rows_it_has():
    labels = np.repeat([0, 1], 500)
    a = labels.copy()
    a[:400] = 1
    groups = np.arange(1000) // 100
    compared = compare_predictions(labels, a, labels, groups)
    assert compared.apart == 4 and not compared.beyond_chance


def test_a_seed_fixes_the_intervals(rng):
    labels, a, b = two_calls(rng)
    assert compare_predictions(labels, a, b, seed=3) == compare_predictions(labels, a, b, seed=3)
    assert (
        compare_predictions(labels, a, b, seed=3).hter.interval
        != compare_predictions(labels, a, b, seed=4).hter.interval
    )


def test_the_intervals_of_the_rates_agree_with_the_closed_form(rng):
    labels, a, _ = two_calls(rng)
    measured = measure_predictions(labels, a, replicates=8000)
    for rate, interval, n in (
        (measured.rates.fpr, measured.fpr, measured.rates.n_neg),
        (measured.rates.fnr, measured.fnr, measured.rates.n_pos),
    ):
        half = 1.959964 * (rate * (1 - rate) / n) ** 0.5
        assert (interval.low, interval.high) == pytest.approx((rate - half, rate + half), abs=0.1 * half)


@pytest.mark.parametrize("calls", ["a", "zeros", "ones", "right"])
def test_an_evaluation_is_what_scikit_learn_says(rng, calls):
    labels, a, _ = two_calls(rng, 500)
    y_pred = {"a": a, "zeros": np.zeros_like(labels), "ones": np.ones_like(labels), "right": labels}[calls]
    evaluation = evaluate_predictions(labels, y_pred)
    report = classification_report(labels, y_pred, output_dict=True, zero_division=0)
    assert [row.name for row in evaluation.classes] == ["0", "1", "macro avg", "weighted avg"]
    for row in evaluation.classes:
        of_class = report[row.name]
        figures = (row.precision, row.recall, row.f1, row.support)
        assert figures == pytest.approx([of_class[key] for key in ("precision", "recall", "f1-score", "support")])
    assert evaluation.accuracy == pytest.approx(report["accuracy"])
    assert evaluation.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, y_pred))
    assert evaluation.confusion == tuple(map(tuple, confusion_matrix(labels, y_pred).tolist()))
    assert evaluation.measured == measure_predictions(labels, y_pred)


@pytest.mark.parametrize(
    "measure", [measure_predictions, evaluate_predictions, lambda y, calls: compare_predictions(y, y, calls)]
)
@pytest.mark.parametrize(
    ("labels", "y_pred", "says"),
    [
        ([1, 1], [0, 1], "got 0 of label 0 in 2 images"),
        ([0, 1], [0, 1, 1], "one shape; got"),
        ([0, 1], [0, 2], "predictions must be 0 or 1; got 2 at row 1"),
    ],
)
def test_calls_that_cannot_be_measured_are_refused(measure, labels, y_pred, says):
    with pytest.raises(DataError, match=says):
        measure(labels, y_pred)


def test_groups_of_another_length_are_refused():
    with pytest.raises(DataError, match="groups must have shape"):
        compare_predictions([0, 1], [0, 1], [0, 1], groups=[1, 2, 3])
