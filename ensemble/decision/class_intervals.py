"""95 % intervals of the error rates of several classes, of their mean, of precisions and of the accuracy, from counts.

The error rate of each class has the Beta posterior of the Jeffreys prior, Beta(1/2, 1/2). The mean of C error rates
needs a weaker prior: that of each class adds half an error to its count, and half an error for each of many small
classes moves their mean by more than its standard error. The prior of a class is therefore Beta(a, a) in the interval
of the mean, where a is the share of the class in the variance of the mean, at least 1/C and at most 1/2. With equal
classes, the priors then add one error in total, whatever C is; of two classes, they are the Jeffreys priors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemble.decision.intervals import (
    LEVELS,
    Interval,
    beta_interval,
    beta_mean_interval,
    effective_counts,
    error_counts,
    jeffreys,
    new_set_interval,
)
from ensemble.decision.rates import ClassRates, ErrorRates, Floats
from ensemble.errors import DataError

CELLS = 2**17
"""The number of grid cells that the range of a sum is divided into. The quantiles of a sum of 18 Beta variables are
then accurate to about 1e-7."""

TAIL = 1e-12
"""The tail probability of a Beta variable beyond which the grid ends."""

Shape: TypeAlias = tuple[float, float]
"""The two shape parameters of a Beta variable, above 0."""


def class_counting_intervals(
    rates: ClassRates, effects: Sequence[float] | None = None
) -> tuple[tuple[Interval, ...], Interval]:
    """Return the intervals of the error rate of each class (Jeffreys) and of their mean, from the counts of errors.

    For two classes they are those of `intervals.counting_intervals`.

    Parameters
    ----------
    rates : ClassRates
    effects : C floats, optional
        The design effects of the classes, by which counts of rows are divided; None for independent rows.

    Examples
    --------
    >>> errors, mean = class_counting_intervals(ClassRates(((90, 10, 0), (5, 95, 0), (0, 0, 50))))
    >>> errors[2].low < 0.001, 0.03 < errors[2].high < 0.06, mean.low < 0.05 < mean.high
    (True, True, True)
    """
    shapes = error_shapes(rates, effects)
    return tuple(map(beta_interval, shapes)), mean_interval(shapes_of_mean(rates, effects))


def precision_intervals(rates: ClassRates, effects: Sequence[float] | None = None) -> tuple[Interval, ...]:
    """Return the Jeffreys interval of the precision of each class, from the rows that are predicted as the class.

    A class without such rows has the interval of the prior, which is close to [0, 1].

    Parameters
    ----------
    rates : ClassRates
    effects : C floats, optional
        The design effects of the rows predicted as each class; None for independent rows.
    """
    each = zip(rates.precisions, rates.predicted, _effects(rates, effects), strict=True)
    return tuple(beta_interval(jeffreys(precision, n, effect)) for precision, n, effect in each)


def accuracy_interval(rates: ClassRates, effect: float = 1.0) -> Interval:
    """Return the Jeffreys interval of the accuracy, with the design effect of all rows."""
    return beta_interval(jeffreys(rates.accuracy, rates.n, effect))


def error_shapes(rates: ClassRates, effects: Sequence[float] | None = None) -> tuple[Shape, ...]:
    """Return the Beta posteriors of the error rates of the classes under the Jeffreys prior (C,)."""
    each = zip(rates.errors, rates.counts, _effects(rates, effects), strict=True)
    return tuple(jeffreys(error, n, effect) for error, n, effect in each)


def shapes_of_mean(rates: ClassRates, effects: Sequence[float] | None = None) -> tuple[Shape, ...]:
    """Return the Beta posteriors of the error rates under the weaker priors that their mean needs (C,).

    To the second order of an Edgeworth expansion, the posterior of a sum has correct quantiles if the priors add
    half an error in total, which the classes share in proportion to their variances (for one class, this is the
    Jeffreys prior). The bounds 1/C and 1/2 of the shares give the Jeffreys priors for two classes.
    """
    shapes = error_shapes(rates, effects)
    a, b = np.array(shapes).T
    priors = shares_of_prior(a * b / ((a + b) ** 2 * (a + b + 1)))
    return tuple(zip((a - 0.5 + priors).tolist(), (b - 0.5 + priors).tolist(), strict=True))


def shares_of_prior(variances: Floats) -> Floats:
    """Return the weights of the priors of C classes in the interval of a mean, from the variances of the classes."""
    return np.clip(variances / max(float(variances.sum()), 1e-300), 1 / variances.size, 0.5)


def mean_interval(shapes: Sequence[Shape]) -> Interval:
    """Return the 95 % interval of the mean of independent Beta variables.

    The sum of two has an exact quadrature (`intervals.beta_mean_interval`). Of more, each distribution is put on a
    grid, and the grids are convolved by fast Fourier transforms. The mass of a variable is divided between the grid
    points beside it in such a way that its mean stays the same, so the error falls with the square of the step.
    """
    if len(shapes) == 2:
        return beta_mean_interval(*shapes)
    from scipy.special import betaincinv

    ends = [(float(betaincinv(*shape, TAIL)), float(1 - betaincinv(*shape[::-1], TAIL))) for shape in shapes]
    step = sum(high - low for low, high in ends) / CELLS
    parts = [_beta_on_grid(shape, low, high, step) for shape, (low, high) in zip(shapes, ends, strict=True)]
    first, mass = _convolved(parts)
    # Half of a grid point's mass lies below it.
    levels = np.cumsum(mass) - mass / 2
    low, high = (step * (first + float(np.interp(level, levels, np.arange(mass.size)))) for level in LEVELS)
    return Interval(low / len(shapes), high / len(shapes))


def class_new_set_interval(
    rates: ClassRates, counts_new: Sequence[int], effects: Sequence[float] | None = None
) -> Interval:
    """Return the 95 % prediction interval of the mean class error that is measured on a new set of images.

    The errors of each class on the new set are beta-binomial, with the posteriors of `shapes_of_mean`. For two classes
    the interval is that of `intervals.new_set_interval`. Both sets are assumed to be drawn from one population; the
    interval does not cover a shift between them.

    Parameters
    ----------
    rates : ClassRates
        The estimate, from rows on which nothing was fitted.
    counts_new : C ints
        The number of new images of each class, at least 1.
    effects : C floats, optional
        As in `class_counting_intervals`. The new images are assumed to come in groups like those of the rows.

    Raises
    ------
    DataError
        The new set lacks a class.
    """
    if min(counts_new) < 1:
        absent = min(range(len(counts_new)), key=counts_new.__getitem__)
        raise DataError("cannot predict a new set's error", f"every class must be present; got 0 of label {absent}")
    effects = _effects(rates, effects)
    if len(counts_new) == 2:
        (fpr, fnr), (n_neg, n_pos) = rates.errors, rates.counts
        of_two = ErrorRates(fpr, fnr, n_neg, n_pos)
        return new_set_interval(of_two, counts_new[0], counts_new[1], (effects[0], effects[1]))
    counts = effective_counts(counts_new, effects)
    parts = [error_counts(shape, n) for shape, n in zip(shapes_of_mean(rates, effects), counts, strict=True)]
    total = sum((errors[-1] - errors[0] + 1) / n for (errors, _), n in zip(parts, counts, strict=True))
    # If the rates of all classes are multiples of one step that is not too fine, the distribution is exact.
    step = max(1 / math.lcm(*counts), total / CELLS)
    on_grid = [_on_grid(errors / (n * step), mass) for (errors, mass), n in zip(parts, counts, strict=True)]
    first, mass = _convolved(on_grid)
    # With 1e-9 added, a sum that is below a level by rounding alone counts as equal to it.
    below = np.cumsum(mass) + 1e-9
    low, high = (step * float(first + np.searchsorted(below, level)) for level in LEVELS)
    return Interval(low / len(counts), high / len(counts))


OnGrid: TypeAlias = tuple[int, Floats]
"""The first grid point, and the probabilities of consecutive grid points."""


def _effects(rates: ClassRates, effects: Sequence[float] | None) -> tuple[float, ...]:
    return (1.0,) * len(rates.confusion) if effects is None else tuple(effects)


def _beta_on_grid(shape: Shape, low: float, high: float, step: float) -> OnGrid:
    """Return a Beta variable in multiples of `step`; the mass of a cell is divided between its two ends by its mean."""
    from scipy.special import betainc

    first = math.floor(low / step)
    edges = np.arange(first, math.ceil(high / step) + 2)
    x = np.clip(edges * step, 0.0, 1.0)
    below = betainc(*shape, x)
    # The integral of x times the density up to x is the mean times the distribution of Beta(a + 1, b).
    moments = shape[0] / sum(shape) * betainc(shape[0] + 1, shape[1], x)
    mass = np.diff(below)
    to_upper = np.diff(moments) / step - edges[:-1] * mass
    return first, np.append(mass - to_upper, 0.0) + np.append(0.0, to_upper)


def _on_grid(points: Floats, mass: Floats) -> OnGrid:
    """Return point masses on the grid; the mass of a point between two grid points is divided between them."""
    lower = np.floor(points + 1e-9).astype(np.int64)
    to_upper = mass * np.maximum(points - lower, 0.0)
    first = int(lower[0])
    grid: Floats = np.bincount(lower - first, mass - to_upper, minlength=int(lower[-1]) - first + 2).astype(np.float64)
    grid[1:] += np.bincount(lower - first, to_upper, minlength=grid.size - 1)
    return first, grid


def _convolved(parts: Sequence[OnGrid]) -> OnGrid:
    """Return the distribution of the sum of independent variables on one grid."""
    from scipy.fft import irfft, next_fast_len, rfft

    size = sum(mass.size - 1 for _, mass in parts) + 1
    length = next_fast_len(size, real=True)
    spectrum: NDArray[np.complex128] = np.ones(length // 2 + 1, np.complex128)
    for _, mass in parts:
        spectrum *= rfft(mass, length)
    total = np.maximum(irfft(spectrum, length)[:size], 0.0)
    return sum(first for first, _ in parts), np.asarray(total / total.sum())
