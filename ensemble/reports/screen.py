"""What a command prints: short tables with the summary last, or with `--full` all tables."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

from ensemble.decision.assessment import Assessment
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.decision import Decision
from ensemble.errors import printable
from ensemble.explore_results import ExploreResult
from ensemble.prediction_results import ClassPredictionFacts, PredictResult, ShardsResult
from ensemble.reports.clean_tables import reviewed_tables
from ensemble.reports.comparison_tables import CLASS_RATES, comparison_tables, evaluation_tables
from ensemble.reports.decision_tables import decision_warnings, objective_sentence, repeated_notes
from ensemble.reports.explore_tables import explore_tables
from ensemble.reports.measures import Rule, nested_cells, nested_columns
from ensemble.reports.member_tables import best_rule, chance_notes, origin_notes, trial_table
from ensemble.reports.prediction_tables import (
    Facts,
    expected_cells,
    expected_columns,
    expected_measure,
    label_file_warnings,
    marked_name,
    shares_note,
    unmeasured_notes,
)
from ensemble.reports.render import demo_table, render
from ensemble.reports.summary import (
    compare_summary,
    demo_summary,
    evaluate_summary,
    fit_summary,
    predict_summary,
    report_files,
    report_summary,
    train_summary,
    trial_summary,
)
from ensemble.reports.table import Table
from ensemble.results import (
    ClassFitResult,
    CompareResult,
    DemoResult,
    EvaluateResult,
    FitResult,
    MemberReport,
    ReportResult,
    TrainResult,
    TrialResult,
)

LEGEND = "FPR: error rate on images of label 0; FNR: on label 1; HTER: their mean."


def on_screen(result: object, full: bool = False) -> list[Table]:
    """Return the tables that a command prints of its result: those of `render` if `full`, else short ones.

    Raises
    ------
    TypeError
        There are no tables for this type.
    """
    return render(result) if full else _short(result)


@singledispatch
def _short(result: object) -> list[Table]:
    """Return the short tables of a result; those of `render` where they are short themselves."""
    return render(result)


@_short.register
def _(result: TrainResult) -> list[Table]:
    return [_members_table(result.members), train_summary(result)]


@_short.register
def _(result: TrialResult) -> list[Table]:
    return [trial_table(result, full=False), trial_summary(result)]


@_short.register
def _(result: FitResult | ClassFitResult) -> list[Table]:
    return [_decision_table(result.tta), fit_summary(result)]


@_short.register
def _(result: PredictResult | ShardsResult) -> list[Table]:
    return [_label_files_table({result.name: result.facts}), predict_summary(result)]


@_short.register
def _(result: EvaluateResult) -> list[Table]:
    rates, confusion, *_ = evaluation_tables(result)
    return [rates, confusion, evaluate_summary(result)]


@_short.register
def _(result: CompareResult) -> list[Table]:
    rates, *_ = comparison_tables(result, full=False)
    return [rates, compare_summary(result)]


@_short.register
def _(result: ExploreResult) -> list[Table]:
    return explore_tables(result, full=False)


@_short.register
def _(result: ReportResult) -> list[Table]:
    return [*_report_tables(result), report_summary(result).with_notes(*report_files(result))]


@_short.register
def _(result: DemoResult) -> list[Table]:
    return [*_report_tables(result.report), demo_table(result), demo_summary(result)]


def _report_tables(result: ReportResult) -> list[Table]:
    if result.decisions is None:
        return [_members_table(result.members), *reviewed_tables(result)]
    label_files = [_label_files_table(result.predictions)] if result.predictions else []
    return [_decision_table(result.decisions.tta), *reviewed_tables(result), *label_files]


def _members_table(members: tuple[MemberReport, ...]) -> Table:
    """Return the pooled row of each member."""
    rules = [member.assessment for member in members]
    notes = [f"{member.name}: {note}" for member in members for note in origin_notes(member)]
    return Table(
        f"Members on {rules[0].nested.n} images, out of fold, views {' + '.join(members[0].views)}",
        _rule_columns(rules[0]),
        tuple(map(_rule_row, rules)),
        (_legend(rules[0]), *chance_notes(rules), *notes),
        best=best_rule(rules),
    )


def _decision_table(decision: Decision | ClassDecision) -> Table:
    """Return the stack and the members."""
    rules: list[Rule] = [decision.stacked, *decision.members]
    return Table(
        f"Stack and members on {decision.nested.n} images, nested, views {' + '.join(decision.views)}",
        _rule_columns(rules[0]),
        tuple(map(_rule_row, rules)),
        (
            _legend(rules[0]),
            objective_sentence(decision),
            *repeated_notes(decision),
            *decision_warnings(decision),
        ),
        best=best_rule(rules, decision.objective),
    )


def _legend(rule: Rule) -> str:
    return LEGEND if isinstance(rule, Assessment) else CLASS_RATES


def _rule_columns(rule: Rule) -> tuple[str, ...]:
    """Return the columns of the short tables of members and stack."""
    last = ("AUC",) if isinstance(rule, Assessment) else ()
    return ("", *_shown(rule, nested_columns(rule)), *last)


def _rule_row(rule: Rule) -> tuple[str, ...]:
    last = (f"{rule.auc:.4f}",) if isinstance(rule, Assessment) else ()
    return (rule.name, *_shown(rule, nested_cells(rule)), *last)


def _shown(rule: Rule, cells: tuple[str, ...]) -> tuple[str, ...]:
    """Return the cells that fit 80 columns: of more than two classes, all but the accuracy, unless it is judged by."""
    if isinstance(rule, Assessment):
        return cells
    return (*cells[:2], *cells[4:]) if rule.objective.kind == "accuracy" else cells[:4]


def _label_files_table(predictions: Mapping[str, Facts]) -> Table:
    """Return the expected error rates of label files, keyed by the name of their set, and what speaks against them."""
    shares = (
        f"{printable(name)}: {shares_note(facts)}"
        for name, facts in predictions.items()
        if isinstance(facts, ClassPredictionFacts)
    )
    warnings = (
        f"warning: {printable(name)}: {warning}"
        for name, facts in predictions.items()
        for warning in label_file_warnings(facts)
    )
    return Table(
        f"Label files: expected {expected_measure(predictions)}",
        ("set", "images", *expected_columns(predictions)),
        tuple(
            (marked_name(name, facts), str(facts.images), *expected_cells(facts)) for name, facts in predictions.items()
        ),
        (*unmeasured_notes(predictions), *shares, *warnings),
    )
