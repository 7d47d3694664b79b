"""The tables of `thera evaluate`, and of `thera compare` with its verdict in one sentence."""

from __future__ import annotations

from ensemble.decision.comparison import Agreement, Comparison, Difference, Measured
from ensemble.reports.table import Table, interval_cell
from ensemble.results import CompareResult, EvaluateResult

RATES = "FPR: share of label 0 predicted as 1. FNR: share of label 1 predicted as 0. HTER: their mean."
INTERVALS = "[]: 95 % interval over the draw of the images."
PAIRED = "B minus A: below 0, B has fewer errors. The interval is paired: both are measured on the same images."
MCNEMAR = (
    "McNemar p: exact two-sided test on the images that only one of the two predicts correctly. Label 0 tests the FPR, "
    "label 1 the FNR, all images the accuracy, not the HTER. Images count as independent, also within groups."
)
NESTED = (
    "Nested: each fold is predicted by weights and threshold that were fitted without it; views {views}. The intervals "
    "include that the thresholds were fitted: every bootstrap replicate refits them."
)


def evaluation_tables(result: EvaluateResult) -> list[Table]:
    """Return the rates, the confusion matrix and the classification report of a label file."""
    evaluation, measured = result.evaluation, result.evaluation.measured
    (tn, fp), (fn, tp) = evaluation.confusion
    counts = (("label 0", tn, fp), ("label 1", fn, tp), ("all", tn + fn, fp + tp))
    return [
        Table(
            f"{result.name} against {result.labels}: HTER {measured.rates.hter:.4f} {interval_cell(measured.hter)}",
            ("rate", "errors", "of", "value", "95 %"),
            (
                ("FPR", str(fp), str(tn + fp), f"{measured.rates.fpr:.4f}", interval_cell(measured.fpr)),
                ("FNR", str(fn), str(fn + tp), f"{measured.rates.fnr:.4f}", interval_cell(measured.fnr)),
                ("HTER", "", "", f"{measured.rates.hter:.4f}", interval_cell(measured.hter)),
            ),
            (RATES, INTERVALS),
        ),
        Table(
            "Confusion matrix",
            ("images", "predicted 0", "predicted 1", "all"),
            tuple((label, str(as_0), str(as_1), str(as_0 + as_1)) for label, as_0, as_1 in counts),
        ),
        Table(
            "Classification report",
            ("class", "precision", "recall", "F1", "support"),
            tuple(
                (row.name, f"{row.precision:.4f}", f"{row.recall:.4f}", f"{row.f1:.4f}", str(row.support))
                for row in evaluation.classes
            ),
            (f"Accuracy {evaluation.accuracy:.4f}, balanced accuracy {evaluation.balanced_accuracy:.4f}.",),
        ),
    ]


def comparison_tables(result: CompareResult, full: bool = True) -> list[Table]:
    """Return the rates of A and B with their difference, and where the two disagree.

    Unless `full`, the intervals of FPR and FNR are left out, so that the table fits 80 columns.
    """
    comparison, name_a, name_b = result.comparison, result.name_a, result.name_b
    differences = (comparison.fpr, comparison.fnr, comparison.hter)
    rows = (
        (f"A: {name_a}", *_measured(comparison.a)),
        (f"B: {name_b}", *_measured(comparison.b)),
        ("B minus A", *(cell for difference in differences for cell in _difference(difference))),
    )
    columns = ("predictions", "FPR", "95 %", "FNR", "95 %", "HTER", "95 %")
    shown = range(7) if full else (0, 1, 3, 5, 6)
    return [
        Table(
            f"{name_a} (A) and {name_b} (B) on the same {_images(comparison)}",
            tuple(columns[j] for j in shown),
            tuple(tuple(row[j] for j in shown) for row in rows),
            (*_sources(result), *((RATES, INTERVALS) if full else ()), PAIRED),
        ),
        _agreement_table(comparison),
    ]


def _agreement_table(comparison: Comparison) -> Table:
    of_0, of_1 = comparison.agreement
    every = Agreement(
        of_0.only_a + of_1.only_a, of_0.only_b + of_1.only_b, of_0.both + of_1.both, of_0.neither + of_1.neither
    )
    return Table(
        "Who is right, in images",
        ("label", "only A", "only B", "both", "neither", "McNemar p"),
        tuple(
            (label, str(row.only_a), str(row.only_b), str(row.both), str(row.neither), _p_value(row.p_value))
            for label, row in (("0", of_0), ("1", of_1), ("all", every))
        ),
        (MCNEMAR,),
    )


def _sources(result: CompareResult) -> tuple[str, ...]:
    """Return what the predictions are, and what they are compared with."""
    if result.labels is not None:
        return (f"Labels: {result.labels}.",)
    sides = f"A is {result.description_a}, B is {result.description_b}."
    return (sides, NESTED.format(views=" + ".join(result.views)))


def verdict(name_a: str, name_b: str, comparison: Comparison) -> str:
    """Return in one sentence whether the HTERs of the two differ beyond chance."""
    if not comparison.apart:
        return f"{name_a} and {name_b} predict the same for all {_images(comparison)}."
    value, interval = comparison.hter.value, comparison.hter.interval
    ends = [interval.low, interval.high] if value > 0 else [interval.high, interval.low]
    if interval.low < 0 < interval.high:
        spread = " to ".join(map(_signed, ends))
    else:
        spread = f"{abs(ends[0]):.4f} to {_signed(ends[1])}"
    difference = f"{_signed(value)} than {name_a}'s" if value else f"the same as {name_a}'s"
    sentence = f"{name_b}'s HTER is {difference} (95 %: {spread})"
    if comparison.beyond_chance:
        return f"{sentence}: a difference beyond chance."
    if interval.low <= 0 <= interval.high:
        return f"{sentence}, within chance: {_images(comparison)} cannot tell them apart."
    cases = f"{comparison.apart} independent image{'s' * (comparison.apart > 1)}"
    return f"{sentence}, but they differ on {cases} only: too few to rule out chance."


def _signed(value: float) -> str:
    return f"{abs(value):.4f} {'higher' if value > 0 else 'lower'}"


def _images(comparison: Comparison) -> str:
    return f"{comparison.a.rates.n:,} images"


def _measured(measured: Measured) -> tuple[str, ...]:
    rates = measured.rates
    cells = ((rates.fpr, measured.fpr), (rates.fnr, measured.fnr), (rates.hter, measured.hter))
    return tuple(text for rate, interval in cells for text in (f"{rate:.4f}", interval_cell(interval)))


def _difference(difference: Difference) -> tuple[str, str]:
    return f"{difference.value:+.4f}", interval_cell(difference.interval, "+.4f")


def _p_value(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"
