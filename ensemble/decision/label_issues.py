"""Confident learning: the labels that the model contradicts. No other file imports cleanlab, which is slow to load."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.rates import Floats, Labels, check_logits

CALIBRATION_FOLDS = 5
"""The number of folds over which the calibration is cross-fitted. Each class needs at least one row in each."""


def confident_joint(logits: ArrayLike, labels: ArrayLike, seed: int = 0) -> NDArray[np.int64]:
    """Return the confident joint: the counts of rows by given label and confidently predicted class.

    Cross-fitted isotonic regression turns the logits into probabilities. A row then counts for class c if its
    probability of c is at least the mean of that probability over the rows that are labelled c. If this holds for both
    classes, the row counts for the more probable one; if it holds for neither, the row is not counted.

    Parameters
    ----------
    logits : float64 array (n,)
        Out-of-fold logits, finite; higher means label 1. Any increasing function of them gives the same counts.
    labels : int8 array (n,)
        The given labels, 0 or 1; at least `CALIBRATION_FOLDS` rows of each.
    seed : int
        The seed of the assignment of rows to calibration folds.

    Returns
    -------
    int64 array (2, 2)
        One row per given label and one column per confidently predicted class. The sum is at most n.

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
    p = calibrated(x, y, seed)
    joint = compute_confident_joint(y.astype(np.int64), np.stack([1 - p, p], axis=1), calibrate=False)
    return np.asarray(joint, np.int64)


def find_issues(logits: ArrayLike, labels: ArrayLike, seed: int = 0) -> NDArray[np.bool_]:
    """Return which labels are likely to be wrong, by cleanlab's pruning by noise rate.

    For each given label, the number of issues is the number of its rows that the confident joint counts in the other
    class. The rows whose calibrated probabilities contradict the label most are returned as the issues.

    Parameters
    ----------
    logits : float64 array (n,)
        Out-of-fold logits, finite; higher means label 1.
    labels : int8 array (n,)
        The given labels, 0 or 1; at least `CALIBRATION_FOLDS` rows of each.
    seed : int
        The seed of the assignment of rows to calibration folds.

    Returns
    -------
    bool array (n,)
        True where the label is likely to be wrong.

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
    p = calibrated(x, y, seed)
    issues = find_label_issues(y.astype(np.int64), np.stack([1 - p, p], axis=1), n_jobs=1)
    return np.asarray(issues, np.bool_)


def calibrated(logits: Floats, labels: Labels, seed: int = 0) -> Floats:
    """Return each row's probability of label 1, by isotonic regression on the rows of the other calibration folds.

    The `CALIBRATION_FOLDS` folds are stratified by label.

    Parameters
    ----------
    logits : float64 array (n,)
        Finite; higher means label 1.
    labels : int8 array (n,)
        0 or 1, at least `CALIBRATION_FOLDS` rows of each.
    seed : int
        The seed of the assignment of rows to calibration folds.

    Returns
    -------
    float64 array (n,)
        Within [1e-6, 1 - 1e-6].
    """
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(seed_sequence(seed, "calibration"))
    fold_of = np.empty(labels.size, np.int64)
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        fold_of[rows] = np.arange(rows.size) % CALIBRATION_FOLDS
    p = np.empty(labels.size)
    for fold in range(CALIBRATION_FOLDS):
        inside = fold_of == fold
        model = IsotonicRegression(y_min=1e-6, y_max=1 - 1e-6, out_of_bounds="clip")
        model.fit(logits[~inside], labels[~inside].astype(np.float64))
        p[inside] = model.predict(logits[inside])
    return p
