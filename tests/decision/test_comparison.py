import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, binomtest
from sklearn.metrics import balanced_accuracy_score, classification_report, confusion_matrix

from ensemble.decision.comparison import (
    FEW,
    Agreement,
    compare_predictions,
    comparison_of,
    evaluate_predictions,
    measure_predictions,
    paired_differences,
)
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


def paired_rows_drawn(rng, labels, a, b, replicates=2000):
    """Return the same intervals by drawing rows one by one."""
    strata = [np.flatnonzero(labels == label) for label in (0, 1)]
    drawn = np.empty((replicates, 3))
    for replicate in range(replicates):
        rows = np.concatenate([rng.choice(of, of.size) for of in strata])
        one, other = (error_rates(labels[rows], calls[rows]) for calls in (a, b))
        drawn[replicate] = other.fpr - one.fpr, other.fnr - one.fnr, other.hter - one.hter
    return np.quantile(drawn, [0.025, 0.975], axis=0).T


def few_rows(rng, shares=((0.15, 0.15), (0.06, 0.02)), counts=(10, 200)):
    """Return labels, and predictions of A and B: the rows of a label that only A and only B predict wrongly have these
    shares, and a tenth of the rows are wrong in both."""
    labels = np.repeat(np.array([0, 1], np.int8), counts)
    wrong = np.zeros((2, labels.size), np.int8)
    for label, (only_a, only_b) in enumerate(shares):
        draw = rng.random(counts[label])
        of_both = draw >= 0.9
        wrong[0, labels == label], wrong[1, labels == label] = (
            (draw < only_a) | of_both,
            ((draw >= only_a) & (draw < only_a + only_b)) | of_both,
        )
    return labels, labels ^ wrong[0], labels ^ wrong[1]


def width(interval):
    return interval.high - interval.low


def test_the_paired_interval_agrees_with_the_closed_form(rng):
    labels, a, b = two_calls(rng)
    compared = compare_predictions(labels, a, b)
    for name, (low, high) in zip(DIFFERENCES, paired_closed_form(labels, a, b), strict=True):
        interval = getattr(compared, name).interval
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.05 * (high - low)), name


def test_of_many_rows_the_paired_interval_agrees_with_drawing_rows_one_by_one(rng):
    labels, a, b = two_calls(rng, 800)
    compared = compare_predictions(labels, a, b)
    for name, (low, high) in zip(DIFFERENCES, paired_rows_drawn(rng, labels, a, b), strict=True):
        interval = getattr(compared, name).interval
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.08 * (high - low)), name


@pytest.mark.parametrize("counts", [(10, 200), (4, 3), (1, 40)])
def test_the_paired_intervals_are_quantiles_of_the_posterior(rng, counts):
    """The rates' by integration: only A and only B have a Beta share of the rows together, and B a Beta share of
    these. That of the HTER by another sampler: shares are Gamma variables divided by their sum."""
    labels, a, b = few_rows(rng, counts=counts)
    a[0] = 1 - b[0]
    compared, drawn = compare_predictions(labels, a, b), []
    for label, name in enumerate(("fpr", "fnr")):
        agreement, n = compared.agreement[label], counts[label]
        only_a, only_b = agreement.only_b + 0.5, agreement.only_a + 0.5  # who is wrong alone
        rest = n - only_a - only_b + 2
        assert agreement.both + agreement.neither == rest - 1

        def at_most(difference, only_a=only_a, only_b=only_b, rest=rest):
            def given(u):
                share = beta.ppf(u, only_a + only_b, rest)
                return beta.cdf((difference / share + 1) / 2, only_b, only_a)

            return quad(given, 0, 1, limit=200, epsabs=1e-6)[0]

        interval = getattr(compared, name).interval
        assert (at_most(interval.low), at_most(interval.high)) == pytest.approx((0.025, 0.975), abs=0.003)
        gammas = rng.gamma([only_a, only_b, rest], size=(400_000, 3))
        drawn.append((gammas[:, 1] - gammas[:, 0]) / gammas.sum(axis=1))
    below = [(np.add(*drawn) / 2 <= end).mean() for end in (compared.hter.interval.low, compared.hter.interval.high)]
    assert below == pytest.approx([0.025, 0.975], abs=0.003)


def test_of_ten_rows_of_a_label_the_paired_intervals_still_cover_the_true_difference(rng, monkeypatch):
    """Drawing the rows with replacement, as for many rows, covers that of the HTER less often."""
    monkeypatch.setattr("ensemble.decision.comparison.DRAWS", 4000)
    truth, trials = {"fpr": 0.0, "fnr": -0.04, "hter": -0.02}, 400
    covered, by_rows = dict.fromkeys(DIFFERENCES, 0), 0
    for trial in range(trials):
        labels, a, b = few_rows(rng)
        for name, difference in zip(DIFFERENCES, paired_differences(labels, a, b, trial), strict=True):
            covered[name] += difference.interval.low <= truth[name] <= difference.interval.high
        changes = [((b != label).astype(int) - (a != label))[labels == label] for label in (0, 1)]
        drawn = sum(rng.choice(change, (1000, change.size)).mean(axis=1) for change in changes) / 2
        low, high = np.quantile(drawn, [0.025, 0.975])
        by_rows += low <= truth["hter"] <= high
    assert all(0.925 < inside / trials < 0.99 for inside in covered.values()), covered
    assert by_rows / trials < 0.90


def test_pairing_narrows_the_interval(rng):
    labels, a, b = two_calls(rng)
    compared = compare_predictions(labels, a, b)
    assert width(compared.hter.interval) < 0.9 * np.hypot(width(compared.a.hter), width(compared.b.hter))


@pytest.mark.parametrize("errs", [((0.2, 0.1), (0.2, 0.1)), ((0.25, 0.1), (0.15, 0.12))], ids=["alike", "apart"])
def test_the_paired_intervals_cover_the_true_difference(rng, errs, monkeypatch):
    monkeypatch.setattr("ensemble.decision.comparison.DRAWS", 4000)
    (fpr_a, fnr_a), (fpr_b, fnr_b) = errs
    truth = {"fpr": fpr_b - fpr_a, "fnr": fnr_b - fnr_a}
    truth["hter"] = (truth["fpr"] + truth["fnr"]) / 2
    covered, trials = dict.fromkeys(DIFFERENCES, 0), 300
    for trial in range(trials):
        found = paired_differences(*two_calls(rng, 1000, errs), trial)
        for name, difference in zip(DIFFERENCES, found, strict=True):
            covered[name] += difference.interval.low <= truth[name] <= difference.interval.high
    assert all(0.915 < inside / trials < 0.98 for inside in covered.values()), covered


def test_a_difference_is_b_minus_a_and_swapping_turns_its_sign(rng):
    labels, a, b = two_calls(rng)
    one, other = compare_predictions(labels, a, b), compare_predictions(labels, b, a)
    assert one.hter.value == pytest.approx(error_rates(labels, b).hter - error_rates(labels, a).hter, abs=1e-15)
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
    compared = compare_predictions(labels, a, b)
    for measured, calls in ((compared.a, a), (compared.b, b)):
        assert measured == measure_predictions(labels, calls)
        assert measured.rates == error_rates(labels, calls)


def test_rows_that_are_repeated_pass_for_independent_rows(rng):
    labels, a, b = two_calls(rng, 1000)
    once = compare_predictions(labels, a, b)
    repeated = compare_predictions(*(np.repeat(column, 4) for column in (labels, a, b)))
    assert repeated.apart == 4 * once.apart
    for name in DIFFERENCES:
        of_once, of_repeated = (width(getattr(each, name).interval) for each in (once, repeated))
        assert of_repeated == pytest.approx(of_once / 2, rel=0.06)


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
    labels = np.repeat(np.array([0, 1], np.int8), 500)
    a = labels.copy()
    a[:400] = 1
    measured, differences = measure_predictions(labels, a), paired_differences(labels, a, labels)
    of_rows, of_groups = (
        comparison_of(measured, measured, differences, labels, a, labels, groups)
        for groups in (None, np.arange(1000) // 100 * 5 - 7)
    )
    assert of_rows.apart == 400 and of_rows.beyond_chance
    assert of_groups.apart == 4 and not of_groups.beyond_chance


def test_a_seed_fixes_the_intervals(rng):
    labels, a, b = two_calls(rng)
    assert compare_predictions(labels, a, b, seed=3) == compare_predictions(labels, a, b, seed=3)
    assert (
        compare_predictions(labels, a, b, seed=3).hter.interval
        != compare_predictions(labels, a, b, seed=4).hter.interval
    )


def test_the_intervals_of_the_rates_agree_with_the_closed_form(rng):
    labels, a, _ = two_calls(rng)
    measured = measure_predictions(labels, a)
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


@pytest.mark.parametrize("measure", [measure_predictions, evaluate_predictions])
def test_groups_of_another_length_are_refused(measure):
    with pytest.raises(DataError, match="groups must have shape"):
        measure([0, 1], [0, 1], groups=[1, 2, 3])
