"""Labels for new images among more than two classes, and the rates to expect of them; see deploy.py for two.

The effect of averaging the fold models is not measured: the rates are those of a single fold model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.decision.class_intervals import class_new_set_interval
from ensemble.decision.class_objective import ClassObjective
from ensemble.decision.class_stacker import ClassStacker
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.deploy import stacked_folds
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ClassRates, Floats, Labels, apply_offsets
from ensemble.decision.shift import ClassShareCheck, check_class_shares
from ensemble.errors import ConfigError
from ensemble.predict_config import CORRECTIONS


class Assessed(Protocol):
    """What this file reads of the assessment of the stack."""

    @property
    def offsets(self) -> tuple[float, ...]:
        """The offsets of the classes (C,)."""

    @property
    def nested(self) -> ClassRates:
        """The nested rates."""

    @property
    def mean_error(self) -> Interval:
        """The interval of the mean error."""

    @property
    def macro_f1(self) -> Interval:
        """The interval of the macro F1."""

    @property
    def accuracy(self) -> Interval:
        """The interval of the accuracy."""

    @property
    def design_effects(self) -> tuple[float, ...]:
        """The design effects of groups on the error rates of the classes (C,)."""


class Decided(Protocol):
    """What this file reads of a decision among more than two classes."""

    @property
    def stacker(self) -> ClassStacker:
        """The stacker of the members."""

    @property
    def objective(self) -> ClassObjective:
        """What the offsets minimise."""

    @property
    def stacked(self) -> Assessed:
        """The assessment of the stack."""

    def votes(self, logits: ArrayLike) -> tuple[Labels, Labels]:
        """Return the members' votes (n, m) on logits (n, m, C), and their plurality (n,)."""


@dataclass(frozen=True)
class ClassExpectation:
    """The rates to expect of a label file of more than two classes.

    Attributes
    ----------
    rates : ClassRates
        The nested rates of a single fold model. Where all images got one class, those of any such file: the error rate
        is 0 for this class and 1 for the others.
    mean_error, macro_f1, accuracy : Interval
        95 % intervals. Where all images got one class, both ends are the value at the class shares of the OOF rows.
    objective : ClassObjective
        What the offsets minimise.
    new_set_interval : Interval or None
        The 95 % prediction interval of the mean error that would be measured on these images, if they have the class
        shares of the OOF rows; None for fewer images than classes.
    averaging_measured : bool
        Always False: the rates are those of a single fold model.
    """

    rates: ClassRates
    mean_error: Interval
    macro_f1: Interval
    accuracy: Interval
    objective: ClassObjective
    new_set_interval: Interval | None
    averaging_measured: bool = False
    correction: str = "none"

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the loss under the objective: the mean error, 1 - macro F1, or 1 - accuracy."""
        return self.objective.loss_interval(self)


@dataclass(frozen=True, eq=False)
class ClassDeployment:
    """The labels of a set of images among more than two classes, with the logits and votes that they come from.

    Attributes
    ----------
    y_pred : int8 array (n,)
        The class indices: those of the greatest stacked logit plus offset, or of the vote of the fold models.
    logits : float64 array (n, m, C)
        The logits of each member of the stack, averaged over views and fold models.
    stacked_logits : float64 array (n, C)
        The stack of `logits`.
    probabilities : float64 array (n, C)
        The softmax of the stacked logits: the probabilities at the class shares of the OOF rows, without offsets.
    offsets : tuple of C floats
        Of the stacked logits.
    member_votes : int8 array (n, m)
        The prediction of each member at the offsets that were fitted to its logits alone.
    plurality : int8 array (n,)
        The class with most of the members' votes.
    fold_votes : int8 array (n, k), or (n, 0)
        The prediction of each fold model's stack; (n, 0) unless the fold models vote.
    expectation : ClassExpectation
    share_check : ClassShareCheck
    """

    y_pred: Labels
    logits: Floats
    stacked_logits: Floats
    probabilities: Floats
    offsets: tuple[float, ...]
    member_votes: Labels
    plurality: Labels
    fold_votes: Labels
    expectation: ClassExpectation
    share_check: ClassShareCheck


def class_label(
    decision: Decided, fold_logits: Floats, logits: Floats, combine: str = "mean"
) -> tuple[Labels, Floats, Labels]:
    """Return the labels (n,) of images, their stacked logits (n, C), and the fold models' votes, (n, k) or (n, 0).

    Each image's label depends on its own logits alone. The parameters are those of `class_deploy`.
    """
    offsets, stacked = decision.stacked.offsets, decision.stacker.apply(logits)
    if combine == "vote":
        y_pred, fold_votes = plurality_of_folds(decision.stacker, offsets, fold_logits)
        return y_pred, stacked, fold_votes
    return apply_offsets(stacked, offsets), stacked, np.empty((len(logits), 0), np.int8)


def class_probabilities(stacked: Floats) -> Floats:
    """Return the probabilities (n, C) of stacked logits (n, C), at the class shares of the OOF rows."""
    from scipy.special import softmax

    return np.asarray(softmax(stacked, axis=1))


def class_deploy(
    decision: Decided,
    oof: OofLogits,
    fold_logits: Floats,
    logits: Floats,
    combine: str = "mean",
    correction: str = CORRECTIONS[0],
    prior: float | None = None,
    is_new: NDArray[np.bool_] | None = None,
) -> ClassDeployment:
    """Return labels for new images among more than two classes, and the rates to expect of them.

    Parameters
    ----------
    decision : ClassDecision
    oof : OofLogits
        The OOF logits (n_oof, m, C) of the members of the stack, averaged over the decision's views.
    fold_logits : float64 array (n, m, k, C)
        The logits of the new images by member and fold model, averaged over the decision's views.
    logits : float64 array (n, m, C)
        The mean of `fold_logits` over the fold models, as it is stored.
    combine : {"mean", "vote"}
        How the fold models are combined: by the mean of their logits, or by the plurality of their labels.
    correction, prior
        Only the default correction or "none", and no prior: a correction for averaging and a prior are for two classes
        alone. No correction is applied.
    is_new : bool array (n,), optional
        Which images were not in training; by default all. The share check leaves the others out.

    Raises
    ------
    ConfigError
        A correction or a prior is given that is for two classes alone.
    """
    refuse_options_of_two_classes(correction, prior)
    check = check_new_class_shares(decision, oof, fold_logits, is_new)
    y_pred, stacked, fold_votes = class_label(decision, fold_logits, logits, combine)
    member_votes, plurality = decision.votes(logits)
    return ClassDeployment(
        y_pred=y_pred,
        logits=logits,
        stacked_logits=stacked,
        probabilities=class_probabilities(stacked),
        offsets=decision.stacked.offsets,
        member_votes=member_votes,
        plurality=plurality,
        fold_votes=fold_votes,
        expectation=expected_rates(decision, y_pred, check),
        share_check=check,
    )


def refuse_options_of_two_classes(correction: str = CORRECTIONS[0], prior: float | None = None) -> None:
    """Raise `ConfigError` where a correction or a prior is given that is for two classes alone."""
    if correction not in (CORRECTIONS[0], "none"):
        problem = f"a correction for averaging is for two classes alone; got {correction}"
        raise ConfigError("--correction", problem, "leave it out")
    if prior is not None:
        raise ConfigError("--prior", f"a share of label 0 is for two classes alone; got {prior}", "leave it out")


def check_new_class_shares(
    decision: Decided, oof: OofLogits, fold_logits: Floats, is_new: NDArray[np.bool_] | None = None
) -> ClassShareCheck:
    """Return the share check of the images that are new, from the logits (n, m, k, C) by member and fold model."""
    offsets = decision.stacked.offsets
    of_new = fold_logits if is_new is None else fold_logits[is_new]
    oof_pred = apply_offsets(decision.stacker.apply(oof.logits), offsets)
    fold_pred = apply_offsets(stacked_folds(decision.stacker, of_new), offsets)
    return check_class_shares(oof_pred, fold_pred, len(offsets), oof.groups)


def plurality_of_folds(stacker: ClassStacker, offsets: tuple[float, ...], fold_logits: Floats) -> tuple[Labels, Labels]:
    """Return the labels by plurality vote of the fold models, and the votes.

    The members' logits are first stacked within each fold. Among classes with equally many votes, the one with the
    greatest mean of the stacked logits plus offset wins.

    Parameters
    ----------
    stacker : ClassStacker
    offsets : tuple of C floats
        Of the stacked logits.
    fold_logits : float64 array (n, m, k, C)

    Returns
    -------
    int8 array (n,)
        The labels.
    int8 array (n, k)
        The votes of the fold models.
    """
    stacked = stacked_folds(stacker, fold_logits)
    votes = apply_offsets(stacked, offsets)
    counts = (votes[:, :, None] == np.arange(len(offsets))).sum(axis=1)
    of_most = np.where(counts == counts.max(axis=1, keepdims=True), stacked.mean(axis=1), -np.inf)
    return apply_offsets(of_most, offsets), votes


def expected_rates(decision: Decided, y_pred: Labels, check: ClassShareCheck) -> ClassExpectation:
    """Return the rates to expect of labels (n,): the nested rates of a single fold model."""
    stacked, n = decision.stacked, len(y_pred)
    rates, classes = stacked.nested, len(stacked.offsets)
    intervals = stacked.mean_error, stacked.macro_f1, stacked.accuracy
    new_set = None
    if n >= classes:
        new_set = class_new_set_interval(rates, share_out(n, rates.counts), stacked.design_effects)
    if np.unique(y_pred).size == 1 and not check.explains_one_label(int(y_pred[0]), n):
        rates = of_one_class(rates, int(y_pred[0]))
        mean_error, macro_f1, accuracy = (
            Interval(value, value) for value in (rates.mean_error, rates.macro_f1, rates.accuracy)
        )
        intervals = mean_error, macro_f1, accuracy
        new_set = None if new_set is None else intervals[0]
    return ClassExpectation(rates, *intervals, decision.objective, new_set)


def share_out(n: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many of `n` images each class has at the shares of `counts` (C,), at least one; n is at least C.

    >>> share_out(10, (1, 1, 98))
    (1, 1, 8)
    """
    shares = np.array(counts) / sum(counts) * n
    numbers = np.maximum(np.floor(shares), 1).astype(np.int64)
    while numbers.sum() != n:  # the remainders are given out, or what the smallest classes got too much is taken back
        if numbers.sum() < n:
            numbers[np.argmax(shares - numbers)] += 1
        else:
            numbers[np.argmin(np.where(numbers > 1, shares - numbers, np.inf))] -= 1
    return tuple(numbers.tolist())


def of_one_class(rates: ClassRates, label: int) -> ClassRates:
    """Return the rates of a file in which all images have one class, with the class counts of `rates`.

    >>> of_one_class(ClassRates(((3, 1, 0), (0, 2, 0), (0, 1, 1))), 1).confusion
    ((0, 4, 0), (0, 2, 0), (0, 2, 0))
    """
    classes = range(len(rates.confusion))
    return ClassRates(tuple(tuple(n if c == label else 0 for c in classes) for n in rates.counts))
