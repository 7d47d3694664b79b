"""What averaging the fold models does to the error rates, read off unlabelled images.

Every OOF logit came from one fold model; a prediction is the mean of k. The stacker is linear, so the stacked logit of
a prediction is the mean of k stacked logits, each of which is distributed like the stacked OOF logits. How often the
label is 1 at each value of a single logit is known from the OOF rows. How often it is 1 at each value of the mean is
what must follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ErrorRates, Floats, call, checked, error_rates
from ensemble.errors import DataError

BINS = 100
STEPS = 30
"""Of expectation-maximisation; stopping early keeps the estimate from following noise."""

LEAST_IMAGES = 1000
"""Below this many unlabelled images nothing is read off them."""


@dataclass(frozen=True)
class Foreseen:
    """Error rates to expect of a label file, and where its measured HTER falls 95 times in 100."""

    rates: ErrorRates
    interval: Interval


def foresee_averaging(
    oof_logits: ArrayLike,
    labels: ArrayLike,
    fold_logits: ArrayLike,
    threshold: float,
    nested: ErrorRates,
    seed: int = 0,
    replicates: int = 300,
) -> Foreseen | None:
    """Return what to expect of the labels ``fold_logits.mean(axis=1) >= threshold``, on images like the OOF rows.

    With y the label, s_j the logit of fold model j and m their mean, it is assumed that the single logits say nothing
    of y that m does not say: P(y = 1 | s_1 … s_k) = g(m). Then E[g(m) | s_j] = P(y = 1 | s_j) must hold at every value
    of a single logit, and its right side is the share of label 1 among the OOF rows. g, a rising step function of m, is
    fitted to that, bin by bin of s_j, by maximum likelihood (expectation-maximisation with an isotonic step). FPR and
    FNR of the mean follow by weighting the unlabelled images with 1 - g and g.

    What the rule flatters itself by on its own OOF rows, nested less apparent, is added to both. The interval is a
    bootstrap over the OOF rows (by class) and the images, with the errors on that many images drawn on top; groups of
    rows are not heeded in it.

    Parameters
    ----------
    oof_logits : float64 array (n,)
        Stacked logits of the OOF rows, one model each.
    labels : int8 array (n,)
        0 or 1, both present.
    fold_logits : float64 array (n_new, k)
        Stacked logits of unlabelled images, a column a fold model.
    threshold : float
        In stacked logits.
    nested : ErrorRates
        Of the rule on the OOF rows.
    seed : int
        Of the bootstrap.
    replicates : int
        Bootstrap draws.

    Returns
    -------
    Foreseen or None
        None for fewer than `LEAST_IMAGES` images. The counts in the rates are those of `nested`.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.
    """
    x, y = checked("cannot foresee averaging", oof_logits, labels)
    s = np.asarray(fold_logits, np.float64)
    if s.ndim != 2 or not np.isfinite(s).all():
        raise DataError("cannot foresee averaging", f"needs finite logits (n, k); got shape {s.shape}")
    if len(s) < LEAST_IMAGES:
        return None
    mean, levels = s.mean(axis=1), np.linspace(0, 1, BINS + 1)[1:-1]
    single_edges = np.unique(np.append(np.quantile(x, levels), threshold))  # an edge opens the bin above it
    mean_edges = np.unique(np.append(np.quantile(mean, levels), threshold))
    b, c = single_edges.size + 1, mean_edges.size + 1
    counts = np.bincount(np.searchsorted(single_edges, x, "right") * 2 + y, minlength=2 * b)  # by bin and label
    cell_of = np.searchsorted(mean_edges, mean, "right")
    pairs = np.searchsorted(single_edges, s, "right") * c + cell_of[:, None]  # (n_new, k)
    called_mean = np.arange(c) > np.searchsorted(mean_edges, threshold)

    def averaged(counts: NDArray[np.int64], weights: NDArray[np.int64]) -> tuple[float, float]:
        """Return FPR and FNR of the mean, for OOF counts (b * 2,) and image weights (n_new,)."""
        zeros, ones = counts.reshape(b, 2).T
        joint = np.bincount(pairs.ravel(), np.repeat(weights, s.shape[1]), b * c).reshape(b, c)
        share = _share_share(zeros, ones, joint)
        cells = np.bincount(cell_of, weights, minlength=c)
        fpr = ((1 - share) * cells)[called_mean].sum() / max(((1 - share) * cells).sum(), 1e-12)
        fnr = (share * cells)[~called_mean].sum() / max((share * cells).sum(), 1e-12)
        return float(fpr), float(fnr)

    # what the estimate flatters itself by on the rows that it was fitted on: nested less apparent
    single = error_rates(y, call(x, threshold))
    optimism = nested.fpr - single.fpr, nested.fnr - single.fnr
    fpr, fnr = averaged(counts, np.ones(len(s), np.int64))
    rates = ErrorRates(
        float(np.clip(fpr + optimism[0], 0, 1)), float(np.clip(fnr + optimism[1], 0, 1)), nested.n_neg, nested.n_pos
    )
    rng = np.random.default_rng(seed_sequence(seed, "averaging"))
    n_neg = min(max(round(len(s) * nested.n_neg / nested.n), 1), len(s) - 1)
    new_sizes, drawn, measured = (n_neg, len(s) - n_neg), np.empty_like(counts), []
    for _ in range(replicates):
        for label in (0, 1):
            of_label = counts[label::2]
            drawn[label::2] = rng.multinomial(of_label.sum(), of_label / of_label.sum())
        moved = averaged(drawn, rng.multinomial(len(s), np.full(len(s), 1 / len(s))))
        twice_hter = 0.0
        for rate, lower, size in zip(moved, optimism, new_sizes, strict=True):
            twice_hter += rng.binomial(size, np.clip(rate + lower, 0, 1)) / size
        measured.append(twice_hter / 2)
    low, high = np.quantile(measured, [0.025, 0.975])
    return Foreseen(rates, Interval(float(low), float(high)))


def _share_share(zeros: NDArray[np.int64], ones: NDArray[np.int64], joint: NDArray[Any]) -> Floats:
    """Return g (c,): the share of label 1 in each cell of the mean, rising.

    `zeros` and `ones` (b,) count the OOF rows in each bin of a single logit, `joint` (b, c) the images (times fold
    models) whose single logit lies in a bin and whose mean lies in a cell.
    """
    from scipy.optimize import isotonic_regression

    seen = joint.sum(axis=1) > 0
    given = joint[seen] / joint[seen].sum(axis=1, keepdims=True)
    share = np.full(joint.shape[1], ones.sum() / (zeros.sum() + ones.sum()))
    for _ in range(STEPS):  # in which cell would the mean of each OOF row have been?
        q = np.clip(given @ share, 1e-12, 1 - 1e-12)
        as_one = share * (given.T @ (ones[seen] / q))
        weight = np.maximum(as_one + (1 - share) * (given.T @ (zeros[seen] / (1 - q))), 1e-12)
        share = np.asarray(isotonic_regression(as_one / weight, weights=weight).x)
    return share
