"""Whether new images have the class mix of the OOF rows, and what another mix changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemble.decision.rates import ErrorRates, Floats

ALARM = 0.01
"""A smaller p-value is told as a shift."""


@dataclass(frozen=True)
class ShareCheck:
    """The share that single fold models predict 0 on new images, against that on the OOF rows, at one threshold.

    Single fold models on both sides, so that averaging, which moves the share too, is no part of the difference.
    """

    oof_share: float
    new_share: float
    error: float  # standard error of the difference
    p_value: float  # two-sided
    prior: float  # estimated share of label 0 among the new images, if only the class mix has changed
    prior_error: float  # its standard error, that of the rates that it is worked out with included

    @property
    def shifted(self) -> bool:
        return self.p_value < ALARM

    @property
    def message(self) -> str:
        """The check in a sentence."""
        seen = (
            f"single fold models predict {self.new_share:.4f} of the new images as 0, and {self.oof_share:.4f} of the "
            f"OOF rows, at one threshold (p = {self.p_value:.2g})"
        )
        if not self.shifted:
            return f"Share check: {seen}: no sign of a shift."
        low, high = (float(np.clip(self.prior + side * 1.96 * self.prior_error, 0, 1)) for side in (-1, 1))
        return (
            f"SHIFT: {seen}: more than chance. If only the class mix has changed, label 0 is {low:.3f} to {high:.3f} "
            "of the new images (give it as --prior if you know it better), and FPR, FNR, HTER and its threshold stay "
            "as they are; if the images themselves have changed, no figure here holds for them."
        )


def check_share(
    oof_logits: Floats,
    fold_logits: Floats,
    threshold: float,
    rates: ErrorRates,
    groups: ArrayLike | None = None,
) -> ShareCheck:
    """Test whether new images give the share of label 0 that the OOF rows give.

    The p-value is the larger of two: of the z-test of two independent shares, and of the exact binomial test of the new
    images at the OOF share, since a few images have no spread to read a standard error off.

    Parameters
    ----------
    oof_logits : float64 array (n,)
        Stacked logits of the OOF rows, one model each.
    fold_logits : float64 array (n_new, k)
        Stacked logits of the new images, a column a fold model. The k predictions of an image count as one observation.
    threshold : float
        Of a single stacked logit.
    rates : ErrorRates
        Of a single logit at this threshold: the new share, less what they explain, is the new class mix (the adjusted
        count of Forman 2008, Quantifying counts and costs via classification).
    groups : int64 array (n,), optional
        OOF rows of one group count as one observation.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> oof, new = rng.normal(size=4000), rng.normal(size=(4000, 3))
    >>> check_share(oof, new, 0.0, ErrorRates(0.1, 0.1, 2000, 2000)).shifted
    False
    >>> check_share(oof, new - 1, 0.0, ErrorRates(0.1, 0.1, 2000, 2000)).shifted
    True
    """
    from scipy.stats import binomtest, norm

    y_pred = (oof_logits < threshold).astype(np.float64)
    votes = (fold_logits < threshold).mean(axis=1)
    oof_share, new_share = float(y_pred.mean()), float(votes.mean())
    units = np.arange(y_pred.size) if groups is None else np.unique(groups, return_inverse=True)[1]
    excess = np.bincount(units, y_pred - oof_share)  # by group: what it adds to the sum beyond the mean
    error = float(np.sqrt((excess**2).sum() / y_pred.size**2 + votes.var() / max(len(votes), 1)))
    distance = abs(new_share - oof_share)
    p_value = float(2 * norm.sf(distance / error)) if error > 0 else float(distance == 0)
    p_value = max(p_value, float(binomtest(round(new_share * len(votes)), len(votes), oof_share).pvalue))
    separation = max(1 - rates.fpr - rates.fnr, 1e-9)
    prior = float(np.clip((new_share - rates.fnr) / separation, 0, 1))
    of_fpr, of_fnr = prior**2 * rates.fpr * (1 - rates.fpr), (1 - prior) ** 2 * rates.fnr * (1 - rates.fnr)
    variance = votes.var() / max(len(votes), 1) + of_fpr / rates.n_neg + of_fnr / rates.n_pos
    prior_error = float(np.sqrt(variance) / separation)
    return ShareCheck(oof_share, new_share, error, p_value, prior, prior_error)


@dataclass(frozen=True)
class AtPrior:
    """What error rates amount to where label 0 has another share. The rates, and the HTER threshold, do not change."""

    prior: float  # share of label 0
    share_called_0: float
    error_rate: float  # share of images that are predicted wrong: this does change
    precision_of_0: float  # share of label 0 among the images that are predicted as 0
    precision_of_1: float
    logit_shift: float  # what to add to the stacked logit for log-odds at this prior


def at_prior(rates: ErrorRates, prior: float) -> AtPrior:
    """Return what `rates` amount to where a share `prior` of the images is of label 0.

    >>> there = at_prior(ErrorRates(0.1, 0.2, 120, 880), 0.5)
    >>> round(there.share_called_0, 3), round(there.error_rate, 3), round(there.precision_of_0, 3)
    (0.55, 0.15, 0.818)
    """
    true_0, false_0 = prior * (1 - rates.fpr), (1 - prior) * rates.fnr
    false_1, true_1 = prior * rates.fpr, (1 - prior) * (1 - rates.fnr)
    tiny = 1e-12
    odds = np.log(max(1 - prior, tiny) / max(prior, tiny)) - np.log(rates.n_pos / rates.n_neg)
    return AtPrior(
        prior=prior,
        share_called_0=true_0 + false_0,
        error_rate=false_0 + false_1,
        precision_of_0=true_0 / max(true_0 + false_0, tiny),
        precision_of_1=true_1 / max(true_1 + false_1, tiny),
        logit_shift=float(odds),
    )
