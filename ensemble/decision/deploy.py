"""From fold models' logits to labels: the corrected threshold, the vote, and the HTER to expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble.config import (
    PredictConfig,
)
from ensemble.decision.averaging import LEAST_IMAGES, Corrected, Foreseen, foresee
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision, stack_replicates
from ensemble.decision.rates import ErrorRates, call, error_rates
from ensemble.decision.shift import ShareCheck, at_prior, check_share

if TYPE_CHECKING:
    pass


REPLICATES = 400
"""Of the bootstrap behind the expected HTER; each fits the effect of averaging anew, about a hundredth of a second."""


LEAST_SHARE = 0.001
"""Of a class, that an estimate of the class mix is taken for: from a class that is not there nothing can be fitted."""


@dataclass(frozen=True)
class FoldLogits:
    """Logits (n, m, k) of each member and fold model, averaged over the views.

    A cascade has `known` (n, m), where a member was evaluated and not imputed, and `facts` about itself.
    """

    logits: np.ndarray
    known: np.ndarray | None = None
    facts: Mapping[str, Any] | None = None


def deployed_threshold(
    decision: Decision, oof: OofLogits, fold_logits: np.ndarray, wanted: PredictConfig, seed: int
) -> tuple[ShareCheck, float | None, Foreseen | None, float]:
    """Return what the images (n, m, k) say of their class mix, the mix that is taken, what to expect, the threshold."""
    of_folds = singles(decision, fold_logits)
    check = share_check(decision, oof, of_folds)
    mix = wanted.prior
    if mix is None and check.shifted:
        mix = float(np.clip(check.prior, LEAST_SHARE, 1 - LEAST_SHARE))
    unknown = wanted.prior is None and check.shifted  # what has changed is not known: the threshold stays
    foreseen = _foresee(decision, oof, of_folds, "none" if unknown else wanted.correction, mix, seed)
    return check, mix, foreseen, decision.threshold if foreseen is None else foreseen.chosen.threshold


def singles(decision: Decision, fold_logits: np.ndarray) -> np.ndarray:
    """Return the stacked logits (n, k) of single fold models, from those of the members (n, m, k)."""
    return np.stack([decision.stacker.apply(of_fold) for of_fold in np.moveaxis(fold_logits, 2, 0)], axis=1)


def majority_of_folds(decision: Decision, fold_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels (n,) that most fold models give at the decision's threshold, and what each gives (n, k).

    Each fold's members, (n, m, k) in all, are stacked first. Where the folds are split evenly, the mean of their
    stacked logits decides.
    """
    of_folds = singles(decision, fold_logits)
    votes = call(of_folds, decision.threshold)
    ones, zeros = votes.sum(axis=1), (1 - votes).sum(axis=1)
    mean = call(of_folds.mean(axis=1), decision.threshold)
    return np.where(ones == zeros, mean, ones > zeros).astype(np.int8), votes


def share_check(decision: Decision, oof: OofLogits, singles: np.ndarray) -> ShareCheck:
    """Return the share check of the fold models' stacked logits (n, k)."""
    scores = decision.stacker.apply(oof.logits)
    rates = error_rates(oof.labels, call(scores, decision.threshold))
    return check_share(scores, singles, decision.threshold, rates, oof.groups)


def _foresee(
    decision: Decision, oof: OofLogits, singles: np.ndarray, correction: str, prior: float | None, seed: int
) -> Foreseen | None:
    """Return what to expect of the mean of the fold models' stacked logits (n, k); None for too few images."""
    if len(singles) < LEAST_IMAGES:
        return None
    return foresee(
        decision.stacker.apply(oof.logits),
        oof.labels,
        singles,
        decision.threshold,
        decision.nested,
        stack_replicates(decision, oof, seed, REPLICATES),
        correction,
        decision.objective,
        prior,
        seed,
    )


def expectations(
    decision: Decision, foreseen: Foreseen | None, n: int, prior: float | None, seed: int
) -> dict[str, Any]:
    """Return the facts of the rates to expect; the nested ones where nothing is known of averaging."""
    if foreseen is None:
        rates, interval, measured = decision.nested, decision.interval, decision.stacked.new_set_interval(n, seed)
        known: dict[str, Any] = {"correction": "none", "averaging_measured": False, "corrections": {}}
    else:
        rates, interval, measured = foreseen.chosen.rates, foreseen.interval, foreseen.measured
        candidates = {each.correction: _corrected(each) for each in foreseen.candidates}
        known = {"correction": foreseen.chosen.correction, "averaging_measured": True, "corrections": candidates}
    return {
        **known,
        "expected": _rates(rates),
        "hter_interval": [interval.low, interval.high],
        "expected_interval": measured and [measured.low, measured.high],
        "at_prior": None if prior is None else at_prior(rates, prior).to_json(),
    }


def _corrected(corrected: Corrected) -> dict[str, float]:
    facts = {"threshold": corrected.threshold, "share_of_label_0": corrected.share_of_label_0}
    return facts | _rates(corrected.rates)


def _rates(rates: ErrorRates) -> dict[str, float]:
    return {"fpr": rates.fpr, "fnr": rates.fnr, "hter": rates.hter}


def probability(logits: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(logits))
