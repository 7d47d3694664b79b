"""The tables of single members: their out-of-fold reports, and a trial of several on one fold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ensemble.decision.assessment import Assessment
from ensemble.decision.intervals import Interval, chance_interval
from ensemble.decision.objective import HTER, Objective
from ensemble.reports.table import Table, interval_cell, rate_cells
from ensemble.results import MemberReport, TrialResult, TrialRow


def member_table(report: MemberReport) -> Table:
    """Return one row per fold, and the pooled row with its 95 % interval."""
    member = report.assessment
    folds = [
        (str(row.fold), str(row.rates.n), *rate_cells(row.rates), "", f"{row.auc:.4f}", f"{row.threshold:+.4f}")
        for row in member.folds
    ]
    pooled = (
        "pooled",
        str(member.nested.n),
        *rate_cells(member.nested),
        interval_cell(member.interval),
        f"{member.auc:.4f}",
        f"{member.threshold:+.4f}",
    )
    return Table(
        f"{member.name}: out-of-fold, views {' + '.join(report.views)}, at the member's threshold",
        ("fold", "images", "FPR", "FNR", "HTER", "95 %", "AUC", "threshold"),
        (*folds, pooled),
        (
            f"Each fold is scored at the threshold fitted without it. Apparent HTER {member.apparent.hter:.4f}, "
            f"gap {member.optimism:+.4f}.",
            *chance_notes([member]),
            *origin_notes(report),
        ),
    )


def best_rule(rules: Sequence[Assessment], objective: Objective = HTER) -> int | None:
    """Return the index of the rule with the least nested HTER.

    Return None where no rule is better than the others, or where their thresholds are not chosen for the HTER.
    """
    hters = [rule.nested.hter for rule in rules]
    return hters.index(min(hters)) if objective == HTER and min(hters) < max(hters) else None


def chance_notes(rules: Iterable[Assessment]) -> tuple[str, ...]:
    """Return a sentence about each rule whose AUC is no better than chance."""
    return tuple(
        _chance_sentence("the stack" if rule.name == "stack" else f"member {rule.name}", rule.auc, rule.chance_interval)
        for rule in rules
        if not rule.beats_chance
    )


def _chance_sentence(name: str, area: float, interval: Interval) -> str:
    return f"The AUC of {name} is no better than chance ({area:.4f}, 95 %: {interval.low:.4f} to {interval.high:.4f})."


def origin_notes(report: MemberReport) -> tuple[str, ...]:
    """Return notes on the training that matter for a member's figures."""
    notes = []
    if report.from_scratch:
        notes.append("Trained from scratch: the config requests pretrained weights, and none were available.")
    if report.left_out:
        images = ", ".join(map(str, report.left_out))
        notes.append(f"Training images of each fold that were left out for doubtful labels: {images}.")
    return tuple(notes)


def trial_table(result: TrialResult, full: bool = True) -> Table:
    """Return a row for each member of a trial: its rates at the best threshold for these images.

    Unless `full`, FPR and FNR are left out, so that the table fits 80 columns.
    """
    first, hters = result.rows[0].name, [row.rates.hter for row in result.rows]
    intervals = [chance_interval(row.auc, row.rates.n_neg, row.rates.n_pos) for row in result.rows]
    return Table(
        f"Trial: {result.rows[0].rates.n} images of fold {result.fold}, views {' + '.join(result.views)}",
        ("member", "epochs", "core minutes", *(("FPR", "FNR") if full else ()), "HTER", "AUC", f"HTER less {first}'s"),
        tuple(_trial_cells(row, full) for row in result.rows),
        (
            "The threshold of each member is the best one for these images, so the figures are optimistic. Use them to "
            "choose members, and confirm the choice on the other folds.",
            *(
                _chance_sentence(f"member {row.name}", row.auc, interval)
                for row, interval in zip(result.rows, intervals, strict=True)
                if interval.low <= 0.5
            ),
        ),
        best=hters.index(min(hters)) if min(hters) < max(hters) else None,
    )


def _trial_cells(row: TrialRow, full: bool) -> tuple[str, ...]:
    difference = ""
    if row.difference is not None:
        difference = f"{row.difference.value:+.4f} {interval_cell(row.difference.interval, '+.4f')}"
    minutes, area = f"{row.core_minutes:.1f}", f"{row.auc:.4f}"
    return (row.name, str(row.epochs), minutes, *rate_cells(row.rates)[0 if full else 2 :], area, difference)
