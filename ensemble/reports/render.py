"""`render(result)` turns the result of a command into tables: which, in what order, with which notes."""

from __future__ import annotations

from collections import Counter
from functools import singledispatch
from pathlib import Path

from ensemble.decision.rates import ErrorRates
from ensemble.errors import printable
from ensemble.reports.bench_tables import bench_tables
from ensemble.reports.comparison_tables import comparison_tables, evaluation_tables
from ensemble.reports.decision_tables import decision_tables
from ensemble.reports.member_tables import member_table, trial_table
from ensemble.reports.prediction_tables import prediction_table
from ensemble.reports.table import Table, interval_cell
from ensemble.results import (
    BenchResult,
    CompareResult,
    DemoResult,
    EvaluateResult,
    FitResult,
    MemberReport,
    PredictResult,
    RecipesResult,
    RemoveResult,
    ReportResult,
    TrainResult,
    TrialResult,
    VerifyResult,
)

LEGEND = (
    "FPR: share of label 0 predicted as 1. FNR: share of label 1 predicted as 0. HTER: their mean.",
    (
        "All three are nested: whatever a rule fits (weights, thresholds) is fitted without the fold that it is scored "
        "on. Apparent is the HTER of the rule fitted on all rows and scored on the same rows; the gap is the optimism "
        "of that figure. The threshold is that of the rule fitted on all rows, in logits."
    ),
    (
        "[]: 95 % interval. For the stack, and for a member in its own report, every bootstrap replicate refits the "
        "threshold; for the rules beside the stack, the predictions are fixed."
    ),
)
AVERAGING = (
    "Prediction averages k fold models, while each logit measured here came from one. The effect of averaging is "
    "measured on the images to predict: it corrects the threshold and gives the expected HTER of their label file."
)


@singledispatch
def render(result: object) -> list[Table]:
    """Return the tables of a command's result.

    Raises
    ------
    TypeError
        There are no tables for this type.
    """
    raise TypeError(f"no tables for {type(result).__name__}")


@render.register
def _(result: MemberReport) -> list[Table]:
    return [member_table(result).with_notes(*LEGEND)]


@render.register
def _(result: TrainResult) -> list[Table]:
    return [table for member in result.members for table in render(member)]


@render.register
def _(result: TrialResult) -> list[Table]:
    return [trial_table(result)]


@render.register
def _(result: RemoveResult) -> list[Table]:
    rows = tuple((name, str(folds)) for name, folds in result.left.items())
    return [Table(f"Members left in {printable(result.run)}", ("member", "finished folds"), rows)]


@render.register
def _(result: FitResult) -> list[Table]:
    *first, last = decision_tables(result.plain, result.tta)
    return [*first, last.with_notes(*LEGEND, AVERAGING)]


@render.register
def _(result: PredictResult) -> list[Table]:
    return [prediction_table({result.name: result.facts})]


@render.register
def _(result: EvaluateResult) -> list[Table]:
    return evaluation_tables(result)


@render.register
def _(result: CompareResult) -> list[Table]:
    return comparison_tables(result)


@render.register
def _(result: ReportResult) -> list[Table]:
    members = [member_table(member) for member in result.members]
    if result.decisions is None:
        return [*members[:-1], members[-1].with_notes(*LEGEND)]
    tables = [summary_table(result), *members, *render(result.decisions)]
    return [*tables, prediction_table(result.predictions)] if result.predictions else tables


@render.register
def _(result: VerifyResult) -> list[Table]:
    counts = Counter(Path(name).name for name in result.checked)
    rows = tuple((printable(name), str(count)) for name, count in counts.items())
    return [Table(f"Every file of {printable(result.run)} is as it was written", ("file", "checked"), rows)]


@render.register
def _(result: DemoResult) -> list[Table]:
    return [*render(result.report), demo_table(result)]


@render.register
def _(result: RecipesResult) -> list[Table]:
    rows = tuple((recipe.name, recipe.about) for recipe in result.recipes)
    return [Table("Recipes of public solutions", ("thera run", "what it is"), rows, numbers=False)]


@render.register
def _(result: BenchResult) -> list[Table]:
    return bench_tables(result)


def summary_table(result: ReportResult) -> Table:
    """Return the figures that matter most: the label files' and the stack's."""
    assert result.decisions is not None
    decision = result.decisions.tta
    label_files = tuple(
        (
            f"label file {printable(name)}, expected",
            f"{facts.expectation.rates.hter:.4f}",
            interval_cell(facts.expectation.interval),
        )
        for name, facts in result.predictions.items()
    )
    views, nested = " + ".join(decision.views), f"{decision.nested.hter:.4f}"
    return Table(
        "In short",
        ("", "HTER", "95 %"),
        (
            *label_files,
            (f"stack of one fold model, nested, views {views}", nested, interval_cell(decision.interval)),
            ("the same, apparent", f"{decision.apparent.hter:.4f}", ""),
        ),
    )


def demo_table(result: DemoResult) -> Table:
    """Return the demo's HTER on given and true labels, and the least HTER of any rule."""

    def row(name: str, rates: ErrorRates) -> tuple[str, ...]:
        return name, str(rates.n), f"{rates.fpr:.4f}", f"{rates.fnr:.4f}", f"{rates.hter:.4f}"

    excess = result.nested.hter - result.bayes_hter
    return Table(
        "Demo: the HTER reached, and the least possible",
        ("labels", "n", "FPR", "FNR", "HTER"),
        (
            row("training images, nested, as given (5 % flipped)", result.nested),
            row("label_val.txt against the labels as given", result.given),
            row("label_val.txt against the true classes", result.true),
            ("least HTER that any rule has, as given (Bayes)", "", "", "", f"{result.bayes_hter:.4f}"),
        ),
        (f"The ensemble's nested HTER is {abs(excess):.4f} {'above' if excess >= 0 else 'below'} the Bayes HTER.",),
    )
