"""How averaging the fold models changes the error rates and the best threshold, estimated on unlabelled images.

Every OOF logit came from one fold model; a prediction is the mean over k fold models. The stacker is linear, so the
stacked logit of a prediction is the mean of k stacked logits, each of which is distributed like the stacked OOF logits.
The OOF rows give P(y = 1 | single logit). `MeanModel` derives P(y = 1 | mean logit) from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from ensemble.config import seed_sequence
from ensemble.decision.intervals import Interval, measured_interval
from ensemble.decision.objective import HTER, Objective
from ensemble.decision.rates import ErrorRates, Floats, apply_threshold, check_logits, error_rates
from ensemble.decision.refits import Pair, Replicate, refit_interval
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import DataError
from ensemble.predict_config import CORRECTIONS

LEAST_IMAGES = 1000
"""The smallest number of unlabelled images on which the effect of averaging is estimated."""

LEAST_SPREAD, MOST_MISFIT = 0.1, 0.03
"""No effect is estimated if std(mean logits) < `LEAST_SPREAD` · std(OOF logits), or if the HTER that a `MeanFit` gives
for a single fold model differs from the HTER on the OOF rows by more than `MOST_MISFIT` plus three standard errors."""

BINS, PAIRS, CELLS = (50, 200), 100, 500
"""The range of the number of bins of a single logit, the pairs (single logit, mean logit) per bin that set the number
within this range, and the number of cells of the mean logit. In simulation 50 to 200 bins gave the same gain within
0.0007. With 62 pairs a bin, noise was mistaken for information and overstated the gain by 0.002; so did 25 bins, which
are too coarse. 200 to 1,000 cells gave the same gain within 0.0001."""

COEFFICIENTS, SMOOTHING = 12, 0.03
"""The number of coefficients of the spline, and the weight of the penalty on their squared second differences. In
simulation fewer coefficients or more smoothing gave a bias; without smoothing the spline follows the noise of a few
thousand rows."""


@dataclass(frozen=True)
class CorrectedThreshold:
    """A threshold for the mean of the fold models, and the expected error rates at it."""

    correction: str
    threshold: float
    rates: ErrorRates
    share_of_label_0: float  # the share of the images that it predicts as 0


@dataclass(frozen=True)
class AveragingEffect:
    """The effect of averaging the fold models on the error rates of new images.

    Attributes
    ----------
    chosen : CorrectedThreshold
    candidates : tuple of CorrectedThreshold
        Every correction, `chosen` among them.
    interval : Interval
        95 % interval of the rule's HTER.
    new_set_interval : Interval
        95 % interval of the HTER measured on these images: it also includes their sampling error.
    """

    chosen: CorrectedThreshold
    candidates: tuple[CorrectedThreshold, ...]
    interval: Interval
    new_set_interval: Interval


class MeanModel:
    """The probability of label 1 at each value of the mean of k logits.

    Let y be the label, s_j the logit of fold model j, and m the mean of the s_j. The model assumes that m carries all
    label information in the single logits: P(y = 1 | s_1 … s_k) = g(m). Then E[g(m) | s_j] = P(y = 1 | s_j) at every
    value of a single logit. The expectation on the left is taken over the unlabelled images; the probability on the
    right is estimated on the OOF rows. logit g is a cubic spline of m, fitted by penalised maximum likelihood (Fisher
    scoring).

    Parameters
    ----------
    oof_logits : float64 array (n,)
        Stacked logits of the OOF rows, each from one fold model.
    labels : int8 array (n,)
        0 or 1, both present.
    fold_logits : float64 array (n_new, k)
        Stacked logits of unlabelled images, one column per fold model.
    prior : float, optional
        Share of label 0 among the images; by default that of the OOF rows.
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
        # The knots cover the values of the mean at which both labels occur; outside, g is close to 0 or 1.
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
        """Return g for weights of the OOF rows (n,) and of the images (n_new,); the search begins at `start`."""
        from scipy.special import expit, logit

        counts = np.bincount(self._oof_bin, rows, 2 * self._bins).reshape(self._bins, 2)
        zeros, ones = counts.T * np.array(self._odds)[:, None]
        k = self._pair.shape[1]
        joint = np.bincount(self._pair.ravel(), np.repeat(images, k), self._bins * CELLS).reshape(self._bins, CELLS)
        singles = joint.sum(axis=1)
        filled = (singles > 0) & (zeros + ones > 0)
        cell_given_bin = joint[filled] / singles[filled][:, None]  # P(cell of the mean | bin of a single logit)
        base_rate = np.clip(ones.sum() / (zeros.sum() + ones.sum()), 1e-9, 1 - 1e-9)
        theta = np.full(COEFFICIENTS, logit(base_rate)) if start is None else start
        zeros, ones = zeros[filled], ones[filled]

        def loss(theta: Floats) -> float:
            q = np.clip(cell_given_bin @ expit(self._basis @ theta), 1e-9, 1 - 1e-9)
            return float(theta @ self._penalty @ theta - ones @ np.log(q) - zeros @ np.log1p(-q))

        current = loss(theta)
        for _ in range(100):
            g = expit(self._basis @ theta)
            q = np.clip(cell_given_bin @ g, 1e-9, 1 - 1e-9)
            jacobian = cell_given_bin @ ((g * (1 - g))[:, None] * self._basis)  # dq / dtheta
            gradient = jacobian.T @ (ones / q - zeros / (1 - q)) - 2 * self._penalty @ theta
            fisher = (jacobian.T * ((zeros + ones) / (q * (1 - q)))) @ jacobian + 2 * self._penalty
            step = np.linalg.solve(fisher + 1e-9 * np.eye(COEFFICIENTS), gradient)
            length = 1.0  # halved until the loss does not rise
            while (proposed := loss(theta + length * step)) > current and length > 1e-6:
                length /= 2
            if proposed > current:
                break
            theta, gain, current = theta + length * step, current - proposed, proposed
            if gain < 1e-6:
                break
        share = np.asarray(expit(self._basis @ theta))
        single_share = np.full(self._bins, 0.5)
        single_share[filled] = cell_given_bin @ share
        return MeanFit(
            theta,
            self.edges,
            share,
            np.asarray(np.bincount(self._cell, images, CELLS), np.float64),
            self.single_edges,
            single_share,
            singles,
        )


@dataclass(frozen=True, eq=False)
class MeanFit:
    """The probability of label 1 in each cell of the mean logit (c,) and in each bin of a single logit (b,)."""

    coefficients: Floats  # (COEFFICIENTS,), of the spline logit g
    edges: Floats  # (c - 1,), of the cells, in logits
    share: Floats  # (c,), probability of label 1
    mass: Floats  # (c,), weight of the images in each cell
    single_edges: Floats  # (b - 1,), of the bins, in logits
    single_share: Floats  # (b,), probability of label 1
    single_mass: Floats  # (b,), weight of the single logits in each bin

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
        """Return the best threshold of the mean under this fit; the lowest of equally good thresholds."""
        fpr, fnr = self._curve
        cost = np.array(objective.loss(fpr, fnr))
        cost[~objective.admits(fpr, fnr)] = np.inf
        at = int(np.argmin(cost))
        if not np.isfinite(cost[at]):
            return float(self.edges[objective.strictest_cut])
        if not 0 < at < cost.size - 1 or not np.isfinite(cost[at - 1 : at + 2]).all():
            return float(self.edges[at])
        before, here, after = cost[at - 1 : at + 2]  # interpolate by the parabola through three edges
        curvature = before - 2 * here + after
        shift = 0.0 if curvature <= 0 else 0.5 * (before - after) / curvature
        return float(self.edges[at] + np.clip(shift, -1, 1) * (self.edges[1] - self.edges[0]))


def _rates_at_edges(share: Floats, mass: Floats) -> tuple[Floats, Floats]:
    """Return FPR and FNR at each edge, for a threshold there."""
    zeros, ones = np.cumsum((1 - share) * mass), np.cumsum(share * mass)
    return 1 - zeros[:-1] / max(zeros[-1], 1e-12), ones[:-1] / max(ones[-1], 1e-12)


def _at(threshold: float, edges: Floats, curve: tuple[Floats, Floats]) -> Pair:
    """Return FPR and FNR at a threshold, interpolated between edges; 0.1 % of the values lie beyond an end edge."""
    if threshold < edges[0]:
        return 1.0, 0.0
    if threshold > edges[-1]:
        return 0.0, 1.0
    return float(np.interp(threshold, edges, curve[0])), float(np.interp(threshold, edges, curve[1]))


def account_error(model_scores: Floats, labels: ArrayLike, objective: Objective = HTER) -> float:
    """Return by how much `MeanModel` errs on the gain of averaging views, as a share of the gain.

    What averaging the views of an image changes is predicted as for fold models, from the first view and without the
    labels of the means. Unlike the effect of averaging fold models, it can then be measured with the labels.

    Parameters
    ----------
    model_scores : float64 array (n, views)
        Stacked logits of the OOF rows, one column for each view, at least two.
    labels : int8 array (n,)
        0 or 1, both present.
    objective : Objective
        What the thresholds minimise.

    Returns
    -------
    float
        In [0, 1]: the difference between the predicted and the measured change of the HTER, divided by the larger one.
    """
    y, single = np.asarray(labels), model_scores[:, 0]
    fit = MeanModel(single, y, model_scores).fit(np.ones(y.size), np.ones(y.size))
    threshold, averaged = fit_threshold(single, y, objective), fit.best(objective)
    predicted = (sum(fit.of_mean(averaged)) - sum(fit.of_single(threshold))) / 2
    measured = (
        error_rates(y, apply_threshold(model_scores.mean(axis=1), averaged)).hter
        - error_rates(y, apply_threshold(single, threshold)).hter
    )
    largest = max(abs(predicted), abs(measured))
    return min(abs(predicted - measured) / largest, 1.0) if largest > 0 else 0.0


def corrected_threshold(correction: str, threshold: float, fit: MeanFit, objective: Objective = HTER) -> float:
    """Return the threshold of the mean that corresponds to `threshold` of a single logit.

    Parameters
    ----------
    correction : {"posterior", "none"}
        "posterior" returns the best threshold under `fit` and ignores `threshold`. "none" returns `threshold`.
    threshold : float
        The threshold of a single stacked logit.
    fit : MeanFit
    objective : Objective
        The objective that "posterior" minimises.
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
    effects: tuple[float, float] = (1.0, 1.0),
    views: Floats | None = None,
) -> AveragingEffect | None:
    """Estimate the error rates of the labels ``fold_logits.mean(axis=1) >= corrected threshold``.

    The nested rates belong to single fold models. The gain of averaging is the difference between the rates of the mean
    at the corrected threshold and those of a single logit at its threshold, both under the same `MeanModel`. The
    expected rates are the nested rates plus the gain, less the bias of the gain.

    The gain is read from a fitted curve at its best point, hence it is optimistic. The bootstrap estimates this bias:
    each replicate draws OOF rows and images, refits the threshold, g and the correction, and evaluates its thresholds
    both under its own g and under the original one. The mean difference is the bias, and the spread of the replicates
    gives the interval.

    Parameters
    ----------
    oof_logits : float64 array (n,)
        Stacked logits of the OOF rows, each from one fold model.
    labels : int8 array (n,)
        0 or 1, both present.
    fold_logits : float64 array (n_new, k)
        Stacked logits of unlabelled images, one column per fold model.
    threshold : float
        The threshold of a single stacked logit.
    nested : ErrorRates
        The nested error rates of the rule on the OOF rows.
    replicates : iterable of Replicate
        Bootstrap replicates of the rule on the OOF rows, from decision/refits.py.
    correction : str
        See `corrected_threshold`.
    objective : Objective
        The objective of the threshold.
    prior : float, optional
        Share of label 0 among the images; by default that of the OOF rows.
    seed : int
        Seed of the draws of images.
    effects : (float, float)
        The design effects of groups on FPR and FNR (`bootstrap.design_effects`), assumed of the images as well.
    views : float64 array (n, views), optional
        Stacked logits of the OOF rows by view. If there are two or more, the intervals are widened on both sides by
        what `MeanModel` misses of the effect of averaging views (`account_error`), as the same share of the effect of
        averaging fold models. If not, the error of the model is in no interval.

    Returns
    -------
    AveragingEffect or None
        None if the effect cannot be estimated: there are fewer than `LEAST_IMAGES` images, their mean logits hardly
        differ (`LEAST_SPREAD`), or g does not reproduce the error rates of a single logit within `MOST_MISFIT`, which
        happens if the fold models disagree about the images. The counts in the rates are those of `nested`.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.
    """
    x, y = check_logits("cannot measure the effect of averaging", oof_logits, labels)
    s = np.asarray(fold_logits, np.float64)
    if s.ndim != 2 or not np.isfinite(s).all():
        raise DataError("cannot measure the effect of averaging", f"needs finite logits (n, k); got shape {s.shape}")
    mean, objective = s.mean(axis=1), objective.on_rows(nested.n_neg, nested.n_pos)
    if len(s) < LEAST_IMAGES or mean.std() < LEAST_SPREAD * x.std():
        return None
    model = MeanModel(x, y, s, prior)
    fit = model.fit(np.ones(x.size), np.ones(len(s)))
    single = error_rates(y, apply_threshold(x, threshold))
    error = np.sqrt(single.fpr * (1 - single.fpr) / single.n_neg + single.fnr * (1 - single.fnr) / single.n_pos) / 2
    if abs(sum(fit.of_single(threshold)) / 2 - single.hter) > MOST_MISFIT + 3 * error:
        return None

    def gain(under: MeanFit, single: float, averaged: float) -> Floats:
        return np.subtract(under.of_mean(averaged), under.of_single(single))

    rng = np.random.default_rng(seed_sequence(seed, "averaging"))
    errors: list[Pair] = []
    biases: dict[str, list[Floats]] = {name: [] for name in CORRECTIONS}
    for replicate in replicates:
        images = np.bincount(rng.integers(0, len(s), len(s)), minlength=len(s)).astype(np.float64)
        refit = model.fit(replicate.weights, images, fit.coefficients)
        for name in CORRECTIONS:
            corrected = corrected_threshold(name, replicate.threshold, refit, objective)
            bias = gain(refit, replicate.threshold, corrected) - gain(fit, replicate.threshold, corrected)
            biases[name].append(bias)
        of_chosen = biases[correction][-1]
        errors.append((replicate.errors[0] + of_chosen[0], replicate.errors[1] + of_chosen[1]))

    def candidate(name: str) -> CorrectedThreshold:
        corrected = corrected_threshold(name, threshold, fit, objective)
        expected = np.array([nested.fpr, nested.fnr]) + gain(fit, threshold, corrected) - np.mean(biases[name], axis=0)
        fpr, fnr = np.clip(expected, 0, 1).tolist()
        return CorrectedThreshold(
            name, corrected, ErrorRates(fpr, fnr, nested.n_neg, nested.n_pos), float(np.mean(mean < corrected))
        )

    candidates = tuple(map(candidate, CORRECTIONS))
    chosen = candidates[CORRECTIONS.index(correction)]
    rates = chosen.rates
    interval = refit_interval((rates.fpr, rates.fnr), errors)
    missed = 0.0
    if views is not None and views.shape[1] > 1:
        missed = account_error(views, y, objective) * abs(rates.hter - nested.hter)
    share = nested.n_neg / nested.n if prior is None else prior
    n_neg = min(max(round(len(s) * share), 1), len(s) - 1)
    spread = np.array(errors) - np.mean(errors, axis=0)
    true = np.clip(np.array([rates.fpr, rates.fnr]) - spread, 0, 1)
    here = measured_interval(true, n_neg, len(s) - n_neg, effects)
    return AveragingEffect(chosen, candidates, _wider(interval, missed), _wider(here, missed))


def _wider(interval: Interval, by: float) -> Interval:
    """Return the interval with both ends moved outwards by an error rate, within [0, 1]."""
    return Interval(max(interval.low - by, 0.0), min(interval.high + by, 1.0))
