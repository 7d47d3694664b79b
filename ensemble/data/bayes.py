"""The best rates that any rule can have where the joint density of class and image is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STARTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The search for the greatest macro F1 starts from rules that divide each class by these powers of its share."""

STEPS = tuple(0.5**halvings for halvings in range(12))
"""The steps towards a better rule that the search tries, the largest first."""

LEAST_GAIN = 1e-10
"""The search ends where no step increases macro F1 by more than this."""


@dataclass(frozen=True)
class BestRates:
    """The best rates of any rule that predicts one class for each image, in the population.

    Each rate has a rule of its own: no single rule has all three.

    Attributes
    ----------
    error : float
        Least share of images that are predicted as another class than theirs, 1 - accuracy.
    mean_error : float
        Least mean of the class error rates; for two classes the least HTER.
    macro_f1 : float
        Greatest mean of the classes' F1 scores.
    """

    error: float
    mean_error: float
    macro_f1: float


def best_rates(joint: Floats) -> BestRates:
    """Return the best rates where images fall into cells, and a rule sees the cell alone.

    The least error has the rule of the greatest joint probability; the least mean error that of the greatest density
    within the class. For macro F1 the best rule maximises its own gradient, a weighted joint probability minus a charge
    for each predicted image: it is searched by Frank-Wolfe steps (Frank and Wolfe 1956) from several rules. The set of
    randomised rules is convex, so each step is a rule. Macro F1 is not concave: a local maximum is possible in theory.

    Parameters
    ----------
    joint : float64 array (C, cells)
        Probability of each class and cell; every class has a positive share, and all sum to 1.

    Examples
    --------
    >>> best_rates(np.array([[0.5, 0.1], [0.1, 0.3]]))
    BestRates(error=0.2, mean_error=0.20833, macro_f1=0.79167)
    """
    shares = joint.sum(1)
    error = 1 - joint.max(0).sum()
    mean_error = 1 - (joint / shares[:, None]).max(0).sum() / len(joint)
    macro_f1 = max(_climb(joint, joint / shares[:, None] ** power) for power in STARTS)
    return BestRates(*(round(float(rate), 5) for rate in (error, mean_error, macro_f1)))


def _climb(joint: Floats, scores: Floats) -> float:
    """Return the macro F1 at which the search ends that starts from the rule of the greatest score, (C, cells)."""
    shares, cells = joint.sum(1), joint.sum(0)

    def counts_of(scores: Floats) -> tuple[Floats, Floats]:
        """Return the shares of images that are correct, and that are predicted, for each class: arrays (C,)."""
        rule = scores.argmax(0)
        correct = joint[rule, np.arange(joint.shape[1])]
        return tuple(np.bincount(rule, each, len(joint)) for each in (correct, cells))  # type: ignore[return-value]

    def macro_f1(correct: Floats, predicted: Floats) -> float:
        return float((2 * correct / (shares + predicted)).mean())

    correct, predicted = counts_of(scores)
    best = macro_f1(correct, predicted)
    while True:
        size = shares + predicted
        to_correct, to_predicted = counts_of(joint / size[:, None] - np.outer(correct / size**2, cells))
        for step in STEPS:
            new = correct + step * (to_correct - correct), predicted + step * (to_predicted - predicted)
            if macro_f1(*new) > best + LEAST_GAIN:
                (correct, predicted), best = new, macro_f1(*new)
                break
        else:
            return best
