"""The second stage as a scikit-learn estimator: it turns member logits into labels at the best threshold."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite, check_random_state, column_or_1d
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from ensemble.data.folds import MAX_FOLDS, FoldTable, assign_folds
from ensemble.decision.cross_fitting import OofLogits, Rows, cross_fit, stack
from ensemble.decision.objective import Objective
from ensemble.decision.rates import Floats, Labels, apply_threshold, error_rates
from ensemble.decision.stacker import STACKERS
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ConfigError, DataError

LARGEST_SEED = 2**31 - 1
"""The exclusive upper bound of a seed that is drawn because `random_state` is None or a generator."""


class ThresholdClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Base class of classifiers of two labels at a fitted threshold, in scikit-learn's conventions.

    A subclass defines `_stacked_logits`, and sets `classes_` and `threshold_` when it is fitted.
    """

    classes_: NDArray[Any]
    threshold_: float

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _stacked_logits(self, X: Any) -> Floats:  # noqa: N803
        raise NotImplementedError

    def decision_function(self, X: Any) -> Floats:  # noqa: N803  scikit-learn's name
        """Return the stacked logit minus the threshold (n,): the label is `classes_[1]` iff it is >= 0."""
        check_is_fitted(self)
        return np.asarray(self._stacked_logits(X) - self.threshold_)

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return the label of each row (n,), one of `classes_`."""
        y_pred = apply_threshold(self.decision_function(X), 0.0)
        return np.asarray(self.classes_[y_pred])

    def predict_proba(self, X: Any) -> Floats:  # noqa: N803
        """Return the probabilities of `classes_` (n, 2), at the class shares of the rows of `fit`.

        The label may be the less probable class, because the threshold minimises the objective, not the error rate.
        """
        from scipy.special import expit

        check_is_fitted(self)
        logits = self._stacked_logits(X)
        return np.column_stack((expit(-logits), expit(logits)))

    def score(self, X: Any, y: Any) -> float:  # noqa: N803
        """Return 1 - HTER, the balanced accuracy. Other classifiers of scikit-learn return the accuracy here.

        If the classes differ in size, a threshold that minimises HTER lowers the accuracy. A search over parameters
        that maximises the accuracy would then contradict the objective.

        Raises
        ------
        DataError
            `y` contains a label that is not in `classes_`, or lacks one of them.
        """
        y_pred, y_true = self.predict(X), column_or_1d(y)
        if other := sorted(set(y_true.tolist()) - set(self.classes_.tolist()), key=str):
            raise DataError("y", f"must hold the labels {self.classes_.tolist()}; got {other[0]!r}")
        return 1 - error_rates(y_true == self.classes_[1], y_pred == self.classes_[1]).hter


class ThresholdStacker(ThresholdClassifier):
    """Fits a stacker and a threshold on the out-of-fold logits of several members, as `thera fit-stacker` does.

    Parameters
    ----------
    objective : str
        The objective of the threshold: `hter`; `cost:A,B`, the costs of the FPR and of the FNR; `fpr:R` or `fnr:R`,
        where this rate is at most R on the rows of `fit`.
    stacker : {"nonnegative", "logistic", "calibrated", "mean"}
        How the members are combined; without effect where there is one.
    cv : int
        The number of folds of the nested estimate, if `fold_of` is not given to `fit`.
    random_state : int, RandomState instance or None
        Seed of the folds. Nothing else is random.

    Attributes
    ----------
    classes_ : array (2,)
        The labels, sorted; the second is the positive one.
    threshold_ : float
        The threshold of the stacked logit.
    weights_ : float64 array (m,)
        The weights of the members in the stacked logit; 0 for a member that is constant in every fold.
    bias_ : float
    nested_hter_ : float
        The nested HTER: every fold is scored by a stacker and a threshold that were fitted without it.
    n_features_in_ : int
        The number of members, m.

    Examples
    --------
    >>> logits = np.array([[-2.0], [-1.0], [-3.0], [1.0], [2.0], [3.0]])
    >>> stacker = ThresholdStacker(cv=3).fit(logits, ["no", "no", "no", "yes", "yes", "yes"])
    >>> stacker.threshold_, stacker.predict([[0.5]])
    (0.0, array(['yes'], dtype='<U3'))
    """

    weights_: Floats
    bias_: float
    nested_hter_: float

    def __init__(
        self, objective: str = "hter", stacker: str = "nonnegative", cv: int = 5, random_state: Any = 0
    ) -> None:
        self.objective = objective
        self.stacker = stacker
        self.cv = cv
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike,  # noqa: N803
        y: ArrayLike,
        groups: ArrayLike | None = None,
        fold_of: ArrayLike | None = None,
    ) -> Self:
        """Fit the stacker and the threshold on all rows, and score them with every fold left out in turn.

        Parameters
        ----------
        X : float array (n, m)
            Logits of the members. They must be out-of-fold; otherwise `nested_hter_` is too low.
        y : array (n,)
            Any two labels.
        groups : array (n,), optional
            Rows of one group stay in one fold.
        fold_of : int array (n,), optional
            The fold of each row, without which its logits were trained; by default `cv` stratified folds are drawn.

        Raises
        ------
        ValueError
            scikit-learn's classifiers do not accept X or y.
        DataError
            There are not two labels, a class is absent from a fold, or all members are constant.
        ConfigError
            The value of a parameter is not valid.
        """
        kind, objective = self.stacker, Objective.parse(self.objective)
        if kind not in STACKERS:
            raise ConfigError("stacker", f"must be one of {', '.join(STACKERS)}; got {kind!r}")
        x, y = validate_data(self, X, y, dtype=np.float64)
        self.classes_, labels = encode_labels(y)
        table = self._fold_table(labels, groups, fold_of)
        oof = OofLogits(table, tuple(f"member {column}" for column in range(x.shape[1])), x)
        used = _varying(oof)
        rows = Rows(oof.logits[:, used], oof.labels, oof.fold_of, tuple(oof.members[column] for column in used))
        fitted = rows.stacker(kind)
        self.threshold_ = fit_threshold(fitted.apply(rows.logits), labels, objective)
        self.weights_, self.bias_ = np.zeros(x.shape[1]), fitted.bias
        self.weights_[used] = fitted.weights
        self.nested_hter_ = error_rates(labels, cross_fit(rows, stack(kind), objective).y_pred).hter
        return self

    def _fold_table(self, labels: Labels, groups: ArrayLike | None, fold_of: ArrayLike | None) -> FoldTable:
        n = len(labels)
        units = None if groups is None else np.unique(_column("groups", groups, n), return_inverse=True)[1]
        if fold_of is None:
            seed = seed_of(self.random_state)
            folds = assign_folds(labels, np.arange(n) if units is None else units, self.cv, seed).fold_of
        else:
            names, numbers = np.unique(_column("fold_of", fold_of, n), return_inverse=True)
            folds = numbers.astype(np.int8)
            if len(names) > MAX_FOLDS:
                raise DataError("fold_of", f"must hold at most {MAX_FOLDS} folds; got {len(names)}")
        return FoldTable(np.arange(n).astype(str), labels, folds, units)

    def _stacked_logits(self, X: ArrayLike) -> Floats:  # noqa: N803
        x = validate_data(self, X, dtype=np.float64, reset=False)
        stacked = np.full(len(x), self.bias_)
        # The sum runs column by column, as in `Stacker.apply`, so that a row does not depend on its batch.
        for weight, column in zip(self.weights_, x.T, strict=True):
            stacked += weight * column
        return stacked


def _varying(oof: OofLogits) -> list[int]:
    """Return the columns that are not constant in every fold, as `fit_decision` keeps them."""
    inside = [oof.fold_of == fold for fold in oof.folds]
    used = [column for column, x in enumerate(oof.logits.T) if any(np.ptp(x[fold]) > 0 for fold in inside)]
    if not used:
        raise DataError("X", f"a member must vary; all {oof.logits.shape[1]} are constant in every fold")
    return used


def _column(name: str, values: ArrayLike, n: int) -> NDArray[Any]:
    array = np.asarray(values)
    if array.shape != (n,):
        raise DataError(name, f"must have shape ({n},); got {array.shape}")
    return array


def encode_labels(y: Any) -> tuple[NDArray[Any], Labels]:
    """Return the two labels that y holds, sorted, and y as 0 and 1 (n,).

    Raises
    ------
    DataError
        `y` is not a column of exactly two different labels.
    """
    try:
        column = column_or_1d(y, warn=True)
        assert_all_finite(column, input_name="y")
        kind = type_of_target(column, input_name="y", raise_unknown=True)
    except ValueError as error:
        raise DataError("y", str(error)) from None
    if kind.startswith("continuous"):
        raise DataError("y", f"Unknown label type: {kind}; two labels are needed")
    if kind != "binary":
        raise DataError("y", f"Only binary classification is supported. The type of the target is {kind}.")
    classes, codes = np.unique(column, return_inverse=True)
    if len(classes) < 2:
        raise DataError("y", f"two classes are needed; got {len(classes)} class in {len(column)} rows")
    return classes, codes.astype(np.int8)


def seed_of(random_state: Any) -> int:
    """Return the seed for a `random_state`: an int is the seed; for None or a generator, a seed is drawn."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(LARGEST_SEED))
