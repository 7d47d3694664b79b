"""What an exported model says of images. This file loads no library that decodes or computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Outputs:
    """What an exported model says of n images, with m members and C classes.

    Attributes
    ----------
    y_pred : int8 array (n,)
        Class indices, 0 to C - 1.
    probabilities : float64 array (n,), or (n, C) of more than two classes
        Of label 1, or of each class.
    stacked_logits : float64 array (n,) or (n, C)
    member_logits : float64 array (n, m) or (n, m, C)
        Averaged over views and fold models.
    """

    y_pred: NDArray[np.int8]
    probabilities: NDArray[np.float64]
    stacked_logits: NDArray[np.float64]
    member_logits: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Sequence[Outputs]) -> Outputs:
        """Return the outputs of several batches as one."""
        return cls(
            y_pred=np.concatenate([each.y_pred for each in parts]),
            probabilities=np.concatenate([each.probabilities for each in parts]),
            stacked_logits=np.concatenate([each.stacked_logits for each in parts]),
            member_logits=np.concatenate([each.member_logits for each in parts]),
        )

    def row(self, index: int) -> Outputs:
        """Return what is said of one image, as outputs of n = 1."""
        at = slice(index, index + 1)
        return Outputs(self.y_pred[at], self.probabilities[at], self.stacked_logits[at], self.member_logits[at])
