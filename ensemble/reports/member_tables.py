"""The tables of single members: their out-of-fold reports, and a trial of several on one fold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ensemble.decision.assessment import Assessment
from ensemble.decision.class_assessment import ClassAssessment
from ensemble.decision.class_intervals import class_counting_intervals
from ensemble.decision.class_objective import ClassObjective
from ensemble.decision.intervals import Interval, chance_interval
from ensemble.decision.objective import HTER, Objective
from ensemble.decision.rates import ErrorRates
from ensemble.reports.measures import Rule, apparent_cells, class_names, constant_error, figure, loss, offsets_text
from ensemble.reports.table import Table, interval_cell, rate_cells, rate_columns
from ensemble.results import MemberReport, TrialResult, TrialRow


def member_table(report: MemberReport) -> Table:
    """Return one row per fold, and the pooled row with its 95 % interval."""
    member = report.assessment
    two = isinstance(member, Assessment)
    columns, rows = _two_class_rows(member) if isinstance(member, Assessment) else _class_rows(member)
    name, (apparent, gap) = figure(member).name, apparent_cells(member)
    notes = [f"Each fold is scored at the {_cut(two)} fitted without it. Apparent {name} {apparent}, gap {gap}."]
    if isinstance(member, ClassAssessment):
        names = class_names(report.classes, len(member.offsets))
        notes.append(f"Offsets fitted on all images: {offsets_text(names, member.offsets)} (logits).")
    return Table(
        f"{member.name}: out-of-fold, views {' + '.join(report.views)}, at the member's {_cut(two)}",
        columns,
        rows,
        (*notes, *chance_notes([member]), *origin_notes(report)),
    )


def _cut(two: bool) -> str:
    return "threshold" if two else "offsets"


def _two_class_rows(member: Assessment) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the columns and rows of a member's table."""
    folds = (
        (str(row.fold), str(row.rates.n), *rate_cells(row.rates), "", f"{row.auc:.4f}", f"{row.threshold:+.4f}")
        for row in member.folds
    )
    pooled = (
        "pooled",
        str(member.nested.n),
        *rate_cells(member.nested),
        interval_cell(member.interval),
        f"{member.auc:.4f}",
        f"{member.threshold:+.4f}",
    )
    return ("fold", "images", *rate_columns(member.nested), "95 %", "AUC", "threshold"), (*folds, pooled)


def _class_rows(member: ClassAssessment) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the columns and rows of the table of a member among more than two classes."""
    intervals = (member.mean_error, member.macro_f1, member.accuracy)
    folds = (
        (str(row.fold), str(row.rates.n), *(text for cell in rate_cells(row.rates) for text in (cell, "")))
        for row in member.folds
    )
    pooled = zip(rate_cells(member.nested), map(interval_cell, intervals), strict=True)
    columns = (text for name in rate_columns(member.nested) for text in (name, "95 %"))
    return (
        ("fold", "images", *columns),
        (*folds, ("pooled", str(member.nested.n), *(text for cells in pooled for text in cells))),
    )


def best_rule(rules: Sequence[Rule], objective: Objective | ClassObjective = HTER) -> int | None:
    """Return the index of the rule with the least nested HTER, or of more than two classes the least nested loss.

    Return None where no rule is better than the others, or where the thresholds of two classes are not chosen for the
    HTER.
    """
    losses = [loss(rule) for rule in rules]
    comparable = objective == HTER or isinstance(objective, ClassObjective)
    return losses.index(min(losses)) if comparable and min(losses) < max(losses) else None


def chance_notes(rules: Iterable[Rule]) -> tuple[str, ...]:
    """Return a sentence about each rule whose AUC, or class error, is no better than chance."""
    return tuple(
        _chance_sentence("the stack" if rule.name == "stack" else f"member {rule.name}", rule)
        for rule in rules
        if not rule.beats_chance
    )


def _chance_sentence(name: str, rule: Rule) -> str:
    if isinstance(rule, Assessment):
        return _auc_sentence(name, rule.auc, rule.chance_interval)
    return _class_error_sentence(name, len(rule.offsets), rule.nested.mean_error, rule.mean_error)


def _auc_sentence(name: str, area: float, interval: Interval) -> str:
    return f"The AUC of {name} is no better than chance ({area:.4f}, 95 %: {interval.low:.4f} to {interval.high:.4f})."


def _class_error_sentence(name: str, classes: int, error: float, interval: Interval) -> str:
    return (
        f"The class error of {name} is no better than chance, {constant_error(classes)} "
        f"({error:.4f}, 95 %: {interval.low:.4f} to {interval.high:.4f})."
    )


def origin_notes(report: MemberReport) -> tuple[str, ...]:
    """Return notes on the training that matter for a member's figures."""
    notes = []
    if report.from_scratch:
        notes.append("Trained from scratch: the config requests pretrained weights, and none were available.")
    if report.left_out:
        images = ", ".join(map(str, report.left_out))
        notes.append(f"Training images of each fold that were left out for doubtful labels: {images}.")
    if report.changed:
        images = ", ".join(map(str, report.changed))
        notes.append(f"Training images of each fold with another label or weight for doubtful labels: {images}.")
    if report.overlay:
        notes.append(
            "An overlay changed them, by what models say that were also trained on labels of the held-out images, so "
            "that the nested error rates may be slightly too good."
        )
    if report.teachers:
        notes.append(f"Distilled: it learned the answers of the stack of {', '.join(report.teachers)}.")
    notes.extend(f"It {caveat}." for caveat in report.caveats)
    return tuple(notes)


def trial_table(result: TrialResult, full: bool = True) -> Table:
    """Return a row for each member of a trial: its rates at the best threshold for these images.

    Among more than two classes, the rates are those of the greatest logits. Unless `full`, FPR and FNR, or macro F1
    and accuracy, are left out, so that the table fits 80 columns.
    """
    first, errors = result.rows[0], [trial_error(row) for row in result.rows]
    two = isinstance(first.rates, ErrorRates)
    shown = slice(0, 3) if full else slice(2, 3) if two else slice(0, 1)
    rates, area = rate_columns(first.rates)[shown], ("AUC",) if two else ()
    if two:
        about = "The threshold of each member is the best one for these images, so the figures are optimistic. Use them"
    else:
        about = "An image gets the class with the greatest logit; no offsets are fitted. Use the figures"
    return Table(
        f"Trial: {first.rates.n} images of fold {result.fold}, views {' + '.join(result.views)}",
        ("member", "epochs", "core minutes", *rates, *area, f"{measure_of_trial(first)} less {first.name}'s"),
        tuple(_trial_cells(row, shown) for row in result.rows),
        (
            f"{about} to choose members, and confirm the choice on the other folds.",
            *(note for row in result.rows for note in _trial_chance(row)),
        ),
        best=errors.index(min(errors)) if min(errors) < max(errors) else None,
    )


def measure_of_trial(row: TrialRow) -> str:
    """Return the name of `trial_error`."""
    return "HTER" if isinstance(row.rates, ErrorRates) else "class error"


def trial_error(row: TrialRow) -> float:
    """Return the HTER, or the class error, of a member of a trial."""
    return row.rates.hter if isinstance(row.rates, ErrorRates) else row.rates.mean_error


def _trial_chance(row: TrialRow) -> tuple[str, ...]:
    """Return a sentence where a member of a trial is no better than chance."""
    name, rates = f"member {row.name}", row.rates
    if isinstance(rates, ErrorRates):
        assert row.auc is not None
        interval = chance_interval(row.auc, rates.n_neg, rates.n_pos)
        return (_auc_sentence(name, row.auc, interval),) if interval.low <= 0.5 else ()
    _, interval = class_counting_intervals(rates)
    classes = len(rates.confusion)
    return (
        (_class_error_sentence(name, classes, rates.mean_error, interval),) if interval.high >= 1 - 1 / classes else ()
    )


def _trial_cells(row: TrialRow, shown: slice) -> tuple[str, ...]:
    difference = ""
    if row.difference is not None:
        difference = f"{row.difference.value:+.4f} {interval_cell(row.difference.interval, '+.4f')}"
    area = () if row.auc is None else (f"{row.auc:.4f}",)
    cells = rate_cells(row.rates)[shown]
    return (row.name, str(row.epochs), f"{row.core_minutes:.1f}", *cells, *area, difference)
