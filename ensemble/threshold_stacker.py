"""The second stage as a scikit-learn estimator: it turns member logits into labels at the best threshold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite, check_random_state, column_or_1d
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from ensemble.data.classes import MAX_CLASSES, class_count, integer_of
from ensemble.data.folds import MAX_FOLDS, FoldTable, assign_folds
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.cross_fitting import OofLogits, Rows, cross_fit, stack
from ensemble.decision.decision import Decision
from ensemble.decision.objective import Objective
from ensemble.decision.rates import ClassRates, Cut, ErrorRates, Floats, Labels, apply_cut, class_rates, error_rates
from ensemble.decision.stacker import STACKERS
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ArtifactError, ConfigError, DataError
from ensemble.runs import files

LARGEST_SEED = 2**31 - 1
"""The exclusive upper bound of a seed that is drawn because `random_state` is None or a generator."""


class ThresholdClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Base class of classifiers at a fitted threshold or, of more than two classes, at fitted offsets of the classes.

    A subclass defines `_stacked_logits` and `_cut`, and sets `classes_` when it is fitted.
    """

    classes_: NDArray[Any]

    def _stacked_logits(self, X: Any) -> Floats:  # noqa: N803
        """Return the stacked logits (n,), or (n, C) of more than two classes."""
        raise NotImplementedError

    @property
    def _cut(self) -> Cut:
        """The threshold of the stacked logit, or the offsets of the C stacked logits."""
        raise NotImplementedError

    def decision_function(self, X: Any) -> Floats:  # noqa: N803  scikit-learn's name
        """Return the stacked logit minus the threshold (n,): the label is `classes_[1]` iff it is >= 0.

        Of more than two classes, return the stacked logits plus the offsets (n, C): the label is the class with the
        greatest value, and the last of these classes in a tie.
        """
        check_is_fitted(self)
        scores, cut = self._stacked_logits(X), self._cut
        return np.asarray(scores + np.asarray(cut) if isinstance(cut, tuple) else scores - cut)

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return the label of each row (n,), one of `classes_`."""
        decision = self.decision_function(X)
        y_pred = apply_cut(decision, 0.0 if decision.ndim == 1 else (0.0,) * decision.shape[1])
        return np.asarray(self.classes_[y_pred])

    def predict_proba(self, X: Any) -> Floats:  # noqa: N803
        """Return the probabilities of `classes_` (n, C), at the class shares of the rows of `fit`.

        The label may be a less probable class, because the threshold, or the offsets, minimise the objective, not the
        error rate.
        """
        from scipy.special import expit, softmax

        check_is_fitted(self)
        logits = self._stacked_logits(X)
        return np.asarray(
            softmax(logits, axis=1) if logits.ndim > 1 else np.column_stack((expit(-logits), expit(logits)))
        )

    def score(self, X: Any, y: Any) -> float:  # noqa: N803
        """Return the balanced accuracy, 1 - the mean of the class error rates; of two classes, 1 - HTER.

        Other classifiers of scikit-learn return the accuracy here. If the classes differ in size, a threshold that
        minimises HTER lowers the accuracy. A search over parameters that maximises the accuracy would then contradict
        the objective.

        Raises
        ------
        DataError
            `y` contains a label that is not in `classes_`, or lacks one of them.
        """
        y_pred, y_true = self.predict(X), column_or_1d(y)
        code_of = {label: code for code, label in enumerate(self.classes_.tolist())}
        if other := sorted(set(y_true.tolist()) - set(code_of), key=str):
            raise DataError("y", f"must hold the labels {list(code_of)}; got {other[0]!r}")
        true_codes, codes = ([code_of[label] for label in labels.tolist()] for labels in (y_true, y_pred))
        return 1 - class_rates(true_codes, codes, len(code_of)).mean_error


class DecisionClassifier(ThresholdClassifier):
    """Base class of classifiers that set `_decision`, a stored decision of a run, when they are fitted."""

    _decision: Decision | ClassDecision

    @property
    def _cut(self) -> Cut:
        return self._decision.offsets if isinstance(self._decision, ClassDecision) else self._decision.threshold

    @property
    def threshold_(self) -> float:
        check_is_fitted(self)
        if isinstance(self._cut, tuple):
            raise AttributeError(f"of {len(self._cut)} classes, there is no threshold_; see offsets_")
        return self._cut

    @property
    def offsets_(self) -> Floats:
        check_is_fitted(self)
        if not isinstance(self._cut, tuple):
            raise AttributeError("of two classes, there are no offsets_; see threshold_")
        return np.array(self._cut)

    @property
    def expected_rates_(self) -> ErrorRates | ClassRates:
        check_is_fitted(self)
        return self._decision.nested

    @property
    def expected_hter_(self) -> float:
        rates = self.expected_rates_
        return rates.mean_error if isinstance(rates, ClassRates) else rates.hter

    @property
    def expected_hter_interval_(self) -> tuple[float, float]:
        check_is_fitted(self)
        decision = self._decision
        interval = decision.stacked.mean_error if isinstance(decision, ClassDecision) else decision.interval
        return interval.low, interval.high

    def _oof_columns(self, oof: OofLogits) -> dict[str, NDArray[Any]]:
        """Return columns (n,): the labels, each member's logits, the nested stacked logits and the nested predictions.

        Of more than two classes, the logits have a column for each class.
        """
        decision = self._decision
        rows = oof.rows if isinstance(decision, ClassDecision) else decision.aligned(oof).rows
        nested = cross_fit(rows, stack(decision.kind), decision.objective)
        logits = {f"logit_{name}": oof.logits[:, column] for column, name in enumerate(oof.members)}
        logits["stacked_logit"] = nested.scores
        if nested.scores.ndim > 1:
            of_class = list(enumerate(self.classes_.tolist()))
            logits = {f"{name}_{label}": x[:, c] for name, x in logits.items() for c, label in of_class}
        return {"label": self.classes_[oof.labels], **logits, "y_pred": self.classes_[nested.y_pred]}


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

    threshold_: float
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    @property
    def _cut(self) -> float:
        return self.threshold_

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
        units = None if groups is None else np.unique(column("groups", groups, n), return_inverse=True)[1]
        if fold_of is None:
            seed = seed_of(self.random_state)
            folds = assign_folds(labels, np.arange(n) if units is None else units, self.cv, seed).fold_of
        else:
            names, numbers = np.unique(column("fold_of", fold_of, n), return_inverse=True)
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


def column(name: str, values: ArrayLike, n: int) -> NDArray[Any]:
    """Return values that must have shape (n,) as an array; `name` is what the message calls them."""
    array = np.asarray(values)
    if array.shape != (n,):
        raise DataError(name, f"must have shape ({n},); got {array.shape}")
    return array


def encode_labels(y: Any, multi_class: bool = False) -> tuple[NDArray[Any], Labels]:
    """Return the labels that y holds, sorted (C,), and y as indices of them (n,), 0 to C - 1.

    Raises
    ------
    DataError
        `y` is not a column of two different labels; if `multi_class`, of 2 to `MAX_CLASSES`.
    """
    try:
        column = column_or_1d(y, warn=True)
        assert_all_finite(column, input_name="y")
        kind = type_of_target(column, input_name="y", raise_unknown=True)
    except ValueError as error:
        raise DataError("y", str(error)) from None
    if kind.startswith("continuous"):
        needed = "a label for each class is" if multi_class else "two labels are"
        raise DataError("y", f"Unknown label type: {kind}; {needed} needed")
    if kind != "binary" and not multi_class:
        raise DataError("y", f"Only binary classification is supported. The type of the target is {kind}.")
    classes, codes = np.unique(column, return_inverse=True)
    if len(classes) < 2:
        raise DataError("y", f"two classes are needed; got {len(classes)} class in {len(column)} rows")
    if len(classes) > MAX_CLASSES:
        raise DataError("y", f"must hold at most {MAX_CLASSES} classes; got {len(classes)} in {len(column)} rows")
    return classes, codes.astype(np.int8)


def labels_of_names(names: tuple[str, ...] | None) -> NDArray[Any]:
    """Return the user's labels of the classes that have these names (C,): of more than two classes, integers are ints.

    >>> labels_of_names(None).tolist(), labels_of_names(("1", "2", "3")).tolist()
    ([0, 1], [1, 2, 3])
    """
    if names is None:
        return np.array([0, 1])
    are_integers = len(names) > 2 and all(integer_of(name) is not None for name in names)
    return np.array(names).astype(np.int64) if are_integers else np.array(names)


@dataclass(frozen=True)
class StoredClasses:
    """The content of `classes.json` in a run that an estimator has fitted: the user's labels for 0 to C - 1."""

    classes: tuple[str | bool | int | float, ...]


def read_labels(path: Path, names: tuple[str, ...] | None) -> NDArray[Any]:
    """Return the user's labels (C,) from the `classes.json` of a run, or from the names of its classes without one.

    Raises
    ------
    ArtifactError
        The file is damaged, or has another number of classes than the run.
    """
    if not path.exists():
        return labels_of_names(names)
    labels = files.read_json(path, StoredClasses, "fit again").classes
    if len(labels) != class_count(names):
        raise ArtifactError(path, f"has {len(labels)} classes; the run has {class_count(names)}", "fit again")
    return np.array(labels)


def seed_of(random_state: Any) -> int:
    """Return the seed for a `random_state`: an int is the seed; for None or a generator, a seed is drawn."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(LARGEST_SEED))
