"""From the logits of fold models to labels: the corrected threshold or the vote, and the HTER to expect.

Arrays in, arrays and numbers out; `commands/predict.py` computes the logits before and writes the files after.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.decision.averaging import LEAST_IMAGES, AveragingEffect, CorrectedThreshold, averaging_effect
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision, stack_replicates
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ErrorRates, Floats, Labels, apply_threshold, error_rates
from ensemble.decision.shift import AtPrior, ShareCheck, at_prior, check_share
from ensemble.decision.stacker import Stacker

REPLICATES = 400
"""Bootstrap replicates behind the expected HTER. Each takes about 10 ms, since it refits the effect of averaging."""

LEAST_SHARE = 0.001
"""Smallest estimated share of a class that is used. Nothing can be fitted for a class that is absent."""


@dataclass(frozen=True)
class Expectation:
    """The error rates to expect of a label file.

    Attributes
    ----------
    correction : str
        The correction of the threshold that was used; "none" where averaging was not measured.
    averaging_measured : bool
        Whether the effect of averaging the fold models is known. If not, the rates are those of one fold model.
    corrections : tuple of CorrectedThreshold
        Every correction with its threshold and rates; empty where averaging was not measured.
    rates : ErrorRates
        Expected FPR and FNR; the counts are those of the OOF rows.
    interval : Interval
        95 % interval of the rule's HTER.
    new_set_interval : Interval or None
        Where the HTER measured on these very images falls 95 times in 100; None for fewer than two images.
    at_prior : AtPrior or None
        What the rates amount to at the share of label 0 that the user gave.
    """

    correction: str
    averaging_measured: bool
    corrections: tuple[CorrectedThreshold, ...]
    rates: ErrorRates
    interval: Interval
    new_set_interval: Interval | None
    at_prior: AtPrior | None

    def at(self, correction: str) -> CorrectedThreshold:
        """Return the threshold and rates of one correction."""
        return next(each for each in self.corrections if each.correction == correction)


@dataclass(frozen=True, eq=False)
class Deployment:
    """The labels of a set of images, and what they were decided by.

    Attributes
    ----------
    y_pred : int8 array (n,)
    logits : float64 array (n, m)
        Of each member of the stack, averaged over views and fold models.
    stacked_logits : float64 array (n,)
    probabilities : float64 array (n,)
        Of label 1, at the class share of the OOF rows, or at the share that the user gave.
    threshold : float
        In logits; corrected for averaging where that was measured. A vote uses the decision's own threshold.
    member_votes : int8 array (n, m)
        Each member at its own threshold.
    majority : int8 array (n,)
        Of the members' votes; half is a 1.
    fold_votes : int8 array (n, k), or (n, 0)
        What each fold model's stack says, where the fold models vote.
    expectation : Expectation
    share_check : ShareCheck
    assumed_share_of_label_0 : float or None
        The share of label 0 that the expectation rests on; None for that of the OOF rows.
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


def deploy(
    decision: Decision,
    oof: OofLogits,
    fold_logits: Floats,
    logits: Floats,
    combine: str = "mean",
    correction: str = "posterior",
    prior: float | None = None,
    seed: int = 0,
) -> Deployment:
    """Return labels for new images, and the error rates to expect of them.

    Parameters
    ----------
    decision : Decision
    oof : OofLogits
        Of the members of the stack, averaged over the decision's views.
    fold_logits : float64 array (n, m, k)
        Logits of the new images by member and fold model, averaged over the decision's views.
    logits : float64 array (n, m)
        Their mean over the fold models, as it is stored.
    combine : {"mean", "vote"}
        Of the fold models: the mean of their logits, or the majority of their labels.
    correction : str
        One of `config.CORRECTIONS`.
    prior : float, optional
        Share of label 0 among the new images, if it is known to differ.
    seed : int
        Of the bootstrap.
    """
    stacked = decision.stacker.apply(logits)
    if combine == "vote":
        check = check_new_share(decision, oof, fold_logits)
        assumed, effect, threshold = None, None, decision.threshold
        y_pred, fold_votes = majority_of_folds(decision.stacker, decision.threshold, fold_logits)
    else:
        check, assumed, effect, threshold = corrected(decision, oof, fold_logits, correction, prior, seed)
        y_pred, fold_votes = apply_threshold(stacked, threshold), np.empty((len(logits), 0), np.int8)
    member_votes, majority = decision.votes(logits)
    shift = 0.0 if prior is None else at_prior(decision.nested, prior).logit_shift
    return Deployment(
        y_pred=y_pred,
        logits=logits,
        stacked_logits=stacked,
        probabilities=_probabilities(stacked + shift),
        threshold=threshold,
        member_votes=member_votes,
        majority=majority,
        fold_votes=fold_votes,
        expectation=_expectation(decision, effect, len(logits), prior),
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
) -> tuple[ShareCheck, float | None, AveragingEffect | None, float]:
    """Return the share check, the assumed share of label 0, the effect of averaging, and the corrected threshold.

    Where the share check finds a shift and no `prior` is given, the cause of the shift is unknown: the threshold is
    not corrected, and the rates are those at the share that the images suggest.

    Parameters are those of `deploy`.
    """
    check = check_new_share(decision, oof, fold_logits)
    assumed = prior
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
        )
    return check, assumed, effect, decision.threshold if effect is None else effect.chosen.threshold


def check_new_share(decision: Decision, oof: OofLogits, fold_logits: Floats) -> ShareCheck:
    """Return the share check of the stacked logits of single fold models, from logits (n, m, k) of new images."""
    scores = decision.stacker.apply(oof.logits)
    rates = error_rates(oof.labels, apply_threshold(scores, decision.threshold))
    singles = stacked_folds(decision.stacker, fold_logits)
    return check_share(scores, singles, decision.threshold, rates, oof.groups)


def majority_of_folds(stacker: Stacker, threshold: float, fold_logits: Floats) -> tuple[Labels, Labels]:
    """Return the labels (n,) that most fold models give, and what each fold model gives (n, k).

    The members of each fold, (n, m, k) in all, are stacked first. Where the fold models are split evenly, the mean of
    their stacked logits decides.
    """
    stacked = stacked_folds(stacker, fold_logits)
    votes = apply_threshold(stacked, threshold)
    ones, zeros = votes.sum(axis=1), (1 - votes).sum(axis=1)
    mean = apply_threshold(stacked.mean(axis=1), threshold)
    return np.where(ones == zeros, mean, ones > zeros).astype(np.int8), votes


def stacked_folds(stacker: Stacker, fold_logits: Floats) -> Floats:
    """Return the stacked logit of each fold model (n, k), from the logits of the members (n, m, k)."""
    return np.stack([stacker.apply(of_fold) for of_fold in np.moveaxis(fold_logits, 2, 0)], axis=1)


def _expectation(decision: Decision, effect: AveragingEffect | None, n: int, prior: float | None) -> Expectation:
    """Return the rates to expect; the nested ones of a single fold model where averaging was not measured."""
    if effect is None:
        rates, interval, new_set = decision.nested, decision.interval, decision.stacked.new_set_interval(n)
        correction, corrections = "none", tuple[CorrectedThreshold, ...]()
    else:
        rates, interval, new_set = effect.chosen.rates, effect.interval, effect.new_set_interval
        correction, corrections = effect.chosen.correction, effect.candidates
    return Expectation(
        correction=correction,
        averaging_measured=effect is not None,
        corrections=corrections,
        rates=rates,
        interval=interval,
        new_set_interval=new_set,
        at_prior=None if prior is None else at_prior(rates, prior),
    )


def _probabilities(logits: Floats) -> NDArray[np.float64]:
    from scipy.special import expit

    return np.asarray(expit(logits), np.float64)
