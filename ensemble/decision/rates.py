"""Error rates, and the checks of the logits, labels and predictions that they are computed from.

An image is predicted as 1 if and only if its logit is greater than or equal to the threshold. Of more than two classes,
an image is predicted as the class with the greatest logit plus offset, and the highest of these classes in a tie. With
the logits 0 and z and the offsets 0 and -threshold, this is the rule of two classes. These tie rules hold in the whole
package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.errors import DataError

Floats: TypeAlias = NDArray[np.float64]
Labels: TypeAlias = NDArray[np.int8]

Cut: TypeAlias = float | tuple[float, ...]
"""What turns scores into predictions: a threshold for two classes, the C offsets of the classes for more."""


@dataclass(frozen=True)
class ErrorRates:
    """False-positive and false-negative rate, each in [0, 1], and the number of rows of each label.

    >>> ErrorRates(fpr=0.1, fnr=0.3, n_neg=50, n_pos=200).hter
    0.2
    """

    fpr: float  # share of the rows of label 0 that are predicted as 1
    fnr: float  # share of the rows of label 1 that are predicted as 0
    n_neg: int
    n_pos: int

    @property
    def hter(self) -> float:
        """Half total error rate, (FPR + FNR) / 2 = 1 - balanced accuracy."""
        return (self.fpr + self.fnr) / 2

    @property
    def n(self) -> int:
        """The number of rows of both labels."""
        return self.n_neg + self.n_pos


@dataclass(frozen=True)
class ClassRates:
    """The confusion matrix of three or more classes, and the rates that follow from it.

    Parameters
    ----------
    confusion : C tuples of C ints
        Counts [label][prediction]; every class has at least one row.

    Examples
    --------
    >>> rates = ClassRates(((3, 1, 0), (0, 2, 0), (0, 1, 1)))
    >>> rates.errors, rates.mean_error, rates.accuracy
    ((0.25, 0.0, 0.5), 0.25, 0.75)
    """

    confusion: tuple[tuple[int, ...], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of rows of each class (C,)."""
        return tuple(map(sum, self.confusion))

    @property
    def predicted(self) -> tuple[int, ...]:
        """The number of rows that are predicted as each class (C,)."""
        return tuple(map(sum, zip(*self.confusion, strict=True)))

    @property
    def errors(self) -> tuple[float, ...]:
        """The share of the rows of each class that are predicted as another (C,), 1 - recall."""
        return tuple((n - row[c]) / n for c, (row, n) in enumerate(zip(self.confusion, self.counts, strict=True)))

    @property
    def recalls(self) -> tuple[float, ...]:
        """The share of the rows of each class that are predicted as this class (C,)."""
        return tuple(row[c] / n for c, (row, n) in enumerate(zip(self.confusion, self.counts, strict=True)))

    @property
    def precisions(self) -> tuple[float, ...]:
        """The share of the rows predicted as each class that have this label (C,); 0 where there are none."""
        return tuple(self.confusion[c][c] / n if n else 0.0 for c, n in enumerate(self.predicted))

    @property
    def f1_scores(self) -> tuple[float, ...]:
        """The harmonic mean of precision and recall of each class (C,)."""
        sums = zip(self.counts, self.predicted, strict=True)
        return tuple(2 * self.confusion[c][c] / (n + predicted) for c, (n, predicted) in enumerate(sums))

    @property
    def mean_error(self) -> float:
        """The mean of the error rates of the classes; of two classes, it is the HTER."""
        return sum(self.errors) / len(self.confusion)

    @property
    def macro_f1(self) -> float:
        """The mean of the F1 scores of the classes."""
        return sum(self.f1_scores) / len(self.confusion)

    @property
    def accuracy(self) -> float:
        """The share of rows that are predicted correctly."""
        return sum(row[c] for c, row in enumerate(self.confusion)) / self.n

    @property
    def n(self) -> int:
        """The number of rows of all classes."""
        return sum(self.counts)


def class_rates(labels: ArrayLike, y_pred: ArrayLike, classes: int) -> ClassRates:
    """Return the confusion matrix of predictions.

    Parameters
    ----------
    labels, y_pred : array (n,)
        Class indices, 0 to `classes` - 1; the labels contain every class.
    classes : int
        The number of classes C.

    Raises
    ------
    DataError
        Shapes differ, a value is no class index, or a class is absent from the labels.

    Examples
    --------
    >>> class_rates([0, 1, 2, 2], [0, 1, 1, 2], 3).confusion
    ((1, 0, 0), (0, 1, 0), (0, 1, 1))
    """
    task = "cannot compute error rates"
    y_true = class_indices(task, "labels", labels, classes)
    y_pred = class_indices(task, "predictions", y_pred, classes)
    if y_true.shape != y_pred.shape:
        raise DataError(task, f"labels and predictions must have one shape; got {y_true.shape} and {y_pred.shape}")
    confusion = np.bincount(y_true.astype(np.int64) * classes + y_pred, minlength=classes**2).reshape(classes, classes)
    refuse_absent(task, y_true, classes)
    return ClassRates(tuple(map(tuple, confusion.tolist())))


def class_error(logits: Floats, labels: Labels) -> float | None:
    """Return the mean class error of the greatest of the logits (n, C); None if a class is absent or one not finite."""
    classes = logits.shape[1]
    if np.unique(labels).size < classes or not np.isfinite(logits).all():
        return None
    return class_rates(labels, apply_offsets(logits, np.zeros(classes)), classes).mean_error


def refuse_absent(task: str, labels: Labels, classes: int) -> None:
    """Raise `DataError` where a class is absent from labels (n,)."""
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        absent = int(np.argmin(counts))
        raise DataError(task, f"every class must be present; got 0 of label {absent} in {labels.size} images")


def class_indices(task: str, what: str, values: ArrayLike, classes: int) -> Labels:
    """Return values that must be class indices, 0 to `classes` - 1, as an int8 array (n,); see `zero_or_one`."""
    raw: NDArray[Any] = np.asarray(values)
    if raw.ndim != 1:
        raise DataError(task, f"{what} must have shape (n,); got {raw.shape}")
    bad = ~np.isin(raw, np.arange(classes))
    if bad.any():
        problem = f"{what} must be 0 to {classes - 1}; got {raw[bad][0]} at row {int(np.argmax(bad))}"
        raise DataError(task, problem)
    return raw.astype(np.int8)


def error_rates(labels: ArrayLike, y_pred: ArrayLike) -> ErrorRates:
    """Return the FPR and FNR of predictions.

    Parameters
    ----------
    labels, y_pred : array (n,)
        0 or 1; the labels contain both classes.

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
    true_pos = int(np.count_nonzero(y_true & y_pred))
    false_pos, false_neg = int(np.count_nonzero(y_pred)) - true_pos, n_pos - true_pos
    return ErrorRates(false_pos / n_neg, false_neg / n_pos, n_neg, n_pos)


def apply_threshold(logits: ArrayLike, threshold: float) -> Labels:
    """Return 1 where the logit is >= `threshold`, else 0, in the shape of `logits`.

    >>> apply_threshold([-1.0, 0.5, 2.0], 0.5)
    array([0, 1, 1], dtype=int8)
    """
    return np.asarray(np.asarray(logits) >= threshold, dtype=np.int8)


def apply_offsets(scores: ArrayLike, offsets: ArrayLike) -> Labels:
    """Return the class with the greatest score plus offset, the highest one in a tie.

    Parameters
    ----------
    scores : float64 array (..., C)
    offsets : array (C,)

    Returns
    -------
    int8 array (...)

    Examples
    --------
    >>> apply_offsets([[0.0, 1.0, 2.0], [3.0, 1.0, 2.0]], [0.0, 0.0, 1.0])
    array([2, 2], dtype=int8)
    """
    shifted = np.asarray(scores, np.float64) + np.asarray(offsets, np.float64)
    highest = shifted.shape[-1] - 1
    return np.asarray(highest - np.argmax(shifted[..., ::-1], axis=-1), np.int8)  # argmax takes the first in a tie


def apply_cut(scores: ArrayLike, cut: Cut) -> Labels:
    """Return the predictions (n,) of scores (n,) at a threshold, or of scores (n, C) at the offsets of the classes."""
    return apply_offsets(scores, cut) if isinstance(cut, tuple) else apply_threshold(scores, cut)


def one_threshold(cut: Cut) -> float:
    """Return a cut of two classes as the threshold that it is."""
    if isinstance(cut, tuple):
        raise TypeError(f"two classes have a threshold; got the offsets {cut}")
    return float(cut)


def class_offsets(cut: Cut) -> tuple[float, ...]:
    """Return a cut of more than two classes as the offsets that it is."""
    if not isinstance(cut, tuple):
        raise TypeError(f"more than two classes have offsets; got the threshold {cut}")
    return cut


def auc(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the area under the ROC curve, in [0, 1].

    It is computed in the Mann-Whitney form (Hanley and McNeil 1982): the share of the pairs of a row of label 0 and a
    row of label 1 in which the row of label 1 has the higher logit. A tied pair counts half.

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


def check_logits(
    task: str, logits: ArrayLike, labels: ArrayLike, ndim: int = 1, classes: int = 2
) -> tuple[Floats, Labels]:
    """Check logits and labels, and return them as float64 and int8 arrays.

    Parameters
    ----------
    task : str
        What the caller computes; the error message begins with it.
    logits : array (n,) or (n, m); of more than two classes, (n, C) or (n, m, C)
        Finite.
    labels : array (n,)
        Class indices, 0 to `classes` - 1, all present.
    ndim : int
        The required number of dimensions of the logits, 1 or 2, without the axis of the classes.
    classes : int
        The number of classes C.

    Raises
    ------
    DataError
        Shapes differ, a logit is not finite, or a class is absent.
    """
    y = _checked_labels(task, labels, classes)
    x = np.asarray(logits, dtype=np.float64)
    ndim += classes > 2
    if x.ndim != ndim or x.shape[0] != y.size:
        raise DataError(task, f"needs {ndim}-dimensional logits for {y.size} labels; got shape {x.shape}")
    if classes > 2 and x.shape[-1] != classes:
        raise DataError(task, f"needs a logit for each of {classes} classes; got shape {x.shape}")
    if not np.isfinite(x).all():
        raise DataError(
            task, f"logits must be finite; got {np.count_nonzero(~np.isfinite(x))} of {x.size} that are not"
        )
    return x, y


def check_predictions(task: str, labels: ArrayLike, y_pred: ArrayLike) -> tuple[Labels, Labels]:
    """Check labels and predictions, and return them as int8 arrays (n,).

    Parameters
    ----------
    task : str
        What the caller computes; the error message begins with it.
    labels, y_pred : array (n,)
        0 or 1; the labels contain both classes.

    Raises
    ------
    DataError
        Shapes differ, a value is neither 0 nor 1, or a class is absent from the labels.
    """
    y, y_pred = _checked_labels(task, labels), zero_or_one(task, "predictions", y_pred)
    if y.shape != y_pred.shape:
        raise DataError(task, f"labels and predictions must have one shape; got {y.shape} and {y_pred.shape}")
    return y, y_pred


def _checked_labels(task: str, labels: ArrayLike, classes: int = 2) -> Labels:
    if classes > 2:
        y = class_indices(task, "labels", labels, classes)
        refuse_absent(task, y, classes)
        return y
    y = zero_or_one(task, "labels", labels)
    ones = int(np.count_nonzero(y))
    for label, count in ((0, y.size - ones), (1, ones)):
        if not count:
            raise DataError(task, f"HTER needs both classes; got 0 of label {label} in {y.size} images")
    return y


def zero_or_one(task: str, what: str, values: ArrayLike) -> Labels:
    """Return values that must be 0 or 1 as an int8 array (n,).

    Parameters
    ----------
    task : str
        What the caller computes; the error message begins with it.
    what : str
        The plural noun for the values in the error message.
    values : array (n,)

    Raises
    ------
    DataError
        The array is not one-dimensional, or a value is neither 0 nor 1; the message gives the first such row.
    """
    raw: NDArray[Any] = np.asarray(values)
    if raw.ndim != 1:
        raise DataError(task, f"{what} must have shape (n,); got {raw.shape}")
    bad = (raw != 0) & (raw != 1)
    if bad.any():
        raise DataError(task, f"{what} must be 0 or 1; got {raw[bad][0]} at row {int(np.argmax(bad))}")
    return raw.astype(np.int8)
