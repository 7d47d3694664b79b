"""Whether the labels of a set have usual shares, by what is known of a decision alone: no OOF rows, no fold models."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ClassRates, ErrorRates
from ensemble.decision.shift import ALARM, share_of_zeros


def usual_shares(rates: ErrorRates, fpr: Interval, fnr: Interval) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the shares of images that are labelled 0 and 1 at the class mix of the training images, and their errors.

    Parameters
    ----------
    rates : ErrorRates
        The error rates of the decision, with the counts of the OOF rows.
    fpr, fnr : Interval
        Intervals as wide as the 95 % intervals of the two rates.

    Returns
    -------
    shares, errors : tuples of 2 floats
        The errors are standard errors, without that of drawing the new images.

    Examples
    --------
    >>> shares, errors = usual_shares(ErrorRates(0.1, 0.1, 200, 800), Interval(0.06, 0.14), Interval(0.08, 0.12))
    >>> shares, [round(error, 3) for error in errors]
    ((0.26, 0.74), [0.016, 0.016])
    """
    prior = rates.n_neg / rates.n
    share, error = share_of_zeros(rates, fpr, fnr, prior, float(np.sqrt(prior * (1 - prior) / rates.n)))
    return (share, 1 - share), (error, error)


def usual_class_shares(rates: ClassRates) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the shares of images that get each class at the class mix of the training images, and their errors.

    The rows of the confusion matrix are taken to err together, as FPR and FNR are in `implied_share`.

    Returns
    -------
    shares, errors : tuples of C floats

    Examples
    --------
    >>> shares, errors = usual_class_shares(ClassRates(((90, 5, 5), (5, 90, 5), (0, 20, 180))))
    >>> shares, [round(error, 3) for error in errors]
    ((0.2375, 0.2875, 0.475), [0.025, 0.033, 0.033])
    """
    confusion, n = np.array(rates.confusion, np.float64), sum(rates.counts)
    counts = confusion.sum(axis=1, keepdims=True)
    given_label, shares = confusion / counts, confusion.sum(axis=0) / n
    of_rates = (counts / n * np.sqrt(given_label * (1 - given_label) / counts)).sum(axis=0)
    errors = np.hypot(of_rates, np.sqrt(shares * (1 - shares) / n))
    return tuple(shares.tolist()), tuple(errors.tolist())


def unusual_class(counts: Sequence[int], shares: Sequence[float], errors: Sequence[float]) -> int | None:
    """Return the class whose share of the labels is not explained by chance, None where there is none.

    For each class, the usual share is moved towards the observed one by its error at the level `ALARM`, divided by the
    number of independent shares (Bonferroni). The exact binomial probability of a count as far away is then compared
    with this level. So the test is conservative, and holds for few images too.

    Parameters
    ----------
    counts : sequence of C ints
        The images that got each label; at least one image.
    shares, errors : sequences of C floats
        As `usual_shares` and `usual_class_shares` return them.

    Returns
    -------
    int or None
        The class with the least probability.

    Examples
    --------
    >>> shares, errors = (0.1, 0.9), (0.01, 0.01)
    >>> unusual_class((12, 88), shares, errors), unusual_class((1, 0), shares, errors)
    (None, None)
    >>> unusual_class((30, 70), shares, errors)
    0
    """
    n, level = sum(counts), ALARM / max(len(counts) - 1, 1)
    reach = NormalDist().inv_cdf(1 - level / 2)
    probabilities = []
    for count, share, error in zip(counts, shares, errors, strict=True):
        observed = count / n
        nearest = float(np.clip(observed, share - reach * error, share + reach * error))
        probabilities.append(_tail(count, n, nearest))
    least = int(np.argmin(probabilities))
    return least if probabilities[least] < level / 2 else None


def _tail(count: int, n: int, share: float) -> float:
    """Return the binomial probability of a count at least as far from n * share, on its side."""
    share = min(max(share, 1e-12), 1 - 1e-12)  # keeps the logarithms finite
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))  # of the factorials
    k = np.arange(count, n + 1) if count >= n * share else np.arange(count + 1)
    return float(np.exp(logs[n] - logs[k] - logs[n - k] + k * np.log(share) + (n - k) * np.log1p(-share)).sum())
