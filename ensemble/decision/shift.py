"""Whether new images have the class shares of the OOF rows, and what other class shares change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemble.decision.bootstrap import design_effect
from ensemble.decision.intervals import NORMAL, Interval
from ensemble.decision.rates import ErrorRates, Floats, Labels

ALARM = 0.01
"""The significance level of the share check: a p-value below it is reported as a shift. At 1 %, about one in a hundred
sets of images without a shift is reported."""

ALARM_ERRORS = 2.575829
"""The standard errors of a difference whose two-sided p-value is `ALARM`."""

VISIBLE_SHIFT = 0.2
"""The least change of the share of predictions of label 0 that a check must be able to see. A set that is too small to
see a change of a fifth of all images is not said to be without a shift."""


@dataclass(frozen=True)
class ShareCheck:
    """A test of whether single fold models predict 0 for the same share of new images as of OOF rows, at one threshold.

    Both shares are those of single fold models, because averaging the fold models changes the share as well.
    """

    oof_share: float  # share of the OOF rows that are predicted as 0
    new_share: float  # share of the new images that are predicted as 0, averaged over the fold models
    error: float  # standard error of the difference
    p_value: float  # two-sided
    prior: float  # estimated share of label 0 among the new images, if only the class shares have changed
    prior_error: float  # standard error of `prior`; it includes the errors of the FPR and FNR behind the estimate

    @property
    def shifted(self) -> bool:
        """Whether the p-value is below `ALARM`."""
        return self.p_value < ALARM

    def contradicts(self, prior: float) -> bool:
        """Return whether the images contradict a share of label 0, if only the class shares have changed."""
        return abs(self.prior - prior) > ALARM_ERRORS * self.prior_error

    def least_visible(self, images: int) -> float:
        """Return the change of the share of predicted 0s that a check of `images` images sees every second time.

        It is `ALARM_ERRORS` standard errors of the share among that many images, at the share of the OOF rows.
        """
        if images == 0:
            return float("inf")
        return ALARM_ERRORS * float(np.sqrt(self.oof_share * (1 - self.oof_share) / images))

    def is_too_small(self, images: int) -> bool:
        """Return whether a check of `images` images does not see a change by `VISIBLE_SHIFT`."""
        return self.least_visible(images) > VISIBLE_SHIFT

    def explains_one_label(self, label: int, images: int) -> bool:
        """Return whether `images` images may all have got one label by chance, at the share of the OOF rows.

        The probability is at least `ALARM`: three images that all got the more frequent label say nothing of the rule.
        """
        share = self.oof_share if label == 0 else 1 - self.oof_share
        return share**images >= ALARM

    def message(self, images: int) -> str:
        """Return the result of the check of `images` new images in a sentence."""
        if images == 0:
            return "Share check: there is no new image to check."
        shares = (
            f"single fold models predict {self.new_share:.4f} of the new images as 0, and {self.oof_share:.4f} of the "
            f"training images, at one threshold (p = {self.p_value:.2g})"
        )
        if not self.shifted and self.is_too_small(images):
            few = f"Share check: {images} image{'s are' if images > 1 else ' is'} too few to check for a shift"
            least = self.least_visible(images)
            return few + (f": only a change of the share of 0 by at least {least:.2f} is seen." if least < 1 else ".")
        if not self.shifted:
            return f"Share check: {shares}: no sign of a shift."
        low, high = (float(np.clip(self.prior + side * 1.96 * self.prior_error, 0, 1)) for side in (-1, 1))
        return (
            f"SHIFT: {shares}: more than chance. If only the class mix has changed, label 0 is {low:.3f} to {high:.3f} "
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
    """Test whether the share of predictions of label 0 is the same on new images as on the OOF rows.

    The p-value is the larger of two: that of the z-test of two independent shares, and that of the exact binomial test
    of the new images at the OOF share. The second is needed for few images, whose votes may not vary, so that their
    standard error is estimated as 0.

    Parameters
    ----------
    oof_logits : float64 array (n,)
        Stacked logits of the OOF rows, each from one fold model.
    fold_logits : float64 array (n_new, k)
        Stacked logits of the new images, one column per fold model. The k predictions of an image count as one
        observation. Without new images nothing is tested: the p-value is 1, and the share is that of the OOF rows.
    threshold : float
        The threshold of the stacked logit of a single fold model.
    rates : ErrorRates
        The error rates of a single fold model at this threshold. They turn the share of predictions into an estimate of
        the share of label 0 (the adjusted count of Forman 2008, Quantifying counts and costs via classification).
    groups : int64 array (n,), optional
        The OOF rows of one group count as one observation.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> oof, new = rng.normal(size=4000), rng.normal(size=(4000, 3))
    >>> check_share(oof, new, 0.0, ErrorRates(0.1, 0.1, 2000, 2000)).shifted
    False
    >>> check_share(oof, new - 1, 0.0, ErrorRates(0.1, 0.1, 2000, 2000)).shifted
    True
    """
    is_zero = (oof_logits < threshold).astype(np.float64)
    votes = (fold_logits < threshold).mean(axis=1)  # share of the fold models that predict 0, for each image
    if not votes.size:
        oof_share, share = float(is_zero.mean()), rates.n_neg / rates.n
        return ShareCheck(oof_share, oof_share, 0.0, 1.0, share, float(np.sqrt(share * (1 - share) / rates.n)))
    oof_share, new_share, error, new_variance, p_value = _compared_shares(is_zero, votes, groups)
    # new_share = prior * (1 - FPR) + (1 - prior) * FNR, solved for the prior; its error follows by the delta method.
    separation = max(1 - rates.fpr - rates.fnr, 1e-9)
    prior = float(np.clip((new_share - rates.fnr) / separation, 0, 1))
    fpr_term, fnr_term = prior**2 * rates.fpr * (1 - rates.fpr), (1 - prior) ** 2 * rates.fnr * (1 - rates.fnr)
    variance = new_variance + fpr_term / rates.n_neg + fnr_term / rates.n_pos
    prior_error = float(np.sqrt(variance) / separation)
    return ShareCheck(oof_share, new_share, error, p_value, prior, prior_error)


def _compared_shares(
    is_one: Floats, votes: Floats, groups: ArrayLike | None, least_effect: float = 1.0
) -> tuple[float, float, float, float, float]:
    """Compare the share of one prediction among OOF rows and among new images; see `check_share` for the p-value.

    Parameters
    ----------
    is_one : float64 array (n,)
        1 where an OOF row has this prediction, else 0.
    votes : float64 array (n_new,)
        The share of the fold models that predict this, for each new image; at least one.
    groups : int64 array (n,), optional
    least_effect : float
        The least factor by which groups of new images raise the variance.

    Returns
    -------
    The two shares, the standard error of their difference, the variance of the second, and the two-sided p-value.
    """
    from scipy.stats import binomtest, norm

    oof_share, new_share = float(is_one.mean()), float(votes.mean())
    units = np.arange(is_one.size) if groups is None else np.unique(groups, return_inverse=True)[1]
    excess = np.bincount(units, is_one - oof_share)  # for each group: its sum less what the mean predicts for it
    oof_variance = float((excess**2).sum()) / is_one.size**2
    # New images are assumed to come in groups like the rows, which raise the variance by the same factor.
    effect = max(least_effect, oof_variance * is_one.size / max(is_one.var(), 1e-12))
    new_variance = float(votes.var()) * effect / len(votes)
    error = float(np.sqrt(oof_variance + new_variance))
    distance = abs(new_share - oof_share)
    p_value = float(2 * norm.sf(distance / error)) if error > 0 else float(distance == 0)
    units_new = max(round(len(votes) / effect), 1)
    p_value = max(p_value, float(binomtest(round(new_share * units_new), units_new, oof_share).pvalue))
    return oof_share, new_share, error, new_variance, p_value


def implied_share(
    rates: ErrorRates, fpr: Interval, fnr: Interval, prior: float, prior_error: float, images: int
) -> Interval:
    """Return the 99 % interval of the share of images that a file labels 0, if these error rates are those of the file.

    The share is prior * (1 - FPR) + (1 - prior) * FNR. Its error has three parts: that of FPR and FNR, which are taken
    to err together, because a threshold that is too high lowers the one and raises the other; that of the prior; and
    the sampling of the images, which are assumed to be independent.

    Parameters
    ----------
    rates : ErrorRates
        The error rates that are expected of the file.
    fpr, fnr : Interval
        Intervals as wide as the 95 % intervals of the two rates.
    prior, prior_error : float
        The share of label 0 among the images, in [0, 1], and its standard error.
    images : int
        The number of images in the file.

    Examples
    --------
    >>> rates, fpr, fnr = ErrorRates(0.1, 0.1, 200, 800), Interval(0.06, 0.14), Interval(0.08, 0.12)
    >>> implied = implied_share(rates, fpr, fnr, 0.2, 0.01, 1000)
    >>> round(implied.low, 3), round(implied.high, 3)
    (0.208, 0.312)
    """
    share, error = share_of_zeros(rates, fpr, fnr, prior, prior_error)
    half = ALARM_ERRORS * float(np.sqrt(error**2 + share * (1 - share) / images))
    return Interval(max(share - half, 0.0), min(share + half, 1.0))


def share_of_zeros(
    rates: ErrorRates, fpr: Interval, fnr: Interval, prior: float, prior_error: float
) -> tuple[float, float]:
    """Return the share of images that is labelled 0 at these rates, and its standard error; see `implied_share`."""
    of_rates = (prior * (fpr.high - fpr.low) + (1 - prior) * (fnr.high - fnr.low)) / (2 * NORMAL)
    of_prior = (1 - rates.fpr - rates.fnr) * prior_error
    return at_prior(rates, prior).share_called_0, float(np.hypot(of_rates, of_prior))


@dataclass(frozen=True)
class AtPrior:
    """What FPR and FNR imply at another share of label 0. The two rates and the HTER threshold do not depend on it."""

    prior: float  # share of label 0
    share_called_0: float  # share of the images that are predicted as 0
    error_rate: float  # share of the images that are predicted wrongly; unlike HTER it depends on the prior
    precision_of_0: float  # share of label 0 among the images that are predicted as 0
    precision_of_1: float  # share of label 1 among the images that are predicted as 1
    logit_shift: float  # added to the stacked logit, it gives the log-odds of label 1 at this prior


def at_prior(rates: ErrorRates, prior: float) -> AtPrior:
    """Return what `rates` imply where a share `prior` of the images has label 0.

    Parameters
    ----------
    rates : ErrorRates
    prior : float
        In [0, 1].

    Examples
    --------
    >>> there = at_prior(ErrorRates(0.1, 0.2, 120, 880), 0.5)
    >>> round(there.share_called_0, 3), round(there.error_rate, 3), round(there.precision_of_0, 3)
    (0.55, 0.15, 0.818)
    """
    true_0, false_0 = prior * (1 - rates.fpr), (1 - prior) * rates.fnr
    false_1, true_1 = prior * rates.fpr, (1 - prior) * (1 - rates.fnr)
    tiny = 1e-12  # keeps divisions and logarithms finite where the prior is 0 or 1
    shift = np.log(max(1 - prior, tiny) / max(prior, tiny)) - np.log(rates.n_pos / rates.n_neg)
    return AtPrior(
        prior=prior,
        share_called_0=true_0 + false_0,
        error_rate=false_0 + false_1,
        precision_of_0=true_0 / max(true_0 + false_0, tiny),
        precision_of_1=true_1 / max(true_1 + false_1, tiny),
        logit_shift=float(shift),
    )


@dataclass(frozen=True)
class ClassShareCheck:
    """A test of whether single fold models predict each class for the same share of new images as of OOF rows.

    The share of each class is tested as in `ShareCheck`. What the class shares of the new images are is not estimated.
    """

    oof_shares: tuple[float, ...]  # (C,), shares of the OOF rows that are predicted as each class
    new_shares: tuple[float, ...]  # (C,), shares of the new images, averaged over the fold models
    errors: tuple[float, ...]  # (C,), standard errors of the differences
    p_values: tuple[float, ...]  # (C,), two-sided, of each class alone

    @property
    def p_value(self) -> float:
        """The p-value of all classes together: C times the smallest one, at most 1 (Bonferroni)."""
        return min(1.0, len(self.p_values) * min(self.p_values))

    @property
    def shifted(self) -> bool:
        """Whether the p-value is below `ALARM`."""
        return self.p_value < ALARM

    def least_visible(self, images: int) -> float:
        """Return the change of the share of a class that a check of `images` images sees every second time.

        It is that of the class whose share is closest to a half; see `ShareCheck.least_visible`.
        """
        from scipy.stats import norm

        if images == 0:
            return float("inf")
        most = max(share * (1 - share) for share in self.oof_shares)
        return float(norm.isf(ALARM / (2 * len(self.oof_shares))) * np.sqrt(most / images))

    def is_too_small(self, images: int) -> bool:
        """Return whether a check of `images` images does not see a change by `VISIBLE_SHIFT`."""
        return self.least_visible(images) > VISIBLE_SHIFT

    def explains_one_label(self, label: int, images: int) -> bool:
        """Return whether `images` images may all have got one label by chance; see `ShareCheck`."""
        return self.oof_shares[label] ** images >= ALARM

    def message(self, images: int, names: Sequence[str] | None = None) -> str:
        """Return the result of the check of `images` new images in a sentence; `names` are those of the classes."""
        if images == 0:
            return "Share check: there is no new image to check."
        if not self.shifted and self.is_too_small(images):
            few = f"Share check: {images} image{'s are' if images > 1 else ' is'} too few to check for a shift"
            least = self.least_visible(images)
            return few + (f": only a change of a share by at least {least:.2f} is seen." if least < 1 else ".")
        most = int(np.argmin(self.p_values))
        shares = (
            f"single fold models predict {self.new_shares[most]:.4f} of the new images as "
            f"{most if names is None else names[most]}, and {self.oof_shares[most]:.4f} of the training images, at one "
            f"decision (the greatest difference of {len(self.p_values)} classes, p = {self.p_value:.2g})"
        )
        if not self.shifted:
            return f"Share check: {shares}: no sign of a shift."
        return (
            f"SHIFT: {shares}: more than chance. If only the class mix has changed, the error rates of the classes and "
            "their mean stay as they are, and macro F1, accuracy and precisions change; if the images themselves have "
            "changed, no figure here holds for them."
        )


def check_class_shares(
    oof_pred: Labels, fold_pred: Labels, classes: int, groups: ArrayLike | None = None
) -> ClassShareCheck:
    """Test whether the shares of the predicted classes are the same on new images as on the OOF rows.

    Parameters
    ----------
    oof_pred : int8 array (n,)
        The classes predicted for the OOF rows, each by one fold model.
    fold_pred : int8 array (n_new, k)
        The classes predicted for the new images, one column for each fold model. The k predictions of an image count as
        one observation. Without new images nothing is tested: the p-values are 1.
    classes : int
        The number of classes C.
    groups : int64 array (n,), optional
        The OOF rows of one group count as one observation.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> oof, new = rng.integers(0, 3, 2000), rng.integers(0, 3, (2000, 4))
    >>> check_class_shares(oof, new, 3).shifted, check_class_shares(oof, np.minimum(new, 1), 3).shifted
    (False, True)
    """
    is_class = (oof_pred[:, None] == np.arange(classes)).astype(np.float64)
    if not len(fold_pred):
        shares = tuple(is_class.mean(axis=0).tolist())
        return ClassShareCheck(shares, shares, (0.0,) * classes, (1.0,) * classes)
    votes = (fold_pred[:, :, None] == np.arange(classes)).mean(axis=1)
    group_of = np.arange(oof_pred.size) if groups is None else np.unique(groups, return_inverse=True)[1]
    # The effect of groups on the share of a class that no OOF row is predicted as is that of equal rows in a group.
    effects = [design_effect(is_class[:, c] > 0, group_of) for c in range(classes)]
    compared = [_compared_shares(is_class[:, c], votes[:, c], groups, effects[c]) for c in range(classes)]
    oof_shares, new_shares, errors, _, p_values = zip(*compared, strict=True)
    return ClassShareCheck(oof_shares, new_shares, errors, p_values)
