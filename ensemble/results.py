"""What the commands return: numbers in frozen dataclasses, which `reports` renders and the Python API hands out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ensemble.clean_results import ReviewedScore
from ensemble.decision.assessment import Assessment
from ensemble.decision.class_assessment import ClassAssessment
from ensemble.decision.class_comparison import ClassComparison, ClassEvaluation
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.comparison import Comparison, Difference, Evaluation
from ensemble.decision.decision import Decision
from ensemble.decision.joint import JointRates
from ensemble.decision.rates import ClassRates, ErrorRates
from ensemble.errors import DataError
from ensemble.prediction_results import ClassPredictionFacts, PredictionFacts, PredictResult

# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemberReport:
    """A member measured out of fold at its own threshold.

    Attributes
    ----------
    assessment : Assessment or ClassAssessment
        The latter of more than two classes.
    views : tuple of str
        The views that the logits are averaged over.
    classes : tuple of C str, or None
        The names of the classes; None for two classes that are 0 and 1.
    from_scratch : bool
        Whether pretrained weights were requested where available, and were not.
    left_out : tuple of int
        Training rows of each fold that were left out for doubtful labels; empty where none were looked for.
    changed : tuple of int
        Training rows of each fold that had another label or weight; empty as `left_out`.
    overlay : bool
        Whether an overlay changed them, which is not nested.
    teachers : tuple of str
        The members whose stack a student has learned the answers of; empty for members that learned labels.
    caveats : tuple of str
        Why the error of a student may be lower than that of new images.
    """

    assessment: Assessment | ClassAssessment
    views: tuple[str, ...]
    from_scratch: bool = False
    left_out: tuple[int, ...] = ()
    classes: tuple[str, ...] | None = None
    changed: tuple[int, ...] = ()
    overlay: bool = False
    teachers: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()

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
    """A member on the rows of one fold, at the threshold, or offsets, that are best for these very rows."""

    name: str
    epochs: int
    core_minutes: float
    rates: ErrorRates | ClassRates
    auc: float | None  # None of more than two classes
    difference: Difference | None  # its HTER or mean class error less the first member's; None for the first


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
class ClassFitResult:
    """The decisions among more than two classes, and the names of the classes."""

    plain: ClassDecision
    tta: ClassDecision
    classes: tuple[str, ...]


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
    decisions : FitResult, ClassFitResult or None
        None before `thera fit-stacker`.
    predictions : mapping of str to PredictionFacts or ClassPredictionFacts
        The label files that the present decision made, keyed by the name of their set.
    data_notes : tuple of str
        Notes on the images from the time when they were read.
    classes : tuple of C str, or None
        The names of the classes; None for two classes that are 0 and 1.
    incomplete : DataError or None
        What the command reports last, and exits with, where images to label were left out.
    reviewed : tuple of ReviewedScore
        The secondary scores on reviewed labels; empty where no member has an overlay.
    """

    run: Path
    images: int
    folds: int
    members: tuple[MemberReport, ...]
    decisions: FitResult | ClassFitResult | None = None
    predictions: Mapping[str, PredictionFacts | ClassPredictionFacts] = field(default_factory=dict)
    data_notes: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    incomplete: DataError | None = None
    reviewed: tuple[ReviewedScore, ...] = ()


@dataclass(frozen=True, eq=False)
class TargetsPrediction:
    """A set of images labelled by several targets.

    Attributes
    ----------
    name : str
        Name of the set.
    folder : Path
        Holds `predictions.csv` and `labels.csv` of all targets.
    out : Path
        The table of labels that the command wrote.
    targets : mapping of str to PredictResult
    incomplete : DataError or None
        What the command reports last, and exits with, where images were left out.
    """

    name: str
    folder: Path
    out: Path
    targets: Mapping[str, PredictResult]
    incomplete: DataError | None = None


@dataclass(frozen=True, eq=False)
class TargetsResult:
    """The results of the runs of several targets.

    Attributes
    ----------
    run : Path
    targets : mapping of str to ReportResult
    joint : JointRates or None
        The rates of the combination of all targets, nested; None before the stackers are fitted.
    classes : mapping of str to tuple of str
        The names of the classes of each target.
    predicted : TargetsPrediction or None
    """

    run: Path
    targets: Mapping[str, ReportResult]
    joint: JointRates | None
    classes: Mapping[str, tuple[str, ...]]
    predicted: TargetsPrediction | None = None

    @property
    def incomplete(self) -> DataError | None:
        """What the command reports last, and exits with, where images to label were left out."""
        return None if self.predicted is None else self.predicted.incomplete


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
