"""Measure a network in training on held-out rows after each epoch, for information only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ensemble.config import VIEWS
from ensemble.members.backbones import Backbone
from ensemble.members.fold_job import FoldJob
from ensemble.members.inference import predict_logits
from ensemble.members.plans import Plan


@dataclass(frozen=True)
class Watch:
    """A measurement on held-out rows after each epoch, for information only; it never affects training.

    Attributes
    ----------
    rows : int array (w,)
        Held-out rows.
    measure : callable
        (logits (w,) or (w, C), labels (w,)) -> float or None.
    name : str
        The name of the measurement in the history; by default that of the HTER.
    """

    rows: np.ndarray
    measure: Callable[[np.ndarray, np.ndarray], float | None]
    name: str = "hter"

    @property
    def title(self) -> str:
        """The name for people."""
        return "HTER" if self.name == "hter" else self.name.replace("-", " ")

    def __call__(self, network: Backbone, job: FoldJob, plan: Plan, device: torch.device) -> float | None:
        logits = predict_logits(network, job.pixels, self.rows, VIEWS[:1], plan.precision, device, Silent())
        return self.measure(logits[:, 0], job.labels[self.rows])


class Silent:
    """A `Progress` that does nothing."""

    def advance(self, n: int = 1) -> None:
        pass

    def skip(self, n: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def say(self, line: str) -> None:
        pass
