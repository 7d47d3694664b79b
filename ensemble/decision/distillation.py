"""The probabilities that a student learns from the logits of its teacher."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.decision.rates import Floats, Labels

STEPS, TOLERANCE = 500, 1e-10
"""The most steps that match shares, and the difference of a share at which they end."""


def soft_targets(
    logits: ArrayLike,
    labels: Labels,
    training: NDArray[np.int64],
    teacher_weight: float = 0.7,
    temperature: float = 1.0,
) -> NDArray[np.float32]:
    """Return the probabilities that the student of one fold learns.

    The teacher's logits are divided by the temperature and shifted, by one constant for each class, until the mean
    probability of each class on the training rows is the share of its labels there: the teachers of different folds,
    whose networks may have other offsets, then agree. Training rows mix that probability with their label; the other
    rows have it alone. No label of another row is read.

    Parameters
    ----------
    logits : float64 array (n,) or (n, C)
        Of the teacher.
    labels : int8 array (at least r,)
        0 or 1, or 0 to C - 1; only those of training rows are read.
    training : int array (r,)
        The training rows of the fold.
    teacher_weight : float
        The share of the teacher's probability in the targets of training rows, in [0, 1].
    temperature : float
        Above 0.

    Returns
    -------
    float32 array (n,) or (n, C)
        The probability of label 1, or of each class.

    Examples
    --------
    >>> soft_targets([0.0, 0.0, 0.0], np.array([0, 1, 0]), np.array([0, 1]), teacher_weight=0.5)
    array([0.25, 0.75, 0.5 ], dtype=float32)
    """
    x, of_training = np.asarray(logits, np.float64), labels[training]
    scores = np.column_stack((np.zeros(len(x)), x)) if x.ndim == 1 else x
    probabilities = _with_shares(scores / temperature, training, of_training)
    given = np.eye(scores.shape[1])[of_training]
    probabilities[training] = teacher_weight * probabilities[training] + (1 - teacher_weight) * given
    return np.asarray(probabilities[:, 1] if x.ndim == 1 else probabilities, np.float32)


def _with_shares(scores: Floats, training: NDArray[np.int64], labels: Labels) -> Floats:
    """Return the probabilities (n, C) of scores, shifted so that their means on the training rows are the shares.

    A class without a training row keeps its scores.
    """
    from scipy.special import softmax

    counts = np.bincount(labels, minlength=scores.shape[1])
    present, shift = counts > 0, np.zeros(scores.shape[1])
    for _ in range(STEPS):
        means = softmax(scores[training] + shift, axis=1).mean(axis=0)
        if np.abs(means - counts / labels.size)[present].max() < TOLERANCE:
            break
        shift[present] += np.log(counts[present] / labels.size) - np.log(np.maximum(means[present], 1e-300))
    return np.asarray(softmax(scores + shift, axis=1))
