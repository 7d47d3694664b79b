"""The floor: how much HTER wrong labels alone cause, by two estimates and an upper bound.

An oracle that knows the true classes still disagrees with the given labels, at these rates:

    FPR = P(true = 1 | given = 0),   FNR = P(true = 0 | given = 1),   floor = their mean.

Logits alone cannot distinguish a wrong label from an image that looks like the other class, so every estimate rests on
an assumption about wrong labels:

- the *mixture* assumes that labels are wrong at random, independently of the image. Then the logits of the rows with
  given label 0 are a mixture of those of true 0 and of true 1;
- *confident learning* counts every label that the model contradicts with confidence as wrong. It counts the model's
  confident errors too, so it is biased upward, more so for a weaker model;
- the *ceiling* is an upper bound under the mixture's assumption, for any distributions.

Wrong labels on difficult images look like difficulty to all three, which are then below the rate of wrong labels. And
the floor is no strict lower bound: a model that learns such noise can reach a lower HTER than the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.intervals import Interval, beta_mean_interval, central
from ensemble.decision.label_issues import confident_joint
from ensemble.decision.mixture import (
    LEAST_BINS,
    PARAMETERS,
    STARTS,
    bin_shares,
    first_guess,
    fit_mixture,
    in_bins,
    rates_of,
)
from ensemble.decision.rates import ErrorRates, Floats, Labels, check_logits

LEAST_ROWS = 100
"""The smallest number of rows of each class for which the floor is estimated."""

TAILS = (0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005)
"""The shares of a class above the cuts that the ceiling evaluates."""

APART = 0.02
"""Two estimates disagree if they differ by more than this HTER and their intervals do not overlap."""


@dataclass(frozen=True)
class FloorEstimate:
    """One estimate: the oracle's error rates against the given labels, and the 95 % interval of their mean."""

    rates: ErrorRates
    interval: Interval

    @property
    def hter(self) -> float:
        return self.rates.hter


@dataclass(frozen=True)
class Floor:
    """How much HTER label noise alone causes, by two estimates."""

    confident: FloorEstimate
    mixture: FloorEstimate
    ceiling: ErrorRates  # 95 % upper bound on the floor if labels are wrong at random
    misfit: (
        float  # deviance of the mixture per degree of freedom; about 1 for a good fit, larger values widen its interval
    )

    @property
    def disagree(self) -> bool:
        """Whether the estimates differ by more than `APART` and their intervals do not overlap."""
        low, high = sorted((self.confident, self.mixture), key=lambda estimate: estimate.hter)
        return high.hter - low.hter > APART and high.interval.low > low.interval.high


def estimate_floor(logits: ArrayLike, labels: ArrayLike, seed: int = 0, replicates: int = 200) -> Floor | None:
    """Estimate the floor from out-of-fold logits, by confident learning and by a mixture, with intervals.

    Parameters
    ----------
    logits : float64 array (n,)
        Out-of-fold, of one model or stacked, finite; higher means label 1.
    labels : int8 array (n,)
        As given: 0 or 1, both present.
    seed : int
        The same seed gives the same floor.
    replicates : int
        Bootstrap replicates of the mixture.

    Returns
    -------
    Floor or None
        None if a class has fewer than `LEAST_ROWS` rows, or the logits have too few distinct values.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.

    Notes
    -----
    Means over 100 simulated data sets of 20,000 rows with 12 % of class 0 (`tests/simulations/floor.py`): the bias
    against the oracle's HTER, and the coverage of the 95 % interval:

    ===============================  ======  ==================  ===================
    model, noise                      floor  confident learning  mixture
    ===============================  ======  ==================  ===================
    strong, none                     0.0000   +0.0006      0 %    +0.0000     100 %
    strong, 5 % flips                0.1436   -0.0019     91 %    -0.0011      99 %
    strong, trained on 5 % flips     0.1432   -0.0008     91 %    +0.0046      93 %
    moderate, none                   0.0000   +0.0208      0 %    +0.0002     100 %
    moderate, 3 % flips              0.0951   +0.0253      0 %    -0.0013      96 %
    moderate, trained on 3 % flips   0.0949   +0.0321      0 %    +0.0125      87 %
    skewed logits, 3 % flips         0.0946   +0.0302      0 %    -0.0022      95 %
    heavy tails, none                0.0000   +0.0146      0 %    +0.0053       0 %
    weak, none                       0.0000   +0.1705      0 %    +0.0050      93 %
    weak, 3 % flips                  0.0951   +0.1446      0 %    -0.0263      90 %
    moderate, hard images flipped    0.0463   -0.0163      1 %    -0.0462       0 %
    ===============================  ======  ==================  ===================

    Confident learning gives an upper figure and is reliable alone only for a strong model, because its interval covers
    the sampling error but not the bias. The mixture is better wherever labels are wrong at random. Outliers of a model
    look like wrong labels and raise it by 0.005; logits of a model that has learned the noise do not fit the family of
    distributions and raise it by up to 0.013. The ceiling held 99 times in 100 in all cases but that of hard images.
    """
    x, y = check_logits("cannot estimate the floor", logits, labels)
    n_pos = int(np.count_nonzero(y))
    if min(n_pos, y.size - n_pos) < LEAST_ROWS:
        return None
    edges, counts = in_bins(x, y)
    if counts.shape[1] < LEAST_BINS:
        return None
    rng = np.random.default_rng(seed_sequence(seed, "mixture"))
    most = ceiling(x, y)
    mixture, misfit = _by_mixture(edges, counts, most, rng, replicates)
    return Floor(_by_confidence(x, y, seed), mixture, most, misfit)


# --- confident learning ---------------------------------------------------------------------------------------------


def _by_confidence(logits: Floats, labels: Labels, seed: int) -> FloorEstimate:
    joint = confident_joint(logits, labels, seed)
    sure = np.maximum(joint.sum(axis=1), 1)
    n_pos = int(np.count_nonzero(labels))
    rates = ErrorRates(float(joint[0, 1] / sure[0]), float(joint[1, 0] / sure[1]), labels.size - n_pos, n_pos)
    return FloorEstimate(rates, _counted(rates, int(sure[0]), int(sure[1])))


def _counted(rates: ErrorRates, n_neg: int, n_pos: int) -> Interval:
    """Return the Jeffreys interval of the mean of two rates that were counted on `n_neg` and `n_pos` rows.

    The lower bound is 0 if no error was counted.
    """
    first, second = ((rate * n + 0.5, (1 - rate) * n + 0.5) for rate, n in ((rates.fpr, n_neg), (rates.fnr, n_pos)))
    interval = beta_mean_interval(first, second)
    return Interval(0.0 if rates.fpr + rates.fnr == 0 else min(interval.low, rates.hter), interval.high)


# --- the ceiling ----------------------------------------------------------------------------------------------------


def ceiling(logits: ArrayLike, labels: ArrayLike) -> ErrorRates:
    """Return a 95 % upper bound on the oracle's error rates if labels are wrong at random.

    Let the given label depend on the true class alone. A share fpr of the rows with given label 0 has true class 1, and
    a share P(A | true 1) of those has a logit in a set A. Hence P(A | given 0) >= fpr P(A | true 1). Likewise
    P(A | given 1) = (1 - fnr) P(A | true 1) + fnr P(A | true 0). If fpr + fnr <= 1, together

        fpr / (1 - fnr) <= P(A | given 0) / P(A | given 1)   for every A,

    and the same with the classes exchanged. A runs over the upper tails `TAILS`. Each share is replaced by its exact
    (Clopper-Pearson) bound, at a level that gives 5 % for all of them together. The two bounds are solved for fpr and
    fnr. The bound holds for any model and any distributions, but only if the noise does not depend on the image.

    Parameters
    ----------
    logits : float64 array (n,)
        Out-of-fold, finite; higher means label 1.
    labels : int8 array (n,)
        As given: 0 or 1, both present.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.

    References
    ----------
    Scott, Blanchard and Handy (2013), Classification with Asymmetric Label Noise, COLT, section 3.

    Examples
    --------
    >>> logits = np.linspace(-4.0, 4.0, 2000)
    >>> ceiling(logits, logits > 0).hter < 0.02
    True
    """
    from scipy.special import betaincinv

    x, y = check_logits("cannot bound the floor", logits, labels)
    level = 0.05 / (4 * len(TAILS))  # two sides, two shares each
    bounds = []
    for given, sign in ((0, 1), (1, -1)):
        same, other = np.sort(sign * x[y == given]), np.sort(sign * x[y != given])
        cuts = np.quantile(other, 1 - np.asarray(TAILS))
        above, other_above = same.size - np.searchsorted(same, cuts), other.size - np.searchsorted(other, cuts)
        most = np.where(above < same.size, betaincinv(above + 1, np.maximum(same.size - above, 1), 1 - level), 1.0)
        least = betaincinv(np.maximum(other_above, 1), other.size - other_above + 1, level)
        bounds.append(min(float((most / least).min()), 1.0))
    n_pos = int(np.count_nonzero(y))
    a, b = bounds
    rest = 1 - a * b
    fpr, fnr = (a * (1 - b) / rest, b * (1 - a) / rest) if rest > 0 else (0.5, 0.5)
    return ErrorRates(fpr, fnr, y.size - n_pos, n_pos)


# --- the mixture ----------------------------------------------------------------------------------------------------


def _by_mixture(
    edges: Floats, counts: NDArray[np.int64], most: ErrorRates, rng: np.random.Generator, replicates: int
) -> tuple[FloorEstimate, float]:
    """Fit the mixture to binned logits by maximum likelihood; return the estimate and its misfit.

    The interval is a bootstrap of the counts. If the fit is worse than chance explains, the bootstrap draws `misfit`
    times fewer rows. It is never narrower than the Jeffreys interval of a direct count of wrong labels. If the fit is
    above the ceiling, the ceiling's rates are returned with the interval from 0 to the ceiling.
    """
    first = np.stack([first_guess(edges, counts, rates) for rates in STARTS])
    fitted, likelihood = fit_mixture(first, np.repeat(counts[None].astype(np.float64), len(first), axis=0), edges)
    best = fitted[int(np.argmax(likelihood))]
    n_neg, n_pos = (int(n) for n in counts.sum(axis=1))
    expected = np.maximum(bin_shares(best, edges), 1e-12) * [[n_neg], [n_pos]]
    deviance = 2 * float((counts * np.log(np.maximum(counts, 1) / expected))[counts > 0].sum())
    misfit = deviance / (2 * edges.size - PARAMETERS)
    fpr, fnr = rates_of(best).tolist()
    rates = ErrorRates(fpr, fnr, n_neg, n_pos)
    if rates.hter > most.hter:
        return FloorEstimate(most, Interval(0.0, most.hter)), misfit

    sizes = [max(round(n / max(misfit, 1.0)), 1) for n in (n_neg, n_pos)]
    shares = counts / counts.sum(axis=1, keepdims=True)
    drawn = np.stack([rng.multinomial(size, row, replicates) for size, row in zip(sizes, shares, strict=True)], axis=1)
    begin = np.repeat(best[None], replicates, axis=0)
    begin[:, :2] = np.resize(first[:, :2], (replicates, 2))  # rates from all starts, so a flat likelihood widens it
    bootstrap = central(rates_of(fit_mixture(begin, drawn, edges)[0]).sum(axis=1) / 2)
    counted = _counted(rates, n_neg, n_pos)
    low, high = min(bootstrap.low, counted.low), min(max(bootstrap.high, counted.high), most.hter)
    return FloorEstimate(rates, Interval(min(low, rates.hter), max(high, rates.hter))), misfit


# --- in words -------------------------------------------------------------------------------------------------------


def describe_floor(floor: Floor | None, nested_hter: float) -> str:
    """Return one sentence: how much of the nested HTER label noise alone causes, and how much is left to learn.

    Parameters
    ----------
    floor : Floor or None
        The floor, estimated from the logits to which the HTER belongs.
    nested_hter : float
        The model's nested HTER.

    Examples
    --------
    >>> rates, interval = ErrorRates(0.05, 0.01, 2400, 17600), Interval(0.02, 0.04)
    >>> estimate = FloorEstimate(rates, interval)
    >>> describe_floor(Floor(estimate, estimate, rates, 1.0), 0.1123)
    'Of the nested HTER 0.1123, label noise alone causes about 0.030 (two estimates); 0.082 is left to learn.'
    """
    task = f"Of the nested HTER {nested_hter:.4f}"
    if floor is None:
        return (
            f"{task}, the share that label noise alone causes cannot be estimated: this needs at least {LEAST_ROWS} "
            "images of each label and logits of many values."
        )
    named = (("confident learning", floor.confident), ("the mixture", floor.mixture))
    low, high = sorted((estimate.hter for _, estimate in named))
    left = _span(max(nested_hter - high, 0.0), max(nested_hter - low, 0.0))
    beaten = [name for name, estimate in named if estimate.interval.low > nested_hter]
    if beaten:
        return (
            f"{task}, label noise alone cannot cause more, but {' and '.join(beaten)} "
            f"estimate{'s' * (len(beaten) == 1)} more (the two estimates are {_span(low, high)}): the model is too "
            "weak, or the distribution of its logits too unusual, for this estimate."
        )
    if floor.disagree and floor.mixture.hter < floor.confident.hter:
        most = f"at most {floor.ceiling.hter:.3f}"
        at_random = most if floor.mixture.rates == floor.ceiling else f"{low:.3f} ({most})"
        return (
            f"{task}, label noise alone causes {at_random} if labels are wrong at random, independently of the image, "
            f"but {high:.3f} if every label that the model confidently contradicts is wrong: the two estimates "
            f"disagree, and {left} is left to learn."
        )
    if floor.disagree:
        return (
            f"{task}, label noise alone causes {_span(low, high)}: the two estimates disagree, and {left} is left to "
            "learn."
        )
    sentence = f"{task}, label noise alone causes about {_span(low, high)} (two estimates); {left} is left to learn"
    ends = [end for _, estimate in named for end in (estimate.interval.low, estimate.interval.high)]
    if max(ends) - min(ends) > max(nested_hter / 2, APART):
        return f"{sentence}, but this is uncertain: the two 95 % intervals span {_span(min(ends), max(ends))}."
    return f"{sentence}."


def noise_in_short(floor: Floor | None, nested_hter: float) -> str:
    """Return in a few words how much HTER label noise alone causes; nothing where `describe_floor` finds no estimate.

    >>> rates, interval = ErrorRates(0.05, 0.01, 2400, 17600), Interval(0.02, 0.04)
    >>> estimate = FloorEstimate(rates, interval)
    >>> noise_in_short(Floor(estimate, estimate, rates, 1.0), 0.1123)
    'label noise alone causes about 0.030'
    """
    if floor is None or any(each.interval.low > nested_hter for each in (floor.confident, floor.mixture)):
        return ""
    low, high = sorted((floor.confident.hter, floor.mixture.hter))
    return f"label noise alone causes about {_span(low, high)}"


def _span(low: float, high: float) -> str:
    """Return "0.030 to 0.050", or one number where both are the same to three digits."""
    first, last = f"{low:.3f}", f"{high:.3f}"
    return first if first == last else f"{first} to {last}"
