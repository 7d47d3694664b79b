"""What `thera predict` returns and stores: the request, the facts about a label file, and the labelled images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble.decision.class_deploy import ClassExpectation
from ensemble.decision.deploy import Expectation
from ensemble.decision.shift import ClassShareCheck, ShareCheck
from ensemble.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class PredictionRequest:
    """Everything that determines a prediction. The same request is not computed twice.

    Attributes
    ----------
    fingerprint : str
        Hash of the images.
    decision_sha256 : str
        Hash of `decision.json`.
    views : tuple of str
    correction, combine, precision, convolutions : str
    prior, cascade : float or None
        The fields of `config.PredictConfig`.
    bad_images_sha256 : str or None
        Of the list of images that were left out; None where there are none.
    """

    fingerprint: str
    decision_sha256: str
    views: tuple[str, ...]
    correction: str
    prior: float | None
    combine: str
    cascade: float | None
    precision: str
    convolutions: str
    bad_images_sha256: str | None = None


@dataclass(frozen=True)
class CascadeFacts:
    """How much a cascade computed, and how many labels it may have changed.

    Attributes
    ----------
    probability : float
        The requested probability that a label equals that of the exact prediction, at one threshold.
    order : tuple of (member, view)
    oof_changed, oof_changed_upper : float
        Share of the OOF rows whose label changed, and its upper 95 % bound.
    oof_cost_share : float
        Share of the exact cost, on the OOF rows.
    images_in_full : int
        Images for which all members and views were evaluated.
    evaluated_share : float
        Share of all members and views that was evaluated.
    pilot, pilot_changed : int
        Images of the pilot, which is evaluated in full, and how many of their labels the cascade would have changed.
    """

    probability: float
    order: tuple[tuple[str, str], ...]
    oof_changed: float
    oof_changed_upper: float
    oof_cost_share: float
    images_in_full: int
    evaluated_share: float
    pilot: int
    pilot_changed: int


@dataclass(frozen=True)
class PredictionFacts:
    """Facts about a label file: `predictions/<set>/predictions.json`.

    Attributes
    ----------
    request : PredictionRequest
    images : int
    objective : str
    threshold : float
        In logits, corrected for averaging where that was measured.
    share_of_label_0 : float
        Share of the images that the file labels 0.
    nested_hter : float
        Nested HTER of the stack of one fold model on the OOF rows.
    expectation : Expectation
    share_check : ShareCheck
    assumed_share_of_label_0 : float or None
    cascade : CascadeFacts or None
    seen_in_training : int
        Images that are byte for byte among the training images. The share check leaves them out.
    files : mapping of str to str
        SHA-256 of the label file, of `predictions.csv`, and of `bad_images.csv` where images were left out.
    caveats : tuple of str
        Why the error may be higher than expected: what distilled members have learned from.
    """

    request: PredictionRequest
    images: int
    objective: str
    threshold: float
    share_of_label_0: float
    nested_hter: float
    expectation: Expectation
    share_check: ShareCheck
    assumed_share_of_label_0: float | None
    cascade: CascadeFacts | None
    files: Mapping[str, str]
    seen_in_training: int = 0
    caveats: tuple[str, ...] = ()

    @property
    def new_images(self) -> int:
        """The images that were not in training, which the share check is about."""
        return self.images - self.seen_in_training

    @property
    def label_file(self) -> str:
        """The name of the label file in the folder of the set."""
        return _label_file(self.files)


def _label_file(files: Mapping[str, str]) -> str:
    return next((name for name in files if name not in ("predictions.csv", "bad_images.csv")), "label_val.txt")


@dataclass(frozen=True)
class ClassPredictionFacts:
    """Facts about a label file of more than two classes: `predictions/<set>/predictions.json`.

    Attributes
    ----------
    request : PredictionRequest
    images : int
    classes : tuple of C str
        The names of the classes; the label file holds their indices, or in a table their names.
    objective : str
    offsets : tuple of C floats
        Of the stacked logits.
    shares : tuple of C floats
        Share of the images that the file gives each label.
    expectation : ClassExpectation
    share_check : ClassShareCheck
    seen_in_training, files, caveats
        As in `PredictionFacts`.
    """

    request: PredictionRequest
    images: int
    classes: tuple[str, ...]
    objective: str
    offsets: tuple[float, ...]
    shares: tuple[float, ...]
    expectation: ClassExpectation
    share_check: ClassShareCheck
    files: Mapping[str, str]
    seen_in_training: int = 0
    caveats: tuple[str, ...] = ()

    @property
    def new_images(self) -> int:
        """The images that were not in training, which the share check is about."""
        return self.images - self.seen_in_training

    @property
    def label_file(self) -> str:
        """The name of the label file in the folder of the set."""
        return _label_file(self.files)


@dataclass(frozen=True, eq=False)
class PredictResult:
    """A labelled set of images.

    Attributes
    ----------
    name : str
        Name of the set, and of its folder below `predictions/`.
    folder : Path
        Holds the label file, `predictions.csv` and `predictions.json`.
    out : Path or None
        The label file that the command wrote; None where only `folder` was written.
    facts : PredictionFacts or ClassPredictionFacts
    table : DataFrame
        `predictions.csv`: a row per image, with ids, labels, logits of the members and votes of the fold models.
    ids : str array (n,)
    y_pred : int8 array (n,)
    stacked_logits, probabilities : float64 array (n,), or (n, C) of more than two classes
        The stored values, rounded to five decimals.
    incomplete : DataError or None
        What the command reports last, and exits with, where images were left out.
    """

    name: str
    folder: Path
    facts: PredictionFacts | ClassPredictionFacts
    table: pd.DataFrame
    ids: np.ndarray
    y_pred: np.ndarray
    stacked_logits: np.ndarray
    probabilities: np.ndarray
    out: Path | None = None
    incomplete: DataError | None = None


@dataclass(frozen=True)
class ShardsResult:
    """A set of images that was labelled in shards; its labels are in the Parquet files of `folder`.

    Attributes
    ----------
    name : str
        Name of the set.
    folder : Path
    facts : PredictionFacts or ClassPredictionFacts
        Rates and share check are those of a pilot where there are more images than `commands.shard_labels.PILOT`.
    shards : int
        The number of parts.
    out : Path or None
        The label file; None where none was written.
    incomplete : DataError or None
        What the command reports last, and exits with, where images were left out.
    """

    name: str
    folder: Path
    facts: PredictionFacts | ClassPredictionFacts
    shards: int
    out: Path | None = None
    incomplete: DataError | None = None
