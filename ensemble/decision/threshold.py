"""The threshold that is best for an objective, exactly; by default the one that minimises HTER."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.decision.rates import Calls, ErrorRates, Floats, checked
from ensemble.errors import ConfigError

_FORMS = "hter, cost:A,B (what an FPR and an FNR cost), fpr:R or fnr:R (at most that rate), e.g. cost:5,1 or fpr:0.01"


@dataclass(frozen=True)
class Objective:
    """What a threshold is chosen for: the least weighted error, or the least of one rate with the other held.

    >>> Objective.parse("cost:5,1").loss(0.1, 0.4), Objective.parse("fpr:0.01")
    (0.15, Objective(max_fpr=0.01))
    """

    cost_fpr: int = 1  # weights of the two rates, whole numbers, so that a tie is a tie
    cost_fnr: int = 1
    max_fpr: float | None = None  # the least FNR with FPR at or below this
    max_fnr: float | None = None  # the least FPR with FNR at or below this

    def __repr__(self) -> str:
        default = Objective()
        given = {name: value for name, value in vars(self).items() if value != getattr(default, name)}
        return f"Objective({', '.join(f'{name}={value}' for name, value in given.items())})"

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Read `hter`, `cost:A,B`, `fpr:R` or `fnr:R`.

        Raises
        ------
        ConfigError
            It is none of these, a cost is not positive, or a rate is not in [0, 1].
        """
        kind, colon, rest = text.strip().partition(":")
        try:
            values = [_number(part) for part in rest.split(",")] if rest else []
        except (ValueError, ZeroDivisionError):  # the first, of inf and nan too
            raise _no_objective(text) from None
        if kind == "hter" and not colon:
            return cls()
        if kind == "cost" and len(values) == 2 and min(values) > 0:
            scale = math.lcm(values[0].denominator, values[1].denominator)
            costs = int(values[0] * scale), int(values[1] * scale)
            divisor = math.gcd(*costs)
            if max(costs) // divisor <= 10**6:  # the sweep's integers must not overflow
                return cls(costs[0] // divisor, costs[1] // divisor)
        if kind in ("fpr", "fnr") and len(values) == 1 and 0 <= values[0] <= 1:
            rate = float(values[0])
            return cls(max_fpr=rate) if kind == "fpr" else cls(max_fnr=rate)
        raise _no_objective(text)

    @property
    def text(self) -> str:
        """The form that `parse` reads.

        >>> [Objective.parse(form).text for form in ("hter", "cost:2.5,1", "fnr:0.02")]
        ['hter', 'cost:5,2', 'fnr:0.02']
        """
        if self.max_fpr is not None:
            return "fpr:" + repr(self.max_fpr).removesuffix(".0")
        if self.max_fnr is not None:
            return "fnr:" + repr(self.max_fnr).removesuffix(".0")
        return "hter" if self.cost_fpr == self.cost_fnr else f"cost:{self.cost_fpr},{self.cost_fnr}"

    @property
    def told(self) -> str:
        """What the threshold does, in words."""
        if self.max_fpr is not None:
            return f"the least FNR with FPR <= {self.max_fpr:g}"
        if self.max_fnr is not None:
            return f"the least FPR with FNR <= {self.max_fnr:g}"
        if self.cost_fpr == self.cost_fnr:
            return "the least HTER"
        return f"the least weighted error ({self.cost_fpr} FPR + {self.cost_fnr} FNR) / {self.cost_fpr + self.cost_fnr}"

    def loss(self, fpr: float, fnr: float) -> float:
        """Return what is minimised: the weighted mean of the two rates, or the one that is not held."""
        if self.max_fpr is not None:
            return fnr
        if self.max_fnr is not None:
            return fpr
        return (self.cost_fpr * fpr + self.cost_fnr * fnr) / (self.cost_fpr + self.cost_fnr)

    def loss_of(self, rates: ErrorRates) -> float:
        return self.loss(rates.fpr, rates.fnr)


HTER = Objective()


def _number(text: str) -> Fraction:
    """Read a decimal or a fraction, exactly as it is written; 1e9999999 is none."""
    return Fraction(text) if "/" in text else Fraction(repr(float(text)))


def _no_objective(text: str) -> ConfigError:
    return ConfigError("objective", f"must be one of {_FORMS}; got {text!r}")


def fit_threshold(logits: ArrayLike, labels: ArrayLike, objective: Objective = HTER) -> float:
    """Return the threshold that is best for `objective`, by exact sweep over every distinct cut.

    Candidates are the midpoints of adjacent distinct logits and one beyond each end. Ties go to the smallest
    |FPR - FNR| (where a rate is held: to the smallest held rate), then to the widest gap between the two logits beside
    the cut, then to the lowest. Rates are compared as integers over the common denominator n_neg * n_pos, so that a tie
    is a tie.

    Parameters
    ----------
    logits : float64 array (n,)
        Log-odds of label 1, finite.
    labels : int8 array (n,)
        0 or 1, both present.
    objective : Objective
        By default HTER.

    Returns
    -------
    float
        In logits; an image is called 1 iff its logit is >= this value.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.

    Notes
    -----
    The gap beyond an end counts as infinite.

    One argsort: O(n log n).

    Examples
    --------
    >>> fit_threshold([-2.0, -1.0, 1.0, 3.0], [0, 0, 1, 1])
    0.0
    >>> fit_threshold([5.0, 5.0], [0, 1])
    4.0
    >>> fit_threshold([-2.0, -1.0, 1.0, 3.0], [0, 1, 0, 1], Objective.parse("fpr:0"))
    2.0
    """
    return fit_thresholds(logits, labels, (objective,))[0]


def fit_thresholds(logits: ArrayLike, labels: ArrayLike, objectives: Sequence[Objective]) -> list[float]:
    """Return what `fit_threshold` returns for each objective; the logits are sorted once."""
    x, y = checked("cannot fit a threshold", logits, labels)
    order = np.argsort(x)
    x, y = x[order], y[order]
    ones_below = np.concatenate(([0], np.cumsum(y, dtype=np.int64)))
    n_pos = int(ones_below[-1])
    n_neg = y.size - n_pos
    cuts = np.concatenate(([0], crossings(x, y), [y.size]))  # rows from a cut on are called 1
    false_neg = ones_below[cuts]
    false_pos = n_neg - cuts + false_neg

    def best(objective: Objective) -> float:
        if objective.max_fpr is not None:
            cost, tie = _held(false_pos, objective.max_fpr, n_neg, false_neg), false_pos
        elif objective.max_fnr is not None:
            cost, tie = _held(false_neg, objective.max_fnr, n_pos, false_pos), false_neg
        else:
            cost = objective.cost_fpr * (false_pos * n_pos) + objective.cost_fnr * (false_neg * n_neg)
            tie = np.abs(false_pos * n_pos - false_neg * n_neg)
        equal = np.flatnonzero(_least(cost))
        among = cuts[equal[_least(tie[equal])]]
        if among[0] == 0:
            return below_all(x[0])
        if among[-1] == y.size:
            return above_all(x[-1])
        gaps = x[among] / 2 - x[among - 1] / 2  # halves: the gap of two huge logits must not overflow
        widest = among[_least(-gaps)][0]
        return float(midpoint(x[widest - 1], x[widest]))

    return [best(objective) for objective in objectives]


def crossings(logits: Floats, labels: Calls) -> NDArray[np.int64]:
    """Return the cuts between a value that a label 0 has and the next one, if a label 1 has that.

    No other cut can be best, but for the two ends: it can be moved over rows that are called wrong, and none other.

    Parameters
    ----------
    logits : float64 array (n,)
        Rising.
    labels : int8 array (n,)
        0 or 1.

    Returns
    -------
    int64 array
        Rising; rows from a cut on are called 1.

    Examples
    --------
    >>> crossings(np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 1, 0]))
    array([1, 3])
    """
    starts = np.flatnonzero(np.concatenate(([True], logits[1:] > logits[:-1])))  # of runs of one value
    has_one = np.maximum.reduceat(labels, starts) == 1
    has_zero = np.minimum.reduceat(labels, starts) == 0
    return np.asarray(starts[1:][has_zero[:-1] & has_one[1:]])


def below_all(lowest: float) -> float:
    """Return a threshold at which all logits down to `lowest` are called 1."""
    return float(lowest - 1)


def above_all(highest: float) -> float:
    """Return a threshold at which no logit up to `highest` is called 1."""
    return max(float(highest) + 1, math.nextafter(highest, math.inf))


def midpoint(below: ArrayLike, above: ArrayLike) -> Floats:
    """Return thresholds that call `above` 1 and `below` 0, halfway where the two are not neighbours."""
    low, high = np.asarray(below, np.float64), np.asarray(above, np.float64)
    middle = low / 2 + high / 2  # halves: the sum of two huge logits must not overflow
    return np.asarray(np.where((low < middle) & (middle <= high), middle, high))


def _held(held: NDArray[np.int64], limit: float, of: int, free: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the counts of the free error, out of reach where the held one is over its limit."""
    most = math.floor(Fraction(limit).limit_denominator(10**9) * of)  # 0.3 is 3/10, not the float just below
    return np.where(held <= most, free, np.iinfo(np.int64).max)


def _least(cost: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(cost == cost.min())
