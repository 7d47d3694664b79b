"""Labels for new images from the logits of the fold models, and the error rates to expect of them.

The labels come from the mean of the fold models at a corrected threshold, or from the vote of the fold models. This
file reads and writes no files: `commands/predict.py` computes the logits and writes the results.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ensemble.decision.averaging import LEAST_IMAGES, AveragingEffect, CorrectedThreshold, averaging_effect
from ensemble.decision.class_stacker import ClassStacker
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision, stack_replicates
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ErrorRates, Floats, Labels, apply_threshold, error_rates
from ensemble.decision.shift import AtPrior, ShareCheck, at_prior, check_share, implied_share
from ensemble.decision.stacker import Stacker

REPLICATES = 400
"""The number of bootstrap replicates behind the expected HTER. Each takes about 10 ms, because it refits the effect of
averaging."""

LEAST_SHARE = 0.001
"""The lower bound to which an estimated share of a class is clipped: with a share of 0 nothing could be fitted for that
class."""


@dataclass(frozen=True)
class Expectation:
    """The error rates to expect of a label file.

    Attributes
    ----------
    correction : str
        The correction of the threshold that was used; "none" where the effect of averaging was not measured.
    averaging_measured : bool
        Whether the effect of averaging the fold models was measured. If not, the rates are those of a single fold
        model.
    corrections : tuple of CorrectedThreshold
        Every correction with its threshold and rates; empty where the effect of averaging was not measured.
    rates : ErrorRates
        The expected FPR and FNR, with the counts of the OOF rows. Where all images got one label, they are those of any
        such file: 1 and 0, hence HTER 0.5.
    interval : Interval
        The 95 % interval of the rule's HTER; [0.5, 0.5] where all images got one label.
    new_set_interval : Interval or None
        The 95 % prediction interval of the HTER that would be measured on these images; None for fewer than two images.
    at_prior : AtPrior or None
        What the rates imply at the share of label 0 that the user gave; None if none was given.
    implied_share : Interval or None
        The 99 % interval of the share of images that a file with these rates labels 0; None where all images got one
        label, and in files of former versions.
    """

    correction: str
    averaging_measured: bool
    corrections: tuple[CorrectedThreshold, ...]
    rates: ErrorRates
    interval: Interval
    new_set_interval: Interval | None
    at_prior: AtPrior | None
    implied_share: Interval | None = None

    def at(self, correction: str) -> CorrectedThreshold:
        """Return the threshold and rates of one correction."""
        return next(each for each in self.corrections if each.correction == correction)


@dataclass(frozen=True, eq=False)
class Deployment:
    """The labels of a set of images, with the logits, votes and threshold that they come from.

    Attributes
    ----------
    y_pred : int8 array (n,)
        The labels, 0 or 1.
    logits : float64 array (n, m)
        The logits of each member of the stack, averaged over views and fold models.
    stacked_logits : float64 array (n,)
        The stack of `logits`.
    probabilities : float64 array (n,)
        The probability of label 1 at the class shares of the OOF rows, or at the share that the user gave.
    threshold : float
        The threshold of the stacked logit, corrected for averaging where that effect was measured. A vote of the fold
        models uses the decision's uncorrected threshold.
    member_votes : int8 array (n, m)
        The prediction of each member at the threshold that was fitted to its logit alone.
    majority : int8 array (n,)
        The majority of the members' votes; an even split is a 1.
    fold_votes : int8 array (n, k), or (n, 0)
        The prediction of each fold model's stack; (n, 0) unless the fold models vote.
    expectation : Expectation
    share_check : ShareCheck
    assumed_share_of_label_0 : float or None
        The share of label 0 that the expectation assumes; None for that of the OOF rows.
    """

    y_pred: Labels
    logits: Floats
    stacked_logits: Floats
    probabilities: Floats
    threshold: float
    member_votes: Labels
    majority: Labels
    fold_votes: Labels
    expectation: Expectation
    share_check: ShareCheck
    assumed_share_of_label_0: float | None


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labels for images, as in `Deployment`: `y_pred`, `stacked_logits` and `probabilities` (n,), `fold_votes`."""

    y_pred: Labels
    stacked_logits: Floats
    probabilities: Floats
    fold_votes: Labels


def label(
    decision: Decision,
    fold_logits: Floats,
    logits: Floats,
    threshold: float,
    combine: str = "mean",
    prior: float | None = None,
) -> Labelled:
    """Return labels for images at a threshold; each image's label depends on its own logits alone.

    Parameters
    ----------
    decision : Decision
    fold_logits : float64 array (n, m, k)
        The logits of the images by member and fold model, averaged over the decision's views.
    logits : float64 array (n, m)
        The mean of `fold_logits` over the fold models, as it is stored.
    threshold : float
        Of the stacked logit. A vote of the fold models uses the decision's instead.
    combine, prior
        As in `deploy`.
    """
    stacked = decision.stacker.apply(logits)
    if combine == "vote":
        folds = decision.aligned_folds(fold_logits)
        y_pred, fold_votes = majority_of_folds(decision.stacker, decision.threshold, folds)
    else:
        y_pred, fold_votes = apply_threshold(stacked, threshold), np.empty((len(logits), 0), np.int8)
    shift = 0.0 if prior is None else at_prior(decision.nested, prior).logit_shift
    return Labelled(y_pred, stacked, _probabilities(stacked + shift), fold_votes)


def deploy(
    decision: Decision,
    oof: OofLogits,
    fold_logits: Floats,
    logits: Floats,
    combine: str = "mean",
    correction: str = "posterior",
    prior: float | None = None,
    seed: int = 0,
    is_new: NDArray[np.bool_] | None = None,
    by_view: Floats | None = None,
) -> Deployment:
    """Return labels for new images, and the error rates to expect of them.

    Parameters
    ----------
    decision : Decision
    oof : OofLogits
        The OOF logits of the members of the stack, averaged over the decision's views, as the fold models gave them.
    fold_logits : float64 array (n, m, k)
        The logits of the new images by member and fold model, averaged over the decision's views.
    logits : float64 array (n, m)
        The mean of `fold_logits` over the fold models, as it is stored.
    combine : {"mean", "vote"}
        How the fold models are combined: by the mean of their logits, or by the majority of their labels.
    correction : str
        One of `predict_config.CORRECTIONS`.
    prior : float, optional
        The share of label 0 among the new images, if it is known to differ from that of the OOF rows.
    seed : int
        The seed of the bootstrap.
    is_new : bool array (n,), optional
        Which images were not in training; by default all. The share check leaves the others out, because their logits
        are not those of unseen images.
    by_view : float64 array (n_oof, m, views), optional
        The OOF logits by view; with two or more views, they show how well the effect of averaging is known.
    """
    if combine == "vote":
        check = check_new_share(decision, oof, fold_logits, is_new)
        assumed, effect, threshold = None, None, decision.threshold
    else:
        check, assumed, effect, threshold = corrected(
            decision, oof, fold_logits, correction, prior, seed, is_new, by_view
        )
    labelled = label(decision, fold_logits, logits, threshold, combine, prior)
    member_votes, majority = decision.votes(logits)
    return Deployment(
        y_pred=labelled.y_pred,
        logits=logits,
        stacked_logits=labelled.stacked_logits,
        probabilities=labelled.probabilities,
        threshold=threshold,
        member_votes=member_votes,
        majority=majority,
        fold_votes=labelled.fold_votes,
        expectation=_expectation(decision, effect, labelled.y_pred, prior, check),
        share_check=check,
        assumed_share_of_label_0=assumed,
    )


def corrected(
    decision: Decision,
    oof: OofLogits,
    fold_logits: Floats,
    correction: str = "posterior",
    prior: float | None = None,
    seed: int = 0,
    is_new: NDArray[np.bool_] | None = None,
    by_view: Floats | None = None,
) -> tuple[ShareCheck, float | None, AveragingEffect | None, float]:
    """Return the share check, the assumed share of label 0, the effect of averaging, and the corrected threshold.

    If the share check finds a shift and no `prior` is given, the cause of the shift is unknown. The threshold is then
    not corrected, and the rates are those at the share of label 0 that is estimated from the images.

    The parameters are those of `deploy`. The assumed share is None for that of the OOF rows, and the effect of
    averaging is None where it cannot be measured; the threshold is then the decision's.
    """
    check, assumed = check_new_share(decision, oof, fold_logits, is_new), prior
    oof, fold_logits = decision.aligned(oof), decision.aligned_folds(fold_logits)
    if assumed is None and check.shifted:
        assumed = float(np.clip(check.prior, LEAST_SHARE, 1 - LEAST_SHARE))
    if prior is None and check.shifted:
        correction = "none"
    effect = None
    if len(fold_logits) >= LEAST_IMAGES:
        effect = averaging_effect(
            decision.stacker.apply(oof.logits),
            oof.labels,
            stacked_folds(decision.stacker, fold_logits),
            decision.threshold,
            decision.nested,
            stack_replicates(decision, oof, seed, REPLICATES),
            correction,
            decision.objective,
            assumed,
            seed,
            decision.stacked.design_effects,
            None if by_view is None else stacked_folds(decision.stacker, by_view),
        )
    return check, assumed, effect, decision.threshold if effect is None else effect.chosen.threshold


def check_new_share(
    decision: Decision, oof: OofLogits, fold_logits: Floats, is_new: NDArray[np.bool_] | None = None
) -> ShareCheck:
    """Return the share check of the images that are new, from the logits (n, m, k) by member and fold model."""
    scores = decision.stacker.apply(decision.aligned(oof).logits)
    rates = error_rates(oof.labels, apply_threshold(scores, decision.threshold))
    of_new = fold_logits if is_new is None else fold_logits[is_new]
    singles = stacked_folds(decision.stacker, decision.aligned_folds(of_new))
    return check_share(scores, singles, decision.threshold, rates, oof.groups)


def majority_of_folds(stacker: Stacker, threshold: float, fold_logits: Floats) -> tuple[Labels, Labels]:
    """Return the labels by majority vote of the fold models, and the votes.

    The members' logits are first stacked within each fold. If the vote is split evenly, the mean of the stacked logits
    decides.

    Parameters
    ----------
    stacker : Stacker
    threshold : float
        The threshold of the stacked logit.
    fold_logits : float64 array (n, m, k)

    Returns
    -------
    int8 array (n,)
        The labels.
    int8 array (n, k)
        The votes of the fold models.
    """
    stacked = stacked_folds(stacker, fold_logits)
    votes = apply_threshold(stacked, threshold)
    ones, zeros = votes.sum(axis=1), (1 - votes).sum(axis=1)
    mean = apply_threshold(stacked.mean(axis=1), threshold)
    return np.where(ones == zeros, mean, ones > zeros).astype(np.int8), votes


def stacked_folds(stacker: Stacker | ClassStacker, fold_logits: Floats) -> Floats:
    """Return the stacked logit of each fold model (n, k), from the logits of the members (n, m, k); or of each view.

    With more than two classes, both arrays have one more, last axis of length C.
    """
    return np.stack([stacker.apply(of_fold) for of_fold in np.moveaxis(fold_logits, 2, 0)], axis=1)


def _expectation(
    decision: Decision, effect: AveragingEffect | None, y_pred: Labels, prior: float | None, check: ShareCheck
) -> Expectation:
    """Return the error rates to expect of labels (n,).

    Where the effect of averaging was not measured (None), they are the nested rates of a single fold model.
    """
    n = len(y_pred)
    if effect is None:
        rates, interval, new_set = decision.nested, decision.interval, decision.stacked.new_set_interval(n)
        correction, corrections = "none", tuple[CorrectedThreshold, ...]()
    else:
        rates, interval, new_set = effect.chosen.rates, effect.interval, effect.new_set_interval
        correction, corrections = effect.chosen.correction, effect.candidates
    if np.unique(y_pred).size == 1 and not check.explains_one_label(int(y_pred[0]), n):
        rates, interval, implied = of_one_label(rates, int(y_pred[0])), Interval(0.5, 0.5), None
        new_set = None if new_set is None else interval
    else:
        implied = implied_share(rates, decision.stacked.fpr, decision.stacked.fnr, *_share(rates, prior, check), n)
    return Expectation(
        correction=correction,
        averaging_measured=effect is not None,
        corrections=corrections,
        rates=rates,
        interval=interval,
        new_set_interval=new_set,
        at_prior=None if prior is None else at_prior(rates, prior),
        implied_share=implied,
    )


def _share(rates: ErrorRates, prior: float | None, check: ShareCheck) -> tuple[float, float]:
    """Return the share of label 0 that the rates are expected at, and its standard error."""
    if prior is not None:
        return prior, 0.0
    if check.shifted:
        return check.prior, check.prior_error
    share = rates.n_neg / rates.n
    return share, float(np.sqrt(share * (1 - share) / rates.n))


def of_one_label(rates: ErrorRates, label: int) -> ErrorRates:
    """Return the error rates of a file in which all images have one label, with the counts of `rates`.

    They hold whatever the true labels are, if both occur: of a file of 1s, the FPR is 1 and the FNR is 0.

    >>> of_one_label(ErrorRates(0.1, 0.2, 50, 200), 1)
    ErrorRates(fpr=1.0, fnr=0.0, n_neg=50, n_pos=200)
    """
    return replace(rates, fpr=float(label), fnr=float(1 - label))


def _probabilities(logits: Floats) -> NDArray[np.float64]:
    from scipy.special import expit

    return np.asarray(expit(logits), np.float64)
