"""Intervals of error rates: of counts (Jeffreys), of new sets, and the central part of bootstrap replicates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.decision.rates import ErrorRates, Floats
from ensemble.errors import DataError

LEVELS = (0.025, 0.975)
"""The quantiles at the ends of a 95 % interval."""

NODES = 2000
"""Nodes of the quadrature for the sum of two Beta variables; its quantiles are then exact to about 1e-8."""

TAIL = 1e-14
"""Probability beyond the counts that are summed over in the interval of a new set."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of an error rate, both ends included."""

    low: float
    high: float


def central(hter: Floats) -> Interval:
    """Return the 2.5 and 97.5 % quantiles of the replicates of an error rate."""
    low, high = np.quantile(hter, LEVELS)
    return Interval(float(low), float(high))


def counting_intervals(rates: ErrorRates) -> tuple[Interval, Interval, Interval]:
    """Return the Jeffreys intervals of FPR, FNR and HTER, which the counts alone leave open.

    FPR and FNR are Beta(errors + 1/2, right + 1/2); HTER is the mean of the two, independent of each other. Rows are
    taken as independent. Where no error was seen the upper end is above 0 (Brown, Cai and DasGupta 2001, Interval
    estimation for a binomial proportion).

    Examples
    --------
    >>> fpr, fnr, hter = counting_intervals(ErrorRates(0.0, 0.1, 100, 1000))
    >>> fpr.low < 0.001, 0.01 < fpr.high < 0.04, hter.low < 0.05 < hter.high
    (True, True, True)
    """
    from scipy.special import betaincinv

    first, second = _jeffreys(rates.fpr, rates.n_neg), _jeffreys(rates.fnr, rates.n_pos)
    fpr, fnr = (Interval(*(float(betaincinv(*shape, level)) for level in LEVELS)) for shape in (first, second))
    return fpr, fnr, beta_mean_interval(first, second)


def _jeffreys(rate: float, n: int) -> tuple[float, float]:
    errors = round(rate * n)
    return errors + 0.5, n - errors + 0.5


def beta_mean_interval(first: tuple[float, float], second: tuple[float, float]) -> Interval:
    """Return the 95 % interval of the mean of two independent Beta variables.

    With Q the quantile function of the first and F the distribution function of the second, the sum is at most s with
    probability E[F(s - Q(u))] over uniform u, which Gauss-Legendre quadrature evaluates.

    Parameters
    ----------
    first, second : (float, float)
        The two shape parameters of each.
    """
    from scipy.special import betainc, betaincinv

    nodes, weights = _nodes()
    values = betaincinv(*first, (nodes + 1) / 2)

    def at_most(total: float) -> float:
        return float(weights / 2 @ betainc(*second, np.clip(total - values, 0, 1)))

    low, high = (_quantile(at_most, level, 0.0, 2.0) / 2 for level in LEVELS)
    return Interval(low, high)


@functools.cache
def _nodes() -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return nodes, weights


def new_set_interval(rates: ErrorRates, n_neg_new: int, n_pos_new: int) -> Interval:
    """Return where the HTER *measured on a new set* of the given size falls 95 % of the time.

    This is wider than the interval of the HTER itself: who compares a label file's HTER on n images with a promised
    figure sees two chances at once, that of the estimate and that of the n images. FPR and FNR are what the estimate
    leaves open, Beta(errors + 1/2, right + 1/2), and the errors on the new set are binomial at these rates, so their
    counts are beta-binomial. The distribution of their mean is summed exactly.

    Rows are taken as independent and from the population of `rates`; a shift between the two sets is not in it.

    Parameters
    ----------
    rates : ErrorRates
        The estimate, on rows on which nothing was fitted.
    n_neg_new, n_pos_new : int
        Images of label 0 and of label 1 in the new set, at least 1 each.

    Raises
    ------
    DataError
        A class of the new set is empty.

    Examples
    --------
    >>> interval = new_set_interval(ErrorRates(0.1, 0.1, 1000, 1000), 100, 100)
    >>> 0.04 < interval.low < 0.1 < interval.high < 0.16
    True
    """
    if n_neg_new < 1 or n_pos_new < 1:
        raise DataError(
            "cannot predict a new set's HTER",
            f"HTER needs both classes; got {n_neg_new} of label 0 and {n_pos_new} of label 1",
        )
    false_pos, chances = _error_counts(_jeffreys(rates.fpr, rates.n_neg), n_neg_new)
    false_neg, others = _error_counts(_jeffreys(rates.fnr, rates.n_pos), n_pos_new)
    below = np.concatenate(([0.0], np.cumsum(others)))

    def at_most(total: float) -> float:
        # 1e-9: a sum that equals `total` but for rounding counts as at most `total`
        most = np.floor((total - false_pos / n_neg_new) * n_pos_new + 1e-9).astype(np.int64)
        return float(chances @ below[np.clip(most - false_neg[0] + 1, 0, others.size)])

    low, high = (_quantile(at_most, level, 0.0, 2.0) / 2 for level in LEVELS)
    return Interval(low, high)


def _error_counts(shape: tuple[float, float], n: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the counts of errors among n new images that may occur, and their beta-binomial probabilities."""
    from scipy.special import betaincinv, betaln, gammaln

    low, high = betaincinv(*shape, TAIL), betaincinv(*shape, 1 - TAIL)
    first = max(0, int(n * low - 10 * np.sqrt(n * low)) - 10)
    last = min(n, int(n * high + 10 * np.sqrt(n * high)) + 10)
    counts = np.arange(first, last + 1)
    choose = gammaln(n + 1) - gammaln(counts + 1) - gammaln(n - counts + 1)
    chances = np.exp(choose + betaln(counts + shape[0], n - counts + shape[1]) - betaln(*shape))
    return counts, chances / chances.sum()


def _quantile(at_most: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Return the smallest value that a variable is at most with probability `level`, by bisection to 1e-9."""
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if at_most(middle) >= level else (middle, high)
    return round(high, 9)
