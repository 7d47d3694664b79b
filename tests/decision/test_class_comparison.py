"""Fixed predictions of several classes: rates, intervals and paired differences."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score

from ensemble.decision.bootstrap import Resampler, strata_of
from ensemble.decision.class_comparison import compare_classes, evaluate_classes, measure_classes, posterior_tables
from ensemble.decision.class_intervals import class_counting_intervals
from ensemble.decision.class_refits import ClassFixedRule
from ensemble.decision.comparison import compare_predictions, measure_predictions
from ensemble.decision.rates import ClassRates
from ensemble.errors import DataError


def drawn(rng, n=900, classes=3, errs=0.2):
    """Return labels with fewer and fewer rows of each class, and predictions of which a share is wrong."""
    shares = 1 / (1 + np.arange(classes))
    labels = rng.choice(classes, n, p=shares / shares.sum()).astype(np.int8)
    labels[:classes] = np.arange(classes)
    return labels, wrong_of(rng, labels, classes, errs)


def wrong_of(rng, labels, classes, errs):
    other = (labels + rng.integers(1, classes, labels.size)) % classes
    return np.where(rng.random(labels.size) < errs, other, labels).astype(np.int8)


def ends(interval):
    return interval.low, interval.high


def test_for_two_classes_the_rates_and_intervals_are_those_of_two(rng):
    labels, y_pred = drawn(rng, classes=2)
    of_two, of_classes = measure_predictions(labels, y_pred), measure_classes(labels, y_pred, 2)
    assert (*of_classes.errors, of_classes.mean_error) == (of_two.fpr, of_two.fnr, of_two.hter)
    assert of_classes.rates.mean_error == of_two.rates.hter
    groups = np.arange(labels.size) // 3
    of_two, of_classes = measure_predictions(labels, y_pred, groups), measure_classes(labels, y_pred, 2, groups)
    for one, other in zip(
        (of_two.fpr, of_two.fnr, of_two.hter), (*of_classes.errors, of_classes.mean_error), strict=True
    ):
        assert ends(one) == pytest.approx(ends(other), abs=1e-12)
    other = wrong_of(rng, labels, 2, 0.1)
    of_two, of_classes = compare_predictions(labels, y_pred, other), compare_classes(labels, y_pred, other, 2)
    assert (*of_classes.errors, of_classes.agreement) == (of_two.fpr, of_two.fnr, of_two.agreement)
    assert of_classes.mean_error.value == pytest.approx(of_two.hter.value)
    assert ends(of_classes.mean_error.interval) == pytest.approx(ends(of_two.hter.interval), abs=1e-3)
    assert of_classes.beyond_chance == of_two.beyond_chance


def test_the_report_is_that_of_scikit_learn(rng):
    labels, y_pred = drawn(rng, 300, 5)
    y_pred[y_pred == 4] = 3  # a class that is never predicted
    evaluation = evaluate_classes(labels, y_pred, tuple("abcde"))
    report = classification_report(labels, y_pred, target_names=list("abcde"), output_dict=True, zero_division=0)
    assert evaluation.accuracy == pytest.approx(report.pop("accuracy"))
    assert [row.name for row in evaluation.classes] == list(report)
    for row in evaluation.classes:
        expected = report[row.name]
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx(tuple(expected.values()))
    assert np.array_equal(evaluation.confusion, confusion_matrix(labels, y_pred))
    recall = evaluation.measured.recalls[0]
    assert recall.low == 1 - evaluation.measured.errors[0].high < evaluation.classes[0].recall < recall.high


def test_of_groups_of_one_row_the_bootstrap_agrees_with_the_counts(rng):
    labels, y_pred = drawn(rng, 4000, errs=0.25)
    alone, grouped = (measure_classes(labels, y_pred, 3, which) for which in (None, np.arange(labels.size)))
    for name in ("mean_error", "accuracy", "macro_f1"):
        one, other = getattr(alone, name), getattr(grouped, name)
        assert ends(one) == pytest.approx(ends(other), abs=0.12 * (one.high - one.low)), name
    for one, other in zip(alone.errors + alone.precisions, grouped.errors + grouped.precisions, strict=True):
        assert ends(one) == pytest.approx(ends(other), abs=0.12 * (one.high - one.low))


def test_duplicated_rows_widen_the_intervals_only_if_they_are_one_group(rng):
    labels, y_pred = drawn(rng, 1500)
    labels, y_pred, groups = (np.repeat(column, 4) for column in (labels, y_pred, np.arange(1500)))
    blind, aware = (measure_classes(labels, y_pred, 3, which) for which in (None, groups))
    for name in ("mean_error", "accuracy", "macro_f1"):
        widths = [getattr(each, name).high - getattr(each, name).low for each in (blind, aware)]
        assert widths[1] == pytest.approx(2 * widths[0], rel=0.1), name
    one, other = aware.precisions[2], blind.precisions[2]
    assert one.high - one.low > 1.5 * (other.high - other.low)  # the bootstrap keeps the class counts


def test_with_groups_a_class_without_errors_has_the_interval_of_its_groups():
    labels = np.repeat([0, 1, 2], [40, 400, 400])
    measured = measure_classes(labels, labels, 3, np.arange(840) // 4)
    alone = measure_classes(labels[::4], labels[::4], 3)
    assert measured.errors[0].low < 1e-3 and measured.errors[0].high == pytest.approx(alone.errors[0].high, abs=1e-8)
    assert measured.mean_error.high == pytest.approx(alone.mean_error.high, abs=1e-6)
    assert 0.9 < measured.macro_f1.low < measured.macro_f1.high == 1


def test_the_posterior_of_the_error_rates_is_that_of_the_counts(rng):
    rates = ClassRates(((20, 3, 1), (0, 40, 0), (2, 2, 6)))
    errors = 1 - np.diagonal(tables := posterior_tables(rates, np.ones(3), rng), axis1=1, axis2=2) / tables.sum(axis=2)
    low, high = np.quantile(errors.mean(axis=1), [0.025, 0.975])
    mean = class_counting_intervals(rates)[1]
    assert (low, high) == pytest.approx(ends(mean), abs=0.04 * (mean.high - mean.low))
    assert tables.sum(axis=(1, 2)) == pytest.approx(1)
    assert tables.sum(axis=2).mean(axis=0) == pytest.approx(np.array(rates.counts) / rates.n, abs=0.01)


@pytest.mark.parametrize("counts", [(15, 100, 300), (30,) * 18])
def test_the_interval_of_macro_f1_covers_the_truth(rng, monkeypatch, counts):
    """Of rows that are drawn from a known table of labels and predictions."""
    monkeypatch.setattr("ensemble.decision.class_comparison.TABLES", 1000)
    monkeypatch.setattr("ensemble.decision.class_intervals.CELLS", 2**10)
    classes, n = len(counts), sum(counts)
    errs = np.linspace(0.2, 0.05, classes)[:, None]
    table = errs * rng.dirichlet(np.full(classes, 0.5), classes)
    table[np.arange(classes), np.arange(classes)] += 1 - errs[:, 0]
    table *= np.array(counts)[:, None] / n
    truth = np.mean(2 * np.diag(table) / (table.sum(axis=0) + table.sum(axis=1)))
    inside = 0
    for _ in range(200):
        cells = np.append(rng.choice(classes**2, n, p=table.ravel()), np.arange(classes) * (classes + 1))
        interval = measure_classes(cells // classes, cells % classes, classes).macro_f1
        inside += interval.low <= truth <= interval.high
    assert inside / 200 > 0.89


def test_paired_intervals_agree_with_drawing_rows_one_by_one(rng):
    labels, a = drawn(rng, 1200, 4)
    b = np.where(rng.random(labels.size) < 0.6, a, wrong_of(rng, labels, 4, 0.15)).astype(np.int8)
    compared = compare_classes(labels, a, b, 4)
    strata, values = [np.flatnonzero(labels == c) for c in range(4)], []
    for _ in range(1500):
        rows = np.concatenate([rng.choice(of, of.size) for of in strata])
        y = labels[rows]
        f1 = f1_of(y, b[rows]) - f1_of(y, a[rows])
        errors = [np.mean(b[of] != c) - np.mean(a[of] != c) for c, of in enumerate(np.split(rows, borders(strata)))]
        values.append([*errors, np.mean(errors), f1, np.mean(b[rows] == y) - np.mean(a[rows] == y)])
    expected = np.quantile(values, [0.025, 0.975], axis=0).T
    differences = (*compared.errors, compared.mean_error, compared.macro_f1, compared.accuracy)
    for difference, (low, high) in zip(differences, expected, strict=True):
        assert ends(difference.interval) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert compared.macro_f1.value == pytest.approx(
        f1_score(labels, b, average="macro") - f1_score(labels, a, average="macro")
    )
    assert compared.accuracy.value == pytest.approx(accuracy_score(labels, b) - accuracy_score(labels, a))
    assert compared.mean_error.value == pytest.approx(np.mean([each.value for each in compared.errors]))
    assert [each.n for each in compared.agreement] == [of.size for of in strata]


def borders(strata):
    return np.cumsum([of.size for of in strata])[:-1]


def f1_of(y_true, y_pred):
    confusion = np.bincount(y_true * 4 + y_pred, minlength=16).reshape(4, 4)
    return np.mean(2 * np.diag(confusion) / (confusion.sum(axis=0) + confusion.sum(axis=1)))


def test_the_same_predictions_differ_by_nothing(rng):
    labels, y_pred = drawn(rng)
    compared = compare_classes(labels, y_pred, y_pred, 3, np.arange(labels.size) // 2)
    for each in (*compared.errors, compared.mean_error, compared.macro_f1, compared.accuracy):
        assert (each.value, *ends(each.interval)) == (0, 0, 0)
    assert compared.apart == 0 and not compared.beyond_chance
    assert compare_classes(labels, y_pred, y_pred, 3).mean_error == compared.mean_error


def test_groups_widen_a_difference(rng):
    labels, a = drawn(rng, 600)
    b = wrong_of(rng, labels, 3, 0.1)
    labels, a, b, groups = (np.repeat(column, 4) for column in (labels, a, b, np.arange(600)))
    blind, aware = (compare_classes(labels, a, b, 3, which) for which in (None, groups))
    for name in ("mean_error", "macro_f1", "accuracy"):
        widths = [getattr(each, name).interval.high - getattr(each, name).interval.low for each in (blind, aware)]
        assert widths[1] == pytest.approx(2 * widths[0], rel=0.12), name
    assert aware.apart == blind.apart / 4


@pytest.mark.parametrize(
    ("labels", "y_pred", "problem"),
    [([0, 1, 1], [0, 1, 2], "got 0 of label 2"), ([0, 1, 2], [0, 1, 3], "0 to 2"), ([0, 1, 2], [0, 1], "one shape")],
)
def test_faulty_input_is_refused(labels, y_pred, problem):
    with pytest.raises(DataError, match=problem):
        measure_classes(labels, y_pred, 3)
    with pytest.raises(DataError, match=problem):
        compare_classes(labels, y_pred, y_pred, 3)


# --- strata of the bootstrap ------------------------------------------------------------------------------------------


def test_strata_are_sets_of_classes_and_rare_sets_are_one(monkeypatch):
    monkeypatch.setattr("ensemble.decision.bootstrap.LEAST_GROUPS", 3)
    has = np.array([[1, 0, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 0]], bool)
    strata = strata_of(has, np.array([1, 1, 2, 1, 1, 1]))
    assert strata[2] == strata[5] != strata[3] == strata[4]
    assert len(set(strata.tolist())) == 4


def test_rows_of_every_class_keep_their_number_and_groups_theirs(rng):
    labels = np.repeat([0, 1, 2], [5, 50, 9]).astype(np.int8)
    outcome = labels * 2 + rng.integers(0, 2, labels.size)
    totals = Resampler(labels).draw_totals(outcome, 6, rng, 50)
    assert (totals.reshape(50, 3, 2).sum(axis=2) == [5, 50, 9]).all() and np.ptp(totals[:, 2]) > 0
    # Groups of a row of class 0 and one of class 1, and groups of class 2: the numbers of both kinds stay.
    labels = np.append(np.tile([0, 1], 30), [2] * 20).astype(np.int8)
    groups = np.append(np.repeat(np.arange(30), 2), 100 + np.arange(20))
    totals = Resampler(labels, groups).draw_totals(labels.astype(np.int64), 3, rng, 50)
    assert (totals == [30, 30, 20]).all()


def test_groups_that_are_alone_with_their_set_of_classes_vary(rng):
    sets = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (0, 1, 2), (1, 2, 3)]
    labels = np.array([c for each in sets for c in each], np.int8)
    groups = np.repeat(np.arange(len(sets)), [len(each) for each in sets])
    totals = Resampler(labels, groups).draw_totals(labels.astype(np.int64), 4, rng, 400)
    assert (totals.std(axis=0) > 1).all()
    assert totals.mean(axis=0) == pytest.approx(np.bincount(labels), abs=0.3)


@pytest.fixture
def people():
    """Return labels and groups of six groups with all different sets of classes; one group alone has class 5."""
    sets = [(0, 1), (0, 2), (1, 2), (3, 4), (4, 3, 3), (0, 5)]
    return np.concatenate(sets).astype(np.int8), np.repeat(np.arange(len(sets)), [len(each) for each in sets])


def test_every_class_is_in_every_replicate(rng, people):
    labels, groups = people
    totals = Resampler(labels, groups).draw_totals(labels.astype(np.int64), 6, rng, 400)
    weights = Resampler(labels, groups).weights_of(rng)
    drawn = np.array([np.bincount(labels, weights.draw(), 6) for _ in range(400)])
    for counts in (totals, drawn):
        assert (counts > 0).all()
        # Without the group that is added, the class of one group is absent from a share of (5/6)^6 of the replicates.
        assert (counts[:, 5] == 1).mean() == pytest.approx(0.335 + 0.402, abs=0.08)


def test_a_replicate_adds_no_error_that_the_predictions_do_not_have(people):
    labels, groups = people
    measured = measure_classes(labels, labels, 6, groups)
    other = np.where(labels == 5, 0, labels)
    compared = compare_classes(labels, labels, other, 6, groups, replicates=300)
    assert measured.rates.mean_error == 0
    assert ends(compared.errors[5].interval) == (1, 1)  # every replicate has class 5, and B never predicts it
    wrong = ClassFixedRule(other.astype(np.int8), labels, 6).errors(
        np.array([Resampler(labels, groups).weights_of(np.random.default_rng(s)).draw() for s in range(100)])
    )
    assert (wrong[:, 5] == 0).all()
