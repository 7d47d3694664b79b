"""Error rates, and the checks of what they are computed from.

An image is predicted as 1 if and only if its logit is at or above the threshold: a tie is a 1, here and everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.errors import DataError

Floats: TypeAlias = NDArray[np.float64]
Labels: TypeAlias = NDArray[np.int8]


@dataclass(frozen=True)
class ErrorRates:
    """The two error rates, each in [0, 1], and the counts that they are shares of.

    >>> ErrorRates(fpr=0.1, fnr=0.3, n_neg=50, n_pos=200).hter
    0.2
    """

    fpr: float  # share of label 0 predicted as 1
    fnr: float  # share of label 1 predicted as 0
    n_neg: int
    n_pos: int

    @property
    def hter(self) -> float:
        """Half total error rate, (FPR + FNR) / 2 = 1 - balanced accuracy."""
        return (self.fpr + self.fnr) / 2

    @property
    def n(self) -> int:
        return self.n_neg + self.n_pos


def error_rates(labels: ArrayLike, y_pred: ArrayLike) -> ErrorRates:
    """Return FPR and FNR of predictions against labels.

    Parameters
    ----------
    labels, y_pred : array (n,)
        0 or 1; both classes among the labels.

    Raises
    ------
    DataError
        Shapes differ, a value is neither 0 nor 1, or a class is absent from the labels.

    Examples
    --------
    >>> error_rates([0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0])
    ErrorRates(fpr=0.5, fnr=0.25, n_neg=2, n_pos=4)
    """
    y_true, y_pred = check_predictions("cannot compute error rates", labels, y_pred)
    n_pos = int(np.count_nonzero(y_true))
    n_neg = y_true.size - n_pos
    hits = int(np.count_nonzero(y_true & y_pred))
    return ErrorRates((int(np.count_nonzero(y_pred)) - hits) / n_neg, (n_pos - hits) / n_pos, n_neg, n_pos)


def apply_threshold(logits: ArrayLike, threshold: float) -> Labels:
    """Return 1 where the logit is >= `threshold`, else 0, in the shape of `logits`.

    >>> apply_threshold([-1.0, 0.5, 2.0], 0.5)
    array([0, 1, 1], dtype=int8)
    """
    return np.asarray(np.asarray(logits) >= threshold, dtype=np.int8)


def auc(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of (label 0, label 1) pairs that the logits order rightly; a tied pair counts half.

    The Mann-Whitney form of the area under the ROC curve (Hanley and McNeil 1982).

    Parameters
    ----------
    logits : float64 array (n,)
        Finite; higher means label 1.
    labels : array (n,)
        0 or 1, both present.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.

    Examples
    --------
    >>> auc([0.0, 1.0, 1.0, 2.0], [0, 0, 1, 1])
    0.875
    """
    x, y = check_logits("cannot compute the AUC", logits, labels)
    neg, pos = np.sort(x[y == 0]), np.sort(x[y == 1])
    below = int(np.searchsorted(neg, pos, "left").sum()) + int(np.searchsorted(neg, pos, "right").sum())
    return below / (2 * neg.size * pos.size)


def check_logits(task: str, logits: ArrayLike, labels: ArrayLike, ndim: int = 1) -> tuple[Floats, Labels]:
    """Return finite float64 logits, (n,) or (n, m) as `ndim` says, and int8 labels (n,) of both classes."""
    y = _checked_labels(task, labels)
    x = np.asarray(logits, dtype=np.float64)
    if x.ndim != ndim or x.shape[0] != y.size:
        raise DataError(task, f"needs {ndim}-dimensional logits for {y.size} labels; got shape {x.shape}")
    if not np.isfinite(x).all():
        raise DataError(
            task, f"logits must be finite; got {np.count_nonzero(~np.isfinite(x))} of {x.size} that are not"
        )
    return x, y


def check_predictions(task: str, labels: ArrayLike, y_pred: ArrayLike) -> tuple[Labels, Labels]:
    y, y_pred = _checked_labels(task, labels), zero_or_one(task, "predictions", y_pred)
    if y.shape != y_pred.shape:
        raise DataError(task, f"labels and predictions must have one shape; got {y.shape} and {y_pred.shape}")
    return y, y_pred


def _checked_labels(task: str, labels: ArrayLike) -> Labels:
    y = zero_or_one(task, "labels", labels)
    ones = int(np.count_nonzero(y))
    for label, count in ((0, y.size - ones), (1, ones)):
        if not count:
            raise DataError(task, f"HTER needs both classes; got 0 of label {label} in {y.size} images")
    return y


def zero_or_one(task: str, what: str, values: ArrayLike) -> Labels:
    raw: NDArray[Any] = np.asarray(values)
    if raw.ndim != 1:
        raise DataError(task, f"{what} must have shape (n,); got {raw.shape}")
    bad = (raw != 0) & (raw != 1)
    if bad.any():
        raise DataError(task, f"{what} must be 0 or 1; got {raw[bad][0]} at row {int(np.argmax(bad))}")
    return raw.astype(np.int8)
