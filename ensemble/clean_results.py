"""What `thera clean` returns: the doubtful labels of a run, or what became of a review of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ensemble.decision.intervals import Interval


@dataclass(frozen=True)
class LabelIssue:
    """A label that is likely to be wrong.

    Attributes
    ----------
    rank : int
        1 for the most doubtful one.
    id : str
    given, suggested : str
        The given label, and the most probable other one: names of classes, or 0 and 1.
    probability : float
        The calibrated probability of the given label, by models that have not seen the image.
    """

    rank: int
    id: str
    given: str
    suggested: str
    probability: float


@dataclass(frozen=True)
class ClassIssues:
    """How many labels of a class are doubtful.

    Attributes
    ----------
    name : str
    images, issues : int
        Images with this label, and those of them whose label is likely to be wrong.
    share : float or None
        Of the images with this label that are predicted with confidence, the share predicted as another class, as
        `decision.label_noise.ClassNoise`; None where no image of it is predicted with confidence.
    interval : Interval or None
        The 95 % interval (Jeffreys) of this share. It covers the sampling of the images alone.
    bound : float or None
        The 95 % upper bound on the share of wrong labels if they are wrong at random, as `decision.label_noise.
        NoiseBound`; None without a decision, for more than two classes, and for few images.
    """

    name: str
    images: int
    issues: int
    share: float | None
    interval: Interval | None
    bound: float | None


@dataclass(frozen=True)
class CleanResult:
    """The labels of a run that are likely to be wrong, the most doubtful first.

    Attributes
    ----------
    run : Path
    source : str
        Whose OOF logits doubt them: the stack, or a member.
    issues : tuple of LabelIssue
    classes : tuple of C ClassIssues
    table : Path
        `label_issues/issues.csv`.
    page : Path or None
        `label_issues/review.html`; None where it was not requested or the images are not there.
    overlay : Path or None
        `label_issues/overlay.csv`, where it was requested for all doubtful labels.
    action : str or None
        What this overlay does.
    """

    run: Path
    source: str
    issues: tuple[LabelIssue, ...]
    classes: tuple[ClassIssues, ...]
    table: Path
    page: Path | None = None
    overlay: Path | None = None
    action: str | None = None


@dataclass(frozen=True)
class ReviewResult:
    """What became of a review.

    Attributes
    ----------
    run, review : Path
    counts : mapping of str to int
        The number of images by decision.
    labels : Path
        The new label file or manifest.
    left_in : int
        The dropped images that have a label in this file all the same, because it needs one for each image.
    overlay : Path
        `label_issues/overlay.csv`.
    """

    run: Path
    review: Path
    counts: Mapping[str, int]
    labels: Path
    left_in: int
    overlay: Path


@dataclass(frozen=True)
class ReviewedScore:
    """Predictions measured against reviewed labels: a secondary figure, beside that on the labels as given.

    Attributes
    ----------
    name : str
        The member, or the stack.
    images : int
        The images that are scored: those that the overlay does not drop.
    dropped, flipped : int
        The images that the overlay drops, and those that it gives another label.
    given, reviewed : float or None
        HTER, or the mean class error, of the nested predictions on the labels as given (all images) and on the
        reviewed labels; the latter is None where a class has no image left.
    """

    name: str
    images: int
    dropped: int
    flipped: int
    given: float
    reviewed: float | None
