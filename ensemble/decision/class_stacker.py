"""Stackers of more than two classes: one weight for each member and one bias for each class.

The stacked logit of a class is Σ weight · logit of the class + bias of the class. With the logits 0 and z of two
classes, the fits are those of stacker.py: the stacked logits differ by the log-odds of label 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ensemble.decision.rates import Floats, Labels, class_indices, refuse_absent
from ensemble.errors import DataError


@dataclass(frozen=True)
class ClassStacker:
    """A linear combination of member logits for each class.

    The softmax of what a fitted stacker returns is the probability of each class at the class shares of the rows that
    it was fitted on.

    Raises
    ------
    DataError
        The number of weights is not that of the members, or a weight or a bias is not finite.

    Examples
    --------
    >>> ClassStacker(("a", "b"), (1.0, 0.5), (0.0, -1.0, 0.0)).apply([[[2.0, 4.0, 0.0], [0.0, 2.0, 4.0]]])
    array([[2., 4., 2.]])
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]  # (m,), one for each member
    biases: tuple[float, ...]  # (C,), one for each class; the first of a fitted stacker is 0

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.members) or not np.isfinite((*self.weights, *self.biases)).all():
            raise DataError(
                "stacker",
                f"needs a finite weight for each of {self.members} and finite biases; got {self.weights}, "
                f"{self.biases}",
            )

    def apply(self, logits: ArrayLike) -> Floats:
        """Return the stacked logits (n, C) of member logits (n, m, C).

        The sum runs member by member, so a row's values do not depend on the other rows of its batch.

        Raises
        ------
        DataError
            The shape is not (n, m, C).
        """
        x = np.asarray(logits, np.float64)
        expected = len(self.members), len(self.biases)
        if x.ndim != 3 or x.shape[1:] != expected:
            raise DataError("stacker", f"needs logits of shape (n, {expected[0]}, {expected[1]}); got {x.shape}")
        stacked = np.tile(np.asarray(self.biases, np.float64), (len(x), 1))
        for weight, column in zip(self.weights, np.moveaxis(x, 1, 0), strict=True):
            stacked += weight * column
        return stacked


FitClassStacker: TypeAlias = Callable[[ArrayLike, ArrayLike, tuple[str, ...]], ClassStacker]
"""A function from logits (n, m, C), labels (n,) and the m members' names to a stacker."""


def mean_of_logits(logits: ArrayLike, labels: ArrayLike, members: tuple[str, ...]) -> ClassStacker:
    """Return the stacker that takes the unweighted mean; nothing is fitted.

    >>> logits = [[[1.0, 3.0, 0.0], [3.0, 3.0, 1.0]]]
    >>> mean_of_logits(logits, [1], ("a", "b")).apply(logits)
    array([[2. , 3. , 0.5]])
    """
    classes = np.shape(logits)[2]
    return ClassStacker(tuple(members), (1 / len(members),) * len(members), (0.0,) * classes)


def mean_of_calibrated(logits: ArrayLike, labels: ArrayLike, members: tuple[str, ...]) -> ClassStacker:
    """Return the mean of calibrated logits: one regression of each member alone first calibrates its logits.

    The calibrated logits of a weak member are small, so it has little weight. Unlike `logistic`, this stacker ignores
    the correlation between members. The calibration has one weight and a bias for each class (Guo et al. 2017, On
    calibration of modern neural networks, between temperature and vector scaling).
    """
    x, y = _checked(logits, labels)
    fits = [logistic(x[:, [j]], y, (name,)) for j, name in enumerate(members)]
    weights = tuple(fit.weights[0] / len(members) for fit in fits)
    return ClassStacker(tuple(members), weights, tuple(np.mean([fit.biases for fit in fits], axis=0).tolist()))


def nonnegative_logistic(logits: ArrayLike, labels: ArrayLike, members: tuple[str, ...]) -> ClassStacker:
    """Return the regression of `logistic` under the constraint that no weight is negative.

    No member is then subtracted from the others (Breiman 1996, Stacked regressions).
    """
    unconstrained = logistic(logits, labels, members)
    if min(unconstrained.weights) >= 0:
        return unconstrained
    return _regression(*_checked(logits, labels), members, lowest=0.0)


def logistic(logits: ArrayLike, labels: ArrayLike, members: tuple[str, ...]) -> ClassStacker:
    """Return the L2-regularised multinomial logistic regression of the labels on the member logits.

    As in the regression of two classes (`stacker.logistic`), the classes have equal total weight in the likelihood, the
    penalty (C = 1) acts on the weights of standardised logits but not on the biases, and the logarithms of the class
    shares are added to the biases afterwards. The scale of a member is the square root of the mean variance of the
    difference of two of its logits; of two classes, it is the standard deviation of the log-odds. A member without
    spread has the weight 0.

    Parameters
    ----------
    logits : float64 array (n, m, C)
        Finite.
    labels : int8 array (n,)
        0 to C - 1, all present.
    members : tuple of m str
        The names of the members.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.
    """
    return _regression(*_checked(logits, labels), members, lowest=None)


CLASS_STACKERS: dict[str, FitClassStacker] = {
    "mean": mean_of_logits,
    "calibrated": mean_of_calibrated,
    "nonnegative": nonnegative_logistic,
    "logistic": logistic,
}
"""The kinds of stacker by name, as in `stacker.STACKERS`."""


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[Floats, Labels]:
    task, x = "cannot fit the stacker", np.asarray(logits, np.float64)
    if x.ndim != 3 or len(x) != np.size(labels):
        raise DataError(task, f"needs logits (n, members, classes) for {np.size(labels)} labels; got shape {x.shape}")
    y = class_indices(task, "labels", labels, x.shape[2])
    refuse_absent(task, y, x.shape[2])
    if not np.isfinite(x).all():
        raise DataError(
            task, f"logits must be finite; got {np.count_nonzero(~np.isfinite(x))} of {x.size} that are not"
        )
    return x, y


def _regression(x: Floats, y: Labels, members: tuple[str, ...], lowest: float | None) -> ClassStacker:
    """Fit the regression of `logistic`, with weights of at least `lowest`."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    n, m, classes = x.shape
    # A constant added to all logits of a row changes no probability: rows are centred first, then classes.
    z = x - x.mean(axis=2, keepdims=True)
    varies = np.ptp(z, axis=0).max(axis=1) > 1e-12 * np.abs(x).max(axis=(0, 2), initial=1.0)
    centre = z.mean(axis=0)  # (m, C)
    scale = np.where(varies, np.sqrt(2 * z.var(axis=0).sum(axis=1) / (classes - 1)), 1.0)
    z = np.ascontiguousarray(np.moveaxis((z - centre) / scale[:, None] * varies[:, None], 1, 0))  # (m, n, C)
    counts = np.bincount(y, minlength=classes)
    row_weight = n / (classes * counts[y])
    rows = np.arange(n)

    def loss(theta: Floats) -> tuple[float, Floats]:
        weights, biases = theta[:m], theta[m:]
        log_p = log_softmax(np.tensordot(weights, z, 1) + biases, axis=1)
        pull = np.exp(log_p)
        pull[rows, y] -= 1
        pull *= row_weight[:, None]  # the gradient in the stacked logits (n, C)
        gradient = np.concatenate((np.tensordot(z, pull, 2) + weights, pull.sum(axis=0)))
        return float(weights @ weights / 2 - row_weight @ log_p[rows, y]), gradient

    bounds = [(lowest, None)] * m + [(None, None)] * classes
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-15, "gtol": 1e-8 * n}
    # gtol grows with n, because the gradient is a sum over the rows.
    theta = minimize(loss, np.zeros(m + classes), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    weights = np.where(varies, theta[:m] / scale, 0.0)
    biases = theta[m:] - weights @ centre + np.log(counts / n)  # the logarithm undoes the class weights
    return ClassStacker(tuple(members), tuple(weights.tolist()), tuple((biases - biases[0]).tolist()))
