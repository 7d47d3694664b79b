"""Maximum likelihood for two classes with random label noise, on binned logits.

The logits of the rows with given label 0 have the density (1 - fpr) f0 + fpr f1, and those with given label 1 have
(1 - fnr) f1 + fnr f0. f0 and f1 are the densities of the true classes: sinh-arcsinh normal, with location, scale, skew
and tail weight (Jones and Pewsey 2009, Biometrika 96, 761-780). One set of parameters is a float64 array (10,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.decision.rates import Floats, Labels

BINS_A_CLASS = 50
"""The bins are bounded by this many quantiles of each class."""

LEAST_BINS = 20
"""The fewest distinct bins for which densities are fitted; logits with many ties give fewer, and nothing is fitted."""

LEAST_RATE = 1e-4
"""A fitted rate below this is returned as 0: its log-odds has run towards minus infinity."""

PARAMETERS = 10
"""The log-odds of fpr and fnr; then location, log scale, skew and log tail weight of true 0; then those of true 1."""

_SPREAD = np.array([np.inf, np.inf, np.inf, np.inf, 0.5, 0.35, np.inf, np.inf, 0.5, 0.35])
"""Standard deviations of the normal penalty on skew and log tail weight, which keeps small samples from giving extreme
shapes; the other parameters have no penalty."""

STARTS = ((0.01, 0.001), (0.1, 0.01), (0.3, 0.03), (0.01, 0.05), (0.2, 0.1))
"""The pairs (fpr, fnr) from which the search starts; the likelihood has several maxima."""


def in_bins(logits: Floats, labels: Labels) -> tuple[Floats, NDArray[np.int64]]:
    """Return the edges (b - 1,) at the quantiles of both classes, in standardised logits, and the counts (2, b)."""
    x = (logits - np.median(logits)) / max(float(logits.std()), 1e-300)
    levels = np.linspace(0, 1, BINS_A_CLASS + 1)[1:-1]
    edges = np.unique(np.concatenate([np.quantile(x[labels == label], levels) for label in (0, 1)]))
    bin_of = np.searchsorted(edges, x, "right")
    return edges, np.stack([np.bincount(bin_of[labels == label], minlength=edges.size + 1) for label in (0, 1)])


def first_guess(edges: Floats, counts: NDArray[np.int64], rates: tuple[float, float]) -> Floats:
    """Return start parameters (10,) from `rates` (fpr, fnr) and the quartiles of each given label's logits."""
    theta = [float(np.log(rate / (1 - rate))) for rate in rates]
    for row in counts:
        below = np.cumsum(row)[:-1] / row.sum()
        low, middle, high = np.interp([0.25, 0.5, 0.75], below, edges)
        theta += [float(middle), float(np.log((high - low) / 1.35 + 1e-3)), 0.0, 0.0]
    return np.array(theta)


def rates_of(theta: Floats) -> Floats:
    """Return fpr and fnr (..., 2) of parameters (..., 10).

    Exchanging the true classes gives the same distributions with rates 1 - fpr and 1 - fnr; the smaller rates are
    returned.
    """
    from scipy.special import expit

    rates = expit(theta[..., :2])
    rates = np.where(rates.sum(axis=-1, keepdims=True) > 1, 1 - rates, rates)
    return np.asarray(np.where(rates < LEAST_RATE, 0.0, rates))


def bin_shares(theta: Floats, edges: Floats) -> Floats:
    """Return the share of each given label's rows in each bin (..., 2, b), for parameters (..., 10)."""
    return _mixed(theta[..., :2], _true_shares(theta[..., 2:].reshape(*theta.shape[:-1], 2, 4), edges))


def _true_shares(true: Floats, edges: Floats) -> Floats:
    """Return the share of a true class in each bin (..., b), for its parameters (..., 4)."""
    from scipy.special import ndtr

    location, log_scale, skew, log_tail = (true[..., [j]] for j in range(4))
    z = np.exp(log_tail) * np.arcsinh((edges - location) * np.exp(-log_scale)) - skew
    below = ndtr(np.sinh(np.clip(z, -20, 20)))
    ends = np.zeros((*below.shape[:-1], 1))
    return np.diff(np.concatenate([ends, below, ends + 1], axis=-1))


def _mixed(log_odds: Floats, of_true: Floats) -> Floats:
    """Return the share of each given label's rows in each bin (..., 2, b) from those of the true classes."""
    from scipy.special import expit

    mixed = expit(log_odds)[..., None]
    return np.asarray((1 - mixed) * of_true + mixed * of_true[..., ::-1, :])


def nudged_shares(theta: Floats, edges: Floats, step: float) -> Floats:
    """Return `bin_shares` (r, 11, 2, b) of parameters (r, 10), and with each parameter increased by `step`.

    The rates do not change the true classes, and the parameters of one true class do not change the other, so only five
    densities per class are computed.
    """
    rates, true = theta[:, None, :2], theta[:, 2:].reshape(-1, 1, 2, 4)
    nudges = np.concatenate([np.zeros((1, 4)), step * np.eye(4)])[:, None]
    moved = _true_shares(true + nudges, edges)  # (r, 5, 2, b)
    of_true = np.repeat(moved[:, :1], 1 + PARAMETERS, axis=1)
    of_true[:, 3:7, 0], of_true[:, 7:, 1] = moved[:, 1:, 0], moved[:, 1:, 1]
    return _mixed(rates + np.eye(1 + PARAMETERS, 2, -1) * step, of_true)


def fit_mixture(theta: Floats, counts: NDArray[Any], edges: Floats, steps: int = 100) -> tuple[Floats, Floats]:
    """Maximise the penalised multinomial likelihood from r starts at once, by Fisher scoring with Levenberg damping.

    Parameters
    ----------
    theta : float64 array (r, 10)
        The start parameters.
    counts : array (r, 2, b)
        The number of rows of each given label in each bin.
    edges : float64 array (b - 1,)
        Edges of the bins.
    steps : int
        The largest number of iterations.

    Returns
    -------
    float64 arrays (r, 10) and (r,)
        The parameters and their penalised log likelihood.
    """
    n, precision, h = counts.sum(axis=-1, keepdims=True), _SPREAD**-2, 1e-5

    def likelihood(theta: Floats) -> Floats:
        log_shares = np.log(np.maximum(bin_shares(theta, edges), 1e-12))
        return np.asarray((counts * log_shares).sum(axis=(1, 2)) - (theta**2 * precision).sum(axis=1) / 2)

    current, damping = likelihood(theta), np.full(len(theta), 1e-2)
    for step in range(steps):
        shares = np.maximum(nudged_shares(theta, edges, h), 1e-12)  # (r, 11, 2, b), for forward differences
        jacobian, shares = (shares[:, 1:] - shares[:, :1]) / h, shares[:, 0]
        gradient = np.einsum("rpcb,rcb->rp", jacobian, counts / shares) - theta * precision
        scaled = (jacobian * np.sqrt(n / shares)[:, None]).reshape(len(theta), PARAMETERS, -1)
        information = scaled @ scaled.transpose(0, 2, 1) + np.diag(precision)
        ridge = damping[:, None] * (np.diagonal(information, axis1=1, axis2=2) + 1e-3)
        change = np.linalg.solve(information + ridge[..., None] * np.eye(PARAMETERS), gradient[..., None])[..., 0]
        proposed = theta + np.clip(change, -1, 1)
        proposed[:, :2] = np.clip(proposed[:, :2], -12, 12)
        reached = likelihood(proposed)
        better, gain = reached > current, reached - current
        theta, current = np.where(better[:, None], proposed, theta), np.maximum(reached, current)
        damping = np.clip(np.where(better, damping / 5, damping * 8), 1e-7, 1e9)
        if step > 5 and ((np.abs(gain) < 1e-3) | (damping > 1e6)).all():
            break
    return theta, current
