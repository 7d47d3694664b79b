"""Stackers: linear combinations of the members' logits into one logit, in order of increasing flexibility.

Every stacker is Σ weight · logit + bias, so the stacked logit of the mean of fold models is the mean of their stacked
logits. decision/cross_fitting.py chooses the kind that is deployed.
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
    """A linear combination of member logits.

    A fitted stacker returns the log-odds of label 1 at the class shares of the rows that it was fitted on.

    Raises
    ------
    DataError
        The number of weights is not that of the members, or a weight or the bias is not finite.

    Examples
    --------
    >>> Stacker(("a", "b"), (1.0, 0.5), -1.0).apply([[2.0, 4.0], [0.0, 0.0]])
    array([ 3., -1.])
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]  # (m,), one for each member
    bias: float

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.members) or not np.isfinite((*self.weights, self.bias)).all():
            raise DataError(
                "stacker",
                f"needs a finite weight for each of {self.members} and a finite bias; got {self.weights}, {self.bias}",
            )

    def apply(self, logits: ArrayLike) -> Floats:
        """Return the stacked logits (n,) of member logits (n, m).

        The sum runs member by member, not as a matrix product, so a row's value does not depend on the other rows of
        its batch.

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
"""A function from logits (n, m), labels (n,) and the m members' names to a stacker. A function that uses the labels
raises the `DataError` of `check_logits`."""


def mean_of_logits(logits: ArrayLike, labels: ArrayLike, members: tuple[str, ...]) -> Stacker:
    """Return the stacker that takes the unweighted mean; nothing is fitted.

    >>> mean_of_logits([[1.0, 3.0]], [1], ("a", "b")).apply([[1.0, 3.0]])
    array([2.])
    """
    return Stacker(tuple(members), (1 / len(members),) * len(members), 0.0)


def mean_of_calibrated(logits: ArrayLike, labels: ArrayLike, members: tuple[str, ...]) -> Stacker:
    """Return the mean of calibrated logits: one logistic regression per member first turns its logits into log-odds.

    The calibrated logits of a weak member are small, so it has little weight. Unlike `logistic`, this stacker ignores
    the correlation between members (Platt 1999, Probabilistic outputs for support vector machines).
    """
    x, y = check_logits("cannot fit the stacker", logits, labels, ndim=2)
    calibrations = [logistic(column[:, None], y, (name,)) for name, column in zip(members, x.T, strict=True)]
    weights = tuple(calibration.weights[0] / len(members) for calibration in calibrations)
    return Stacker(tuple(members), weights, sum(calibration.bias for calibration in calibrations) / len(members))


def nonnegative_logistic(logits: ArrayLike, labels: ArrayLike, members: tuple[str, ...]) -> Stacker:
    """Return the regression of `logistic` under the constraint that no weight is negative.

    No member is then subtracted from the others (Breiman 1996, Stacked regressions). Where the unconstrained fit has no
    negative weight, it is returned: the penalised likelihood is concave, so it is the constrained optimum too.
    """
    from scipy.optimize import minimize
    from scipy.special import expit, log_expit

    unconstrained = logistic(logits, labels, members)
    if min(unconstrained.weights) >= 0:
        return unconstrained
    x, y = check_logits("cannot fit the stacker", logits, labels, ndim=2)
    z, centre, scale, varies = _standardised(x)
    sign, weight = 2.0 * y - 1, _class_weights(y)

    # The same penalised likelihood as in `logistic`: C = 1 is a penalty of |weights|² / 2, without the bias.
    def loss(theta: Floats) -> tuple[float, Floats]:
        margin = sign * (z @ theta[:-1] + theta[-1])
        grad_margin = -weight * sign * expit(-margin)
        gradient = np.append(grad_margin @ z + theta[:-1], grad_margin.sum())
        return float(-(weight * log_expit(margin)).sum() + theta[:-1] @ theta[:-1] / 2), gradient

    bounds = [*[(0.0, None)] * x.shape[1], (None, None)]
    options = {"maxiter": 500, "ftol": 1e-14, "gtol": 1e-8 * y.size}
    # gtol grows with n, because the gradient is a sum over the rows.
    theta = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return _unscaled(theta[:-1], float(theta[-1]), centre, scale, varies, y, members)


def logistic(logits: ArrayLike, labels: ArrayLike, members: tuple[str, ...]) -> Stacker:
    """Return the L2-regularised logistic regression of the labels on the member logits.

    - The two classes have equal total weight in the likelihood, as they do in HTER. If the true log-odds are not quite
      linear in the members' logits, the fit is then best near the HTER threshold. log(n_pos / n_neg) is added to the
      bias afterwards, so the stacked logit is the log-odds at the class shares of these rows.
    - The columns are standardised first, so the penalty (C = 1) acts equally on every member, whatever the scale of its
      logits, which depends on the training loss. The weights and the bias are then scaled back. The strength of the
      penalty is fixed, not fitted.
    - A constant column has the weight 0.

    The fit is deterministic: the solver is of second order and uses no random numbers.

    Parameters
    ----------
    logits : float64 array (n, m)
        Log-odds of label 1, finite.
    labels : int8 array (n,)
        0 or 1, both present.
    members : tuple of m str
        The names of the columns.

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
    z, centre, scale, varies = _standardised(x)
    model = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-8)
    # If the starting point is the optimum up to rounding, the line search warns that no step improves on it.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Line search of Newton solver", ConvergenceWarning)
        model.fit(z, y, sample_weight=_class_weights(y))
    return _unscaled(model.coef_[0], float(model.intercept_[0]), centre, scale, varies, y, members)


STACKERS: dict[str, FitStacker] = {
    "mean": mean_of_logits,
    "calibrated": mean_of_calibrated,
    "nonnegative": nonnegative_logistic,
    "logistic": logistic,
}
"""The kinds of stacker by name, the simplest first."""


def _standardised(x: Floats) -> tuple[Floats, Floats, Floats, Labels]:
    """Return standardised columns (n, m), their means and scales (m,), and which columns are not constant (m,)."""
    # Not std > 0: rounding of the mean gives a constant column a standard deviation slightly above 0.
    varies = np.ptp(x, axis=0) > 0
    centre, scale = x.mean(axis=0), np.where(varies, x.std(axis=0), 1.0)
    return (x - centre) / scale * varies, centre, scale, varies


def _unscaled(
    coefficients: Floats,
    intercept: float,
    centre: Floats,
    scale: Floats,
    varies: Labels,
    y: Labels,
    members: tuple[str, ...],
) -> Stacker:
    """Return the stacker on the scale of the logits, with log(n_pos / n_neg) added to the bias."""
    weights: Floats = np.where(varies, coefficients / scale, 0.0)
    n_pos = int(np.count_nonzero(y))
    # w · (x - centre) / scale = (w / scale) · x - (w / scale) · centre; the logarithm undoes the class weights.
    bias = intercept - float(weights @ centre) + float(np.log(n_pos / (y.size - n_pos)))
    return Stacker(tuple(members), tuple(weights.tolist()), bias)


def _class_weights(y: Labels) -> Floats:
    """Return row weights (n,) that give both classes a total weight of n / 2."""
    n_pos = int(np.count_nonzero(y))
    return np.where(y == 1, y.size / (2 * n_pos), y.size / (2 * (y.size - n_pos)))
