import numpy as np
import pytest

from ensemble.decision.comparison import (
    Agreement,
    Comparison,
    Difference,
    Measured,
    compare_predictions,
    evaluate_predictions,
)
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ErrorRates
from ensemble.reports.comparison_tables import comparison_tables, evaluation_tables, verdict
from ensemble.results import CompareResult, EvaluateResult

LABELS = np.repeat([0, 1], [200, 800])
A, B = LABELS.copy(), LABELS.copy()
A[:40], A[200:300] = 1, 0
B[20:40], B[250:310] = 1, 0


def compared(value, low, high, apart=100, n=80_000):
    none = Interval(0.1, 0.3)
    side = Measured(ErrorRates(0.2, 0.2, n // 8, n - n // 8), none, none, none)
    difference = Difference(value, Interval(low, high))
    return Comparison(side, side, difference, difference, difference, (Agreement(0, 0, 0, 0),) * 2, apart)


@pytest.mark.parametrize(
    ("comparison", "said"),
    [
        (
            compared(-0.0123, -0.0145, -0.0101),
            "b's HTER is 0.0123 lower than a's (95 %: 0.0101 to 0.0145 lower): a difference beyond chance.",
        ),
        (
            compared(0.0123, 0.0101, 0.0145),
            "b's HTER is 0.0123 higher than a's (95 %: 0.0101 to 0.0145 higher): a difference beyond chance.",
        ),
        (
            compared(-0.001, -0.003, 0.0012),
            "b's HTER is 0.0010 lower than a's (95 %: 0.0012 higher to 0.0030 lower), within chance: 80,000 images "
            "cannot tell them apart.",
        ),
        (
            compared(0.001, -0.0012, 0.003),
            "b's HTER is 0.0010 higher than a's (95 %: 0.0012 lower to 0.0030 higher), within chance: 80,000 images "
            "cannot tell them apart.",
        ),
        (
            compared(0.01, 0.0, 0.02, n=800),
            "b's HTER is 0.0100 higher than a's (95 %: 0.0000 to 0.0200 higher), within chance: 800 images cannot "
            "tell them apart.",
        ),
        (
            compared(0.0, -0.001, 0.001),
            "b's HTER is the same as a's (95 %: 0.0010 higher to 0.0010 lower), within chance: 80,000 images cannot "
            "tell them apart.",
        ),
        (
            compared(0.01, 0.005, 0.02, apart=4),
            "b's HTER is 0.0100 higher than a's (95 %: 0.0050 to 0.0200 higher), but they differ on 4 independent "
            "images only: too few to rule out chance.",
        ),
        (
            compared(0.5, 0.5, 0.5, apart=1, n=8),
            "b's HTER is 0.5000 higher than a's (95 %: 0.5000 to 0.5000 higher), but they differ on 1 independent "
            "image only: too few to rule out chance.",
        ),
        (compared(0.0, 0.0, 0.0, apart=0), "a and b predict the same for all 80,000 images."),
    ],
    ids=["lower", "higher", "chance, lower", "chance, higher", "touching 0", "equal", "few", "one", "identical"],
)
def test_the_verdict_is_one_sentence(comparison, said):
    assert verdict("a", "b", comparison) == said


def test_the_comparison_shows_both_sides_and_the_difference():
    comparison = compare_predictions(LABELS, A, B)
    rates, right = comparison_tables(CompareResult("old.txt", "new.txt", comparison, labels="truth.txt"))
    assert rates.title == "old.txt (A) and new.txt (B) on the same 1,000 images"
    assert [row[0] for row in rates.rows] == ["A: old.txt", "B: new.txt", "B minus A"]
    values = [tuple(row[1::2]) for row in rates.rows]
    assert values == [("0.2000", "0.1250", "0.1625"), ("0.1000", "0.0750", "0.0875"), ("-0.1000", "-0.0500", "-0.0750")]
    interval = comparison.hter.interval
    assert rates.rows[2][6] == f"[{interval.low:+.4f}, {interval.high:+.4f}]"
    assert rates.rows[1][2] == f"[{comparison.b.fpr.low:.4f}, {comparison.b.fpr.high:.4f}]"
    assert rates.notes[0] == "Labels: truth.txt."
    assert [row[:5] for row in right.rows] == [
        ("0", "0", "20", "160", "20"),
        ("1", "10", "50", "690", "50"),
        ("all", "10", "70", "850", "70"),
    ]
    assert [row[5] for row in right.rows] == ["< 0.0001"] * 3


def test_mcnemars_p_is_shown_to_four_digits():
    b = A.copy()
    b[[0, 200, 201]] = [0, 1, 1]
    (_, right) = comparison_tables(CompareResult("a", "b", compare_predictions(LABELS, A, b)))
    assert [row[5] for row in right.rows] == ["1.0000", "0.5000", "0.2500"]


def test_the_evaluation_shows_rates_confusion_and_report():
    evaluation = evaluate_predictions(LABELS, A)
    rates, confusion, report = evaluation_tables(EvaluateResult("calls.txt", "truth.txt", evaluation))
    hter = evaluation.measured.hter
    assert rates.title == f"calls.txt against truth.txt: HTER 0.1625 [{hter.low:.4f}, {hter.high:.4f}]"
    assert [row[:4] for row in rates.rows] == [
        ("FPR", "40", "200", "0.2000"),
        ("FNR", "100", "800", "0.1250"),
        ("HTER", "", "", "0.1625"),
    ]
    fnr = evaluation.measured.fnr
    assert rates.rows[1][4] == f"[{fnr.low:.4f}, {fnr.high:.4f}]"
    assert confusion.rows == (
        ("label 0", "160", "40", "200"),
        ("label 1", "100", "700", "800"),
        ("all", "260", "740", "1000"),
    )
    assert [row[0] for row in report.rows] == ["0", "1", "macro avg", "weighted avg"]
    assert report.rows[0] == ("0", f"{160 / 260:.4f}", "0.8000", f"{320 / 460:.4f}", "200")
    assert report.notes == ("Accuracy 0.8600, balanced accuracy 0.8375.",)


def test_every_row_fills_its_columns():
    tables = [
        *comparison_tables(CompareResult("a", "b", compare_predictions(LABELS, A, B))),
        *evaluation_tables(EvaluateResult("a", "b", evaluate_predictions(LABELS, A))),
    ]
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    assert all(table.text() and table.markdown() for table in tables)


def test_the_sources_of_nested_predictions_are_named():
    result = CompareResult("a", "b", compare_predictions(LABELS, A, B), None, "the stack", "the member", ("identity",))
    notes = comparison_tables(result)[0].notes
    assert notes[0] == "A is the stack, B is the member."
    assert notes[1].startswith("Nested: each fold is predicted by ") and "views identity" in notes[1]
