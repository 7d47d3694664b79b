"""What `thera distil` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemble.results import CompareResult, MemberReport


@dataclass(frozen=True)
class Cost:
    """What it takes to label an image.

    Attributes
    ----------
    networks : int
        Fold models of all members.
    parameters : int
        Of all of them.
    images_per_second : float or None
        With the views of the decision, on the cores of one process; None on a GPU, where it is not measured.
    """

    networks: int
    parameters: int
    images_per_second: float | None

    @property
    def megabytes(self) -> float:
        """The size of the weights in float32."""
        return self.parameters * 4 / 1e6


@dataclass(frozen=True)
class DistilResult:
    """A student, its teacher, and their comparison on the same rows.

    Attributes
    ----------
    run : Path
    report : MemberReport
        Of the student.
    comparison : CompareResult
        The student minus the teacher, out of fold.
    teacher, student : Cost
    """

    run: Path
    report: MemberReport
    comparison: CompareResult
    teacher: Cost
    student: Cost
