"""How much HTER wrong labels alone cause at most, if labels are wrong at random.

An oracle that knows the true classes still disagrees with the given labels, at these rates:

    FPR = P(true = 1 | given = 0),   FNR = P(true = 0 | given = 1),   floor = their mean.

Logits alone cannot distinguish a wrong label from an image that looks like the other class, so any figure rests on an
assumption about wrong labels. Here it is that a label is wrong independently of the image, given the true class. If
labels that one half of the ensemble confidently contradicts were wrong in this way, the other half would see the other
class in these images as clearly as in any. How often it does is counted, and bounds the floor from above.

Labels that are wrong because an image is difficult are not bounded: they look like the model's own errors. And the
floor is no strict lower bound: a model that learns such noise can reach a lower HTER than the oracle.

For more than two classes there is no such bound, but an estimate by confident learning (`class_noise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.decision.class_intervals import class_counting_intervals
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ClassRates, ErrorRates, Floats, Labels, check_logits

LEAST_ROWS = 100
"""The smallest number of rows of each class for which the floor is bounded."""

CONFIDENT = (0.7, 0.5, 0.4, 0.3)
"""The shares of a class that half of the ensemble is confident of: those with the highest logits."""

TAILS = (0.7, 0.5, 0.4, 0.3, 0.2, 0.1)
"""The shares of these that the other half is confident of as well."""

LEVEL = 0.05 / (2 * 2 * len(CONFIDENT) * len(TAILS))
"""The error probability of one confidence bound: 5 % for all of them together (two classes, two shares each)."""


@dataclass(frozen=True)
class NoiseBound:
    """95 % upper bounds on the error rates that labels which are wrong at random cause alone.

    Attributes
    ----------
    rates : ErrorRates
    by_halves : bool
        Whether two halves of the ensemble were compared; a single member is compared with itself.
    """

    rates: ErrorRates
    by_halves: bool


def bound_noise(half_a: ArrayLike, half_b: ArrayLike | None, labels: ArrayLike) -> NoiseBound | None:
    """Return a 95 % upper bound on the oracle's error rates if labels are wrong at random.

    Let the given label depend on the true class alone. A share fpr of the rows with given label 0 has true class 1, and
    a share P(S | true 1) of those lies in a set S of logits. Hence P(S | given 0) >= fpr P(S | true 1). Likewise
    P(S | given 1) = (1 - fnr) P(S | true 1) + fnr P(S | true 0). If fpr + fnr <= 1, together

        fpr / (1 - fnr) <= P(S | given 0) / P(S | given 1)   for every S,

    and the same with the classes exchanged. S are the rows of which both halves are confident (`CONFIDENT`, `TAILS`).
    Each share is replaced by its exact (Clopper-Pearson) bound, at a level that gives 5 % for all of them together. The
    two bounds are solved for fpr and fnr. The bound holds for any model and any distributions, but only if the noise
    does not depend on the image.

    Parameters
    ----------
    half_a, half_b : float64 array (n,)
        Out-of-fold scores of two halves of the members, finite; higher means label 1. For a single member, `half_b` is
        None.
    labels : int8 array (n,)
        As given: 0 or 1, both present.

    Returns
    -------
    NoiseBound or None
        None if a class has fewer than `LEAST_ROWS` rows.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.

    References
    ----------
    Scott, Blanchard and Handy (2013), Classification with Asymmetric Label Noise, COLT, section 3.

    Examples
    --------
    >>> scores = np.linspace(-4.0, 4.0, 2000)
    >>> bound_noise(scores, None, scores > 0).rates.hter < 0.02
    True
    """
    a, y = check_logits("cannot bound the label noise", half_a, labels)
    b = a if half_b is None else check_logits("cannot bound the label noise", half_b, y)[0]
    n_pos = int(np.count_nonzero(y))
    if min(n_pos, y.size - n_pos) < LEAST_ROWS:
        return None
    of_0, of_1 = (_largest_ratio(sign * a, sign * b, y == given) for given, sign in ((0, 1), (1, -1)))
    rest = 1 - of_0 * of_1
    fpr, fnr = (of_0 * (1 - of_1) / rest, of_1 * (1 - of_0) / rest) if rest > 0 else (0.5, 0.5)
    return NoiseBound(ErrorRates(fpr, fnr, y.size - n_pos, n_pos), half_b is not None)


def _largest_ratio(a: Floats, b: Floats, same: Labels) -> float:
    """Return the upper bound on fpr / (1 - fnr), from scores that are high for the other class than that of `same`."""
    from scipy.special import betaincinv

    other, n, n_other = ~same, int(np.count_nonzero(same)), int(np.count_nonzero(~same))
    bound = 1.0
    for share in CONFIDENT:
        confident = a >= np.quantile(a[other], 1 - share)
        for tail in TAILS:
            both = confident & (b >= np.quantile(b[confident & other], 1 - tail))
            count, of_other = int(np.count_nonzero(both & same)), int(np.count_nonzero(both & other))
            most = betaincinv(count + 1, n - count, 1 - LEVEL) if count < n else 1.0
            least = betaincinv(of_other, n_other - of_other + 1, LEVEL)
            bound = min(bound, float(most / least))
    return bound


def describe_noise(noise: NoiseBound | None, nested_hter: float) -> str:
    """Return in one or two sentences how much of the nested HTER random label noise causes at most.

    Parameters
    ----------
    noise : NoiseBound or None
    nested_hter : float
        The model's nested HTER.

    Examples
    --------
    >>> describe_noise(None, 0.1)
    'How much of the nested HTER 0.1000 wrong labels cause is not known: this needs 100 images of each label.'
    """
    if noise is None:
        return (
            f"How much of the nested HTER {nested_hter:.4f} wrong labels cause is not known: this needs {LEAST_ROWS} "
            "images of each label."
        )
    whose = "one half of the members" if noise.by_halves else "the member"
    return (
        f"Of the nested HTER {nested_hter:.4f}, labels that are wrong at random cause at most {noise.rates.hter:.4f} "
        f"(95 %): with more of them, {whose} would see the other class more often where the label is "
        "contradicted with confidence. The rest is error of the model, or comes from labels that are wrong because the "
        "image is difficult."
    )


@dataclass(frozen=True)
class ClassNoise:
    """An estimate of the error rates that wrong labels cause alone, by confident learning.

    Attributes
    ----------
    rates : ClassRates
        The confident joint as a confusion matrix: counts [given label][confidently predicted class]. Its error rates
        are, for each given label, the share of the counted rows of which the model is confident that they are of
        another class.
    """

    rates: ClassRates

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the mean of these shares. It covers the sampling of the rows alone."""
        return class_counting_intervals(self.rates)[1]


def class_noise(joint: NDArray[np.int64]) -> ClassNoise | None:
    """Return the estimate from the confident joint (C, C) of `label_issues.confident_joint`.

    Returns
    -------
    ClassNoise or None
        None if no row of a class is counted.

    Examples
    --------
    >>> class_noise(np.array([[90, 0, 10], [0, 50, 0], [5, 0, 45]])).rates.errors
    (0.1, 0.0, 0.1)
    """
    return ClassNoise(ClassRates(tuple(map(tuple, joint.tolist())))) if joint.sum(axis=1).all() else None


def describe_class_noise(noise: ClassNoise | None, nested_mean_error: float, names: Sequence[str] | None = None) -> str:
    """Return in a sentence how much of the nested mean error wrong labels seem to cause, and what this assumes.

    Parameters
    ----------
    noise : ClassNoise or None
    nested_mean_error : float
        The model's nested mean of the class error rates.
    names : sequence of C str, optional
        The names of the classes; by default their indices.

    Examples
    --------
    >>> noise = class_noise(np.array([[90, 0, 10], [0, 50, 0], [5, 0, 45]]))
    >>> describe_class_noise(noise, 0.12)[:74]
    'Beside the nested class error 0.1200, the labels that confident prediction'
    """
    if noise is None:
        return (
            f"How much of the nested class error {nested_mean_error:.4f} wrong labels cause is not known: of a class, "
            "no image is predicted with confidence."
        )
    errors, interval = noise.rates.errors, noise.interval
    most = int(np.argmax(errors))
    return (
        f"Beside the nested class error {nested_mean_error:.4f}, the labels that confident predictions contradict have "
        f"the mean share {noise.rates.mean_error:.4f} (95 %: {interval.low:.4f} to {interval.high:.4f}; most for label "
        f"{most if names is None else names[most]}, {errors[most]:.4f}), which is what wrong labels alone cause if "
        "every confident prediction is right and a label is wrong independently of the image, given its class; "
        "confident errors of the model count as wrong labels, so this is no bound."
    )


def noise_in_short(noise: NoiseBound | ClassNoise | None) -> str:
    """Return `describe_noise`, or `describe_class_noise`, in a clause; nothing where it is not known."""
    if isinstance(noise, ClassNoise):
        return f"labels that are confidently contradicted make up {noise.rates.mean_error:.3f}"
    return "" if noise is None else f"labels wrong at random cause at most {noise.rates.hter:.3f}"
