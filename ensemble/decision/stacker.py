"""Member logits to one logit: the stackers, from the simplest to the freest.

All of them are linear, Σ weight · logit + bias, so that the stacked logit of a mean of fold models is the mean of their
stacked logits. Which of them is deployed is chosen in decision/cross_fitting.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ensemble.decision.rates import Floats, Labels, check_logits
from ensemble.errors import DataError


@dataclass(frozen=True)
class Stacker:
    """A linear combination of member logits: log-odds of label 1 at the class share of the rows that it was fitted on.

    >>> Stacker(("a", "b"), (1.0, 0.5), -1.0).apply([[2.0, 4.0], [0.0, 0.0]])
    array([ 3., -1.])
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]  # (m,), one a member
    bias: float

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.members) or not np.isfinite((*self.weights, self.bias)).all():
            raise DataError(
                "stacker",
                f"needs a finite weight for each of {self.members} and a finite bias; got {self.weights}, {self.bias}",
            )

    def apply(self, logits: ArrayLike) -> Floats:
        """Return the stacked logit (n,) of member logits (n, m).

        Summed member by member, so that a row's value does not depend on the batch that it came in.

        Raises
        ------
        DataError
            The shape is not (n, m).
        """
        x = np.asarray(logits, np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.members):
            raise DataError("stacker", f"needs logits of shape (n, {len(self.members)}); got {x.shape}")
        stacked = np.full(len(x), self.bias)
        for weight, column in zip(self.weights, x.T, strict=True):
            stacked += weight * column
        return stacked


FitStacker: TypeAlias = Callable[[ArrayLike, ArrayLike, tuple[str, ...]], Stacker]
"""Logits (n, m), labels (n,) and the members' names in; the stacker out. Those that fit raise what `checked` raises."""


def mean_of_logits(logits: ArrayLike, labels: ArrayLike, members: tuple[str, ...]) -> Stacker:
    """Return the unweighted mean; nothing is fitted.

    >>> mean_of_logits([[1.0, 3.0]], [1], ("a", "b")).apply([[1.0, 3.0]])
    array([2.])
    """
    return Stacker(tuple(members), (1 / len(members),) * len(members), 0.0)


def mean_of_calibrated(logits: ArrayLike, labels: ArrayLike, members: tuple[str, ...]) -> Stacker:
    """Return the mean of the members' logits, each brought to log-odds first by a logistic regression of its own.

    A weak member's calibrated logits are small, so that it weighs little; but unlike `logistic`, this does not see what
    the members have in common (Platt 1999, Probabilistic outputs for support vector machines).
    """
    x, y = check_logits("cannot fit the stacker", logits, labels, ndim=2)
    own = [logistic(column[:, None], y, (name,)) for name, column in zip(members, x.T, strict=True)]
    weights = tuple(stacker.weights[0] / len(members) for stacker in own)
    return Stacker(tuple(members), weights, sum(stacker.bias for stacker in own) / len(members))


def nonnegative_logistic(logits: ArrayLike, labels: ArrayLike, members: tuple[str, ...]) -> Stacker:
    """Return `logistic` with no weight below zero: no member is subtracted (Breiman 1996, Stacked regressions).

    Where the free fit has no weight below zero, it is that fit, since the likelihood is concave.
    """
    from scipy.optimize import minimize
    from scipy.special import expit, log_expit

    free = logistic(logits, labels, members)
    if min(free.weights) >= 0:
        return free
    x, y = check_logits("cannot fit the stacker", logits, labels, ndim=2)
    z, centre, scale, spread = _standardised(x)
    sign, weight = 2.0 * y - 1, _class_weights(y)

    def loss(theta: Floats) -> tuple[float, Floats]:
        margin = sign * (z @ theta[:-1] + theta[-1])
        slope = -weight * sign * expit(-margin)
        gradient = np.append(slope @ z + theta[:-1], slope.sum())
        return float(-(weight * log_expit(margin)).sum() + theta[:-1] @ theta[:-1] / 2), gradient

    bounds = [*[(0.0, None)] * x.shape[1], (None, None)]
    options = {"maxiter": 500, "ftol": 1e-14, "gtol": 1e-8 * y.size}
    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return _unscaled(found[:-1], float(found[-1]), centre, scale, spread, y, members)


def logistic(logits: ArrayLike, labels: ArrayLike, members: tuple[str, ...]) -> Stacker:
    """Return the L2-regularised logistic regression of the labels on the member logits.

    - The classes weigh the same in the likelihood, as they do in HTER. Where the members' logits are not quite linear
      in the true log-odds, the fit is then best where the HTER cut lies. log(n_pos / n_neg) is put back into the bias
      afterwards, so that the stacked logit keeps its meaning: log-odds at the class share of these rows.
    - The inputs are standardised first, so that the penalty (C = 1) presses on every member alike, whatever the scale
      of its logits (focal loss changes it at will); the scaling is folded back into weights and bias. The penalty is
      fixed, so that nothing about it is fitted.
    - A column without spread gets the weight 0.

    Deterministic: second-order solver, no random numbers.

    Parameters
    ----------
    logits : float64 array (n, m)
        Log-odds of label 1, finite.
    labels : int8 array (n,)
        0 or 1, both present.
    members : tuple of m str
        Names of the columns.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.

    Examples
    --------
    >>> stacker = logistic([[-1.0, 7.0], [0.5, 7.0], [-0.5, 7.0], [1.0, 7.0]], [0, 0, 1, 1], ("a", "b"))
    >>> stacker.weights[0] > 0, stacker.weights[1]
    (True, 0.0)
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x, y = check_logits("cannot fit the stacker", logits, labels, ndim=2)
    z, centre, scale, spread = _standardised(x)
    model = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-8)
    with warnings.catch_warnings():  # where the start is the optimum to rounding, no step is better, and none needed
        warnings.filterwarnings("ignore", "Line search of Newton solver", ConvergenceWarning)
        model.fit(z, y, sample_weight=_class_weights(y))
    return _unscaled(model.coef_[0], float(model.intercept_[0]), centre, scale, spread, y, members)


STACKERS: dict[str, FitStacker] = {
    "mean": mean_of_logits,
    "calibrated": mean_of_calibrated,
    "nonnegative": nonnegative_logistic,
    "logistic": logistic,
}
"""By name, the simplest first."""


def _standardised(x: Floats) -> tuple[Floats, Floats, Floats, Labels]:
    spread = np.ptp(x, axis=0) > 0
    centre, scale = x.mean(axis=0), np.where(spread, x.std(axis=0), 1.0)
    return (x - centre) / scale * spread, centre, scale, spread


def _unscaled(
    coefficients: Floats,
    intercept: float,
    centre: Floats,
    scale: Floats,
    spread: Labels,
    y: Labels,
    members: tuple[str, ...],
) -> Stacker:
    weights: Floats = np.where(spread, coefficients / scale, 0.0)
    n_pos = int(np.count_nonzero(y))
    bias = intercept - float(weights @ centre) + float(np.log(n_pos / (y.size - n_pos)))
    return Stacker(tuple(members), tuple(weights.tolist()), bias)


def _class_weights(y: Labels) -> Floats:
    n_pos = int(np.count_nonzero(y))
    return np.where(y == 1, y.size / (2 * n_pos), y.size / (2 * (y.size - n_pos)))
