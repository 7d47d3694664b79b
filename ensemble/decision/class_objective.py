"""Objectives of the decision among three or more classes: mean error over classes, macro F1 and accuracy.

Each is a loss that is minimised. It depends on the confusion matrix only through three counts of each class: the rows
of the class, the rows predicted as the class, and the rows that are both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ensemble.decision.intervals import Interval
from ensemble.decision.objective import Objective
from ensemble.decision.rates import ClassRates, Floats
from ensemble.errors import ConfigError

Kind = Literal["mean-class-error", "macro-f1", "accuracy"]

DESCRIPTIONS: dict[str, str] = {
    "mean-class-error": "the least mean of the class error rates",
    "macro-f1": "the greatest macro F1",
    "accuracy": "the greatest accuracy",
}
"""The objectives in words."""

MEASURES: dict[str, tuple[str, str]] = {
    "mean-class-error": ("class error", "mean_error"),
    "macro-f1": ("macro F1", "macro_f1"),
    "accuracy": ("accuracy", "accuracy"),
}
"""The measure of each objective: its name in reports, and that of the attribute that holds it."""


def parse_objective(text: str, classes: int) -> Objective | ClassObjective:
    """Read the objective of a decision among so many classes.

    Of two classes, `mean-class-error` is the HTER.

    Raises
    ------
    ConfigError
        It is no objective, or none of so many classes.

    Examples
    --------
    >>> parse_objective("mean-class-error", 2).text, parse_objective("hter", 3).text
    ('hter', 'mean-class-error')
    """
    if classes > 2:
        return ClassObjective.parse(text)
    kind = text.strip()
    if kind in ("macro-f1", "accuracy"):
        raise ConfigError("objective", f"{kind} is for more than two classes", "use hter or cost:A,B")
    return Objective.parse("hter" if kind == "mean-class-error" else text)


@dataclass(frozen=True)
class ClassObjective:
    """The objective that the class offsets minimise.

    Its loss is the mean of the class error rates, 1 - macro F1, or 1 - accuracy.

    >>> rates = ClassRates(((3, 1, 0), (0, 2, 0), (0, 1, 1)))
    >>> [round(ClassObjective(kind).loss(rates), 4) for kind in DESCRIPTIONS]
    [0.25, 0.2698, 0.25]
    """

    kind: Kind = "mean-class-error"

    @staticmethod
    def parse(text: str) -> ClassObjective:
        """Read one of the kinds; `hter` means the mean of the class error rates.

        Raises
        ------
        ConfigError
            It is none of these, or an objective of two classes alone.
        """
        kind = text.strip()
        if kind == "hter":
            return ClassObjective()
        if kind not in DESCRIPTIONS:
            of_two = kind.partition(":")[0] in ("cost", "fpr", "fnr")
            problem = f"{kind} is for two classes alone" if of_two else f"got {text!r}"
            raise ConfigError("objective", problem, f"use {', '.join(DESCRIPTIONS)}")
        return ClassObjective(kind)  # type: ignore[arg-type]

    @property
    def text(self) -> str:
        """The form that `parse` reads."""
        return self.kind

    @property
    def description(self) -> str:
        """The objective in words."""
        return DESCRIPTIONS[self.kind]

    @property
    def measure(self) -> str:
        """The name of the measure in reports."""
        return MEASURES[self.kind][0]

    @property
    def is_error(self) -> bool:
        """Whether the measure is the loss itself, the smaller the better; otherwise the loss is 1 minus the measure."""
        return self.kind == "mean-class-error"

    def loss(self, rates: ClassRates) -> float:
        """Return the loss, in [0, 1]."""
        value: float = getattr(rates, MEASURES[self.kind][1])
        return value if self.is_error else 1 - value

    def loss_interval(self, intervals: Any) -> Interval:
        """Return the interval of the loss, of an object with the intervals `mean_error`, `macro_f1` and `accuracy`."""
        interval: Interval = getattr(intervals, MEASURES[self.kind][1])
        return interval if self.is_error else interval.complement

    def losses(self, correct: Floats, predicted: Floats, counts: Floats) -> Floats:
        """Return the losses of several confusion matrices.

        Parameters
        ----------
        correct, predicted, counts : float64 arrays (..., C)
            For each class, the rows that are predicted correctly, those predicted as this class, and all rows. They may
            be weighted. A class without rows has the error rate 0.

        Returns
        -------
        float64 array (...)
        """
        if self.kind == "accuracy":
            return np.asarray(1 - correct.sum(axis=-1) / counts.sum(axis=-1))
        if self.kind == "macro-f1":
            return np.asarray(1 - (2 * correct / np.maximum(counts + predicted, 1)).mean(axis=-1))
        return np.asarray(((counts - correct) / np.maximum(counts, 1)).mean(axis=-1))


MEAN_CLASS_ERROR = ClassObjective()
"""The default objective."""
