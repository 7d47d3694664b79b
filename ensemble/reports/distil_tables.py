"""The tables of `thera distil`: the student, and what it costs and loses against its teacher."""

from __future__ import annotations

from ensemble.distil_results import DistilResult
from ensemble.errors import printable
from ensemble.reports.comparison_tables import comparison_tables
from ensemble.reports.summary import compare_summary
from ensemble.reports.table import Table


def cost_table(result: DistilResult) -> Table:
    """Return networks, size and speed of teacher and student."""
    name, (teacher, student) = result.report.name, (result.teacher, result.student)
    rows = [
        (title, str(cost.networks), str(cost.parameters), f"{cost.megabytes:.1f}", _speed(cost.images_per_second))
        for title, cost in (("teacher", teacher), (name, student))
    ]
    notes = ["MB: the weights in float32. Images a second: all fold models and views, on the cores of one process."]
    if teacher.images_per_second is not None and student.images_per_second is not None:
        notes.append(f"{name} is {student.images_per_second / teacher.images_per_second:.1f} times as fast.")
    columns = ("", "networks", "parameters", "MB", "images/s")
    return Table("Teacher and student", columns, tuple(rows), tuple(notes))


def distil_tables(result: DistilResult) -> list[Table]:
    """Return the comparison of student and teacher, their costs, and what to do next."""
    run, name = printable(result.run), result.report.name
    next_steps = (
        f"{name} is a member of the run, and in no stack unless it is named.",
        f"To decide by it alone: thera fit-stacker --run {run} --members {name}",
    )
    return [
        *comparison_tables(result.comparison),
        cost_table(result),
        compare_summary(result.comparison).with_notes(*next_steps),
    ]


def _speed(images_per_second: float | None) -> str:
    return "" if images_per_second is None else f"{images_per_second:.0f}"
