"""Confident learning: the labels that the model contradicts. No other file imports cleanlab, which is slow to load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.config import seed_sequence
from ensemble.decision.rates import Floats, Labels, check_logits

CALIBRATION_FOLDS = 5
"""The number of folds over which the calibration is cross-fitted. Each class needs at least one row in each."""


def confident_joint(logits: ArrayLike, labels: ArrayLike, seed: int = 0) -> NDArray[np.int64]:
    """Return the confident joint: the counts of rows by given label and confidently predicted class.

    Cross-fitted calibration turns the logits into probabilities (`calibrated`). A row then counts for class c if its
    probability of c is at least the mean of that probability over the rows that are labelled c. If this holds for
    several classes, the row counts for the most probable one; if it holds for none, the row is not counted.

    Parameters
    ----------
    logits : float64 array (n,) or (n, C)
        Out-of-fold logits, finite. Of two classes, higher means label 1, and any increasing function of them gives the
        same counts; of more, there is one column for each class.
    labels : int8 array (n,)
        The given labels, 0 or 1, or 0 to C - 1; at least `CALIBRATION_FOLDS` rows of each.
    seed : int
        The seed of the assignment of rows to calibration folds.

    Returns
    -------
    int64 array (2, 2) or (C, C)
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

    x, y = _checked("cannot learn confidently", logits, labels)
    joint = compute_confident_joint(y.astype(np.int64), _of_classes(calibrated(x, y, seed)), calibrate=False)
    return np.asarray(joint, np.int64)


def find_issues(logits: ArrayLike, labels: ArrayLike, seed: int = 0) -> NDArray[np.bool_]:
    """Return which labels are likely to be wrong, by cleanlab's pruning by noise rate.

    For each given label, the number of issues is the number of its rows that the confident joint counts in the other
    class. The rows whose calibrated probabilities contradict the label most are returned as the issues.

    Parameters
    ----------
    logits : float64 array (n,) or (n, C)
        Out-of-fold logits, finite. Of two classes, higher means label 1; of more, there is one column for each class.
    labels : int8 array (n,)
        The given labels, 0 or 1, or 0 to C - 1; at least `CALIBRATION_FOLDS` rows of each.
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

    x, y = _checked("cannot find label issues", logits, labels)
    issues = find_label_issues(y.astype(np.int64), _of_classes(calibrated(x, y, seed)), n_jobs=1)
    return np.asarray(issues, np.bool_)


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """The labels that are likely to be wrong, the most doubtful first.

    Attributes
    ----------
    rows : int64 array (s,)
    suggested : int64 array (s,)
        The most probable other class.
    probability : float64 array (s,)
        The calibrated probability of the given label.
    """

    rows: NDArray[np.int64]
    suggested: NDArray[np.int64]
    probability: Floats


def rank_issues(logits: ArrayLike, labels: ArrayLike, seed: int = 0) -> LabelIssues:
    """Return the rows of `find_issues`, those whose given label is least probable first.

    Calibration gives many rows the same probability. Among those, the row comes first whose logits favour the suggested
    class over the given one most.

    Parameters
    ----------
    logits : float64 array (n,) or (n, C)
        Out-of-fold logits, finite. Of two classes, higher means label 1; of more, there is one column for each class.
    labels : int8 array (n,)
        The given labels, 0 or 1, or 0 to C - 1; at least `CALIBRATION_FOLDS` rows of each.
    seed : int
        The seed of the assignment of rows to calibration folds.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.

    Examples
    --------
    >>> logits, labels = np.linspace(-4.0, 4.0, 100), np.repeat([0, 1], 50)
    >>> labels[:5] = 1
    >>> issues = rank_issues(logits, labels)
    >>> np.sort(issues.rows), issues.suggested
    (array([0, 1, 2, 3, 4]), array([0, 0, 0, 0, 0]))
    """
    x, y = _checked("cannot find label issues", logits, labels)
    rows = np.flatnonzero(find_issues(x, y, seed))
    p, given, each = _of_classes(calibrated(x, y, seed))[rows], y[rows].astype(np.int64), np.arange(rows.size)
    others = p.copy()
    others[each, given] = -1.0
    suggested = others.argmax(axis=1)
    scores = np.stack([-x, x], axis=1)[rows] if x.ndim == 1 else x[rows]
    favour = scores[each, suggested] - scores[each, given]
    order = np.lexsort((rows, -favour, p[each, given]))
    return LabelIssues(rows[order], suggested[order], p[each, given][order])


def calibrated(logits: Floats, labels: Labels, seed: int = 0) -> Floats:
    """Return each row's probability of label 1, or of every class, calibrated on the rows of the other folds.

    The `CALIBRATION_FOLDS` folds are stratified by label. For two classes, the calibration is isotonic regression. For
    more, it is the softmax of the logits times one factor plus a bias for each class (Guo et al. 2017, On calibration
    of modern neural networks), because an isotonic regression for each class needs many rows of every class.

    Parameters
    ----------
    logits : float64 array (n,) or (n, C)
        Finite. Of two classes, higher means label 1; of more, there is one column for each class.
    labels : int8 array (n,)
        0 or 1, or 0 to C - 1; at least `CALIBRATION_FOLDS` rows of each.
    seed : int
        The seed of the assignment of rows to calibration folds.

    Returns
    -------
    float64 array (n,) or (n, C)
        Of two classes, the probability of label 1, within [1e-6, 1 - 1e-6]; of more, rows have the sum 1.
    """
    rng = np.random.default_rng(seed_sequence(seed, "calibration"))
    fold_of = np.empty(labels.size, np.int64)
    for label in range(2 if logits.ndim == 1 else logits.shape[1]):
        rows = rng.permutation(np.flatnonzero(labels == label))
        fold_of[rows] = np.arange(rows.size) % CALIBRATION_FOLDS
    fit, p = _isotonic if logits.ndim == 1 else _scaled_softmax, np.empty(logits.shape)
    for fold in range(CALIBRATION_FOLDS):
        inside = fold_of == fold
        p[inside] = fit(logits[~inside], labels[~inside])(logits[inside])
    return p


def _isotonic(logits: Floats, labels: Labels) -> Callable[[Floats], Floats]:
    """Return the isotonic regression of labels 0 and 1 on logits (n,)."""
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=1e-6, y_max=1 - 1e-6, out_of_bounds="clip")
    predict: Callable[[Floats], Floats] = model.fit(logits, labels.astype(np.float64)).predict
    return predict


def _scaled_softmax(logits: Floats, labels: Labels) -> Callable[[Floats], Floats]:
    """Return the softmax of factor · logits + biases that is most likely for the labels.

    The biases have the penalty |biases|² / 2, which keeps them finite if a class is absent.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax, softmax

    scale = max(float(logits.std()), 1e-12)
    x, is_class = logits / scale, np.eye(logits.shape[1])[labels]

    def loss(theta: Floats) -> tuple[float, Floats]:
        factor, biases = np.exp(theta[0]), theta[1:]
        scores = factor * x + biases
        excess = softmax(scores, axis=1) - is_class
        gradient = np.append((excess * x).sum() * factor, excess.sum(axis=0) + biases)
        return float(-(is_class * log_softmax(scores, axis=1)).sum() + biases @ biases / 2), gradient

    # The bounds of the logarithm of the factor keep it finite where the logits separate the classes perfectly.
    bounds = [(-7.0, 7.0), *[(None, None)] * logits.shape[1]]
    theta = minimize(loss, np.zeros(logits.shape[1] + 1), jac=True, method="L-BFGS-B", bounds=bounds).x
    return lambda new: np.asarray(softmax(np.exp(theta[0]) * new / scale + theta[1:], axis=1))


def _checked(task: str, logits: ArrayLike, labels: ArrayLike) -> tuple[Floats, Labels]:
    """Check logits (n,) or (n, C) and labels (n,)."""
    x = np.asarray(logits, np.float64)
    if x.ndim != 2:
        return check_logits(task, x, labels)
    x, y = check_logits(task, x, labels, classes=x.shape[1])
    return x, y


def _of_classes(p: Floats) -> Floats:
    """Return the probabilities of all classes (n, C), from those of label 1 (n,) or of all classes."""
    return np.stack([1 - p, p], axis=1) if p.ndim == 1 else p
