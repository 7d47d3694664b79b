"""The files that a run shows people: `report.md` and `report.json` of a run, of a member, of a trial."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ensemble.decision.class_assessment import ClassAssessment
from ensemble.decision.comparison import Difference
from ensemble.decision.decision import Decision
from ensemble.decision.intervals import Interval
from ensemble.decision.label_noise import ClassNoise, NoiseBound
from ensemble.decision.rates import ClassRates, ErrorRates
from ensemble.errors import printable
from ensemble.reports.measures import Rule
from ensemble.reports.member_tables import trial_table
from ensemble.reports.prediction_tables import Facts
from ensemble.reports.render import render, report_tables
from ensemble.reports.summary import report_summary
from ensemble.reports.table import Table, escaped
from ensemble.reports.targets_tables import targets_tables
from ensemble.results import MemberReport, ReportResult, TargetsResult, TrialResult


def report_markdown(result: ReportResult) -> str:
    """Return the report of a run as Markdown."""
    title = f"Run {printable(result.run.name)}: {result.images} images, {result.folds} folds"
    notes = "".join(f"\nData: {escaped(printable(note))}\n" for note in result.data_notes)
    return _markdown(title, [report_summary(result), *report_tables(result)]) + notes


def member_markdown(report: MemberReport) -> str:
    """Return the report of a member as Markdown."""
    return _markdown(f"Member {report.name}", render(report))


def targets_markdown(result: TargetsResult) -> str:
    """Return the report of several targets as Markdown; each target has its own report too."""
    return _markdown(f"Targets of {printable(result.run.name)}", targets_tables(result))


def trial_markdown(result: TrialResult) -> str:
    """Return the comparison of a trial as Markdown."""
    return _markdown(f"Trial of fold {result.fold}", [trial_table(result)])


def _markdown(title: str, tables: Iterable[Table]) -> str:
    return "\n".join((f"# {escaped(title)}\n", *(table.markdown() for table in tables)))


def report_json(result: ReportResult) -> dict[str, Any]:
    """Return the report's figures, unrounded, as plain dicts: members, decisions by view set, predictions by set.

    The names of more than two classes are listed first; the figures of a class stand under its name.
    """
    decisions, classes = result.decisions, result.classes or ()
    by_views = {} if decisions is None else {"plain": decisions.plain, "tta": decisions.tta}
    names = {"classes": list(classes)} if classes else {}
    return names | {
        "members": {member.name: _figures(member.assessment, classes) for member in result.members},
        "decisions": {
            name: {
                "views": list(decision.views),
                "stack": _figures(decision.stacked, classes),
                "members": [_figures(row, classes) for row in decision.members],
                "baselines": [_figures(row, classes) for row in decision.baselines],
                "objective": decision.objective.text,
                "stacker": decision.kind,
                "stackers": [_figures(row, classes) for row in decision.stackers],
                "curve": [
                    {"cost_fpr": row.cost_fpr / 10, "threshold": row.threshold, "loss": row.loss}
                    | _rates_json(row.rates)
                    for row in (decision.curve if isinstance(decision, Decision) else ())
                ],
                "repeated": list(decision.repeated),
                "noise": _noise_json(decision.noise),
                "notes": list(decision.notes),
            }
            for name, decision in by_views.items()
        },
        "predictions": {name: _prediction_figures(facts) for name, facts in result.predictions.items()},
        "data_notes": list(result.data_notes),
        **({"on_reviewed_labels": [asdict(score) for score in result.reviewed]} if result.reviewed else {}),
    }


def _figures(row: Rule, classes: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a rule; of more than two classes, each class has its rates under its name."""
    if isinstance(row, ClassAssessment):
        return _class_figures(row, classes)
    return {
        "name": row.name,
        "threshold": row.threshold,
        "nested": _rates_json(row.nested)
        | {"interval": _ends(row.interval), "refitted": row.refitted}
        | {f"{name}_interval": _ends(interval) for name, interval in (("fpr", row.fpr), ("fnr", row.fnr))},
        "less_the_stack": _difference_json("hter", row.difference),
        "apparent": _rates_json(row.apparent),
        "optimism": row.optimism,
        "auc": row.auc,
        "folds": [
            {"fold": fold.fold, "threshold": fold.threshold, "auc": fold.auc} | _rates_json(fold.rates)
            for fold in row.folds
        ],
    }


def _class_figures(row: ClassAssessment, classes: Sequence[str]) -> dict[str, Any]:
    rates, of_all = row.nested, (("mean_error", row.mean_error), ("macro_f1", row.macro_f1), ("accuracy", row.accuracy))
    return {
        "name": row.name,
        "offsets": list(row.offsets),
        "nested": _rates_json(rates)
        | {"loss": row.loss, "interval": _ends(row.interval), "refitted": row.refitted}
        | {f"{name}_interval": _ends(interval) for name, interval in of_all},
        "classes": {
            name: {
                "images": rates.counts[c],
                "recall": rates.recalls[c],
                "recall_interval": _ends(row.errors[c].complement),
                "precision": rates.precisions[c],
                "precision_interval": _ends(row.precisions[c]),
                "f1": rates.f1_scores[c],
                "offset": row.offsets[c],
            }
            for c, name in enumerate(classes or map(str, range(len(row.offsets))))
        },
        "less_the_stack": _difference_json("loss", row.difference),
        "macro_f1_less_the_stack": _difference_json("macro_f1", row.macro_f1_difference),
        "apparent": _rates_json(row.apparent),
        "optimism": row.optimism,
        "folds": [{"fold": fold.fold, "offsets": list(fold.offsets)} | _rates_json(fold.rates) for fold in row.folds],
    }


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _difference_json(measure: str, difference: Difference | None) -> dict[str, Any] | None:
    """Return a difference to the stack; None for the stack itself."""
    return None if difference is None else {measure: difference.value, "interval": _ends(difference.interval)}


def _noise_json(noise: NoiseBound | ClassNoise | None) -> dict[str, Any] | None:
    if isinstance(noise, ClassNoise):
        rates = noise.rates
        confusion = [list(row) for row in rates.confusion]
        return {"confident_joint": confusion, "mean_error": rates.mean_error, "interval": _ends(noise.interval)}
    return None if noise is None else asdict(noise)


def _rates_json(rates: ErrorRates | ClassRates) -> dict[str, Any]:
    if isinstance(rates, ErrorRates):
        return {"n_neg": rates.n_neg, "n_pos": rates.n_pos, "fpr": rates.fpr, "fnr": rates.fnr, "hter": rates.hter}
    return {
        "confusion": [list(row) for row in rates.confusion],
        "mean_error": rates.mean_error,
        "macro_f1": rates.macro_f1,
        "accuracy": rates.accuracy,
    }


def _prediction_figures(facts: Facts) -> dict[str, Any]:
    figures = asdict(facts)
    figures["expectation"]["rates"] = _rates_json(facts.expectation.rates)
    figures["share_check"]["p_value"] = facts.share_check.p_value
    figures["share_check"]["shifted"] = facts.share_check.shifted
    return figures
