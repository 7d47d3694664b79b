"""The files that a run shows people: `report.md` and `report.json` of a run, of a member, of a trial."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ensemble.decision.assessment import Assessment
from ensemble.decision.rates import ErrorRates
from ensemble.errors import printable
from ensemble.prediction_results import PredictionFacts
from ensemble.reports.member_tables import trial_table
from ensemble.reports.render import render, report_tables
from ensemble.reports.summary import report_summary
from ensemble.reports.table import Table, escaped
from ensemble.results import MemberReport, ReportResult, TrialResult


def report_markdown(result: ReportResult) -> str:
    """Return the report of a run as Markdown."""
    title = f"Run {printable(result.run.name)}: {result.images} images, {result.folds} folds"
    notes = "".join(f"\nData: {escaped(printable(note))}\n" for note in result.data_notes)
    return _markdown(title, [report_summary(result), *report_tables(result)]) + notes


def member_markdown(report: MemberReport) -> str:
    """Return the report of a member as Markdown."""
    return _markdown(f"Member {report.name}", render(report))


def trial_markdown(result: TrialResult) -> str:
    """Return the comparison of a trial as Markdown."""
    return _markdown(f"Trial of fold {result.fold}", [trial_table(result)])


def _markdown(title: str, tables: Iterable[Table]) -> str:
    return "\n".join((f"# {escaped(title)}\n", *(table.markdown() for table in tables)))


def report_json(result: ReportResult) -> dict[str, Any]:
    """Return the report's figures, unrounded, as plain dicts: members, decisions by view set, predictions by set."""
    decisions = result.decisions
    by_views = {} if decisions is None else {"plain": decisions.plain, "tta": decisions.tta}
    return {
        "members": {member.name: _figures(member.assessment) for member in result.members},
        "decisions": {
            name: {
                "views": list(decision.views),
                "stack": _figures(decision.stacked),
                "members": [_figures(row) for row in decision.members],
                "baselines": [_figures(row) for row in decision.baselines],
                "objective": decision.objective.text,
                "stacker": decision.kind,
                "stackers": [_figures(row) for row in decision.stackers],
                "curve": [
                    {"cost_fpr": row.cost_fpr / 10, "threshold": row.threshold, "loss": row.loss}
                    | _rates_json(row.rates)
                    for row in decision.curve
                ],
                "repeated": list(decision.repeated),
                "noise": None if decision.noise is None else asdict(decision.noise),
                "notes": list(decision.notes),
            }
            for name, decision in by_views.items()
        },
        "predictions": {name: _prediction_figures(facts) for name, facts in result.predictions.items()},
        "data_notes": list(result.data_notes),
    }


def _figures(row: Assessment) -> dict[str, Any]:
    return {
        "name": row.name,
        "threshold": row.threshold,
        "nested": _rates_json(row.nested)
        | {"interval": [row.interval.low, row.interval.high], "refitted": row.refitted}
        | {f"{name}_interval": [i.low, i.high] for name, i in (("fpr", row.fpr), ("fnr", row.fnr))},
        "less_the_stack": None
        if row.difference is None
        else {"hter": row.difference.value, "interval": [row.difference.interval.low, row.difference.interval.high]},
        "apparent": _rates_json(row.apparent),
        "optimism": row.optimism,
        "auc": row.auc,
        "folds": [
            {"fold": fold.fold, "threshold": fold.threshold, "auc": fold.auc} | _rates_json(fold.rates)
            for fold in row.folds
        ],
    }


def _rates_json(rates: ErrorRates) -> dict[str, Any]:
    return {"n_neg": rates.n_neg, "n_pos": rates.n_pos, "fpr": rates.fpr, "fnr": rates.fnr, "hter": rates.hter}


def _prediction_figures(facts: PredictionFacts) -> dict[str, Any]:
    figures = asdict(facts)
    figures["expectation"]["rates"] = _rates_json(facts.expectation.rates)
    figures["share_check"]["shifted"] = facts.share_check.shifted
    return figures
