"""The tables of several targets: the figures of each, and those of their combination."""

from __future__ import annotations

from ensemble.decision.joint import JointRates, JointRow
from ensemble.errors import printable
from ensemble.reports.measures import figure, interval_text
from ensemble.reports.summary import in_short
from ensemble.reports.table import Table, interval_cell
from ensemble.results import ReportResult, TargetsPrediction, TargetsResult

MOST_COMBINATIONS = 40
"""The most combinations of which a table is printed."""


ONE_FOLD_MODEL = (
    "Where averaging was not measured, the figure is that of one fold model, and the file is usually better."
)


def targets_tables(result: TargetsResult) -> list[Table]:
    """Return a row for each target, and a row for each combination of the classes of all targets."""
    tables = [_targets_table(result)]
    if result.joint is not None and len(result.joint.rows) <= MOST_COMBINATIONS:
        tables.append(_combinations_table(result.joint, result))
    return tables


def _targets_table(result: TargetsResult) -> Table:
    rows = tuple((printable(name), *_cells(report)) for name, report in result.targets.items())
    notes: tuple[str, ...] = (
        "Each target is judged by the measure of its objective, nested, with the stack of its members.",
    )
    if result.joint is not None:
        notes += (
            "All targets together: an image is right where all its targets are right. The predictions are nested, and "
            "the intervals leave out that thresholds and offsets were fitted. " + _joint_text(result.joint),
        )
    return Table(f"Targets of {printable(result.run)}", ("target", "classes", "measure", "nested", "95 %"), rows, notes)


def _cells(report: ReportResult) -> tuple[str, str, str, str]:
    classes = str(len(report.classes or ("0", "1")))
    if report.decisions is None:
        return classes, "", "", ""
    measured = figure(report.decisions.tta.stacked)
    return classes, measured.name, f"{measured.value:.4f}", interval_cell(measured.interval)


def _joint_text(joint: JointRates) -> str:
    return (
        f"Accuracy {joint.accuracy:.4f} ({interval_text(joint.accuracy_interval)}), macro F1 over "
        f"{len(joint.rows)} combinations {joint.macro_f1:.4f} ({interval_text(joint.macro_f1_interval)})."
    )


def _combinations_table(joint: JointRates, result: TargetsResult) -> Table:
    def cells(row: JointRow) -> tuple[str, ...]:
        names = (classes[label] for classes, label in zip(result.classes.values(), row.labels, strict=True))
        counts = str(row.count), str(row.predicted)
        return printable(" / ".join(names)), *counts, f"{row.recall:.4f}", f"{row.f1:.4f}"

    return Table(
        " / ".join(map(printable, result.classes)),
        ("combination", "images", "predicted", "recall", "F1"),
        tuple(map(cells, joint.rows)),
    )


def targets_summary(result: TargetsResult) -> Table:
    """Return the rates of all targets together, and where the reports are."""
    lines = [_joint_text(result.joint)] if result.joint is not None else []
    if result.predicted is not None:
        lines.append(f"Labels: {printable(result.predicted.out)}")
    run = printable(result.run)
    return in_short(*lines, f"Whole reports: {run}/report.html, and {run}/TARGET/report.html of each target.")


def prediction_of_targets_table(result: TargetsPrediction) -> Table:
    """Return the expected figure of each target on a set of images."""
    rows = []
    for name, predicted in result.targets.items():
        measured = figure(predicted.facts.expectation)
        rows.append((printable(name), str(predicted.facts.images), measured.name, f"{measured.value:.4f}"))
    return Table(
        f"Labels of {printable(result.name)}: {printable(result.out)}",
        ("target", "images", "measure", "expected"),
        tuple(rows),
        (ONE_FOLD_MODEL,),
    )
