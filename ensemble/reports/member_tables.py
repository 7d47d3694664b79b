"""The tables of single members: their out-of-fold reports, and a trial of several on one fold."""

from __future__ import annotations

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
        ("fold", "n", "FPR", "FNR", "HTER", "95 %", "AUC", "threshold"),
        (*folds, pooled),
        (
            f"Each fold is scored at the threshold fitted without it. Apparent HTER {member.apparent.hter:.4f}, "
            f"gap {member.optimism:+.4f}.",
            *_origin_notes(report),
        ),
    )


def _origin_notes(report: MemberReport) -> tuple[str, ...]:
    """Return notes on the training that matter for a member's figures."""
    notes = []
    if report.from_scratch:
        notes.append("Trained from scratch: the config requests pretrained weights, and none were available.")
    if report.left_out:
        rows = ", ".join(map(str, report.left_out))
        notes.append(f"Training rows of each fold that were left out for doubtful labels: {rows}.")
    return tuple(notes)


def trial_table(result: TrialResult) -> Table:
    """Return a row for each member of a trial: its rates at the best threshold for these rows."""
    first = result.rows[0].name
    return Table(
        f"Trial: {result.rows[0].rates.n} rows of fold {result.fold}, views {' + '.join(result.views)}",
        ("member", "epochs", "core minutes", "FPR", "FNR", "HTER", "AUC", f"HTER less {first}'s"),
        tuple(_trial_cells(row) for row in result.rows),
        (
            "The threshold of each member is the best one for these rows, so the figures are optimistic. Use them to "
            "choose members, and confirm the choice on the other folds.",
        ),
    )


def _trial_cells(row: TrialRow) -> tuple[str, ...]:
    difference = ""
    if row.difference is not None:
        difference = f"{row.difference.value:+.4f} {interval_cell(row.difference.interval, '+.4f')}"
    minutes, area = f"{row.core_minutes:.1f}", f"{row.auc:.4f}"
    return (row.name, str(row.epochs), minutes, *rate_cells(row.rates), area, difference)
