"""Describe one fold's training: its config, images and training rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ensemble.config import MemberConfig, seed_sequence
from ensemble.data.classes import refuse_alpha
from ensemble.errors import DataError
from ensemble.members.joined_pixels import JoinedPixels
from ensemble.members.processes import MappedPixels


@dataclass(frozen=True)
class FoldJob:
    """One fold's training: the member's config, the images, and the rows to train on.

    Attributes
    ----------
    config : MemberConfig
    mapped : MappedPixels or JoinedPixels
        uint8 array (n, H, W, 3).
    labels : int8 array (n,)
        0 or 1, or class indices. Those of training rows may be changed; those of the other rows are as given.
    ids : str array (n,)
        Names of the images, for error messages.
    rows : int array (r,)
        The training rows. The other rows are not read.
    fold, seed : int
        Every random stream is derived from the seed and the names of the member and the fold.
    weights : mapping, optional
        A state dict of arrays to start from.
    address : str, optional
        The repository and commit of the model hub that pretrained weights come from, as `backbones.build` takes them.
    part : int, optional
        The part of the fold's training rows that is held out, when doubtful labels in this part are searched.
    classes : int
        The number of classes C. It is a property of the data, not of the member.
    row_weights : float32 array (n,), optional
        The factor of each row's loss, in [0, 1]; by default, all are 1.
    targets : float32 array (n,) or (n, C), optional
        The probability of label 1, or of each class, that each row is trained to have, in place of its label.

    Raises
    ------
    ConfigError
        The config has an option of two classes, and there are more.
    DataError
        The label of a training row is no class index.
    """

    config: MemberConfig
    mapped: MappedPixels | JoinedPixels
    labels: np.ndarray
    ids: np.ndarray
    rows: np.ndarray
    fold: int
    seed: int
    weights: Mapping[str, np.ndarray] | None = None
    address: str | None = None
    part: int | None = None
    classes: int = 2
    row_weights: np.ndarray | None = None
    targets: np.ndarray | None = None

    def __post_init__(self) -> None:
        where, labels = f"member {self.config.name}", self.labels[self.rows]
        refuse_alpha(where, self.config.alpha, self.classes)
        if labels.size and not 0 <= labels.min() <= labels.max() < self.classes:
            problem = f"labels must be from 0 to {self.classes - 1}; got {labels.min()} to {labels.max()}"
            raise DataError(where, problem)

    @property
    def pixels(self) -> np.ndarray:
        pixels: np.ndarray = self.mapped.array
        return pixels

    @property
    def learned(self) -> np.ndarray:
        """What each row is trained to have: its label (n,), or its targets (n,) or (n, C)."""
        return self.labels if self.targets is None else self.targets

    def weights_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the factor of the loss of these rows (b,), float32; None where all are 1."""
        return None if self.row_weights is None else self.row_weights[rows]

    def random_seed(self, *names: str | int) -> int:
        """Return a 32-bit seed for a random stream of these names; it differs by member, fold and part."""
        of_part = () if self.part is None else ("cleaning", self.part)
        sequence = seed_sequence(self.seed, self.config.name, self.fold, *of_part, *names)
        return int(sequence.generate_state(1)[0])

    @property
    def batch_size(self) -> int:
        return min(self.config.batch_size, len(self.rows))

    @property
    def updates_per_epoch(self) -> int:
        return len(self.rows) // self.batch_size

    @property
    def images(self) -> int:
        """The number of images that all epochs together train on."""
        return self.config.epochs * self.updates_per_epoch * self.batch_size
