"""The tables of `thera evaluate`, `thera compare`, with its verdict in one sentence, and `thera trial`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensemble.decision.comparison import Agreement, Comparison, Difference, Evaluation, Measured, compare_calls
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import auc, call
from ensemble.decision.threshold import fit_threshold
from ensemble.reports.tables import Table

RATES = "FPR: share of label 0 called 1. FNR: share of label 1 called 0. HTER: their mean."
DRAWN = "[]: 95 % interval of the images drawn (bootstrap by class, at the calls made)."
PAIRED = "B minus A: below 0, B errs less; its interval draws both calls of an image together (paired bootstrap)."
MCNEMAR = (
    "McNemar p: how often chance splits the images that just one calls right at least as unevenly as this, if both are "
    "as good (exact, two-sided). Of label 0 it tests the FPR, of label 1 the FNR, of all the accuracy, not the HTER; "
    "every image counts by itself, grouped or not."
)


def evaluation_tables(name: str, truth: str, evaluation: Evaluation) -> list[Table]:
    """Return the rates, the confusion matrix and the classification report of the label file `name`."""
    measured = evaluation.measured
    (tn, fp), (fn, tp) = evaluation.confusion
    counts = (("label 0", tn, fp), ("label 1", fn, tp), ("all", tn + fn, fp + tp))
    return [
        Table(
            f"{name} against {truth}: HTER {measured.rates.hter:.4f} {_interval(measured.hter)}",
            ("rate", "errors", "of", "value", "95 %"),
            (
                ("FPR", str(fp), str(tn + fp), f"{measured.rates.fpr:.4f}", _interval(measured.fpr)),
                ("FNR", str(fn), str(fn + tp), f"{measured.rates.fnr:.4f}", _interval(measured.fnr)),
                ("HTER", "", "", f"{measured.rates.hter:.4f}", _interval(measured.hter)),
            ),
            (RATES, DRAWN),
        ),
        Table(
            "Confusion matrix",
            ("images", "called 0", "called 1", "all"),
            tuple((label, str(zero), str(one), str(zero + one)) for label, zero, one in counts),
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


def comparison_tables(name_a: str, name_b: str, comparison: Comparison, notes: Sequence[str] = ()) -> list[Table]:
    """Return the rates of A and B with their difference and the verdict, and where the two disagree.

    Parameters
    ----------
    name_a, name_b : str
        What the two are called.
    comparison : Comparison
        Of their calls.
    notes : sequence of str
        What the calls are.
    """
    differences = (comparison.fpr, comparison.fnr, comparison.hter)
    zero, one = comparison.agreement
    every = Agreement(
        zero.only_a + one.only_a, zero.only_b + one.only_b, zero.both + one.both, zero.neither + one.neither
    )
    return [
        Table(
            f"{name_a} (A) and {name_b} (B) on the same {_images(comparison)}",
            ("calls", "FPR", "95 %", "FNR", "95 %", "HTER", "95 %"),
            (
                (f"A: {name_a}", *_measured(comparison.a)),
                (f"B: {name_b}", *_measured(comparison.b)),
                ("B minus A", *(cell for difference in differences for cell in _difference(difference))),
            ),
            (verdict(name_a, name_b, comparison), *notes, RATES, DRAWN, PAIRED),
        ),
        Table(
            "Who is right, in images",
            ("label", "only A", "only B", "both", "neither", "McNemar p"),
            tuple(
                (label, str(row.only_a), str(row.only_b), str(row.both), str(row.neither), _p_value(row.p_value))
                for label, row in (("0", zero), ("1", one), ("all", every))
            ),
            (MCNEMAR,),
        ),
    ]


def verdict(name_a: str, name_b: str, comparison: Comparison) -> str:
    """Return in one sentence whether the HTERs of the two differ beyond chance."""
    if not comparison.apart:
        return f"{name_a} and {name_b} call all {_images(comparison)} the same."
    value, interval = comparison.hter.value, comparison.hter.interval
    ends = [interval.low, interval.high] if value > 0 else [interval.high, interval.low]
    if interval.low < 0 < interval.high:
        spread = " to ".join(map(_moved, ends))
    else:
        spread = f"{abs(ends[0]):.4f} to {_moved(ends[1])}"
    difference = f"{_moved(value)} than {name_a}'s" if value else f"the same as {name_a}'s"
    told = f"{name_b}'s HTER is {difference} (95 %: {spread})"
    if comparison.beyond_chance:
        return f"{told}: a difference beyond chance."
    if interval.low <= 0 <= interval.high:
        return f"{told}, within chance: {_images(comparison)} cannot tell them apart."
    cases = f"{comparison.apart} independent image{'s' * (comparison.apart > 1)}"
    return f"{told}, but they differ on {cases} only: too few to rule out chance."


def _moved(value: float) -> str:
    return f"{abs(value):.4f} {'higher' if value > 0 else 'lower'}"


def _images(comparison: Comparison) -> str:
    return f"{comparison.a.rates.n:,} images"


def _measured(measured: Measured) -> tuple[str, ...]:
    rates = measured.rates
    cells = ((rates.fpr, measured.fpr), (rates.fnr, measured.fnr), (rates.hter, measured.hter))
    return tuple(text for rate, interval in cells for text in (f"{rate:.4f}", _interval(interval)))


def _difference(difference: Difference) -> tuple[str, str]:
    return f"{difference.value:+.4f}", _interval(difference.interval, "+.4f")


def _interval(interval: Interval, form: str = ".4f") -> str:
    return f"[{interval.low:{form}}, {interval.high:{form}}]"


def _p_value(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def trial_table(
    fold: int,
    logits: Mapping[str, np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray | None,
    seed: int,
    facts: Mapping[str, Mapping[str, Any]],
    views: Sequence[str],
) -> Table:
    """Return a row for each member: its HTER at the cut that is best for these very rows, less the first's too.

    Parameters
    ----------
    logits : mapping
        The logits (n,) of each member by its name, averaged over `views`; the others are held against the first.
    labels : int8 array (n,)
    groups : int64 array (n,), optional
    seed : int
        Of the bootstrap.
    facts : mapping
        `epochs`, `training_seconds` and `threads` of each member.
    """
    called = {name: call(x, fit_threshold(x, labels)) for name, x in logits.items()}
    first = next(iter(called))
    rows = []
    for name, own in called.items():
        compared = compare_calls(labels, called[first], own, groups, seed)
        low, high = compared.hter.interval.low, compared.hter.interval.high
        apart = "" if name == first else f"{compared.hter.value:+.4f} [{low:+.4f}, {high:+.4f}]"
        spent = f"{facts[name]['training_seconds'] * facts[name]['threads'] / 60:.1f}"
        rates = compared.b.rates
        rows.append(
            (
                name,
                str(facts[name]["epochs"]),
                spent,
                f"{rates.fpr:.4f}",
                f"{rates.fnr:.4f}",
                f"{rates.hter:.4f}",
                f"{auc(logits[name], labels):.4f}",
                apart,
            )
        )
    return Table(
        f"Trial: {len(labels)} rows of fold {fold}, views {' + '.join(views)}",
        ("member", "epochs", "core minutes", "FPR", "FNR", "HTER", "AUC", f"HTER less {first}'s"),
        tuple(rows),
        (
            "At the cut that is best for these very rows: to choose by, not to promise. What is chosen by it must be "
            "confirmed on the other folds.",
        ),
    )
