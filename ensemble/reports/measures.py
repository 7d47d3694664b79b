"""The measures of rules in the words of the tables: HTER of two classes, and of more that of the objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ensemble.decision.assessment import Assessment
from ensemble.decision.class_assessment import ClassAssessment
from ensemble.decision.class_deploy import ClassExpectation
from ensemble.decision.class_objective import MEASURES, ClassObjective
from ensemble.decision.deploy import Expectation
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ClassRates
from ensemble.errors import printable
from ensemble.reports.table import interval_cell, rate_cells

Rule: TypeAlias = Assessment | ClassAssessment


@dataclass(frozen=True)
class Figure:
    """The figure that a rule or a label file is judged by.

    Attributes
    ----------
    name : str
        Of the measure.
    value : float
    interval : Interval
        95 %.
    constant : float
        The best value that one answer for all images has, at the class shares of the images that were measured.
    """

    name: str
    value: float
    interval: Interval
    constant: float

    @property
    def is_error(self) -> bool:
        """Whether a smaller value is better, and one answer for all images has the same value whatever it is."""
        return self.name in ("HTER", "class error")

    @property
    def text(self) -> str:
        """The measure with its interval in words."""
        return f"{self.name} {self.value:.4f} ({interval_text(self.interval)})"

    @property
    def constant_text(self) -> str:
        """What a constant answer has, in a clause."""
        value = error_text(self.constant) if self.is_error else f"{self.constant:.4f} at most"
        return f"A constant answer has {self.name} {value}"


def figure(of: Rule | Expectation | ClassExpectation) -> Figure:
    """Return the nested HTER of a rule or the expected one of a label file; of more classes, the objective's measure.

    >>> from ensemble.decision.rates import ErrorRates
    >>> rates = ErrorRates(0.1, 0.2, 100, 400)
    >>> expected = Expectation("none", False, (), rates, Interval(0.12, 0.18), None, None, None)
    >>> figure(expected).text
    'HTER 0.1500 (95 %: 0.1200 to 0.1800)'
    """
    if isinstance(of, Assessment):
        return Figure("HTER", of.nested.hter, of.interval, 0.5)
    if isinstance(of, Expectation):
        return Figure("HTER", of.rates.hter, of.interval, 0.5)
    name, attribute = MEASURES[of.objective.kind]
    rates = of.nested if isinstance(of, ClassAssessment) else of.rates
    return Figure(name, getattr(rates, attribute), getattr(of, attribute), constant_value(rates, of.objective))


def constant_value(rates: ClassRates, objective: ClassObjective) -> float:
    """Return the best value that one answer for all images has, at the class shares of `rates`.

    >>> rates = ClassRates(((50, 0, 0), (0, 30, 0), (0, 0, 20)))
    >>> [round(constant_value(rates, ClassObjective(kind)), 4) for kind in MEASURES]
    [0.6667, 0.2222, 0.5]
    """
    classes, share = len(rates.counts), max(rates.counts) / rates.n
    if objective.kind == "accuracy":
        return share
    return 2 * share / (1 + share) / classes if objective.kind == "macro-f1" else 1 - 1 / classes


def constant_error(classes: int) -> str:
    """Return the class error of the same answer for every image: 0.5 of two classes.

    >>> constant_error(2), constant_error(18)
    ('0.5', '0.9444')
    """
    return error_text(1 - 1 / classes)


def error_text(error: float) -> str:
    """Return an error of at least 0.5 with at most four decimals."""
    return f"{error:.4f}".rstrip("0")


def is_better(rule: Rule) -> bool:
    """Return whether a rule is better than a constant answer beyond chance.

    It is compared by the measure that it is judged by, and by its AUC, or among more than two classes by its mean class
    error.
    """
    of_rule = figure(rule)
    constant = of_rule.constant if of_rule.is_error else 1 - of_rule.constant
    return rule.interval.high < constant and rule.beats_chance


def loss(rule: Rule) -> float:
    """Return what is the smaller, the better the rule: its nested HTER, or the nested loss under its objective."""
    return rule.nested.hter if isinstance(rule, Assessment) else rule.loss


def nested_columns(rule: Rule) -> tuple[str, ...]:
    """Return the columns of `nested_cells`."""
    if isinstance(rule, Assessment):
        return ("FPR", "FNR", "HTER", "95 %")
    return ("class error", "95 %", "macro F1", "95 %", "accuracy")


def nested_cells(rule: Rule) -> tuple[str, ...]:
    """Return the nested rates of a rule with the intervals of those that rules are compared by."""
    rates = rate_cells(rule.nested)
    if isinstance(rule, Assessment):
        return (*rates, interval_cell(rule.interval))
    return (rates[0], interval_cell(rule.mean_error), rates[1], interval_cell(rule.macro_f1), rates[2])


def apparent_cells(rule: Rule) -> tuple[str, str]:
    """Return the apparent value of the measure that a rule is judged by, and the gap: by how much it is too good."""
    if isinstance(rule, Assessment):
        value = rule.apparent.hter
    else:
        value = getattr(rule.apparent, MEASURES[rule.objective.kind][1])
    return f"{value:.4f}", f"{rule.optimism:+.4f}"


def difference_cell(rule: Rule) -> str:
    """Return the measure of a rule less that of the stack, with its interval; nothing for the stack itself."""
    difference = rule.difference
    if difference is None:
        return ""
    if not figure(rule).is_error:  # the difference is that of the loss
        difference = -difference
    return f"{difference.value:+.4f} {interval_cell(difference.interval, '+.4f')}"


def class_names(classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Return the names of the classes as they are printed; their indices where no names are given.

    >>> class_names(("mask", "none\\x1b"), 2), class_names(None, 3)
    (('mask', 'none\\\\x1b'), ('0', '1', '2'))
    """
    return tuple(map(printable, classes or map(str, range(count))))


def offsets_text(names: Sequence[str], offsets: Sequence[float]) -> str:
    """Return the offset of each class, by its name.

    >>> offsets_text(("none", "worn"), (-0.00001, -0.25))
    'none +0.0000, worn -0.2500'
    """
    return ", ".join(f"{name} {offset:+z.4f}" for name, offset in zip(names, offsets, strict=True))


def interval_text(interval: Interval) -> str:
    """Return a 95 % interval in words."""
    return f"95 %: {interval.low:.4f} to {interval.high:.4f}"
