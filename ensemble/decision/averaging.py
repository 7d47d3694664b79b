"""What averaging the fold models does to the error rates and to the best threshold, read off unlabelled images.

Every OOF logit came from one fold model; a prediction is the mean of k. The stacker is linear, so the stacked logit of
a prediction is the mean of k stacked logits, each of which is distributed like the stacked OOF logits. How often the
label is 1 at each value of a single logit is known from the OOF rows. How often it is 1 at each value of the mean is
what must follow from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from ensemble.config import CORRECTIONS, seed_sequence
from ensemble.decision.intervals import Interval, central
from ensemble.decision.objective import HTER, Objective
from ensemble.decision.rates import ErrorRates, Floats, apply_threshold, check_logits, error_rates
from ensemble.decision.refits import Pair, Replicate, refit_interval
from ensemble.errors import DataError

LEAST_IMAGES = 1000
"""Below this many unlabelled images nothing is read off them."""

LEAST_SPREAD, MOST_MISFIT = 0.1, 0.03
"""Nor where the spread of their means is smaller, as a share of that of the OOF logits, or where the HTER of a single
logit comes out so far, and three standard errors, from that of the OOF rows."""

BINS, PAIRS, CELLS = (50, 200), 100, 500
"""Of a single logit so many bins, at least and at most, that the images' single logits fill each with so many pairs of
it and the mean; cells of the mean. In simulation 50 to 200 bins gave the same gain within 0.0007; 62 pairs a bin, whose
noise passes for sharpness, overstated it by 0.002, and 25 bins did so by being coarse. 200 to 1,000 cells gave the same
within 0.0001."""

COEFFICIENTS, SMOOTHING = 12, 0.03
"""Of the spline, and the weight of its squared second differences. Fewer coefficients, or more smoothing, are biased in
simulation; without smoothing a few thousand rows are followed into their noise."""


@dataclass(frozen=True)
class CorrectedThreshold:
    """A threshold for the mean of the fold models, and the rates to expect at it."""

    correction: str
    threshold: float
    rates: ErrorRates
    share_of_label_0: float  # of the images that it calls 0


@dataclass(frozen=True)
class AveragingEffect:
    """What averaging the fold models does to the error rates of new images, and at which threshold.

    Attributes
    ----------
    chosen : CorrectedThreshold
    candidates : tuple of CorrectedThreshold
        Every correction, `chosen` among them.
    interval : Interval
        95 % interval of the HTER that the rule has.
    new_set_interval : Interval
        Where the HTER measured on these very images falls 95 times in 100.
    """

    chosen: CorrectedThreshold
    candidates: tuple[CorrectedThreshold, ...]
    interval: Interval
    new_set_interval: Interval


class MeanModel:
    """How often the label is 1 at each value of the mean of k logits.

    With y the label, s_j the logit of fold model j and m their mean, it is assumed that the single logits say nothing
    of y that m does not say: P(y = 1 | s_1 … s_k) = g(m). Then E[g(m) | s_j] = P(y = 1 | s_j) at every value of a
    single logit. The expectation on the left is over the unlabelled images, the share on the right is that of the OOF
    rows. logit g is a cubic spline of m, fitted by penalised maximum likelihood (Fisher scoring).

    Parameters
    ----------
    oof_logits : float64 array (n,)
        Stacked logits of the OOF rows, one model each.
    labels : int8 array (n,)
        0 or 1, both present.
    fold_logits : float64 array (n_new, k)
        Stacked logits of unlabelled images, a column a fold model.
    prior : float, optional
        Share of label 0 among the images; that of the OOF rows if None.
    """

    def __init__(self, oof_logits: Floats, labels: ArrayLike, fold_logits: Floats, prior: float | None = None) -> None:
        from scipy.interpolate import BSpline

        y = np.asarray(labels)
        mean = fold_logits.mean(axis=1)
        share = float(np.mean(y == 0))
        self._odds = (1.0, 1.0) if prior is None else (prior / share, (1 - prior) / (1 - share))
        low, high = np.quantile(mean, [0.001, 0.999])
        self.edges = np.linspace(low, high, CELLS - 1)
        lowest, highest = np.quantile(oof_logits, [0.001, 0.999])
        self._bins = int(np.clip(fold_logits.size // PAIRS, *BINS))
        self.single_edges = np.linspace(lowest, highest, self._bins - 1)
        self._oof_bin = np.searchsorted(self.single_edges, oof_logits, "right") * 2 + y
        self._cell = np.searchsorted(self.edges, mean, "right")
        self._pair = np.searchsorted(self.single_edges, fold_logits, "right") * CELLS + self._cell[:, None]
        # the spline bends where the rarer label is not yet rare
        tails = 0.03 * min(1.0, share / (1 - share)), 1 - 0.03 * min(1.0, (1 - share) / share)
        first, last = np.quantile(mean, tails)
        step = max((last - first) / (COEFFICIENTS - 3), 1e-9)
        knots = first + step * np.arange(-3, COEFFICIENTS + 1)
        within = np.clip(np.bincount(self._cell, mean, CELLS) / np.maximum(np.bincount(self._cell, minlength=CELLS), 1),
                         first, first + step * (COEFFICIENTS - 3) * (1 - 1e-12))  # fmt: skip
        self._basis = BSpline.design_matrix(within, knots, 3).toarray()
        bends = np.diff(np.eye(COEFFICIENTS), 2, axis=0)
        self._penalty = SMOOTHING * bends.T @ bends

    def fit(self, rows: Floats, images: Floats, start: Floats | None = None) -> MeanFit:
        """Return g for weights of the OOF rows (n,) and of the images (n_new,), searched from `start`."""
        from scipy.special import expit, logit

        counts = np.bincount(self._oof_bin, rows, 2 * self._bins).reshape(self._bins, 2)
        zeros, ones = counts.T * np.array(self._odds)[:, None]
        k = self._pair.shape[1]
        joint = np.bincount(self._pair.ravel(), np.repeat(images, k), self._bins * CELLS).reshape(self._bins, CELLS)
        singles = joint.sum(axis=1)
        seen = (singles > 0) & (zeros + ones > 0)
        given = joint[seen] / singles[seen][:, None]
        among = np.clip(ones.sum() / (zeros.sum() + ones.sum()), 1e-9, 1 - 1e-9)
        theta = np.full(COEFFICIENTS, logit(among)) if start is None else start
        zeros, ones = zeros[seen], ones[seen]

        def loss(theta: Floats) -> float:
            q = np.clip(given @ expit(self._basis @ theta), 1e-9, 1 - 1e-9)
            return float(theta @ self._penalty @ theta - ones @ np.log(q) - zeros @ np.log1p(-q))

        now = loss(theta)
        for _ in range(100):
            g = expit(self._basis @ theta)
            q = np.clip(given @ g, 1e-9, 1 - 1e-9)
            slope = given @ ((g * (1 - g))[:, None] * self._basis)
            gradient = slope.T @ (ones / q - zeros / (1 - q)) - 2 * self._penalty @ theta
            fisher = (slope.T * ((zeros + ones) / (q * (1 - q)))) @ slope + 2 * self._penalty
            step = np.linalg.solve(fisher + 1e-9 * np.eye(COEFFICIENTS), gradient)
            length = 1.0
            while (moved := loss(theta + length * step)) > now and length > 1e-6:
                length /= 2
            if moved > now:
                break
            theta, gained, now = theta + length * step, now - moved, moved
            if gained < 1e-6:
                break
        share = np.asarray(expit(self._basis @ theta))
        every = np.full(self._bins, 0.5)
        every[seen] = given @ share
        return MeanFit(
            theta,
            self.edges,
            share,
            np.asarray(np.bincount(self._cell, images, CELLS), np.float64),
            self.single_edges,
            every,
            singles,
        )


@dataclass(frozen=True, eq=False)
class MeanFit:
    """The share of label 1 in each cell of the mean (c,) and each bin of a single logit (b,), and their masses."""

    coefficients: Floats
    edges: Floats
    share: Floats
    mass: Floats
    single_edges: Floats
    single_share: Floats
    single_mass: Floats

    @cached_property
    def _curve(self) -> tuple[Floats, Floats]:
        return _rates_at_edges(self.share, self.mass)

    @cached_property
    def _single_curve(self) -> tuple[Floats, Floats]:
        return _rates_at_edges(self.single_share, self.single_mass)

    def of_mean(self, threshold: float) -> Pair:
        """Return FPR and FNR of the mean at a threshold."""
        return _at(threshold, self.edges, self._curve)

    def of_single(self, threshold: float) -> Pair:
        """Return FPR and FNR of a single logit at a threshold."""
        return _at(threshold, self.single_edges, self._single_curve)

    def best(self, objective: Objective) -> float:
        """Return the threshold of the mean that is best by this fit; of equals, the lowest."""
        fpr, fnr = self._curve
        cost = np.array(objective.loss(fpr, fnr))
        cost[~objective.admits(fpr, fnr)] = np.inf
        at = int(np.argmin(cost))
        if not np.isfinite(cost[at]):
            return float(self.edges[objective.strictest_cut])
        if not 0 < at < cost.size - 1 or not np.isfinite(cost[at - 1 : at + 2]).all():
            return float(self.edges[at])
        before, here, after = cost[at - 1 : at + 2]  # the parabola through three edges
        bend = before - 2 * here + after
        shift = 0.0 if bend <= 0 else 0.5 * (before - after) / bend
        return float(self.edges[at] + np.clip(shift, -1, 1) * (self.edges[1] - self.edges[0]))


def _rates_at_edges(share: Floats, mass: Floats) -> tuple[Floats, Floats]:
    zeros, ones = np.cumsum((1 - share) * mass), np.cumsum(share * mass)
    return 1 - zeros[:-1] / max(zeros[-1], 1e-12), ones[:-1] / max(ones[-1], 1e-12)


def _at(threshold: float, edges: Floats, curve: tuple[Floats, Floats]) -> Pair:
    beyond = threshold < edges[0], threshold > edges[-1]
    if any(beyond):  # what lies beyond the outermost edges is a thousandth
        return (1.0, 0.0) if beyond[0] else (0.0, 1.0)
    return float(np.interp(threshold, edges, curve[0])), float(np.interp(threshold, edges, curve[1]))


def corrected_threshold(correction: str, threshold: float, fit: MeanFit, objective: Objective = HTER) -> float:
    """Return the threshold of the mean that corresponds to `threshold` of a single logit.

    Parameters
    ----------
    correction : {"posterior", "none"}
        "posterior" is the best threshold by g, the share of label 1 at each value of the mean; it does not use
        `threshold`. "none" keeps the threshold.
    threshold : float
        Of a single stacked logit.
    fit : MeanFit
    objective : Objective
        What "posterior" is best for.
    """
    return fit.best(objective) if correction == "posterior" else threshold


def averaging_effect(
    oof_logits: ArrayLike,
    labels: ArrayLike,
    fold_logits: ArrayLike,
    threshold: float,
    nested: ErrorRates,
    replicates: Iterable[Replicate],
    correction: str = CORRECTIONS[0],
    objective: Objective = HTER,
    prior: float | None = None,
    seed: int = 0,
) -> AveragingEffect | None:
    """Return what to expect of the labels ``fold_logits.mean(axis=1) >= corrected threshold``.

    The nested rates are those of single fold models; what the mean at the corrected threshold gains on a single logit
    at its own is read off a `MeanModel`, the same for both, and added. Each bootstrap replicate draws OOF rows and
    images anew, fits the threshold, g and the correction, and
    is compared with what our g and our rows say of the thresholds that it found. What the gains of the replicates miss
    by on average, ours is taken to miss by too (it is read off a fitted curve, at the best point of it); the interval
    has their spread.

    Parameters
    ----------
    oof_logits : float64 array (n,)
        Stacked logits of the OOF rows, one model each.
    labels : int8 array (n,)
        0 or 1, both present.
    fold_logits : float64 array (n_new, k)
        Stacked logits of unlabelled images, a column a fold model.
    threshold : float
        Of a single stacked logit.
    nested : ErrorRates
        Of the rule on the OOF rows.
    replicates : iterable of Replicate
        Of the rule on the OOF rows (decision/refits.py).
    correction : str
        See `corrected_threshold`.
    objective : Objective
        What the threshold is best for.
    prior : float, optional
        Share of label 0 among the images; that of the OOF rows if None.
    seed : int
        Of the draws of images.

    Returns
    -------
    Foreseen or None
        None where nothing can be read off the images: fewer than `LEAST_IMAGES`; means that hardly differ; or a g that
        does not give the error rates of a single logit, within `MOST_MISFIT`, as when fold models do not agree on what
        the images show. The counts in the rates are those of `nested`.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.
    """
    x, y = check_logits("cannot measure the effect of averaging", oof_logits, labels)
    s = np.asarray(fold_logits, np.float64)
    if s.ndim != 2 or not np.isfinite(s).all():
        raise DataError("cannot measure the effect of averaging", f"needs finite logits (n, k); got shape {s.shape}")
    mean = s.mean(axis=1)
    if len(s) < LEAST_IMAGES or mean.std() < LEAST_SPREAD * x.std():
        return None
    model = MeanModel(x, y, s, prior)
    fit = model.fit(np.ones(x.size), np.ones(len(s)))
    single = error_rates(y, apply_threshold(x, threshold))
    error = np.sqrt(single.fpr * (1 - single.fpr) / single.n_neg + single.fnr * (1 - single.fnr) / single.n_pos) / 2
    if abs(sum(fit.of_single(threshold)) / 2 - single.hter) > MOST_MISFIT + 3 * error:
        return None

    def gain(of: MeanFit, single: float, averaged: float) -> Floats:
        return np.subtract(of.of_mean(averaged), of.of_single(single))

    rng = np.random.default_rng(seed_sequence(seed, "averaging"))
    errors: list[Pair] = []
    missed: dict[str, list[Floats]] = {name: [] for name in CORRECTIONS}
    for replicate in replicates:
        images = np.bincount(rng.integers(0, len(s), len(s)), minlength=len(s)).astype(np.float64)
        anew = model.fit(replicate.weights, images, fit.coefficients)
        for name in CORRECTIONS:
            moved = corrected_threshold(name, replicate.threshold, anew, objective)
            missed[name].append(gain(anew, replicate.threshold, moved) - gain(fit, replicate.threshold, moved))
        wrong = missed[correction][-1]
        errors.append((replicate.errors[0] + wrong[0], replicate.errors[1] + wrong[1]))

    def at(name: str) -> CorrectedThreshold:
        moved = corrected_threshold(name, threshold, fit, objective)
        expected = np.array([nested.fpr, nested.fnr]) + gain(fit, threshold, moved) - np.mean(missed[name], axis=0)
        fpr, fnr = np.clip(expected, 0, 1).tolist()
        return CorrectedThreshold(
            name, moved, ErrorRates(fpr, fnr, nested.n_neg, nested.n_pos), float(np.mean(mean < moved))
        )

    candidates = tuple(map(at, CORRECTIONS))
    chosen = candidates[CORRECTIONS.index(correction)]
    rates = chosen.rates
    interval = refit_interval((rates.fpr, rates.fnr), errors)
    share = nested.n_neg / nested.n if prior is None else prior
    n_neg = min(max(round(len(s) * share), 1), len(s) - 1)
    spread = np.array(errors) - np.mean(errors, axis=0)
    true = np.clip(np.array([rates.fpr, rates.fnr]) - spread, 0, 1)
    measured = rng.binomial([n_neg, len(s) - n_neg], true) / [n_neg, len(s) - n_neg]
    return AveragingEffect(chosen, candidates, interval, central(measured.sum(axis=1) / 2))
