"""Objectives of a threshold: the lowest weighted error, or the lowest of one error rate with a bound on the other."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ensemble.decision.rates import ErrorRates, Floats
from ensemble.errors import ConfigError

Counts = NDArray[np.int64]

Rate = TypeVar("Rate", float, Floats)

FORMS = (
    "hter, cost:A,B (what an FPR and an FNR cost), fpr:R or fnr:R (that rate on the OOF rows is at most R), fpr:R,C or "
    "fnr:R,C (the true rate is at most R with confidence C), e.g. cost:5,1, fpr:0.01 or fpr:0.01,0.95"
)
"""The forms that `Objective.parse` reads, for the message of an error."""

LARGEST_COST = 10**6
"""Costs are whole numbers up to this one, so that the integers of the exact sweep cannot overflow."""

TOLERANCE = 1e-12
"""Two rates that differ by less are equal. Rates are counts divided by a number of rows, so different rates of a class
differ by much more."""


class Objective(ABC):
    """The objective that a threshold minimises.

    A bound on a rate is a target for the rows that the threshold is fitted on: on new images the rate exceeds it about
    every second time. With a confidence C, it is a guarantee: the threshold is the most favourable one at which the
    upper confidence bound of the rate (Clopper and Pearson 1934) is within the bound. Over random draws of the rows,
    the true rate of a single fold model then exceeds the bound at most 1 - C of the times (Bates et al. 2021,
    Distribution-free, risk-controlling prediction sets).

    Subclasses define the cost of a pair of error rates, the preference among equal cuts, and the admissible cuts.

    >>> Objective.parse("cost:5,1").loss(0.1, 0.4), Objective.parse("fpr:0.01")
    (0.15, BoundedFpr(max_fpr=0.01, confidence=None))
    """

    @staticmethod
    def parse(text: str) -> Objective:
        """Read `hter`, `cost:A,B`, `fpr:R`, `fnr:R`, `fpr:R,C` or `fnr:R,C`.

        Raises
        ------
        ConfigError
            It is none of these, a cost is not positive, a rate is not in [0, 1], or a confidence not in [0.5, 1).
        """
        kind, colon, rest = text.strip().partition(":")
        try:
            values = [_number(part) for part in rest.split(",")] if rest else []
        except (ValueError, ZeroDivisionError):  # the first, of inf and nan too
            raise _no_objective(text) from None
        if kind == "hter" and not colon:
            return HTER
        if kind == "cost" and len(values) == 2 and min(values) > 0:
            scale = math.lcm(values[0].denominator, values[1].denominator)
            costs = int(values[0] * scale), int(values[1] * scale)
            divisor = math.gcd(*costs)
            if max(costs) // divisor <= LARGEST_COST:
                return WeightedError(costs[0] // divisor, costs[1] // divisor)
        if kind in ("fpr", "fnr") and len(values) in (1, 2) and 0 <= values[0] <= 1:
            bound = BoundedFpr if kind == "fpr" else BoundedFnr
            if len(values) == 1:
                return bound(float(values[0]))
            if 0.5 <= values[1] < 1:
                return bound(float(values[0]), float(values[1]))
        raise _no_objective(text)

    @property
    @abstractmethod
    def text(self) -> str:
        """The form that `parse` reads.

        >>> [Objective.parse(form).text for form in ("hter", "cost:2.5,1", "fnr:0.02")]
        ['hter', 'cost:5,2', 'fnr:0.02']
        """

    @property
    @abstractmethod
    def description(self) -> str:
        """The objective in words."""

    @abstractmethod
    def loss(self, fpr: Rate, fnr: Rate) -> Rate:
        """Return the loss that is minimised: the weighted mean of the two rates, or the rate without a bound."""

    def loss_of(self, rates: ErrorRates) -> float:
        return self.loss(rates.fpr, rates.fnr)

    @property
    def comparable(self) -> Objective:
        """The objective for comparing two rules: HTER if a rate is bounded, because a rule may exceed the bound."""
        return HTER

    def on_rows(self, n_neg: int, n_pos: int) -> Objective:
        """Return the objective for rows of these numbers: a guarantee as the bound on the rate of these rows."""
        return self

    @abstractmethod
    def costs(self, false_pos: Counts, false_neg: Counts, n_neg: int, n_pos: int) -> tuple[Counts, Counts]:
        """Return the cost of each cut, and the tie-breaker between equal costs (lower is better), as whole numbers.

        The rates are compared over the common denominator n_neg * n_pos. Integers are exact, so rounding neither makes
        nor breaks a tie.

        Parameters
        ----------
        false_pos, false_neg : int64 array (c,)
            The numbers of errors at each cut.
        n_neg, n_pos : int
            The numbers of rows of each label.
        """

    @abstractmethod
    def tie(self, fpr: Floats, fnr: Floats) -> Floats:
        """Return the tie-breaker between cuts of equal loss, (c,); lower is better."""

    @abstractmethod
    def one_sided_losses(self, fpr: Floats, fnr: Floats) -> tuple[Floats, Floats]:
        """Return the lowest loss at a cut or any below it, and at it or any above, up to a common factor.

        Below a cut, FPR is at least as large and FNR is at least 0; above it, the reverse holds. The sum of the two is
        the loss at the cut itself. If a rate is bounded, a cut that exceeds the bound has an infinite loss.

        Parameters
        ----------
        fpr, fnr : float64 array (c,)
            FPR falls and FNR rises from cut to cut.
        """

    @abstractmethod
    def admits(self, fpr: Floats, fnr: Floats) -> NDArray[np.bool_]:
        """Return which cuts satisfy the bound, (c,)."""

    strictest_cut: int = 0
    """The index of the cut that is used if none satisfies the bound: the last for FPR, the first for FNR."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Store an objective in JSON as its text."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            Objective._validated,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda objective: objective.text),
        )

    @staticmethod
    def _validated(value: Any) -> Objective:
        try:
            return value if isinstance(value, Objective) else Objective.parse(value)
        except (ConfigError, AttributeError) as error:
            raise ValueError(f"is no objective: {value!r}") from error


@dataclass(frozen=True)
class WeightedError(Objective):
    """The lowest weighted error. The costs are whole numbers, so that ties are exact; equal costs mean HTER."""

    cost_fpr: int = 1
    cost_fnr: int = 1

    @property
    def text(self) -> str:
        return "hter" if self.cost_fpr == self.cost_fnr else f"cost:{self.cost_fpr},{self.cost_fnr}"

    @property
    def description(self) -> str:
        if self.cost_fpr == self.cost_fnr:
            return "the least HTER"
        total = self.cost_fpr + self.cost_fnr
        return f"the least weighted error ({self.cost_fpr} FPR + {self.cost_fnr} FNR) / {total}"

    def loss(self, fpr: Rate, fnr: Rate) -> Rate:
        return (self.cost_fpr * fpr + self.cost_fnr * fnr) / (self.cost_fpr + self.cost_fnr)

    @property
    def comparable(self) -> Objective:
        return self

    def costs(self, false_pos: Counts, false_neg: Counts, n_neg: int, n_pos: int) -> tuple[Counts, Counts]:
        cost = self.cost_fpr * (false_pos * n_pos) + self.cost_fnr * (false_neg * n_neg)
        return cost, np.abs(false_pos * n_pos - false_neg * n_neg)

    def tie(self, fpr: Floats, fnr: Floats) -> Floats:
        return np.abs(fpr - fnr)

    def one_sided_losses(self, fpr: Floats, fnr: Floats) -> tuple[Floats, Floats]:
        return self.cost_fpr * fpr, self.cost_fnr * fnr

    def admits(self, fpr: Floats, fnr: Floats) -> NDArray[np.bool_]:
        return np.ones(fpr.shape, np.bool_)


@dataclass(frozen=True)
class BoundedFpr(Objective):
    """The lowest FNR among the cuts whose FPR is at or below a bound."""

    max_fpr: float
    confidence: float | None = None  # of a guarantee; None for a bound on the rows themselves

    strictest_cut = -1

    @property
    def text(self) -> str:
        return f"fpr:{_bound_text(self.max_fpr, self.confidence)}"

    @property
    def description(self) -> str:
        return f"the least FNR with FPR <= {self.max_fpr:g}{_with_confidence(self.confidence)}"

    def loss(self, fpr: Rate, fnr: Rate) -> Rate:
        return fnr

    def on_rows(self, n_neg: int, n_pos: int) -> Objective:
        if self.confidence is None:
            return self
        return BoundedFpr(max(_most_errors(self.max_fpr, n_neg, self.confidence), 0) / n_neg)

    def costs(self, false_pos: Counts, false_neg: Counts, n_neg: int, n_pos: int) -> tuple[Counts, Counts]:
        most = _most_errors(self.max_fpr, n_neg, self.confidence)
        return _bounded(false_pos, most, false_neg), false_pos

    def tie(self, fpr: Floats, fnr: Floats) -> Floats:
        return fpr

    def one_sided_losses(self, fpr: Floats, fnr: Floats) -> tuple[Floats, Floats]:
        return np.where(fpr <= self.max_fpr + TOLERANCE, 0.0, np.inf), fnr

    def admits(self, fpr: Floats, fnr: Floats) -> NDArray[np.bool_]:
        return np.asarray(fpr <= self.max_fpr)


@dataclass(frozen=True)
class BoundedFnr(Objective):
    """The lowest FPR among the cuts whose FNR is at or below a bound."""

    max_fnr: float
    confidence: float | None = None  # of a guarantee; None for a bound on the rows themselves

    @property
    def text(self) -> str:
        return f"fnr:{_bound_text(self.max_fnr, self.confidence)}"

    @property
    def description(self) -> str:
        return f"the least FPR with FNR <= {self.max_fnr:g}{_with_confidence(self.confidence)}"

    def loss(self, fpr: Rate, fnr: Rate) -> Rate:
        return fpr

    def on_rows(self, n_neg: int, n_pos: int) -> Objective:
        if self.confidence is None:
            return self
        return BoundedFnr(max(_most_errors(self.max_fnr, n_pos, self.confidence), 0) / n_pos)

    def costs(self, false_pos: Counts, false_neg: Counts, n_neg: int, n_pos: int) -> tuple[Counts, Counts]:
        most = _most_errors(self.max_fnr, n_pos, self.confidence)
        return _bounded(false_neg, most, false_pos), false_neg

    def tie(self, fpr: Floats, fnr: Floats) -> Floats:
        return fnr

    def one_sided_losses(self, fpr: Floats, fnr: Floats) -> tuple[Floats, Floats]:
        return fpr, np.where(fnr <= self.max_fnr + TOLERANCE, 0.0, np.inf)

    def admits(self, fpr: Floats, fnr: Floats) -> NDArray[np.bool_]:
        return np.asarray(fnr <= self.max_fnr)


HTER = WeightedError()
"""The default objective: half total error rate."""


def _bound_text(bound: float, confidence: float | None) -> str:
    values = (bound,) if confidence is None else (bound, confidence)
    return ",".join(repr(value).removesuffix(".0") for value in values)


def _with_confidence(confidence: float | None) -> str:
    return "" if confidence is None else f" at {100 * confidence:g} % confidence"


def _bounded(errors: Counts, most: int, cost: Counts) -> Counts:
    """Return the cost of each cut; the largest integer if there are more errors than `most`.

    If not even 0 errors are allowed, the best cut is the one at which none is possible: it has the largest cost.
    """
    return -cost if most < 0 else np.where(errors <= most, cost, np.iinfo(np.int64).max)


def _most_errors(bound: float, n: int, confidence: float | None) -> int:
    """Return the largest number of errors among n rows that a bound on their rate allows.

    With a confidence, the upper confidence bound of the true rate must be within the bound; -1 if no number allows it.
    """
    most = math.floor(Fraction(bound).limit_denominator(10**9) * n)  # so that 0.3 is 3/10, not the float just below it
    if confidence is None or bound == 1:
        return most
    from scipy.special import betaincinv

    low, high = -1, most  # the upper confidence bound rises with the number of errors, and exceeds the observed rate
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if betaincinv(middle + 1, n - middle, confidence) <= bound else (low, middle - 1)
    return low


def _number(text: str) -> Fraction:
    """Read a decimal or a fraction exactly as it is written.

    A decimal is first read as a float, so that 1e9999999 becomes infinite and is refused. `Fraction` would compute its
    ten million digits.
    """
    return Fraction(text) if "/" in text else Fraction(repr(float(text)))


def _no_objective(text: str) -> ConfigError:
    return ConfigError("objective", f"must be one of {FORMS}; got {text!r}")
