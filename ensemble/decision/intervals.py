"""95 % intervals of error rates: from counts (Jeffreys), from bootstrap replicates, and for a new set of images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemble.decision.rates import ErrorRates, Floats
from ensemble.errors import DataError

LEVELS = (0.025, 0.975)
"""The levels of the two quantiles that bound a 95 % interval."""

NORMAL = 1.959964
"""The 97.5 % quantile of the standard normal distribution."""

NODES = 2000
"""The number of quadrature nodes for the sum of two Beta variables. Its quantiles are then accurate to about 1e-8."""

TAIL = 1e-14
"""The tail probability of an error rate beyond which the interval of a new set leaves out counts of errors. It is far
below the 1e-9 to which the quantiles are computed."""


FEW_ERRORS = 30
"""The number of errors on either class below which the bootstrap interval is too narrow, since the bootstrap cannot
draw an error that was not observed. The interval is then widened to cover that of the counts alone (Jeffreys)."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of an error rate, both ends included."""

    low: float
    high: float

    @property
    def complement(self) -> Interval:
        """The interval of 1 minus the value."""
        return Interval(1 - self.high, 1 - self.low)


Intervals: TypeAlias = tuple[Interval, Interval, Interval]
"""Intervals of FPR, FNR and HTER."""


def central(hter: Floats) -> Interval:
    """Return the interval between the quantiles of draws (r,) of an error rate or of a difference."""
    low, high = np.quantile(hter, LEVELS)
    return Interval(float(low), float(high))


def chance_interval(area: float, n_neg: int, n_pos: int) -> Interval:
    """Return the 95 % interval by which an AUC is compared with chance, clipped to [0, 1].

    It is area ± 1.96 s, where s = sqrt((n_neg + n_pos + 1) / (12 n_neg n_pos)) is the standard error of the AUC of
    logits that do not depend on the label (Mann and Whitney 1947, On a test of whether one of two random variables is
    stochastically larger than the other). So it contains 0.5 if and only if their test, in its normal approximation,
    does not reject chance at 5 %. Far from 0.5 the AUC is known more precisely than this. Rows are assumed to be
    independent.

    Parameters
    ----------
    area : float
        The AUC, in [0, 1].
    n_neg, n_pos : int
        The numbers of rows of label 0 and of label 1, at least 1 each.

    Examples
    --------
    >>> few, many = chance_interval(0.6, 10, 20), chance_interval(0.6, 100, 200)
    >>> few.low < 0.5 < many.low
    True
    """
    half = NORMAL * ((n_neg + n_pos + 1) / (12 * n_neg * n_pos)) ** 0.5
    return Interval(max(area - half, 0.0), min(area + half, 1.0))


def counting_intervals(rates: ErrorRates, effects: tuple[float, float] = (1.0, 1.0)) -> Intervals:
    """Return the Jeffreys intervals of FPR, FNR and HTER, from the counts of errors.

    FPR and FNR have independent Beta(errors + 1/2, correct + 1/2) posteriors, and HTER is their mean. The upper end is
    above 0 even where no error was observed (Brown, Cai and DasGupta 2001, Interval estimation for a binomial
    proportion).

    Parameters
    ----------
    rates : ErrorRates
        The rates; their counts are recovered from `n_neg` and `n_pos`.
    effects : (float, float)
        The design effects of FPR and FNR (`bootstrap.design_effects`), by which counts of rows are divided; 1 for
        independent rows.

    Examples
    --------
    >>> fpr, fnr, hter = counting_intervals(ErrorRates(0.0, 0.1, 100, 1000))
    >>> fpr.low < 0.001, 0.01 < fpr.high < 0.04, hter.low < 0.05 < hter.high
    (True, True, True)
    """
    first, second = jeffreys(rates.fpr, rates.n_neg, effects[0]), jeffreys(rates.fnr, rates.n_pos, effects[1])
    return beta_interval(first), beta_interval(second), beta_mean_interval(first, second)


def widened(intervals: Intervals, rates: ErrorRates, effects: tuple[float, float] = (1.0, 1.0)) -> Intervals:
    """Return the bootstrap intervals of FPR, FNR and HTER, widened to cover those of the counts if errors are few.

    Errors are few if a class has fewer than `FEW_ERRORS`, divided by its design effect.

    Parameters
    ----------
    intervals : (Interval, Interval, Interval)
        Of FPR, FNR and HTER.
    rates, effects
        As in `counting_intervals`.
    """
    if min(round(rates.fpr * rates.n_neg) / effects[0], round(rates.fnr * rates.n_pos) / effects[1]) >= FEW_ERRORS:
        return intervals
    fpr, fnr, hter = (
        Interval(min(one.low, other.low), max(one.high, other.high))
        for one, other in zip(intervals, counting_intervals(rates, effects), strict=True)
    )
    return fpr, fnr, hter


def jeffreys(rate: float, n: int, effect: float = 1.0) -> tuple[float, float]:
    """Return the two shape parameters of the Beta posterior of a rate under the Jeffreys prior."""
    errors = round(rate * n)  # a measured rate gives its count of errors; an expected rate is rounded to one
    return errors / effect + 0.5, (n - errors) / effect + 0.5


def beta_interval(shape: tuple[float, float]) -> Interval:
    """Return the 95 % interval of a Beta variable with two shape parameters."""
    from scipy.special import betaincinv

    low, high = (float(betaincinv(*shape, level)) for level in LEVELS)
    return Interval(low, high)


def beta_mean_interval(first: tuple[float, float], second: tuple[float, float]) -> Interval:
    """Return the 95 % interval of the mean of two independent Beta variables.

    Let Q be the quantile function of the first and F the distribution function of the second. The probability that the
    sum is at most s is then E[F(s - Q(u))] over uniform u. Gauss-Legendre quadrature evaluates it, and bisection
    inverts it.

    Parameters
    ----------
    first, second : (float, float)
        The two shape parameters of each variable, above 0.
    """
    from scipy.special import betainc, betaincinv

    # The nodes are levels of the first variable: its density, which may be infinite at 0 or 1, is never evaluated.
    nodes, weights = _nodes()
    values = betaincinv(*first, (nodes + 1) / 2)

    def at_most(total: float) -> float:
        return float(weights / 2 @ betainc(*second, np.clip(total - values, 0, 1)))

    # The sum lies in [0, 2]; HTER is half of it.
    low, high = (_quantile(at_most, level, 0.0, 2.0) / 2 for level in LEVELS)
    return Interval(low, high)


@functools.cache
def _nodes() -> tuple[Floats, Floats]:
    """Return the Gauss-Legendre nodes on [-1, 1] and their weights, (`NODES`,) each."""
    from scipy.special import roots_legendre

    nodes, weights = roots_legendre(NODES)  # ten times as fast as NumPy's leggauss
    return nodes, weights


def new_set_interval(
    rates: ErrorRates, n_neg_new: int, n_pos_new: int, effects: tuple[float, float] = (1.0, 1.0)
) -> Interval:
    """Return the 95 % prediction interval of the HTER that is measured on a new set of images.

    It is wider than the interval of the HTER itself, because it covers two sources of error: that of the estimate, and
    the sampling of the new images. FPR and FNR have Beta(errors + 1/2, correct + 1/2) posteriors, and the errors on the
    new set are binomial at these rates, so their counts are beta-binomial. The distribution of the measured HTER is
    summed exactly.

    Both sets are assumed to be drawn from one population; the interval does not cover a shift between them.

    Parameters
    ----------
    rates : ErrorRates
        The estimate, from rows on which nothing was fitted.
    n_neg_new, n_pos_new : int
        The numbers of images of label 0 and of label 1 in the new set, at least 1 each.
    effects : (float, float)
        As in `counting_intervals`. The images of the new set are assumed to come in groups like those of the rows.

    Raises
    ------
    DataError
        The new set lacks a class.

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
    n_neg_new, n_pos_new = effective_counts((n_neg_new, n_pos_new), effects)
    false_pos = error_counts(jeffreys(rates.fpr, rates.n_neg, effects[0]), n_neg_new)
    false_neg = error_counts(jeffreys(rates.fnr, rates.n_pos, effects[1]), n_pos_new)
    return _measured_hter([(false_pos, false_neg)], n_neg_new, n_pos_new)


def measured_interval(rates: Floats, n_neg: int, n_pos: int, effects: tuple[float, float] = (1.0, 1.0)) -> Interval:
    """Return the 95 % interval of the HTER that is measured on a set of images, if its true rates are one of several.

    The counts of errors are binomial at each pair of rates, and the pairs are equally probable. The distribution of the
    measured HTER is summed exactly.

    Parameters
    ----------
    rates : float64 array (r, 2)
        Pairs of FPR and FNR, such as those of bootstrap replicates.
    n_neg, n_pos : int
        The numbers of images of label 0 and of label 1, at least 1 each.
    effects : (float, float)
        As in `counting_intervals`.

    Examples
    --------
    >>> interval = measured_interval(np.array([[0.5, 0.0]]), 1, 1)
    >>> interval.low, round(interval.high, 6)
    (0.0, 0.5)
    """
    n_neg, n_pos = effective_counts((n_neg, n_pos), effects)
    pairs = [(_binomial_counts(fpr, n_neg), _binomial_counts(fnr, n_pos)) for fpr, fnr in rates.tolist()]
    return _measured_hter(pairs, n_neg, n_pos)


Distribution: TypeAlias = tuple[NDArray[np.int64], Floats]
"""Consecutive counts of errors, and their probabilities."""


def effective_counts(counts: Sequence[int], effects: Sequence[float]) -> tuple[int, ...]:
    """Return numbers of images divided by their design effects, at least 1."""
    return tuple(max(round(n / effect), 1) for n, effect in zip(counts, effects, strict=True))


def _measured_hter(pairs: Sequence[tuple[Distribution, Distribution]], n_neg: int, n_pos: int) -> Interval:
    """Return the central 95 % of (false positives / n_neg + false negatives / n_pos) / 2.

    The distributions of the two counts are one of several pairs, each with the same probability.
    """
    prepared = [
        (false_pos / n_neg, of_false_pos, false_neg[0], np.concatenate(([0.0], np.cumsum(of_false_neg))))
        for (false_pos, of_false_pos), (false_neg, of_false_neg) in pairs
    ]

    def at_most(total: float) -> float:
        probability = 0.0
        for fpr, of_false_pos, first, cumulative in prepared:
            # With 1e-9 added, a sum that exceeds `total` by rounding alone counts as at most `total`.
            most = np.floor((total - fpr) * n_pos + 1e-9).astype(np.int64)
            probability += float(of_false_pos @ cumulative[np.clip(most - first + 1, 0, cumulative.size - 1)])
        return probability / len(prepared)

    low, high = (_quantile(at_most, level, 0.0, 2.0) / 2 for level in LEVELS)
    return Interval(low, high)


def error_counts(shape: tuple[float, float], n: int) -> Distribution:
    """Return the beta-binomial distribution of the count of errors among n new images.

    Counts whose probability is negligible (`TAIL`) are left out, and the probabilities are scaled to a sum of 1.
    """
    from scipy.special import betaincinv, betaln

    counts = _likely_counts(betaincinv(*shape, TAIL), betaincinv(*shape, 1 - TAIL), n)
    probabilities = np.exp(_log_choose(n, counts) + betaln(counts + shape[0], n - counts + shape[1]) - betaln(*shape))
    return counts, probabilities / probabilities.sum()


def _binomial_counts(rate: float, n: int) -> Distribution:
    """Return the binomial distribution of the count of errors among n images at a rate, as `error_counts` does."""
    from scipy.special import xlog1py, xlogy

    counts = _likely_counts(rate, rate, n)
    probabilities = np.exp(_log_choose(n, counts) + xlogy(counts, rate) + xlog1py(n - counts, -rate))
    return counts, probabilities / probabilities.sum()


def _likely_counts(low: float, high: float, n: int) -> NDArray[np.int64]:
    """Return the counts of errors among n images that are not negligible at rates between `low` and `high`.

    Around n times a rate, counts vary by less than 10 standard deviations, sqrt(n rate) each; the 10 more counts cover
    rates near 0, where this is too narrow.
    """
    first = max(0, int(n * low - 10 * np.sqrt(n * low)) - 10)
    last = min(n, int(n * high + 10 * np.sqrt(n * high)) + 10)
    return np.arange(first, last + 1)


def _log_choose(n: int, counts: NDArray[np.int64]) -> Floats:
    """Return the logarithms of the binomial coefficients, which themselves would overflow."""
    from scipy.special import gammaln

    return np.asarray(gammaln(n + 1) - gammaln(counts + 1) - gammaln(n - counts + 1))


def _quantile(at_most: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Return the quantile at `level` of a variable in [low, high], by bisection, rounded to 9 decimals.

    `at_most(x)` is the probability that the variable is at most x.
    """
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if at_most(middle) >= level else (middle, high)
    return round(high, 9)
