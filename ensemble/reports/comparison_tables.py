"""The tables of `thera evaluate`, and of `thera compare` with its verdict in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from ensemble.decision.class_comparison import ClassComparison, ClassMeasured
from ensemble.decision.comparison import Agreement, Comparison, Difference, Evaluation, Measured
from ensemble.errors import printable
from ensemble.reports.table import WIDTH, Table, interval_cell
from ensemble.results import CompareResult, EvaluateResult

RATES = "FPR: share of label 0 predicted as 1. FNR: share of label 1 predicted as 0. HTER: their mean."
CLASS_RATES = (
    "Class error: the mean of the error rates of the classes, 1 - balanced accuracy. Macro F1: the mean of their F1."
)
INTERVALS = "[]: 95 % interval over the draw of the images."
PAIRED = "B minus A: below 0, B has fewer errors. The interval is paired: both are measured on the same images."
CLASS_PAIRED = (
    "B minus A: B is better with a class error below 0, and with a macro F1 and an accuracy above 0. The intervals are "
    "paired: both are measured on the same images."
)
CLASS_MCNEMAR = (
    "McNemar p: exact two-sided test on the images that only one of the two predicts correctly. Images count as "
    "independent, also within groups."
)
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
    evaluation = result.evaluation
    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    if isinstance(evaluation, Evaluation):
        measured, names = evaluation.measured, ("0", "1")
        (tn, fp), (fn, tp) = evaluation.confusion
        title = f"HTER {measured.rates.hter:.4f} {interval_cell(measured.hter)}"
        rows = (
            ("FPR", str(fp), str(tn + fp), f"{measured.rates.fpr:.4f}", interval_cell(measured.fpr)),
            ("FNR", str(fn), str(fn + tp), f"{measured.rates.fnr:.4f}", interval_cell(measured.fnr)),
            ("HTER", "", "", f"{measured.rates.hter:.4f}", interval_cell(measured.hter)),
        )
    else:
        names = tuple(printable(row.name) for row in evaluation.classes[: len(evaluation.confusion)])
        of_classes = evaluation.measured
        title = f"class error {of_classes.rates.mean_error:.4f} {interval_cell(of_classes.mean_error)}"
        rows = _class_rows(of_classes, names)
    return [
        Table(
            f"{result.name} against {result.labels}: {title}",
            ("rate", "errors", "of", "value", "95 %"),
            rows,
            (RATES if isinstance(evaluation, Evaluation) else CLASS_RATES, INTERVALS),
        ),
        confusion_table(evaluation.confusion, names),
        Table(
            "Classification report",
            ("class", "precision", "recall", "F1", "support"),
            tuple(
                (printable(row.name), f"{row.precision:.4f}", f"{row.recall:.4f}", f"{row.f1:.4f}", str(row.support))
                for row in evaluation.classes
            ),
            (f"Accuracy {evaluation.accuracy:.4f}, balanced accuracy {evaluation.balanced_accuracy:.4f}.",),
        ),
    ]


def _class_rows(measured: ClassMeasured, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return a row for the error rate of each class, then the rates of all classes."""
    rates = measured.rates
    errors = (
        (f"error of {name}", str(n - rates.confusion[c][c]), str(n), f"{rates.errors[c]:.4f}", interval_cell(interval))
        for c, (name, n, interval) in enumerate(zip(names, rates.counts, measured.errors, strict=True))
    )
    return (
        *errors,
        ("class error", "", "", f"{rates.mean_error:.4f}", interval_cell(measured.mean_error)),
        ("macro F1", "", "", f"{rates.macro_f1:.4f}", interval_cell(measured.macro_f1)),
        ("accuracy", "", str(rates.n), f"{rates.accuracy:.4f}", interval_cell(measured.accuracy)),
    )


def confusion_table(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Table:
    """Return the counts by label and prediction; columns have the labels' numbers where names take too much room."""
    of = "label " if tuple(names) == ("0", "1") else ""
    numbered = sum(map(len, names)) + 2 * len(names) + max(map(len, names)) > WIDTH
    of_rows = [f"{label} {name}" if numbered else f"{of}{name}" for label, name in enumerate(names)]
    of_columns = [str(label) if numbered else f"predicted {name}" if of else name for label, name in enumerate(names)]
    rows = [*zip(of_rows, confusion, strict=True)]
    rows.append(("all", tuple(map(sum, zip(*confusion, strict=True)))))
    note = "A row holds the images of a label, a column those that are predicted as a class."
    note += " A column has the number that stands before the name of the class in its row." if numbered else ""
    return Table(
        "Confusion matrix",
        ("images", *of_columns, "all"),
        tuple((name, *map(str, counts), str(sum(counts))) for name, counts in rows),
        () if of else (note,),
    )


def comparison_tables(result: CompareResult, full: bool = True) -> list[Table]:
    """Return the rates of A and B with their difference, and where the two disagree.

    Unless `full`, the intervals of the two error rates, or the accuracy, are left out, so that the table fits 80
    columns.
    """
    comparison, name_a, name_b = result.comparison, result.name_a, result.name_b
    if isinstance(comparison, Comparison):
        differences = (comparison.fpr, comparison.fnr, comparison.hter)
        measured = _measured(comparison.a), _measured(comparison.b)
        names, what, shown = ("FPR", "FNR", "HTER"), RATES, range(7) if full else (0, 1, 3, 5, 6)
        paired = PAIRED
    else:
        differences = (comparison.mean_error, comparison.macro_f1, comparison.accuracy)
        measured = _class_measured(comparison.a), _class_measured(comparison.b)
        names, what, shown = ("class error", "macro F1", "accuracy"), CLASS_RATES, range(7) if full else range(5)
        paired = CLASS_PAIRED
    rows = (
        (f"A: {name_a}", *measured[0]),
        (f"B: {name_b}", *measured[1]),
        ("B minus A", *(cell for difference in differences for cell in _difference(difference))),
    )
    columns = ("predictions", *(text for name in names for text in (name, "95 %")))
    return [
        Table(
            f"{name_a} (A) and {name_b} (B) on the same {_images(comparison)}",
            tuple(columns[j] for j in shown),
            tuple(tuple(row[j] for j in shown) for row in rows),
            (*_sources(result), *((what, INTERVALS) if full else ()), paired),
        ),
        _agreement_table(comparison, [printable(name) for name in result.classes or ("0", "1")]),
    ]


def _agreement_table(comparison: Comparison | ClassComparison, names: Sequence[str]) -> Table:
    of_classes = comparison.agreement
    every = Agreement(
        *(sum(getattr(each, name) for each in of_classes) for name in ("only_a", "only_b", "both", "neither"))
    )
    two = len(of_classes) == 2
    return Table(
        "Who is right, in images",
        ("label", "only A", "only B", "both", "neither", "McNemar p"),
        tuple(
            (label, str(row.only_a), str(row.only_b), str(row.both), str(row.neither), _p_value(row.p_value))
            for label, row in (*zip(("0", "1") if two else names, of_classes, strict=True), ("all", every))
        ),
        (MCNEMAR if two else CLASS_MCNEMAR,),
    )


def _sources(result: CompareResult) -> tuple[str, ...]:
    """Return what the predictions are, and what they are compared with."""
    if result.labels is not None:
        return (f"Labels: {result.labels}.",)
    sides = f"A is {result.description_a}, B is {result.description_b}."
    return (sides, NESTED.format(views=" + ".join(result.views)))


def verdict(name_a: str, name_b: str, comparison: Comparison | ClassComparison) -> str:
    """Return in one sentence whether the HTERs, or the class errors, of the two differ beyond chance."""
    if not comparison.apart:
        return f"{name_a} and {name_b} predict the same for all {_images(comparison)}."
    if isinstance(comparison, Comparison):
        measure, error = "HTER", comparison.hter
    else:
        measure, error = "class error", comparison.mean_error
    value, interval = error.value, error.interval
    ends = [interval.low, interval.high] if value > 0 else [interval.high, interval.low]
    if interval.low < 0 < interval.high:
        spread = " to ".join(map(_signed, ends))
    else:
        spread = f"{abs(ends[0]):.4f} to {_signed(ends[1])}"
    difference = f"{_signed(value)} than {name_a}'s" if value else f"the same as {name_a}'s"
    sentence = f"{name_b}'s {measure} is {difference} (95 %: {spread})"
    if comparison.beyond_chance:
        return f"{sentence}: a difference beyond chance."
    if interval.low <= 0 <= interval.high:
        return f"{sentence}, within chance: {_images(comparison)} cannot tell them apart."
    cases = f"{comparison.apart} independent image{'s' * (comparison.apart > 1)}"
    return f"{sentence}, but they differ on {cases} only: too few to rule out chance."


def _signed(value: float) -> str:
    return f"{abs(value):.4f} {'higher' if value > 0 else 'lower'}"


def _images(comparison: Comparison | ClassComparison) -> str:
    return f"{comparison.a.rates.n:,} images"


def _measured(measured: Measured) -> tuple[str, ...]:
    rates = measured.rates
    cells = ((rates.fpr, measured.fpr), (rates.fnr, measured.fnr), (rates.hter, measured.hter))
    return tuple(text for rate, interval in cells for text in (f"{rate:.4f}", interval_cell(interval)))


def _class_measured(measured: ClassMeasured) -> tuple[str, ...]:
    rates = measured.rates
    cells = (
        (rates.mean_error, measured.mean_error),
        (rates.macro_f1, measured.macro_f1),
        (rates.accuracy, measured.accuracy),
    )
    return tuple(text for rate, interval in cells for text in (f"{rate:.4f}", interval_cell(interval)))


def _difference(difference: Difference) -> tuple[str, str]:
    return f"{difference.value:+.4f}", interval_cell(difference.interval, "+.4f")


def _p_value(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"
