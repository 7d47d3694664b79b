"""Error rates, and how far chance can move them.

An image is called 1 if and only if its logit is at or above the threshold: a tie is a 1, here and everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.errors import DataError

Floats: TypeAlias = NDArray[np.float64]
Calls: TypeAlias = NDArray[np.int8]

_CELLS_AT_ONCE = 2**22  # int64 draws held in memory by one chunk of the bootstrap: 32 MiB


@dataclass(frozen=True)
class ErrorRates:
    """The two error rates, each in [0, 1], and the counts that they are shares of.

    >>> ErrorRates(fpr=0.1, fnr=0.3, n_neg=50, n_pos=200).hter
    0.2
    """

    fpr: float  # share of label 0 called 1
    fnr: float  # share of label 1 called 0
    n_neg: int
    n_pos: int

    @property
    def hter(self) -> float:
        """Half total error rate, (FPR + FNR) / 2 = 1 - balanced accuracy."""
        return (self.fpr + self.fnr) / 2

    @property
    def n(self) -> int:
        return self.n_neg + self.n_pos


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of an HTER, both ends included."""

    low: float
    high: float


def error_rates(labels: ArrayLike, called: ArrayLike) -> ErrorRates:
    """Return FPR and FNR of calls against labels.

    Parameters
    ----------
    labels, called : array (n,)
        0 or 1; both classes among the labels.

    Raises
    ------
    DataError
        Shapes differ, a value is neither 0 nor 1, or a class is absent from the labels.

    Examples
    --------
    >>> error_rates([0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0])
    ErrorRates(fpr=0.5, fnr=0.25, n_neg=2, n_pos=4)
    """
    truth, calls = _checked_calls("cannot compute error rates", labels, called)
    n_pos = int(np.count_nonzero(truth))
    n_neg = truth.size - n_pos
    hits = int(np.count_nonzero(truth & calls))
    return ErrorRates((int(np.count_nonzero(calls)) - hits) / n_neg, (n_pos - hits) / n_pos, n_neg, n_pos)


def call(logits: ArrayLike, threshold: float) -> Calls:
    """Return 1 where the logit is >= `threshold`, else 0, in the shape of `logits`.

    >>> call([-1.0, 0.5, 2.0], 0.5)
    array([0, 1, 1], dtype=int8)
    """
    return np.asarray(np.asarray(logits) >= threshold, dtype=np.int8)


def auc(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of (label 0, label 1) pairs that the logits order rightly; a tied pair counts half.

    The Mann-Whitney form of the area under the ROC curve (Hanley and McNeil 1982).

    Parameters
    ----------
    logits : float64 array (n,)
        Finite; higher means label 1.
    labels : array (n,)
        0 or 1, both present.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.

    Examples
    --------
    >>> auc([0.0, 1.0, 1.0, 2.0], [0, 0, 1, 1])
    0.875
    """
    x, y = checked("cannot compute the AUC", logits, labels)
    neg, pos = np.sort(x[y == 0]), np.sort(x[y == 1])
    below = int(np.searchsorted(neg, pos, "left").sum()) + int(np.searchsorted(neg, pos, "right").sum())
    return below / (2 * neg.size * pos.size)


def bootstrap_interval(
    labels: ArrayLike, called: ArrayLike, groups: ArrayLike | None = None, seed: int = 0, replicates: int = 2000
) -> Interval:
    """Return the class-stratified percentile-bootstrap interval of the HTER of fixed calls.

    Whole groups are drawn, with replacement, within the strata "only label 0", "only label 1" and "both". Groups with
    the same counts of the four outcomes are alike, so a replicate is one multinomial draw over the kinds of group, not
    one over rows; with a row a group that is two binomial draws.

    Parameters
    ----------
    labels, called : array (n,)
        0 or 1; both classes among the labels.
    groups : int64 array (n,), optional
        Rows of one value stand or fall together (duplicates, one person); every row by itself if None.
    seed : int
        The same seed gives the same interval.
    replicates : int
        Bootstrap draws.

    Returns
    -------
    Interval
        The 2.5 and 97.5 % quantiles of the replicates. It has no width when no call is wrong.

    Raises
    ------
    DataError
        As `error_rates`, or the groups' shape differs.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 8 and 13.

    Examples
    --------
    >>> interval = bootstrap_interval([0] * 100 + [1] * 100, [1] * 20 + [0] * 80 + [1] * 100)
    >>> 0.05 < interval.low < 0.1 < interval.high < 0.15
    True
    """
    truth, calls = _checked_calls("cannot bootstrap", labels, called)
    kinds, counts = _kinds_of_group(truth, calls, groups)
    rng = np.random.default_rng(seed_sequence(seed, "bootstrap"))
    has_neg, has_pos = kinds[:, 0] + kinds[:, 1] > 0, kinds[:, 2] + kinds[:, 3] > 0
    totals = np.zeros((replicates, 4), np.int64)
    for stratum in (has_neg & ~has_pos, has_pos & ~has_neg, has_neg & has_pos):
        kind, count = kinds[stratum], counts[stratum]
        if not count.size:
            continue
        step = max(1, _CELLS_AT_ONCE // count.size)
        for start in range(0, replicates, step):
            rows = totals[start : start + step]
            rows += rng.multinomial(count.sum(), count / count.sum(), size=len(rows)) @ kind
    true_neg, false_pos, false_neg, true_pos = totals.T
    return _central(false_pos / (true_neg + false_pos) + false_neg / (false_neg + true_pos))


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

    return _central(measured(rates.fpr, rates.n_neg, n_neg_new) + measured(rates.fnr, rates.n_pos, n_pos_new))


def _central(twice_hter: Floats) -> Interval:
    low, high = np.quantile(twice_hter / 2, [0.025, 0.975])
    return Interval(float(low), float(high))


def _kinds_of_group(
    truth: Calls, calls: Calls, groups: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct counts (t, 4) of TN, FP, FN, TP in a group, and how many groups have them (t,)."""
    outcome = truth.astype(np.int64) * 2 + calls
    if groups is None:
        kinds, counts = np.eye(4, dtype=np.int64), np.bincount(outcome, minlength=4)
        return kinds[counts > 0], counts[counts > 0]
    if np.shape(groups) != truth.shape:
        raise DataError("cannot bootstrap", f"groups must have shape {truth.shape}; got {np.shape(groups)}")
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    table = np.bincount(group_of * 4 + outcome, minlength=4 * names.size).reshape(-1, 4)
    kinds, counts = np.unique(table, axis=0, return_counts=True)
    return kinds, counts


def checked(task: str, logits: ArrayLike, labels: ArrayLike, ndim: int = 1) -> tuple[Floats, Calls]:
    """Return finite float64 logits, (n,) or (n, m) as `ndim` says, and int8 labels (n,) of both classes."""
    y = _checked_labels(task, labels)
    x = np.asarray(logits, dtype=np.float64)
    if x.ndim != ndim or x.shape[0] != y.size:
        raise DataError(task, f"needs {ndim}-dimensional logits for {y.size} labels; got shape {x.shape}")
    if not np.isfinite(x).all():
        raise DataError(
            task, f"logits must be finite; got {np.count_nonzero(~np.isfinite(x))} of {x.size} that are not"
        )
    return x, y


def _checked_calls(task: str, labels: ArrayLike, called: ArrayLike) -> tuple[Calls, Calls]:
    y, calls = _checked_labels(task, labels), zero_or_one(task, "calls", called)
    if y.shape != calls.shape:
        raise DataError(task, f"labels and calls must have one shape; got {y.shape} and {calls.shape}")
    return y, calls


def _checked_labels(task: str, labels: ArrayLike) -> Calls:
    y = zero_or_one(task, "labels", labels)
    ones = int(np.count_nonzero(y))
    for label, count in ((0, y.size - ones), (1, ones)):
        if not count:
            raise DataError(task, f"HTER needs both classes; got 0 of label {label} in {y.size} images")
    return y


def zero_or_one(task: str, what: str, values: ArrayLike) -> Calls:
    raw: NDArray[Any] = np.asarray(values)
    if raw.ndim != 1:
        raise DataError(task, f"{what} must have shape (n,); got {raw.shape}")
    bad = (raw != 0) & (raw != 1)
    if bad.any():
        raise DataError(task, f"{what} must be 0 or 1; got {raw[bad][0]} at row {int(np.argmax(bad))}")
    return raw.astype(np.int8)
