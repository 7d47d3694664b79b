"""How far chance can move an HTER: what bootstraps draw, and intervals of counts and of new sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.rates import ErrorRates, Floats
from ensemble.errors import DataError

_CELLS_AT_ONCE = 2**22  # int64 draws held in memory by one chunk of the bootstrap: 32 MiB


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of an HTER, both ends included."""

    low: float
    high: float


def new_set_interval(
    rates: ErrorRates, n_neg_new: int, n_pos_new: int, seed: int = 0, replicates: int = 20_000
) -> Interval:
    """Return where the HTER *measured on a new set* of the given size falls 95 % of the time.

    This is wider than the interval of the HTER itself: who compares a label file's HTER on n images with a promised
    figure sees two chances at once, that of the estimate and that of the n images. Each replicate draws FPR and FNR
    from what the estimate leaves open, Beta(errors + 1/2, right + 1/2), then the errors on the new set from binomials
    at these rates. The Beta (Jeffreys) draw is the binomial bootstrap for large counts and, unlike it, does not promise
    zero where no error has been seen.

    Rows are taken as independent and from the population of `rates`; a shift between the two sets is not in it.

    Parameters
    ----------
    rates : ErrorRates
        The estimate, on rows on which nothing was fitted.
    n_neg_new, n_pos_new : int
        Images of label 0 and of label 1 in the new set, at least 1 each.
    seed : int
        The same seed gives the same interval.
    replicates : int
        Draws.

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
            "cannot foresee a new set's HTER",
            f"HTER needs both classes; got {n_neg_new} of label 0 and {n_pos_new} of label 1",
        )
    rng = np.random.default_rng(seed_sequence(seed, "new set"))

    def measured(rate: float, n: int, n_new: int) -> Floats:
        errors = round(rate * n)
        return rng.binomial(n_new, rng.beta(errors + 0.5, n - errors + 0.5, size=replicates)) / n_new

    return central(measured(rates.fpr, rates.n_neg, n_neg_new) + measured(rates.fnr, rates.n_pos, n_pos_new))


def counting_intervals(
    rates: ErrorRates, seed: int = 0, replicates: int = 20_000
) -> tuple[Interval, Interval, Interval]:
    """Return 95 % intervals of FPR, FNR and HTER that the counts leave open: Jeffreys, Beta(errors + 1/2, right + 1/2).

    Rows are taken as independent. Where no error has been seen the upper end is above 0.

    >>> fpr, fnr, hter = counting_intervals(ErrorRates(0.0, 0.1, 100, 1000))
    >>> fpr.low < 0.001, 0.01 < fpr.high < 0.04, hter.low < 0.05 < hter.high
    (True, True, True)
    """
    rng = np.random.default_rng(seed_sequence(seed, "counting"))
    drawn = [
        rng.beta(round(rate * n) + 0.5, n - round(rate * n) + 0.5, size=replicates)
        for rate, n in ((rates.fpr, rates.n_neg), (rates.fnr, rates.n_pos))
    ]
    return central(2 * drawn[0]), central(2 * drawn[1]), central(drawn[0] + drawn[1])


def central(twice_hter: Floats) -> Interval:
    """Return the 2.5 and 97.5 % quantiles of HTERs that are given as FPR + FNR."""
    low, high = np.quantile(twice_hter / 2, [0.025, 0.975])
    return Interval(float(low), float(high))


def draw_totals(
    kinds: NDArray[np.int64], counts: NDArray[np.int64], rng: np.random.Generator, replicates: int
) -> NDArray[np.int64]:
    """Return how often each outcome occurs in bootstrap replicates that are stratified by class, (replicates, o).

    Parameters
    ----------
    kinds : int64 array (t, o)
        The distinct counts of outcomes in a group; the first half of the outcomes are those of label 0.
    counts : int64 array (t,)
        How many groups are of each kind.
    rng : Generator
        Of the draws.
    replicates : int
        Bootstrap draws.
    """
    half = kinds.shape[1] // 2
    has_neg, has_pos = kinds[:, :half].any(axis=1), kinds[:, half:].any(axis=1)
    totals = np.zeros((replicates, kinds.shape[1]), np.int64)
    for stratum in (has_neg & ~has_pos, has_pos & ~has_neg, has_neg & has_pos):
        kind, count = kinds[stratum], counts[stratum]
        if not count.size:
            continue
        step = max(1, _CELLS_AT_ONCE // count.size)
        for start in range(0, replicates, step):
            rows = totals[start : start + step]
            rows += rng.multinomial(count.sum(), count / count.sum(), size=len(rows)) @ kind
    return totals


def kinds_of_group(
    outcome: NDArray[np.int64], outcomes: int, groups: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct counts (t, outcomes) of the outcomes in a group, and how many groups have them (t,).

    Parameters
    ----------
    outcome : int64 array (n,)
        In [0, outcomes).
    outcomes : int
        How many there can be.
    groups : int64 array (n,), optional
        Every row is a group if None.
    """
    if groups is None:
        kinds, counts = np.eye(outcomes, dtype=np.int64), np.bincount(outcome, minlength=outcomes)
        return kinds[counts > 0], counts[counts > 0]
    if np.shape(groups) != outcome.shape:
        raise DataError("cannot bootstrap", f"groups must have shape {outcome.shape}; got {np.shape(groups)}")
    group_of = np.asarray(groups)
    if int(group_of.max()) - int(group_of.min()) > 4 * outcome.size:  # too many numbers between them lie idle
        group_of = np.unique(group_of, return_inverse=True)[1]
    group_of = group_of - group_of.min()
    table = np.bincount(group_of * outcomes + outcome, minlength=outcomes * (int(group_of.max()) + 1))
    table = table.reshape(-1, outcomes)
    table = table[table.any(axis=1)]
    base = int(table.max()) + 1
    if base**outcomes > 2**62:
        kinds, counts = np.unique(table, axis=0, return_counts=True)
        return kinds, counts
    digits = base ** np.arange(outcomes)[::-1]  # a row as one number, which sorts faster and alike
    numbers, counts = np.unique(table @ digits, return_counts=True)
    return numbers[:, None] // digits % base, counts
