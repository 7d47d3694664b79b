"""Simulated worlds with known truth: members of unequal strength with shared errors, k fold models each, noisy labels.

A world is a distribution of images and the fold models that were trained on it. An image has a true class (0 with
probability 0.12), an evidence that all members share, and a separate evidence for each member. Each fold model adds its
own noise to the member's evidence, which averaging reduces, and its own offset. The noise may differ by image and by
class, although the model of averaging assumes that it does not. The given labels are the true classes, flipped more
often for one class than for the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class World:
    """m members with k fold models each. All arrays are (m,) but `offsets` (m, k)."""

    strengths: np.ndarray  # of the shared evidence
    own: np.ndarray  # spread of each member's own evidence: what misleads it alone
    noise: np.ndarray  # spread of a fold model's noise
    offsets: np.ndarray
    flips: tuple[float, float]  # probability that a label 0 is given as 1, and a 1 as 0
    skew: float  # of the shared evidence: 0 Gaussian, up to 1 a gamma of shape 4
    share: float = 0.12  # of true class 0
    by_image: float = 0.0  # spread of the log of an image's own factor on the fold models' noise
    by_class: float = 1.0  # factor on the noise where the true class is 0

    @classmethod
    def draw(cls, rng: np.random.Generator, members: int = 3, folds: int = 5) -> World:
        return cls(
            strengths=np.array([1.0, 0.8, 0.5, 0.9, 0.7])[:members] * rng.uniform(0.85, 1.15, members),
            own=rng.uniform(0.3, 0.8, members),
            noise=rng.uniform(0.3, 0.9, members),
            offsets=rng.normal(0, 0.05, (members, folds)),
            flips=(rng.uniform(0.0, 0.1), rng.uniform(0.0, 0.02)),
            skew=rng.uniform(0, 1),
        )

    @property
    def folds(self) -> int:
        return self.offsets.shape[1]

    def sample(self, rng: np.random.Generator, n: int, share: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return labels as given (n,) and the logits of every fold model (n, m, k)."""
        truth = rng.random(n) > (self.share if share is None else share)
        bell = rng.normal(size=n)
        tail = (rng.gamma(4.0, 1.0, n) - 4.0) / 2.0  # mean 0, spread 1
        shared = np.where(truth, 1.7, -1.7) + (1 - self.skew) * bell + self.skew * tail
        evidence = shared[:, None] * self.strengths + self.own * rng.normal(size=(n, self.own.size))
        noise = self.noise[:, None] * rng.normal(size=(n, *self.offsets.shape))
        factor = np.where(truth, 1.0, self.by_class)
        if self.by_image:
            factor = factor * rng.lognormal(0.0, self.by_image, n)
        noise *= factor[:, None, None]
        labels = truth ^ (rng.random(n) < np.where(truth, self.flips[1], self.flips[0]))
        return labels.astype(np.int8), evidence[:, :, None] + noise + self.offsets

    def out_of_fold(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return labels (n,), folds (n,) and OOF logits (n, m): of each image, those of its fold's models alone."""
        labels, logits = self.sample(rng, n)
        fold_of = np.empty(n, np.int8)
        for label in (0, 1):  # stratified
            rows = np.flatnonzero(labels == label)
            fold_of[rows] = np.arange(rows.size) % self.folds
        return labels, fold_of, logits[np.arange(n), :, fold_of]
