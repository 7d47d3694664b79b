"""The peer of the exact threshold: scikit-learn's `TunedThresholdClassifierCV`, a grid of 100 thresholds."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import TunedThresholdClassifierCV


class PassThrough(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted binary classifier whose score is its only column."""

    classes_ = np.array([0, 1])

    def fit(self, scores: np.ndarray, labels: np.ndarray) -> PassThrough:
        return self

    def decision_function(self, scores: np.ndarray) -> np.ndarray:
        return np.asarray(scores[:, 0])

    def predict(self, scores: np.ndarray) -> np.ndarray:
        return np.asarray((scores[:, 0] >= 0).astype(np.int8))

    def __sklearn_is_fitted__(self) -> bool:
        return True


def by_scikit_learn(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the best threshold of the grid for logits (n,) and labels (n,)."""
    tuned = TunedThresholdClassifierCV(PassThrough(), scoring="balanced_accuracy", cv="prefit", refit=False)
    return float(tuned.fit(logits[:, None], labels).best_threshold_)
