"""What the commands return: numbers in frozen dataclasses, which `reports` renders and the Python API hands out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble.decision.assessment import Assessment
from ensemble.decision.class_comparison import ClassComparison, ClassEvaluation
from ensemble.decision.comparison import Comparison, Difference, Evaluation
from ensemble.decision.decision import Decision
from ensemble.decision.deploy import Expectation
from ensemble.decision.rates import ErrorRates
from ensemble.decision.shift import ShareCheck
from ensemble.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemberReport:
    """A member measured out of fold at its own threshold.

    Attributes
    ----------
    assessment : Assessment
    views : tuple of str
        The views that the logits are averaged over.
    from_scratch : bool
        Whether pretrained weights were requested where available, and were not.
    left_out : tuple of int
        Training rows of each fold that were left out for doubtful labels; empty where none were looked for.
    """

    assessment: Assessment
    views: tuple[str, ...]
    from_scratch: bool = False
    left_out: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return self.assessment.name


@dataclass(frozen=True)
class TrainResult:
    """The members that a command has trained, in its order."""

    run: Path
    members: tuple[MemberReport, ...]


@dataclass(frozen=True)
class TrialRow:
    """A member on the rows of one fold, at the threshold that is best for these very rows."""

    name: str
    epochs: int
    core_minutes: float
    rates: ErrorRates
    auc: float
    difference: Difference | None  # its HTER less the first member's; None for the first


@dataclass(frozen=True)
class TrialResult:
    """Members compared on one fold."""

    run: Path
    fold: int
    views: tuple[str, ...]
    rows: tuple[TrialRow, ...]


@dataclass(frozen=True)
class RemoveResult:
    """The members that are left in a run after the removal of another.

    Attributes
    ----------
    run : Path
    removed : str
    left : mapping of str to int
        The finished folds of each member that is left.
    stale : bool
        Whether the decision uses the removed member, so that it must be fitted anew.
    """

    run: Path
    removed: str
    left: Mapping[str, int]
    stale: bool


# --- deciding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FitResult:
    """The decisions for plain prediction and for test-time augmentation."""

    plain: Decision
    tta: Decision


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

    @property
    def new_images(self) -> int:
        """The images that were not in training, which the share check is about."""
        return self.images - self.seen_in_training

    @property
    def label_file(self) -> str:
        """The name of the label file in the folder of the set."""
        return next((name for name in self.files if name not in ("predictions.csv", "bad_images.csv")), "label_val.txt")


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
    facts : PredictionFacts
    table : DataFrame
        `predictions.csv`: a row per image, with ids, labels, logits of the members and votes of the fold models.
    ids : str array (n,)
    y_pred : int8 array (n,)
    stacked_logits, probabilities : float64 array (n,)
        The stored values, rounded to five decimals.
    incomplete : DataError or None
        What the command reports last, and exits with, where images were left out.
    """

    name: str
    folder: Path
    facts: PredictionFacts
    table: pd.DataFrame
    ids: np.ndarray
    y_pred: np.ndarray
    stacked_logits: np.ndarray
    probabilities: np.ndarray
    out: Path | None = None
    incomplete: DataError | None = None


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateResult:
    """A label file measured against the true labels."""

    name: str
    labels: str
    evaluation: Evaluation | ClassEvaluation


@dataclass(frozen=True)
class CompareResult:
    """Two label files, runs or members on the same images.

    Attributes
    ----------
    name_a, name_b : str
    labels : str or None
        The file of the true labels, where label files are compared.
    description_a, description_b : str
        What the nested predictions of a run or member were made by; empty for label files.
    views : tuple of str
        The views of runs and members; empty for label files.
    classes : tuple of C str, or None
        The names of the classes; None for two classes that are 0 and 1.
    """

    name_a: str
    name_b: str
    comparison: Comparison | ClassComparison
    labels: str | None = None
    description_a: str = ""
    description_b: str = ""
    views: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None


# --- reporting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportResult:
    """The results of a run.

    Attributes
    ----------
    run : Path
    images, folds : int
    members : tuple of MemberReport
        The members whose folds are all finished.
    decisions : FitResult or None
        None before `thera fit-stacker`.
    predictions : mapping of str to PredictionFacts
        The label files that the present decision made, keyed by the name of their set.
    data_notes : tuple of str
        Notes on the images from the time when they were read.
    incomplete : DataError or None
        What the command reports last, and exits with, where images to label were left out.
    """

    run: Path
    images: int
    folds: int
    members: tuple[MemberReport, ...]
    decisions: FitResult | None = None
    predictions: Mapping[str, PredictionFacts] = field(default_factory=dict)
    data_notes: tuple[str, ...] = ()
    incomplete: DataError | None = None


@dataclass(frozen=True)
class VerifyResult:
    """The files that were checked, by their paths in the run's folder; all are as they were written."""

    run: Path
    checked: tuple[str, ...]


@dataclass(frozen=True)
class DemoResult:
    """The demo's report, and its label file measured against the generated labels.

    Attributes
    ----------
    report : ReportResult
    nested : ErrorRates
        Nested error rates of the stack on the training images.
    given, true : ErrorRates
        Error rates of the label file against the labels with 5 % flipped, and against the true classes.
    bayes_hter : float
        The least HTER of any rule on the labels as given.
    """

    report: ReportResult
    nested: ErrorRates
    given: ErrorRates
    true: ErrorRates
    bayes_hter: float


@dataclass(frozen=True)
class PeopleRow:
    """A target of the drawn people: its classes, and the best rates of any rule that labels each image by itself."""

    target: str
    classes: int
    least: int  # number of images of the rarest class
    error: float
    mean_error: float
    macro_f1: float


@dataclass(frozen=True)
class PeopleResult:
    """The drawn people: the manifest that lists their images, and a row for each column of labels."""

    manifest: Path
    people: int
    images: int
    rows: tuple[PeopleRow, ...]


@dataclass(frozen=True)
class Recipe:
    """A YAML file for `thera run`, and what it does."""

    name: str
    path: Path
    about: str


@dataclass(frozen=True)
class RecipesResult:
    """The recipes that come with thera."""

    recipes: tuple[Recipe, ...]
