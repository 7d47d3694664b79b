"""`render(result)` turns the result of a command into tables: which, in what order, with which notes."""

from __future__ import annotations

from collections import Counter
from functools import singledispatch
from pathlib import Path

from ensemble.bench_results import BenchResult
from ensemble.clean_results import CleanResult, ReviewResult
from ensemble.decision.class_assessment import ClassAssessment
from ensemble.decision.rates import ErrorRates
from ensemble.distil_results import DistilResult
from ensemble.errors import printable
from ensemble.explore_results import ExploreResult
from ensemble.export_results import ExportResult, ModelPrediction
from ensemble.prediction_results import PredictResult, ShardsResult
from ensemble.push_results import PushResult
from ensemble.reports.bench_tables import bench_tables
from ensemble.reports.clean_tables import clean_tables, review_table, reviewed_tables
from ensemble.reports.comparison_tables import CLASS_RATES, comparison_tables, evaluation_tables
from ensemble.reports.decision_tables import decision_tables
from ensemble.reports.distil_tables import distil_tables
from ensemble.reports.explore_tables import explore_tables
from ensemble.reports.export_tables import export_tables, model_prediction_tables, push_tables
from ensemble.reports.member_tables import member_table, trial_table
from ensemble.reports.prediction_tables import prediction_table
from ensemble.reports.summary import (
    compare_summary,
    demo_summary,
    evaluate_summary,
    fit_summary,
    predict_summary,
    report_files,
    report_summary,
    train_summary,
)
from ensemble.reports.table import Table
from ensemble.reports.targets_tables import prediction_of_targets_table, targets_summary, targets_tables
from ensemble.results import (
    ClassFitResult,
    CompareResult,
    DemoResult,
    EvaluateResult,
    FitResult,
    MemberReport,
    PeopleResult,
    RecipesResult,
    RemoveResult,
    ReportResult,
    TargetsPrediction,
    TargetsResult,
    TrainResult,
    TrialResult,
    VerifyResult,
)

LEGEND = (
    "FPR: share of label 0 predicted as 1. FNR: share of label 1 predicted as 0. HTER: their mean.",
    (
        "All three are nested: whatever a rule fits (weights, thresholds) is fitted without the fold that it is scored "
        "on. Apparent is the HTER of the rule fitted on all images and scored on the same images; the gap is the "
        "optimism of that figure. The threshold is that of the rule fitted on all images, in logits."
    ),
    (
        "[]: 95 % interval. Every bootstrap replicate refits the threshold, and is the same for all rules. The "
        "predictions of rules at 0.5 and of votes are fixed."
    ),
)
AVERAGING = (
    "Prediction averages k fold models, while each logit measured here came from one. The effect of averaging is "
    "measured on the images to predict: it corrects the threshold and gives the expected HTER of their label file."
)

CLASS_LEGEND = (
    f"{CLASS_RATES} Accuracy: the share of all images that are predicted correctly.",
    (
        "All are nested: whatever a rule fits (weights, offsets) is fitted without the fold that it is scored on. "
        "Apparent is the same figure of the rule fitted on all images and scored on the same images; the gap is its "
        "optimism, above 0 where it is too good. An image gets the class with the greatest logit plus offset; the "
        "offsets are those of the rule fitted on all images."
    ),
    (
        "[]: 95 % interval. Every bootstrap replicate refits the offsets, and is the same for all rules. The "
        "predictions of rules without offsets and of votes are fixed."
    ),
)
CLASS_AVERAGING = (
    "Prediction averages k fold models, while each logit measured here came from one. Among more than two classes the "
    "effect of averaging is not measured: the rates of a label file are those of one fold model."
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
    return [member_table(result).with_notes(*_legend(result))]


def _legend(report: MemberReport) -> tuple[str, ...]:
    return CLASS_LEGEND if isinstance(report.assessment, ClassAssessment) else LEGEND


@render.register
def _(result: TrainResult) -> list[Table]:
    return [*(table for member in result.members for table in render(member)), train_summary(result)]


@render.register
def _(result: TrialResult) -> list[Table]:
    return [trial_table(result)]


@render.register
def _(result: RemoveResult) -> list[Table]:
    rows = tuple((name, str(folds)) for name, folds in result.left.items())
    return [Table(f"Members left in {printable(result.run)}", ("member", "finished folds"), rows)]


@render.register
def _(result: FitResult | ClassFitResult) -> list[Table]:
    return [*_fit_tables(result), fit_summary(result)]


@render.register
def _(result: PredictResult | ShardsResult) -> list[Table]:
    return [prediction_table({result.name: result.facts}), predict_summary(result)]


@render.register
def _(result: ExportResult) -> list[Table]:
    return export_tables(result)


@render.register
def _(result: DistilResult) -> list[Table]:
    return [*render(result.report), *distil_tables(result)]


@render.register
def _(result: PushResult) -> list[Table]:
    return push_tables(result)


@render.register
def _(result: ModelPrediction) -> list[Table]:
    return model_prediction_tables(result)


@render.register
def _(result: EvaluateResult) -> list[Table]:
    return [*evaluation_tables(result), evaluate_summary(result)]


@render.register
def _(result: CompareResult) -> list[Table]:
    return [*comparison_tables(result), compare_summary(result)]


@render.register
def _(result: ReportResult) -> list[Table]:
    return [*report_tables(result), report_summary(result).with_notes(*report_files(result))]


@render.register
def _(result: VerifyResult) -> list[Table]:
    counts = Counter(Path(name).name for name in result.checked)
    rows = tuple((printable(name), str(count)) for name, count in counts.items())
    return [Table(f"Every file of {printable(result.run)} is as it was written", ("file", "checked"), rows)]


@render.register
def _(result: DemoResult) -> list[Table]:
    return [*report_tables(result.report), demo_table(result), demo_summary(result)]


@render.register
def _(result: PeopleResult) -> list[Table]:
    rows = tuple(
        (
            row.target,
            str(row.classes),
            str(row.least),
            f"{row.error:.4f}",
            f"{row.mean_error:.4f}",
            f"{row.macro_f1:.4f}",
        )
        for row in result.rows
    )
    title = f"{result.people} people, {result.images} images: {printable(result.manifest)}"
    return [
        Table(
            title,
            ("column", "classes", "rarest", "error", "class error", "macro F1"),
            rows,
            (
                "The last three columns are the best that any rule has that labels each image by itself (Bayes). label "
                "joins the three targets: mask * 6 + gender * 3 + age.",
            ),
        )
    ]


@render.register
def _(result: TargetsResult) -> list[Table]:
    return [*targets_tables(result), targets_summary(result)]


@render.register
def _(result: TargetsPrediction) -> list[Table]:
    return [prediction_of_targets_table(result)]


@render.register
def _(result: RecipesResult) -> list[Table]:
    rows = tuple((recipe.name, recipe.about) for recipe in result.recipes)
    return [Table("Recipes of public solutions", ("thera run", "what it is"), rows, numbers=False)]


@render.register
def _(result: BenchResult) -> list[Table]:
    return bench_tables(result)


@render.register
def _(result: ExploreResult) -> list[Table]:
    return explore_tables(result)


@render.register
def _(result: CleanResult) -> list[Table]:
    return clean_tables(result)


@render.register
def _(result: ReviewResult) -> list[Table]:
    return [review_table(result)]


def report_tables(result: ReportResult) -> list[Table]:
    """Return all tables of a run, without the summary."""
    members = [member_table(member) for member in result.members]
    reviewed = reviewed_tables(result)
    if result.decisions is None:
        return [*members[:-1], members[-1].with_notes(*_legend(result.members[-1])), *reviewed]
    tables = [*members, *_fit_tables(result.decisions), *reviewed]
    return [*tables, prediction_table(result.predictions)] if result.predictions else tables


def _fit_tables(result: FitResult | ClassFitResult) -> list[Table]:
    if isinstance(result, FitResult):
        *first, last = decision_tables(result.plain, result.tta)
        return [*first, last.with_notes(*LEGEND, AVERAGING)]
    *first, last = decision_tables(result.plain, result.tta, result.classes)
    return [*first, last.with_notes(*CLASS_LEGEND, CLASS_AVERAGING)]


def demo_table(result: DemoResult) -> Table:
    """Return the demo's HTER on given and true labels, and the least HTER of any rule."""

    def row(name: str, rates: ErrorRates) -> tuple[str, ...]:
        return name, str(rates.n), f"{rates.fpr:.4f}", f"{rates.fnr:.4f}", f"{rates.hter:.4f}"

    excess = result.nested.hter - result.bayes_hter
    return Table(
        "Demo: the HTER reached, and the least possible",
        ("labels", "images", "FPR", "FNR", "HTER"),
        (
            row("training images, nested, as given (5 % flipped)", result.nested),
            row("label_val.txt against the labels as given", result.given),
            row("label_val.txt against the true classes", result.true),
            ("least HTER that any rule has, as given (Bayes)", "", "", "", f"{result.bayes_hter:.4f}"),
        ),
        (f"The ensemble's nested HTER is {abs(excess):.4f} {'above' if excess >= 0 else 'below'} the Bayes HTER.",),
    )
