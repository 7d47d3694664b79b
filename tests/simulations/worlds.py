"""Simulated worlds with known truth: members of unequal strength with shared errors, k fold models each, noisy labels.

A world is a distribution of images and the fold models that were trained on it. An image has a true class (0 with
probability `share`), an evidence that all members share, and a separate evidence for each member. Each fold model adds
its own noise to the member's evidence, which averaging reduces, and its own offset. The noise may differ by image and
by class, although the model of averaging assumes that it does not. The given labels are the true classes, flipped more
often for one class than for the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble.data.folds import FoldTable, assign_folds


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
    deviation: float = 0.0  # offset of the first fold model of the first member, in standard deviations of its logits
    heavy_tails: bool = False  # a member's own evidence has Student's t distribution with 3 degrees of freedom
    rounded: bool = False  # logits are whole numbers
    repeated: bool = False  # the second member is a copy of the first
    constant: bool = False  # the last member gives one logit to all images
    group: int = 1  # images in a group, which share class, given label and most of their evidence

    @classmethod
    def draw(cls, rng: np.random.Generator, members: int = 3, folds: int = 5) -> World:
        return cls(
            strengths=np.resize([1.0, 0.8, 0.5, 0.9, 0.7], members) * rng.uniform(0.85, 1.15, members),
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
        """Return labels as given (n,) and the logits of every fold model (n, m, k); groups are consecutive images."""
        group_of, groups = np.arange(n) // self.group, -(-n // self.group)
        truth = (rng.random(groups) > (self.share if share is None else share))[group_of]
        bell, tail = rng.normal(size=n), (rng.gamma(4.0, 1.0, n) - 4.0) / 2.0  # mean 0, spread 1
        if self.group > 1:
            bell = np.sqrt(0.8) * rng.normal(size=groups)[group_of] + np.sqrt(0.2) * bell
        shared = np.where(truth, 1.7, -1.7) + (1 - self.skew) * bell + self.skew * tail
        size = (n, self.own.size)
        own = rng.standard_t(3, size) / np.sqrt(3) if self.heavy_tails else rng.normal(size=size)
        evidence = shared[:, None] * self.strengths + self.own * own
        noise = self.noise[:, None] * rng.normal(size=(n, *self.offsets.shape))
        factor = np.where(truth, 1.0, self.by_class)
        if self.by_image:
            factor = factor * rng.lognormal(0.0, self.by_image, n)
        noise *= factor[:, None, None]
        flipped = (rng.random(groups)[group_of] < np.where(truth, self.flips[1], self.flips[0])).astype(bool)
        return (truth ^ flipped).astype(np.int8), self._as_given(evidence[:, :, None] + noise + self.offsets)

    def _as_given(self, logits: np.ndarray) -> np.ndarray:
        if self.deviation:  # a member's logits have a standard deviation of about 1.5 times its strength
            logits[:, 0, 0] += self.deviation * 1.5 * self.strengths[0]
        if self.repeated:
            logits[:, 1] = logits[:, 0]
        if self.constant:
            logits[:, -1] = 0.5
        return np.round(logits) if self.rounded else logits

    def out_of_fold(self, rng: np.random.Generator, n: int, grouped: bool = True) -> tuple[FoldTable, np.ndarray]:
        """Return a fold table of n images and their OOF logits (n, m): of each image, those of its fold's models alone.

        Each label has at least two images, or groups, for each fold; samples with fewer are drawn again.
        If `grouped`, the groups are in the table and lie in one fold each.
        """
        labels, logits = self.sample(rng, n)
        while np.bincount(labels[:: self.group], minlength=2).min() < 2 * self.folds:  # too few to cross-fit
            labels, logits = self.sample(rng, n)
        groups = np.arange(n) // self.group if self.group > 1 and grouped else None
        units = np.arange(n) if groups is None else groups
        fold_of = assign_folds(labels, units, self.folds, int(rng.integers(2**31))).fold_of
        return FoldTable(np.arange(n).astype(str), labels, fold_of, groups), logits[np.arange(n), :, fold_of]
