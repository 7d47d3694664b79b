"""Confident learning: which labels does the model contradict? The only importer of cleanlab, which is slow to load."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.rates import Floats, Labels, check_logits

CALIBRATION_FOLDS = 5


def confident_joint(logits: ArrayLike, labels: ArrayLike, seed: int = 0) -> NDArray[np.int64]:
    """Return the counts of (label as given, class that the model is sure of), over the rows that it is sure of.

    The logits are turned to probabilities by isotonic regression on the labels, cross-fitted. A row then counts for
    class c if its probability of c is at least the mean of that probability over the rows labelled c; where that holds
    for both classes, for the likelier one; where for neither, for none.

    Parameters
    ----------
    logits : float64 array (n,)
        Out-of-fold, finite; higher means label 1. Any rising function of them gives the same counts.
    labels : int8 array (n,)
        0 or 1, at least `CALIBRATION_FOLDS` of each.
    seed : int
        Of the assignment to the folds of the calibration.

    Returns
    -------
    int64 array (2, 2)
        Row: label as given. Column: true class by confident learning. The sum is at most n.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.

    References
    ----------
    Northcutt, Jiang and Chuang (2021), Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70, eq. 1-2.

    Examples
    --------
    >>> logits, labels = np.linspace(-4.0, 4.0, 100), np.repeat([0, 1], 50)
    >>> labels[:5] = 1
    >>> int(confident_joint(logits, labels)[1, 0])
    5
    """
    from cleanlab.count import compute_confident_joint

    x, y = check_logits("cannot learn confidently", logits, labels)
    one = calibrated(x, y, seed)
    joint = compute_confident_joint(y.astype(np.int64), np.stack([1 - one, one], axis=1), calibrate=False)
    return np.asarray(joint, np.int64)


def find_issues(logits: ArrayLike, labels: ArrayLike, seed: int = 0) -> NDArray[np.bool_]:
    """Return which labels (n,) are likely to be wrong, by cleanlab's pruning by noise rate.

    Of each class as many are named as the confident joint counts in the other, those first that the calibrated
    probabilities contradict most.

    Parameters
    ----------
    logits : float64 array (n,)
        Out-of-fold, finite; higher means label 1.
    labels : int8 array (n,)
        0 or 1, at least `CALIBRATION_FOLDS` of each.
    seed : int
        Of the assignment to the folds of the calibration.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.

    Examples
    --------
    >>> logits, labels = np.linspace(-4.0, 4.0, 100), np.repeat([0, 1], 50)
    >>> labels[:5] = 1
    >>> np.flatnonzero(find_issues(logits, labels))
    array([0, 1, 2, 3, 4])
    """
    from cleanlab.filter import find_label_issues

    x, y = check_logits("cannot find label issues", logits, labels)
    one = calibrated(x, y, seed)
    found = find_label_issues(y.astype(np.int64), np.stack([1 - one, one], axis=1), n_jobs=1)
    return np.asarray(found, np.bool_)


def calibrated(logits: Floats, labels: Labels, seed: int = 0) -> Floats:
    """Return each row's probability of label 1 (n,), by isotonic regression on the rows of the other folds.

    The folds, `CALIBRATION_FOLDS`, are stratified; the probabilities stay 1e-6 clear of 0 and 1.
    """
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(seed_sequence(seed, "calibration"))
    fold_of = np.empty(labels.size, np.int64)
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        fold_of[rows] = np.arange(rows.size) % CALIBRATION_FOLDS
    one = np.empty(labels.size)
    for fold in range(CALIBRATION_FOLDS):
        inside = fold_of == fold
        model = IsotonicRegression(y_min=1e-6, y_max=1 - 1e-6, out_of_bounds="clip")
        model.fit(logits[~inside], labels[~inside].astype(np.float64))
        one[inside] = model.predict(logits[inside])
    return one
